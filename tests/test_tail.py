"""The write-ahead tail: what was said to be taken is there once, for every reader, whoever dies when."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from faults_log import kills
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import ZooError
from zoo.events import flush, rows, tail
from zoo.events.encode import encode, encode_few
from zoo.events.few import Few
from zoo.events.ingest import append
from zoo.events.log import EventLog
from zoo.events.rows import plan
from zoo.events.schema import LogSchema
from zoo.events.segments import Rows
from zoo.events.sources import ListSource, ObjectSource, TableSource

NOW = 2_000_000_000_000_000


def events(ids, users=None, **columns):
    count = len(ids)
    frame = {"user_id": users or [1] * count, "item_id": [2] * count, "event_type": ["view"] * count, "time": [5] * count}
    return pa.table({**frame, "event_id": list(ids), **columns})


@pytest.fixture
def log(tmp_path):
    return EventLog.create(tmp_path / "log", LogSchema())


def everything(log):
    names = log.dictionaries.names()
    codes = {name: log.dictionaries.get(name, log.schema.id_type(name)).ids for name in names}
    quarantine = log.quarantine.table().sort_by([("source", "ascending"), ("row", "ascending")])
    return log.table().to_pylist(), codes, quarantine.to_pylist(), log.count(), log.end(), log.size, log.filled()


def test_a_push_is_in_the_tail_and_every_reader_sees_it(log):
    reader = EventLog.open(log.root)
    before = log.version()
    assert append(log, events(["a", "b"], users=[7, 8]), now=NOW).added == 2
    assert log.version() == before == reader.version()
    assert reader.table().to_pylist() == log.table().to_pylist() == EventLog.open(log.root).table().to_pylist()
    assert (reader.count(), reader.end(), reader.size) == (2, 5, 2)
    assert reader.dictionary("user_id").ids == [7, 8]
    assert reader.tail(0)["event_id"].to_pylist() == ["b"]


def test_a_flush_changes_nothing_that_a_reader_sees(log):
    append(log, events(["a", "b"], users=[7, 8], price=[float("inf"), 2.0]), now=NOW)
    append(log, events(["c"], users=[9]), now=NOW)
    reader = EventLog.open(log.root)
    seen = everything(log)
    assert everything(reader) == seen
    assert log.flush() == 2
    assert everything(log) == everything(reader) == everything(EventLog.open(log.root)) == seen
    assert log.flush() == 0
    assert log.lineage()["tail"] == 0


def test_events_half_in_delta_are_read_once(log, monkeypatch):
    append(log, events(["a", "b"], users=[7, 8], price=[float("inf"), 2.0]), now=NOW)
    seen = everything(log)
    with monkeypatch.context() as patch:
        patch.setattr(log.tail_file, "drop", lambda _: 1 / 0)  # dies after the commit
        with pytest.raises(ZeroDivisionError):
            log.flush()
    other = EventLog.open(log.root)
    assert everything(other) == everything(log) == seen
    append(other, events(["c"]), now=NOW)
    assert log.table()["seq"].to_pylist() == [0, 1]
    assert log.flush() == 1
    assert log.tail_file.rejected() == []
    assert log.table()["event_id"].to_pylist() == ["b", "c"]


@pytest.mark.parametrize("step", ["quarantine.take", "dictionaries.settle", "finish"])
def test_a_flush_that_dies_between_steps_is_done_by_the_next(log, monkeypatch, step):
    append(log, events(["a", "b"], users=[7, 8], price=[float("inf"), 2.0]), now=NOW)
    seen = everything(log)
    *path, name = step.split(".")
    owner = getattr(log, path[0]) if path else log
    real = getattr(owner, name)

    def die(*arguments):
        real(*arguments)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(ZeroDivisionError):
            log.flush()
    assert everything(EventLog.open(log.root)) == seen
    log.flush()
    assert everything(log) == everything(EventLog.open(log.root)) == seen


def test_ids_and_keys_count_once_wherever_the_first_lies(log):
    other = EventLog.open(log.root)
    append(log, events(["a", "b"]), now=NOW)
    assert append(other, events(["b", "c", "c"]), now=NOW).repeated == 2
    assert append(log, events([None, "d"]), idempotency_key="k", now=NOW).added == 2
    again = append(other, events([None, "d"]), idempotency_key="k", now=NOW)
    assert (again.rows, again.added, again.repeated) == (2, 0, 2)
    log.flush()
    assert append(other, events([None, "d"]), idempotency_key="k", now=NOW).added == 0
    assert append(log, events(["a", "c", "e"]), now=NOW).added == 1
    assert EventLog.open(log.root).append(events(["d", "e", "f"]), now=NOW).added == 1
    assert log.table()["event_id"].to_pylist() == ["a", "b", "c", None, "d", "e", "f"]


def test_a_key_is_kept_as_its_digest(log):
    append(log, events([None]), idempotency_key="order of ann@example.org", now=NOW)
    log.flush()
    commits = [path.read_text() for path in (log.root / "log" / "_delta_log").glob("*.json")]
    assert not any("ann@" in text for text in commits)
    assert append(log, events([None]), idempotency_key="order of ann@example.org", now=NOW).repeated == 1


def test_a_large_push_goes_into_delta_at_once(log, monkeypatch):
    monkeypatch.setattr("zoo.events.ingest.LARGE", 3)
    append(log, events(["a"]), now=NOW)
    append(log, events(["b", "c", "a", "d"], users=[9] * 4), now=NOW)
    assert log.lineage()["tail"] == 0
    assert log.table()["event_id"].to_pylist() == ["a", "b", "c", "d"]
    assert log.table()["seq"].to_pylist() == [0, 1, 2, 3]


def test_a_million_events_of_one_user_are_one_push(log):
    count = 1_000_000
    table = pa.table({"user_id": np.ones(count, int), "event_type": ["view"] * count, "time": np.arange(count)})
    assert append(log, table, idempotency_key="k", now=NOW).added == count
    assert log.count() == count
    assert append(log, table, idempotency_key="k", now=NOW).added == 0


def test_threads_share_transactions_and_lose_nothing(log, monkeypatch):
    monkeypatch.setattr(flush, "ROWS", 100)
    failures = []

    def work(number):
        try:
            for index in range(25):
                report = append(log, events([f"{number}-{index}", f"shared-{index}"], users=[number, index]), now=NOW)
                assert report.added + report.repeated == 2
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    log.flush()
    table = EventLog.open(log.root).table()
    assert sorted(table["event_id"].to_pylist()) == sorted(
        [f"{n}-{i}" for n in range(8) for i in range(25)] + [f"shared-{i}" for i in range(25)]
    )
    assert table["seq"].to_pylist() == list(range(225))


WRITER = """
import sys
import pyarrow as pa
from zoo.events.log import EventLog
log, name = EventLog.open(sys.argv[1]), sys.argv[2]
for i in range(40):
    ids = [f"{name}-{i}", f"shared-{i}"]
    frame = {"user_id": [i, int(name)], "item_id": [i, i], "event_type": [name, "view"], "time": [1, 2], "event_id": ids}
    log.append(pa.table(frame), now=9)
    if i % 13 == int(name):
        log.flush()
