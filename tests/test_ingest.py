"""Taking events in: once, whole or not at all, and every row accounted for, whatever the file or the moment of a crash."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import ReusedKeyError, SchemaError, UsageError, ZooError
from zoo.events.ingest import append, ingest
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema

SECOND = 1_000_000
NOW = 2_000_000_000 * SECOND
MORNING = 1_561_960_800  # 2019-07-01 06:00 UTC


def events(count=3, **columns):
    return pa.table(
        {
            "user_id": np.arange(count) % 7,
            "item_id": np.arange(count) % 5,
            "event_type": ["view"] * count,
            "timestamp": pa.array((np.arange(count) + MORNING) * SECOND, pa.timestamp("us", "UTC")),
            **columns,
        }
    )


def without(table, *names):
    return table.drop_columns(list(names))


@pytest.fixture
def log(tmp_path):
    return EventLog.create(tmp_path / "log", LogSchema())


@pytest.fixture
def write(tmp_path):
    def write(table, name="events.parquet"):
        path = tmp_path / name
        pq.write_table(table, path)
        return path

    return write


def whole(report):
    return report.rows == report.added + report.repeated + sum(report.quarantined.values())


def contents(log):
    """Everything a log holds, but the moments at which it was ingested."""
    quarantine = log.quarantine.table().drop_columns(["ingested_at"]).sort_by([("source", "ascending"), ("row", "ascending")])
    names = log.dictionaries.names()
    codes = {name: log.dictionaries.get(name, log.schema.id_type(name)).ids for name in names}
    return log.table(), quarantine, codes


# Identity


def test_the_same_file_twice_adds_nothing(log, write):
    path = write(events(5))
    first = ingest(log, path)
    again = ingest(log, path)
    assert (first.rows, first.added, first.repeated) == (5, 5, 0)
    assert (again.rows, again.added, again.repeated) == (5, 0, 5)
    assert again.version == first.version
    assert log.count() == 5


def test_the_same_bytes_under_another_name_add_nothing(log, write, tmp_path):
    path = write(events(5))
    ingest(log, path)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(path.read_bytes())
    assert ingest(log, copy).added == 0


def test_rows_that_a_file_repeats_stay(log, write):
    table = pa.concat_tables([events(2), events(2)])
    assert ingest(log, write(table)).added == 4
    assert log.table()["row"].to_pylist() == [0, 1, 2, 3]


def test_explicit_event_ids_count_once_across_and_within_sources(log, write):
    report = ingest(log, write(events(4, event_id=["a", "b", "a", None])))
    assert (report.added, report.repeated) == (3, 1)
    report = ingest(log, write(events(3, event_id=["c", "b", None]), "more.parquet"))
    assert (report.added, report.repeated) == (2, 1)
    assert log.table()["event_id"].to_pylist() == ["a", "b", None, "c", None]
    assert EventLog.open(log.root).append(events(2, event_id=["c", "d"])).added == 1


def test_a_row_that_was_quarantined_does_not_use_up_its_event_id(log):
    bad = events(1, event_id=["a"], price=[float("inf")])
    assert append(log, bad).quarantined == {"price_not_finite": 1}
    assert append(log, events(1, event_id=["a"], price=[1.0])).added == 1


def test_a_push_needs_event_ids_or_a_key(log):
    with pytest.raises(UsageError, match="3 of 3 rows have no event_id and the push has no idempotency key"):
        append(log, events(3))
    with pytest.raises(UsageError, match="1 of 2 rows"):
        append(log, events(2, event_id=["a", ""]))
    assert log.count() == 0
    assert append(log, events(3), idempotency_key="k").added == 3
    again = append(log, events(3), idempotency_key="k")
    assert (again.rows, again.added, again.repeated) == (3, 0, 3)
    assert append(log, events(3), idempotency_key="k2").added == 3


def test_a_key_belongs_to_the_push_that_came_with_it_first(log, monkeypatch):
    row = {"user_id": 1, "event_type": "view", "timestamp": "2017-12-01T00:00:00Z", "colour": "red"}
    assert append(log, [row, {**row, "user_id": "x"}], idempotency_key="k").added == 1
    alike = [{**{name: row[name] for name in reversed(row)}, "colour": "blue"}, {**row, "user_id": "x"}]
    again = append(log, alike, idempotency_key="k")  # another order of fields, and of what the log has no place for another value
    assert (again.rows, again.added, again.repeated, dict(again.quarantined)) == (2, 0, 1, {"user_id_invalid": 1})
    for others in ([row], [{**row, "user_id": 2}, {**row, "user_id": "x"}], [row] * 3):
        with pytest.raises(ReusedKeyError, match=r"came with other events before.*under a key of their own"):
            append(log, others, idempotency_key="k")
    assert log.count() == 1
    log.flush()
    with pytest.raises(ReusedKeyError):
        append(EventLog.open(log.root), [row], idempotency_key="k")
    monkeypatch.setattr("zoo.events.ingest.LARGE", 3)  # those that go into Delta at once
    assert append(log, events(5), idempotency_key="large").added == 5
    assert append(log, events(5), idempotency_key="large").repeated == 5
    with pytest.raises(ReusedKeyError):
        append(log, events(6), idempotency_key="large")
    assert log.count() == 6


JSON = [
    {"user_id": 1, "item_id": 5, "event_type": "view", "timestamp": "2017-12-01T00:00:00Z", "price": 3, "session": 7},
    {"user_id": 2, "item_id": None, "event_type": "view", "timestamp": "2017-12-01T02:00:00.5+01:00", "session": ""},
    {"user_id": 3, "event_type": None, "timestamp": "2017-12-01 03:00:00Z", "price": 2.5},
    {"user_id": 4, "event_type": "view", "timestamp": "2999-01-01T00:00:00Z"},
]
"""Events as JSON has them: two good ones, one without a type, one of after now."""


@pytest.mark.parametrize("which", [[0], [0, 1], [0, 1, 2], [0, 3], [0, 1, 2, 3] * 30], ids=["one", "good", "bad", "late", "many"])
@pytest.mark.parametrize("large", [False, True])
def test_the_same_push_under_a_key_is_the_same_as_json_or_as_any_table(tmp_path, monkeypatch, which, large):
    if large:
        monkeypatch.setattr("zoo.events.ingest.LARGE", 0)  # goes into Delta at once
    rows = [JSON[at] for at in which]
    names = ["timestamp", "user_id", "item_id", "event_type", "session", "price", "discount"]
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns["session"] = [None if value is None else str(value) for value in columns["session"]]
    text = pa.table({**columns, "price": pa.array(columns["price"], pa.float64()), "discount": pa.nulls(len(rows), pa.float64())})
    read = pl.Series(columns["timestamp"]).str.replace(" ", "T").str.to_datetime(time_unit="us", time_zone="UTC").to_arrow()
    instants = text.set_column(0, "timestamp", read)
    number = instants.drop_columns(["timestamp"]).append_column("time", read.cast(pa.int64()))
    forms = [rows, text, instants, number, pl.from_arrow(instants), pl.from_arrow(number).to_pandas()]
    quarantined = sum((row["event_type"] is None) + (row["timestamp"] > "2018") for row in rows)
    for first in forms:
        log = EventLog.create(tmp_path / f"log{id(first)}", LogSchema())
        assert append(log, first, idempotency_key="k", now=NOW).added == len(rows) - quarantined
        for other, few in itertools.product(forms, (64, 0)):
            monkeypatch.setattr("zoo.events.ingest.FEW", few)  # a few rows are read in a way of their own
            report = append(log, other, idempotency_key="k", now=NOW + SECOND)
            assert (report.rows, report.added, sum(report.quarantined.values())) == (len(rows), 0, quarantined)
        for changed in ([{**rows[0], "price": 4}, *rows[1:]], text.slice(1), [*rows, JSON[0]]):
            with pytest.raises(ReusedKeyError):
                append(log, changed, idempotency_key="k", now=NOW)


def test_what_is_late_today_is_the_same_push_tomorrow(log):
    assert append(log, JSON[:2], idempotency_key="k", now=0).quarantined == {"timestamp_after_now": 2}
    assert append(log, JSON[:2], idempotency_key="k", now=NOW).quarantined == {"timestamp_after_now": 2}


def test_one_naive_time_of_a_push_is_kept_apart_and_the_others_are_taken(log):
    row = {"user_id": 1, "event_type": "view", "timestamp": "2019-07-01T06:00:00Z"}
    naive = {**row, "timestamp": "2019-07-01T06:00:00"}
    for key, push in (("list", [row, naive, {**row, "timestamp": "soon"}]), ("table", pl.DataFrame([row, naive]))):
        report = append(log, push, idempotency_key=key)
        assert (report.added, report.quarantined["timestamp_naive"]) == (1, 1)
    assert json.loads(log.quarantine.table()["record"][0].as_py()) == naive
    for push in ([naive], [naive, {**row, "timestamp": "soon"}], pl.DataFrame([naive] * 70)):  # the fault of what sends them
        with pytest.raises(
            SchemaError, match=r"'timestamp' holds naive times \('2019-07-01T06:00:00'\); expected .* with an offset"
        ):
            append(log, push, idempotency_key="naive")
    assert log.count() == 2


def test_a_file_with_a_naive_time_is_refused_whole(log, tmp_path):
    path = tmp_path / "events.csv"  # taken in part it would be known, and its other rows never taken
    path.write_text("user_id,item_id,event_type,timestamp\n1,1,view,2019-07-01T06:00:00Z\n1,1,view,2019-07-01T06:00:00\n")
    with pytest.raises(SchemaError, match="holds naive times"):
        ingest(log, path)
    assert log.count() == 0


def test_a_push_of_long_before_the_log_began_is_taken_and_told(log):
    row = {"user_id": 1, "item_id": 1, "event_type": "view", "timestamp": "2019-07-01T06:00:00Z"}
    assert append(log, [row], idempotency_key="first").warnings == ()
    log.flush()
    assert append(log, [{**row, "timestamp": "2018-07-02T00:00:00Z"}], idempotency_key="earlier").warnings == ()
    old = {**row, "timestamp": "1970-01-01T00:00:00Z"}
    [warning] = append(log, [row, old], idempotency_key="old").warnings
    assert warning.startswith(
        "the oldest of these events is of 1970-01-01 00:00 UTC, 18,078 days before the first that this log had (2019-07-01 06:00 UTC)"
    )
    [warning] = append(
        log, pl.DataFrame([row] * 70 + [{**row, "timestamp": "0001-01-01T00:00:00Z"}]), idempotency_key="older"
    ).warnings
    assert "of 0001-01-01 00:00 UTC" in warning
    log.flush()
    assert append(log, [old], idempotency_key="again").warnings == ()
    assert append(log, [old], idempotency_key="again").warnings == ()


def test_a_key_from_before_bodies_were_told_apart_adds_nothing(log):
    key = f"key:{hashlib.sha256(b'k').hexdigest()}"
    with log.writing(), log.start() as files:
        log.finish(files, {key: 3})
    report = append(log, events(2), idempotency_key="k")
    assert (report.rows, report.added, report.repeated) == (3, 0, 3)


def test_pushes_that_wait_together_under_one_key_are_one_and_refusals(log):
    with ThreadPoolExecutor(8) as pool:
        told = [pool.submit(append, log, events(1 + number % 2), idempotency_key="k") for number in range(32)]
    errors = [type(each.exception()) for each in told if each.exception()]
    assert errors == [ReusedKeyError] * 16
    assert sum(each.result().added for each in told if not each.exception()) == log.count() in (1, 2)


def test_a_key_cannot_stand_for_a_file(log, write):
    path = write(events(2))
    ingest(log, path)
    source = log.table(columns=["source"])["source"][0].as_py()
    assert source.startswith("sha256:")
    assert append(log, events(1), idempotency_key=source).added == 1


@pytest.mark.parametrize("key", ["", "k" * 201])
def test_a_key_that_cannot_be_meant_is_refused(log, key):
    with pytest.raises(UsageError, match="expected 1 to 200"):
        append(log, events(1), idempotency_key=key)


def test_an_empty_push_and_an_empty_file_are_fine(log, write):
    assert append(log, events(0), idempotency_key="k").rows == 0
    assert ingest(log, write(events(0))).rows == 0
    assert append(log, []).warnings == ("no rows were given, so nothing was appended",)
    assert log.count() == 0


def test_a_push_with_a_type_that_the_log_does_not_have_is_taken_and_told(log):
    row = {"user_id": 1, "item_id": 1, "event_type": "purchase", "timestamp": "2024-01-01T00:00:00Z"}
    assert append(log, [row], idempotency_key="first").warnings == ()  # the log was empty: every type is new
    assert append(log, [row], idempotency_key="again").warnings == ()
    report = append(log, [{**row, "event_type": "purchse"}, row], idempotency_key="misspelt")
    assert report.added == 2
    [warning] = report.warnings
    assert warning.startswith("event_type 'purchse' is new to this log, which has: purchase; ")
    assert append(log, [{**row, "event_type": "purchse"}], idempotency_key="known").warnings == ()
    table = pl.DataFrame([{**row, "event_type": "refund"}] * 40)
    assert [w[:20] for w in append(log, table, idempotency_key="many").warnings] == ["event_type 'refund' "]


@pytest.mark.parametrize(
    ("timestamp", "said"),
    [
        (1_717_200_000, "column 'timestamp' is int64; expected times with an offset, as in 2018-01-01T12:00:00Z"),
        (datetime(2024, 1, 1), "'timestamp' holds naive times .*; expected times with an offset, as in 2018-01-01T12:00:00Z"),
    ],
)
def test_times_of_a_push_that_cannot_be_read_are_refused_without_advice_for_files(log, timestamp, said):
    row = {"user_id": 1, "item_id": 1, "event_type": "purchase", "timestamp": timestamp}
    with pytest.raises(SchemaError, match=f"{said}$"):
        append(log, pl.DataFrame([row]), idempotency_key="k")


def test_a_push_with_items_that_nothing_names_is_taken_and_told_once(log):
    row = {"user_id": 1, "item_id": 1, "event_type": "purchase", "timestamp": "2024-01-01T00:00:00Z"}
    assert append(log, [row], idempotency_key="first").warnings == ()  # the log was empty: every item is new
    log.put_table("items", pl.DataFrame({"item_id": [2], "category": ["tea"]}))
    assert append(log, [row, {**row, "item_id": 2}], idempotency_key="known").warnings == ()
    [warning] = append(log, [{**row, "item_id": item} for item in (7, 1, 8, 7)], idempotency_key="new").warnings
    assert warning.startswith("item_id 7 and 1 more are new to this log: no event before and no row of the item table")
    assert append(log, [{**row, "item_id": 7}], idempotency_key="again").warnings == ()
    table = pl.DataFrame([{**row, "item_id": 9}] * 40)
    assert [w[:17] for w in append(log, table, idempotency_key="many").warnings] == ["item_id 9 is new "]


# What is read


@pytest.mark.parametrize("kind", [lambda t: t, pl.from_arrow, lambda t: t.to_pandas(), lambda t: t.to_batches()[0]])
def test_a_push_comes_in_any_table(log, kind):
    table = events(3, event_id=["a", "b", "c"], price=[1.0, None, 2.5])
    append(log, kind(table))
    assert log.table()["user_id"].to_pylist() == [0, 1, 2]
    assert log.table()["price"].to_pylist() == [1.0, None, 2.5]
    assert log.table()["time"].to_pylist() == [(MORNING + i) * SECOND for i in range(3)]


def test_a_push_of_json_objects_keeps_the_types_of_json(log):
    rows = [
        {"user_id": 1, "event_type": "view", "timestamp": "2019-07-01T06:00:00Z", "event_id": "a", "price": 3},
        {"user_id": "1", "event_type": "view", "timestamp": "2019-07-01T06:00:00Z", "event_id": "b"},
        {"user_id": 2, "event_type": 5, "timestamp": "2019-07-01T06:00:00Z", "event_id": "c"},
        {"user_id": 2, "event_type": "view", "timestamp": 1561960800, "event_id": "d"},
        {"user_id": 2.0, "event_type": "view", "timestamp": "2019-07-01T08:00:00+02:00", "event_id": "e", "price": None},
    ]
    report = append(log, rows)
    assert report.quarantined == {"event_type_invalid": 1, "timestamp_unreadable": 1, "user_id_invalid": 1}
    assert log.table(columns=["user_id", "price", "item_id"]).to_pylist() == [
        {"user_id": 1, "price": 3.0, "item_id": None},
        {"user_id": 2, "price": None, "item_id": None},
    ]
    assert len(set(log.table()["time"].to_pylist())) == 1
    assert json.loads(log.quarantine.table()["record"][0].as_py())["user_id"] == "1"


@pytest.mark.parametrize("frame", [7, "events", [["a"]], {"user_id": [1]}])
def test_a_push_of_something_else_is_refused(log, frame):
    with pytest.raises((UsageError, SchemaError)):
        append(log, frame, idempotency_key="k")


def test_what_a_log_gives_can_be_pushed_to_another(log, tmp_path):
    append(log, events(4), idempotency_key="k")
    other = EventLog.create(tmp_path / "other", LogSchema())
    assert append(other, log.table(), idempotency_key="copy").added == 4
    assert other.table(columns=["user_id", "time"]).equals(log.table(columns=["user_id", "time"]))


def test_a_mapping_renames_and_what_has_no_place_is_named(log, write):
    table = events(2, colour=["red", "blue"]).rename_columns(["visitor", "sku", "event_type", "timestamp", "colour"])
    report = ingest(log, write(table), mapping={"visitor": "user_id", "sku": "item_id"})
    assert report.ignored == ("colour",)
    assert log.table()["item_id"].to_pylist() == [0, 1]


def test_further_columns_are_kept_in_their_declared_type(tmp_path, write):
    schema = LogSchema(extra={"arm": "int64", "rate": "float64", "campaign_id": "string", "mobile": "bool"})
    log = EventLog.create(tmp_path / "log", schema)
    table = events(2, arm=[1.0, None], rate=[1, 2], campaign_id=pa.array(["x", None]).dictionary_encode(), mobile=[True, None])
    ingest(log, write(table))
    got = log.table(columns=list(schema.extra)).to_pylist()
    assert got == [
        {"arm": 1, "rate": 1.0, "campaign_id": "x", "mobile": True},
        {"arm": None, "rate": 2.0, "campaign_id": None, "mobile": None},
    ]


def test_identifiers_keep_every_character(tmp_path, write):
    log = EventLog.create(tmp_path / "log", LogSchema(user_id="string", item_id="string"))
    users = ["žlutý kůň", "007", " spaced ", "🐎", "e\u0301", "\u00e9", "line\nbreak"]
    ingest(log, write(events(7).set_column(0, "user_id", pa.array(users)).set_column(1, "item_id", pa.array(users))))
    assert log.table()["user_id"].to_pylist() == users
    assert log.dictionary("item_id").encode(users).tolist() == list(range(2, 9))


def test_a_csv_keeps_leading_zeros_quotes_and_line_breaks(tmp_path):
    log = EventLog.create(tmp_path / "log", LogSchema(user_id="string", extra={"note": "string"}))
    path = tmp_path / "events.csv"
    path.write_text(
        "\ufeffuser_id,item_id,event_type,timestamp,price,note\n"
        '007,1,view,2019-07-01 06:00:00 UTC,2.5,"two\nlines, ""quoted"""\n'
        "7, 2 ,cart,2019-07-01T06:00:01.25Z,,\n",
        encoding="utf-8",
    )
    ingest(log, path)
    assert log.table(columns=["user_id", "item_id", "time", "price", "note"]).to_pylist() == [
        {"user_id": "007", "item_id": 1, "time": MORNING * SECOND, "price": 2.5, "note": 'two\nlines, "quoted"'},
        {"user_id": "7", "item_id": 2, "time": MORNING * SECOND + 1_250_000, "price": None, "note": None},
    ]


