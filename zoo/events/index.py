"""The sorted index: an entity's events as one contiguous slice of memory-mapped columns, found by binary search.

Knows nothing of features or Feast. Both the offline history and an online reader's handful of events are an ``Index``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from zoo.contract import Array
from zoo.errors import FeatureError
from zoo.events.attributes import Attribute, looked_up
from zoo.events.cells import Cells
from zoo.events.slices import MICROSECONDS, Slices, taken

SCALE = 10_000
"""Money and quantities are kept as int64 multiples of 1/10,000, so that sums are exact and order does not matter."""
_UNIT = np.array(float(SCALE))
"""An array, as numpy takes several times as long over a Python number and few values."""
MISSING = np.iinfo(np.int64).min
"""A fixed-point value that was null."""
FIXED = ("price", "quantity", "value")
NO_SESSION = MISSING
"""Session number of an event that carries none."""
_FEW = 24
"""Rows that are searched one by one."""
_SMALL = 1 << 16
"""Events of an index in which all rows are searched at once, entity and time as one number."""
_ROWS = 1 << 15
"""Rows bisected together, so that what is in work stays in the processor's cache."""
_CACHED = 1 << 22
"""Events whose times a cache may hold; beyond them rows are searched in the order of memory."""
_SPARED = 16
"""Events that are put in cells in the time that cells spare a search for one place."""
_HOUR = 3_600_000_000
_DAY = 24 * _HOUR


def fixed_point(values: Array) -> Array:
    """float64 with NaN for null -> int64 in 1/10,000, null as MISSING."""
    out = np.full(len(values), MISSING, np.int64)
    known = ~np.isnan(values)
    out[known] = np.rint(values[known] * SCALE).astype(np.int64)
    return out


def from_fixed(values: Array, complete: bool = False) -> Array:
    """The inverse: float64 with NaN for MISSING. complete: none is."""
    out: Array = values.astype(np.float64)
    out /= _UNIT
    if not complete and values.size and values.item(values.argmin()) == MISSING:
        out[values == MISSING] = np.nan
    return out


def nothing(dtype: Any, count: int) -> Array:
    """Missing values of a column of the index: code 0, MISSING or NaN."""
    kind = np.dtype(dtype)
    return np.full(count, np.nan if kind.kind == "f" else MISSING if kind.itemsize == 8 else 0, kind)


def _bisect(time: Array, low: Array, high: Array, times: Array, right: bool) -> Array:
    """First position in [low, high) whose time is >= t (``right``: > t): steps of falling powers of two, all rows at once."""
    before = np.less_equal if right else np.less
    found, left = low.copy(), high - low
    longest = int(left.max(initial=0))
    step = 1 << longest.bit_length() >> 1
    at, seen, inside, passed = (
        np.empty_like(found),
        np.empty_like(time, shape=len(found)),
        np.empty(len(found), bool),
        np.empty(len(found), bool),
    )
    while step:
        long = left >= step
        if 3 * np.count_nonzero(long) < len(found):  # few slices are so long: the others wait
            rows = np.flatnonzero(long)
            ahead = found[rows] + (step - 1)
            hit = (ahead < high[rows]) & before(time.take(ahead, mode="clip"), times[rows])
            found[rows[hit]] += step
        else:
            np.add(found, step - 1, out=at)
            np.less(at, high, out=inside)
            time.take(at, out=seen, mode="clip")
            before(seen, times, out=passed)
            passed &= inside
            np.multiply(passed, step, out=at)
            found += at
        step >>= 1
    return found


class Gathered(Mapping[str, Array]):
    """Columns at some positions, each looked up when it is first asked for."""

    def __init__(self, columns: Mapping[str, Array], positions: Array) -> None:
        self._columns, self._positions = columns, positions
        self._found: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._found:
            self._found[name] = taken(np.asarray(self._columns[name]), self._positions)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclass
