"""The distributions as users get them: wheels in an environment that holds no source of ours."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
from environments import Environment

MODELS = {
    "bert": "feature-zoo-bert",
    "covisit": "feature-zoo-neighbours",
    "ease": "feature-zoo-neighbours",
    "gbdt": "feature-zoo-gbdt",
    "gpt": "feature-zoo-gpt",
    "gru": "feature-zoo-recurrent",
    "itemknn": "feature-zoo-neighbours",
    "lstm": "feature-zoo-recurrent",
    "popularity": "feature-zoo-neighbours",
    "repeat": "feature-zoo-neighbours",
    "rnn": "feature-zoo-recurrent",
    "slit": "feature-zoo-neighbours",
}


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """An empty folder to run in: no project, no source."""
    folder = tmp_path / "nowhere"
    folder.mkdir()
    return folder


def test_an_empty_environment_knows_nothing_of_ours(environment: Environment, nowhere: Path) -> None:
    find = "from importlib import metadata, util; print(util.find_spec('zoo'), list(metadata.entry_points(group='zoo')))"
    assert environment.run("python", "-c", find, cwd=nowhere).strip() == "None []"
    environment.run("python", "-c", "import deltalake, feast, pyarrow", cwd=nowhere)


def test_a_wheel_holds_every_file_of_its_packages_and_the_licence(wheels: dict[str, Path], tracked: Path) -> None:
    for name, wheel in wheels.items():
        source = tracked if name == "core" else tracked / "plugins" / name
        package = "zoo" if name == "core" else next(source.glob("zoo_*")).name
        expected = {str(path.relative_to(source)) for path in (source / package).rglob("*") if path.is_file()}
        held = set(ZipFile(wheel).namelist())
        assert {file for file in held if ".dist-info/" not in file} == expected
        if name == "core":
            assert {"zoo/py.typed", "zoo/registry/migrations/env.py"} <= held
            assert any(file.endswith(".dist-info/licenses/LICENSE") for file in held)


def test_wheels_alone_list_and_prove_every_plugin(environment: Environment, wheels: dict[str, Path], nowhere: Path) -> None:
    environment.install(*wheels.values())
    files = environment.run("python", "-c", "import zoo, zoo_gbdt; print(zoo.__file__); print(zoo_gbdt.__file__)", cwd=nowhere)
    assert all(Path(file).is_relative_to(environment.root) for file in files.split())

    listed = json.loads(environment.run("zoo", "plugins", "--json", cwd=nowhere))
    assert {model["name"]: model["distribution"] for model in listed["models"]}.items() >= MODELS.items()
    assert {plugin["distribution"] for plugin in listed["plugins"]} == {"feature-zoo", *MODELS.values()}
    assert "error" not in listed

    checked = json.loads(environment.run("zoo", "plugin", "check", "gbdt", "--json", cwd=nowhere))
    assert checked["ok"], [check for check in checked["checks"] if not check["ok"]]
    assert len(checked["checks"]) > 20
    assert list(nowhere.iterdir()) == []


def test_the_core_works_without_a_plugin(environment: Environment, wheels: dict[str, Path], nowhere: Path) -> None:
    environment.install(wheels["core"])
    listed = json.loads(environment.run("zoo", "plugins", "--json", cwd=nowhere))
    assert {plugin["distribution"] for plugin in listed["plugins"]} == {"feature-zoo"}
    assert {task["name"] for task in listed["tasks"]} >= {"churn", "campaign"}
    unknown = subprocess.run(
        [str(environment.root / "bin/zoo"), "plugin", "check", "gbdt"], cwd=nowhere, capture_output=True, text=True
    )
    assert unknown.returncode == 2
    assert "unknown model or plugin 'gbdt'" in unknown.stderr
