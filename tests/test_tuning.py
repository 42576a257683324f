"""Searches that are kept in the registry's database and go on, judged on later training rows only; and lines put in zoo.toml."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from shop import DAY, START, Shop

from zoo import tuning
from zoo.cli.app import app
from zoo.errors import UsageError
from zoo.manager import plugins
from zoo.project import Project
from zoo.registry import Registry
from zoo.tuning import Trials, space_of, tune, write, written

SPACE = {"x": {"low": -1.0, "high": 1.0}, "n": {"low": 1, "high": 64, "log": True}, "kind": ["a", [1, 2]]}


def judge(params, told):
    """Best at x = 0.3, n = 8, kind = [1, 2]."""
    if params["x"] > 0.95:
        raise UsageError("too large")
    loss = (params["x"] - 0.3) ** 2 + abs(params["n"] - 8) / 64 + (params["kind"] == "a")
    told(0, loss)
    return loss


@pytest.fixture(params=["sqlite", "postgresql"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    url = "sqlite:///data/registry.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    (tmp_path / "zoo.toml").write_text(f'[zoo]\nregistry = "{url}"\n\n[tasks.churn]\nmembers = ["gbdt"]\n')
    return Project.open(tmp_path)


def search(project: Project, most: int, given=None) -> Trials:
    given = given or {"x": -1.0, "n": 64, "kind": "a"}
    study = tuning._study(project, "churn/gbdt/0")
    before = len(study.trials)
    tuning._search(study, SPACE, given, judge, tuning.monotonic() + 600, most, tuning.silent)
    return tuning._found(study, "churn", "gbdt", given, before)


def test_a_search_goes_on_where_it_was_and_finds_what_is_better(project: Project) -> None:
    first = search(project, 4)
    assert (first.before, len(first.trials)) == (0, 4)
    assert first.trials[0]["now"]
    assert first.now == pytest.approx(1.3**2 + 56 / 64 + 1)
    on = search(project, 12)
    assert (on.before, len(on.trials)) == (4, 12)
    assert on.trials[:4] == first.trials
    assert len({json.dumps(each["params"]) for each in on.trials}) > 9  # what goes on does not draw the same again
    assert on.loss is not None
    assert on.loss < first.now / 2
    assert set(on.best) == set(SPACE)
    assert on.best["kind"] in SPACE["kind"]
    # what zoo.toml says meanwhile is tried, too
    changed = search(project, 13, dict(on.best))
    assert changed.trials[-1]["now"]
    assert changed.now == pytest.approx(on.loss, abs=1e-3)
    with Registry.open(project.registry_url, project.artefacts) as registry:
        assert registry.models() == []  # the registry's own tables are as they were


def test_a_trial_that_a_dead_run_left_is_closed(project: Project) -> None:
    study = tuning._study(project, "churn/gbdt/0")
    study.ask()
    assert [t.state.name for t in tuning._study(project, "churn/gbdt/0").trials] == ["FAIL"]
    assert len(search(project, 3).trials) == 3


def test_a_search_ends_when_its_minutes_are_over(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by twenty seconds a trial."""
    clock = [0.0]

    def slow(params, told):
        clock[0] += 20
        return judge(params, told)

    monkeypatch.setattr(tuning, "monotonic", lambda: clock[0])
    study = tuning._study(project, "churn/gbdt/0")
    told: list[tuple[float, str]] = []
    given = {"x": -1.0, "n": 64, "kind": "a"}
    tuning._search(study, SPACE, given, slow, 60.0, None, lambda share, text: told.append((share, text)))
    assert len(study.trials) == 3
    shares = [share for share, text in told if not text.endswith("so far")]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1.0])
    tuning._search(study, SPACE, given, slow, clock[0], None, tuning.silent)
    assert len(study.trials) == 3  # no minute, no trial


def test_a_trial_that_is_worse_than_half_of_those_before_it_ends_early(project: Project) -> None:
    folds: list[list[int]] = []

    def by_fold(params, told):
        """Three folds; x is as good as the loss it gives on each."""
        folds.append([])
        for number in range(3):
            folds[-1].append(number)
            told(number, params["x"])
        return params["x"]

    study = tuning._study(project, "churn/gbdt/0")
    good, poor = {"x": {"low": 0.0, "high": 0.1}}, {"x": {"low": 0.8, "high": 0.9}}
    # of the first trials none ends early: the medians of fewer say little
    tuning._search(study, poor, {"x": 0.1}, by_fold, tuning.monotonic() + 600, 2, tuning.silent)
    tuning._search(study, good, {"x": 0.1}, by_fold, tuning.monotonic() + 600, 6, tuning.silent)
    tuning._search(study, poor, {"x": 0.1}, by_fold, tuning.monotonic() + 600, 7, tuning.silent)
    found = tuning._found(study, "churn", "gbdt", {"x": 0.1}, 0)
    assert found.trials[1]["state"] == "complete"
    assert [len(each) for each in folds[:2]] == [3, 3]
    assert folds[6] == [0]  # at the first fold
    assert (found.trials[6]["state"], found.trials[6]["loss"]) == ("pruned", None)
    # what zoo.toml says is never ended early: what is found is compared with it
    tuning._search(study, good, {"x": 5.0}, by_fold, tuning.monotonic() + 600, 8, tuning.silent)
    assert folds[7] == [0, 1, 2]
    assert tuning._found(study, "churn", "gbdt", {"x": 5.0}, 0).now == 5.0


