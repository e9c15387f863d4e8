"""What MkDocs runs while it builds the site: it fills in the generated parts of the pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
from reference import command_reference, report_fields

ROOT = Path(__file__).parents[1]
GENERATED = {
    "<!-- generated: commands -->": command_reference,
    "<!-- generated: report fields -->": report_fields,
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the changelog, which stands at the top of the repository."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Puts generated tables in place of their markers."""
    for marker, generate in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return markdown