def test_broken_lines_of_a_csv_are_quarantined_under_their_row(log, tmp_path):
    path = tmp_path / "events.csv"
    path.write_bytes(
        b"user_id;item_id;event_type;timestamp\n"
        b"1;1;view;2019-07-01T06:00:00Z\n"
        b"2;2;view\n"
        b"3;3;vi\xffew;2019-07-01T06:00:00Z\n"
        b"x;4;view;2019-07-01T06:00:00Z\n"
        b"5;5;view;2019-07-01T06:00:00Z\n"
        b"6;6;view;2019-07-01T06:00:00Z;more\n"
    )
    report = ingest(log, path)
    assert whole(report)
    assert log.table()["row"].to_pylist() == [0, 4]
    bad = {r["row"]: (r["reason"], r["record"]) for r in log.quarantine.table().to_pylist()}
    assert {row: reason for row, (reason, _) in bad.items()} == {
        1: "row_malformed",
        2: "text_not_utf8",
        3: "user_id_invalid",
        5: "row_malformed",
    }
    assert bad[1][1] == "2;2;view"


def test_rows_keep_their_numbers_over_many_blocks_of_a_csv(log, tmp_path):
    path = tmp_path / "events.csv"
    count, broken = 300_000, {0, 7, 150_000, 299_999}
    lines = [f"{i % 99},{i},view,2019-07-01T06:00:00Z" if i not in broken else "broken" for i in range(count)]
    path.write_text("user_id,item_id,event_type,timestamp\n" + "\n".join(lines) + "\n")
    report = ingest(log, path)
    assert report.added == count - len(broken)
    table = log.table(columns=["item_id", "row"])
    assert table["item_id"].to_pylist() == table["row"].to_pylist()
    assert set(log.quarantine.table()["row"].to_pylist()) == broken


