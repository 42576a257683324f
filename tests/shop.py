"""A small generated shop for tests of everything over the log: its events, its Feast repository, its ``zoo.toml``, and a trained copy.

Shoppers buy in a rhythm of their own and some stop for good: churn can be learned, the newest days say most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from zoo.contract import Array
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema

DAY = 86_400_000_000
START = 1_704_067_200_000_000
"""2024-01-01T00:00:00Z in microseconds; the shop's first day."""
DAYS = 150
USERS = 240
ITEMS = 40
CAMPAIGNS = 10
CATEGORIES = ("bread", "fruit", "garden", "toys")

STORE = """
project: shop
provider: local
registry: data/feast_registry.db
entity_key_serialization_version: 3
offline_store:
  type: zoo.stores.EventLogOfflineStore
  log: data/log
  clock: log_end
online_store:
  type: zoo.stores.SqliteEventOnlineStore
  path: data/online.db
"""

SETTINGS = """
[zoo]
timezone = "UTC"

[tasks.churn]
members = ["gbdt", "gru"]
final = "mean"
folds = 2
event_type = "purchase"
active = "28d"
horizon = "14d"
every = "7d"

[tasks.churn.params.gbdt]
num_trees = 30
num_leaves = 4
num_threads = 1
drop = ["items"]

[tasks.churn.params.gru]
hidden = 8
epochs = 2
max_length = 20

[tasks.campaign]
members = ["gbdt"]
folds = 2
gap = "7d"
within = "10d"

[tasks.campaign.params.gbdt]
num_trees = 10
num_threads = 1
"""

DEFINITIONS = """
from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
from feast.types import Float64, Int64, String

from zoo.events.specs import Aggregation, count, distinct, last_n, recency, tenure, total
from zoo.stores import EventSource, TableSource
from zoo.stores.source import schema_of

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
offer = Entity(name="offer", join_keys=["campaign_id"], value_type=ValueType.INT64)
BOUGHT = ("purchase",)

raw = EventSource(name="event_log")
events = FeatureView(
    name="events",
    entities=[user],
    source=PushSource(name="events", batch_source=raw),
    schema=[Field(name="item_id", dtype=Int64), Field(name="event_type", dtype=String), Field(name="event_id", dtype=String)],
)

activity = Aggregation(
    ("user_id",),
    (
        count("user_purchases_7d", "7d", where=BOUGHT),
        count("user_purchases_28d", "28d", where=BOUGHT),
        count("user_views_14d", "14d", where=("view",)),
        total("user_spend_28d", "value", "28d", where=BOUGHT),
        distinct("user_items_28d", "item_id", "28d"),
        recency("user_recency", where=BOUGHT),
        tenure("user_tenure"),
    ),
)
user_activity = FeatureView(
    name="user_activity",
    entities=[user],
    source=EventSource(name="user_activity", aggregation=activity),
    schema=schema_of(activity),
)
lines = Aggregation(
    ("user_id",),
    (
        last_n("items", "item_id", 20, where=BOUGHT),
        last_n("categories", "items.category", 20, where=BOUGHT),
        last_n("values", "value", 20, where=BOUGHT),
        last_n("gaps", "gap", 20, where=BOUGHT),
        last_n("ages", "age", 20, where=BOUGHT),
    ),
)
user_sequence = FeatureView(
    name="user_sequence",
    entities=[user],
    source=EventSource(name="user_lines", aggregation=lines),
    schema=schema_of(lines, text=("items.category",)),
)
overlap = Aggregation(
    ("user_id", "campaign_id"), (count("overlap_lines", where=BOUGHT, via="item_id"),), members="campaign_items"
)
user_campaign = FeatureView(
    name="user_campaign",
    entities=[user, offer],
    source=EventSource(name="user_campaign", aggregation=overlap),
    schema=schema_of(overlap),
)
user_profile = FeatureView(
    name="user_profile",
    entities=[user],
    source=TableSource(name="users", table="users", columns=("region",)),
    schema=[Field(name="region", dtype=String)],
)

churn = FeatureService(name="churn", features=[user_activity, user_sequence])
campaign = FeatureService(name="campaign", features=[user_activity, user_campaign, user_profile])
"""


@dataclass(frozen=True)
class Shop:
    """A project in a folder, trained: ``churn@1`` (gbdt, gru) and ``campaign@1`` (gbdt) are the champions.

    Shared by many tests: read it and push events to it, but register, promote or apply in a ``copy`` only.
    """

    root: Path

    @property
    def log(self) -> EventLog:
        return EventLog.open(self.root / "data" / "log")

    def copy(self, folder: Path) -> Shop:
        """The whole project in another folder, to be changed at will."""
        from shutil import copytree

        copytree(self.root, folder)
        return Shop(folder)


