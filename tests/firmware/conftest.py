"""The shipped C code, built for all tests of a session."""

from __future__ import annotations

import pytest
from c_reader import SANITIZERS, CReader


@pytest.fixture(scope="session")
def c_reader(tmp_path_factory: pytest.TempPathFactory) -> CReader:
    """Optimised, as firmware would be."""
    return CReader(tmp_path_factory.mktemp("reader"), ["-O2"])


@pytest.fixture(scope="session")
def sanitized_reader(tmp_path_factory: pytest.TempPathFactory) -> CReader:
    """Under the address and undefined-behaviour sanitizers."""
    return CReader(tmp_path_factory.mktemp("sanitized"), SANITIZERS)