@pytest.mark.parametrize("pack", [False, True])
def test_lines_of_json_are_read_one_by_one_where_some_are_bad(log, tmp_path, pack):
    good = {"user_id": 1, "item_id": 2, "event_type": "view", "timestamp": "2019-07-01T06:00:00Z"}
    lines = [good, "", "{broken", [1], {**good, "user_id": "1"}, {**good, "price": float("nan")}, {**good, "deep": {"a": [1]}}]
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    path = tmp_path / ("events.ndjson.gz" if pack else "events.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    report = ingest(log, path)
    assert (report.rows, report.added) == (6, 2)
    assert report.quarantined == {"price_not_finite": 1, "row_malformed": 2, "user_id_invalid": 1}
    assert log.table()["row"].to_pylist() == [0, 6]


def test_lines_of_json_give_the_same_events_quickly_and_carefully(tmp_path):
    rows = [
        {"user_id": i, "item_id": None, "event_type": "é", "timestamp": "2019-07-01 06:00", "session": i, "price": i}
        for i in range(50)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    logs = []
    for name, body in {"quick": text, "careful": text + "\n"}.items():
        log = EventLog.create(tmp_path / name, LogSchema(timezone="UTC"))
        (tmp_path / f"{name}.ndjson").write_text(body, encoding="utf-8")
        assert ingest(log, tmp_path / f"{name}.ndjson").added == 50
        logs.append(log.table().drop_columns(["source"]))
    assert logs[0].equals(logs[1])


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2019-07-01T06:00:00Z", 0),
        ("2019-07-01 06:00:00 UTC", 0),
        ("2019-07-01 08:00:00.000001+02:00", 1),
        ("2019-07-01T03:30:00-0230", 0),
        ("2019-07-01 07:00", 0),
        ("2019-06-31 00:00:00Z", None),
        ("July 1st", None),
    ],
)
def test_times_as_text_are_iso_8601_and_naive_ones_are_local(tmp_path, text, micros):
    log = EventLog.create(tmp_path / "log", LogSchema(timezone="Europe/London"))
    report = append(log, [{"user_id": 1, "event_type": "v", "timestamp": text}], idempotency_key="k", now=NOW)
    if micros is None:
        assert report.quarantined == {"timestamp_unreadable": 1}
    else:
        assert log.end() == MORNING * SECOND + micros


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_every_unit_are_microseconds(log, write, unit):
    times = pa.array([MORNING], pa.timestamp("s", "UTC")).cast(pa.timestamp(unit, "UTC"))
    ingest(log, write(events(1).set_column(3, "timestamp", times)))
    assert log.end() == MORNING * SECOND


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 1_000), ("ns", 10**9)])
def test_whole_number_times_need_a_unit(log, write, unit, scale):
    path = write(events(1).set_column(3, "timestamp", pa.array([MORNING * scale])))
    with pytest.raises(
        SchemaError, match=r"'timestamp' is int64.*say their unit \(s, ms, us or ns\): time_unit under \[ingest\]"
    ):
        ingest(log, path)
    ingest(log, path, time_unit=unit)
    assert log.end() == MORNING * SECOND


