"""Features of one row in few steps: of so few events most of an answer's time would be what it takes to begin each step of many rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.contract import Array, Column
from zoo.events.filtered import FilteredEvents
from zoo.events.index import SCALE
from zoo.events.specs import OF_STEPS, Alike


class Passing:
    """The events of one filter as one row's windows see them.

    places: int64 (w + 1,): where each window begins in the index, the longest's first, and past the last event that is seen.
    """

    def __init__(self, events: FilteredEvents, places: Array) -> None:
        self.events = events
        self.ranks = places if events.positions is None else events.positions.searchsorted(places)
        """int64 (w + 1,): ``places`` among the events that pass."""
        self.begins: list[int] = self.ranks.tolist()
        self.stop = self.begins.pop()
        self._totals: dict[tuple[str, int], list[int]] = {}

    def counts(self, span: slice) -> list[int]:
        """Events of each window of ``span``."""
        stop = self.stop
        return [stop - begin for begin in self.begins[span]]

    def sums(self, name: str, span: slice) -> list[float]:
        """Sum of a column that is kept as integers in each window, missing values counted as 0."""
        totals = self._totals.get((name, span.start))
        if totals is None:
            values = self.events.column(name)[self.begins[span.start] : self.stop]
            if not self.events.complete(name):
                values = np.where(self.events.missing(name, values), 0, values)
            self._totals[name, span.start] = totals = self._within(values.cumsum(dtype=np.int64), span)
        unit = SCALE if self.events.index.is_fixed(name) else 1
        return [float(total) / unit for total in totals]

    def _within(self, running: Array, span: slice) -> list[int]:
        """By window of ``span`` the sum of values of which these are the running sums, from the first event of its first on."""
        begins = self.begins[span]
        if not len(running):
            return [0] * len(begins)
        last, before = running.item(-1), begins[0] + 1
        return [last - running.item(begin - before) if begin >= before else last for begin in begins]

    def means(self, name: str, span: slice) -> list[float]:
        """Mean of such a column over the events of each window that have it, NaN where none has."""
        sums, numbers = self.sums(name, span), self.counts(span)
        if not self.events.complete(name):
            there = ~self.events.missing(name, self.events.column(name)[self.begins[span.start] : self.stop])
            numbers = self._within(there.cumsum(dtype=np.int64), span)
        return [total / number if number else math.nan for total, number in zip(sums, numbers)]

    def newest(self, name: str, number: int, window: int) -> Array:
        """The last values of a column in a window, oldest first, as features show them."""
        begin = max(self.begins[window], self.stop - number)
        return self.events.plain(name, self.events.some(name, begin, self.stop))


def answered(alike: Alike, passing: Passing, found: dict[str, Column]) -> bool:
    """Add features that differ in their windows only to ``found``; False, and none is added, where they are of another kind."""
    f, span = alike.features[0], alike.span
    if f.step != "event" or f.column in OF_STEPS:
        return False
    if f.kind == "count":
        values: list[Any] = passing.counts(span)
    elif f.kind in ("sum", "mean") and passing.events.column(f.column).dtype.kind in "iub":
        values = passing.sums(f.column, span) if f.kind == "sum" else passing.means(f.column, span)
    elif f.kind == "last_n":
        dictionary = passing.events.index.dictionary(f.column)
        for each, row in zip(alike.features, alike.rows):
            shown = passing.newest(each.column, each.n, span.start + row)
            found[each.name] = Column(shown, np.array([0, len(shown)]), dictionary)
        return True
    else:
        return False
    whole = np.array(values)
    for each, row in zip(alike.features, alike.rows):
        found[each.name] = Column(whole[row : row + 1])
    return True
