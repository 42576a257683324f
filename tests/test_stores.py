"""Online stores: they answer as the log does at the same instant, whatever reached it, in whatever order, by however many writers."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import tiny_shop as shop
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from tiny_shop import _applied, repo

from zoo.cli.app import app
from zoo.consistency import drift
from zoo.errors import ArtefactError, FeatureError, UsageError
from zoo.events.index import MISSING
from zoo.events.ingest import ingest
from zoo.features import Features, apply
from zoo.stores.frames import ALWAYS, NEVER, index_of
from zoo.stores.packing import Change, newer, pack, pack_slices
from zoo.stores.recent import Space

__all__ = ["_applied", "repo"]

SERVICES = ("users", "items", "shop", "boundary")


@pytest.fixture(params=["sqlite", "redis"])
def online(request: pytest.FixtureRequest) -> str:
    """Settings of an online store, or a Redis URL."""
    return shop.SQLITE if request.param == "sqlite" else str(request.getfixturevalue("redis_url"))


def everyone() -> dict[str, list[Any]]:
    """Every user with every item and campaign there is, and some there are not."""
    grid = np.array(np.meshgrid(range(1, 7), range(12), range(6, 10))).reshape(3, -1)
    return {"user_id": grid[0].tolist(), "item_id": [f"i{n}" for n in grid[1]], "campaign_id": grid[2].tolist()}


def assert_parity(features: Features, rows: dict[str, list[Any]], at: int | None = None) -> None:
    now = features.reader.now() if at is None else at
    for service in SERVICES:
        expected = features.history(service, {**rows, "time": [now] * len(rows["user_id"])})
        shop.assert_same(features.online(service, rows, at), expected)


# Parity


@pytest.mark.parametrize("seed", range(3))
def test_online_equals_offline_after_materialize_and_after_every_push(repo: Path, online: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = shop.opened(repo, online=online)
    features.reader.log.append(shop.events_table(shop.random_events(rng, 60)))
    features.materialize()
    assert_parity(features, everyone())
    pushed = 60
    for number in (1, 3, 12):
        # times before those of events already there, and two ids that the log knows
        report = features.append(shop.events_table(shop.random_events(rng, number + 2, pushed - 2)))
        assert (report.added, report.repeated) == (number, 2)
        pushed += number
        assert_parity(features, shop.keys(rng, 20))
    assert_parity(features, everyone())


def test_frames_are_made_one_beside_pushes(repo: Path, online: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.stores.compaction._CROWDED", 1024)
    monkeypatch.setattr("zoo.stores.compaction._TOGETHER", 2)
    features, rng = shop.opened(repo, online=online), np.random.default_rng(13)
    for number in range(30):
        rows = shop.events_table(shop.random_events(rng, 4, 4 * number))
        features.append(rows.to_pydict() if number % 2 else rows)  # lists, which are pushed as they are
    for thread in threading.enumerate():
        if thread.name == "zoo-compaction":
            thread.join()
    store, config, view = features._online_store, features.store.config, features.reader.view()
    values, held = store.load(config, store.space(config, view), {"user_id": np.arange(2, view.size("user_id"))})
    assert held == 120
    frames = sum(value.count(b"zoe3") for value in values["user_id"] if value)
    assert frames < 60  # of 120 appended, or a few fewer where a push brought two of a user
    assert_parity(features, everyone())


def test_what_a_push_came_between_is_made_one_while_pushes_wait(repo: Path, online: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.stores.compaction._CROWDED", 1024)
    monkeypatch.setattr("zoo.stores.compaction._TOGETHER", 1)
    features, asked = shop.opened(repo, online=online), []
    store = features._online_store
    real = store.exchange

    def exchange(config: Any, space: Any, change: Any, *more: Any) -> Any:
        if threading.current_thread().name == "zoo-compaction":  # pushes make one, too
            asked.append(list(change.codes))
            if len(asked) == 1:
                return list(range(len(change.codes)))
        return real(config, space, change, *more)

    monkeypatch.setattr(store, "exchange", exchange)
    for number in range(30):
        features.append(shop.events_table(shop.random_events(np.random.default_rng(number), 4, 4 * number)))
    for thread in threading.enumerate():
        if thread.name == "zoo-compaction":
            thread.join()
    assert asked[1] == asked[0]
    assert_parity(features, everyone())


def test_online_equals_offline_at_an_instant_in_the_past(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(5), 80)))
    for at in (shop.START, shop.START + 30 * shop.DAY, shop.START + 31 * shop.DAY):
        assert_parity(features, shop.keys(np.random.default_rng(6), 20), at)


def test_nothing_was_materialized_and_the_first_read_is_right(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    assert_parity(features, shop.keys(np.random.default_rng(0), 5))
    features.reader.log.append(shop.events_table(shop.random_events(np.random.default_rng(1), 50)))
    assert_parity(features, everyone())


def test_an_ingested_file_is_seen_by_the_next_read(repo: Path, online: str, tmp_path: Path) -> None:
    features = shop.opened(repo, online=online)
    rng = np.random.default_rng(2)
    features.append(shop.events_table(shop.random_events(rng, 20)))
    table = shop.events_table(shop.random_events(rng, 30, 20))
    times = table["time"].cast(pa.timestamp("us", "UTC"))
    pq.write_table(table.drop_columns(["time"]).append_column("timestamp", times), tmp_path / "more.parquet")
    assert ingest(features.reader.log, tmp_path / "more.parquet").added == 30
    assert_parity(features, everyone())


def test_far_behind_the_log_every_entity_is_copied(repo: Path, online: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.stores.online.TAIL", 10)
    features = shop.opened(repo, online=online)
    for seed, number in enumerate((11, 40, 5)):
        features.reader.log.append(shop.events_table(shop.random_events(np.random.default_rng(seed), number, 100 * seed)))
        assert_parity(features, everyone())


def test_another_process_reads_what_this_one_pushed(repo: Path, online: str) -> None:
    first, second = shop.opened(repo, online=online), shop.opened(repo)
    rng = np.random.default_rng(3)
    for n in range(3):
        first.append(shop.events_table(shop.random_events(rng, 10, 10 * n)))
        assert_parity(second, shop.keys(rng, 10))
        second.append(shop.events_table(shop.random_events(rng, 10, 1000 + 10 * n)))
        assert_parity(first, shop.keys(rng, 10))


def test_a_push_whose_writer_died_after_the_log_is_brought_in_by_the_next(
    repo: Path, online: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = shop.opened(repo, online=online)
    store = features.store._get_provider().online_store

    class Died(Exception):
        pass

    def die(*args: Any, **options: Any) -> None:
        raise Died

    events = shop.events_table(shop.random_events(np.random.default_rng(4), 10))
    with monkeypatch.context() as broken:
        broken.setattr(store, "append", die)
        with pytest.raises(Died):
            features.append(events)
    assert_parity(features, everyone())


def test_a_table_replaced_is_seen_by_the_next_read(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(7), 40)))
    assert_parity(features, shop.keys(np.random.default_rng(7), 10))
    table = pa.table({"item_id": ["i0", "i11", "i20"], "category": ["jam", "tea", None], "weight_kg": [9.0, 8.0, 7.0]})
    features.reader.log.put_table("items", table)
    assert_parity(features, everyone())
    batch = features.online("items", {"item_id": ["i11"]})
    assert batch.catalogue.names["items.category"][batch.column("category").values[0]] == "tea"
    assert batch.column("weight_kg").values[0] == 8.0


def test_materialize_repairs_a_store_that_lost_an_entity(repo: Path, redis_url: str) -> None:
    features = shop.opened(repo, online=redis_url)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(8), 40)))
    with redis.Redis.from_url(redis_url) as client:
        lost = next(key for key in sorted(client.keys()) if b":user_id:" in key)
        client.delete(lost)
    with pytest.raises(AssertionError):
        assert_parity(features, everyone())
    features.materialize()
    assert_parity(features, everyone())


def test_a_redis_that_restarted_empty_is_filled_by_the_next_read(repo: Path, redis_url: str) -> None:
    features = shop.opened(repo, online=redis_url)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(9), 40)))
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    assert_parity(features, everyone())


def test_a_log_made_anew_does_not_meet_the_events_of_the_old_one(repo: Path, online: str) -> None:
    shop.opened(repo, online=online).append(shop.events_table(shop.random_events(np.random.default_rng(10), 40)))
    shutil.rmtree(repo / "data" / "log")
    shop.make_log(repo)
    features = shop.opened(repo)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(11), 40)))
    assert_parity(features, everyone())


def test_a_log_that_lost_its_tail_does_not_meet_the_events_that_were_in_it(
    repo: Path, online: str, caplog: pytest.LogCaptureFixture
) -> None:
    features = shop.opened(repo, online=online)
    features.reader.log.append(shop.events_table(shop.random_events(np.random.default_rng(12), 30)))
    features.reader.log.flush()
    features.append(shop.events_table(shop.random_events(np.random.default_rng(13), 40, 30)))
    for path in (repo / "data" / "log").glob("tail.db*"):
        path.unlink()
    again = Features.open(repo)
    assert_parity(again, everyone())
    assert "the log has lost some" in caplog.text
    again.append(shop.events_table(shop.random_events(np.random.default_rng(14), 5, 100)))
    assert_parity(again, everyone())


@pytest.mark.parametrize("times", [1, 99])
def test_a_store_emptied_within_a_read_is_brought_up_to_date_again_or_named(
    repo: Path, online: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = shop.opened(repo, online=online)
    features.reader.log.append(shop.events_table(shop.random_events(np.random.default_rng(9), 40)))
    store, config = features._online_store, features.store.config
    follow, left = type(store).follow, iter(range(times))

    def emptied(*given: Any) -> int:
        brought = follow(*given)
        if next(left, None) is not None:
            store.drop(config, store.space(config, features.reader.view()))
            store._held.clear()
        return brought

    monkeypatch.setattr(type(store), "follow", emptied)
    if times == 1:
        assert_parity(features, everyone())
        return
    with pytest.raises(FeatureError, match="holds 0 of the log's 40 events after it was brought up to date 3 times"):
        features.online("users", {"user_id": [1]})


def test_a_view_of_a_log_that_was_rewritten_since_is_answered_from_the_log_as_it_is(repo: Path, online: str) -> None:
    features = few(repo, online)
    features.reader.log.append(shop.events_table(shop.random_events(np.random.default_rng(3), 60)))
    features.materialize()
    before = features.reader.view()
    other = Features.open(repo)
    other.forget([1])
    other.materialize()  # which removes what was kept of the log as it was
    store, config = features._online_store, features.store.config
    codes = before.codes("user_id", [2, 3])
    found = store.recent(config, before, {"user_id": codes}).opened("user_id")[0].index
    now = features.reader.view()
    assert now.epoch == before.epoch + 1
    expected = store.recent(config, now, {"user_id": codes}).opened("user_id")[0].index
    assert len(found) > 0
    assert np.array_equal(found.time, expected.time)
    assert np.array_equal(found.offsets, expected.offsets)


def test_an_entity_past_its_ttl_is_one_without_events_however_it_is_asked_for(repo: Path, online: str) -> None:
    (repo / "definitions.py").write_text(
        FEW.replace("view = FeatureView(", "view = FeatureView(ttl=timedelta(days=2), ").replace(
            "from feast import", "from datetime import timedelta\n\nfrom feast import", 1
        )
    )
    (repo / "data" / "registry.db").unlink(missing_ok=True)
    (repo / "feature_store.yaml").write_text(shop.settings(online=online))
    apply(repo)
    features = Features.open(repo)
    rows = shop.random_events(np.random.default_rng(3), 60)
    features.reader.log.append(shop.events_table(rows))
    users, now = [1, 2, 3, 4, 5, 6, 77], features.reader.now()
    asked = {"user_id": users, "time": [now] * 7}
    batch = features.history("few", asked)
    shop.assert_same(features.online("few", {"user_id": users}), batch)
    frame = pa.table({"user_id": users, "event_timestamp": pa.array([now] * 7, pa.timestamp("us", "UTC"))}).to_pandas()
    shown = features.store.get_historical_features(frame, features=["recent:n_7d", "recent:items"]).to_df().set_index("user_id")
    gone = shown["n_7d"].isna()[users].to_numpy()
    assert gone.any()
    assert not gone.all()
    assert (batch.column("n_7d").values[gone] == 0).all()
    assert (batch.column("items").lengths[gone] == 0).all()
    assert (batch.newest[gone] == -1).all()
    there = ~gone
    assert batch.column("n_7d").values[there].tolist() == shown["n_7d"][users][there].tolist()
    told = features.store.get_online_features(["recent:n_7d"], [{"user_id": user} for user in users]).to_dict()["n_7d"]
    there = batch.newest >= 0
    assert [value is not None for value in told] == there.tolist()


def test_whoever_has_no_row_in_a_table_is_not_found_in_it(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    rows = shop.random_events(np.random.default_rng(0), 20)
    features.append(shop.events_table({**rows, "user_id": [2, 5] * 10, "item_id": ["i1", "i9"] * 10}))
    since = pa.array([shop.START, shop.END + shop.DAY], pa.timestamp("us", "UTC"))
    prices = pa.table({"item_id": ["i1", "i9"], "category": ["tea", "ale"], "weight_kg": [1.0, 2.0], "valid_from": since})

    def told(view: str, keys: list[dict[str, Any]]) -> list[tuple[int, Any]]:
        proto = features.store.get_online_features([view], keys).proto.results[-1]
        return [(status, value.WhichOneof("val")) for status, value in zip(proto.statuses, proto.values)]

    there, not_found = (FieldStatus.PRESENT, "string_val"), (FieldStatus.NOT_FOUND, None)
    users = [{"user_id": user} for user in (1, 5, 2, 77)]  # of the second the log knows events only, of the third no country
    assert told("user_profile:country", users) == [there, not_found, (FieldStatus.PRESENT, None), not_found]
    items = [{"item_id": item} for item in ("i1", "i9", "none")]
    assert told("item_profile:category", items) == [there, not_found, not_found]
    features.reader.log.put_table("items", prices)
    assert told("item_profile:category", items) == [there, not_found, not_found]  # which does not hold yet


# Beyond the cap


def test_below_the_cap_answers_are_exact_and_beyond_it_only_what_reaches_back_differs(repo: Path, online: str) -> None:
    more = "\n  max_events: 8"
    features = shop.opened(repo, online=online, more=more)

    def event(n: int) -> dict[str, list[Any]]:
        columns = shop.random_events(np.random.default_rng(n), 1, n)
        return columns | {"user_id": [1], "time": [shop.START + n * shop.DAY], "value": [1.0], "event_type": ["purchase"]}

    for n in range(8):
        features.append(shop.events_table(event(n)))
    rows = {"user_id": [1], "item_id": ["i1"], "campaign_id": [7]}
    assert_parity(features, rows)
    for n in range(8, 20):
        features.append(shop.events_table(event(n)))
    found = features.online("users", rows)
    exact = features.history("users", {**rows, "time": [features.reader.now()]})
    for name in ("items", "values", "ages", "recency", "n_7d", "weight_7d", "last_item"):
        np.testing.assert_array_equal(found.column(name).values, exact.column(name).values, err_msg=name)
    assert 8 <= found.column("n").values[0] <= exact.column("n").values[0] == 20
    features.materialize()
    found = features.online("users", rows)
    for name in ("items", "values", "ages", "recency", "n_7d", "weight_7d", "last_item"):
        np.testing.assert_array_equal(found.column(name).values, exact.column(name).values, err_msg=name)
    assert found.column("n").values[0] == found.column("spend").values[0] == 8
    assert found.column("tenure").values[0] < exact.column("tenure").values[0]


def test_an_instant_before_the_cap_dropped_events_is_answered_from_the_log(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online, more="\n  max_events: 5")
    columns = shop.random_events(np.random.default_rng(4), 60)
    features.append(shop.events_table({**columns, "user_id": [1] * 40 + [2] * 20}))
    features.materialize()
    rows = {"user_id": [1, 2, 6], "item_id": ["i1"] * 3, "campaign_id": [7] * 3}
    for day in (5, 20, 40):
        for one in ({name: values[:1] for name, values in rows.items()}, rows):
            assert_parity(features, one, shop.START + day * shop.DAY)
    assert features.online("users", rows).column("n").values.tolist() == [5, 5, 0]


# The clock


def test_the_clock_is_the_end_of_the_log_an_instant_or_the_wall(repo: Path) -> None:
    features = shop.opened(repo, clock="log_end")
    columns = shop.random_events(np.random.default_rng(0), 2)
    features.append(shop.events_table(columns | {"time": [shop.START, shop.START + shop.DAY], "user_id": [1, 1]}))
    rows = {"user_id": [1]}
    assert features.online("users", rows).as_of.tolist() == [shop.START + shop.DAY + 1]
    assert features.online("users", rows).column("n").values.tolist() == [2]

    features = shop.opened(repo, clock="'2017-07-14T12:00:00Z'")  # START is 2017-07-14 02:40
    found = features.online("users", rows)
    assert found.as_of.tolist() == [shop.START + (9 * 60 + 20) * 60 * shop.SECOND]
    assert found.column("n").values.tolist() == [1]
    report = features.append(shop.events_table(columns | {"event_id": ["late0", "late1"], "time": [shop.END, shop.START]}))
    assert (report.added, dict(report.quarantined)) == (1, {"timestamp_after_now": 1})

    features = shop.opened(repo, clock="wall")
    before = time.time_ns() // 1000
    found = features.online("users", rows)
    assert before <= found.as_of[0] <= time.time_ns() // 1000
    assert found.column("n_7d").values.tolist() == [0]


def test_a_push_that_moves_the_end_of_the_log_far_is_warned_of(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = shop.random_events(np.random.default_rng(0), 1)

    def push(features: Features, name: str, at: int) -> Any:
        return features.append(shop.events_table(columns | {"event_id": [name], "time": [at]}))

    features = shop.opened(repo, clock="log_end")
    assert push(features, "first", shop.START).warnings == ()  # the log was empty: nobody's now moved
    assert push(features, "near", shop.START + 7 * shop.DAY).warnings == ()
    assert push(features, "older", shop.START + shop.DAY).warnings == ()
    (warning,) = push(features, "far", shop.START + 15 * shop.DAY).warnings
    assert warning.startswith('"now" moved by 8.0 days, from 2017-07-21 02:40 UTC to 2017-07-29 02:40 UTC, for every user')
    assert warning.endswith("set clock: wall in feature_store.yaml")
    assert [record.getMessage() for record in caplog.records] == [warning]
    tomorrow = time.time_ns() // 1000 + shop.DAY
    late = push(features, "tomorrow", tomorrow)
    assert (late.added, dict(late.quarantined), late.warnings) == (0, {"timestamp_after_now": 1}, ())
    assert features.reader.now() == shop.START + 15 * shop.DAY + 1
    assert push(shop.opened(repo, clock="wall"), "wall", shop.END).warnings == ()


def test_a_clock_that_cannot_be_read_is_named_with_the_choices(repo: Path) -> None:
    with pytest.raises(FeatureError, match="clock: 'sundial'; expected wall, log_end or a UTC instant"):
        shop.opened(repo, clock="sundial").online("users", {"user_id": [1]})
    with pytest.raises(FeatureError, match="has no timezone"):
        shop.opened(repo, clock="'2017-07-14T12:00:00'").online("users", {"user_id": [1]})


# Several writers


def test_threads_that_push_at_once_lose_nothing(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            rng = np.random.default_rng(number)
            for n in range(4):
                first = 100 * number + 5 * n
                features.append(shop.events_table(shop.random_events(rng, 5, first)))
                seen = features.online("users", {"user_id": [1, 2, 3, 4, 5]})
                assert seen.column("n").values.sum() >= 5 * (n + 1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert features.reader.log.count() == 80
    assert_parity(features, everyone())


WRITER = """
import sys
from zoo.cli.app import app
from zoo.consistency import drift
from zoo.features import Features, apply
import test_stores

