"""A small shop for tests of reading features: a Feast repository with a view of every kind, and random events for its log."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_500_000_000 * SECOND
END = START + 60 * DAY
TYPES = ("view", "cart", "purchase")

DEFINITIONS = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Float64, Int64, String

from zoo.events.specs import (
    Aggregation, Condition, count, decayed, distinct, first_n, last, last_distinct_n, last_n, maximum, mean, minimum, quiet, ratio,
    recency, std, survival, tenure, total,
)
from zoo.stores import EventSource, TableSource
from zoo.stores.source import schema_of

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
campaign = Entity(name="campaign", join_keys=["campaign_id"], value_type=ValueType.INT64)
BOUGHT = ("purchase",)


def view(name, entities, *features, ttl=None, **options):
    aggregation = Aggregation(tuple(e.join_key for e in entities), features, **options)
    schema = schema_of(aggregation, item_id=String, text=("items.category", "colour"))
    return FeatureView(name=name, entities=entities, ttl=ttl, source=EventSource(name=name, aggregation=aggregation), schema=schema)


user_sequence = view(
    "user_sequence", [user],
    last_n("items", "item_id", 5), last_n("event_types", "event_type", 5), last_n("categories", "items.category", 5),
    last_n("values", "value", 5), last_n("gaps", "gap", 5), last_n("ages", "age", 5), last_n("colours", "colour", 5),
    last_n("hours", "hour", 5), last_n("bought", "item_id", 3, where=BOUGHT), last_n("waits", "wait", 3, where=BOUGHT),
)
user_visits = view(
    "user_visits", [user],
    last_n("visit_gaps", "gap", 3, step="visit"), last_n("visit_ages", "age", 3, step="visit"),
    last_n("visit_values", "value", 3, step="visit", of="sum"), last_n("visit_sizes", "", 3, step="visit", of="count"),
    last_n("visit_items", "item_id", 3, step="visit", of="distinct"), last_n("visit_weights", "weight", 3, step="visit", of="sum"),
)
user_windows = view(
    "user_windows", [user],
    count("n"), count("n_7d", "7d"), count("bought_7d", "7d", where=BOUGHT), count("visits_7d", "7d", step="visit"),
    total("spend", "value", where=BOUGHT), total("weight_7d", "weight", "7d"), total("quantities", "quantity"),
    mean("mean_value", "value", "28d"), distinct("items_7d", "item_id", "7d"), distinct("days_28d", "day", "28d"),
    distinct("user_colours", "colour"), recency("recency"), recency("recency_bought", where=BOUGHT), tenure("tenure"),
    decayed("decayed_7d", "7d", where=BOUGHT), decayed("decayed_visits", "7d", step="visit"),
    quiet("quiet_2d", "2d", "28d"), survival("survival_2d", "2d"), last("last_item", "item_id"), last("last_weight", "weight"),
)
TEA = Condition("items.category", "==", "tea")
user_more = view(
    "user_more", [user],
    first_n("first_items", "item_id", 3), last_distinct_n("kinds", "items.category", 2),
    last_distinct_n("kind_ages", "age", 2, by="items.category"), last_n("reds", "value", 3, where=(Condition("colour", "!=", "red"),)),
    last_n("tea_ages", "age", 3, where=("view", "cart", TEA), max_age="20d"), count("dear", where=(Condition("value", ">=", 10),)),
    last_n("visit_lasts", "item_id", 2, step="visit", of="last"), last_n("visit_lengths", "", 2, step="visit", of="length"),
    minimum("least", "value", "28d"), maximum("most", "weight"), std("spread", "value"), std("gap_spread", "gap", "28d"),
    mean("gap_mean", "gap", "14d"), ratio("conversion", BOUGHT, ("view",), "28d", smoothing=2, prior=0.1),
    decayed("decayed_value", "7d", "value"),
)
user_late = view(
    "user_late", [user], count("late_n_7d", "7d"), last_n("late_items", "item_id", 3), last_n("late_ages", "age", 3), lag=86400,
)
item_windows = view(
    "item_windows", [item],
    count("item_n_7d", "7d"), distinct("item_users", "user_id"), total("item_spend", "value"), recency("item_recency"),
    last_n("item_users_last", "user_id", 4), last_n("item_ages", "age", 4),
)
overlap = view(
    "overlap", [user, campaign],
    count("overlap_n", via="item_id"), count("overlap_bought_7d", "7d", where=BOUGHT, via="items.category"),
    total("overlap_spend", "value", via="item_id"), distinct("overlap_items", "item_id", via="item_id"),
    total("overlap_weight", "weight", via="item_id"), recency("overlap_recency", via="item_id"),
    members="campaign_items",
)
named = view("named", [user, campaign], count("named_n"), recency("named_recency"))
user_item = view("user_item", [user, item], count("pair_n"), total("pair_spend", "value"), recency("pair_recency"))
fresh = view("fresh", [user], count("fresh_n"), last_n("fresh_items", "item_id", 2), ttl=timedelta(days=2))
equal = view("equal", [user], count("equal_n"), last_n("equal_items", "item_id", 3), include_equal=True)

user_profile = FeatureView(
    name="user_profile", entities=[user], source=TableSource(name="users", table="users", columns=("country", "age")),
    schema=[Field(name="country", dtype=String), Field(name="age", dtype=Float64)],
)
item_profile = FeatureView(
    name="item_profile", entities=[item], source=TableSource(name="items", table="items", columns=("category", "weight_kg")),
    schema=[Field(name="category", dtype=String), Field(name="weight_kg", dtype=Float64)],
)
campaign_profile = FeatureView(
    name="campaign_profile", entities=[campaign], source=TableSource(name="campaigns", table="campaigns", columns=("length",)),
    schema=[Field(name="length", dtype=Float64)],
)
category = Entity(name="category", join_keys=["category"], value_type=ValueType.STRING)
user_category = view(
    "user_category", [user, category],
    count("category_n"), last_n("category_items", "item_id", 3), total("category_spend", "value", "28d"), recency("category_recency"),
)
colour = Entity(name="colour", join_keys=["colour"], value_type=ValueType.STRING)
user_colour = view("user_colour", [user, colour], count("colour_n"))
credit = FeatureView(
    name="credit", entities=[user], ttl=timedelta(days=10),
    source=FileSource(name="credit", path="credit.parquet", timestamp_field="event_timestamp", created_timestamp_column="created"),
    schema=[Field(name="limit", dtype=Float64), Field(name="rating", dtype=String)],
)
events = FeatureView(
    name="events", entities=[user], ttl=timedelta(0),
    source=PushSource(name="events", batch_source=EventSource(name="event_log")),
    schema=[
        Field(name="item_id", dtype=String), Field(name="event_type", dtype=String), Field(name="event_id", dtype=String),
        Field(name="value", dtype=Float64), Field(name="weight", dtype=Float64), Field(name="colour", dtype=String),
    ],
)
users = FeatureService(name="users", features=[user_sequence, user_visits, user_windows, user_more, user_late, user_profile])
items = FeatureService(name="items", features=[item_windows, item_profile])
shop = FeatureService(
    name="shop",
    features=[user_sequence, user_windows, overlap, named, user_item, user_profile, item_profile, campaign_profile, item_windows],
)
tastes = FeatureService(name="tastes", features=[user_category, user_colour])
boundary = FeatureService(name="boundary", features=[equal, fresh])
mixed = FeatureService(name="mixed", features=[user_windows, credit])
"""