"""


def test_processes_push_and_flush_at_once(log):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, log.root, str(n)], stderr=subprocess.PIPE, text=True) for n in range(3)
    ]
    assert [(w.communicate()[1], w.returncode) for w in writers] == [("", 0)] * 3
    for reader in (log, EventLog.open(log.root)):
        table = reader.table()
        assert table["seq"].to_pylist() == list(range(160))
        assert len(set(table["event_id"].to_pylist())) == 160
        assert sorted(reader.dictionary("user_id").ids) == list(range(40))
        assert sorted(reader.dictionary("event_type").ids) == ["0", "1", "2", "view"]


@pytest.mark.parametrize(("kind", "size"), [("pushes", 10), ("ingest", 500)])
def test_killed_at_any_moment_nothing_is_lost_or_doubled_and_a_rerun_gives_what_a_clean_run_does(tmp_path, kind, size):
    found = kills(tmp_path, kind, count=2, seed=1, size=size)
    assert found["kills"] == 2
    assert (found["lost"], found["doubled"], found["torn"], found["differ after a rerun"]) == (0, 0, 0, 0)


def test_a_log_whose_tail_was_lost_takes_pushes_on(log):
    for name in "abc":
        append(log, events([name]), now=NOW)
    log.flush()
    for path in log.root.glob("tail.db*"):
        path.unlink()
    again = EventLog.open(log.root)
    append(again, events(["d"]), now=NOW)
    assert EventLog.open(log.root).table()["event_id"].to_pylist() == ["a", "b", "c", "d"]
    again.flush()
    assert again.table()["event_id"].to_pylist() == ["a", "b", "c", "d"]


def test_a_full_disk_is_said_and_the_push_may_be_repeated(log):
    append(log, events(["a"]), now=NOW)
    child = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import pyarrow as pa
from zoo.errors import ZooError
from zoo.events.log import EventLog
log = EventLog.open(sys.argv[1])
log.count()
n = 20_000
table = pa.table({"user_id": list(range(n)), "event_type": ["view"] * n, "time": [1] * n, "event_id": [str(i) for i in range(n)]})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    log.append(table, now=9)
except ZooError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(log.append(table, now=9).added)
"""
    assert resource.RLIMIT_FSIZE
    run = subprocess.run([sys.executable, "-c", child, log.root], capture_output=True, text=True, check=True)
    said, added = run.stdout.splitlines()
    assert "could not append to the log" in said
    assert "free space" in said
    assert added == "20000"
    assert log.count() == 20_001
    assert log.table()["seq"].to_pylist() == list(range(20_001))