class Index:
    """Events sorted by (entity, time, seq).

    offsets: int64 (entities + 1,); entity with code c owns positions offsets[c] to offsets[c + 1].
    time: int64 (m,) microseconds UTC. seq: int64 (m,).
    columns: name -> (m,): int32 codes, int64 fixed-point (price, quantity, value), int64 ``session`` numbers, or float64 extras.
    dictionaries: name of a code column -> its dictionary.
    attributes: ``items.COLUMN`` -> ``Attribute``.
    timezone: for day, weekday and hour. ordered_only: the log has positions instead of times.
    """

    offsets: Array
    time: Array
    seq: Array
    columns: Mapping[str, Array]
    dictionaries: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    timezone: str = "UTC"
    ordered_only: bool = False
    _derived: dict[Any, Array] = field(default_factory=dict, repr=False)
    _searched: int = field(default=0, init=False, repr=False)
    _table: tuple[Cells | None] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def build(cls, codes: Array, time: Array, seq: Array, columns: Mapping[str, Array], size: int, **facts: Any) -> Index:
        """Sort m events into an index of ``size`` entity codes. Events with code 0 (no entity) are left out."""
        keep = np.flatnonzero(codes > 0)
        order = keep[np.lexsort((seq[keep], time[keep], codes[keep]))]
        counts = np.bincount(codes[order], minlength=size)
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return cls(offsets, time[order], seq[order], {k: v[order] for k, v in columns.items()}, **facts)

    def bounds(self, codes: Array) -> tuple[Array, Array]:
        """First and past-the-last position of each entity; an unknown code owns nothing."""
        if len(codes) == 1 and 0 <= (code := int(codes[0])) < len(self.offsets) - 1:
            return self.offsets[code : code + 1], self.offsets[code + 1 : code + 2]
        known = (codes >= 0) & (codes < len(self.offsets) - 1)
        safe = np.where(known, codes, 0)
        low = self.offsets[safe]
        return low, np.where(known, self.offsets[safe + 1], low)

    def search(self, low: Array, high: Array, times: Array, *, right: bool = False, codes: Array | None = None) -> Array:
        """First position in [low, high) whose time is >= t (``right``: > t), for all rows at once.

        low, high: int64 (n,); times: int64 (n,), or (w, n) for w instants a row, ascending. codes: of the rows' entities, where known;
        many rows are then found sooner. Returns int64 in the shape of ``times``.
        """
        side: Literal["left", "right"] = "right" if right else "left"
        if len(low) == 1:
            first = int(low[0])
            only: Array = self.time[first : int(high[0])].searchsorted(times, side)
            only += first
            return only
        targets = np.atleast_2d(times)
        if len(low) > _FEW and len(self) <= _SMALL and (instants := self._instants()) is not None:
            return self._found_at_once(instants, low, high, times, right)
        if len(low) <= _FEW:  # a search in C for each row costs less than bisecting all of them in numpy
            found = np.empty(targets.shape, np.int64)
            for row, (a, b) in enumerate(zip(low.tolist(), high.tolist())):
                found[:, row] = self.time[a:b].searchsorted(targets[:, row], side)
            found += low
            return found.reshape(times.shape)
        found, time = np.empty(targets.shape, np.int64), np.asarray(self.time)  # looks at a mapped array cost more
        order = None
        if len(self) > _CACHED and not (low[1:] >= low[:-1]).all():
            order = self._nearby(low, high, targets[0])
        cells = None if codes is None else self._cells(targets.size)
        for start in range(0, len(low), _ROWS):
            rows: Any = slice(start, start + _ROWS) if order is None else order[start : start + _ROWS]
            begin, end = low[rows], high[rows]
            if cells is not None and codes is not None:
                own = np.minimum(np.maximum(codes[rows], 0), len(self.offsets) - 2)
            for line, wanted in zip(found, targets):
                at = wanted[rows]
                if cells is None:
                    line[rows] = begin = _bisect(time, begin, end, at, right)
                else:
                    early, late = cells.around(own, at)
                    late = np.maximum(np.minimum(late, end), begin)
                    line[rows] = begin = _bisect(time, np.minimum(np.maximum(early, begin), late), late, at, right)
        return found.reshape(times.shape)

    def search_one(self, code: int, times: Array) -> Array:
        """int64 (w,): the entity's first position whose time is >= t, for each of some instants; an unknown code owns nothing."""
        if not 0 <= code < len(self.offsets) - 1:
            return np.full(len(times), self.offsets[0])
        begin = self.offsets.item(code)
        found: Array = self.time[begin : self.offsets.item(code + 1)].searchsorted(times)
        if begin:
            found += begin
        return found

    def _cells(self, places: int) -> Cells | None:
        """Cells for a search of so many places; None while so few were searched that making them costs more than they spare."""
        self._searched += places
        if self._searched * _SPARED < len(self):
            return None
        if self._table is None:
            self._table = (Cells.of(self.offsets, np.asarray(self.time)),)
        return self._table[0]

    def _instants(self) -> Array | None:
        """int64 (m,), ascending: each event's entity and time as one number; None where there is no room for that."""
        if not len(self):
            return None
        if "instants" not in self._derived:
            first, last = int(self.time.min()), int(self.time.max())
            entities, width = len(self.offsets), last - first + 2
            if entities.bit_length() + width.bit_length() > 62:
                return None
            bases = np.repeat(np.arange(entities - 1) * width - first, self.offsets[1:] - self.offsets[:-1])
            self._derived["instants span"] = np.array([first, last])
            self._derived["instants"] = self.time + bases
        return self._derived["instants"]

    def _found_at_once(self, instants: Array, low: Array, high: Array, times: Array, right: bool) -> Array:
        """``search`` by ``_instants``."""
        first, last = self._derived["instants span"].tolist()
        entities = self.offsets.searchsorted(low, "right") - 1
        within = np.minimum(np.maximum(times, first - right), last + (not right)) + (int(right) - first)
        found: Array = instants.searchsorted(within + entities * (last - first + 2))
        return np.minimum(np.maximum(found, low), high)

    def _nearby(self, low: Array, high: Array, times: Array) -> Array:
        """The rows in about the order of where their search ends, so that consecutive searches read the same memory."""
        first, last = self._span()
        share = np.clip((times - first) / max(last - first, 1), 0, 1)
        share *= high - low
        place = share.astype(np.int64)
        place += low
        bits = max(len(low) - 1, 1).bit_length()
        place <<= bits  # sorting (place, row) as one number is far quicker than argsort
        place |= np.arange(len(low))
        place.sort()
        place &= (1 << bits) - 1
        return place

    def _span(self) -> tuple[int, int]:
        """Some early and some late time; exact enough to guess a position."""
        some = self.keep(
            "span", lambda: np.array([self.time[:: len(self) // 4096 + 1].min(), self.time[:: len(self) // 4096 + 1].max()])
        )
        return int(some[0]), int(some[1])

    def newest(self, codes: Array, times: Array) -> Array:
        """int64 (n,): time of each entity's newest event strictly before t; -1 where there is none."""
        low, high = self.bounds(codes)
        return self.before(low, self.search(low, high, times))

    def before(self, low: Array, stop: Array) -> Array:
        """int64 (n,): time of the last event of each slice [low, stop); -1 where it is empty."""
        if len(low) == 1:
            last = int(stop[0])
            return self.time[last - 1 : last].copy() if last > low[0] else np.array([-1], np.int64)
        some = stop > low
        if some.all():
            return self.time.take(stop - 1)
        out = np.full(len(low), -1, np.int64)
        out[some] = self.time[stop[some] - 1]
        return out

    def entity_of(self) -> Array:
        """int32 (m,): the entity code of each position."""
        return self.keep("entity", lambda: np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets)))

    def column(self, name: str) -> Array:
        """(m,): a stored column, an item's attribute, or one derived from time (day, weekday, hour)."""
        if name == "time":
            return self.time
        if name in self.columns:
            return self.columns[name]
        if name in FIXED:  # a column that no event has filled is not stored
            return self.keep(name, lambda: np.full(len(self), MISSING, np.int64))
        if name in self.attributes:
            return self.keep(name, lambda: self._attribute(self.attributes[name]))
        if name in ("day", "weekday", "hour"):
            return self.keep(name, lambda: self.calendar(name))
        if name.startswith("items.") and not self.attributes:
            raise FeatureError(
                f"{name!r} is a column of the table of items, and the log has none: its folder tables/items is missing or was never "
                "made; put the table in: zoo ingest FILE --items FILE"
            )
        known = sorted({*self.columns, *FIXED, *self.attributes, "time", "day", "weekday", "hour", "gap", "age"})
        raise FeatureError(f"the log has no event column {name!r}; it has: {', '.join(known)}")

    def _attribute(self, attribute: Attribute) -> Array:
        """(m,): of the item of each event, as it was then."""
        codes, validity = self.columns["item_id"], attribute.validity
        if validity is None:
            return looked_up(attribute.values, codes)
        return attribute.values[self.keep(("valid rows", id(validity)), lambda: validity.rows(codes, self.time))]

    def dictionary(self, name: str) -> str | None:
        """The dictionary that a column's codes belong to, None for numbers."""
        if name in self.attributes:
            return self.attributes[name].dictionary
        return self.dictionaries.get(name)

    def is_fixed(self, name: str) -> bool:
        return name in FIXED

    def complete(self, name: str) -> bool:  # noqa: ARG002 - an index of its own kind may know
        """Whether every event is known to have a stored column, without a look at it."""
        return False

    def visits(self, gap: int) -> Array:
        """bool (m,): whether a visit begins here: another entity, another session, or (both without) a pause over ``gap`` s."""
        return self.keep(("visits", gap), lambda: self._visits(gap))

    def _visits(self, gap: int) -> Array:
        begins = np.ones(len(self), bool)
        if len(self) < 2:
            return begins
        time, sessions = self.time, self.columns.get("session")
        none = None if sessions is None else sessions == NO_SESSION
        if sessions is None or none is None or none.all():
            np.greater(time[1:] - time[:-1], gap * MICROSECONDS, out=begins[1:])
        else:
            np.not_equal(sessions[1:], sessions[:-1], out=begins[1:])
            if none.any():
                apart = time[1:] - time[:-1] > gap * MICROSECONDS
                np.copyto(begins[1:], apart, where=none[1:] & none[:-1])
        firsts = self.offsets[:-1]
        begins[firsts[firsts < len(self)]] = True
        return begins

    def calendar(self, name: str) -> Array:
        """int64 (m,): ``day`` since 1970, ``weekday`` or ``hour`` of each event in the log's timezone; computed at each call."""
        if self.timezone == "UTC":
            days = self.time // _DAY
            return (
                days if name == "day" else (days + 3) % 7 if name == "weekday" else self.time // _HOUR % 24
            )  # 1970 began on a Thursday
        # polars, not our own arithmetic: zones with daylight saving
        import polars as pl

        local = pl.Series(self.time).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(self.timezone)
        if name == "day":
            return local.dt.date().cast(pl.Int32).to_numpy().astype(np.int64)
        return (local.dt.weekday().to_numpy() - 1 if name == "weekday" else local.dt.hour().to_numpy()).astype(np.int64)

    def keep(self, key: Any, make: Callable[[], Array]) -> Array:
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    def events(self, codes: Array, times: Array | None = None) -> Index:
        """A small index of these entities' events (before t, if given), with codes 2, 3, ... in the order given."""
        low, high = self.bounds(codes)
        if times is not None:
            high = self.search(low, high, times)
        return self.slices(low, high)

    def slices(self, low: Array, high: Array) -> Index:
        """A small index of the events at positions low to high (int64 (n,) each) of every row, each row an entity: codes 2, 3, ..."""
        rows = Slices(low, high)
        return Index(
            np.concatenate(([0, 0], rows.offsets)),
            taken(np.asarray(self.time), rows.positions),
            taken(np.asarray(self.seq), rows.positions),
            Gathered(self.columns, rows.positions),
            self.dictionaries,
            self.attributes,
            self.timezone,
            self.ordered_only,
        )
