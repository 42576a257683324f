"""Training is honest: labels known in time, nothing from the future, nothing from shuffled labels; and repeatable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shop
from shop import Shop

from zoo.contract import TrainingData
from zoo.errors import UsageError, ZooError
from zoo.evaluation import evaluate
from zoo.features import Features
from zoo.manager import Plugins, plugins
from zoo.project import Project
from zoo.registry import Registry
from zoo.tasks import churn
from zoo.training import split, train, training_data

DAY = shop.DAY


@pytest.fixture(scope="module")
def found() -> Plugins:
    return plugins()


@pytest.fixture(scope="module")
def features(trained_shop: Shop) -> Features:
    return Features.open(trained_shop.root)


@pytest.fixture(scope="module")
def project(trained_shop: Shop) -> Project:
    return Project.open(trained_shop.root)


def test_labels_of_training_rows_close_one_label_window_before_the_test(project: Project, features: Features) -> None:
    start = shop.START + 120 * DAY
    rows = split(churn.TASK, project.task("churn"), features.reader.view(), start, None)
    assert (rows.train.known_at + 14 * DAY <= start).all()
    assert rows.train.known_at.max() + 14 * DAY > start - 7 * DAY  # and no later cut is left out
    assert (rows.test.time == start).all()


def test_no_rows_to_test_is_said_with_what_to_do(project: Project, features: Features) -> None:
    with pytest.raises(UsageError, match=r"no training rows around 2024-01-0.*--test-from"):
        split(churn.TASK, project.task("churn"), features.reader.view(), shop.START + 5 * DAY, None)


def test_events_from_the_future_reach_no_batch(tmp_path: Path) -> None:
    # the canary: at its cut, every user who will churn gets an event that says so, and another a moment later
    columns = shop.events(seed=1, users=120, days=120)
    root = shop.make_project(tmp_path / "shop")
    cut = shop.START + 90 * DAY
    bought = columns["event_type"] == "purchase"
    stays = np.unique(columns["user_id"][bought & (columns["time"] >= cut) & (columns["time"] < cut + 14 * DAY)])
    leavers = np.setdiff1d(np.arange(1, 121), stays)
    planted = {
        "user_id": np.repeat(leavers, 2),
        "item_id": np.full(2 * len(leavers), 7),
        "event_type": np.full(2 * len(leavers), "purchase", object),
        "time": np.tile([cut, cut + 1], len(leavers)),
        "value": np.full(2 * len(leavers), 1e6),
        "campaign_id": np.full(2 * len(leavers), -1),
    }
    with_canary = {name: np.concatenate([columns[name], planted[name]]) for name in columns}
    rows = {"user_id": np.arange(1, 121), "time": np.full(120, cut)}
    batches = []
    for name, each in (("clean", columns), ("canary", with_canary)):
        project = tmp_path / name
        shop.make_project(project)
        shop.make_log(project / "data" / "log", each)
        from zoo.features import apply

        apply(project)
        batches.append(Features.open(project).history("churn", rows))
    clean, canary = batches
    assert len(leavers) > 20
    assert root.exists()
    assert (canary.newest < cut).all()
    for name in clean.names:
        np.testing.assert_array_equal(clean.column(name).values, canary.column(name).values, err_msg=name)
        assert not (clean.column(name).is_numeric and (clean.column(name).values == 1e6).any())
    later = Features.open(tmp_path / "canary").history("churn", {**rows, "time": np.full(120, cut + 2)})
    assert any(not np.array_equal(later.column(n).values, canary.column(n).values) for n in later.names), (
        "the canary sings nowhere"
    )


def test_shuffled_labels_score_a_half_within_the_interval(project: Project, features: Features, found: Plugins) -> None:
    settings = project.task("churn")
    rows = split(churn.TASK, settings, features.reader.view(), shop.START + 120 * DAY, None)
    data, test = (training_data(features, churn.TASK, part) for part in (rows.train, rows.test))
    plugin = found.model("gbdt").plugin
    params = plugin.spec.params()(**settings.params["gbdt"])

    def auc(trained_on: TrainingData) -> float:
        fitted = plugin.fit(trained_on, params=params, seed=0, progress=lambda _done, _text: None)
        return evaluate(test.target, fitted.predict(test.batch), metrics=["auc"], resamples=2)["auc"].value

    rng = np.random.default_rng(0)
    shuffled = [auc(replace(data, target=rng.permutation(data.target))) for _ in range(10)]
    reach = 4.78 * np.std(shuffled, ddof=1) / np.sqrt(10)  # Student's t, 9 degrees of freedom, 99.9 %
    assert abs(np.mean(shuffled) - 0.5) <= reach
    assert auc(data) > np.mean(shuffled) + reach


def test_a_second_run_reuses_everything_and_registers_nothing(trained_shop: Shop, found: Plugins, tmp_path: Path) -> None:
    copy = trained_shop.copy(tmp_path / "shop")
    project = Project.open(copy.root)
    first = train(project, "churn", plugins=found)
    again = train(project, "churn", plugins=found)
    assert again.record["reused"] == ["gbdt", "gru"]
    assert first.version is not None
    assert again.version is not None
    assert again.version.number == first.version.number
    with Registry.open(project.registry_url, project.artefacts) as registry:
        assert registry.versions("churn")[-1].number == first.version.number
        lineage = registry.get(first.version.reference).lineage
    assert lineage["log"]["log"] == first.version.lineage["log"]["log"] >= 1
    assert len(lineage["service_hash"]) == 64
    assert lineage["plugins"]["gbdt"]["distribution"] == "feature-zoo-gbdt"
    assert lineage["seed"] == 0
    assert "git" in lineage


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
