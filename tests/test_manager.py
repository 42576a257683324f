"""Plugins enter by entry points of real distributions; whatever is broken is named together with its remedy."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo import hookspecs
from zoo.errors import PluginError, UsageError
from zoo.manager import IN_PROCESS, installed, plugins
from zoo.plugin import Examples, Target, Task, hookimpl
from zoo.testing import Echo, toy

Distribute = Callable[..., None]


@pytest.fixture
def distribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribute:
    """Installs a distribution: a module and the metadata that pip would write, on ``sys.path`` for this test."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str, *, distribution: str = "", value: str = "", version: str = "1.2.3") -> None:
        distribution = distribution or f"zoo-{name}"
        module = distribution.replace("-", "_") + "_for_manager"
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[zoo]\n{name} = {module}{value}\n", encoding="utf-8")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


def a_model(name: str) -> str:
    return f"""
from zoo.plugin import hookimpl
from zoo.testing import Echo

@hookimpl
def zoo_models():
    return [Echo({name!r})]
"""


A_CLASS = """
from zoo.testing import Echo

class Whole(Echo):
    def __init__(self):
        super().__init__("whole")

instance = Whole()
"""


def test_an_installed_distribution_adds_its_model(distribute: Distribute) -> None:
    distribute("mine", a_model("my-model"))
    registered = plugins().model("my-model")
    assert registered.plugin == Echo("my-model")
    assert (registered.distribution, registered.version) == ("zoo-mine", "1.2.3")


@pytest.mark.parametrize("value", [":Whole", ":instance"])
def test_an_entry_point_may_name_a_class_or_an_instance(distribute: Distribute, value: str) -> None:
    distribute("mine", A_CLASS, value=value)
    assert plugins().model("whole").distribution == "zoo-mine"


def test_listing_reads_metadata_and_imports_nothing(distribute: Distribute) -> None:
    distribute("mine", "raise SystemError('imported')")
    found = next(entry for entry in installed() if entry.name == "mine")
    assert (found.distribution, found.version, found.value) == ("zoo-mine", "1.2.3", "zoo_mine_for_manager")


