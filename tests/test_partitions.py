"""Partitions, late events and merges change no answer: whatever came when, it is as if everything had been indexed at once."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import tiny_shop as shop
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shop import _applied

from zoo.errors import FeatureError, ZooError
from zoo.events import partitions
from zoo.events.build import IndexStore, Spill, partitions_for
from zoo.events.index import MISSING, Index
from zoo.events.log import EventLog
from zoo.events.merging import joined, merged, sort
from zoo.events.schema import LogSchema
from zoo.events.storage import read_columns, write_columns
from zoo.events.view import LogView
from zoo.features import Features

__all__ = ["_applied"]


@pytest.fixture(scope="module")
def applied(_applied: Path) -> Path:
    return _applied


EVENTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=40)


def arrays(events: list[tuple[int, int]], first: int = 0) -> tuple[Any, Any, Any, dict[str, Any]]:
    codes = np.array([c for c, _ in events], np.int32)
    time, seq = np.array([t for _, t in events], np.int64), np.arange(len(events)) + first
    return codes, time, seq, {"item_id": (seq * 7 % 11).astype(np.int32), "weight": seq / 2}


def assert_equal(found: Index, expected: Index) -> None:
    count = min(len(found.offsets), len(expected.offsets))
    np.testing.assert_array_equal(found.offsets[:count], expected.offsets[:count])
    assert (found.offsets[count:] == found.offsets[-1]).all()
    for name in ("time", "seq"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.columns.keys() == expected.columns.keys()
    for name, values in expected.columns.items():
        assert found.columns[name].dtype == values.dtype
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)


@given(EVENTS, EVENTS)
@settings(deadline=None)
def test_late_events_land_where_a_whole_sort_would_put_them(base: list[tuple[int, int]], late: list[tuple[int, int]]) -> None:
    codes, time, seq, columns = arrays(base + late)
    whole = Index.build(codes, time, seq, columns, 10)
    parts = [Index.build(c, t, s, k, 10) for c, t, s, k in (arrays(base), arrays(late, len(base)))]
    assert_equal(merged(*parts), whole)
    keep = codes > 0
    assert_equal(sort(codes[keep], time[keep], seq[keep], {n: v[keep] for n, v in columns.items()}, 10), whole)
    picked = np.array([3, 1, 7])
    both = joined([whole.events(picked[:2]), whole.events(picked[2:])])
    assert_equal(both, whole.events(picked))


def test_a_column_that_comes_late_was_missing_before() -> None:
    codes, time, seq, columns = arrays([(2, 1), (3, 1)])
    more = {**columns, "value": np.array([5, 6])}
    found = merged(Index.build(codes, time, seq, columns, 4), Index.build(codes, time, seq + 2, more, 4))
    assert found.columns["value"].tolist() == [MISSING, 5, MISSING, 6]


@given(EVENTS, EVENTS, st.integers(1, 4), st.sampled_from([0, 1 << 20]))
@settings(deadline=None)
def test_what_is_spilled_comes_back_sorted_by_partition(
    first: list[tuple[int, int]], second: list[tuple[int, int]], partitions: int, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spill = Spill(Path(folder) / "spill", partitions, limit)
        spill.add(*arrays(first))
        codes, time, seq, columns = arrays(second, len(first))
        spill.add(codes, time, seq, {**columns, "value": seq + 100})
        codes, time, seq, columns = arrays(first + second)
        columns["value"] = np.where(seq < len(first), MISSING, seq + 100)
        for number in range(partitions):
            own = (codes > 0) & (codes % partitions == number)
            expected = sort(codes[own] // partitions, time[own], seq[own], {n: v[own] for n, v in columns.items()}, 10)
            assert_equal(spill.index(number), expected)
        assert not (Path(folder) / "spill").exists() or not list((Path(folder) / "spill").iterdir())


def small(partition: int, few: int, at_once: int, budget: int = 1 << 30, many: int = 1 << 30) -> Any:
    """Partitions, merges and overlays of a handful of events; rows more than ``many`` are answered in another order and by threads."""
    sizes = {"build.PARTITION": partition, "view.FEW": few, "partitions.AT_ONCE": at_once, "partitions.BUDGET": budget}
    sizes |= {"partitions._MANY": many, "partitions._ROWS": 3}
    return [patch(f"zoo.events.{name}", value) for name, value in sizes.items()]


def fresh(features: Features) -> Features:
    """The same log, indexed at once in one partition."""
    folder = Path(tempfile.mkdtemp(dir=Path(features.reader.root).parents[1].parent))
    shutil.copytree(Path(features.reader.root).parents[1], folder / "repo")
    shutil.rmtree(folder / "repo" / "data" / "log" / "index", ignore_errors=True)
    return Features.open(folder / "repo")


@given(
    seed=st.integers(0, 2**20),
    pushes=st.lists(st.integers(1, 25), min_size=1, max_size=4),
    partition=st.sampled_from([5, 17, 1000]),
    few=st.sampled_from([0, 12, 1000]),
    at_once=st.sampled_from([1, 30, 1000]),
    budget=st.sampled_from([0, 1 << 30]),
    many=st.sampled_from([0, 1 << 30]),
)
@settings(max_examples=8, deadline=None)
def test_every_feature_is_as_if_all_events_had_been_indexed_at_once(
    applied: Path, seed: int, pushes: list[int], partition: int, few: int, at_once: int, budget: int, many: int
) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(shutil.copytree(applied, Path(name) / "repo"))
        log = shop.make_log(root)
        features = Features.open(root)
        rows = {**shop.keys(rng, 25), "time": shop.START + rng.integers(0, 70, 25) * shop.DAY}
        patches = small(partition, few, at_once, budget, many)
        for one in patches:
            one.start()
        try:
            for number in pushes:
                log.append(shop.events_table(shop.random_events(rng, number, first=log.count())))
                found = {service: features.history(service, rows) for service in ("users", "items", "shop", "boundary")}
            view = features.reader.view()
            sizes, start = view.sizes("item_id"), view.start()
            events = view.events(["item_id", "value", "items.category"], ["purchase", "cart"])
        finally:
            log.close()  # its folder is copied and removed
            for one in patches:
                one.stop()
        whole = fresh(features)
        for service, batch in found.items():
            shop.assert_same(batch, whole.history(service, rows))
        expected = whole.reader.view()
        assert len(expected.partitions("user_id").stored) == 1
        np.testing.assert_array_equal(sizes, expected.sizes("item_id"))
        assert start == expected.start()
        same = expected.events(["item_id", "value", "items.category"], ["purchase", "cart"])
        for a, b in zip(
            (events.user_id, events.time, *events.columns.values()), (same.user_id, same.time, *same.columns.values())
        ):
            np.testing.assert_array_equal(a, b)


def log_of(root: Path, number: int) -> EventLog:
    """Events of 50 users and 20 items, times in no order."""
    rng = np.random.default_rng(7)
    log = EventLog.create(root, LogSchema())
    for start in range(0, number, 100):
        count = min(100, number - start)
        columns = {
            "event_id": [f"e{start + n}" for n in range(count)],
            "user_id": rng.integers(1, 51, count),
            "item_id": rng.integers(1, 21, count),
            "event_type": ["view"] * count,
            "time": rng.integers(0, 50, count) * shop.SECOND,
            "value": rng.integers(0, 100, count) / 4,
        }
        log.append(pa.table(columns))
    return log


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(-(2**40), 2**40)), min_size=1, max_size=40),
    far=st.booleans(),
)
@settings(deadline=None)
def test_rows_are_put_in_the_order_of_partition_entity_and_time(rows: list[tuple[int, int, int]], far: bool) -> None:
    number, local, times = (np.array(values) for values in zip(*rows))
    if far:
        local = local * (1 << 56)  # no room for anything beside the entity
    order = partitions._order(number, local.astype(np.int64), times)
    assert sorted(order.tolist()) == list(range(len(rows)))
    entity = [(number[row], local[row]) for row in order.tolist()]
    assert entity == sorted(entity)
    for before, after in itertools.pairwise(order.tolist()):
        if (number[before], local[before]) == (number[after], local[after]):
            assert times[before] <= times[after] + (1 << 16)  # as finely as there is room for


def test_a_large_log_has_several_partitions_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.events.build.PARTITION", 100)
    log_of(tmp_path, 300)
    view = LogView.open(tmp_path)
    parts = view.partitions("user_id")
    assert (len(parts), parts.events) == (3, 300)
    assert sorted(p.name for p in (tmp_path / "index" / "user_id" / "0-300").iterdir()) == ["0", "1", "2"]
    with pytest.raises(FeatureError, match="the log's 300 events lie in 3 partitions by user_id"):
        view.index("user_id")
    monkeypatch.undo()
    assert [partitions_for(n) for n in (0, 1, 4_000_000, 4_000_001, 100_000_000)] == [1, 1, 1, 2, 25]


def test_a_log_that_outgrows_its_partitions_gets_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.events.build.PARTITION", 100)
    monkeypatch.setattr("zoo.events.view.FEW", 0)
    log = log_of(tmp_path, 200)
    assert len(LogView.open(tmp_path).partitions("user_id")) == 2
    for n, expected in ((100, 2), (200, 5)):
        count = log.count()
        times = np.arange(n) * shop.SECOND
        log.append(pa.table({"user_id": [1] * n, "event_type": ["view"] * n, "time": times}), f"{count}")
        assert len(LogView.open(tmp_path).partitions("user_id")) == expected
    assert LogView.open(tmp_path).sizes("user_id").sum() == 500


def test_derived_columns_are_let_go_beyond_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.events.build.PARTITION", 100)
    log_of(tmp_path, 400)
    parts = LogView.open(tmp_path).partitions("user_id")
    one = parts.evaluator(0)
    one.events(()).prefix("value")
    assert one.held() >= 8 * len(one.index)
    assert parts.evaluator(0) is one
    parts.evaluator(1)
    assert parts.evaluator(0) is one
    monkeypatch.setattr("zoo.events.partitions.BUDGET", 1)
    parts.evaluator(1)
    assert parts.evaluator(0) is not one


KILLED = """
import sys
from zoo.events import build, view
from zoo.events.view import LogView
build.PARTITION, view.FEW, build.SPILL = 100, 0, 1
found = LogView.open(sys.argv[1])
print("ready", flush=True)
found.partitions("user_id")
print("done", flush=True)
"""


@pytest.mark.parametrize("files", [0, 2, 4, 7])
def test_a_build_killed_at_any_point_is_done_again_by_the_next(
    tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(tmp_path, 200)
    monkeypatch.setattr("zoo.events.build.PARTITION", 100)
    monkeypatch.setattr("zoo.events.view.FEW", 0)
    LogView.open(tmp_path).partitions("user_id")
    log.append(pa.table({"user_id": [1, 60, 61], "event_type": ["view"] * 3, "time": [5, 5, 0]}), "late")
    # the child kills itself with SIGKILL at its n-th sync, renames included
    script = textwrap.dedent(KILLED).replace(
        'print("ready"',
        f"import os, signal\nleft, real = [{files}], os.fsync\n"
        "def fsync(handle):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(handle)\n"
        'os.fsync = fsync\nprint("ready"',
    )
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert child.returncode == (-signal.SIGKILL if "done" not in child.stdout else 0), child.stderr
    view = LogView.open(tmp_path)
    assert (view.sizes("user_id").sum(), view.sizes("item_id").sum()) == (203, 200)
    assert sorted(p.name for p in (tmp_path / "index" / "user_id").iterdir()) == ["0-200", "0-203"]


def test_columns_are_read_as_they_were_written(tmp_path: Path) -> None:
    columns = {"a": np.arange(5), "b": np.array([0.5, np.nan]), "c": np.zeros(0, np.int32)}
    write_columns(tmp_path / "0", columns, {"partitions": 1})
    found, facts = read_columns(tmp_path / "0")
    assert facts == {"partitions": 1}
    for name, values in columns.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
        assert not found[name].flags.writeable


@pytest.mark.parametrize("content", [b"", b"PAR1", b"zooidx1\n" + b"\xff" * 40, b"\x00" * 4096])
def test_a_torn_file_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0").write_bytes(content)
    with pytest.raises(ZooError, match="no part of an index, or torn; remove the folder"):
        read_columns(tmp_path / "0")


def test_a_disk_that_refuses_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_of(tmp_path, 10)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo.events.build.write_columns", full)
    with pytest.raises(ZooError, match=r"build the index in .*No space left on device"):
        LogView.open(tmp_path).partitions("user_id")
    assert [p.name for p in (tmp_path / "index").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert len(LogView.open(tmp_path).index("user_id")) == 10
    assert IndexStore(tmp_path / "index").newest("user_id", 0, 9) is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log_of(tmp_path, 10)
    (tmp_path / "index").write_text("in the way")
    with pytest.raises(ZooError, match="could not build the index in"):
        LogView.open(tmp_path).partitions("user_id")
