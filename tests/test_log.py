"""The event log as readers see it: versions, order, tails, tables beside it, and what is said when it cannot be read."""

from __future__ import annotations

import os
import shutil
import threading

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from zoo.errors import FeatureError, SchemaError, UsageError, ZooError
from zoo.events.ingest import append
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema

SECOND = 1_000_000
NOW = 2_000_000_000 * SECOND


def push(log, *, users=(1,), items=None, times=None, key="k", **extra):
    users = list(users)
    items = list(items) if items is not None else [10] * len(users)
    times = list(times) if times is not None else [SECOND * (i + 1) for i in range(len(users))]
    return append(
        log,
        pa.table({"user_id": users, "item_id": items, "event_type": ["view"] * len(users), "time": times, **extra}),
        idempotency_key=key,
        now=NOW,
    )


@pytest.fixture
def log(tmp_path):
    return EventLog.create(tmp_path / "log", LogSchema())


def test_a_schema_survives_json_and_the_disk(tmp_path):
    schema = LogSchema(
        user_id="string",
        item_id="int",
        clock="order",
        timezone="Europe/London",
        event_types=("view", "achat é"),
        session=False,
        extra={"campaign_id": "string", "arm": "int64", "rating": "float64", "mobile": "bool"},
    )
    assert LogSchema.from_json(schema.to_json()) == schema
    EventLog.create(tmp_path, schema)
    assert EventLog.open(tmp_path).schema == schema


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"user_id": "float"}, "int, string"),
        ({"clock": "sundial"}, "order, time"),
        ({"timezone": "Mars/Olympus"}, "IANA"),
        ({"event_types": ()}, "at least one"),
        ({"extra": {"arm": "date"}}, "bool, float64, int64, string"),
        ({"extra": {"price": "float64"}}, "standard column"),
        ({"extra": {"seq": "int64"}}, "standard column"),
        ({"extra": {"my arm": "int64"}}, "letters, digits"),
    ],
)
def test_a_schema_that_cannot_be_meant_is_refused_with_the_choices(arguments, said):
    with pytest.raises(UsageError, match=said):
        LogSchema(**arguments)


def test_opening_nothing_says_what_is_missing(tmp_path):
    with pytest.raises(ZooError, match=r"no event log in .*zoo ingest FILE. makes that of a project"):
        EventLog.open(tmp_path / "absent")


def test_creating_over_a_log_is_refused_and_leaves_it(log):
    push(log)
    with pytest.raises(UsageError, match="holds a log already"):
        EventLog.create(log.root, LogSchema())
    assert EventLog.open(log.root).count() == 1


def test_an_attempt_to_create_that_died_half_way_is_completed(tmp_path):
    EventLog.create(tmp_path, LogSchema())
    shutil.rmtree(tmp_path / "log")
    assert EventLog.create(tmp_path, LogSchema(user_id="string")).schema.user_id == "string"


def test_an_empty_log_has_no_end_and_no_rows(log):
    assert log.count() == 0
    assert log.end() is None
    assert log.table().num_rows == 0
    assert log.tail(-1).num_rows == 0
    assert log.table().schema.names == log.schema.arrow().names


def test_seq_is_contiguous_in_order_of_append_whatever_the_times(log):
    push(log, users=[1, 2, 3], times=[30 * SECOND, 10 * SECOND, 10 * SECOND], key="a")
    push(log, users=[4], times=[5 * SECOND], key="b")
    table = log.table(columns=["user_id", "seq"])
    assert table["user_id"].to_pylist() == [1, 2, 3, 4]
    assert table["seq"].to_pylist() == [0, 1, 2, 3]
    assert log.end() == 30 * SECOND


def test_an_older_version_reads_as_it_was(log):
    push(log, users=[1, 2], key="a")
    log.flush()
    before = log.version()
    push(log, users=[3], times=[9 * SECOND], key="b")
    log.flush()
    assert log.version() > before
    assert log.table(before)["user_id"].to_pylist() == [1, 2]
    assert log.count(before) == 2
    assert log.end(before) == 2 * SECOND
    assert log.count() == 3


def test_a_version_that_never_was_is_named(log):
    with pytest.raises(ZooError, match="version 99"):
        log.table(99)


def test_the_tail_holds_exactly_what_came_after(log):
    for index in range(5):
        push(log, users=[index, index], key=f"k{index}")
    assert log.tail(6)["seq"].to_pylist() == [7, 8, 9]
    assert log.tail(6, columns=["user_id"]).column_names == ["user_id"]
    assert log.tail(9).num_rows == 0


