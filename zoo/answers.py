"""The tables that answers are: what a row was told, by which members, of which version, from features how old."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array
from zoo.reading import FRESH, Read
from zoo.recommender import Lists
from zoo.scoring import Scores

if TYPE_CHECKING:
    import pyarrow as pa

    from zoo.events.view import LogView

AS_OF = b"as_of"
"""Metadata of the schema of ``predict``'s tables: the instant of all rows, microseconds UTC."""


def ids_of(rows: int) -> list[str]:
    """One a row, unlike any other's."""
    first = secrets.token_hex(8)
    return [f"{first}-{row}" for row in range(rows)]


def scored(
    keys: pa.Table,
    read: Read | None,
    scores: Scores,
    final: Array,
    ids: Sequence[str],
    members: Sequence[str],
    outputs: tuple[str, ...],
    version: str,
) -> pa.Table:
    """What ``Predictor.predict`` returns. keys: n rows. read: their features; None where n is 0. final: float32 (n, k), the scores."""
    import pyarrow as pa

    columns: dict[str, Any] = dict(zip(keys.column_names, keys.columns, strict=True))
    columns |= _named("score", final, outputs)
    for i, name in enumerate(members):
        columns |= _named(name, scores.scores[:, i], outputs, scores.lost[:, i] if scores.why else None)
    newest = np.full(len(ids), -1, np.int64) if read is None else read.batch.newest
    as_of = newest if read is None else read.batch.as_of
    source = np.zeros(0, object) if read is None else read.source
    columns["newest_event_age"] = pa.array((as_of - newest) / 1e6, mask=newest < 0)
    columns["known"] = pa.array(newest >= 0, mask=source != FRESH)
    columns["version"] = pa.array([version] * len(ids), pa.string())
    missing = [[name for name, away in zip(members, row, strict=True) if away] for row in scores.lost]
    columns["missing"] = pa.array(missing, pa.list_(pa.string()))
    columns["features"] = pa.array(source, pa.string())
    columns["id"] = pa.array(ids, pa.string())
    return pa.table(columns, metadata={AS_OF: str(as_of[0])} if len(as_of) else None)


def listed(
    users: pa.ChunkedArray,
    lists: Lists,
    ages: pa.Array,
    source: Array,
    ids: Sequence[str],
    view: LogView,
    members: Sequence[str],
    version: str,
) -> pa.Table:
    """What ``Predictor.recommend`` returns. users, ages, source, ids: of n users. lists: theirs. view: names the items."""
    import pyarrow as pa

    row, place = np.nonzero(lists.items)
    codes = lists.items[row, place]
    columns: dict[str, Any] = {"user_id": users.take(pa.array(row)), "place": pa.array(place + 1)}
    columns["item_id"] = view.ids("item_id", codes)
    columns["title"] = pa.array(view.names("item_id")[codes], pa.string())
    columns["score"] = lists.score[row, place]
    columns |= {f"rank:{name}": lists.ranks[at, row, place] for at, name in enumerate(members)}
    columns["cold"] = pa.array(lists.cold[row])
    columns["newest_event_age"] = ages.take(pa.array(row))
    columns["version"] = pa.array([version] * len(row), pa.string())
    columns["features"] = pa.array(source[row], pa.string())
    columns["id"] = pa.array([ids[each] for each in row.tolist()], pa.string())
    return pa.table(columns)


def _named(name: str, scores: Array, outputs: tuple[str, ...], lost: Array | None = None) -> Mapping[str, Any]:
    """One column, or one an output: ``score:purchase``; null where a score is lost."""
    import pyarrow as pa

    columns = {f"{name}:{output}": scores[:, k] for k, output in enumerate(outputs)} if outputs else {name: scores[:, 0]}
    return columns if lost is None else {column: pa.array(values, mask=lost) for column, values in columns.items()}
