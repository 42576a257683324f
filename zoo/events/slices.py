"""Arithmetic on slices of sorted columns: one slice a row, all rows at once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from zoo.contract import Array, Column

MICROSECONDS = 1_000_000
"""Microseconds a second: features are in seconds, times in microseconds."""
AT_ONCE = 1 << 20
"""Events looked at together: enough to be fast, few enough to stay within tens of megabytes."""
_MANY = 1 << 10
"""Rows from which on slices of one length are copied whole."""
_LONG = 8
"""Values from which on a slice is better copied whole than value by value."""
_BLOCK = 1 << 18
"""Bytes of slices that are copied together, so that they stay in the processor's cache."""
_LARGE = 1 << 20
"""Bytes of a column that is large."""
_LAST = np.iinfo(np.int32).max


class Picked:
    """Some positions a row, ascending: row i has ``positions[offsets[i]:offsets[i + 1]]`` (int64 (m,), int64 (n + 1,))."""

    def __init__(self, positions: Array, offsets: Array) -> None:
        self.positions, self.offsets = positions, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Array:
        return np.diff(self.offsets)

    @cached_property
    def rows(self) -> Array:
        """int64 (m,): the row of each position."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def of(self, values: Array) -> Array:
        """(m,): the values at the positions."""
        return taken(values, self.positions)

    def newest(self, number: int) -> Picked:
        """The last ``number`` positions of each row."""
        kept = Slices(np.maximum(self.offsets[:-1], self.offsets[1:] - number), self.offsets[1:])
        return Picked(self.positions[kept.positions], kept.offsets)

    def count(self, hits: Array) -> Array:
        """int64 (n,): how many of each row's positions (bool (m,)) are hits."""
        total = np.zeros(len(hits) + 1, np.int64)
        hits.cumsum(out=total[1:])
        found: Array = total[self.offsets[1:]] - total[self.offsets[:-1]]
        return found

    def sum(self, values: Array) -> Array:
        """float64 (n,): sum of each row's values (float64 (m,))."""
        return np.bincount(self.rows, values, minlength=len(self)).astype(np.float64)  # of no values it is integers

    def reduced(self, reduce: np.ufunc, values: Array) -> Array:
        """float64 (n,): each row's values (float64 (m,)) reduced, NaN for a row without any."""
        out = np.full(len(self), np.nan)
        some = self.lengths > 0
        if some.any():
            out[some] = reduce.reduceat(values, self.offsets[:-1][some])
        return out