SETTINGS = """project: shop
provider: local
registry: data/registry.db
entity_key_serialization_version: 3
offline_store:
  type: zoo.stores.EventLogOfflineStore
  log: data/log
  clock: {clock}
online_store:
{online}
"""
SQLITE = "  type: zoo.stores.SqliteEventOnlineStore\n  path: data/online.db"


def settings(online: str = SQLITE, clock: str = "log_end", more: str = "") -> str:
    """feature_store.yaml; ``online``: YAML of the online store, or a Redis URL. more: further lines of it."""
    if online.startswith("redis://"):
        where, _, number = online.removeprefix("redis://").partition("/")
        online = f'  type: zoo.stores.RedisEventOnlineStore\n  connection_string: "{where},db={number}"'
    return SETTINGS.format(clock=clock, online=online + more)


@pytest.fixture(scope="session")
def _applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose definitions are registered, without a log."""
    from zoo.features import apply

    root = tmp_path_factory.mktemp("shop")
    (root / "data").mkdir()
    (root / "definitions.py").write_text(DEFINITIONS)
    (root / "feature_store.yaml").write_text(settings())
    apply(root)
    return root


@pytest.fixture
def repo(_applied: Path, tmp_path: Path) -> Path:
    """A copy of the repository with an empty log, its tables and a file of credit limits."""
    root = Path(shutil.copytree(_applied, tmp_path / "repo"))
    make_log(root)
    return root


def make_log(root: Path, **schema: Any) -> Any:
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema

    extra = {"weight": "float64", "colour": "string", "campaign_id": "int64"}
    log = EventLog.create(root / "data" / "log", LogSchema(item_id="string", extra=extra, **schema))
    items = [f"i{n}" for n in range(8)]
    kinds = ["tea", "tea", "milk", "milk", "tea", None, "bread", "bread"]
    log.put_table("items", pa.table({"item_id": items, "category": kinds, "weight_kg": [0.5 * n for n in range(8)]}))
    log.put_table("users", pa.table({"user_id": [1, 2, 3], "country": ["NL", None, "DE"], "age": [30, 40, None]}), key="user_id")
    log.put_table("campaigns", pa.table({"campaign_id": [7, 8], "length": [14.0, 28.0]}), key="campaign_id")
    pairs = {"campaign_id": [7, 7, 8, 8], "item_id": ["i0", "i2", "i2", "i7"]}
    log.put_set("campaign_items", pa.table(pairs), keys=("campaign_id", "item_id"))
    return log


def random_events(rng: np.random.Generator, number: int, first: int = 0) -> dict[str, list[Any]]:
    """Columns of events in no order: ties, missing values, sessions and items, users 1 to 5; ids ``e{first}`` on."""

    def maybe(values: Sequence[Any], share: float = 0.7) -> list[Any]:
        return [v if rng.random() < share else None for v in values]

    return {
        "event_id": [f"e{first + n}" for n in range(number)],
        "user_id": rng.integers(1, 6, number).tolist(),
        "item_id": maybe([f"i{n}" for n in rng.integers(0, 10, number)], 0.9),
        "event_type": rng.choice(TYPES, number).tolist(),
        "time": (START + rng.integers(0, 60 * 24, number) * DAY // 24).tolist(),
        "session": maybe([str(n) for n in rng.integers(0, 4, number)]),
        "value": maybe((rng.integers(-500, 5000, number) / 100).tolist()),
        "weight": maybe(rng.normal(size=number).tolist()),
        "colour": maybe(rng.choice(["red", "green", "blue"], number).tolist()),
        "campaign_id": maybe(rng.integers(6, 9, number).tolist(), 0.3),
    }


def events_table(columns: dict[str, list[Any]]) -> pa.Table:
    """The columns with their types, also where every value is missing."""
    kinds = {"user_id": pa.int64(), "time": pa.int64(), "value": pa.float64(), "weight": pa.float64(), "campaign_id": pa.int64()}
    return pa.table({name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()})


def keys(rng: np.random.Generator, number: int) -> dict[str, list[Any]]:
    """Random keys of users 1 to 6 (6 has no events), items i0 to i11 and campaigns 6 to 9, repeats among them."""
    return {
        "user_id": rng.integers(1, 7, number).tolist(),
        "item_id": [f"i{n}" for n in rng.integers(0, 12, number)],
        "campaign_id": rng.integers(6, 10, number).tolist(),
    }


def assert_same(found: Any, expected: Any) -> None:
    """Two FeatureBatches say the same, to the bit, in the same order."""
    assert found.names == expected.names
    for name in found.names:
        a, b = found.column(name), expected.column(name)
        assert a.dictionary == b.dictionary
        np.testing.assert_array_equal(a.values, b.values, err_msg=name)
        if b.offsets is None:
            assert a.offsets is None
        else:
            np.testing.assert_array_equal(a.offsets, b.offsets, err_msg=name)
    np.testing.assert_array_equal(found.newest, expected.newest)
    np.testing.assert_array_equal(found.as_of, expected.as_of)


def opened(root: Path, **changes: Any) -> Any:
    """Features of the repository, after changing its settings (see ``settings``)."""
    from zoo.features import Features

    if changes:
        (root / "feature_store.yaml").write_text(settings(**changes))
    return Features.open(root)
