"""Features of many rows at once from a sorted index: slices for sequences, position differences for counts, prefix sums.

Used alike for history (the whole log) and online (the requested entities' events), which is why the two agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zoo.contract import Array, Column
from zoo.errors import FeatureError
from zoo.events.filtered import FilteredEvents
from zoo.events.index import Index
from zoo.events.sequences import different, last_events, last_visits, total
from zoo.events.slices import MICROSECONDS, Slices, chunks, joined, waits
from zoo.events.specs import Aggregation, Feature

_NEEDS_TIME = ("recency", "tenure", "quiet", "survival")
_READS_ALL = ("decay", "quiet", "survival", "distinct", "sum", "mean")
"""Kinds that may look at each event of a row's slice, so that their memory grows with its length."""


class Evaluator:
    """Evaluates aggregations over one index, sharing what features have in common (filtered events, prefixes)."""

    def __init__(self, index: Index, event_types: Mapping[str, int]) -> None:
        """event_types: name -> code, for the features' ``where``."""
        self.index = index
        self.event_types = event_types
        self._events: dict[tuple[str, ...], FilteredEvents] = {}

    def events(self, where: tuple[str, ...]) -> FilteredEvents:
        if where not in self._events:
            self._events[where] = FilteredEvents(self.index, where, self.event_types)
        return self._events[where]

    def evaluate(self, aggregation: Aggregation, codes: Array, times: Array) -> dict[str, Column]:
        """Columns of the aggregation's features for n rows.

        codes: int32 (n,) entity codes; times: int64 (n,) microseconds UTC. Features are built from events with time < t
        (<= t with ``include_equal``). Raises FeatureError where the log lacks a column or the times that a feature needs.
        """
        self._check(aggregation)
        low, high = self.index.bounds(codes)
        stop = self.index.search(low, high, times, right=aggregation.include_equal)
        if not any(f.kind in _READS_ALL for f in aggregation.features):
            return _Rows(self, aggregation, low, stop, times).columns()
        parts = chunks(stop - low)
        return joined([_Rows(self, aggregation, low[rows], stop[rows], times[rows]).columns() for rows in parts])

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


class _Rows:
    """One evaluation: rows whose events are positions ``low`` to ``stop``, and the slices that their features share."""

    def __init__(self, evaluator: Evaluator, aggregation: Aggregation, low: Array, stop: Array, times: Array) -> None:
        self.evaluator, self.aggregation = evaluator, aggregation
        self.low, self.stop, self.times = low, stop, times
        self.gap = aggregation.session_gap
        self._starts: dict[int | None, Array] = {None: low}
        self._slices: dict[tuple[tuple[str, ...], int | None, str], Slices] = {}

    def columns(self) -> dict[str, Column]:
        return {f.name: self._one(f) for f in self.aggregation.features}

    def _slice(self, f: Feature, step: str = "event") -> Slices:
        """Each row's slice of the events that the feature looks at, or of their visits."""
        window = None if f.kind == "decay" else f.window
        key = (f.where, window, step)
        if key not in self._slices:
            if step == "visit":
                rows, starts = self._slice(f), self.evaluator.events(f.where).visit_starts(self.gap)
                self._slices[key] = Slices(np.searchsorted(starts, rows.start), np.searchsorted(starts, rows.stop))
            else:
                rank = self.evaluator.events(f.where).rank
                self._slices[key] = Slices(rank(self._start(window)), rank(self.stop))
        return self._slices[key]

    def _start(self, window: int | None) -> Array:
        if window not in self._starts:
            assert window is not None
            self._starts[window] = self.evaluator.index.search(self.low, self.stop, self.times - window * MICROSECONDS)
        return self._starts[window]

    def _one(self, f: Feature) -> Column:
        events, rows = self.evaluator.events(f.where), self._slice(f)
        if f.kind == "last_n":
            if f.step == "event":
                return last_events(f, events, rows, self.times)
            return last_visits(f, events, rows, self._slice(f, "visit"), self.times, self.gap)
        if f.kind == "count":
            return Column(self._slice(f, f.step).lengths)
        if f.kind == "sum":
            return Column(total(f.column, events, rows))
        if f.kind == "mean":
            present = events.present(f.column)
            number = present[rows.stop] - present[rows.start]
            with np.errstate(invalid="ignore", divide="ignore"):
                return Column(np.where(number > 0, total(f.column, events, rows) / number, np.nan))
        if f.kind == "distinct":
            return Column(different(f.column, events, rows))
        if f.kind in ("recency", "tenure"):
            some = rows.lengths > 0
            at = (rows.stop - 1 if f.kind == "recency" else rows.start)[some]
            age = np.full(len(rows), np.nan)
            age[some] = (self.times[some] - events.column("time")[at]) / MICROSECONDS
            return Column(age)
        if f.kind == "last":
            return self._last(f, events, rows)
        return Column(self._decay(f, events) if f.kind == "decay" else self._waiting(f, events))

    def _last(self, f: Feature, events: FilteredEvents, rows: Slices) -> Column:
        values, dictionary = events.column(f.column), self.evaluator.index.dictionary(f.column)
        out = np.zeros(len(rows), np.int32) if dictionary else np.full(len(rows), np.nan)
        some = rows.lengths > 0
        out[some] = events.plain(f.column, values[rows.stop[some] - 1])
        return Column(out, dictionary=dictionary)

    def _steps(self, f: Feature, events: FilteredEvents) -> tuple[Slices, Array]:
        """(each row's slice of events or visits, the time of each of its positions)."""
        steps = self._slice(f, f.step)
        return steps, (events.column("time") if f.step == "event" else events.visit_times(self.gap))[steps.positions]

    def _decay(self, f: Feature, events: FilteredEvents) -> Array:
        steps, time = self._steps(f, events)
        half_lives = (np.repeat(self.times, steps.lengths) - time) / ((f.window or 1) * MICROSECONDS)
        return steps.sum(np.exp2(-half_lives))

    def _waiting(self, f: Feature, events: FilteredEvents) -> Array:
        steps, time = self._steps(f, events)
        wait, horizon = waits(time, steps.offsets, self.times), float(f.horizon or 0)
        some = steps.lengths > 0
        if f.kind == "quiet":
            idle, span = steps.sum(np.maximum(wait - horizon, 0)), steps.sum(wait)
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(span > 0, idle / span, np.nan)
        newest = np.zeros(len(steps))
        newest[some] = wait[steps.offsets[1:][some] - 1]
        present = np.repeat(newest, steps.lengths)
        past = np.ones(len(wait), bool)
        past[steps.offsets[1:][some] - 1] = False
        longer, lasted = steps.count(past & (wait >= present)), steps.count(past & (wait >= present + horizon))
        return np.where(some, (lasted + 1) / (longer + 4), np.nan)
