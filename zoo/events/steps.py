"""The steps, events or visits, of each row, and what their columns hold as of the row's time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.contract import Array
from zoo.events.filtered import FilteredEvents
from zoo.events.index import SCALE
from zoo.events.slices import MICROSECONDS, Picked, Slices, or_zero


@dataclass(slots=True)
class Steps:
    """Steps that some rows look at.

    events: those that pass the feature's ``where``. picked: each row's steps, ranks among the events or numbers of their visits.
    first, stop: int64 (n,), each row's first step and past its last, whatever the window. seen: int64 (n,) rank of the first event
    that is not seen. times: int64 (n,) the rows' t. gap: session gap where steps are visits, None where they are events.
    """

    events: FilteredEvents
    picked: Picked
    first: Array
    stop: Array
    seen: Array
    times: Array
    gap: int | None
    _ages: Array | None = None
    _waits: Array | None = None

    def picking(self, picked: Picked) -> Steps:
        """Other steps of the same rows."""
        return Steps(self.events, picked, self.first, self.stop, self.seen, self.times, self.gap)

    def begun(self) -> Array:
        """int64 (m,): when each step began."""
        return self.picked.of(self._all_times())

    def _all_times(self) -> Array:
        return self.events.column("time") if self.gap is None else self.events.visit_times(self.gap)

    def _each(self, by_row: Array) -> Array:
        return np.repeat(by_row, self.picked.lengths)

    def ages(self) -> Array:
        """float64 (m,): seconds from each step to t; not to be changed, as features of the same steps share them."""
        if self._ages is None:
            self._ages = (self._each(self.times) - self.begun()) / MICROSECONDS
        return self._ages

    def waits(self) -> Array:
        """float64 (m,): seconds from each step to the entity's next, or to t; shared, too."""
        if self._waits is not None:
            return self._waits
        time, after = self._all_times(), self.picked.positions + 1
        ends = after >= self._each(self.stop)
        until = np.where(ends, self._each(self.times), time[np.where(ends, 0, after)] if len(time) else 0)
        self._waits = (until - self.begun()) / MICROSECONDS
        return self._waits

    def gaps(self) -> Array:
        """float64 (m,): seconds from the entity's step before to each, NaN for its first."""
        if self.gap is None:
            return self.picked.of(self.events.column("gap"))
        time, at = self._all_times(), self.picked.positions
        before = np.where(at > self._each(self.first), at - 1, at)
        return np.where(before < at, (time[at] - time[before]) / MICROSECONDS, np.nan)

    def values(self, column: str, of: str) -> tuple[Array, str | None]:
        """((m,) values as features show them, the dictionary of codes or None)."""
        if column == "age":
            return self.ages(), None
        if column == "wait":
            return self.waits(), None
        if column == "gap":
            return self.gaps(), None
        if self.gap is not None and of not in ("first", "last"):
            return held(of, column, self.events, self._inside()), None
        dictionary = self.events.index.dictionary(column)
        if self.gap is None and len(self.picked) > 1 and self.picked.offsets[-1] > len(self.events):
            return self.picked.of(self.events.shown(column)), dictionary  # each event is shown more than once
        stored = self.events.column(column)
        if self.gap is None:
            values = self.picked.of(stored)
        else:
            values = stored.take(self.picked.of(self.events.visit_starts(self.gap)) if of == "first" else self._inside().stop - 1)
        return self.events.plain(column, values), dictionary

    def numbers(self, column: str, of: str) -> Array:
        """float64 (m,): values as numbers, NaN for what is missing."""
        return np.asarray(self.values(column, of)[0], np.float64)

    def _inside(self) -> Slices:
        """The events of each visit; one still running at t holds only its events before t."""
        assert self.gap is not None
        starts, visit = self.events.visit_starts(self.gap), self.picked.positions
        end = np.append(starts, len(self.events.column("time")))[visit + 1]
        return Slices(starts[visit], np.minimum(end, self._each(self.seen)))


def held(of: str, column: str, events: FilteredEvents, inside: Slices) -> Array:
    """float64 (m,): what each visit's events are together."""
    if of == "count":
        return inside.lengths.astype(np.float64)
    if of == "length":
        time = events.column("time")
        out: Array = (time[inside.stop - 1] - time[inside.start]) / MICROSECONDS
        return out
    if of == "distinct":
        return different(column, events, inside).astype(np.float64)
    if of == "max":
        return inside.reduced(np.fmax, plain_numbers(column, events, inside))
    return total(column, events, inside) if of == "sum" else average(column, events, inside)


def plain_numbers(column: str, events: FilteredEvents, rows: Picked) -> Array:
    """float64 (m,): an event column at the rows' positions, NaN for what is missing."""
    return np.asarray(events.plain(column, rows.of(events.column(column))), np.float64)


def total(name: str, events: FilteredEvents, rows: Slices) -> Array:
    """float64: sum of a column over each slice, missing values counted as 0; exact where it is kept as integers.

    For such a column the slices may have any shape.
    """
    values = events.column(name)
    if values.dtype.kind in "iub":
        if ("total", name) not in rows.kept:
            prefix = events.prefix(name)
            sums = prefix[rows.stop] - prefix[rows.start]
            rows.kept["total", name] = sums / SCALE if events.index.is_fixed(name) else sums.astype(np.float64)
        return rows.kept["total", name]
    # floats are summed slice by slice: differences of a running float sum would carry the whole log's rounding
    return rows.sum(or_zero(rows.of(values)))


def average(name: str, events: FilteredEvents, rows: Slices) -> Array:
    """float64: mean of a column over each slice's events that have it, NaN where none has; shapes as in ``total``."""
    if events.complete(name):
        return divided(total(name, events, rows), rows.lengths)
    present = events.present(name)
    return divided(total(name, events, rows), present[rows.stop] - present[rows.start])


def different(name: str, events: FilteredEvents, rows: Slices) -> Array:
    """int64: different values of a column in each slice; where equal values are neighbours, the slices may have any shape."""
    running = events.runs(name)
    if running is not None:  # the slice's first event begins a run, whatever came before it
        found = running[rows.stop] - running[np.minimum(rows.start + 1, rows.stop)] + (rows.start < rows.stop)
        wide: Array = found.astype(np.int64, copy=False)
        return wide
    # an event is the first of its value within [start, stop) exactly when the previous one with that value lies before start
    return rows.count(rows.of(events.previous(name)) < np.repeat(rows.start, rows.lengths))


def divided(above: Array, below: Array, otherwise: Any = np.nan) -> Array:
    """float64: the quotient, ``otherwise`` where the divisor is 0."""
    some = below != 0
    if np.shape(some) == np.shape(above) and some.all():
        return np.true_divide(above, below)
    out = np.full(np.shape(above), otherwise, np.float64)
    return np.divide(above, below, out=out, where=some)
