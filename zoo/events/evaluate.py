"""Features of many rows at once from a sorted index: slices for sequences, position differences for counts, prefix sums.

Used alike for history (the whole log) and online (the requested entities' events), which is why the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.contract import Array, Column, gather
from zoo.errors import FeatureError
from zoo.events.index import MISSING, SCALE, Index, from_fixed
from zoo.events.specs import Aggregation, Feature

MICROSECONDS = 1_000_000
_NEEDS_TIME = ("recency", "tenure", "quiet", "survival")


class _Events:
    """The events that a ``where`` leaves, as ascending positions in the index (None: all of them)."""

    def __init__(self, index: Index, where: tuple[str, ...], event_types: Mapping[str, int]) -> None:
        self.index = index
        self.where = where
        self.positions: Array | None = None
        if where:
            unknown = [w for w in where if w not in event_types]
            codes = [event_types[w] for w in where if w not in unknown]
            self.positions = np.flatnonzero(np.isin(index.column("event_type"), codes))
        self._kept: dict[Any, Array] = {}

    def rank(self, positions: Array) -> Array:
        """How many kept events lie before each position of the index."""
        return positions if self.positions is None else np.searchsorted(self.positions, positions)

    def keep(self, key: Any, make: Callable[[], Array]) -> Array:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def column(self, name: str) -> Array:
        if name == "gap":
            return self.keep("gap", self._gap)
        values = self.index.column(name)
        return values if self.positions is None else self.keep(name, lambda: values[self.positions])

    def entities(self) -> Array:
        entity = self.index.entity_of()
        return entity if self.positions is None else entity[self.positions]

    def _gap(self) -> Array:
        time = self.column("time")
        gaps = np.full(len(time), np.nan)
        if len(time) > 1:
            same = np.diff(self.entities()) == 0
            gaps[1:][same] = np.diff(time)[same] / MICROSECONDS
        return gaps

    def prefix(self, name: str) -> Array:
        """int64 (m + 1,): running sum of a fixed-point or integer column, missing values counted as 0."""

        def make() -> Array:
            values = self.column(name)
            out = np.zeros(len(values) + 1, np.int64)
            np.cumsum(np.where(values == MISSING, 0, values), out=out[1:])
            return out

        return self.keep(("prefix", name), make)

    def present(self, name: str) -> Array:
        """int64 (m + 1,): running number of events that have the column."""

        def make() -> Array:
            values = self.column(name)
            known = values != MISSING if values.dtype.kind in "iu" else ~np.isnan(values)
            return np.concatenate(([0], np.cumsum(known)))

        return self.keep(("present", name), make)

    def previous(self, name: str) -> Array:
        """int64 (m,): the entity's previous event with the same value, -1 where this is the first (missing: itself)."""

        def make() -> Array:
            values, entities = self.column(name), self.entities()
            order = np.lexsort((np.arange(len(values)), values, entities))
            out = np.full(len(values), -1, np.int64)
            if len(values) > 1:
                same = (np.diff(values[order]) == 0) & (np.diff(entities[order]) == 0)
                out[order[1:][same]] = order[:-1][same]
            none = np.isnan(values) if values.dtype.kind == "f" else values == (0 if self.index.dictionary(name) else MISSING)
            out[none] = np.flatnonzero(none)
            return out

        return self.keep(("previous", name), make)

    def visit_starts(self, gap: int) -> Array:
        """int64 (v,): ranks of the kept events that are the first of their visit."""

        def make() -> Array:
            begins = self.index.visits(gap)
            if self.positions is None:
                return np.flatnonzero(begins)
            visit = np.cumsum(begins)[self.positions]
            return np.flatnonzero(np.diff(visit, prepend=-1) != 0)

        return self.keep(("visits", gap), make)