@pytest.mark.parametrize(
    ("first", "stop", "rows"), [(0, None, 1_000_000), (3, 8, 2), (0, 10, 1), (4, 5, 100), (9, None, 3), (7, 7, 3)]
)
def test_chunks_are_the_table_in_pieces(log, first, stop, rows):
    for index in range(5):
        push(log, users=[index, index], key=f"k{index}")
    parts = list(log.chunks(["user_id", "time", "source"], first, stop, rows))
    assert all(0 < len(part) < rows + 2 for part in parts)
    whole = log.table(columns=["user_id", "time", "source"]).slice(first, (10 if stop is None else stop) - first)
    assert [row for part in parts for row in part.to_pylist()] == whole.to_pylist()


def test_an_interrupt_right_after_a_commit_hides_nothing(log, monkeypatch):
    push(log)
    with monkeypatch.context() as patch:
        patch.setattr(log, "tidy", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            log.flush()
    push(log, key="second")
    assert log.count() == 2
    assert push(log, key="third").added == 1
    assert log.table()["seq"].to_pylist() == [0, 1, 2]


def test_another_reader_sees_a_push_without_opening_again(log):
    reader = EventLog.open(log.root)
    assert reader.count() == 0
    push(log)
    assert reader.count() == 1
    assert reader.dictionary("user_id").ids == [1]


def test_an_unknown_column_is_refused_with_the_choices(log):
    with pytest.raises(UsageError, match=r"'colour'.*event_id, event_type"):
        log.table(columns=["colour"])


def test_many_small_pushes_are_merged_and_nothing_changes(log):
    for index in range(70):
        push(log, users=[index], items=[index % 7], times=[(100 - index) * SECOND], key=f"k{index}")
        log.flush()
    assert len(log.snapshot().files) < 64
    table = log.table()
    assert table["user_id"].to_pylist() == list(range(70))
    assert table["seq"].to_pylist() == list(range(70))
    assert log.tail(67)["user_id"].to_pylist() == [68, 69]
    assert log.table(10)["user_id"].to_pylist() == list(range(10))
    assert push(log, users=[3], items=[3], times=[97 * SECOND], key="k3").repeated == 1


def test_any_delta_reader_reads_the_log(log):
    push(log, users=[5, 6])
    log.flush()
    assert pl.from_arrow(DeltaTable(str(log.root / "log")).to_pyarrow_table()).sort("seq")["user_id"].to_list() == [5, 6]


def test_a_damaged_data_file_is_named(log):
    push(log)
    log.flush()
    (file,) = (log.root / "log").glob("*.parquet")
    file.write_bytes(b"PAR1 nothing more")
    with pytest.raises(ZooError, match=r"data file .* damaged"):
        log.table()


def test_a_damaged_commit_is_said_and_not_mistaken_for_an_empty_log(log):
    push(log)
    (log.root / "log" / "_delta_log" / f"{0:020d}.json").write_text("{ not json")
    with pytest.raises(ZooError, match=r"cannot be read|damaged"):
        EventLog.open(log.root)


def test_facts_count_what_is_there(log):
    push(log, users=[1, 1, 2], items=[5, 6, None], times=[SECOND, 3 * SECOND, 2 * SECOND])
    facts = log.facts()
    assert (facts["events"], facts["users"], facts["items"]) == (3, 2, 2)
    assert facts["event_types"] == {"view": 3}
    assert (facts["first"], facts["end"]) == (SECOND, 3 * SECOND)
    assert log.filled() == ["user_id", "item_id", "event_type", "time", "seq", "source", "row"]


def test_an_order_only_log_counts_positions_as_seconds(tmp_path):
    log = EventLog.create(tmp_path, LogSchema(clock="order"))
    append(log, pa.table({"user_id": [1, 1], "event_type": ["rate", "rate"], "position": [7, 3]}), idempotency_key="a", now=0)
    assert log.table()["time"].to_pylist() == [7 * SECOND, 3 * SECOND]
    assert log.end() == 7 * SECOND


def test_an_entity_table_is_replaced_whole_and_feeds_the_dictionaries(log):
    push(log, items=[10])
    log.put_table("items", pl.DataFrame({"category": ["tea", "rice", None], "item_id": [10, 11, 12], "price": [1, 2, 3]}))
    table = log.read_table("items")
    assert table.column_names == ["item_id", "category", "price"]
    assert log.dictionary("item_id").ids == [10, 11, 12]
    assert log.dictionary("items.category").ids == ["tea", "rice"]
    log.put_table("items", pa.table({"item_id": [11], "colour": ["red"]}))
    assert log.read_table("items").to_pylist() == [{"item_id": 11, "colour": "red"}]
    assert log.dictionary("items.category").encode(["rice"]).tolist() == [3]


def test_the_same_table_again_keeps_its_version(log):
    frame = pa.table({"item_id": [1, 2], "title": ["a", "b"]})
    first = log.put_table("items", frame)
    assert log.put_table("items", frame) == first
    assert log.put_table("items", frame.slice(0, 1)) > first
    assert log.read_table("items", first).num_rows == 2


def test_an_empty_table_is_a_table(log):
    log.put_table("items", pa.table({"item_id": pa.array([], pa.int64()), "title": pa.array([], pa.string())}))
    assert log.read_table("items").num_rows == 0
    assert log.dictionary("items.title").size == 2


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"item_id": [1, 1, 2], "t": ["a", "b", "c"]}, r"1 keys in more than one row.*'item_id': 1"),
        ({"item_id": [1, None], "t": ["a", "b"]}, "1 rows without 'item_id'"),
        ({"item_id": ["1", "2"]}, "this log's are of type int"),
        ({"title": ["a"]}, "no key column 'item_id'"),
        ({"item_id": [1], "parts": [[1, 2]]}, "'parts' is list.*expected text, numbers"),
        ({"item_id": [1], "since": pa.array([0], pa.timestamp("us"))}, "'since' holds naive times"),
    ],
)
def test_a_table_that_cannot_be_kept_is_refused_whole(log, table, said):
    with pytest.raises(SchemaError, match=said):
        log.put_table("items", pa.table(table))
    assert log.tables() == {}
    assert log.dictionary("item_id").size == 2