class Slices(Picked):
    """Row i is positions ``start[i]`` to ``stop[i]`` (int64 (n,) each); what is derived is computed once and shared."""

    def __init__(self, start: Array, stop: Array) -> None:
        self.start, self.stop = start, stop
        self.kept: dict[Any, Array] = {}
        """What features that share the slices derived from them."""

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def lengths(self) -> Array:
        return self.stop - self.start

    @cached_property
    def offsets(self) -> Array:  # type: ignore[override]
        """int64 (n + 1,): where each row's slice begins among ``positions``."""
        if len(self.start) == 1:
            return np.array([0, self.stop[0] - self.start[0]], np.int64)
        out = np.zeros(len(self) + 1, np.int64)
        self.lengths.cumsum(out=out[1:])
        return out

    @cached_property
    def positions(self) -> Array:  # type: ignore[override]
        """int64, or where there are many int32 (m,): the slices one after another."""
        if len(self) == 1:
            return np.arange(self.start[0], self.stop[0])
        narrow = (
            len(self) > _MANY and max(self.stop.max(), self.offsets[-1]) < _LAST
        )  # half the memory, and it is memory that costs
        out = room(int(self.offsets[-1]), np.int32 if narrow else np.int64)
        rows = np.flatnonzero(self.lengths)
        if not len(rows):
            return out
        out.fill(1)  # each position is one more than the last, but where a slice begins
        begin, end = self.start[rows], self.stop[rows]
        begin[1:] -= end[:-1] - 1
        out[self.offsets[:-1][rows]] = begin
        return np.cumsum(out, out=out)

    def of(self, values: Array) -> Array:
        if len(self.start) == 1:
            return values[self.start[0] : self.stop[0]].copy()
        whole = self._whole
        if whole is None:
            return taken(values, self.positions)
        starts, places, others, elsewhere = whole
        length = int(self.lengths.max())
        out = room(int(self.offsets[-1]), values.dtype)
        windows, written = _windows(values, length), _windows(out, length)
        number = max(_BLOCK // (length * values.itemsize), 1)
        for some in range(0, len(starts), number):
            written[places[some : some + number]] = windows[starts[some : some + number]]
        out[elsewhere] = taken(values, others)
        return out

    @cached_property
    def _whole(self) -> tuple[Array, Array, Array, Array] | None:
        """(where slices of the greatest length begin, and where they go; the other slices' positions, and where they go).

        None where most are shorter, as where ``last_n`` finds fewer than n.
        """
        if len(self) < _MANY or self.lengths.max() < _LONG:
            return None
        full = self.lengths == self.lengths.max()
        rows = np.flatnonzero(full)
        if 2 * len(rows) < len(self):
            return None
        rest, places = np.flatnonzero(~full), self.offsets[:-1]
        others = Slices(self.start[rest], self.stop[rest])
        elsewhere = Slices(places[rest], places[rest] + others.lengths)
        return self.start[rows], places[rows], others.positions, elsewhere.positions

    def newest(self, number: int) -> Slices:
        """The last ``number`` positions of each slice."""
        return Slices(np.maximum(self.start, self.stop - number), self.stop)

    def oldest(self, number: int) -> Slices:
        """The first ``number`` positions of each slice."""
        return Slices(self.start, np.minimum(self.stop, self.start + number))


def room(count: int, dtype: Any) -> Array:
    """(count,): not written yet. Large ones are Arrow's, whose pool keeps what was freed: the system clears each page that it gives."""
    kind = np.dtype(dtype)
    if count * kind.itemsize < _LARGE:
        return np.empty(count, kind)
    import pyarrow as pa

    return np.frombuffer(pa.allocate_buffer(count * kind.itemsize), kind)


def taken(values: Array, positions: Array) -> Array:
    """(m,): the values at positions (int (m,)), block by block where there are many: numpy widens narrow positions first."""
    if len(positions) <= _BLOCK >> 2:
        return values.take(positions)
    out = room(len(positions), values.dtype)
    for start in range(0, len(positions), _BLOCK >> 2):
        part = positions[start : start + (_BLOCK >> 2)]
        values.take(part, out=out[start : start + len(part)], mode="clip")  # else numpy takes into a copy, to check first
    return out


def _windows(values: Array, length: int) -> Array:
    """(m - length + 1,): so many consecutive values as one, from each position on; a view."""
    kind = np.dtype((np.void, length * values.itemsize))
    return np.ndarray(len(values) - length + 1, kind, np.ascontiguousarray(values), 0, (values.itemsize,))


def or_zero(values: Array) -> Array:
    """The values, 0 in place of NaN."""
    return np.where(np.isnan(values), 0.0, values)


def chunks(lengths: Array) -> list[slice]:
    """Consecutive rows whose lengths add up to at most ``AT_ONCE`` (a row may be longer on its own)."""
    total = np.cumsum(lengths)
    if not len(total) or total[-1] <= AT_ONCE:
        return [slice(0, len(total))]
    out, start = [], 0
    while start < len(total):
        before = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, before + AT_ONCE, side="right")), start + 1)
        out.append(slice(start, stop))
        start = stop
    return out


def joined(parts: list[dict[str, Column]]) -> dict[str, Column]:
    """Columns of consecutive rows as columns of all of them."""
    if len(parts) == 1:
        return parts[0]
    out = {}
    for name, first in parts[0].items():
        columns = [part[name] for part in parts]
        offsets = None
        if first.offsets is not None:
            offsets = np.concatenate(([0], np.cumsum(np.concatenate([c.lengths for c in columns]))))
        out[name] = Column(np.concatenate([c.values for c in columns]), offsets, first.dictionary)
    return out
