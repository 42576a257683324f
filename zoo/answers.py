"""The tables that answers are: what a row was told, by which members, of which version, from features how old."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array
from zoo.reading import FRESH
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


@dataclass(frozen=True)
class Answered:
    """Scores of n rows and what is told beside them; ``table`` and ``rows`` say the same.

    keys: their n rows. ids: one a row. final: float32 (n, k), the scores. scores: of the members. as_of, newest: int64 (n,), microseconds
    UTC, -1 without an event. source: object (n,), as ``Read`` has it. calibrated: of n rows, as ``Fallbacks`` has it.
    """

    keys: pa.Table
    ids: Sequence[str]
    final: Array
    scores: Scores
    as_of: Array
    newest: Array
    source: Array
    calibrated: Sequence[bool | None]
    members: Sequence[str]
    outputs: tuple[str, ...]
    version: str

    @property
    def at(self) -> int | None:
        """The instant of all rows; None without rows."""
        return int(self.as_of[0]) if len(self.as_of) else None

    def table(self) -> pa.Table:
        """What ``Predictor.predict`` returns."""
        import pyarrow as pa

        columns: dict[str, Any] = dict(zip(self.keys.column_names, self.keys.columns, strict=True))
        for name, scores, lost in self._scores():
            columns[name] = scores if lost is None else pa.array(scores, mask=lost)
        columns["newest_event_age"] = pa.array(self._ages(), mask=self.newest < 0)
        columns["known"] = pa.array(self.newest >= 0, mask=self.source != FRESH)
        columns["version"] = pa.array([self.version] * len(self.ids), pa.string())
        columns["missing"] = pa.array(self._missing(), pa.list_(pa.string()))
        columns["calibrated"] = pa.array(self.calibrated, pa.bool_())
        columns["features"] = pa.array(self.source, pa.string())
        columns["id"] = pa.array(self.ids, pa.string())
        return pa.table(columns, metadata=None if self.at is None else {AS_OF: str(self.at)})

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """``table().to_pylist()``, for few rows in a fraction of its time; not to be changed, for the answer's trace shares it."""
        columns: dict[str, Sequence[Any]] = {name: self.keys[name].to_pylist() for name in self.keys.column_names}
        for name, scores, lost in self._scores():
            columns[name] = scores.tolist() if lost is None else _some(scores, ~lost)
        columns["newest_event_age"] = _some(self._ages(), self.newest >= 0)
        columns["known"] = _some(self.newest >= 0, self.source == FRESH)
        columns["version"] = [self.version] * len(self.ids)
        columns["missing"] = self._missing()
        columns["calibrated"] = self.calibrated
        columns["features"] = self.source.tolist()
        columns["id"] = self.ids
        return [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]

    def _scores(self) -> Iterator[tuple[str, Array, Array | None]]:
        """(name, float32 (n,), bool (n,): which are lost, or None) of each column of scores, one a name or one an output of it."""
        each: list[tuple[str, Array, Array | None]] = [("score", self.final, None)]
        lost = self.scores.lost if self.scores.why else None
        for i, name in enumerate(self.members):
            each.append((name, self.scores.scores[:, i], None if lost is None else lost[:, i]))
        for name, scores, away in each:
            for k, output in enumerate(self.outputs or ("",)):
                yield f"{name}:{output}" if output else name, scores[:, k], away

    def _ages(self) -> Array:
        return np.asarray((self.as_of - self.newest) / 1e6)

    def _missing(self) -> list[list[str]]:
        if not self.scores.why:
            return [[] for _ in self.ids]
        return [[name for name, away in zip(self.members, row, strict=True) if away] for row in self.scores.lost.tolist()]


def _some(values: Array, there: Array) -> list[Any]:
    return [value if given else None for value, given in zip(values.tolist(), there.tolist(), strict=True)]


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
    codes, at = lists.items[row, place], pa.array(row)
    columns: dict[str, Any] = {"user_id": users.take(at), "place": place + 1}
    columns["item_id"] = view.ids("item_id", codes)
    columns["title"] = pa.array(view.names("item_id")[codes], pa.string())
    columns["score"] = lists.score[row, place]
    columns |= {f"rank:{name}": lists.ranks[number, row, place] for number, name in enumerate(members)}
    columns["cold"] = pa.array(lists.cold[row])
    columns["newest_event_age"] = ages.take(at)
    columns["version"] = pa.repeat(pa.scalar(version, pa.string()), len(row))
    columns["features"] = pa.array(source, pa.string()).take(at)  # a few of which most are rows of one user
    columns["id"] = pa.array(ids, pa.string()).take(at)
    return pa.table(columns)
