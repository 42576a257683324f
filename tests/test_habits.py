"""The rules that hold for every test, proven on tests that break them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TESTS = {
    "by_a_mark": "@pytest.mark.skip(reason='by a mark')\ndef test_one(): pass",
    "inside": "def test_one(): pytest.skip('inside')",
    "in_a_fixture": "@pytest.fixture\ndef server(): pytest.skip('in a fixture')\ndef test_one(server): pass",
    "whole_module": "pytest.skip('whole module', allow_module_level=True)",
    "lacking_package": "pytest.importorskip('no_such_package', reason='lacking package')",
    "fails_as_expected": "@pytest.mark.xfail(reason='fails as expected')\ndef test_one(): assert False",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outcome of each of TESTS, as the summary of one run with the project's conftest.py says it."""
    folder = tmp_path_factory.mktemp("skips")
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    for name, test in TESTS.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n{test}\n")
    command = [sys.executable, "-m", "pytest", "-rA", "--rootdir", ".", "--continue-on-collection-errors", "."]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    assert run.stdout.count("No test is skipped here") >= 5
    return {name: outcome for outcome, name in re.findall(r"^([A-Z]+) test_(\w+)\.py", run.stdout, re.MULTILINE)}


@pytest.mark.parametrize("name", ["by_a_mark", "inside", "in_a_fixture", "whole_module", "lacking_package"])
def test_a_skipped_test_fails_the_run(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] in ("FAILED", "ERROR")


def test_an_expected_failure_is_no_skip(outcomes: dict[str, str]) -> None:
    assert outcomes["fails_as_expected"] == "XFAIL"
