"""Training is honest: labels known in time, nothing from the future, nothing from shuffled labels; and repeatable."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shop
from shop import DAY, START, Shop

from zoo.cli.train import untried
from zoo.contract import Examples, FeatureBatch, Task
from zoo.errors import UsageError, ZooError
from zoo.evaluation import evaluate
from zoo.events.view import LogView
from zoo.features import Features, apply
from zoo.manager import Plugins, plugins
from zoo.plugin import hookimpl
from zoo.project import Project
from zoo.registry import Registry
from zoo.stacking import Ensemble, out_of_fold
from zoo.tasks import behaviour, campaign, churn
from zoo.training import members_of, split, train, training_data

CUT = START + 120 * DAY


@pytest.fixture(scope="module")
def found() -> Plugins:
    return plugins()


@pytest.fixture(scope="module")
def features(trained_shop: Shop) -> Features:
    return Features.open(trained_shop.root)


@pytest.fixture(scope="module")
def project(trained_shop: Shop) -> Project:
    return Project.open(trained_shop.root)


def test_members_that_cannot_answer_the_task_are_refused_before_features_are_read(project: Project, features: Features) -> None:
    told: list[str] = []
    said = r"member 'linear': linear predicts binary, value; the task is multiclass; models that predict it: .*gbdt"
    with pytest.raises(UsageError, match=said):
        train(
            replace(project, tasks={"behaviour": replace(project.task("churn"), name="behaviour", task="behaviour", own={})}),
            "behaviour",
            plugins=plugins(),
            features=features,
            members=["gbdt", "linear"],
            progress=lambda _, text: told.append(text),
        )
    assert told == []


# Labels


def test_labels_of_training_rows_close_one_label_window_before_the_test(project: Project, features: Features) -> None:
    rows = split(churn.TASK, project.task("churn"), features.reader.view(), CUT, None)
    assert (rows.train.known_at + 14 * DAY <= CUT).all()
    assert rows.train.known_at.max() + 14 * DAY > CUT - 7 * DAY  # and no later cut is left out
    assert (rows.test.time == CUT).all()


def test_without_a_test_start_the_newest_rows_whose_labels_are_all_known_are_the_test(
    project: Project, features: Features
) -> None:
    view = features.reader.view()
    rows = split(churn.TASK, project.task("churn"), view, None, None)
    end = view.log.end()
    assert end is not None
    assert (rows.test.known_at <= end + 1).all()
    assert rows.test.time.min() == rows.test.time.max() > end - (14 + 7) * DAY


def test_without_a_test_start_a_campaign_is_tested_on_the_newest_fifth_of_its_rows(project: Project, features: Features) -> None:
    """One campaign may be unlike the others."""
    rows = split(campaign.TASK, project.task("campaign"), features.reader.view(), None, None)
    whole = campaign.examples(features.reader.view(), project.task("campaign").own, 0, START + 1_000 * DAY)
    known = whole.time[whole.known_at <= features.reader.view().end + 1]
    assert len(np.unique(rows.test.time)) == 2  # of ten campaigns
    assert 0.2 <= len(rows.test) / len(known) < 0.4
    assert rows.test.time.max() == known.max()


def test_no_rows_to_train_on_is_said_with_what_to_do(project: Project, features: Features) -> None:
    with pytest.raises(UsageError, match=r"no training rows around 2024-01-0.*--test-start"):
        split(churn.TASK, project.task("churn"), features.reader.view(), START + 5 * DAY, None)


# The future

CANARY = "canary"


@dataclass(frozen=True)
class Canary:
    """A log in which every churn row's user is told the answer: by an event at the row's own instant, and another just after."""

    root: Path
    planted: Mapping[tuple[int, int], float]


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Canary:
    """The events are notes (of a type that labels do not look at) with the label in ``value``, and a service ``churn`` reads them."""
    begin = 'activity = Aggregation(\n    ("user_id",),\n    (\n'
    assert begin in shop.DEFINITIONS
    told = 'last("told", "value", where=("note",)), last_n("notes", "time", 5, where=("note",)),\n'
    definitions = shop.DEFINITIONS.replace(begin, begin + told).replace("import Aggregation", "import Aggregation, last")
    settings = shop.SETTINGS.replace('every = "7d"', 'every = "7d"\nstart = "2024-02-01"')
    root = shop.make_project(tmp_path_factory.mktemp("canary") / "shop", settings, definitions)
    log = shop.make_log(root / "data" / "log", shop.events(seed=1, users=120, days=120))
    features = apply_and_open(root)
    own, view = Project.open(root).task("churn").own, features.reader.view()
    rows = churn.examples(view, own, churn.first(own, view), START + 120 * DAY)
    notes = {
        "user_id": np.repeat(rows.keys["user_id"], 2),
        "item_id": np.zeros(2 * len(rows), np.int64),
        "event_type": np.full(2 * len(rows), "note", object),
        "time": np.repeat(rows.time, 2) + np.tile([0, 1], len(rows)),
        "value": np.repeat(rows.target, 2),
        "campaign_id": np.full(2 * len(rows), -1),
    }
    log.append(shop.table_of(notes), idempotency_key=CANARY)
    planted = {(int(u), int(t)): float(y) for u, t, y in zip(rows.keys["user_id"], rows.time, rows.target)}
    return Canary(root, planted)


def apply_and_open(root: Path) -> Features:
    apply(root)
    return Features.open(root)


def newest_note(batch: FeatureBatch) -> np.ndarray:
    """Time of the newest note that each row saw, 0 for none."""
    return batch.column("notes").padded(1)[:, 0].astype(np.int64)


def test_events_from_the_future_reach_no_training_or_test_row(canary: Canary) -> None:
    features = Features.open(canary.root)
    rows = split(churn.TASK, Project.open(canary.root).task("churn"), features.reader.view(), START + 94 * DAY, None)
    for part in (rows.train, rows.test):
        batch = training_data(features, churn.TASK, part).batch
        assert all((int(u), int(t)) in canary.planted for u, t in zip(part.keys["user_id"], part.time))
        assert (newest_note(batch) < part.time).all()
        assert (newest_note(batch) > 0).any()
        # what a row was told is the label of its user's row before
        before = {
            key: canary.planted.get((key[0], key[1] - 7 * DAY)) for key in zip(part.keys["user_id"].tolist(), part.time.tolist())
        }
        told = batch.column("told").values
        for seen, expected in zip(told, before.values()):
            assert expected is None or seen == expected


def test_the_canary_is_heard_by_those_who_look_one_moment_later(canary: Canary) -> None:
    features = Features.open(canary.root)
    rows = split(churn.TASK, Project.open(canary.root).task("churn"), features.reader.view(), START + 94 * DAY, None).test
    later = features.history("churn", {**rows.keys, "time": rows.time + 1})
    assert (later.column("told").values == rows.target).all()
    assert (newest_note(later) == rows.time).all()


def test_events_at_the_instant_of_a_prediction_reach_no_online_batch(canary: Canary) -> None:
    features = Features.open(canary.root)
    features.materialize()
    at = max(time for _, time in canary.planted)
    users = [user for user, time in canary.planted if time == at]
    assert (newest_note(features.online("churn", {"user_id": users}, at=at)) < at).all()
    assert (newest_note(features.online("churn", {"user_id": users}, at=at + 1)) == at).all()


def test_training_on_a_view_that_sees_its_own_instant_is_refused_where_an_event_is_there(canary: Canary, tmp_path: Path) -> None:
    copy = Shop(canary.root).copy(tmp_path / "shop")
    path = copy.root / "definitions.py"
    end = 'tenure("user_tenure"),\n    ),\n'
    assert path.read_text().count(end) == 1
    path.write_text(path.read_text().replace(end, f"{end}    include_equal=True,\n"))
    features = apply_and_open(copy.root)
    rows = split(churn.TASK, Project.open(copy.root).task("churn"), features.reader.view(), START + 94 * DAY, None).test
    leaked = features.history("churn", {**rows.keys, "time": rows.time})
    assert (leaked.column("told").values == rows.target).all()
    with pytest.raises(
        UsageError, match=r"view 'user_activity' sees events at or after a row's own time .* without include_equal"
    ):
        training_data(features, churn.TASK, rows)


def test_the_guard_looks_at_every_view_not_only_at_users(canary: Canary, tmp_path: Path) -> None:
    copy = Shop(canary.root).copy(tmp_path / "shop")
    with (copy.root / "definitions.py").open("a") as file:
        file.write(
            'item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)\n'
            'notes = Aggregation(("item_id",), (last("item_told", "value", where=("note",)),), include_equal=True)\n'
            'item_notes = FeatureView(name="item_notes", entities=[item], schema=schema_of(notes),\n'
            '    source=EventSource(name="item_notes", aggregation=notes))\n'
            'pairs = FeatureService(name="pairs", features=[user_activity, item_notes])\n'
        )
    features = apply_and_open(copy.root)
    task = replace(churn.TASK, feature_service="pairs", entities=("user_id", "item_id"))
    rows = split(churn.TASK, Project.open(copy.root).task("churn"), features.reader.view(), START + 94 * DAY, None).test
    rows = replace(rows, keys={**rows.keys, "item_id": np.full(len(rows), 9)})
    note = {"user_id": 1, "item_id": 9, "event_type": "note", "time": int(rows.time[0])}
    copy.log.append([note], idempotency_key="about an item")
    with pytest.raises(UsageError, match="view 'item_notes' sees events at or after a row's own time"):
        training_data(features, task, rows)


# Shuffled labels


def shuffled(view: LogView, settings: Mapping[str, Any], start: int, end: int) -> Examples:
    """Churn's rows with labels of other rows of the same cut."""
    rows = churn.examples(view, settings, start, end)
    target = rows.target.copy()
    for cut in np.unique(rows.time):
        here = np.flatnonzero(rows.time == cut)
        target[here] = target[np.random.default_rng(int(cut) // DAY).permutation(here)]
    return replace(rows, target=target)


first = churn.first
"""Training looks for it beside ``examples``."""


class Shuffling:
    @hookimpl
    def zoo_tasks(self) -> list[Task]:
        return [replace(churn.TASK, name="shuffled", feature_service="churn", examples=shuffled)]


def test_shuffled_labels_score_a_half_within_the_interval(trained_shop: Shop, tmp_path: Path) -> None:
    copy = trained_shop.copy(tmp_path / "shop")
    path = copy.root / "zoo.toml"
    tables = path.read_text()
    own = tables[tables.index("[tasks.churn]") : tables.index("[tasks.campaign]")]
    path.write_text(tables + own.replace("tasks.churn", "tasks.shuffled"))
    project, with_shuffled = Project.open(copy.root), plugins(extra=[Shuffling()])
    cuts: dict[str, Any] = {
        "test_start": START + 92 * DAY,
        "test_end": START + 130 * DAY,
        "plugins": with_shuffled,
        "register": False,
    }
    chance = train(project, "shuffled", **cuts)
    honest = train(project, "churn", **cuts)
    groups = chance.groups
    for name, scores in chance.scores.items():
        auc = evaluate(chance.test.target, scores, groups=groups, metrics=["auc"])["auc"]
        reach = (auc.high - auc.low) / 2 * 3.29 / 1.96  # from 95 % to 99.9 %
        assert abs(auc.value - 0.5) < reach < 0.12, name
        assert honest.record["stack"]["auc"] > 0.5 + reach
    assert 0.2 < chance.record["base_rate"] < 0.8


# Repeating


def test_a_second_run_reuses_every_fit_and_registers_nothing(trained_shop: Shop, found: Plugins, tmp_path: Path) -> None:
    own = Project.open(trained_shop.copy(tmp_path / "shop").root)
    again = train(own, "churn", plugins=found)
    assert again.record["reused"] == ["gbdt", "gru"]
    assert again.version is not None
    assert again.version.reference == "churn@1"
    with Registry.open(own.registry_url, own.artefacts) as registry:
        assert [v.reference for v in registry.versions("churn")] == ["churn@1"]


def test_guards_that_are_asked_for_later_are_kept(
    trained_shop: Shop, found: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Project.open(trained_shop.copy(tmp_path / "shop").root)
    monkeypatch.setattr("zoo.leaks.PATIENCE", 0.0)
    first = train(own, "churn", plugins=found, members=["gbdt"])
    asked = [train(own, "churn", plugins=found, members=["gbdt"], check_leaks=True) for _ in range(2)]
    versions = [each.version for each in (first, *asked)]
    assert [v and v.reference for v in versions] == ["churn@2", "churn@3", "churn@3"]
    kept = [{g["guard"]: g["tried"] for g in v.metrics["guards"]}["canary"] for v in versions if v is not None]
    assert kept == [False, True, True]
    ((why, names),) = untried(first.record).items()  # what zoo train says of them
    assert (why.startswith("not tried: in 0 s"), names) == (True, ["shuffled labels", "canary"])
    assert untried(asked[0].record) == {}
    again = train(own, "churn", plugins=found, members=["gbdt"]).version
    assert again is not None
    assert again.reference == "churn@3"


def test_a_further_member_costs_its_own_fits_only(trained_shop: Shop, found: Plugins, tmp_path: Path) -> None:
    copy = trained_shop.copy(tmp_path / "shop")
    path = copy.root / "zoo.toml"
    path.write_text(
        path.read_text().replace('["gbdt", "gru"]', '["gbdt", "gru", "rnn"]').replace("[tasks.churn.params.gru]", RNN)
    )
    grown = train(Project.open(copy.root), "churn", plugins=found)
    assert grown.record["reused"] == ["gbdt", "gru"]
    assert grown.version is not None
    assert grown.version.reference == "churn@2"
    assert list(grown.version.lineage["plugins"]) == ["gbdt", "gru", "rnn"]


RNN = """[tasks.churn.params.rnn]
hidden = 4
epochs = 1
max_length = 5

[tasks.churn.params.gru]"""


def test_chosen_members_are_trained_without_registering(project: Project, found: Plugins) -> None:
    trained = train(project, "churn", plugins=found, members=["gbdt"], register=False)
    assert trained.version is None
    assert list(trained.record["members"]) == ["gbdt"]
    assert set(trained.scores) == {"gbdt", "mean", "stack"}


def test_without_refit_members_stay_as_they_scored_the_newest_block_and_decisions_are_kept(
    trained_shop: Shop, found: Plugins, tmp_path: Path
) -> None:
    project = Project.open(trained_shop.copy(tmp_path / "shop").root)
    settings = replace(project.task("churn"), refit=False, cost_ratio=2.0, capacity=0.25)
    done = train(replace(project, tasks={"churn": settings}), "churn", plugins=found, members=["gbdt"], register=False)
    rows = split(churn.TASK, settings, Features.open(project.root).reader.view(), None, None).train
    train_rows, newest = found.folds(done.data, rows.known_at, settings.folds, settings.seed)[-1]
    oof = out_of_fold(members_of(settings, ["gbdt"]), done.data, [(train_rows, newest)])
    assert isinstance(done.ensemble, Ensemble)
    scores = done.ensemble.member_scores(done.data.batch.take(newest))
    np.testing.assert_allclose(scores[:, 0], oof.scores[newest, 0], atol=1e-6)
    assert done.record["refit"] is False
    costs, capacity = done.record["decisions"]["costs"], done.record["decisions"]["capacity"]
    stack = done.scores["stack"][:, 0]
    assert costs["threshold"] == 1 / 3
    assert costs["acted"] == pytest.approx((stack >= 1 / 3).mean())
    assert costs["cost"] == pytest.approx(
        np.mean((stack >= 1 / 3) * (1 - done.test.target) + 2 * (stack < 1 / 3) * done.test.target)
    )
    assert capacity["acted"] == pytest.approx((stack >= capacity["threshold"]).mean())
    assert 0.05 < capacity["acted"] < 0.6  # of other rows than the threshold comes from


def test_classes_with_two_members_are_trained_tested_and_told(trained_shop: Shop, tmp_path: Path) -> None:
    """What a shopper does next in a week, at cuts three weeks apart."""

    class Next:
        @hookimpl
        def zoo_tasks(self) -> list[Task]:
            return [replace(behaviour.TASK, name="next", feature_service="churn")]

    project, table = Project.open(trained_shop.copy(tmp_path / "shop").root), Project.open(trained_shop.root).task("churn")
    own = {"every": "21d", "horizon": "7d", "event_types": ["view", "purchase"]}
    params = {"gbdt": {**table.params["gbdt"], "num_trees": 10}, "gru": {"hidden": 4, "epochs": 1, "max_length": 5}}
    settings = replace(table, name="next", task="next", own=own, params=params, final=None)
    done = train(replace(project, tasks={"next": settings}), "next", plugins=plugins(extra=[Next()]), register=False)
    record, classes = done.record, ["view", "purchase", "nothing"]
    assert list(record["members"]) == ["gbdt", "gru"]
    assert list(record["classes"]) == classes
    for name in ("gbdt", "gru", "mean", "stack"):
        assert done.scores[name].shape == (len(done.test), 3)
        np.testing.assert_allclose(done.scores[name].sum(axis=1), 1, atol=1e-4)
    assert set(record["members"]["gbdt"]["differences"]) == {"log_loss"}
    assert record["importance"]["features"]["gbdt"]["how"] == "TreeSHAP, of scores before the softmax"
    assert set(record["weights"]["shares"]) <= {"gbdt", "gru"}
    assert record["stack"]["log_loss"] < -np.log(1 / 3)


# Lineage


@dataclass(frozen=True)
class Listener:
    records: list[Mapping[str, Any]] = field(default_factory=list)

    @hookimpl
    def zoo_trained(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)


def test_a_version_says_what_it_was_made_from(trained_shop: Shop, tmp_path: Path) -> None:
    copy = trained_shop.copy(tmp_path / "shop")
    path = copy.root / "zoo.toml"
    path.write_text(path.read_text().replace("folds = 2", "folds = 2\nseed = 7", 1))
    commit = committed(copy.root)
    listener = Listener()
    trained = train(Project.open(copy.root), "churn", plugins=plugins(extra=[listener]))
    assert trained.version is not None
    lineage = trained.version.lineage
    assert lineage["git"] == commit
    assert lineage["seed"] == 7
    assert lineage["log"] == copy.log.lineage()
    assert lineage["service_hash"] == Features.open(copy.root).schema_hash("churn")
    assert lineage["task"] == {"name": "churn", "kind": "churn", "entities": ["user_id"], "service": "churn"}
    assert lineage["settings"] == {"event_type": "purchase", "active": "28d", "horizon": "14d", "every": "7d"}
    assert lineage["params"]["gru"] == {"hidden": 8, "epochs": 2, "max_length": 20}
    for name, distribution in (("gbdt", "feature-zoo-gbdt"), ("gru", "feature-zoo-recurrent")):
        expected = {"model": name, "distribution": distribution, "version": installed_version(distribution)}
        assert lineage["plugins"][name] == expected
    assert listener.records == [trained.record]
    assert trained.version.metrics["stack"]["auc"] == trained.record["stack"]["auc"]


def git(root: Path, *words: str) -> str:
    who = ("-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True, text=True).stdout.strip()


def committed(root: Path) -> str:
    git(root, "init", "-q")
    git(root, "add", "zoo.toml")
    git(root, "commit", "-q", "-m", "settings")
    return git(root, "rev-parse", "HEAD")


def test_a_project_without_commits_has_no_commit_in_its_lineage(trained_shop: Shop, found: Plugins, tmp_path: Path) -> None:
    copy = trained_shop.copy(tmp_path / "shop")
    git(copy.root, "init", "-q")
    trained = train(Project.open(copy.root), "churn", plugins=found, members=["gbdt"])
    assert trained.version is not None
    assert trained.version.lineage["git"] is None


# Misuse


@pytest.mark.parametrize(
    ("whole", "broken", "message"),
    [
        ('members = ["gbdt", "gru"]', 'members = ["gbdt", "gru2"]', "gru2"),
        ("num_leaves = 4", "num_leafs = 4", "num_leafs"),
        ('event_type = "purchase"', 'event_typ = "purchase"', "event_typ"),
    ],
)
def test_settings_that_cannot_be_meant_are_named_before_anything_is_fitted(
    trained_shop: Shop, found: Plugins, tmp_path: Path, whole: str, broken: str, message: str
) -> None:
    copy = trained_shop.copy(tmp_path / "shop")
    path = copy.root / "zoo.toml"
    text = path.read_text()
    assert whole in text
    text = text.replace(whole, broken, 1)
    text = text.replace("[tasks.churn.params.gru]", "[tasks.churn.params.gru2]") if "gru2" in broken else text
    path.write_text(text)
    with pytest.raises(ZooError, match=message):
        train(Project.open(copy.root), "churn", plugins=found)


def test_training_again_after_features_changed_registers_a_version_that_answers(
    trained_shop: Shop, found: Plugins, tmp_path: Path
) -> None:
    # a member that reads one column gives the same content whatever else the service holds
    from zoo.features import apply
    from zoo.predictor import Predictor

    copy = trained_shop.copy(tmp_path / "shop")
    toml = copy.root / "zoo.toml"
    settings = toml.read_text()
    assert 'drop = ["items"]' in settings
    toml.write_text(settings.replace('drop = ["items"]', 'drop = ["items", "user_brand_new"]', 1))
    first = train(Project.open(copy.root), "churn", plugins=found, members=["gbdt"])
    text = (copy.root / "definitions.py").read_text()
    whole = 'total("user_spend_28d", "value", "28d", where=BOUGHT),'
    assert whole in text
    changed = text.replace(whole, whole + ' total("user_brand_new", "value", "3d", where=BOUGHT),')
    (copy.root / "definitions.py").write_text(changed)
    apply(copy.root)
    again = train(Project.open(copy.root), "churn", plugins=found, members=["gbdt"])
    assert first.version is not None
    assert again.version is not None
    assert again.version.number == first.version.number + 1
    assert len(Predictor.load(again.version.reference, copy.root).predict(users=[1])) == 1


def test_events_that_arrive_meanwhile_are_neither_read_nor_named(trained_shop: Shop, found: Plugins, tmp_path: Path) -> None:
    copy = trained_shop.copy(tmp_path / "shop")
    before, held = copy.log.version(), copy.log.count()
    pushed = []

    def push(_done: float, text: str) -> None:
        if text in ("examples", "features"):
            event = {"event_id": f"late-{len(pushed)}", "user_id": 1, "item_id": 1, "event_type": "purchase"}
            pushed.append(copy.log.append([{**event, "timestamp": "2024-05-29T00:00:00Z"}]))

    trained = train(Project.open(copy.root), "churn", plugins=found, members=["gbdt"], progress=push)
    assert len(pushed) == 2
    assert copy.log.count() == held + 2
    assert trained.version is not None
    assert (trained.version.lineage["log"]["log"], trained.version.lineage["log"]["events"]) == (before, held)
