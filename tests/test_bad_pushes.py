"""Bad events by every entrance: what is refused whole is named, what is bad alone is counted and kept apart, and the good ones are in.

``tests/test_bad_input.py`` puts what was seen here into docs/reference/bad-input.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_shop as shop
from tiny_shop import _applied, repo

from zoo.features import Features

__all__ = ["_applied", "repo"]

WHEN = datetime(2017, 7, 15, tzinfo=UTC)
GOOD: dict[str, list[Any]] = {
    "event_id": ["one", "two"],
    "user_id": [1, 2],
    "item_id": ["i0", "i1"],
    "event_type": ["view", "view"],
    "timestamp": [WHEN, WHEN],
    "value": [1.0, 2.0],
    "weight": [1.0, 1.0],
    "colour": ["red", "red"],
}
Columns = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Door:
    """An entrance for events. bring: gives them in; what it answers where nothing is raised is taken to be fine."""

    name: str
    bring: Callable[[Features, Columns, Path], None]


def _table(columns: Columns) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _rows(columns: Columns) -> list[dict[str, Any]]:
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def _feast(features: Features, columns: Columns, _: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(dict(columns)).rename(columns={"timestamp": "event_timestamp"})
    features.store.push("events", frame)


def _http(features: Features, columns: Columns, _: Path) -> None:
    from starlette.testclient import TestClient

    from zoo.service.app import app

    said = {name: [v.isoformat() if isinstance(v, datetime) else v for v in values] for name, values in columns.items()}
    body = json.dumps({"events": _rows(said)})  # which writes Infinity, as some clients do
    answer = TestClient(app({}, features)).post("/v1/events", content=body, headers={"content-type": "application/json"})
    if answer.status_code != 200:
        error = answer.json()["error"]
        raise RuntimeError(f"{answer.status_code} {error['type']}: {error['message']}")


def _file(features: Features, columns: Columns, folder: Path) -> None:
    from zoo.events.ingest import ingest

    pq.write_table(_table(columns), folder / "events.parquet")
    ingest(features.reader.log, folder / "events.parquet")


DOORS = {
    "table": Door(
        "`zoo.features.append` of a table or frame", lambda features, columns, _: features.append(_table(columns)) and None
    ),
    "rows": Door("`zoo.features.append` of mappings", lambda features, columns, _: features.append(_rows(columns)) and None),
    "http": Door("`POST /v1/events`", _http),
    "feast": Door('`store.push("events", frame)`', _feast),
    "file": Door("`zoo ingest events.parquet`", _file),
}


@dataclass(frozen=True)
class Bad:
    """change: columns in place of good ones; None leaves one out. apart: reason -> rows, for entrances that take the others.

    refused: the pattern that a refusal of the whole must show, by entrance.
    """

    tried: str
    change: Mapping[str, list[Any] | None]
    apart: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, list[Any]]:
        return {name: values for name, values in {**GOOD, **self.change}.items() if values is not None}


LONG = "x" * 10_000_000
FAR = datetime(2999, 1, 1, tzinfo=UTC)
CASES = [
    Bad("a column is missing", {"event_type": None}, refused=dict.fromkeys(DOORS, "event_type")),
    Bad(
        "text for numbers",
        {"value": ["cheap", "dear"]},
        {"value_invalid": 2},
        {"table": "column 'value' is string; expected numbers", "file": "column 'value' is string", "feast": "<class 'str'>"},
    ),
    Bad(
        "text for whole-number ids",
        {"user_id": ["anna", "bob"]},
        {"user_id_invalid": 2},
        {"table": "column 'user_id' is string", "file": "column 'user_id' is string", "feast": "anna"},
    ),
    Bad("a time far in the future", {"timestamp": [WHEN, FAR]}, {"timestamp_after_now": 1}),
    Bad("no user", {"user_id": [1, None]}, {"user_id_null": 1}),
    Bad("no event type", {"event_type": ["view", None]}, {"event_type_null": 1}),
    Bad("no time", {"timestamp": [WHEN, None]}, {"timestamp_null": 1}, {"feast": "NaT"}),
    Bad(
        "no event id, so that a retry would count twice",
        {"event_id": ["one", None]},
        refused={**dict.fromkeys(DOORS, "1 of 2 rows have no event_id"), "file": ""},
    ),
    Bad("a text of 10 MB", {"item_id": ["i0", LONG]}, {"item_id_too_long": 1}, {"http": "413 too_large"}),
    Bad("an infinite value", {"value": [1.0, float("inf")]}, {"value_not_finite": 1}),
]


def tried(case: Bad, door: str, root: Path) -> str:
    """What giving the events in said, after checking that the log holds what it should and goes on."""
    features = Features.open(root)
    log = features.reader.log
    refusal = case.refused.get(door, "")
    try:
        DOORS[door].bring(features, case.columns(), root)
        seen = ""
    except Exception as error:
        if not refusal:
            raise
        seen = f"{type(error).__name__}: {error}"
        assert re.search(refusal, seen), seen
        assert len(seen) < 2_000
    assert bool(seen) == bool(refusal)
    apart = {} if refusal else dict(case.apart)
    added = 0 if refusal else 2 - sum(apart.values())
    assert log.quarantine.counts() == apart
    assert log.count() == added
    kept = log.quarantine.table()
    assert sum(len(record) for record in kept["record"].to_pylist()) < 2_000  # of 10 MB the beginning and the length
    features.append({**{name: values[:1] for name, values in GOOD.items()}, "event_id": ["next"]})
    rows = {"user_id": [1, 2]}
    now = features.reader.now()
    shop.assert_same(features.online("users", rows, now), features.history("users", {**rows, "time": [now, now]}))
    assert log.count() == added + 1
    if refusal:
        return f"refused: {seen.removeprefix('RuntimeError: ')}"
    return f"{added} taken" + "".join(f", {n} kept apart as `{reason}`" for reason, n in apart.items())


@pytest.mark.parametrize("case", CASES, ids=[case.tried.replace(" ", "-") for case in CASES])
@pytest.mark.parametrize("door", DOORS)
def test_bad_events_are_named_counted_and_kept_apart_and_good_ones_taken(case: Bad, door: str, repo: Path) -> None:
    tried(case, door, repo)


def test_a_million_events_of_one_user_are_taken_and_answered_from_the_newest(repo: Path) -> None:
    count, cap = 1_000_000, 20_000
    features = Features.open(repo)
    table = pa.table(
        {
            "user_id": np.full(count, 1),
            "item_id": pa.DictionaryArray.from_arrays(np.arange(count, dtype=np.int32) % 7, [f"i{n}" for n in range(7)]),
            "event_type": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), ["view"]),
            "time": np.arange(count) + shop.START,
        }
    )
    assert features.append(table, "once").added == count
    assert features.append(table, "once").repeated == count
    found = features.online("users", {"user_id": [1]})
    kept = features.history("users", {"user_id": [1], "time": [features.reader.now()]})
    assert (found.column("n").values[0], kept.column("n").values[0]) == (cap, count)
    np.testing.assert_array_equal(found.column("items").values, kept.column("items").values)
