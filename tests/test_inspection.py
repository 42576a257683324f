"""Looking at a file proposes the schema and the mapping with which ingest takes it."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zoo.errors import SchemaError, UsageError
from zoo.events.ingest import ingest
from zoo.events.inspection import LABELS, inspect
from zoo.events.log import EventLog

TIMES = pa.array([1_561_960_800, 1_561_960_801], pa.timestamp("s", "UTC"))


@pytest.fixture
def write(tmp_path):
    def write(name="events.parquet", **columns):
        path = tmp_path / name
        pq.write_table(pa.table(columns), path)
        return path

    return write


def taken(found, tmp_path):
    """The log that the proposal makes of the file."""
    log = EventLog.create(tmp_path / "log", found.schema)
    report = ingest(log, found.path, mapping=found.mapping, time_unit=found.time_unit)
    assert report.rows == found.rows
    assert sorted(report.ignored) == sorted(found.left_out)
    return log


def test_columns_go_by_the_names_of_other_shops(write, tmp_path):
    path = write(
        **{
            "Customer ID": [1, 2],
            "StockCode": ["85123A", "71053"],
            "Action": ["view", "cart"],
            "InvoiceDate": TIMES,
            "Invoice_No": ["536365", None],
            "UnitPrice": [2.5, None],
            "Qty": [6, 1],
        }
    )
    found = inspect(path)
    assert found.mapping == {
        "Customer ID": "user_id",
        "StockCode": "item_id",
        "Action": "event_type",
        "InvoiceDate": "timestamp",
        "Invoice_No": "session",
        "UnitPrice": "price",
        "Qty": "quantity",
    }
    assert (found.schema.user_id, found.schema.item_id, found.schema.session) == ("int", "string", True)
    assert found.event_types == {"view": 1, "cart": 1}
    assert (found.nulls["price"], found.nulls["user_id"]) == (1, 0)
    assert taken(found, tmp_path).table(columns=["session", "quantity"]).to_pylist() == [
        {"session": "536365", "quantity": 6.0},
        {"session": None, "quantity": 1.0},
    ]


def test_a_mapping_goes_before_names(write, tmp_path):
    path = write(user_id=[1, 2], buyer=["a", "b"], item_id=[1, 1], event_type=["v", "v"], timestamp=TIMES)
    found = inspect(path, mapping={"buyer": "user_id"})
    assert found.schema.user_id == "string"
    assert "user_id" in found.left_out
    assert taken(found, tmp_path).dictionary("user_id").ids == ["a", "b"]


def test_positions_without_times_make_an_order_only_log(write, tmp_path):
    nothing = pa.nulls(2, pa.timestamp("ms", "UTC"))
    found = inspect(write(user_id=[1, 1], item_id=[1, 2], event_type=["rate", "rate"], timestamp=nothing, position=[1, 2]))
    assert found.schema.clock == "order"
    assert "timestamp" in found.left_out
    assert taken(found, tmp_path).table()["time"].to_pylist() == [1_000_000, 2_000_000]


def test_times_win_over_positions(write):
    found = inspect(write(user_id=[1, 1], item_id=[1, 2], event_type=["v", "v"], timestamp=TIMES, position=[1, 2]))
    assert (found.schema.clock, found.naive) == ("time", False)


def test_naive_times_are_said_and_a_timezone_answers(write, tmp_path):
    path = write(user_id=[1, 1], item_id=[1, 2], event_type=["v", "v"], timestamp=TIMES.cast(pa.timestamp("s")))
    assert inspect(path).naive
    found = inspect(path, timezone="Europe/London")
    assert taken(found, tmp_path).end() == (1_561_960_801 - 3600) * 1_000_000


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_the_unit_of_whole_number_times_follows_from_their_size(write, tmp_path, unit, scale):
    path = write(user_id=[1, 1], item_id=[1, 2], event_type=["v", "v"], timestamp=[1_561_960_800 * scale, 1_561_960_801 * scale])
    found = inspect(path)
    assert found.time_unit == unit
    assert taken(found, tmp_path).end() == 1_561_960_801 * 1_000_000


@pytest.mark.parametrize(
    ("ids", "kind"),
    [(["1", "2"], "int"), (["01", "2"], "string"), (["1", "a"], "string"), (["1.0", "2"], "string"), (["", "2"], "int")],
)
def test_a_csv_has_int_identifiers_only_where_no_character_is_lost(tmp_path, ids, kind):
    path = tmp_path / "events.csv"
    rows = "".join(f"{i},5,view,2019-07-01T06:00:00Z,3\n" for i in ids)
    path.write_text(f"user_id,item_id,event_type,timestamp,arm\n{rows}")
    found = inspect(path)
    assert (found.schema.user_id, dict(found.schema.extra)) == (kind, {"arm": "int64"})
    assert set(taken(found, tmp_path).dictionary("user_id").ids) <= {*ids, 1, 2}


def test_floats_that_are_whole_are_int_identifiers(write):
    found = inspect(write(user_id=[1.0, None], item_id=[1, 2], event_type=["v", "v"], timestamp=TIMES))
    assert found.schema.user_id == "int"


def test_json_lines_are_looked_at_too(tmp_path):
    path = tmp_path / "events.ndjson"
    rows = [
        {"user_id": "u1", "item_id": 1, "event_type": "v", "timestamp": "2019-07-01T06:00:00Z", "arm": n, "deep": {}}
        for n in (1, 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect(path)
    assert (found.schema.user_id, found.schema.item_id, dict(found.schema.extra)) == ("string", "int", {"arm": "int64"})
    assert set(found.left_out) == {"deep"}
    assert taken(found, tmp_path).count() == 2


def test_free_text_empty_columns_and_reserved_names_are_left_out_and_said(write):
    count = LABELS + 1
    found = inspect(
        write(
            user_id=range(count),
            item_id=range(count),
            event_type=["v"] * count,
            timestamp=pa.array(range(count), pa.timestamp("s", "UTC")),
            note=[f"text {i}" for i in range(count)],
            nothing=pa.nulls(count),
            seq=range(count),
            colour=["red"] * count,
        )
    )
    assert set(found.left_out) == {"note", "nothing", "seq"}
    assert dict(found.schema.extra) == {"colour": "string"}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"item_id": [1], "event_type": ["v"], "timestamp": [1]},
            r"no column looks like 'user_id'; found: item_id.*--column user_id=THEIRS, in Python mapping=\{'THEIRS': 'user_id'\}",
        ),
        (
            {"user_id": [1], "item_id": [1], "event_type": ["v"]},
            "no column holds times.*--column timestamp=THEIRS, in Python mapping=",
        ),
        ({"user_id": pa.array([], pa.int64())}, "holds no rows"),
    ],
)
def test_a_file_that_cannot_be_a_log_is_refused(write, columns, said):
    with pytest.raises(SchemaError, match=said):
        inspect(write(**columns))


def test_a_mapping_of_no_column_is_refused(write):
    with pytest.raises(UsageError, match="'buyer'; choose one of: event_type, item_id"):
        inspect(write(user_id=[1], item_id=[1], event_type=["v"], timestamp=TIMES[:1]), mapping={"buyer": "user_id"})
