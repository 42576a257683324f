"""Stock Feast over a copy of the demo's repository, and over the tiny shop's file-backed view: its commands and its calls."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import tiny_shop as shop
from tiny_shop import _applied, repo

import zoo.features
from zoo.cli.demo import EXTRA
from zoo.errors import FeatureError, UnknownIdError, UsageError
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema
from zoo.stores.reader import LogReader

__all__ = ["_applied", "repo"]

HERE = Path(__file__).parents[1] / "feature_repo"
DAY = pd.Timedelta(days=1)
START = pd.Timestamp("2017-03-01", tz="UTC")
PRESENT, NOT_FOUND = 1, 3


def make_log(root: Path) -> None:
    """A log with the demo's columns and tables: 6 households, 300 purchases in 60 days, two campaigns."""
    rng, n = np.random.default_rng(0), 300
    log = EventLog.create(root / "data" / "log", LogSchema(timezone="UTC", extra=EXTRA))
    items = np.arange(1000, 1020)
    text = {name: rng.choice(["a", "b", "c"], 20) for name in ("title", "category", "department", "brand")}
    log.put_table("items", pl.DataFrame({"item_id": items, **text}))
    people = {name: ["x", None, "y"] for name in ("age", "income", "home", "married", "size", "composition", "kids")}
    log.put_table("users", pl.DataFrame({"user_id": [1, 2, 3], **people}), key="user_id")
    offers = {"campaign_days": [14.0, 28.0], "campaign_products": [2.0, 1.0], "campaign_coupons": [1.0, 1.0]}
    log.put_table(
        "campaigns", pl.DataFrame({"campaign_id": [1, 2], "campaign_type": ["type a", "type b"], **offers}), key="campaign_id"
    )
    log.put_set(
        "campaign_items", pl.DataFrame({"campaign_id": [1, 1, 2], "item_id": [1000, 1001, 1002]}), keys=("campaign_id", "item_id")
    )
    seconds = np.sort(rng.integers(0, 60 * 86_400, n))
    events = {
        "user_id": rng.integers(1, 7, n),
        "item_id": rng.choice(items, n),
        "event_type": np.where(rng.random(n) < 0.9, "purchase", "campaign_sent"),
        "timestamp": [START + pd.Timedelta(seconds=int(s)) for s in seconds],
        "session": [str(s // 7200) for s in seconds],
        "quantity": rng.integers(1, 5, n).astype(float),
        "value": rng.integers(50, 3000, n) / 100,
        "store_id": rng.integers(1, 4, n),
        "retail_discount": rng.integers(0, 300, n) / 100,
        "coupon_discount": rng.integers(0, 300, n) / 100,
        "coupon_line": rng.integers(0, 2, n),
    }
    log.append(pa.Table.from_pandas(pd.DataFrame(events)), "first")


COMMANDS = (
    ("apply",),
    ("materialize", "2017-03-01T00:00:00", "2017-05-15T00:00:00"),
    ("materialize-incremental", "2017-05-16T00:00:00"),
    ("feature-services", "list"),
)
# what the feast command runs, for several commands in one process: its imports take most of a command's time
FEAST = "import ast, sys; from feast.cli.cli import cli; [cli(c, standalone_mode=False) for c in ast.literal_eval(sys.argv[1])]"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the demo's repository over a small log, applied and materialized by Feast's commands; and what they said."""
    root = tmp_path_factory.mktemp("demo") / "feature_repo"
    shutil.copytree(HERE, root, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (root / "data").mkdir()
    make_log(root)
    command = [sys.executable, "-c", FEAST, repr(COMMANDS)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout


@pytest.fixture
def store(demo: tuple[Path, str]) -> Any:
    from feast import FeatureStore

    return FeatureStore(repo_path=str(demo[0]))


def rows(*pairs: tuple[int, str], **more: Any) -> pd.DataFrame:
    times = pd.to_datetime([when for _, when in pairs], utc=True)
    return pd.DataFrame({"user_id": [user for user, _ in pairs], "event_timestamp": times, **more})


def same(a: Any, b: Any) -> bool:
    """Equal values of Feast, with no number equal to itself, and nothing where there is nothing."""
    if isinstance(a, (list, np.ndarray)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    missing = [x is None or (isinstance(x, float) and math.isnan(x)) for x in (a, b)]
    return bool(all(missing) or (not any(missing) and a == b))


# Commands


def test_feast_commands_apply_materialize_and_go_on_from_there(demo: tuple[Path, str]) -> None:
    root, said = demo
    assert "Deploying infrastructure for user_sequence" in said
    plain = re.sub(r"\x1b\[[0-9]*m", "", said)
    assert "Materializing 12 feature views from 2017-03-01 00:00:00+00:00 to 2017-05-15 00:00:00+00:00" in plain
    assert "user_sequence from 2017-05-15 00:00:00+00:00 to 2017-05-16 00:00:00+00:00" in plain
    assert re.search(r"^churn +user_activity:", plain, re.MULTILINE)
    with sqlite3.connect(root / "data" / "online.db") as connection:
        held, values = connection.execute("SELECT (SELECT held FROM zoo_spaces), (SELECT count(*) FROM zoo_frames)").fetchone()
    connection.close()
    assert (held, values) == (300, 6 + 20)


def test_services_and_views_are_those_declared(store: Any) -> None:
    assert {s.name for s in store.list_feature_services()} == {"churn", "campaign", "items", "recommendation"}
    assert [p.name for p in store.get_feature_service("churn").feature_view_projections] == [
        "user_activity",
        "user_visits",
        "user_sequence",
    ]
    assert store.get_feature_view("user_sequence").batch_source.aggregation.entity == ("user_id",)


# History


def test_historical_features_keep_rows_order_repeats_and_further_columns(store: Any) -> None:
    entities = rows(
        (3, "2017-04-20"), (1, "2017-04-10"), (3, "2017-04-20"), (99, "2017-04-20"), (1, "2017-03-01"), label=[5, 6, 7, 8, 9]
    )
    service = store.get_feature_service("churn")
    job = store.get_historical_features(entities, service)
    found = job.to_df()
    pd.testing.assert_frame_equal(found[list(entities.columns)], entities)
    assert same(found["items"][0], found["items"][2])
    assert found["user_visits"].tolist()[3:] == [0, 0]
    assert [len(v) for v in found["items"]][3:] == [0, 0]
    aligned = ["items", "event_types", "categories", "values", "gaps", "ages"]
    assert {len(found[name][0]) for name in aligned} == {len(found["items"][0])} != {0}
    names = [f"{p.name}__{f.name}" for p in service.feature_view_projections for f in p.features]
    full = store.get_historical_features(entities, service, full_feature_names=True).to_df()
    assert full.columns.tolist() == [*entities.columns, *names]
    assert same(full["user_sequence__items"][1], found["items"][1])
    assert job.to_arrow().num_rows == 5


def test_history_is_strictly_before_the_row(store: Any) -> None:
    time = EventLog.open(store.repo_path / "data" / "log").table(columns=["user_id", "time", "event_type"]).to_pandas()
    mine = time[(time.user_id == 1) & (time.event_type == "purchase")]["time"].sort_values().tolist()
    instants = pd.to_datetime([mine[4], mine[4] + 1], unit="us", utc=True)
    entities = pd.DataFrame({"user_id": [1, 1], "event_timestamp": instants})
    found = store.get_historical_features(entities, ["user_sequence:items", "user_activity:user_recency"]).to_df()
    assert [len(v) for v in found["items"]] == [4, 5]
    assert found["user_recency"].tolist() == [(mine[4] - mine[3]) / 1e6, 1e-6]


def test_pairs_tables_and_campaigns_are_joined_by_their_keys(store: Any) -> None:
    entities = rows((1, "2017-04-20"), (2, "2017-04-20"), campaign_id=[1, 2])
    found = store.get_historical_features(entities, store.get_feature_service("campaign")).to_df()
    assert found["campaign_type"].tolist() == ["type a", "type b"]
    assert found["campaign_days"].tolist() == [14.0, 28.0]
    assert same(found["age"].tolist(), ["x", None])
    assert (found["overlap_lines"] > 0).any()
    with pytest.raises(UsageError, match="no column 'campaign_id', the key of 'user_campaign'; it has: user_id, event_timestamp"):
        store.get_historical_features(rows((1, "2017-04-20")), store.get_feature_service("campaign")).to_df()


def test_history_refuses_what_it_cannot_mean(store: Any) -> None:
    with pytest.raises(UnknownIdError, match="user_id"):
        store.get_historical_features(rows((1, "2017-04-20")).astype({"user_id": str}), ["user_sequence:items"]).to_df()
    with pytest.raises(UsageError, match="entity_df is str; expected a pandas DataFrame"):
        store.get_historical_features("SELECT 1", ["user_sequence:items"])
    with pytest.raises(UsageError, match="entity_df is NoneType"):
        store.get_historical_features(None, ["user_sequence:items"])
    with pytest.raises(FeatureError, match="feature view 'events' is made of raw events"):
        store.get_historical_features(rows((1, "2017-04-20")), ["events:item_id"]).to_df()


def test_raw_events_are_no_features_online_either(store: Any) -> None:
    with pytest.raises(FeatureError, match="feature view 'events' is made of raw events"):
        store.get_online_features(["events:item_id"], [{"user_id": 1}])


def test_a_result_can_be_persisted_once_and_again_where_that_is_said(store: Any, tmp_path: Path) -> None:
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    job = store.get_historical_features(rows((1, "2017-04-20")), ["user_sequence:items"])
    storage = SavedDatasetFileStorage(str(tmp_path / "saved.parquet"))
    job.persist(storage)
    with pytest.raises(UsageError, match="exists; pass allow_overwrite=True"):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    assert pl.read_parquet(tmp_path / "saved.parquet")["items"].to_list() == job.to_arrow()["items"].to_pylist()


# Online


@pytest.mark.parametrize("service", ["churn", "campaign", "items"])
def test_online_features_are_those_of_history_now(store: Any, service: str) -> None:
    keys = [{"user_id": 1 + n % 5, "campaign_id": 1 + n % 2, "item_id": 1000 + n % 7} for n in range(6)]
    found = store.get_feature_service(service)
    response = store.get_online_features(found, keys)
    online = response.to_dict()
    now = pd.to_datetime([LogReader.of(store.config).now()] * len(keys), unit="us", utc=True)
    offline = store.get_historical_features(pd.DataFrame(keys).assign(event_timestamp=now), found).to_df()
    for name in (f.name for p in found.feature_view_projections for f in p.features):
        for i, (a, b) in enumerate(zip(online[name], offline[name])):
            assert same(a, b), (name, i, a, b)
    asked = asyncio.run(store.get_online_features_async(found, keys)).to_dict()
    assert all(same(a, b) for name in online for a, b in zip(asked[name], online[name]))


def test_an_unknown_household_is_not_found_and_others_are_present(store: Any) -> None:
    response = store.get_online_features(store.get_feature_service("churn"), [{"user_id": 1}, {"user_id": 99}]).proto
    for name, column in zip(response.metadata.feature_names.val, response.results):
        if name != "user_id":
            assert list(column.statuses) == [PRESENT, NOT_FOUND], name
    newest = {column.event_timestamps[0].ToMicroseconds() for column in response.results[1:]}
    log = EventLog.open(store.repo_path / "data" / "log").table(columns=["user_id", "time"]).to_pandas()
    assert newest == {int(log[log.user_id == 1]["time"].max())}


def test_a_push_changes_the_next_answer_and_counts_once(store: Any) -> None:
    def ask() -> Any:
        return store.get_online_features(["user_activity:user_visits", "user_sequence:items"], [{"user_id": 5}]).to_dict()

    before = ask()
    event = {
        "item_id": 1003,
        "event_type": "purchase",
        "event_id": "p1",
        "session": 10**6,
        "quantity": 1.0,
        "value": 2.5,
        "store_id": 1,
    }
    rest = {"retail_discount": 0.0, "coupon_discount": 0.0, "coupon_line": 0, "campaign_id": np.nan}
    frame = pd.DataFrame([{"user_id": 5, "event_timestamp": START + 61 * DAY, **event, **rest}])
    for _ in range(2):
        store.push("events", frame)
        after = ask()
        assert after["user_visits"] == [before["user_visits"][0] + 1]
        assert after["items"] == [(before["items"][0] + [1003])[-60:]]
    with pytest.raises(UsageError, match="no event_id"):
        store.push("events", frame.assign(event_id=None))


def test_a_list_of_feast_cannot_hold_null_so_an_event_without_item_shows_as_empty_text(repo: Path) -> None:
    features = shop.opened(repo)
    columns = {"event_id": ["a", "b"], "user_id": [1, 1], "event_type": ["view"] * 2, "item_id": ["i1", None]}
    features.append(shop.events_table({**columns, "time": [shop.START, shop.START + 1]}))
    assert features.store.get_online_features(["user_sequence:items"], [{"user_id": 1}]).to_dict()["items"] == [["i1", ""]]
    when = pd.to_datetime([shop.START + 2], unit="us", utc=True)
    entities = pd.DataFrame({"user_id": [1], "event_timestamp": when})
    history = features.store.get_historical_features(entities, ["user_sequence:items"]).to_arrow()
    assert history["items"].to_pylist() == [["i1", None]]


# File-backed views, and time to live


@pytest.mark.parametrize("rows", [1 << 17, 2])
def test_file_backed_views_are_joined_as_of_the_row_and_read_online(
    repo: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("zoo.stores.job._LARGE", rows)  # so few that the answer is made in parts
    from feast import FeatureStore

    day = pd.Timestamp("2017-07-14", tz="UTC")
    credit = pd.DataFrame(
        {
            "user_id": [1, 1, 1, 2, 1],
            "event_timestamp": [day, day + DAY, day + DAY, day, day + 3 * DAY],
            "created": [day, day + DAY, day + 2 * DAY, day, day + 3 * DAY],
            "limit": [10.0, 20.0, 25.0, 50.0, 30.0],
            "rating": ["a", "b", "bb", "c", None],
        }
    )
    credit.to_parquet(repo / "credit.parquet")
    features = shop.opened(repo)
    events = shop.random_events(np.random.default_rng(0), 30)
    features.append(shop.events_table(events))
    store = FeatureStore(repo_path=str(repo))
    times = [day + 2 * DAY, day, day - DAY, day + 2 * DAY, day + 11 * DAY, day + 20 * DAY, day + DAY]
    entities = pd.DataFrame({"user_id": [1, 1, 1, 1, 2, 1, 7], "event_timestamp": times})
    found = store.get_historical_features(entities, store.get_feature_service("mixed")).to_df()
    pd.testing.assert_frame_equal(found[["user_id", "event_timestamp"]], entities)
    assert same(found["limit"].tolist(), [25.0, 10.0, None, 25.0, None, None, None])  # later created wins; ten days to live
    assert same(found["rating"].tolist(), ["bb", "a", None, "bb", None, None, None])
    assert (found["n"] >= 0).all()

    store.materialize(day.to_pydatetime(), (day + 5 * DAY).to_pydatetime())
    response = store.get_online_features(store.get_feature_service("mixed"), [{"user_id": 1}, {"user_id": 2}, {"user_id": 77}])
    online = response.to_dict()
    assert same(online["limit"], [30.0, 50.0, None])
    assert same(online["rating"], [None, "c", None])
    counted = pd.Series(events["user_id"]).value_counts()
    assert online["n"] == [counted[1], counted[2], None]


def test_a_file_that_is_missing_or_lacks_a_column_is_named(repo: Path) -> None:
    from feast import FeatureStore

    entities = pd.DataFrame({"user_id": [1], "event_timestamp": [START]})
    store = FeatureStore(repo_path=str(repo))
    with pytest.raises(FeatureError, match=r"credit\.parquet of source 'credit' cannot be read"):
        store.get_historical_features(entities, ["credit:limit"]).to_df()
    frame = pd.DataFrame({"user_id": ["1"], "event_timestamp": [START], "created": [START], "limit": [1.0]})
    frame.to_parquet(repo / "credit.parquet")
    with pytest.raises(FeatureError, match="no column 'rating', which source 'credit' names; it has: user_id, event_timestamp"):
        store.get_historical_features(entities, ["credit:rating"]).to_df()
    with pytest.raises(FeatureError, match="rows have 'user_id' of type Int64, the file of 'credit' String"):
        store.get_historical_features(entities, ["credit:limit"]).to_df()


def test_what_outlived_its_time_is_never_present(repo: Path) -> None:
    features = shop.opened(repo, clock="'2017-07-20T00:00:00Z'")
    now = features.reader.now()
    ages = [int(2 * 86_400e6), int(2 * 86_400e6) + 1]  # the view lives for two days
    columns = {"event_id": ["a", "b"], "user_id": [1, 2], "event_type": ["view"] * 2, "item_id": ["i1"] * 2}
    features.append(shop.events_table({**columns, "time": [now - age for age in ages]}))
    response = features.store.get_online_features(["fresh:fresh_n", "fresh:fresh_items"], [{"user_id": 1}, {"user_id": 2}])
    for column in response.proto.results[1:]:
        assert list(column.statuses) == [PRESENT, NOT_FOUND]
    assert response.to_dict()["fresh_n"] == [1, None]
    entities = pd.DataFrame({"user_id": [1, 2, 3], "event_timestamp": pd.to_datetime([now] * 3, unit="us", utc=True)})
    history = features.store.get_historical_features(entities, ["fresh:fresh_n", "fresh:fresh_items"]).to_arrow()
    assert history["fresh_n"].to_pylist() == [1, None, 0]
    assert history["fresh_items"].to_pylist() == [["i1"], None, []]


def test_another_online_store_gets_features_as_of_the_end_of_materialize(repo: Path) -> None:
    from feast import FeatureStore

    stock = "  type: sqlite\n  path: data/stock.db"
    features = shop.opened(repo, online=stock)
    zoo.features.apply(repo)  # makes that store's tables
    rng = np.random.default_rng(0)
    features.reader.log.append(shop.events_table(shop.random_events(rng, 60)))
    store = FeatureStore(repo_path=str(repo))
    end = pd.to_datetime(shop.START + 40 * shop.DAY, unit="us", utc=True)
    views = ["user_windows", "user_sequence", "user_profile"]
    store.materialize((end - 20 * DAY).to_pydatetime(), end.to_pydatetime(), feature_views=views)
    refs = ["user_windows:n", "user_windows:spend", "user_sequence:ages", "user_sequence:hours", "user_profile:country"]
    online = store.get_online_features(refs, [{"user_id": user} for user in (1, 2, 3)]).to_dict()
    entities = pd.DataFrame({"user_id": [1, 2, 3], "event_timestamp": [end] * 3})
    offline = store.get_historical_features(entities, refs).to_df()
    for name in ("n", "spend", "ages", "hours", "country"):
        assert all(same(a, b) for a, b in zip(online[name], offline[name])), name
