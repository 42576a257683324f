"""Features of one row in few steps: of so few events most of an answer's time would be what it takes to begin each step of many rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np

from zoo.contract import Array, Column
from zoo.events.index import FIXED, MISSING, SCALE, from_fixed
from zoo.events.slices import MICROSECONDS, or_zero
from zoo.events.specs import Aggregation, Alike, Where

_NO_TYPE = -1
"""The code of an event type that no event has."""


class Events(Protocol):
    """One entity's events in order of (time, seq), such as an ``Index`` of that entity alone. time: int64 (m,)."""

    time: Array

    def column(self, name: str) -> Array:
        """(m,): a column as stored."""

    def complete(self, name: str) -> bool:
        """Whether every event is known to have the column, without a look at it."""


def answered(
    aggregation: Aggregation, events: Events, types: Mapping[str, int], dictionaries: Mapping[str, str], t: int
) -> tuple[dict[str, Column], int]:
    """(columns of ``aggregation.direct`` for one row, time of the newest event that it sees, -1 where it sees none).

    types: code by event type. dictionaries: by column of codes.
    """
    places = events.time.searchsorted(_ends(aggregation.windows, aggregation.lag, aggregation.include_equal) + t)
    seen, found = places.item(-1), dict[str, Column]()
    for where, groups in aggregation.direct:
        passing = _Passing(events, where, types, places, t)
        for alike in groups:
            passing.answer(alike, dictionaries, found)
    return found, events.time.item(seen - 1) if seen else -1


@lru_cache(maxsize=1024)
def _ends(windows: tuple[int | None, ...], lag: int, equal: bool) -> Array:
    """int64 (w,), ascending: microseconds from t to where all windows but the first, all history, begin, and to what is not seen."""
    return np.array([*(-window * MICROSECONDS for window in windows if window), equal - lag * MICROSECONDS], np.int64)


class _Passing:
    """The events of one filter as one row's windows see them at ``t``. places: int64 (w,) where ``_ends`` are in the events."""

    def __init__(self, events: Events, where: Where, types: Mapping[str, int], places: Array, t: int) -> None:
        self.events, self.positions, self.t = events, None, t
        if where:
            kinds = events.column("event_type")
            passing: Array | None = None
            for name in where:
                hits = np.equal(kinds, np.array(types.get(str(name), _NO_TYPE), kinds.dtype))  # sooner than a number
                passing = hits if passing is None else passing | hits
            assert passing is not None
            self.positions = passing.nonzero()[0]
            places = self.positions.searchsorted(places)
        self.begins: list[int] = [0, *places.tolist()]
        """Of each window, its first event among those that pass."""
        self.stop = self.begins.pop()
        self._values: dict[str, tuple[Array, bool]] = {}
        self._sums: dict[tuple[str, int, int], list[float]] = {}

    def answer(self, alike: Alike, dictionaries: Mapping[str, str], found: dict[str, Column]) -> None:
        """Add features that differ in their windows only to ``found``."""
        f, span = alike.features[0], alike.span
        if f.kind == "last_n":
            values, complete = self.values(f.column)
            for name, row in zip(alike.names, alike.rows):
                shown = values[max(self.begins[span.start + row], self.stop - f.n) : self.stop]
                shown = from_fixed(shown, complete) if f.column in FIXED else shown.copy()
                found[name] = Column(shown, np.array([0, len(shown)]), dictionaries.get(f.column))
            return
        if f.kind == "count":
            whole = np.array(self.counts(span))
        elif f.kind in ("recency", "tenure"):
            whole = np.array(self.ages(span, first=f.kind == "tenure"))
        else:
            whole = np.array(self.sums(f.column, span) if f.kind == "sum" else self.means(f.column, span))
        each = [*whole[:, None]]
        for name, row in zip(alike.names, alike.rows):
            found[name] = Column(each[row])

    def values(self, name: str) -> tuple[Array, bool]:
        """(a column of the events that pass, not to be changed; whether all of them have it, where it is of integers)."""
        found = self._values.get(name)
        if found is None:
            values, events = self.events.column(name), self.events
            if self.positions is not None:
                values = values.take(self.positions)
            complete = (
                events.complete(name)
                or not len(values)
                or (
                    values.dtype.str == "<i8" and values.item(values.argmin()) != MISSING  # the least number
                )
            )
            self._values[name] = found = values, complete
        return found

    def counts(self, span: slice) -> list[int]:
        """Events of each window of ``span``."""
        stop = self.stop
        return [stop - begin for begin in self.begins[span]]

    def ages(self, span: slice, *, first: bool) -> list[float]:
        """Seconds from the first, or the newest, event of each window of ``span`` to t, NaN where it has none."""
        out, time, positions = [], self.events.time, self.positions
        for begin in self.begins[span]:
            at = begin if first else self.stop - 1
            known = begin < self.stop
            out.append(
                (self.t - time.item(at if positions is None else positions.item(at))) / MICROSECONDS if known else math.nan
            )
        return out

    def sums(self, name: str, span: slice) -> list[float]:
        """Sum of a column in each window, missing values counted as 0: of integers exact, of floats one after another."""
        key = name, span.start, span.stop
        found = self._sums.get(key)
        if found is None:
            values, complete = self.values(name)
            if values.dtype.kind == "f":
                parts = [or_zero(values[begin : self.stop]) for begin in self.begins[span]]
                found = [part.cumsum().item(-1) + 0.0 if len(part) else 0.0 for part in parts]
            else:
                values = values[self.begins[span.start] : self.stop]
                if not complete:
                    values = np.where(values == MISSING, 0, values)
                unit = SCALE if name in FIXED else 1
                found = [float(total) / unit for total in self._within(values, span)]
            self._sums[key] = found
        return found

    def _within(self, values: Array, span: slice) -> list[int]:
        """By window of ``span`` the sum of values, which are those from the first event of its first on."""
        begins = self.begins[span]
        if not len(values):
            return [0] * len(begins)
        running = values.cumsum(dtype=np.int64)
        last, before = running.item(-1), begins[0] + 1
        return [last - running.item(begin - before) if begin >= before else last for begin in begins]

    def means(self, name: str, span: slice) -> list[float]:
        """Mean of a column over the events of each window that have it, NaN where none has."""
        sums, numbers = self.sums(name, span), self.counts(span)
        values, complete = self.values(name)
        if not complete:
            values = values[self.begins[span.start] : self.stop]
            numbers = self._within(~np.isnan(values) if values.dtype.kind == "f" else values != MISSING, span)
        return [total / number if number else math.nan for total, number in zip(sums, numbers)]