@pytest.mark.parametrize("name", ["../escape", "events", "", "a/b"])
def test_a_table_name_that_cannot_be_meant_is_refused(log, name):
    with pytest.raises(UsageError):
        log.put_table(name, pa.table({"item_id": [1]}))


def test_naive_times_of_a_table_are_read_in_the_logs_timezone(tmp_path):
    log = EventLog.create(tmp_path, LogSchema(timezone="Europe/London"))
    noon = pa.array([1_561_982_400 * SECOND], pa.timestamp("us"))  # 2019-07-01 12:00 as written
    log.put_table("campaigns", pa.table({"campaign_id": [1], "start": noon}), key="campaign_id")
    assert log.read_table("campaigns")["start"].cast(pa.int64()).to_pylist() == [(1_561_982_400 - 3600) * SECOND]


def test_a_set_table_holds_each_combination_once(log):
    log.put_set("campaign_items", pa.table({"item_id": [5, 5, 6], "campaign_id": [1, 1, 1]}), keys=("campaign_id", "item_id"))
    assert log.read_table("campaign_items").to_pylist() == [{"campaign_id": 1, "item_id": 5}, {"campaign_id": 1, "item_id": 6}]


def test_a_missing_table_is_refused_with_the_choices(log):
    log.put_table("users", pa.table({"user_id": [1], "age": [30]}), key="user_id")
    with pytest.raises(FeatureError, match=r"'items'; choose one of: users"):
        log.read_table("items")


def test_lineage_names_every_version(log):
    push(log)
    log.put_table("items", pa.table({"item_id": [1]}))
    push(log, users=[7, 8], key="second")
    lineage = log.lineage()
    versions = {"log": log.version(), "dictionaries": log.dictionaries.version(), "tables": log.tables()}
    assert lineage == {**versions, "tail": 2, "events": 3, "epoch": 0}
    assert set(lineage["tables"]) == {"items"}


def test_threads_share_a_log(log):
    failures = []

    def work(number):
        try:
            for index in range(5):
                push(log, users=[number], key=f"{number}-{index}")
                log.dictionary("user_id").encode([number])
                log.table(columns=["seq"])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert log.table()["seq"].to_pylist() == list(range(20))
    assert sorted(np.unique(log.table()["user_id"])) == [0, 1, 2, 3]


def test_a_table_that_changed_is_noticed_at_once_also_after_a_writer_died(tmp_path):
    log = EventLog.create(tmp_path / "log", LogSchema(item_id="int"))
    items = [pa.table({"item_id": [1, 2], "price": [float(n), 2.0]}) for n in range(4)]
    log.put_table("items", items[0])
    other = EventLog.open(tmp_path / "log")
    known = other.tables()
    assert not other.tables_moved(known)
    assert not other.tables_moved(known)
    for change in (lambda: log.put_table("items", items[1]), lambda: log.put_table("more", items[0])):
        change()
        assert other.tables_moved(known)
        known = other.tables()
        assert not other.tables_moved(known)
    folder = tmp_path / "log" / "tables"
    os.utime(folder, ns=(0, 0))  # what a writer leaves that died before its commit, or after it
    assert not other.tables_moved(known)
    log._tables._write(folder / "items", items[2])
    assert other.tables_moved(known)
    known = other.tables()
    log.put_table("items", items[3])
    assert other.tables_moved(known)