features = [Features.open(root) for root in sys.argv[1:]]
print("ready", flush=True)
sys.stdin.readline()
test_stores.write(features, 1)
"""


def write(repositories: list[Features], number: int) -> None:
    rng = np.random.default_rng(number)
    for n in range(6):
        events = shop.events_table(shop.random_events(rng, 4, 1000 * number + 4 * n))
        for features in repositories:
            features.append(events)


def test_processes_that_push_at_once_lose_nothing(repo: Path, redis_url: str, tmp_path: Path) -> None:
    roots = [repo, Path(shutil.copytree(repo, tmp_path / "second"))]
    stores = [shop.opened(root, online=online) for root, online in zip(roots, (shop.SQLITE, redis_url))]
    here = Path(__file__).parent
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, *map(str, roots)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "ready\n"  # its imports are done: both begin together
        other.stdin.write("go\n")
        other.stdin.flush()
        write(stores, 2)
        assert other.wait() == 0
    for features in stores:
        assert features.reader.log.count() == 48
        assert_parity(features, everyone())


def test_writers_of_one_entity_never_undo_each_other(repo: Path, online: str) -> None:
    writers = [shop.opened(repo, online=online).store for _ in range(3)]  # each as another process would be
    errors: list[BaseException] = []
    space = Space("shop", "log", "shop:zoo:log:0-x")

    def write(number: int) -> None:
        try:
            store, config = writers[number]._get_provider().online_store, writers[number].config
            for n in range(30):
                frames = [("user_id", 2, pack(columns([3 * n + number]))), ("user_id", 3 + number, pack(columns([n])))]
                lengths = None
                while lengths is None:  # another came first
                    held = store.load(config, space, {})[1]
                    lengths = store.append(config, space, held, held + 1, frames)
                if n % 5 == number:  # and make one frame of them all, unless another comes between
                    (value,) = store.load(config, space, {"user_id": np.array([2])})[0]["user_id"]
                    store.exchange(config, space, Change("user_id", [2], [value], [pack(events_in(value))]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    codes = {"user_id": np.array([2, 3, 4, 5])}
    values, held = writers[0]._get_provider().online_store.load(writers[0].config, space, codes)
    assert held == 90
    assert [events_in(value)["seq"].tolist() for value in values["user_id"]] == [list(range(90)), *[list(range(30))] * 3]


def test_a_push_while_everything_is_copied_is_not_lost(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    rng = np.random.default_rng(0)
    features.append(shop.events_table(shop.random_events(rng, 30)))
    pushed = []

    def push(done: float, text: str) -> None:
        if len(pushed) < 2:
            pushed.append(features.append(shop.events_table(shop.random_events(rng, 10, 100 + 10 * len(pushed)))).added)

    features.materialize(progress=push)
    assert pushed == [10, 10]
    assert_parity(features, everyone())


def test_materialize_says_how_far_it_is_and_how_many_entities_it_copied(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 60)))
    said: list[tuple[float, str]] = []
    copied = features.materialize(progress=lambda done, text: said.append((done, text)))
    assert copied["user_id"] == 5
    assert said[-1][0] == 1.0
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert "5 users" in said[0][1]
    assert "a second" in said[0][1]


# What can go wrong


def test_redis_that_does_not_answer_is_named(repo: Path) -> None:
    features = shop.opened(repo, online="redis://127.0.0.1:1/0")
    columns = shop.events_table(shop.random_events(np.random.default_rng(0), 3))
    for act in (lambda: features.online("users", {"user_id": [1]}), features.materialize, lambda: features.append(columns)):
        with pytest.raises(FeatureError, match=r"Redis at 127\.0\.0\.1:1 does not answer.*Start it"):
            act()
    assert features.reader.log.count() == 3  # the push was durable before Redis was asked
    with pytest.raises(FeatureError, match="events are in the log all the same, and online from the next read on"):
        features.append(columns)
    shop.opened(repo, online=shop.SQLITE).online("users", {"user_id": [1]})


def test_a_damaged_database_is_named_with_the_remedy(repo: Path) -> None:
    (repo / "data" / "online.db").write_bytes(b"this is no database, whatever its name says" * 100)
    features = shop.opened(repo)
    with pytest.raises(FeatureError, match=r"online\.db cannot be used: file is not a database.*remove it and materialize"):
        features.online("users", {"user_id": [1]})


def test_a_database_that_was_damaged_and_removed_is_read_anew_by_who_had_it_open(repo: Path) -> None:
    features, path = shop.opened(repo), repo / "data" / "online.db"
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 2_000)))
    before = features.online("users", {"user_id": [1]})
    connection = features._online_store._connection(str(path))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA shrink_memory")  # what it has read already it would not look at again
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    with pytest.raises(FeatureError, match="remove it and materialize again"):
        features.online("users", {"user_id": [1]})
    for part in path.parent.glob("online.db*"):
        part.unlink()
    shop.opened(repo).materialize()
    after = features.online("users", {"user_id": [1]})
    for name in before.names:
        np.testing.assert_array_equal(after.column(name).values, before.column(name).values)


def test_a_full_disk_is_named_and_the_store_goes_on_where_it_was(repo: Path) -> None:
    features = shop.opened(repo)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 40)))
    before = features.online("users", {"user_id": [1]})
    connection = features._online_store._connection(str(repo / "data" / "online.db"))
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    # SQLite's own quota on pages gives the refusal of a disk without room
    connection.execute(f"PRAGMA max_page_count={pages}")
    more = shop.events_table(shop.random_events(np.random.default_rng(1), 2_000))
    with pytest.raises(FeatureError, match=r"online\.db cannot be used: database or disk is full\. Free some space"):
        features.append(more, idempotency_key="more")
    connection.execute("PRAGMA max_page_count=1000000")
    features.append(more, idempotency_key="more")  # it was durable before the online store was asked
    assert features.reader.log.count() == 2_000  # 40 of them were there
    after, history = (
        features.online("users", {"user_id": [1]}),
        features.history("users", {"user_id": [1], "time": [features.reader.now()]}),
    )
    assert after.newest[0] >= before.newest[0]
    for name in after.names:
        np.testing.assert_array_equal(after.column(name).values, history.column(name).values)


WHOLE = pack({"time": np.zeros(1, np.int64), "seq": np.zeros(1, np.int64)})
BAD = {
    "empty": b"",
    "foreign": b"garbage",
    "older": b"zoe2" + bytes(60),
    "long": b"zoe3\xff\xff\xff\xff" + bytes(28),
    "torn": WHOLE[:-1],
    "torn after one": WHOLE + WHOLE[:9],
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_damaged_value_is_refused_until_materialize_rebuilds_it(repo: Path, bad: bytes) -> None:
    features = shop.opened(repo)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 40)))
    with sqlite3.connect(repo / "data" / "online.db") as connection:
        connection.execute("UPDATE zoo_frames SET events = ?", (bad,))
    connection.close()
    with pytest.raises(ArtefactError, match="Materialize again"):
        features.online("users", {"user_id": [1]})
    features.materialize()
    row = {"user_id": [1], "time": [features.reader.now()]}
    online, history = features.online("users", {"user_id": [1]}), features.history("users", row)
    for name in online.names:
        np.testing.assert_array_equal(online.column(name).values, history.column(name).values)


def test_a_push_without_ids_is_refused_unless_it_has_a_key(repo: Path) -> None:
    features = shop.opened(repo)
    table = shop.events_table(shop.random_events(np.random.default_rng(0), 4)).drop_columns(["event_id"])
    with pytest.raises(UsageError, match="idempotency key"):
        features.append(table)
    assert [features.append(table, "once").added, features.append(table, "once").added] == [4, 0]


# Retention

FEW = """
from feast import Entity, FeatureService, FeatureView, ValueType

