"""How much memory there is to use."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_memory"]

_UNKNOWN = 1 << 40
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes that can be had without swapping, under the container's limit if it has one; plenty where none can tell."""
    free = _UNKNOWN
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), _UNKNOWN)
    except (OSError, ValueError):
        pass
    for limit, usage in _CGROUPS:
        try:
            free = min(free, max(0, int(Path(limit).read_text()) - int(Path(usage).read_text())))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return free
