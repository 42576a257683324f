"""Events of an index that pass a filter, with what features derive from them: gaps, running sums, previous equals, visits."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any

import numpy as np

from zoo.contract import UNKNOWN, Array
from zoo.errors import FeatureError
from zoo.events.index import MISSING, Index, from_fixed
from zoo.events.slices import MICROSECONDS
from zoo.events.specs import CALENDAR, Condition, Where

Code = Callable[[str, Any], int]
"""The code of an identifier or text in a dictionary, 1 where it is not there: (dictionary, value) -> code."""

_NO_TYPE = -1
"""The code of an event type that no event has."""

_FEW = 64
"""Ranks up to which searching for them costs less than counting all events."""

_FEWER = 32
"""As ``_FEW``: that many times fewer ranks than events."""

_CACHED = 1 << 16
"""Events that lie in the processor's cache."""

_NEAR = 4
"""As ``_FEWER``, of events that do."""

_COMPARE: Mapping[str, Callable[[Array, Any], Array]] = {
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _missing(index: Index, name: str, values: Array) -> Array:
    if values.dtype.kind == "f":
        return np.isnan(values)
    none: Array = values == (0 if index.dictionary(name) else MISSING)
    return none


def _satisfying(condition: Condition, index: Index, code: Code) -> Array:
    """bool (m,): which events of the index satisfy a condition."""
    name, op, values = condition.column, condition.op, index.column(condition.column)
    there, dictionary = ~_missing(index, name, values), index.dictionary(name)
    wanted = list(condition.values)
    if dictionary is not None:
        if op not in ("==", "!=", "in"):
            raise FeatureError(
                f"a condition {name} {op} {wanted[0]!r}: {name!r} holds names, which have no order; use ==, != or in"
            )
        codes = [c for c in (code(dictionary, value) for value in wanted) if c != UNKNOWN]
        found = np.isin(values, codes)
        return there & ~found if op == "!=" else found
    if any(isinstance(value, str) for value in wanted):
        raise FeatureError(f"a condition compares {name!r} with the text {condition.value!r}, but it holds numbers")
    plain = from_fixed(values) if index.is_fixed(name) else values
    return there & (np.isin(plain, wanted) if op in ("==", "in") else _COMPARE[op](plain, wanted[0]))


_NONE = np.zeros(0, np.int64)


class FilteredEvents:
    """The events that a ``where`` leaves; an event's rank is its place among them. What is derived is kept."""

    def __init__(self, index: Index, where: Where, event_types: Mapping[str, int], code: Code) -> None:
        """event_types: name -> code; a type that no event has yet leaves nothing. code: of a text or identifier in conditions."""
        self.index = index
        self._lock = RLock()
        self.positions: Array | None = None
        """int64, ascending positions in the index; None where all events pass."""
        if where:
            passing: Array | None = None
            for part in where:
                if isinstance(part, str):
                    kinds = index.column("event_type")
                    hits = np.equal(kinds, np.array(event_types.get(part, _NO_TYPE), kinds.dtype))  # sooner than a Python number
                    passing = hits if passing is None else passing | hits
            for part in where:
                if not isinstance(part, str):
                    hits = _satisfying(part, index, code)
                    passing = hits if passing is None else passing & hits
            assert passing is not None
            positions = passing.nonzero()[0]
            self.positions = None if len(positions) == len(passing) else positions
        self._kept: dict[Any, Array] = {}
        self._complete: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self.index) if self.positions is None else len(self.positions)

    def rank(self, positions: Array) -> Array:
        """How many events pass before each position of the index."""
        if self.positions is None:
            return positions
        number, times = len(self.positions), _NEAR if len(self.index) <= _CACHED else _FEWER
        few = positions.size <= _FEW or positions.size * times <= number
        if few and "running" not in self._kept:
            return self.positions.searchsorted(positions)
        return self._running()[positions].astype(np.int64)

    def _running(self) -> Array:
        """int32 (events + 1,): how many events pass before each position; a look at it is cheaper than a search."""

        def make() -> Array:
            out: Array = np.zeros(len(self.index) + 1, self._counting)
            out[1:][self.positions] = 1
            return np.cumsum(out, out=out)

        return self.keep("running", make)

    def position(self, ranks: Array) -> Array:
        """Positions in the index of the events with these ranks."""
        return ranks if self.positions is None else self.positions[ranks]

    def keep(self, key: Any, make: Callable[[], Array]) -> Array:
        if key not in self._kept:
            with self._lock:  # as in ``column``
                if key not in self._kept:
                    self._kept[key] = make()
        return self._kept[key]

    def of(self, values: Array) -> Array:
        """A column of the index at the events that pass."""
        return values if self.positions is None else values[self.positions]

    def column(self, name: str) -> Array:
        """(m,): a column as stored: codes, fixed-point money, float64; ``gap`` in seconds."""
        found = self._kept.get(name)
        if found is not None:
            return found
        if name == "gap":
            return self.keep(name, self._gap)
        with self._lock:  # threads that answer parts of the same rows look it up once
            found = self._kept.get(name)
            if found is None:
                values = self.index.column(name)
                self._kept[name] = found = np.asarray(values) if self.positions is None else np.asarray(values)[self.positions]
            return found

    def some(self, name: str, begin: int, stop: int) -> Array:
        """(stop - begin,): a column of the index at these ranks, copied."""
        values = self.index.column(name)
        return np.array(values[begin:stop]) if self.positions is None else values.take(self.positions[begin:stop])

    def plain(self, name: str, values: Array) -> Array:
        """Values of a column as features show them: money in its unit."""
        return from_fixed(values, self.index.complete(name)) if self.index.is_fixed(name) else values

    def shown(self, name: str) -> Array:
        """(m,): a column as features show it."""
        if not self.index.is_fixed(name):
            return self.column(name)
        return self.keep(("shown", name), lambda: from_fixed(self.column(name)))

    def missing(self, name: str, values: Array) -> Array:
        """bool: which values of a column say nothing: code 0, MISSING or NaN."""
        return _missing(self.index, name, values)

    def _entities(self) -> Array:
        return self.of(self.index.entity_of())

    def _gap(self) -> Array:
        time = self.column("time")
        gaps = np.full(len(time), np.nan)
        if len(time) > 1:
            same = np.diff(self._entities()) == 0
            gaps[1:][same] = np.diff(time)[same] / MICROSECONDS
        return gaps

    def prefix(self, name: str) -> Array:
        """int64 (m + 1,): running sum of a fixed-point or integer column, missing values counted as 0."""

        def make() -> Array:
            values = self.column(name)
            out = np.zeros(len(values) + 1, np.int64)
            whole = self.complete(name) or self.index.dictionary(name) is not None
            (values if whole else np.where(values == MISSING, 0, values)).cumsum(out=out[1:])
            return out

        return self.keep(("prefix", name), make)

    def complete(self, name: str) -> bool:
        """Whether every event has the column."""
        found = self._complete.get(name)
        if found is None:
            if self.index.complete(name) or not len(values := self.column(name)):
                found = True
            elif values.dtype.str == "<i8":  # the least number stands for a missing one
                found = values.item(values.argmin()) != MISSING
            else:
                found = not self.missing(name, values).any()
            self._complete[name] = found
        return found

    def present(self, name: str) -> Array:
        """int32, int64 where it must be, (m + 1,): running number of events that have the column."""

        def make() -> Array:
            out: Array = np.zeros(len(self.column(name)) + 1, self._counting)
            np.cumsum(~self.missing(name, self.column(name)), out=out[1:])
            return out

        return self.keep(("present", name), make)

    @property
    def _counting(self) -> type:
        """What counts events: half the memory where they are not too many."""
        return np.int32 if len(self.index) < 1 << 31 else np.int64

    def runs(self, name: str) -> Array | None:
        """As ``present``: running number of events whose value is another than the entity's event before has.

        None where an entity comes back to a value, or a value is missing.
        """

        def make() -> Array:
            # running numbers are most often all that is asked of a calendar's column
            values = (
                self.of(self.index.calendar(name)) if name in CALENDAR and name not in self.index.columns else self.column(name)
            )
            out: Array = np.zeros(len(values) + 1, self._counting)
            if not len(values):
                return out
            other, firsts = np.zeros(len(values) - 1, bool), self.rank(self.index.offsets)
            other[firsts[(firsts > 0) & (firsts < len(values))] - 1] = True
            if not ((values[1:] >= values[:-1]) | other).all() or self.missing(name, values).any():
                return _NONE
            out[1] = 1
            np.cumsum(other | (values[1:] != values[:-1]), out=out[2:])
            out[2:] += 1
            return out

        found = self.keep(("runs", name), make)
        return None if found is _NONE else found

    def previous(self, name: str) -> Array:
        """int64 (m,): the entity's previous event with the same value, -1 where this is the first (missing: itself)."""

        def make() -> Array:
            values = self.column(name)
            order, same = _equal_neighbours(values, self._entities())
            out = np.full(len(values), -1, np.int64)
            out[order[1:][same]] = order[:-1][same]
            none = self.missing(name, values)
            out[none] = np.flatnonzero(none)
            return out

        return self.keep(("previous", name), make)

    def following(self, name: str) -> Array:
        """int64 (m,): the entity's next event with the same value, m where this is the last (missing: -1)."""

        def make() -> Array:
            previous = self.previous(name)
            out = np.full(len(previous), len(previous), np.int64)
            here = np.arange(len(previous))
            again = (previous >= 0) & (previous < here)
            out[previous[again]] = here[again]
            out[previous == here] = -1
            return out

        return self.keep(("following", name), make)

    def visit_starts(self, gap: int) -> Array:
        """int64 (v,): ranks of the events that are the first of their visit."""

        def make() -> Array:
            begins = self.index.visits(gap)
            if self.positions is None:
                return np.flatnonzero(begins)
            visit = begins.cumsum()[self.positions]
            first = np.ones(len(visit), bool)
            np.not_equal(visit[1:], visit[:-1], out=first[1:])
            return first.nonzero()[0]

        return self.keep(("visits", gap), make)

    def visit_times(self, gap: int) -> Array:
        """int64 (v,): when each visit began."""
        return self.keep(("visit times", gap), lambda: self.column("time")[self.visit_starts(gap)])


def _equal_neighbours(values: Array, entities: Array) -> tuple[Array, Array]:
    """(int64 (m,) positions by (entity, value, position), bool (m - 1,) whether neighbours among those agree in entity and value)."""
    bits = max(len(values) - 1, 1).bit_length()
    if values.dtype == np.int32 and len(values) and values.min() >= 0:
        span = int(values.max()) + 1
        if (int(entities[-1]) + 1) * span < 1 << (63 - bits):  # one number to sort is far quicker than two
            packed = entities.astype(np.int64)
            packed *= span
            packed += values
            packed <<= bits
            packed |= np.arange(len(values))
            packed.sort()
            group = packed >> bits
            packed &= (1 << bits) - 1
            return packed, group[1:] == group[:-1]
    order = np.lexsort((values, entities))  # stable: equal values stay in order of time
    return order, (np.diff(values[order]) == 0) & (np.diff(entities[order]) == 0)