class Evaluator:
    """Evaluates aggregations over one index, sharing what features have in common (filtered events, prefixes)."""

    def __init__(self, index: Index, event_types: Mapping[str, int]) -> None:
        """event_types: name -> code, for the features' ``where``."""
        self.index = index
        self.event_types = event_types
        self._events: dict[tuple[str, ...], _Events] = {}

    def events(self, where: tuple[str, ...]) -> _Events:
        if where not in self._events:
            self._events[where] = _Events(self.index, where, self.event_types)
        return self._events[where]

    def evaluate(self, aggregation: Aggregation, codes: Array, times: Array) -> dict[str, Column]:
        """Columns of the aggregation's features for n rows.

        codes: int32 (n,) entity codes; times: int64 (n,) microseconds UTC. Features are built from events with time < t
        (<= t with ``include_equal``). Raises FeatureError where the log lacks a column or the times that a feature needs.
        """
        self._check(aggregation)
        low, high = self.index.bounds(codes)
        stop = self.index.search(low, high, times, right=aggregation.include_equal)
        starts: dict[int | None, Array] = {None: low}
        out = {}
        slices: dict[Any, tuple[Array, Array]] = {}
        for feature in aggregation.features:
            window = None if feature.kind == "decay" else feature.window
            if window is not None and window not in starts:
                starts[window] = self.index.search(low, stop, times - window * MICROSECONDS)
            events = self.events(feature.where)
            key = (feature.where, window)
            if key not in slices:
                slices[key] = (events.rank(starts[window]), events.rank(stop))
            out[feature.name] = self._one(feature, events, *slices[key], times, aggregation.session_gap)
        return out

    def _check(self, aggregation: Aggregation) -> None:
        if not self.index.ordered_only:
            return
        bad = [
            f.name
            for f in aggregation.features
            if f.window or f.kind in _NEEDS_TIME or f.column in ("gap", "wait", "age", "day", "weekday", "hour")
        ]
        if bad or aggregation.entity[0] != "user_id":
            what = f"features {', '.join(bad)}" if bad else f"the aggregation of {aggregation.entity[0]}"
            raise FeatureError(
                f"{what} need times, but this log has only an order (clock=order): positions say what came first, not how "
                "long ago or what others did meanwhile; use last_n, count and distinct without a window on user_id"
            )

    def _one(self, f: Feature, events: _Events, start: Array, stop: Array, times: Array, gap: int) -> Column:
        if f.kind == "last_n":
            return (
                self._visit_steps(f, events, start, stop, times, gap)
                if f.step == "visit"
                else self._last_n(f, events, start, stop, times)
            )
        if f.kind == "count":
            if f.step == "visit":
                starts = events.visit_starts(gap)
                return Column(np.searchsorted(starts, stop) - np.searchsorted(starts, start))
            return Column(stop - start)
        if f.kind == "decay":
            return Column(self._decay(f, events, start, stop, times, gap))
        if f.kind in ("quiet", "survival"):
            return Column(self._waiting(f, events, start, stop, times, gap))
        if f.kind == "sum":
            return Column(self._sum(f.column, events, start, stop))
        if f.kind == "mean":
            present = events.present(f.column)
            number = present[stop] - present[start]
            with np.errstate(invalid="ignore", divide="ignore"):
                return Column(np.where(number > 0, self._sum(f.column, events, start, stop) / number, np.nan))
        if f.kind == "distinct":
            return Column(self._distinct(f.column, events, start, stop))
        if f.kind == "last":
            return self._last(f, events, start, stop)
        time = events.column("time")
        out = np.full(len(start), np.nan)
        some = stop > start
        at = stop[some] - 1 if f.kind == "recency" else start[some]
        out[some] = (times[some] - time[at]) / MICROSECONDS
        return Column(out)

    def _sum(self, name: str, events: _Events, start: Array, stop: Array) -> Array:
        values = events.column(name)
        if values.dtype.kind in "iub":
            prefix = events.prefix(name)
            total = (prefix[stop] - prefix[start]).astype(np.float64)
            return total / SCALE if self.index.is_fixed(name) else total
        # floats are summed slice by slice: differences of a running float sum would carry the whole log's rounding
        flat, offsets = gather(values, start, stop - start)
        return np.bincount(np.repeat(np.arange(len(start)), np.diff(offsets)), np.nan_to_num(flat), minlength=len(start))

    def _steps(self, f: Feature, events: _Events, start: Array, stop: Array, gap: int) -> tuple[Array, Array, Array]:
        """(times of the steps in each row's slice, their offsets, the row of each)."""
        time = events.column("time")
        if f.step == "visit":
            positions = events.visit_starts(gap)
            start, stop = np.searchsorted(positions, start), np.searchsorted(positions, stop)
            time = events.keep(("visit times", gap), lambda: events.column("time")[positions])
        flat, offsets = gather(time, start, stop - start)
        return flat, offsets, np.repeat(np.arange(len(start)), np.diff(offsets))

    def _waiting(self, f: Feature, events: _Events, start: Array, stop: Array, times: Array, gap: int) -> Array:
        flat, offsets, rows = self._steps(f, events, start, stop, gap)
        waits, horizon = _waits(flat, offsets, times), float(f.horizon or 0)
        number = np.diff(offsets)
        newest = np.zeros(len(start))
        newest[number > 0] = waits[offsets[1:][number > 0] - 1]
        if f.kind == "quiet":
            idle = np.bincount(rows, np.maximum(waits - horizon, 0), minlength=len(start))
            span = np.bincount(rows, waits, minlength=len(start))
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(span > 0, idle / span, np.nan)
        past = np.ones(len(waits), bool)
        past[offsets[1:][number > 0] - 1] = False
        longer = np.bincount(rows[past & (waits >= newest[rows])], minlength=len(start))
        lasted = np.bincount(rows[past & (waits >= newest[rows] + horizon)], minlength=len(start))
        return np.where(number > 0, (lasted + 1) / (longer + 4), np.nan)

    def _decay(self, f: Feature, events: _Events, start: Array, stop: Array, times: Array, gap: int) -> Array:
        flat, _, rows = self._steps(f, events, start, stop, gap)
        half_lives = (times[rows] - flat) / ((f.window or 1) * MICROSECONDS)
        return np.bincount(rows, np.exp2(-half_lives), minlength=len(start))

    def _distinct(self, name: str, events: _Events, start: Array, stop: Array) -> Array:
        # an event is the first of its value within [start, stop) exactly when the previous one with that value lies before start
        previous, offsets = gather(events.previous(name), start, stop - start)
        rows = np.repeat(np.arange(len(start)), np.diff(offsets))
        return np.bincount(rows[previous < start[rows]], minlength=len(start)).astype(np.int64)

    def _last(self, f: Feature, events: _Events, start: Array, stop: Array) -> Column:
        values, dictionary = events.column(f.column), self.index.dictionary(f.column)
        out = np.zeros(len(start), np.int32) if dictionary else np.full(len(start), np.nan)
        some = stop > start
        out[some] = self._plain(f.column, values[stop[some] - 1])
        return Column(out, dictionary=dictionary)

    def _plain(self, name: str, values: Array) -> Array:
        return from_fixed(values) if self.index.is_fixed(name) else values

    def _last_n(self, f: Feature, events: _Events, start: Array, stop: Array, times: Array) -> Column:
        length = np.minimum(stop - start, f.n)
        source = events.column("time" if f.column in ("age", "wait") else f.column)
        values, offsets = gather(source, stop - length, length)
        if f.column == "age":
            values = (np.repeat(times, length) - values) / MICROSECONDS
        if f.column == "wait":
            values = _waits(values, offsets, times)
        return Column(self._plain(f.column, values), offsets, self.index.dictionary(f.column))

    def _visit_steps(self, f: Feature, events: _Events, start: Array, stop: Array, times: Array, gap: int) -> Column:
        starts = events.visit_starts(gap)
        high = np.searchsorted(starts, stop)
        length = np.minimum(high - np.searchsorted(starts, start), f.n)
        visit, offsets = gather(np.arange(len(starts), dtype=np.int64), high - length, length)
        begin = starts[visit]
        if f.of == "first":
            if f.column in ("age", "gap", "wait"):
                time = events.column("time")
                if f.column == "wait":
                    return Column(_waits(time[begin], offsets, times), offsets)
                if f.column == "age":
                    return Column((np.repeat(times, length) - time[begin]) / MICROSECONDS, offsets)
                before = starts[np.maximum(visit - 1, 0)]
                first = (visit == 0) | (before < np.repeat(start, length))
                return Column(np.where(first, np.nan, (time[begin] - time[before]) / MICROSECONDS), offsets)
            return Column(self._plain(f.column, events.column(f.column)[begin]), offsets, self.index.dictionary(f.column))
        # a visit still running at t holds only its events before t
        end = np.minimum(np.append(starts[1:], len(events.column("time")))[visit], np.repeat(stop, length))
        if f.of == "count":
            return Column((end - begin).astype(np.float64), offsets)
        if f.of == "sum":
            return Column(self._sum(f.column, events, begin, end), offsets)
        return Column(self._distinct(f.column, events, begin, end).astype(np.float64), offsets)


