"""One version of a log, opened for features: what it keeps, what it lets go, and what later versions see."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_shop as shop

from zoo.errors import FeatureError, SchemaError, UnknownIdError
from zoo.events.build import IndexStore
from zoo.events.log import EventLog
from zoo.events.specs import Aggregation, count, last_n, total
from zoo.events.view import LogView
from zoo.stores.columns import features_of
from zoo.stores.source import TableSource

USER = Aggregation(("user_id",), (count("n"), last_n("items", "item_id", 3), last_n("brands", "items.category", 3)))


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    (tmp_path / "data").mkdir()
    found: EventLog = shop.make_log(tmp_path)
    return found


def push(log: EventLog, users: list[int], items: list[Any], **columns: list[Any]) -> None:
    first = log.count()
    times = [shop.START + first + n for n in range(len(users))]
    full = {"event_id": [f"e{first + n}" for n in range(len(users))], "user_id": users, "item_id": items, "time": times}
    log.append(shop.events_table(full | {"event_type": ["view"] * len(users)} | columns))


def counts(view: LogView, users: list[int]) -> list[int]:
    found = view.evaluate(USER, {"user_id": view.codes("user_id", users)}, np.full(len(users), shop.END))
    return found["n"].values.tolist()  # type: ignore[no-any-return]


def names(view: LogView, user: int, column: str, dictionary: str) -> list[str]:
    found = view.evaluate(USER, {"user_id": view.codes("user_id", [user])}, np.array([shop.END]))[column]
    return view.names(dictionary)[found.values].tolist()  # type: ignore[no-any-return]


def test_a_view_stays_at_its_version_and_its_successor_sees_more(log: EventLog) -> None:
    push(log, [1, 1], ["i0", "i1"])
    view = LogView.open(log.root)
    assert counts(view, [1, 2]) == [2, 0]
    assert view.newest() is view
    push(log, [2, 1], ["i2", "new"])
    later = view.newest()
    assert later is not view
    assert counts(later, [1, 2]) == [3, 1]
    assert counts(view, [1, 2]) == [2, 0]
    assert names(later, 1, "items", "item_id") == ["i0", "i1", "new"]
    assert names(later, 1, "brands", "items.category") == ["tea", "tea", ""]


def test_a_table_replaced_or_added_makes_a_new_view(log: EventLog) -> None:
    push(log, [1], ["i0"])
    view = LogView.open(log.root)
    assert names(view, 1, "brands", "items.category") == ["tea"]
    log.put_table("items", pa.table({"item_id": ["i0"], "category": ["jam"]}))
    second = view.newest()
    assert names(second, 1, "brands", "items.category") == ["jam"]
    log.put_table("shops", pa.table({"shop_id": [5, 9], "size": [1.0, 2.0]}), key="shop_id")
    third = second.newest()
    assert set(third.tables()) - set(second.tables()) == {"shops"}
    assert third.newest() is third
    np.testing.assert_array_equal(
        third.block("shops")["size"].values[third.codes("shop_id", [9, 5, 6, None])], [2, 1, np.nan, np.nan]
    )


def test_an_item_table_with_times_gives_each_event_the_attributes_of_then(log: EventLog) -> None:
    since = pa.array([None, shop.START + 1, shop.START + 2], pa.timestamp("us", "UTC"))
    rows = {"item_id": ["i0", "i0", "i1"], "valid_from": since, "category": ["tea", "mate", "jam"], "price": [1.0, 2.5, 4.0]}
    log.put_table("items", pa.table(rows))
    push(log, [1, 1, 1, 1], ["i0", "i0", "i1", "none"])  # a microsecond apart
    push(log, [2], ["i1"], time=[shop.START])
    view = LogView.open(log.root)
    assert names(view, 1, "brands", "items.category") == ["mate", "jam", ""]
    assert names(view, 2, "brands", "items.category") == [""]  # bought before its first row holds
    prices = Aggregation(("user_id",), (last_n("prices", "items.price", 9), total("sum", "items.price")))
    found = view.evaluate(prices, {"user_id": view.codes("user_id", [1])}, np.array([shop.END]))
    np.testing.assert_array_equal(found["prices"].values, [1.0, 2.5, 4.0, np.nan])
    assert found["sum"].values == [7.5]
    codes = view.codes("item_id", ["i0", "i0", "i0", "i1"])
    times = np.array([shop.START, shop.START + 1, shop.START + 99, shop.START + 1])
    source = TableSource(name="items", table="items", columns=("price",))
    np.testing.assert_array_equal(features_of(view, source, {"item_id": codes}, times)["price"].values, [1.0, 2.5, 2.5, np.nan])
    assert view.block("items")["price"].values[codes].tolist() == [2.5, 2.5, 2.5, 4.0]


def test_rows_that_hold_from_no_time_or_twice_from_one_are_refused(log: EventLog) -> None:
    same = pa.array([5, 5], pa.timestamp("us", "UTC"))
    with pytest.raises(SchemaError, match="1 keys in more than one row, for instance"):
        log.put_table("items", pa.table({"item_id": ["a", "a"], "valid_from": same}))
    with pytest.raises(SchemaError, match="'valid_from' is string; expected the time from when a row holds"):
        log.put_table("items", pa.table({"item_id": ["a"], "valid_from": ["2020-01-01"]}))


def test_what_was_read_of_tables_goes_on_in_the_next_view(log: EventLog) -> None:
    push(log, [1], ["i0"])
    view = LogView.open(log.root)
    view.catalogue(frozenset({"items.category"}))
    push(log, [1], ["i1"])
    later = view.newest()
    assert later.block("items") is view.block("items")
    push(log, [1], ["young"])
    catalogue = later.newest().catalogue(frozenset({"items.category"}))
    assert catalogue.names["item_id"][-1] == "young"
    assert len(catalogue.items["category"]) == catalogue.size("item_id")
    assert np.isnan(catalogue.items["weight_kg"].values[-1])


def stored(log: EventLog, entity: str = "user_id") -> list[str]:
    return sorted(p.name for p in (log.root / "index" / entity).iterdir())


def test_few_new_events_are_kept_beside_the_index_and_many_are_merged_into_it(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.events.view.FEW", 2)
    push(log, [1], ["i0"])
    view = first = LogView.open(log.root)
    killed = log.root / "index" / ".index-killed"
    killed.mkdir(parents=True)
    said = []
    for n in range(7):
        files = {p: p.stat().st_mtime_ns for p in (log.root / "index").rglob("*") if p.is_file()}
        assert counts(view, [1]) == [n + 1]
        assert counts(LogView.open(log.root), [1]) == [n + 1]
        said.append(stored(log))
        if said[-1] == said[max(n - 1, 0)]:
            assert n == 0 or {p: p.stat().st_mtime_ns for p in (log.root / "index").rglob("*") if p.is_file()} == files
        push(log, [1], ["i0"])
        view = view.newest()
    assert said == [["0-1"]] * 3 + [["0-1", "0-4"]] * 3 + [["0-4", "0-7"]]
    assert sorted(p.name for p in (log.root / "index").iterdir()) == [".lock", "item_id", "user_id"]
    assert counts(first, [1]) == [1]


def test_an_old_view_builds_what_it_needs_and_keeps_it(log: EventLog) -> None:
    push(log, [1], ["i0"])
    old = LogView.open(log.root)
    push(log, [1], ["i0"])
    assert counts(LogView.open(log.root), [1]) == [2]
    assert counts(old, [1]) == [1]
    assert stored(log) == ["0-1", "0-2"]
    assert counts(old, [1]) == [1]


@pytest.mark.parametrize("tear", ["cut", "empty", "missing"])
def test_a_torn_index_is_said_and_built_again(log: EventLog, tear: str, caplog: pytest.LogCaptureFixture) -> None:
    push(log, [1, 2], ["i0", "i1"])
    assert counts(LogView.open(log.root), [1, 2]) == [1, 1]
    (torn,) = (log.root / "index" / "user_id").glob("*/0")
    if tear == "missing":
        torn.unlink()
    else:
        torn.write_bytes(torn.read_bytes()[:-64] if tear == "cut" else b"")
    assert counts(LogView.open(log.root), [1, 2]) == [1, 1]
    assert "is torn and is built again from the log" in caplog.text
    caplog.clear()
    assert counts(LogView.open(log.root), [1, 2]) == [1, 1]
    assert not caplog.text


def test_an_index_that_goes_away_while_it_is_read_is_made_good(log: EventLog) -> None:
    push(log, [1, 2], ["i0", "i1"])
    view = LogView.open(log.root)
    assert counts(view, [1, 2]) == [1, 1]
    shutil.rmtree(log.root / "index")
    assert counts(view, [1, 2]) == [1, 1]
    assert names(view, 1, "items", "item_id") == ["i0"]
    assert counts(LogView.open(log.root), [1, 2]) == [1, 1]


def test_threads_build_an_index_once(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    push(log, [1, 2], ["i0", "i1"])
    view = LogView.open(log.root)
    built: list[Any] = []
    build = IndexStore.build
    monkeypatch.setattr(IndexStore, "build", lambda self, *asked: built.append(asked[0]) or build(self, *asked))
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(counts(view, [1, 2]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, built) == ([[1, 1]] * 4, [["user_id", "item_id"]])


def test_codes_of_entities_with_a_table_of_their_own(log: EventLog) -> None:
    view = LogView.open(log.root)
    assert view.codes("campaign_id", [8, 7, 9, None]).tolist() == [3, 2, 1, 0]
    assert view.ids("campaign_id", np.array([3, 2, 1, 0])).to_pylist() == [8, 7, None, None]
    with pytest.raises(UnknownIdError, match="campaign_id"):
        view.codes("campaign_id", ["7"])
    with pytest.raises(
        FeatureError, match="no entity table has the key 'shop_id'; tables: campaign_items, campaigns, items, users"
    ):
        view.codes("shop_id", [1])


def test_unknown_tables_columns_and_entities_are_named(log: EventLog) -> None:
    view = LogView.open(log.root)
    with pytest.raises(
        FeatureError, match="unknown entity table 'stock'; choose one of: campaign_items, campaigns, items, users"
    ):
        view.block("stock")
    with pytest.raises(FeatureError, match="unknown indexed entity 'campaign_id'; choose one of: item_id, user_id"):
        view.index("campaign_id")


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_pairs_may_be_events_that_name_the_partner(tmp_path: Path, kind: str) -> None:
    from zoo.events.schema import LogSchema

    def of(values: list[Any]) -> pa.Array:
        return pa.array([None if v is None else v if kind == "int64" else f"c{v}" for v in values])

    log = EventLog.create(tmp_path, LogSchema(extra={"campaign_id": kind}))
    log.put_table("campaigns", pa.table({"campaign_id": of([7, 8]), "length": [1.0, 2.0]}), key="campaign_id")
    columns = {
        "user_id": [1, 1, 1, 2],
        "event_type": ["sent"] * 4,
        "time": [shop.SECOND * n for n in (1, 2, 3, 4)],
        "value": [1.0, 2.0, 4.0, 8.0],
    }
    log.append(pa.table({**columns, "campaign_id": of([7, 8, 7, None])}), "once")
    view = LogView.open(tmp_path)
    pairs = Aggregation(("user_id", "campaign_id"), (count("n_7s", "7s"), count("n"), total("sum", "value")))
    keys = {"user_id": view.codes("user_id", [1, 1, 2, 1]), "campaign_id": view.codes("campaign_id", of([7, 8, 7, 9]))}
    found = view.evaluate(pairs, keys, np.full(4, 9 * shop.SECOND))
    assert found["n_7s"].values.tolist() == [1, 1, 0, 0]
    assert found["n"].values.tolist() == [2, 1, 0, 0]
    assert found["sum"].values.tolist() == [5.0, 2.0, 0.0, 0.0]


def test_sessions_are_told_apart_by_their_text(tmp_path: Path) -> None:
    from zoo.events.schema import LogSchema

    log = EventLog.create(tmp_path, LogSchema())
    sessions = ["17", "17", "017", "a", "b", "b", None, None]
    columns = {"user_id": [1] * 8, "event_type": ["view"] * 8, "time": list(range(8)), "session": sessions}
    log.append(pa.table(columns), "once")
    index = LogView.open(tmp_path).index("user_id")
    assert index.columns["session"][:2].tolist() == [17, 17]
    assert index.visits(1800).tolist() == [True, False, True, True, True, False, True, False]


def test_items_are_shown_by_title_where_they_have_one(tmp_path: Path) -> None:
    from zoo.events.schema import LogSchema

    log = EventLog.create(tmp_path, LogSchema())
    log.put_table("items", pa.table({"item_id": [5, 6], "title": ["green tea", None]}))
    log.append(pa.table({"user_id": [1], "item_id": [7], "event_type": ["view"], "time": [1]}), "once")
    assert LogView.open(tmp_path).names("item_id").tolist() == ["", "unknown", "green tea", "6", "7"]


def test_a_log_without_events_answers_that_everyone_is_cold(log: EventLog) -> None:
    view = LogView.open(log.root)
    assert counts(view, [1, 2]) == [0, 0]
    assert view.index("item_id").newest(np.array([2]), np.array([shop.END])).tolist() == [-1]


def test_an_old_view_keeps_the_index_that_it_builds_late(tmp_path: Path) -> None:
    import shop

    log = shop.make_log(tmp_path / "log")
    old = LogView.open(tmp_path / "log")
    for number in range(3):
        event = {"event_id": f"e{number}", "user_id": 1, "item_id": 1, "event_type": "view", "timestamp": "2024-05-29T00:00:00Z"}
        log.append([event])
        LogView.open(tmp_path / "log").index("user_id")
    assert len(old.index("user_id")) == len(LogView.open(tmp_path / "log").index("user_id")) - 3
