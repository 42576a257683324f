"""Making frames: many entities' at once, each column as narrow as its values allow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import Array
from zoo.events.index import MISSING
from zoo.events.slices import Slices
from zoo.stores.frames import ALWAYS, IDENTITY, MAGIC, PREFIXES, SCALES, index_of, layout_of

_UNSIGNED = (("|u1", 1 << 8), ("<u2", 1 << 16), ("<u4", 1 << 32))
_SAMPLE = 64
"""Values that are looked at first: most units are refused by these."""
_ROWS = 100
"""Frames from which on Arrow puts them together."""


class Change(NamedTuple):
    """New values of entities of a kind, and those that were read. Columns: a tuple an entity would wake the garbage collector."""

    entity: str
    codes: Sequence[int]
    old: Sequence[bytes | None]
    new: Sequence[bytes]


def _narrow(values: Array) -> tuple[Array, str, int, int, int]:
    """(as stored, dtype of the column, scale, missing, base) of one column."""
    kind = values.dtype.str
    if kind == "<f8":
        with np.errstate(over="ignore"):
            half = values.astype(np.float32)
        if np.array_equal(half, values, equal_nan=True):
            return half, kind, 1, 0, 0
    elif kind == "<i4" and len(values) and values.min() >= 0:
        high = int(values.max())
        return values.astype(next((d for d, room in _UNSIGNED if high < room), kind)), kind, 1, 0, 0
    elif kind == "<i8" and len(values):
        low, high, missing = int(values.min()), int(values.max()), 0
        if low == MISSING:
            there = values != MISSING
            some, missing = values[there], 1
            low, high = (int(some.min()), int(some.max())) if len(some) else (0, 0)
        if high - low < 1 << 62:
            above = values - low
            if missing:
                above[~there] = 0
            steps, scale = _steps(above, high - low)
            dtype = next((d for d, room in _UNSIGNED if (high - low) // scale + missing < room), None)
            if dtype is not None:
                stored = steps.astype(dtype)
                if missing:
                    stored += there
                return stored, kind, scale, missing, low - scale * missing
    return values, kind, 0, 0, 0


def _steps(above: Array, spread: int) -> tuple[Array, int]:
    """(values in units of, the largest unit in which all of them are whole). spread: the largest of them, which are not negative."""
    if spread < 1 << 32:
        above = above.astype(np.uint32)  # which divides much faster
    if spread >= 1 << 8:
        for scale in SCALES:
            if spread % scale or (above[:_SAMPLE] % scale).any():
                continue
            steps = above // scale
            if np.array_equal(steps * scale, above):
                return steps, scale
    return above, 1


def pack_slices(
    columns: Mapping[str, Array], low: Array, high: Array, since: Array | None = None, *, narrow: bool = True
) -> list[bytes]:
    """A frame for each slice [low, high) of the columns, ``time`` and ``seq`` among them, each sorted by (time, seq).

    since: of each frame, ALWAYS by default. narrow: look for narrower types, which pays where many events are written at once.
    """
    number = len(low)
    if not number:
        return []
    stored, kinds, bases = [], [], []
    slices = Slices(low, high)
    positions, offsets = slices.positions, slices.offsets
    for name, values in columns.items():
        own = np.ascontiguousarray(values[positions])
        as_stored, kind, scale, missing, base = _narrow(own) if narrow else (own, own.dtype.str, 0, 0, 0)
        stored.append(as_stored)
        kinds.append((name, as_stored.dtype.str, kind, scale, missing))
        bases.append(base)
    layout = layout_of(tuple(kinds))
    head = layout.header + layout.bases.pack(*bases)
    prefix = np.empty(number, PREFIXES)
    prefix["magic"], prefix["header"], prefix["mark"] = MAGIC, len(layout.header), np.void(os.urandom(8))
    prefix["count"], prefix["since"] = slices.lengths, ALWAYS if since is None else since
    prefix["size"] = IDENTITY + len(head) + slices.lengths * layout.width
    return _joined([prefix, np.frombuffer(head, np.uint8), *stored], [np.arange(number + 1), None, *[offsets] * len(stored)])


def _joined(parts: Sequence[Array], offsets: Sequence[Array | None]) -> list[bytes]:
    """Row i: the bytes of each part's values [offsets[i], offsets[i + 1]), one after another; of the whole part where it has no offsets."""
    number = next(len(o) - 1 for o in offsets if o is not None)
    if number < _ROWS:  # what Arrow takes to begin
        cut = [(part.tobytes(), part.itemsize, None if o is None else o.tolist()) for part, o in zip(parts, offsets)]
        return [b"".join([d if o is None else d[o[i] * w : o[i + 1] * w] for d, w, o in cut]) for i in range(number)]
    joined = pc.binary_join_element_wise(*map(_binary, parts, offsets), pa.scalar(b"", pa.large_binary()))
    _, ends, data = joined.buffers()
    whole, at = data.to_pybytes(), np.frombuffer(ends, "<i8", number + 1).tolist()
    return [whole[a:b] for a, b in pairwise(at)]


def _binary(part: Array, offsets: Array | None) -> pa.LargeBinaryArray | pa.LargeBinaryScalar:
    """The same for Arrow; bytes of rows are not copied."""
    if offsets is None:
        return pa.scalar(part.tobytes(), pa.large_binary())
    buffers = [None, pa.py_buffer(offsets * part.itemsize), pa.py_buffer(part)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def pack(columns: Mapping[str, Array], since: int = ALWAYS) -> bytes:
    """One frame of columns of equal length, ``time`` and ``seq`` among them, sorted by (time, seq)."""
    return pack_slices(columns, np.array([0]), np.array([len(columns["time"])]), np.array([since]))[0]


def newer(value: bytes, count: int) -> bytes | None:
    """A frame of a value's events with ``seq >= count``; None where there are none."""
    index, _ = index_of([value])
    at = np.flatnonzero(index.seq >= count)
    if not len(at):
        return None
    columns = {"time": index.time, "seq": index.seq, **index.columns}
    return pack({name: values[at] for name, values in columns.items()})