def events(seed: int = 0, users: int = USERS, days: int = DAYS) -> dict[str, Array]:
    """Columns of the shop's events, by time: views and purchases, campaigns sent and coupons redeemed."""
    rng = np.random.default_rng(seed)
    who, when, kind, campaign = [], [], [], []
    for user in range(1, users + 1):
        pause = rng.uniform(1.5, 6.0)
        visits = np.cumsum(rng.exponential(pause, round(4 * days / pause)))
        stops = rng.uniform(20, days) if rng.random() < 0.5 else days  # half of them leave for good
        for day in visits[visits < stops]:
            bought = rng.random() < 0.6
            who += [user] * (2 if bought else 1)
            when += [day, day + 0.01][: 2 if bought else 1]
            kind += ["view", "purchase"][: 2 if bought else 1]
            campaign += [-1] * (2 if bought else 1)
    for number in range(1, CAMPAIGNS + 1):
        sent = 20 + (number - 1) * (days - 40) / (CAMPAIGNS - 1)
        for user in rng.choice(users, users // 3, replace=False) + 1:
            who, when, kind, campaign = [*who, user], [*when, sent], [*kind, "campaign_sent"], [*campaign, number]
            if rng.random() < 0.1 + 0.5 * (user % 2):  # north and south answer differently
                who, when, kind = [*who, user], [*when, sent + rng.uniform(0.5, 9)], [*kind, "coupon_redeemed"]
                campaign = [*campaign, number]
    order = np.argsort(when, kind="stable")
    shopping = np.isin(np.array(kind)[order], ["view", "purchase"])
    return {
        "user_id": np.array(who, np.int64)[order],
        "item_id": np.where(shopping, rng.integers(1, ITEMS + 1, len(order)), 0),
        "event_type": np.array(kind, object)[order],
        "time": START + (np.array(when)[order] * DAY).astype(np.int64),
        "value": np.round(np.where(np.array(kind)[order] == "purchase", rng.uniform(1, 30, len(order)), np.nan), 2),
        "campaign_id": np.array(campaign, np.int64)[order],
    }


def table_of(columns: Mapping[str, Array]) -> pa.Table:
    """The columns as a file of events has them: timestamps, and nulls where there is nothing."""
    frame = pl.DataFrame({name: list(values) for name, values in columns.items()})
    missing = [
        pl.when(pl.col(name) > floor).then(pl.col(name)).alias(name)
        for name, floor in (("item_id", 0), ("campaign_id", -1))
        if name in columns
    ]
    if "value" in columns:
        missing.append(pl.col("value").fill_nan(None))
    times = pl.from_epoch("time", time_unit="us").dt.replace_time_zone("UTC").alias("timestamp")
    return frame.with_columns(*missing, times).drop("time").to_arrow()


def make_log(root: Path, columns: Mapping[str, Array] | None = None, **schema: Any) -> EventLog:
    """A log in a folder that holds these events (default: the shop's) and the shop's tables."""
    extra = {"campaign_id": "int64", **schema.pop("extra", {})}
    log = EventLog.create(root, LogSchema(extra=extra, **schema))
    table = table_of(events() if columns is None else columns)
    log.append(table, idempotency_key="events")
    codes = np.arange(1, ITEMS + 1)
    log.put_table("items", pl.DataFrame({"item_id": codes, "category": [CATEGORIES[i % 4] for i in codes]}), "item_id")
    people = np.arange(1, USERS + 1)
    log.put_table("users", pl.DataFrame({"user_id": people, "region": [("north", "south")[i % 2] for i in people]}), "user_id")
    return log


def make_project(root: Path, settings: str = SETTINGS, definitions: str = DEFINITIONS) -> Path:
    """A project's files, without a log."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "feature_store.yaml").write_text(STORE.lstrip())
    (root / "zoo.toml").write_text(settings.lstrip())
    (root / "definitions.py").write_text(dedent(definitions).lstrip())
    (root / "data").mkdir(exist_ok=True)
    return root


def make_shop(root: Path) -> Shop:
    """Everything from the events to two promoted models."""
    from zoo.features import Features, apply
    from zoo.manager import plugins
    from zoo.project import Project
    from zoo.registry import Registry
    from zoo.training import train

    log = make_log(make_project(root) / "data" / "log")
    sets = [(c, item) for c in range(1, CAMPAIGNS + 1) for item in range(c, c + 8)]
    log.put_table("campaigns", pl.DataFrame({"campaign_id": np.arange(1, CAMPAIGNS + 1)}), "campaign_id")
    log.put_set("campaign_items", pl.DataFrame(sets, ("campaign_id", "item_id"), orient="row"), ("campaign_id", "item_id"))
    apply(root)
    features = Features.open(root)
    features.materialize()
    project = Project.open(root)
    with Registry.open(project.registry_url, project.artefacts) as registry:
        for task in project.tasks:
            version = train(project, task, plugins=plugins(), features=features).version
            assert version is not None
            registry.promote(version.model, version.number)
    return Shop(root)
