"""Features of pairs, such as a user and a campaign: the user's events that concern the partner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.contract import UNKNOWN, Array, Column
from zoo.errors import FeatureError
from zoo.events.evaluate import Evaluator
from zoo.events.filtered import FilteredEvents
from zoo.events.index import MISSING
from zoo.events.slices import MICROSECONDS, Slices, chunks, joined, or_zero
from zoo.events.specs import Aggregation, Feature


def evaluate_pairs(
    evaluator: Evaluator,
    aggregation: Aggregation,
    codes: Array,
    partners: Array,
    times: Array,
    members: Mapping[str, Array] | None,
    carried: Array | None = None,
) -> dict[str, Column]:
    """Columns of a pair aggregation for n rows.

    codes: int32 (n,) of the user; partners: int32 (n,) of the second entity. members: ``via`` -> the partners' sets
    (``member_sets``); None: the user's events whose ``carried`` int32 (m,), the partner that each names, is the row's.
    """
    for f in aggregation.features:
        if f.kind not in ("count", "sum", "distinct", "recency"):
            raise FeatureError(f"pair feature {f.name!r} has kind {f.kind!r}; pairs have count, sum, distinct and recency")
    low, high = evaluator.index.bounds(codes)
    stop = evaluator.index.search(low, high, times, right=aggregation.include_equal)
    parts = []
    for rows in chunks(stop - low):
        matches = _Matches(evaluator, aggregation.features, members, carried, low[rows], stop[rows], partners[rows], times[rows])
        parts.append({f.name: matches.feature(f) for f in aggregation.features})
    return joined(parts)


class _Matches:
    """The events of each row's user that concern the row's partner, found once for features that ask for the same ones."""

    def __init__(
        self,
        evaluator: Evaluator,
        features: tuple[Feature, ...],
        members: Mapping[str, Array] | None,
        carried: Array | None,
        low: Array,
        stop: Array,
        partners: Array,
        times: Array,
    ) -> None:
        self.evaluator, self.features, self.members, self.carried = evaluator, features, members, carried
        self.low, self.stop, self.partners, self.times = low, stop, partners, times
        self._found: dict[Any, tuple[Array, Array]] = {}

    def of(self, f: Feature) -> tuple[Array, Array]:
        """(row of each match, ascending; its position among the events that the feature's ``where`` leaves)."""
        if (f.where, f.via) not in self._found:
            self._found[f.where, f.via] = self._find(f, self._widest(f))
        rows, positions = self._found[f.where, f.via]
        if f.window == self._widest(f):
            return rows, positions
        inside = positions >= self._begin(f.where, f.window)[rows]
        return rows[inside], positions[inside]

    def _widest(self, f: Feature) -> int | None:
        """The longest window among the features that ask for the same events."""
        windows = [other.window for other in self.features if (other.where, other.via) == (f.where, f.via)]
        return None if None in windows else max(window for window in windows if window is not None)

    def _begin(self, where: tuple[str, ...], window: int | None) -> Array:
        """int64 (n,): where each row's window begins among the events that ``where`` leaves."""
        index = self.evaluator.index
        begin = self.low if window is None else index.search(self.low, self.stop, self.times - window * MICROSECONDS)
        return self.evaluator.events(where).rank(begin)

    def _find(self, f: Feature, window: int | None) -> tuple[Array, Array]:
        events = self.evaluator.events(f.where)
        slices = Slices(self._begin(f.where, window), events.rank(self.stop))
        positions, rows = slices.positions, slices.rows
        if self.members is None:
            assert self.carried is not None
            match = events.of(self.carried)[positions] == self.partners[rows]
        else:
            via = f.via or "item_id"
            match = _contains(self.members[via], _pairs(self.partners[rows], events.column(via)[positions]))
        return rows[match], positions[match]

    def feature(self, f: Feature) -> Column:
        rows, positions = self.of(f)
        events, number = self.evaluator.events(f.where), len(self.times)
        if f.kind == "count":
            return Column(np.bincount(rows, minlength=number).astype(np.int64))
        if f.kind == "sum":
            return Column(_sum(f.column, events, positions, rows, number))
        if f.kind == "distinct":
            values = events.column(f.column)[positions]
            order = np.lexsort((values, rows))
            first = np.ones(len(order), bool)
            first[1:] = (np.diff(rows[order]) != 0) | (np.diff(values[order]) != 0)
            first &= ~events.missing(f.column, values[order])
            return Column(np.bincount(rows[order][first], minlength=number).astype(np.int64))
        newest = np.full(number, -1, np.int64)
        newest[rows] = positions  # positions ascend within a row, so the last write is the newest
        age = np.full(number, np.nan)
        some = newest >= 0
        age[some] = (self.times[some] - events.column("time")[newest[some]]) / MICROSECONDS
        return Column(age)


def _sum(name: str, events: FilteredEvents, positions: Array, rows: Array, number: int) -> Array:
    """float64 (number,): sum of a column by row (ascending); exact where it is kept as integers."""
    values = events.column(name)[positions]
    if values.dtype.kind == "f":
        return np.bincount(rows, or_zero(values), minlength=number).astype(np.float64)  # of no rows it is integers
    running = np.concatenate(([0], np.cumsum(np.where(values == MISSING, 0, values))))
    at = np.searchsorted(rows, np.arange(number + 1))
    return events.plain(name, running[at[1:]] - running[at[:-1]]).astype(np.float64)


def _pairs(partners: Array, codes: Array) -> Array:
    """int64: one number a (partner, code)."""
    return partners.astype(np.int64) << 32 | codes


def member_sets(partners: Array, codes: Array) -> Array:
    """int64 (k,), sorted: the distinct pairs of a partner and a member of its set, codes int32 (n,) each; unknown ones are left out."""
    known = (partners > UNKNOWN) & (codes > UNKNOWN)
    return np.unique(_pairs(partners[known], codes[known]))


def _contains(members: Array, pairs: Array) -> Array:
    """bool (m,): which pairs are among the members."""
    if not len(members):
        return np.zeros(len(pairs), bool)
    found: Array = members[np.minimum(np.searchsorted(members, pairs), len(members) - 1)] == pairs
    return found