def test_an_hour_that_clocks_skip_is_quarantined_and_one_that_repeats_is_the_first(tmp_path, write):
    log = EventLog.create(tmp_path / "log", LogSchema(timezone="Europe/London"))
    local = pa.array(pd.to_datetime(["2019-03-31 01:30", "2019-10-27 01:30"]))
    report = ingest(log, write(events(2).set_column(3, "timestamp", local)))
    assert report.quarantined == {"timestamp_skipped_by_clock": 1}
    assert log.end() == pd.Timestamp("2019-10-27 00:30Z").value // 1_000


# Bad rows

BAD = {
    "user_id_null": {"user_id": pa.array([None, 1])},
    "user_id_invalid": {"user_id": [1.5, 1.0]},
    "item_id_invalid": {"item_id": pa.array([2**63, 1], pa.uint64())},
    "event_type_null": {"event_type": [None, "view"]},
    "event_type_unknown": {"event_type": ["dance", "view"]},
    "timestamp_null": {"timestamp": pa.array([None, 1], pa.timestamp("us", "UTC"))},
    "timestamp_unreadable": {"timestamp": ["yesterday", "2019-07-01T06:00:00Z"]},
    "timestamp_after_now": {"timestamp": pa.array([NOW + 1, NOW], pa.timestamp("us", "UTC"))},
    "price_not_finite": {"price": pl.Series([float("nan"), 1.0]).to_arrow()},
    "quantity_not_finite": {"quantity": [float("-inf"), 1.0]},
    "value_too_large": {"value": [1e300, -1e10]},
    "rate_not_finite": {"rate": [float("inf"), 1.0]},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_quarantined_with_its_reason_and_the_good_one_stays(tmp_path, write, reason):
    log = EventLog.create(tmp_path / "log", LogSchema(event_types=("view",), extra={"rate": "float64"}))
    table = events(2)
    for name, values in BAD[reason].items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, pa.array(values) if isinstance(values, list) else values)
    path = write(table)
    report = ingest(log, path, now=NOW)
    assert report.quarantined == {reason: 1}
    assert (report.rows, report.added) == (2, 1)
    (row,) = log.quarantine.table().to_pylist()
    assert (row["row"], row["reason"], row["ingested_at"]) == (0, reason, NOW)
    assert json.loads(row["record"])["item_id"] == table["item_id"][0].as_py()
    again = ingest(log, path, now=NOW)
    assert (again.added, again.repeated, again.quarantined) == (0, 1, {reason: 1})
    assert log.quarantine.counts() == {reason: 1}