def _waits(time: Array, offsets: Array, times: Array) -> Array:
    """Seconds from each step of a sequence to the next, and from the newest to t."""
    after = np.empty(len(time), np.int64)
    after[:-1] = time[1:]
    some = np.diff(offsets) > 0
    after[offsets[1:][some] - 1] = times[some]
    waits: Array = (after - time) / MICROSECONDS
    return waits


def evaluate_pairs(
    evaluator: Evaluator,
    aggregation: Aggregation,
    codes: Array,
    partners: Array,
    times: Array,
    members: Mapping[str, tuple[Array, Array]] | None,
) -> dict[str, Column]:
    """Columns of a pair aggregation for n rows.

    codes: int32 (n,) of the user; partners: int32 (n,) of the second entity. members: ``via`` -> (offsets by partner code, sorted
    codes) of the partner's set; None: the user's events whose own column ``aggregation.entity[1]`` equals the partner.
    """
    index = evaluator.index
    low, high = index.bounds(codes)
    stop = index.search(low, high, times, right=aggregation.include_equal)
    out: dict[str, Column] = {}
    for f in aggregation.features:
        if f.kind not in ("count", "sum", "distinct", "recency"):
            raise FeatureError(f"pair feature {f.name!r} has kind {f.kind!r}; pairs have count, sum, distinct and recency")
        events = evaluator.events(f.where)
        begin = low if f.window is None else index.search(low, stop, times - f.window * MICROSECONDS)
        start, end = events.rank(begin), events.rank(stop)
        positions, offsets = gather(np.arange(len(events.column("time")), dtype=np.int64), start, end - start)
        rows = np.repeat(np.arange(len(codes)), np.diff(offsets))
        via = f.via or "item_id"
        if members is None:
            match = events.column(aggregation.entity[1])[positions] == partners[rows]
        else:
            match = _contains(*members[via], partners[rows], events.column(via)[positions])
        rows, positions = rows[match], positions[match]
        if f.kind == "count":
            out[f.name] = Column(np.bincount(rows, minlength=len(codes)).astype(np.int64))
        elif f.kind == "sum":
            values = events.column(f.column)[positions]
            exact = values.dtype.kind in "iu"
            values = np.where(values == MISSING, 0, values) if exact else np.nan_to_num(values)
            sums = np.zeros(len(codes), np.int64 if exact else np.float64)
            np.add.at(sums, rows, values)
            out[f.name] = Column(sums / SCALE if index.is_fixed(f.column) else sums.astype(np.float64))
        elif f.kind == "distinct":
            keys = np.unique(np.stack([rows, events.column(f.column)[positions].astype(np.int64)]), axis=1)
            out[f.name] = Column(np.bincount(keys[0], minlength=len(codes)).astype(np.int64))
        else:
            newest = np.full(len(codes), -1, np.int64)
            newest[rows] = positions  # positions ascend within a row, so the last write is the newest
            age = np.full(len(codes), np.nan)
            some = newest >= 0
            age[some] = (times[some] - events.column("time")[newest[some]]) / MICROSECONDS
            out[f.name] = Column(age)
    return out


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