def test_importing_the_manager_imports_nothing_heavy() -> None:
    script = "import sys, zoo.manager; print(*{'numpy', 'pydantic', 'torch', 'feast', 'pandas', 'sqlalchemy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_models_and_tasks_are_listed_by_name_and_cannot_be_changed(distribute: Distribute) -> None:
    distribute("zebra", a_model("a-model"))
    distribute("ant", a_model("z-model"))
    loaded = plugins()
    assert list(loaded.models) == sorted(loaded.models)
    assert {"a-model", "z-model"} <= loaded.models.keys()
    with pytest.raises(TypeError):
        loaded.models["x"] = loaded.models["a-model"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        loaded.models = {}  # type: ignore[misc]


def test_a_call_leaves_nothing_behind_for_the_next(distribute: Distribute) -> None:
    assert "echo" in plugins(extra=[Echo()]).models
    assert "echo" not in plugins().models


def test_an_unknown_model_or_task_is_refused_with_the_choices() -> None:
    loaded = plugins(extra=[Echo()])
    with pytest.raises(UsageError, match=r"unknown model 'ecko'; choose one of: .*echo"):
        loaded.model("ecko")
    with pytest.raises(UsageError, match="unknown task 'chrun'; choose one of: "):
        loaded.task("chrun")


def test_a_plugin_that_does_not_import_stops_the_start_and_is_named(distribute: Distribute) -> None:
    distribute("mine", "import no_such_module_at_all")
    with pytest.raises(PluginError) as error:
        plugins()
    message = str(error.value)
    assert "plugin 'mine' of distribution 'zoo-mine' (zoo_mine_for_manager) does not import" in message
    assert "ModuleNotFoundError: No module named 'no_such_module_at_all'" in message
    assert "pip uninstall zoo-mine" in message
    assert "zoo --without mine" in message
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("source", "value", "message"),
    [
        ("raise SystemExit(3)", "", "does not import: SystemExit: 3"),
        ("", ":missing", "does not import: AttributeError: .*'missing'"),
        ("class Needs:\n    def __init__(self, size): ...", ":Needs", "cannot be made without arguments: TypeError: .*'size'"),
        (
            "def zoo_models(): return []",
            "",
            "implements no hook; mark one of zoo_commands, .*zoo_trained with @zoo.plugin.hookimpl",
        ),
        (
            "from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_modls(): return []",
            "",
            r"implements a hook 'zoo_modls' that does not exist; the closest is zoo_models\(\), the others are zoo_commands, ",
        ),
        (
            "from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_fold(data): return []",
            "",
            r"'zoo_fold' that does not exist; the closest is zoo_folds\(data, known_at, count, seed\)",
        ),
        (
            "from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_folds(data, n_folds): return []",
            "",
            r"implements zoo_folds\(data, n_folds\); valid arguments are \(data, known_at, count, seed\)",
        ),
        (
            "from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_models(): return 1 / 0",
            "",
            "failed in zoo_models: ZeroDivisionError: division by zero",
        ),
        (
            "from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_models(): return None",
            "",
            "returned None from zoo_models; expected a list",
        ),
        (
            "from zoo.plugin import hookimpl\n@hookimpl(wrapper=True)\ndef zoo_models(): return (yield)",
            "",
            "wraps zoo_models, which is asked plugin by plugin",
        ),
        (
            "from zoo.plugin import hookimpl\nfrom zoo.testing import Echo\n@hookimpl\ndef zoo_models(): return [Echo]",
            "",
            r"returned the class Echo from zoo_models; expected an instance, Echo\(\)",
        ),
        (
            "from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_models(): return ['gru']",
            "",
            "returned a str from zoo_models that lacks spec, fit, load, tiny",
        ),
        (a_model("My Model"), "", "offers a model with spec .*'My Model'.*expected a ModelSpec with a name of lower-case"),
        (
            "from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_tasks(): return ['churn']",
            "",
            "returned a str from zoo_tasks; expected a Task",
        ),
    ],
)
def test_a_broken_plugin_is_named_with_what_was_seen_and_expected(
    distribute: Distribute, source: str, value: str, message: str
) -> None:
    distribute("mine", source, value=value)
    with pytest.raises(PluginError, match=message) as error:
        plugins()
    assert "plugin 'mine' of distribution 'zoo-mine'" in str(error.value)
    assert "zoo --without mine" in str(error.value)
    assert "my" not in plugins(without=["mine"]).models


def test_a_plugin_left_out_is_never_imported(distribute: Distribute) -> None:
    distribute("mine", "raise SystemError('imported')")
    assert "mine" in {entry.name for entry in installed()}
    plugins(without=["mine"])
    assert "zoo_mine_for_manager" not in sys.modules


def test_leaving_out_a_plugin_that_is_not_installed_is_misuse(distribute: Distribute) -> None:
    distribute("mine", a_model("my-model"))
    with pytest.raises(UsageError, match=r"unknown plugin 'nine'; choose one of: .*folds.*mine"):
        plugins(without=["nine"])


def test_two_models_of_one_name_name_both_distributions(distribute: Distribute) -> None:
    distribute("mine", a_model("same"))
    distribute("yours", a_model("same"))
    with pytest.raises(
        PluginError, match=r"a model 'same': 'mine' of distribution 'zoo-mine' and 'yours' of distribution 'zoo-yours'"
    ):
        plugins()
    assert plugins(without=["mine"]).model("same").distribution == "zoo-yours"


def test_two_distributions_with_one_entry_point_are_both_named(distribute: Distribute) -> None:
    distribute("mine", a_model("one"))
    distribute("mine", a_model("two"), distribution="zoo-other")
    with pytest.raises(PluginError, match=r"distributions zoo-(mine and zoo-other|other and zoo-mine) both name a plugin 'mine'"):
        plugins()