def test_an_empty_text_is_nobody(tmp_path, write):
    log = EventLog.create(tmp_path / "log", LogSchema(user_id="string", item_id="string"))
    table = events(2).set_column(0, "user_id", pa.array(["", "a"])).set_column(1, "item_id", pa.array(["b", ""]))
    assert ingest(log, write(table)).quarantined == {"user_id_null": 1}
    assert log.table()["item_id"].to_pylist() == [None]


def test_a_position_that_no_clock_can_hold_is_quarantined(tmp_path, write):
    log = EventLog.create(tmp_path / "log", LogSchema(clock="order"))
    report = ingest(log, write(without(events(3), "timestamp").append_column("position", pa.array([1, 2**60, None]))), now=0)
    assert report.quarantined == {"position_invalid": 1, "position_null": 1}
    assert log.end() == SECOND


def test_bad_rows_of_a_repeated_push_are_kept_once(log):
    table = events(2, event_id=["a", "b"], price=[float("inf"), 1.0])
    append(log, table)
    append(log, table)
    assert log.quarantine.counts() == {"price_not_finite": 1}


def test_bad_rows_leave_no_trace_in_the_dictionaries(log, write):
    ingest(log, write(events(2, price=[float("inf"), 1.0])))
    assert log.dictionary("item_id").ids == [1]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 0, 1, 2]),
            st.sampled_from(["view", "dance", None]),
            st.sampled_from([0, NOW // 2, NOW + 1, None]),
            st.sampled_from([1.0, float("inf"), None]),
            st.sampled_from([None, "a", "b", "c"]),
        ),
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_every_row_is_in_the_log_or_repeated_or_in_quarantine(tmp_path_factory, rows, pieces):
    log = EventLog.create(tmp_path_factory.mktemp("log"), LogSchema(event_types=("view",)))
    good = seen = 0
    known = set()
    for number in range(pieces):
        piece = rows[number::pieces]
        columns = list(zip(*piece)) or [()] * 5
        types = [pa.int64(), pa.string(), pa.timestamp("us", "UTC"), pa.float64(), pa.string()]
        names = ["user_id", "event_type", "timestamp", "price", "event_id"]
        table = pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types)})
        report = append(log, table, idempotency_key=f"k{number}", now=NOW)
        assert whole(report)
        seen += report.rows
        for user, kind, time, price, name in piece:
            fine = user is not None and kind == "view" and time is not None and time <= NOW and price != float("inf")
            good += fine and (name is None or name not in known)
            known |= {name} if fine and name is not None else set()
    assert seen == len(rows)
    assert log.count() == good
    assert log.table()["seq"].to_pylist() == list(range(good))