def test_a_damaged_tail_is_named(log):
    append(log, events(["a"]), now=NOW)
    (log.root / "tail.db").write_bytes(b"not a database, and long enough to be looked at" * 100)
    for path in log.root.glob("tail.db-*"):
        path.unlink()
    with pytest.raises(ZooError, match=r"tail.db cannot be used"):
        EventLog.open(log.root).count()


def test_an_ingest_takes_the_tail_first(log, tmp_path):
    import pyarrow.parquet as pq

    append(log, events(["a"], users=[50]), now=NOW)
    path = tmp_path / "more.parquet"
    pq.write_table(events(["b", "a"], users=[60, 50]).rename_columns({"time": "timestamp"}), path)
    from zoo.events.ingest import ingest

    report = ingest(log, path, now=NOW, time_unit="us")
    assert (report.added, report.repeated) == (1, 1)
    assert log.lineage()["tail"] == 0
    assert log.table()["seq"].to_pylist() == [0, 1]
    assert log.dictionary("user_id").ids == [50, 60]


def test_a_forked_child_uses_connections_of_its_own(log):
    append(log, events(["a"]), now=NOW)
    child = os.fork()
    if not child:
        code = 1
        try:
            append(log, events(["b"]), now=NOW)
            code = int(log.count() != 2)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert append(log, events(["c", "b"]), now=NOW).added == 1
    assert log.table()["event_id"].to_pylist() == ["a", "b", "c"]


