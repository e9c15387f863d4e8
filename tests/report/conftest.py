"""Reports and plans for the tests of the report package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.report.schema import Report

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the helpers beside this file

from reports import REPORTS, MakeReport, build, plan_of


@pytest.fixture(scope="session")
def make_report() -> MakeReport:
    """Makes a report; any of its fields can be given."""
    return build


@pytest.fixture(params=REPORTS, scope="module")
def report(request: pytest.FixtureRequest) -> Report:
    """A report of every kind."""
    return REPORTS[request.param]()


@pytest.fixture(scope="session")
def make_plan() -> Callable[[Report], StoragePlan]:
    """Makes a storage plan for the tensors of a report."""
    return plan_of
