"""Features of pairs, such as a user and a campaign: the user's events that concern the partner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.contract import Array, Column
from zoo.errors import FeatureError
from zoo.events.evaluate import Evaluator
from zoo.events.filtered import FilteredEvents
from zoo.events.index import MISSING
from zoo.events.slices import MICROSECONDS, Slices, chunks, joined
from zoo.events.specs import Aggregation, Feature


def evaluate_pairs(
    evaluator: Evaluator,
    aggregation: Aggregation,
    codes: Array,
    partners: Array,
    times: Array,
    members: Mapping[str, tuple[Array, Array]] | None,
    carried: Array | None = None,
) -> dict[str, Column]:
    """Columns of a pair aggregation for n rows.

    codes: int32 (n,) of the user; partners: int32 (n,) of the second entity. members: ``via`` -> (offsets by partner code, sorted
    codes) of the partner's set; None: the user's events whose ``carried`` int32 (m,), the partner that each names, is the row's.
    """
    for f in aggregation.features:
        if f.kind not in ("count", "sum", "distinct", "recency"):
            raise FeatureError(f"pair feature {f.name!r} has kind {f.kind!r}; pairs have count, sum, distinct and recency")
    low, high = evaluator.index.bounds(codes)
    stop = evaluator.index.search(low, high, times, right=aggregation.include_equal)
    parts = []
    for rows in chunks(stop - low):
        matches = _Matches(evaluator, members, carried, low[rows], stop[rows], partners[rows], times[rows])
        parts.append({f.name: matches.feature(f) for f in aggregation.features})
    return joined(parts)


class _Matches:
    """The events of each row's user that concern the row's partner, found once for features that ask for the same ones."""

    def __init__(
        self,
        evaluator: Evaluator,
        members: Mapping[str, tuple[Array, Array]] | None,
        carried: Array | None,
        low: Array,
        stop: Array,
        partners: Array,
        times: Array,
    ) -> None:
        self.evaluator, self.members, self.carried = evaluator, members, carried
        self.low, self.stop, self.partners, self.times = low, stop, partners, times
        self._found: dict[Any, tuple[Array, Array]] = {}

    def of(self, f: Feature) -> tuple[Array, Array]:
        """(row of each match, ascending; its position among the events that the feature's ``where`` leaves)."""
        key = (f.where, f.window, f.via)
        if key not in self._found:
            self._found[key] = self._find(f)
        return self._found[key]

    def _find(self, f: Feature) -> tuple[Array, Array]:
        index, events = self.evaluator.index, self.evaluator.events(f.where)
        begin = self.low if f.window is None else index.search(self.low, self.stop, self.times - f.window * MICROSECONDS)
        slices = Slices(events.rank(begin), events.rank(self.stop))
        positions, rows = slices.positions, slices.rows
        if self.members is None:
            assert self.carried is not None
            match = events.of(self.carried)[positions] == self.partners[rows]
        else:
            via = f.via or "item_id"
            match = _contains(*self.members[via], self.partners[rows], events.column(via)[positions])
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
        return np.bincount(rows, np.nan_to_num(values), minlength=number)
    running = np.concatenate(([0], np.cumsum(np.where(values == MISSING, 0, values))))
    at = np.searchsorted(rows, np.arange(number + 1))
    return events.plain(name, running[at[1:]] - running[at[:-1]]).astype(np.float64)


def member_sets(partners: Array, codes: Array, size: int) -> tuple[Array, Array]:
    """(offsets by partner code, member codes sorted within each partner) of distinct (partner, member) pairs."""
    pairs = np.unique(np.stack([partners.astype(np.int64), codes.astype(np.int64)]), axis=1)
    pairs = pairs[:, (pairs[0] > 0) & (pairs[1] > 1)]
    offsets = np.zeros(size + 1, np.int64)
    np.cumsum(np.bincount(pairs[0], minlength=size)[:size], out=offsets[1:])
    return offsets, pairs[1]


def _contains(offsets: Array, members: Array, partners: Array, codes: Array) -> Array:
    """bool (m,): whether ``codes[i]`` is in the set of ``partners[i]``; all sets share one sorted key."""
    width = np.int64(max(int(members.max(initial=0)), int(codes.max(initial=0))) + 1)
    owner = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    keys = owner * width + members
    wanted = partners.astype(np.int64) * width + codes
    at = np.searchsorted(keys, wanted)
    return (at < len(keys)) & (keys[np.minimum(at, len(keys) - 1)] == wanted) if len(keys) else np.zeros(len(codes), bool)
