"""What the distributions and the feature repository may import; the rooms inside zoo are import-linter's (pyproject.toml)."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
PACKAGES = {plugin.name: next(path.parent.name for path in plugin.glob("zoo_*/__init__.py")) for plugin in PLUGINS}
CONTRACT = {"zoo", "numpy", "pydantic"}
"""What the contract itself is written in: a plugin that requires feature-zoo has it."""
by_plugin = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)


def imported(source: str) -> Iterator[str]:
    """Full names of the modules that a module imports anywhere, its functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # `from zoo import plugin` names a module, `from zoo.plugin import hookimpl` a thing of one
            yield from ([f"{base}.{alias.name}" for alias in node.names] if base in ("", ".", "zoo") else [base])


def imports(folder: Path) -> dict[str, set[str]]:
    """Module -> the files below the folder that import it."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        for module in imported(path.read_text()):
            found.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    return found


def beyond(found: dict[str, set[str]], allowed: str, of: str = "zoo") -> dict[str, set[str]]:
    """Imports of a package that are not allowed (a pattern of the full name)."""
    return {m: files for m, files in found.items() if m.partition(".")[0] == of and not re.fullmatch(allowed, m)}


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import a.b, c\nfrom zoo import plugin\nfrom zoo.cli import main\ndef f():\n    if True:\n        from d.e import g\n"
    )
    assert sorted(imported(source)) == ["a.b", "c", "d.e", "zoo.cli", "zoo.plugin"]


def test_an_import_beyond_the_facade_is_named_with_its_file() -> None:
    found = {"zoo.plugin": {"one.py"}, "zoo.plugins": {"two.py"}, "zoo.contract": {"three.py"}, "numpy": {"four.py"}}
    assert beyond(found, r"zoo\.plugin") == {"zoo.plugins": {"two.py"}, "zoo.contract": {"three.py"}}


@by_plugin
def test_a_plugin_imports_nothing_of_zoo_but_the_facade(plugin: Path) -> None:
    assert beyond(imports(plugin / PACKAGES[plugin.name]), r"zoo\.(plugin|nextitem(\..*)?)") == {}


@by_plugin
def test_tests_of_a_plugin_import_the_facade_and_the_kit_only(plugin: Path) -> None:
    assert beyond(imports(plugin / "tests"), r"zoo\.(plugin|nextitem(\..*)?|testing)") == {}


@by_plugin
def test_a_plugin_imports_no_other_plugin(plugin: Path) -> None:
    others = set(PACKAGES.values()) - {PACKAGES[plugin.name]}
    assert {m: files for m, files in imports(plugin).items() if m.partition(".")[0] in others} == {}


@pytest.mark.parametrize("folder", ["zoo", "feature_repo"])
def test_neither_zoo_nor_the_feature_repository_imports_a_plugin(folder: str) -> None:
    assert {m: f for m, f in imports(ROOT / folder).items() if m.partition(".")[0] in PACKAGES.values()} == {}


def test_the_feature_repository_knows_the_stores_and_the_specs_only() -> None:
    assert beyond(imports(ROOT / "feature_repo"), r"zoo\.(stores(\..+)?|events\.specs)") == {}


@pytest.mark.parametrize("project", [ROOT, *PLUGINS], ids=lambda path: "zoo" if path == ROOT else path.name)
def test_every_package_that_is_imported_is_declared(project: Path) -> None:
    package = project / ("zoo" if project == ROOT else PACKAGES[project.name])
    given = {"zoo"} if project == ROOT else CONTRACT
    assert undeclared(imports(package), declared(project), given | {package.name}) == {}


def test_every_package_that_tests_import_is_declared() -> None:
    made = {"heavy_plugin_for_kit"}  # by a test, for itself
    # in the environments that benchmarks make for their peers
    peers = {
        "autogluon",
        "bentoml",
        "duckdb",
        "implicit",
        "mlflow",
        "open_inference",
        "pytorch_lightning",
        "rectools",
        "tritonclient",
    }
    ours = made | peers | {"zoo", *PACKAGES.values(), *(path.stem for path in ROOT.glob("tests/**/*.py"))}
    ours |= {path.stem for path in ROOT.glob("feature_repo/*.py")}
    found = {**imports(ROOT / "tests"), **{m: f for plugin in PLUGINS for m, f in imports(plugin / "tests").items()}}
    names = declared(ROOT).union(*map(declared, PLUGINS))
    assert undeclared(found, names, ours) == {}


def declared(project: Path) -> set[str]:
    """Distributions that a project requires, those of its extras included."""
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    extras = table.get("optional-dependencies", {}).values()
    return {_plain(re.match(r"[\w.-]+", one)[0]) for one in (*table["dependencies"], *(one for extra in extras for one in extra))}


def undeclared(found: dict[str, set[str]], distributions: set[str], given: set[str]) -> dict[str, set[str]]:
    """Imported packages beyond Python's own and the given ones that none of the distributions holds."""
    providers = packages_distributions()
    tops = {module: module.partition(".")[0] for module in found}
    return {
        top: found[module]
        for module, top in tops.items()
        if top not in sys.stdlib_module_names | given | {""}
        and not distributions & {_plain(name) for name in providers.get(top, [top])}
    }


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