# Refused whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: without(t, "user_id"),
            r"no column 'user_id'; found: item_id, event_type, timestamp.*THEIRS = \"user_id\" under \[ingest.columns\] in zoo.toml",
        ),
        (lambda t: without(t, "item_id"), "no column 'item_id'.*add an empty one"),
        (lambda t: without(t, "timestamp"), "no column 'timestamp'"),
        (lambda t: t.set_column(0, "user_id", pa.array(["1", "2", "3"])), "'user_id' is string; expected whole numbers"),
        (lambda t: t.set_column(0, "user_id", pa.array([True] * 3)), "'user_id' is bool; expected whole numbers"),
        (lambda t: t.set_column(2, "event_type", pa.array([1, 2, 3])), "'event_type' is int64; expected text"),
        (lambda t: t.append_column("price", pa.array(["1"] * 3)), "'price' is string; expected numbers"),
        (lambda t: t.append_column("session", pa.array([0.5] * 3)), "'session' is double; expected text or whole numbers"),
        (lambda t: t.set_column(3, "timestamp", pa.array([0] * 3, pa.timestamp("us"))), "naive times.*states a timezone"),
        (lambda t: t.set_column(3, "timestamp", pa.array(["2019-07-01 06:00:00"] * 3)), "naive times"),
        (lambda t: t.set_column(3, "timestamp", pa.array([1.5] * 3)), "'timestamp' is double; expected times"),
        (lambda t: t.append_column("user_id", t["user_id"]), "'user_id' 2 times"),
    ],
)
def test_a_wrong_schema_is_refused_whole_and_named(log, write, change, said):
    with pytest.raises(SchemaError, match=said):
        ingest(log, write(change(events(3))))
    assert (log.count(), log.version(), log.quarantine.counts(), log.dictionaries.names()) == (0, 0, {}, [])
    assert list(log.root.rglob("*.parquet")) == []