def no_examples(log: Any, settings: Any, start: int, end: int) -> Examples:
    return Examples({}, np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


@dataclass(eq=False)
class Listener:
    """Remembers what it heard."""

    heard: list[Any] = field(default_factory=list)

    @hookimpl
    def zoo_trained(self, record: Any) -> None:
        self.heard.append(("trained", record))

    @hookimpl
    def zoo_scored(self, scores: Any, model: str) -> None:
        self.heard.append(("scored", model, scores))


@dataclass(eq=False)
class Everything(Listener):
    """Implements every hook."""

    @hookimpl
    def zoo_models(self) -> list[Any]:
        return [Echo("from-everything")]

    @hookimpl
    def zoo_tasks(self) -> list[Task]:
        return [Task("returns", ("user_id",), Target(), no_examples)]

    @hookimpl
    def zoo_folds(self, count: int, seed: int) -> list[tuple[Any, Any]]:
        return [(np.arange(count), np.array([seed]))]

    @hookimpl
    def zoo_commands(self, cli: Any) -> None:
        cli.append("returns")


def test_zoo_models_adds_models_of_an_object_in_this_process() -> None:
    registered = plugins(extra=[Everything()]).model("from-everything")
    assert registered.distribution == IN_PROCESS


def test_zoo_tasks_adds_tasks() -> None:
    assert plugins(extra=[Everything()]).task("returns").service == "returns"


def test_two_tasks_of_one_name_are_refused() -> None:
    class Again:
        @hookimpl
        def zoo_tasks(self) -> list[Task]:
            return [Task("returns", ("user_id",), Target(), no_examples)]

    with pytest.raises(PluginError, match="two plugins offer a task 'returns'"):
        plugins(extra=[Everything(), Again()])


def test_zoo_folds_of_a_plugin_comes_before_the_default() -> None:
    data = toy(30)
    [(train, scored)] = plugins(extra=[Everything()]).folds(data, data.time, 4, 9)
    assert train.tolist() == [0, 1, 2, 3]
    assert scored.tolist() == [9]


def test_zoo_folds_defaults_to_folds_that_go_forward_in_time() -> None:
    data = toy(100)
    pairs = plugins().folds(data, data.time + 1, 3, 0)
    assert len(pairs) == 3
    assert all(data.time[train].max() < data.time[scored].min() for train, scored in pairs)


def test_without_any_folds_the_message_says_what_is_missing() -> None:
    data = toy(10)
    with pytest.raises(UsageError, match="no plugin answered zoo_folds"):
        plugins(without=["folds"]).folds(data, data.time, 2, 0)


def test_zoo_trained_reaches_every_plugin() -> None:
    one, other = Everything(), Listener()
    plugins(extra=[one, other]).trained({"task": "churn"})
    assert one.heard == other.heard == [("trained", {"task": "churn"})]


def test_zoo_scored_is_heard_and_a_failing_observer_is_logged_by_name_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Fails:
        @hookimpl
        def zoo_scored(self, version: int) -> None:
            raise ValueError(f"cannot note version {version}")

    before, after = Listener(), Listener()
    with caplog.at_level(logging.ERROR):
        plugins(extra=[before, Fails(), after]).scored("churn", 3, {"gru": 0.5})
    assert before.heard == after.heard == [("scored", "churn", {"gru": 0.5})]
    assert "plugin 'extra-1' failed in zoo_scored" in caplog.text
    assert "cannot note version 3" in caplog.text


def test_zoo_commands_hands_over_the_command_line() -> None:
    commands: list[str] = []
    plugins(extra=[Everything()]).hook.zoo_commands(cli=commands)
    assert commands == ["returns"]


def test_every_hook_is_implemented_by_these_tests_and_documented() -> None:
    names = {name for name in vars(hookspecs) if name.startswith("zoo_")}
    assert names == {name for name in dir(Everything) if name.startswith("zoo_")}
    assert all((getattr(hookspecs, name).__doc__ or "").strip().endswith(".") for name in names)
