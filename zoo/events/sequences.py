"""Sequence features: the newest n events or visits of each row, oldest first."""

from __future__ import annotations

import numpy as np

from zoo.contract import Array, Column
from zoo.events.filtered import FilteredEvents
from zoo.events.slices import MICROSECONDS, Slices, or_zero, waits
from zoo.events.specs import Feature


def last_events(f: Feature, events: FilteredEvents, rows: Slices, times: Array) -> Column:
    """The newest ``f.n`` events before t (int64 (n,)); ``rows`` are slices of ``events``."""
    newest = rows.newest(f.n)
    source = events.column("time" if f.column in ("age", "wait") else f.column)
    values = source[newest.positions]
    if f.column == "age":
        values = (np.repeat(times, newest.lengths) - values) / MICROSECONDS
    elif f.column == "wait":
        values = waits(values, newest.offsets, times)
    return Column(events.plain(f.column, values), newest.offsets, events.index.dictionary(f.column))


def last_visits(f: Feature, events: FilteredEvents, rows: Slices, visits: Slices, times: Array, gap: int) -> Column:
    """The newest ``f.n`` visits; ``visits`` are the rows' slices of ``events.visit_starts(gap)``."""
    starts, newest = events.visit_starts(gap), visits.newest(f.n)
    visit = newest.positions
    if f.of == "first":
        return _first(f, events, rows, newest, times, starts)
    # a visit still running at t holds only its events before t
    end = np.append(starts, len(events.column("time")))[visit + 1]
    inside = Slices(starts[visit], np.minimum(end, np.repeat(rows.stop, newest.lengths)))
    if f.of == "count":
        values = inside.lengths.astype(np.float64)
    elif f.of == "sum":
        values = total(f.column, events, inside)
    else:
        values = different(f.column, events, inside).astype(np.float64)
    return Column(values, newest.offsets)


def _first(f: Feature, events: FilteredEvents, rows: Slices, newest: Slices, times: Array, starts: Array) -> Column:
    """What the first event of each visit says."""
    begin = starts[newest.positions]
    if f.column not in ("age", "gap", "wait"):
        values = events.plain(f.column, events.column(f.column)[begin])
        return Column(values, newest.offsets, events.index.dictionary(f.column))
    time = events.column("time")
    if f.column == "wait":
        return Column(waits(time[begin], newest.offsets, times), newest.offsets)
    if f.column == "age":
        return Column((np.repeat(times, newest.lengths) - time[begin]) / MICROSECONDS, newest.offsets)
    before = starts[np.maximum(newest.positions - 1, 0)]
    first = (newest.positions == 0) | (before < np.repeat(rows.start, newest.lengths))
    return Column(np.where(first, np.nan, (time[begin] - time[before]) / MICROSECONDS), newest.offsets)


def total(name: str, events: FilteredEvents, rows: Slices) -> Array:
    """float64 (n,): sum of a column over each slice, missing values counted as 0; exact where it is kept as integers."""
    values = events.column(name)
    if values.dtype.kind in "iub":
        prefix = events.prefix(name)
        return events.plain(name, prefix[rows.stop] - prefix[rows.start]).astype(np.float64)
    # floats are summed slice by slice: differences of a running float sum would carry the whole log's rounding
    return rows.sum(or_zero(values[rows.positions]))


def different(name: str, events: FilteredEvents, rows: Slices) -> Array:
    """int64 (n,): different values of a column in each slice."""
    # an event is the first of its value within [start, stop) exactly when the previous one with that value lies before start
    return rows.count(events.previous(name)[rows.positions] < np.repeat(rows.start, rows.lengths))