def test_rows_in_memory_are_the_rows_added():
    held, rng = Rows(pa.schema([("x", pa.int64()), ("seq", pa.int64())])), np.random.default_rng(0)
    whole, first = [], 100
    for number in range(2_000):
        size = int(rng.integers(1, 4))
        values = list(range(first, first + size))
        small = number % 1_000 < 500
        held.add(Few({"x": values}, size) if small else pa.table({"x": values, "seq": values}), first)
        whole += values
        first += size
    assert len(held.first) < 260
    for low, high in [(100, first), (333, 334), (250, 700), (0, 5), (first - 1, first), (1_000, 3_000)]:
        tables = list(held.made(held.within(low, high)))
        assert [v for part in tables for v in part["x"].to_pylist()] == [v for v in whole if low <= v < high]
        assert all(part["x"].equals(part["seq"]) for part in tables)
    assert held.few(333, 340, ["seq", "x"]) == Few({"x": list(range(333, 340))}, 7)
    assert held.few(333, 2_000, ["x"]) is None
    assert held.few(first - 1, first, ["x"]) is None
    held.drop(1_200)
    assert held.stop == first
    assert held.first[0] > 100
    assert [v for part in held.made(held.within(1_200, first)) for v in part["x"].to_pylist()] == list(range(1_200, first))


def test_few_rows_are_kept_and_encoded_as_a_table_of_them_is(tmp_path):
    schema = LogSchema(item_id="string", extra={"mobile": "bool", "rating": "float64", "arm": "int64", "note": "string"})
    log, other = (EventLog.create(tmp_path / name, schema) for name in "ab")
    frame = {
        "user_id": [1, 2, 1], "item_id": ["x", "y", "x"], "event_type": ["view", "buy", "view"], "time": [7, 6, 5],
        "event_id": ["a", "b", "c"], "session": ["9", "s", "9"], "price": [0.1, 1e-7, 3.25], "rating": [0.1, -0.0, 1e300],
        "arm": [2**53 + 1, -1, 0], "mobile": [True, False, True], "note": ["\U0001f9e1", '"', "\\"],
    }  # fmt: skip
    few = ListSource.of(frame | {"price": np.array(frame["price"])}, 64)
    assert append(log, few, now=NOW).added == append(other, pa.table(frame), now=NOW).added == 3
    large = [{name: values[0] for name, values in frame.items()} | {"event_id": str(n)} for n in range(100)]
    append(other, pa.Table.from_pylist(large), now=NOW)
    names = [name for name in schema.arrow().names if name != "source"]
    held = log.few(0, 3, names)
    assert held is not None
    assert other.few(0, 103, names) is None
    known, wanted = encode_few(log, held, 0), encode(log, log.table(columns=names))
    for one, two in [(known.columns, wanted.columns), (vars(known) | {"columns": 0}, vars(wanted) | {"columns": 0})]:
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one if name != "dictionaries")
    assert known.dictionaries == wanted.dictionaries
    rows = other.table().slice(0, 3).to_pylist()
    assert log.table().to_pylist() == rows
    assert EventLog.open(log.root).table().equals(log.table())  # as the file of the tail says
    log.flush()
    assert log.few(0, 3, names) is None
    assert log.table().to_pylist() == rows


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"a": []},
        {"a": [1, 2], "b": [1]},
        {"a": [1, "x"]},
        {"a": [None]},
        {"a": (1, 2)},
        {1: [1]},
        {"a": np.zeros((2, 2))},
        {"a": [1] * 5},
        {"a": np.zeros(5)},
    ],
)
def test_a_list_source_is_of_few_rows_and_plain_lists(columns):
    assert ListSource.of(columns, 4) is None


def test_a_list_source_gives_the_errors_of_a_table(log):
    good = {"user_id": [1], "item_id": [1], "event_type": ["view"], "time": [1], "event_id": ["a"]}
    for wrong in ({"user_id": ["1"]}, {"time": [1.5]}, {"price": ["1"]}, {"event_id": [True]}):
        said = []
        for frame in (ListSource.of(good | wrong, 64), pa.table(good | wrong)):
            with pytest.raises(ZooError) as error:
                append(log, frame, now=NOW)
            said.append(str(error.value))
        assert said[0] == said[1]
    with pytest.raises(ZooError, match="values of one type"):
        append(log, ListSource.of(good | {"user_id": [2**70]}, 64), now=NOW)
    report = append(log, ListSource.of({n: v * 2 for n, v in good.items()} | {"time": [NOW + 1, 5]}, 64), now=NOW)
    assert (report.added, report.quarantined) == (1, {"timestamp_after_now": 1})