def test_text_identifiers_refuse_numbers(tmp_path, write):
    log = EventLog.create(tmp_path / "log", LogSchema(user_id="string"))
    with pytest.raises(SchemaError, match=r"'user_id' is int64; expected text.*\"1\" and 1 are different"):
        ingest(log, write(events(2)))


def test_one_wrong_file_among_several_stops_all_of_them(log, write):
    good, bad = write(events(2)), write(without(events(2), "user_id"), "bad.parquet")
    with pytest.raises(SchemaError, match=r"bad.parquet: no column 'user_id'"):
        ingest(log, [good, bad])
    assert log.count() == 0
    assert ingest(log, [good]).added == 2


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"visitor": "user_id"}, "column in the mapping 'visitor'; choose one of: event_type"),
        ({"user_id": "client"}, "column to map to 'client'; choose one of: event_id"),
        ({"user_id": "session", "item_id": "session"}, "names 'session' for several columns"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(log, write, mapping, said):
    with pytest.raises(UsageError, match=said):
        ingest(log, write(events(1)), mapping=mapping)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("events.parquet", b"not parquet", SchemaError),
        ("events.parquet", b"", SchemaError),
        ("events.csv", b"", SchemaError),
        ("events.csv", b"a,b\n1,2\n", SchemaError),
        ("events.csv.gz", b"not gzip", SchemaError),
        ("events.ndjson", b"[1, 2]\n", SchemaError),
        ("events.xlsx", b"PK", UsageError),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(log, tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match="events"):
        ingest(log, tmp_path / name)
    assert log.count() == 0


def test_a_missing_file_is_named(log, tmp_path):
    with pytest.raises(UsageError, match=r"no file .*absent.csv"):
        ingest(log, tmp_path / "absent.csv")


def test_a_file_that_ends_too_early_leaves_nothing(log, tmp_path):
    lines = "".join(f"{i},{i},view,2019-07-01T06:00:00Z\n" for i in range(200_000))
    packed = gzip.compress(f"user_id,item_id,event_type,timestamp\n{lines}".encode(), 1)
    path = tmp_path / "events.csv.gz"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(SchemaError, match="cannot be read to its end"):
        ingest(log, path)
    assert (log.count(), log.quarantine.counts()) == (0, {})
    assert list(log.root.rglob("*.parquet")) == []
    path.write_bytes(packed)
    assert ingest(log, path).added == 200_000


def test_a_file_that_changes_while_it_is_read_is_refused(log, write):
    path = write(events(3))

    def meddle(done, _):
        os.utime(path, ns=(0, int(done * 1e9)))

    with pytest.raises(SchemaError, match="changed while it was read"):
        ingest(log, path, progress=meddle)
    assert log.count() == 0


# Crashes, rivals and full disks

CHILD = """
import os, signal, sys
from zoo.events.ingest import ingest, append
from zoo.events.log import EventLog
root, path, moment = sys.argv[1:4]
log = EventLog.open(root)
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if moment == "reading":
    ingest(log, path, now=2_000_000_000_000_000, progress=lambda done, _: done > 0.5 and die())
real = log.finish
def last(files, transactions):
    if moment == "after": real(files, transactions)
    die()
log.finish = last
if moment == "before coding": log.dictionaries.extend = die
ingest(log, path, now=2_000_000_000_000_000)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of several chunks with some bad rows."""
    path = tmp_path_factory.mktemp("large") / "events.parquet"
    count = 270_000
    price = np.ones(count)
    price[::1000] = np.inf
    pq.write_table(events(count, price=price), path)
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory, large):
    """What an undisturbed ingest of that file makes."""
    log = EventLog.create(tmp_path_factory.mktemp("clean"), LogSchema())
    ingest(log, large, now=NOW)
    return contents(log)


