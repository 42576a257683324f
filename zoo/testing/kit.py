"""Runs the checks of the contract on a plugin: one list of results for a command line, one test a check for pytest."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zoo.contract import ModelPlugin
from zoo.errors import UsageError, choices
from zoo.testing.case import Case, CheckFailed
from zoo.testing.checks import FOR_EACH_KIND, FOR_ONE_KIND, GENERAL, NOT_TRIED, kinds_of, toy_columns

Check = Callable[[], str | None]
"""Returns None when the contract is kept, or the reason why the check does not apply; raises when it is broken."""
NONE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """message: what was seen and expected where not ok; else why it did not apply or was expected to fail, or empty."""

    name: str
    ok: bool
    seconds: float
    message: str


def checks(plugin: ModelPlugin) -> Iterator[tuple[str, Check]]:
    """Every check by name; those that depend on the kind of target once for each in ``spec.targets``, as ``same_seed[binary]``.

    Checks of one kind share a fitted model, made when the first of them runs.
    """
    for name, general in GENERAL.items():
        yield name, partial(general, plugin)
    for kind in kinds_of(plugin):
        case = Case(plugin, kind)
        for name, check in {**FOR_EACH_KIND, **FOR_ONE_KIND.get(kind, {})}.items():
            yield f"{name}[{kind}]", partial(_tried, check, case)
    for unserved in sorted(plugin.spec.targets - set(kinds_of(plugin))):
        yield (
            f"toy_rows[{unserved}]",
            partial(str, f"there are no toy rows for targets of kind {unserved!r}; test it with your own"),
        )


def _tried(check: Callable[[Case], str | None], case: Case) -> str | None:
    """The check's answer; a model that lacks its columns is told so by one check, not by all."""
    return check(case) if check is toy_columns or not case.unfit else NOT_TRIED


def run_check(name: str, check: Check, reason: str = "") -> CheckResult:
    """The result of one check. With a ``reason`` it is expected to fail, and not ok if it does not."""
    start = time.perf_counter()
    message, failure = "", ""
    try:
        message = check() or ""
    except CheckFailed as failed:
        failure = str(failed)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever a plugin raises is its result
        failure = _told(error)
    if reason:
        kept, failure = not failure, ""
        message = f"fails as expected: {reason}"
        if kept:
            failure = f"passes, but was expected to fail because: {reason}; take it out of the expected failures"
    return CheckResult(name, not failure, time.perf_counter() - start, failure or message)


def run_checks(plugin: ModelPlugin, expected_failures: Mapping[str, str] = NONE) -> list[CheckResult]:
    """All checks, in order. ``expected_failures``: name of a check (with or without its kind) -> the reason in words."""
    named = dict(checks(plugin))
    reasons = _reasons(named, expected_failures)
    return [run_check(name, check, reasons.get(name, "")) for name, check in named.items()]


def contract(plugin: ModelPlugin, expected_failures: Mapping[str, str] = NONE) -> Callable[..., None]:
    """A parametrised test, one case a check, for ``test_contract = contract(MyModel())`` in a plugin's own tests.

    ``expected_failures`` as in ``run_checks``: each needs a reason, and passing is then a failure.
    """
    import pytest  # only where tests are written: the checks themselves need none

    named = dict(checks(plugin))
    reasons = _reasons(named, expected_failures)

    @pytest.mark.parametrize("check", named)
    def test_contract(check: str) -> None:
        if check not in reasons:
            sys.stdout.write(named[check]() or "")  # why it does not apply; pytest -rP shows it
            return
        result = run_check(check, named[check], reasons[check])
        if not result.ok:
            pytest.fail(result.message, pytrace=False)
        pytest.xfail(result.message)

    return test_contract


def _reasons(named: Mapping[str, Check], expected_failures: Mapping[str, str]) -> dict[str, str]:
    """Full name of a check -> why it is expected to fail."""
    reasons: dict[str, str] = {}
    bases = {name: name.partition("[")[0] for name in named}
    for wanted, reason in expected_failures.items():
        if wanted not in bases and wanted not in bases.values():
            raise UsageError(choices("check", wanted, {*bases, *bases.values()}))
        if not reason.strip():
            raise UsageError(f"the expected failure of {wanted!r} has no reason; write down why it fails")
        reasons.update({name: reason for name, base in bases.items() if wanted in (name, base)})
    return reasons


def _told(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (in {frame.name}, {Path(frame.filename).name}:{frame.lineno}); expected no error"