def test_a_member_is_tuned_on_training_rows_and_the_command_writes_the_lines(
    trained_shop: Shop, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = trained_shop.copy(tmp_path / "shop").root
    path = root / "zoo.toml"
    path.write_text(
        path.read_text() + "\n[tasks.churn.tune.gbdt]\nnum_trees = [1, 20]\nlearning_rate = { low = 0.05, high = 0.3 }\n"
    )
    told = []
    found = tune(Project.open(root), "churn", plugins=plugins(), trials=3, progress=lambda done, text: told.append((done, text)))
    assert [each["now"] for each in found.trials] == [True, False, False]
    assert found.now is not None
    assert 0.2 < found.now < 0.8
    assert "trial 3: log-loss" in told[-1][1]
    # a wait is told of before the first trial ends, which may take minutes
    texts = [text for _, text in told]
    first = next(at for at, text in enumerate(texts) if text.startswith("trial 1: "))
    assert texts[0].startswith("features of ")
    assert any(text.startswith("trial 1, fold 1: log-loss ") for text in texts[:first])
    # the same rows, whatever comes after them: later events are no part of the search
    with pytest.raises(SystemExit) as ended:
        app(["--repo", str(root), "tune", "churn", "--trials", "4", "--write", "--workers", "1", "--json"], prog_name="zoo")
    assert ended.value.code in (0, None)
    document = json.loads(capfd.readouterr().out)
    assert (document["before"], len(document["trials"])) == (3, 4)
    better = document["loss"] < document["now"]
    after = Project.open(root).task("churn").params["gbdt"]
    assert all(after[k] == v for k, v in document["best"].items()) or not better
    assert after["num_leaves"] == 4


def test_what_cannot_be_tuned_is_named(trained_shop: Shop) -> None:
    project = Project.open(trained_shop.root)
    with pytest.raises(UsageError, match=r"unknown member of .tasks.churn. 'bert'; choose one of: gbdt, gru"):
        tune(project, "churn", "bert", plugins=plugins())
    with pytest.raises(UsageError, match="0 minutes; expected a number above 0"):
        tune(project, "churn", plugins=plugins(), minutes=0)
    with pytest.raises(UsageError, match="no training rows around"):
        tune(project, "churn", plugins=plugins(), test_start=START + 5 * DAY)
    settings = project.task("churn")
    with pytest.raises(UsageError, match=r"nothing of 'gbdt' is known to be tuned; say what in .tasks.churn.tune.gbdt.*: depth"):
        space_of(settings, "gbdt", {"depth": 3})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tress": [1]}, "unknown parameter of gbdt .* 'tress'; choose one of: trees"),
        ({"trees": 5}, "trees is 5; expected a list of values"),
        ({"trees": {"low": 5}}, "expected a list of values"),
        ({"trees": {"low": 5, "high": 5}}, "expected a list of values"),
        ({"trees": {"low": 0, "high": 5, "log": True}}, "with log = true where the low end is above 0"),
        ({"trees": []}, "expected a list of values"),
    ],
)
def test_a_space_that_cannot_be_meant_is_named(asked, said: str, trained_shop: Shop) -> None:
    from dataclasses import replace

    settings = replace(Project.open(trained_shop.root).task("churn"), tune={"gbdt": asked})
    with pytest.raises(UsageError, match=said):
        space_of(settings, "gbdt", {"trees": 1})


def found_of(best) -> Trials:
    return Trials("churn", "gbdt", "s", 0.5, 0.4, best, [], 0)


@pytest.mark.parametrize(
    "table",
    [
        "",
        "\n[tasks.churn.params.gbdt]\n",
        '\n[tasks.churn.params.gbdt]  # trees\nnum_trees = 5 # many\nnum_leaves = 3\n\n# of the other\n[tasks.other]\nmembers = ["gru"]\n',
    ],
)
def test_lines_are_put_in_zoo_toml_and_everything_else_stays(table: str, tmp_path: Path) -> None:
    path = tmp_path / "zoo.toml"
    text = f'# mine\n[tasks.churn]\nmembers = ["gbdt"]  # one\n{table}'
    path.write_text(text)
    best = {"num_trees": 7, "learning_rate": 0.05, "drop": ["a", 'b"c'], "refit": True, "tiny": 1e-05, "whole": 2.0}
    write(path, found_of(best))
    now = path.read_text()
    expected = tomllib.loads(text)
    expected["tasks"]["churn"].setdefault("params", {}).setdefault("gbdt", {}).update(best)
    assert tomllib.loads(now) == expected
    for comment in ("# mine", "# one", "# of the other", "# trees"):
        assert (comment in now) == (comment in text)


def test_a_file_of_another_form_is_left_alone_and_the_lines_are_said(tmp_path: Path) -> None:
    path = tmp_path / "zoo.toml"
    path.write_text('[tasks]\nchurn = { members = ["gbdt"], params = { gbdt = { num_trees = 3 } } }\n')
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"put them there:\n\[tasks.churn.params.gbdt\]\nnum_trees = 7"):
        write(path, found_of({"num_trees": 7}))
    assert path.read_bytes() == before
    assert [written(v) for v in (1, 1.5, 1e-7, "x", [1, "y"], False)] == ["1", "1.5", "1e-07", '"x"', '[1, "y"]', "false"]
