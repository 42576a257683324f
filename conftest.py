"""Rules for every test of the core and the plugins: none is skipped, for that hides what is not tested, and none depends on luck."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import hypothesis
import pytest

# Elsewhere every run tries other examples; in CI, where a machine may be busy besides, it is always the same ones, at any speed.
hypothesis.settings.register_profile("zoo", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("zoo")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _not_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _not_skipped((yield))


def _not_skipped(report: Report) -> Report:
    """The report, a failure where the test or module was skipped (an expected failure, which has a reason, is not)."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = (
            f"{reason}\nNo test is skipped here: make what it needs (tests/services.py starts servers), or take it out."
        )
    return report