from zoo.events.specs import Aggregation, count, last_n, recency, total
from zoo.stores import EventSource
from zoo.stores.source import schema_of
from feast.types import String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
recent = Aggregation(("user_id",), (
    last_n("items", "item_id", 3), last_n("gaps", "gap", 3), count("n_7d", "7d"), total("spend_7d", "value", "7d"),
    count("visits_7d", "7d", step="visit"), last_n("sizes", "", 2, step="visit", of="count"), recency("seen", where=("cart",)),
))
view = FeatureView(
    name="recent", entities=[user], source=EventSource(name="recent", aggregation=recent), schema=schema_of(recent, item_id=String)
)
few = FeatureService(name="few", features=[view])
"""


def few(repo: Path, online: str) -> Features:
    """The shop with one view that reaches back a week and a few events, in place of its own views."""
    (repo / "definitions.py").write_text(FEW)
    (repo / "data" / "registry.db").unlink(missing_ok=True)
    (repo / "feature_store.yaml").write_text(shop.settings(online=online))
    apply(repo)
    return Features.open(repo)


def assert_few(features: Features, at: int | None = None) -> None:
    users = [1, 2, 3, 4, 5, 6, 3]
    now = features.reader.now() if at is None else at
    shop.assert_same(
        features.online("few", {"user_id": users}, at), features.history("few", {"user_id": users, "time": [now] * 7})
    )


def kept(features: Features) -> dict[int, Any]:
    """Events kept of each user, by code."""
    store, view = features._online_store, features.reader.view()
    space = store.space(features.store.config, view)
    return {code: events_in(value) for code, value in store.values(features.store.config, space, "user_id")}


@pytest.mark.parametrize("seed", range(2))
def test_what_no_view_reaches_back_to_is_not_kept_and_answers_stay_exact(repo: Path, online: str, seed: int) -> None:
    features, rng = few(repo, online), np.random.default_rng(seed)
    features.reader.log.append(shop.events_table(shop.random_events(rng, 300)))
    features.materialize()
    held = kept(features)
    assert sum(len(columns["time"]) for columns in held.values()) < 150
    assert {name for columns in held.values() for name in columns} <= {"time", "seq", "item_id", "value", "event_type", "session"}
    assert features._online_store.names(features.store.config, features.reader.log.id) == [
        features._online_store.space(features.store.config, features.reader.view())
    ]
    assert_few(features)
    for n in range(12):  # late ones among them, and with an instant before what is kept
        features.append(shop.events_table(shop.random_events(rng, 7, 1000 + 7 * n)))
        assert_few(features)
    assert_few(features, shop.START + 20 * shop.DAY)
    assert drift(features, "few", 20) == (20, [])


def test_declarations_that_ask_for_more_are_answered_right_at_once(repo: Path, online: str) -> None:
    features = few(repo, online)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(1), 300)))
    assert_few(features)
    (repo / "definitions.py").write_text(FEW.replace('"7d"', '"30d"').replace('"item_id", 3', '"item_id", 20'))
    apply(repo)
    assert_few(features)  # opened before: it goes on with what it was declared to be
    wider = Features.open(repo)
    assert_few(wider)
    wider.materialize()
    assert len(wider._online_store.names(wider.store.config, wider.reader.log.id)) == 1
    assert_few(features)


def test_frames_made_by_the_hundred_are_those_made_one_by_one() -> None:
    rng, counts = np.random.default_rng(0), np.arange(300) % 7
    ends = counts.cumsum()
    number = int(ends[-1])
    columns = {
        "time": np.sort(rng.integers(0, 10**6, number)) * 60_000_000,
        "seq": np.arange(number),
        "item_id": rng.integers(0, 70_000, number).astype(np.int32),
        "value": np.where(rng.random(number) < 0.5, MISSING, rng.integers(-500, 500, number) * 100),
        "share": rng.random(number),
    }
    index, since = index_of(pack_slices(columns, ends - counts, ends, np.arange(300)))
    assert since.tolist() == list(range(300))
    assert np.diff(index.bounds(np.arange(2, 302)), axis=0)[0].tolist() == counts.tolist()
    found = {"time": index.time, "seq": index.seq, **index.columns}
    assert all(np.array_equal(found[name], values) for name, values in columns.items())
    alone = [pack_slices(columns, ends[n : n + 1] - counts[n], ends[n : n + 1])[0] for n in range(300)]
    assert np.array_equal(index_of(alone)[0].columns["value"], columns["value"])


def test_a_copy_writes_over_nothing_that_it_did_not_see(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    store, config = features._online_store, features.store.config
    space, a, b = store.space(config, features.reader.view()), WHOLE, pack(columns([7]))
    assert store.copying(config, space, "one") == "one"
    assert store.exchange(config, space, Change("user_id", [2, 3], [None, None], [a, a]), "one", "two") == []
    assert store.exchange(config, space, Change("user_id", [3, 4], [None, None], [b, b]), "two", "three") == [0]
    assert store.copying(config, space) == "two"
    assert store.exchange(config, space, Change("user_id", [5], [None], [b]), "one", "three") is None
    assert store.exchange(config, space, None, "one", "three") is None
    found, _ = store.load(config, space, {"user_id": np.array([2, 3, 4, 5])})
    assert found["user_id"] == [a, a, b, None]


# Killed and run again


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", [1, 2, 3, 5])
def test_a_copy_goes_on_where_a_killed_one_stopped(repo: Path, online: str, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    monkeypatch.setattr("zoo.stores.bulk.ENTITIES_AT_ONCE", 2)
    monkeypatch.setattr("zoo.stores.bulk.EVENTS_AT_ONCE", 10)  # two exchanges for two users
    features = shop.opened(repo, online=online)
    features.reader.log.append(shop.events_table(shop.random_events(np.random.default_rng(0), 60)))
    store = features._online_store
    real, left = store.exchange, [calls]

    def exchange(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(*args, **options)

    with monkeypatch.context() as killed:
        killed.setattr(store, "exchange", exchange)
        with pytest.raises(Killed):
            features.materialize()
    space = store.space(features.store.config, features.reader.view())
    assert store.load(features.store.config, space, {})[1] == 0  # the watermark is never ahead
    features.reader.log.append(shop.events_table(shop.random_events(np.random.default_rng(1), 10, 100)))
    copied = shop.opened(repo).materialize()
    assert (copied["user_id"] < 5) == (calls > 1)
    assert_parity(features, everyone())


def test_a_redis_that_restarts_empty_in_the_midst_of_a_copy_is_copied_again(
    repo: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.stores.bulk.ENTITIES_AT_ONCE", 2)
    features = shop.opened(repo, online=redis_url)
    features.reader.log.append(shop.events_table(shop.random_events(np.random.default_rng(0), 60)))
    lost = []

    def lose(done: float, text: str) -> None:
        if done > 0.3 and not lost:
            with redis.Redis.from_url(redis_url) as client:
                lost.append(client.flushdb())

    features.materialize(progress=lose)
    assert lost
    assert_parity(features, everyone())


def test_one_command_rebuilds_a_redis_that_restarted_empty_and_says_how_long_it_took(
    repo: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    features = shop.opened(repo, online=redis_url)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 60)))
    (repo / "zoo.toml").write_text('[zoo]\ntimezone = "UTC"\n')
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        for option, said in (([], "The online store was rebuilt from the log in "), (["--json"], '"seconds"')):
            with pytest.raises(SystemExit) as ended:
                app(["--repo", str(repo), "materialize", *option], prog_name="zoo")
            assert (ended.value.code, said in capsys.readouterr().out) == (0, True)
        assert client.dbsize() > 5
    assert_parity(features, everyone())


# Drift


def test_drift_is_found_counted_and_shown(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = shop.opened(repo)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 40)))
    for service in features.services():
        if service != "mixed":  # file-backed views are Feast's
            assert drift(features, service, 30) == (30, [])
    with sqlite3.connect(repo / "data" / "online.db") as connection:
        connection.execute("DELETE FROM zoo_frames WHERE key IN (SELECT key FROM zoo_frames LIMIT 3)")
    connection.close()
    rows, found = drift(features, "users", 30)
    assert rows == 30
    assert {"n", "items", "spend"} <= {d.feature for d in found}
    first = next(d for d in found if d.feature == "n")
    assert first.online == 0 < first.log
    assert 0 < first.rows <= 30
    (repo / "zoo.toml").write_text('[zoo]\ntimezone = "UTC"\n')
    codes = []
    for option in ("--json", "--seed=1"):
        with pytest.raises(SystemExit) as ended:
            app(["--repo", str(repo), "check-features", "users", option], prog_name="zoo")
        codes.append(ended.value.code)
    features.materialize()
    with pytest.raises(SystemExit) as ended:
        app(["--repo", str(repo), "check-features", "users"], prog_name="zoo")
    assert (codes, ended.value.code) == ([1, 1], 0)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        app(["--repo", str(repo), "check-features", "--entities", "5"], prog_name="zoo")
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "Not compared: mixed. Not computed from the log, but kept by Feast's own store: credit." in shown
    with pytest.raises(UsageError, match="0 entities to compare; expected at least 1"):
        drift(features, "users", 0)


def test_events_that_come_between_the_two_answers_are_no_drift(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = shop.opened(repo, clock="'2017-12-01T00:00:00Z'")
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 40)))
    real, asked = Features.history, []

    def late(self: Features, service: str, rows: Any) -> Any:
        asked.append(len(rows["user_id"]))
        if len(asked) < 3:
            event = shop.random_events(np.random.default_rng(len(asked)), 1, 50 + len(asked))
            features.append(shop.events_table({**event, "user_id": [2]}))
        return real(self, service, rows)

    monkeypatch.setattr(Features, "history", late)
    assert drift(features, "users", 30) == (30, [])
    assert asked[0] == 30 > asked[1] == asked[2] > 0
    asked.clear()
    with sqlite3.connect(repo / "data" / "online.db") as connection:
        connection.execute("DELETE FROM zoo_frames WHERE key IN (SELECT min(key) FROM zoo_frames)")
    connection.close()
    _, found = drift(features, "users", 30)
    assert {int(features.reader.view().codes("user_id", [d.example["user_id"]])[0]) for d in found} == {2}
    assert asked == [30]  # events that the log has already are none


# Forgetting


def test_forgotten_users_leave_no_event_behind_not_even_with_items(repo: Path, online: str) -> None:
    features = shop.opened(repo, online=online)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 200)))
    features.append(shop.events_table(shop.random_events(np.random.default_rng(1), 20, 200)))
    store, config, view = features._online_store, features.store.config, features.reader.view()
    at = features.reader.now()
    before = features.online("users", {"user_id": [2, 3, 4, 5]}, at)
    (code,) = view.codes("user_id", [1]).tolist()
    features.forget([1])
    assert store.names(config, view.log.id) == []
    assert features.online("users", {"user_id": [1]}).newest.tolist() == [-1]
    shop.assert_same(features.online("users", {"user_id": [2, 3, 4, 5]}, at), before)
    (space,) = store.names(config, view.log.id)
    assert code not in dict(store.values(config, space, "user_id"))
    assert all(code not in events_in(value)["user_id"] for _, value in store.values(config, space, "item_id"))
    assert store.forget(config, view.log) == 0  # nobody is in what is kept of the log as it is
    assert store.names(config, view.log.id) == [space]


def test_frames_of_alternating_layouts_are_read_in_their_order() -> None:
    rng, kinds, values, expected = np.random.default_rng(0), ("<i4", "<f8", "<i8"), [], []
    for entity in range(20):
        seq, own = np.arange(100 * entity, 100 * entity + 9), rng.integers(0, 1000, 9)
        parts = [slice(0, 4), slice(4, 5), slice(5, 9)]
        frames = [
            pack({"time": seq[part], "seq": seq[part], "item_id": own[part].astype("<i4"), kind: own[part].astype(kind)})
            for part, kind in zip(parts, kinds)
        ]
        values.append(b"".join(frames))
        expected.append(own)
    index, _ = index_of(values)
    assert index.columns["item_id"].tolist() == np.concatenate(expected).tolist()
    assert index.seq.tolist() == index.time.tolist() == [100 * entity + n for entity in range(20) for n in range(9)]
    whole = np.concatenate([np.append(own[:4], np.zeros(5, int)) for own in expected])
    assert index.columns["<i4"].tolist() == whole.tolist()


def test_no_byte_of_a_forgotten_user_is_left_in_sqlite(repo: Path) -> None:
    features = shop.opened(repo)
    features.append(shop.events_table(shop.random_events(np.random.default_rng(0), 200)))
    store, config, view = features._online_store, features.store.config, features.reader.view()
    (code,) = view.codes("user_id", [1]).tolist()
    space = store.space(config, view)
    value = dict(store.values(config, space, "user_id"))[code]
    mark = index_of([value])[0].seq.tobytes()  # which nobody else's events share
    files = sorted((repo / "data").glob("online.db*"))
    assert any(mark in path.read_bytes() for path in files)
    reader = sqlite3.connect(repo / "data" / "online.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM zoo_frames").fetchone()
    store._connection(str(repo / "data" / "online.db")).execute("PRAGMA busy_timeout = 100")
    with pytest.raises(FeatureError, match="is being read, so bytes of what was removed stay in it; run the same again"):
        features.forget([1])
    reader.close()
    features.forget([1])
    assert not any(mark in path.read_bytes() for path in files if path.exists())


# Frames


def columns(seqs: list[int], **more: Any) -> dict[str, Any]:
    times = [n // 2 for n in seqs]
    order = sorted(range(len(seqs)), key=lambda i: (times[i], seqs[i]))
    return {
        "time": np.array([times[i] for i in order], np.int64),
        "seq": np.array([seqs[i] for i in order], np.int64),
        "item_id": np.array([seqs[i] + 2 for i in order], np.int32),
        **{name: np.full(len(seqs), value) for name, value in more.items()},
    }


def events_in(value: bytes | None) -> dict[str, Any]:
    """The columns of a value, as a reader sees them."""
    index, _ = index_of([value])
    return {"time": index.time, "seq": index.seq, **index.columns}


def test_frames_are_united_whatever_their_order_and_number() -> None:
    parts = [pack(columns(seqs)) for seqs in ([5, 1, 3], [1, 2], [9, 0], [5, 9])]
    rng = np.random.default_rng(0)
    expected = columns([0, 1, 2, 3, 5, 9])
    for _ in range(10):
        found = events_in(b"".join(parts[i] for i in rng.integers(0, 4, 3)) + b"".join(parts[i] for i in rng.permutation(4)))
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_a_column_that_only_newer_events_have_is_missing_in_older_ones() -> None:
    value = pack(columns([0])) + pack(columns([1], value=np.int64(7), weight=0.5))
    index, since = index_of([None, value], {"item_id": "<i4", "colour": "<i4"}, {})
    assert index.columns["value"].tolist() == [MISSING, 7]
    np.testing.assert_array_equal(index.columns["weight"], [np.nan, 0.5])
    assert index.column("colour").tolist() == [0, 0]
    assert np.diff(index.offsets).tolist() == [0, 0, 0, 2]
    assert since.tolist() == [ALWAYS, ALWAYS]


@pytest.mark.parametrize("seed", range(20))
def test_narrow_columns_hold_what_wide_ones_did(seed: int) -> None:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, 60))
    unit = int(rng.choice([1, 100, 10_000, 1_000_000, 60_000_000]))
    money = np.int64(unit) * rng.integers(-(10 ** int(rng.integers(1, 10))), 10 ** int(rng.integers(1, 10)), number)
    money[rng.random(number) < 0.3] = MISSING
    wide = {
        "time": np.sort(shop.START + unit * rng.integers(0, 10 ** int(rng.integers(1, 9)), number)),
        "seq": np.arange(number) + rng.integers(0, 1 << 40),
        "item_id": rng.integers(0, 10 ** int(rng.integers(1, 9)), number).astype(np.int32),
        "value": money,
        "session": rng.integers(MISSING, -MISSING - 1, number),
        "whole": np.where(rng.random(number) < 0.5, np.nan, rng.integers(0, 9, number).astype(np.float64)),
        "weight": rng.normal(size=number) * 10.0 ** rng.integers(-300, 300),
    }
    ends = np.sort(rng.integers(0, number + 1, 3))
    low, high = np.append(0, ends), np.append(ends, number)
    for narrow in (True, False):
        packed = pack_slices(wide, low, high, narrow=narrow)
        index, _ = index_of([value for value, a, b in zip(packed, low, high) if b > a])
        for name, values in {"time": index.time, "seq": index.seq, **index.columns}.items():
            assert values.dtype == wide[name].dtype
            np.testing.assert_array_equal(values, wide[name], err_msg=name)
    assert len(pack(wide)) <= len(packed[-1]) + sum(map(len, packed[:-1]))


def test_an_event_older_than_those_that_were_kept_is_seen() -> None:
    cut = pack(columns([10, 12, 14]), since=77)
    assert index_of([cut])[1].tolist() == [77]
    assert index_of([cut + pack(columns([16]))])[1].tolist() == [77]
    assert index_of([cut + pack(columns([11]))])[1].tolist() == [77]
    assert index_of([cut + pack(columns([3])), cut])[1].tolist() == [NEVER, 77]


def test_events_beyond_a_count() -> None:
    value = pack(columns([0, 1, 2])) + pack(columns([4]))
    assert newer(value, 5) is None
    assert events_in(newer(value, 2))["seq"].tolist() == [2, 4]