@pytest.mark.parametrize("moment", ["reading", "before coding", "before", "after"])
def test_a_killed_ingest_leaves_a_whole_log_and_a_rerun_completes_it(log, large, clean, moment):
    run = subprocess.run([sys.executable, "-c", CHILD, log.root, large, moment], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    found = EventLog.open(log.root)
    assert found.count() == (clean[0].num_rows if moment == "after" else 0)
    assert found.table().num_rows == found.count()
    report = ingest(found, large, now=NOW)
    assert report.added == (0 if moment == "after" else clean[0].num_rows)
    assert contents(found) == clean
    named = {f.name for f in found.snapshot().files}
    assert {p.name for p in (log.root / "log").glob("*.parquet")} == named


def test_an_interrupted_ingest_leaves_a_whole_log_and_a_rerun_completes_it(log, large, clean):
    with pytest.raises(KeyboardInterrupt):
        ingest(log, large, now=NOW, progress=lambda done, _: signal.raise_signal(signal.SIGINT) if done > 0.5 else None)
    assert log.count() == 0
    assert list((log.root / "log").glob("*.parquet")) == []
    ingest(log, large, now=NOW)
    assert contents(log) == clean


def test_a_row_that_a_later_clock_accepts_is_not_kept_twice(log, write, monkeypatch):
    path = write(events(2))
    with monkeypatch.context() as patch:
        patch.setattr(log, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest(log, path, now=MORNING * SECOND)
    assert log.quarantine.counts() == {"timestamp_after_now": 1}
    assert ingest(log, path, now=NOW).added == 2
    assert log.quarantine.counts() == {}


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from zoo.errors import ZooError
from zoo.events.ingest import ingest
from zoo.events.log import EventLog
log = EventLog.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    ingest(log, sys.argv[2], now=2_000_000_000_000_000)
except ZooError as error:
    sys.exit(f"said: {error}")
"""


@pytest.mark.parametrize("quota", [100, 3_000, 100_000])
def test_a_full_disk_is_said_and_leaves_a_whole_log(log, large, clean, quota):
    run = subprocess.run([sys.executable, "-c", FULL, log.root, large, str(quota)], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert "said: could not ingest" in run.stderr
    assert "free space" in run.stderr
    assert EventLog.open(log.root).count() == 0
    assert ingest(log, large, now=NOW).added == clean[0].num_rows
    assert contents(log) == clean


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="could not make a log in"):
        EventLog.create(tmp_path / "file" / "log", LogSchema())


RIVAL = """
import sys
import pyarrow as pa
from zoo.events.ingest import ingest, append
from zoo.events.log import EventLog
log, name = EventLog.open(sys.argv[1]), sys.argv[3]
for i in range(10):
    table = pa.table({"user_id": [i], "item_id": [int(name)], "event_type": [name], "time": [i]})
    append(log, table, idempotency_key=f"{name}-{i}", now=10)
print(ingest(log, sys.argv[2], now=2_000_000_000_000_000).added)
"""


def test_two_processes_write_one_after_the_other(log, large, clean):
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, log.root, large, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in ("1", "2")
    ]
    said = [rival.communicate() for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0], said
    assert sorted(int(out) for out, _ in said) == [0, clean[0].num_rows]
    table = log.table(columns=["seq", "event_type"])
    assert np.array_equal(table["seq"], np.arange(clean[0].num_rows + 20))
    assert table["event_type"].value_counts().to_pylist().count({"values": "1", "counts": 10}) == 1
    assert sorted(log.dictionary("event_type").ids) == ["1", "2", "view"]


def test_a_writer_that_waits_says_so_and_goes_on(log, write):
    path = write(events(2))
    said, holding, reports = [], threading.Event(), []

    def progress(_, text):
        said.append(text)
        holding.set()

    with log.writing():
        waiting = threading.Thread(target=lambda: reports.append(ingest(log, path, progress=progress)))
        waiting.start()
        assert holding.wait(30)
        assert reports == []
    waiting.join()
    assert said[0] == "waiting for another writer"
    assert reports[0].added == 2


def test_progress_goes_from_nothing_to_all(log, large):
    steps = []
    ingest(log, large, now=NOW, progress=lambda done, text: steps.append((done, text)))
    done = [d for d, _ in steps]
    assert done == sorted(done)
    assert done[-1] == 1
    assert {text for _, text in steps} == {"ingest events.parquet"}
