"""The main job on real purchases: a tenth of the demo's households through the demo's own repository, from events to a served answer."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from zoo.cli import completejourney, demo
from zoo.cli.render import console
from zoo.features import Features, apply
from zoo.jobs import Serial
from zoo.manager import plugins
from zoo.predictor import Predictor
from zoo.project import Project

REPOSITORY = Path(__file__).parents[1] / "feature_repo"


@dataclass(frozen=True)
class Ran:
    """A finished run: where, its leaderboards by task, and a household of it."""

    root: Path
    boards: dict[str, dict[str, Any]]
    household: int


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("demo") / "feature_repo"
    shutil.copytree(REPOSITORY, root, ignore=shutil.ignore_patterns("data", "__pycache__"))
    settings = (root / "zoo.toml").read_text(encoding="utf-8")
    for whole, small in (
        ('["gbdt", "rnn", "lstm", "gru", "bert"]', '["gbdt", "gru"]'),
        ('["gbdt", "gru", "bert"]', '["gbdt", "gru"]'),
    ):
        assert whole in settings
        settings = settings.replace(whole, small)
    kept, table = [], ""
    for line in settings.splitlines():
        table = line if line.startswith("[") else table
        if not table.endswith((".bert]", ".rnn]", ".lstm]")):
            kept.append(line)
    text = "\n".join(kept)
    for whole, small in (
        ("num_trees = 600", "num_trees = 60"),
        ("seeds = 3", "seeds = 1"),
        ("max_length = 30", "max_length = 30\nepochs = 2"),
    ):
        text = text.replace(whole, small)
    (root / "zoo.toml").write_text(
        text.replace("epochs = 2\ndropout = 0.5\nepochs = 8", "epochs = 2\ndropout = 0.5"), encoding="utf-8"
    )
    shop = completejourney.load()
    sample = pl.col("user_id") % 10 == 0
    shop = replace(shop, events=shop.events.filter(sample), users=shop.users.filter(sample))
    run = demo.Demo(Project.open(root), plugins(), Serial(), console(sys.stderr))
    demo.event_log(run, shop)
    apply(root)
    features = Features.open(root)
    boards = {"churn": demo.churn(run, features, demo.CUTS[-1:]), "campaign": demo.campaign(run, features)}
    features.materialize()
    return Ran(root, boards, int(shop.events["user_id"][0]))


@pytest.mark.parametrize(("task", "least"), [("churn", 0.75), ("campaign", 0.7)])
def test_the_stack_tells_households_apart_and_is_not_worse_than_its_members(ran: Ran, task: str, least: float) -> None:
    board = ran.boards[task]
    members = [row["auc"] for row in board["members"].values()]
    assert board["stack"]["auc"] > least
    assert board["stack"]["auc"] > min(members) - 0.01
    assert board["version"] == f"{task}@1"


def test_members_beat_recency_alone(ran: Ran) -> None:
    board = ran.boards["churn"]
    assert all(row["auc"] > board["baselines"]["recency"]["auc"] for row in board["members"].values())


def test_a_purchase_pushed_through_feast_is_seen_by_the_next_prediction(ran: Ran) -> None:
    import pandas as pd

    predictor = Predictor.load("churn@champion", ran.root)
    before = predictor.predict(users=[ran.household]).to_pylist()[0]
    now = datetime.fromtimestamp(predictor.features.reader.now() / 1e6, UTC) + timedelta(days=3)
    rows = {
        "user_id": [ran.household],
        "item_id": [1_000_050],
        "event_type": ["purchase"],
        "event_id": ["pushed-1"],
        "session": [1],
        "quantity": [1.0],
        "value": [2.5],
        "store_id": [1],
        "retail_discount": [0.0],
        "coupon_discount": [0.0],
        "coupon_line": [0],
        "campaign_id": [0],
        "event_timestamp": [now],
    }
    predictor.features.store.push("events", pd.DataFrame(rows))
    after = predictor.predict(users=[ran.household]).to_pylist()[0]
    assert before["newest_event_age"] > 1
    assert after["newest_event_age"] < 1
    assert after["score"] != before["score"]
    again = Predictor.load("churn@champion", ran.root).predict(users=[ran.household]).to_pylist()[0]
    assert again.pop("id") != after.pop("id")
    assert again == after


def test_stock_feast_answers_as_the_batch_does(ran: Ran) -> None:
    features = Features.open(ran.root)
    service = features.store.get_feature_service("churn")
    online = features.store.get_online_features(service, [{"user_id": ran.household}]).to_dict()
    batch = features.online("churn", {"user_id": [ran.household]})
    assert online["user_visits_28d"] == batch.column("user_visits_28d").values.tolist()
    codes = batch.column("items").values
    assert online["items"][0] == features.reader.view().log.dictionary("item_id").decode(codes).to_pylist()
