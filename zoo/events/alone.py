"""Features of one row in few steps: of so few events most of an answer's time would be what it takes to begin each step of many rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import numpy as np

from zoo.contract import Array, Column
from zoo.events.filtered import FilteredEvents
from zoo.events.index import FIXED, MISSING, SCALE
from zoo.events.slices import MICROSECONDS, Slices, or_zero
from zoo.events.specs import Aggregation, Alike, Feature, Where
from zoo.events.steps import held


def answered(aggregation: Aggregation, events: Callable[[Where], FilteredEvents], places: Array, t: int) -> dict[str, Column]:
    """Columns of ``aggregation.direct`` for one row at t, equal to the last bit to those of many rows.

    events: those that a filter leaves. places: int64 (w + 1,), where each of the aggregation's windows begins in the index, and past the
    last event that the row sees.
    """
    found: dict[str, Column] = {}
    for where, groups in aggregation.direct:
        passing = _Events(events(where), places, t)
        visits = None
        for alike in groups:
            if alike.features[0].step == "event":
                passing.answer(alike, found)
            else:
                visits = visits or _Visits(passing, aggregation.session_gap)
                visits.answer(alike, found)
    return found


class _Steps(ABC):
    """Steps of one row, ``number`` of them, oldest first.

    begins: of each window, its first step; the first window is all history. t: the row's.
    """

    def __init__(self, events: FilteredEvents, number: int, begins: list[int], t: int) -> None:
        self.events, self.number, self.begins, self.t = events, number, begins, t

    @property
    @abstractmethod
    def time(self) -> Array:
        """int64 (m,): when each began."""

    def answer(self, alike: Alike, found: dict[str, Column]) -> None:
        """Add features that differ in their windows only to ``found``."""
        f, span, number = alike.features[0], alike.span, self.number
        if f.kind == "last_n":
            for name, row in zip(alike.names, alike.rows):
                begin = max(self.begins[span.start + row], number - f.n)
                shown, dictionary = self.shown(f, begin)
                found[name] = Column(shown, np.array([0, number - begin]), dictionary)
            return
        whole = np.array(self.numbers(f, span))
        each = [*whole[:, None]]
        for name, row in zip(alike.names, alike.rows):
            found[name] = Column(each[row])

    def shown(self, f: Feature, begin: int) -> tuple[Array, str | None]:
        """(what a sequence shows from its step ``begin`` on, in an array of its own; the dictionary of codes or None)."""
        if f.column == "age":
            return self.ages[begin:].copy(), None
        if f.column == "wait":
            return self.waits[begin:].copy(), None
        gaps = np.full(self.number - begin, np.nan)
        after = max(begin, 1)  # the first step has none
        np.true_divide(self.time[after:] - self.time[after - 1 : -1], MICROSECONDS, out=gaps[after - begin :])
        return gaps, None

    @cached_property
    def ages(self) -> Array:
        """float64 (m,): seconds from each step to t."""
        return np.asarray((self.t - self.time) / MICROSECONDS)

    @cached_property
    def waits(self) -> Array:
        """float64 (m,): seconds from each step to the next, or to t."""
        out = np.empty(self.number, np.int64)
        if len(out):
            np.subtract(self.time[1:], self.time[:-1], out=out[:-1])
            out[-1] = self.t - self.time.item(-1)
        return np.asarray(out / MICROSECONDS)

    def numbers(self, f: Feature, span: slice) -> list[int] | list[float]:
        """Of each window of ``span`` the number that a feature is."""
        begins = self.begins[span]
        if f.kind == "count":
            return self.counts(begins)
        if f.kind == "decay":
            return [_sum(np.exp2(self.ages / -float(f.window or 1)))]
        horizon = float(f.horizon or 0)
        if f.kind == "quiet":
            over = np.maximum(self.waits - horizon, 0)
            return [_share(_sum(over[begin:]), _sum(self.waits[begin:])) for begin in begins]
        return [_survival(self.waits[begin:], horizon) for begin in begins]

    def counts(self, begins: list[int]) -> list[int]:
        number = self.number
        return [number - begin for begin in begins]


class _Events(_Steps):
    """The events of one filter. places: int64 (w + 1,) as in ``answered``."""

    def __init__(self, events: FilteredEvents, places: Array, t: int) -> None:
        self.first, *begins, self.stop = events.rank(places).tolist()
        first = self.first
        super().__init__(events, self.stop - first, [0, *[begin - first for begin in begins]], t)
        self._sums: dict[tuple[object, ...], list[float]] = {}

    @cached_property
    def time(self) -> Array:
        return self.values("time")

    def values(self, name: str, begin: int = 0) -> Array:
        """A column from the step ``begin`` on, as stored; not to be changed."""
        return self.events.column(name)[self.first + begin : self.stop]

    def shown(self, f: Feature, begin: int) -> tuple[Array, str | None]:
        if f.column in ("age", "wait", "gap"):
            return super().shown(f, begin)
        events, values = self.events, self.values(f.column, begin)
        return (events.plain(f.column, values) if f.column in FIXED else values.copy()), events.index.dictionary(f.column)

    def numbers(self, f: Feature, span: slice) -> list[int] | list[float]:
        begins, number = self.begins[span], self.number
        if f.kind in ("recency", "tenure"):
            ends = [(begin if f.kind == "tenure" else number - 1, begin < number) for begin in begins]
            return [(self.t - self.time.item(at)) / MICROSECONDS if there else math.nan for at, there in ends]
        if f.kind == "distinct":
            return self.different(f.column, begins)
        if f.kind == "sum":
            return self.sums(f.column, begins)
        return self.means(f.column, begins) if f.kind == "mean" else super().numbers(f, span)

    def sums(self, name: str, begins: list[int]) -> list[float]:
        """Sum of a column in each window, missing values counted as 0: of integers exact, of floats one after another."""
        key = (name, *begins)
        found = self._sums.get(key)
        if found is None:
            values = self.values(name, begins[0])
            if values.dtype.kind == "f":
                found = [_sum(or_zero(values[begin - begins[0] :])) for begin in begins]
            else:
                if not self.events.complete(name):
                    values = np.where(values == MISSING, 0, values)
                unit = SCALE if name in FIXED else 1
                found = [float(total) / unit for total in _within(values, begins)]
            self._sums[key] = found
        return found

    def means(self, name: str, begins: list[int]) -> list[float]:
        """Mean of a column over the events of each window that have it, NaN where none has."""
        if self.events.complete(name):
            numbers = self.counts(begins)
        else:
            numbers = _within(~self.events.missing(name, self.values(name, begins[0])), begins)
        return [_share(total, number) for total, number in zip(self.sums(name, begins), numbers)]

    def different(self, name: str, begins: list[int]) -> list[int]:
        """Different values of a column in each window."""
        values = self.values(name, begins[0])
        if name == "day" and (values[1:] >= values[:-1]).all():
            return _runs(values, begins)
        floats, nothing = values.dtype.kind == "f", 0 if self.events.index.dictionary(name) else MISSING
        out = []
        for begin in begins:
            some = values[begin - begins[0] :]
            out.append(len({*(some[~np.isnan(some)] if floats else some).tolist()} - {nothing}))
        return out


class _Visits(_Steps):
    """The visits of the events of one filter, after a pause of ``gap`` seconds each."""

    def __init__(self, passing: _Events, gap: int) -> None:
        starts, first, stop = passing.events.visit_starts(gap), passing.first, passing.stop
        lowest, *begins, highest = starts.searchsorted([first, *(first + begin for begin in passing.begins[1:]), stop]).tolist()
        self.starts, self.stop, self._inside = starts[lowest:highest], stop, dict[int, Slices]()
        super().__init__(passing.events, len(self.starts), [0, *[begin - lowest for begin in begins]], passing.t)

    @cached_property
    def time(self) -> Array:
        return self.events.column("time").take(self.starts)

    def shown(self, f: Feature, begin: int) -> tuple[Array, str | None]:
        events = self.events
        if f.column in ("age", "wait", "gap"):
            return super().shown(f, begin)
        if f.of not in ("first", "last"):
            inside, dictionary = self.inside(begin), events.index.dictionary(f.column)
            if f.of == "distinct" and dictionary and len(inside):
                return _different_codes(events.column(f.column)[inside.start.item(0) : self.stop], inside.lengths), None
            return held(f.of, f.column, events, inside), None
        at = self.starts[begin:] if f.of == "first" else self.inside(begin).stop - 1
        return events.plain(f.column, events.column(f.column).take(at)), events.index.dictionary(f.column)

    def inside(self, begin: int) -> Slices:
        """The events of each visit from ``begin`` on; one still running at t holds only its events before t."""
        found = self._inside.get(begin)
        if found is None:
            starts = self.starts[begin:]
            self._inside[begin] = found = Slices(starts, np.append(starts[1:], self.stop) if len(starts) else starts)
        return found


def _sum(values: Array) -> float:
    """One after another."""
    return values.cumsum().item(-1) + 0.0 if len(values) else 0.0


def _share(above: float, below: float) -> float:
    return above / below if below else math.nan


def _survival(waits: Array, horizon: float) -> float:
    """How likely the last of these waits lasts ``horizon`` longer, by those before it; NaN where there is none."""
    if not len(waits):
        return math.nan
    past, present = waits[:-1], waits.item(-1)
    longer, lasted = np.count_nonzero(past >= present), np.count_nonzero(past >= present + horizon)
    return (lasted + 1) / (longer + 4)


def _different_codes(codes: Array, lengths: Array) -> Array:
    """float64 (v,): different codes, nothing's left out, of each of some visits that lie one after another and are of these lengths."""
    visit = np.repeat(np.arange(len(lengths)), lengths)
    width = codes.item(codes.argmax()) + 1
    keys = visit * width + codes
    keys.sort()
    first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    visit, code = np.divmod(keys[first], width)
    return np.bincount(visit[code > 0], minlength=len(lengths)).astype(np.float64)


def _runs(values: Array, begins: list[int]) -> list[int]:
    """How many different values, which ascend, there are from each of ``begins`` on; the values are those from the first of these on."""
    other = (values[1:] != values[:-1]).cumsum()
    last, first = other.item(-1) if len(other) else 0, begins[0]
    before = [other.item(begin - first - 1) if first < begin <= first + len(other) else 0 for begin in begins]
    return [last - some + 1 if begin < first + len(values) else 0 for begin, some in zip(begins, before)]


def _within(values: Array, begins: list[int]) -> list[int]:
    """The sum of values from each of ``begins`` on; they are those from the first of these on."""
    if not len(values):
        return [0] * len(begins)
    running = values.cumsum(dtype=np.int64)
    last, before = running.item(-1), begins[0] + 1
    return [last - running.item(begin - before) if begin >= before else last for begin in begins]