def test_a_push_of_the_tail_that_is_damaged_is_said(log):
    append(log, [{"user_id": 1, "event_type": "view", "timestamp": "2020-01-01T00:00:00Z", "event_id": "a"}], now=NOW)
    with log.tail_file.transaction() as connection:
        connection.execute("UPDATE segments SET body = ?", (b'[1,{"user_id":[1,2]}]',))
    with pytest.raises(ZooError, match="several lengths"):
        EventLog.open(log.root).count()


def test_sqlites_log_is_given_room_once_it_grows(log, monkeypatch):
    monkeypatch.setattr(tail, "_ROOM", 1 << 20)
    sizes = []
    for n in range(40):
        append(log, events([f"e{n}"]), now=NOW)
        sizes.append((log.root / "tail.db-wal").stat().st_size)
    assert max(sizes) > 1 << 20
    assert len(set(sizes[-20:])) == 1
    log.flush()
    append(log, events(["after"]), now=NOW)
    assert EventLog.open(log.root).count() == 41


VALUES = {
    "user_id": [None, 1, -5, 2**63, 1.0, "1", True],
    "event_type": ["view", "", None, "dance", "a\u200bb", 7],
    "timestamp": [
        "2019-07-01T06:00:00Z",
        "2019-07-01 06:00:00.123456+02:00",
        "2019-07-01T06:00:00.5-0330",
        "2019-02-30T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59.999999Z",
        "2019-07-01T24:00:00Z",
        "2019-07-01T06:00Z",
        "yesterday",
        None,
        5,
    ],
    "price": [1.5, 2, None, float("nan"), 1e300, 2**60, "1"],
    "session": [None, "", "s", 5, 5.5],
    "event_id": ["a", "", None, 9],
    "mobile": [True, None, 1],
    "rating": [3, 2.5, None, float("inf")],
    "arm": [1, None, 2**64, 1.0],
    "note": ["x", "", None, "\ud800", "y" * (1 << 18), "\n"],
}
SCHEMA = LogSchema(event_types=("view", "dance"), extra={"mobile": "bool", "rating": "float64", "arm": "int64", "note": "string"})


@settings(deadline=None)
@given(
    st.lists(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()}), min_size=1, max_size=3)
)
def test_a_few_plain_rows_are_read_by_the_same_rules(objects):
    source = ObjectSource(objects)
    assert_same(source, plan(source, SCHEMA))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([None, 1, -(2**62)]), st.sampled_from([0, NOW, NOW + 1, None, -(2**62)])), min_size=1),
    st.sampled_from(["int64", "s", "ms", "us", "ns"]),
    st.sampled_from([pa.int64(), pa.int32(), pa.float64()]),
)
def test_a_few_plain_rows_of_a_table_are_read_by_the_same_rules(rows, unit, kind):
    users, times = zip(*rows)
    time = pa.array(times, pa.int64() if unit == "int64" else pa.timestamp(unit, "UTC"))
    prices = pa.array([None if u is None else u % 7 for u in users], kind)
    table = pa.table(
        {"user_id": pa.array(users, pa.int64()), "event_type": ["view"] * len(rows), "timestamp": time, "price": prices}
    )
    source = TableSource(table)
    assert_same(source, plan(source, SCHEMA, unit="us" if unit == "int64" else None))


def assert_same(source, how):
    (chunk, _), *_ = source.chunks(how.wanted)
    taken, rejected = rows.clean(chunk, how, NOW)
    slow, slow_rejected = rows.sift(chunk, how, NOW)
    assert sorted(taken.column_names) == sorted(slow.column_names)
    assert taken.select(slow.column_names).equals(slow)
    assert (rejected.row.tolist(), list(rejected.reason)) == (slow_rejected.row.tolist(), list(slow_rejected.reason))
