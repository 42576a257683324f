"""One entity's recent events as one packed blob: how many there are, and compressed, a header naming the columns and the columns."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from zoo.contract import Array
from zoo.errors import ArtefactError
from zoo.events.index import MISSING, Index

_PREFIX = struct.Struct("<4sIII")
"""Magic, events, bytes of the header, bytes of header and columns before compression."""
_MAGIC = b"zoe2"
_DTYPES = {"<i4", "<i8", "<f8"}
_REBUILD = "Materialize again to rebuild them from the log"
# A third of the bytes to write, and faster to unpack than a disk or a network is to bring the rest.
_CODEC = pa.Codec("lz4_raw")
_MOST = 256
"""Times that LZ4 can shrink anything."""


def _header(columns: Mapping[str, Array]) -> bytes:
    return json.dumps([[name, values.dtype.str] for name, values in columns.items()], separators=(",", ":")).encode()


def _packed(count: int, header: bytes, columns: Iterable[Any]) -> bytes:
    body = b"".join([header, *columns])
    return _PREFIX.pack(_MAGIC, count, len(header), len(body)) + bytes(_CODEC.compress(body, asbytes=True))


def pack(columns: Mapping[str, Array]) -> bytes:
    """Columns of equal length, ``time`` and ``seq`` among them, sorted by (time, seq)."""
    return _packed(len(columns["time"]), _header(columns), (np.ascontiguousarray(v).tobytes() for v in columns.values()))


def pack_slices(index: Index, low: Iterable[int], high: Iterable[int]) -> list[bytes]:
    """A blob for each slice [low, high) of an index."""
    # a slice of a memory map is a memory map again, which costs more to make than its bytes to copy
    named = {name: np.asarray(v) for name, v in {"time": index.time, "seq": index.seq, **index.columns}.items()}
    header, columns = _header(named), [(v.view(np.uint8).data, v.itemsize) for v in named.values()]
    return [_packed(b - a, header, [c[a * width : b * width] for c, width in columns]) for a, b in zip(low, high)]


@lru_cache(maxsize=64)
def _layout(header: bytes) -> tuple[tuple[str, np.dtype[Any], int], ...]:
    layout = json.loads(header)
    names = [name for name, _ in layout]
    if not {"time", "seq"} <= set(names):
        raise ArtefactError(f"stored events have the columns {names}; expected time and seq among them. {_REBUILD}")
    bad = [kind for _, kind in layout if kind not in _DTYPES]
    if bad:
        raise ArtefactError(
            f"stored events hold a column of type {bad[0]!r}; expected one of {', '.join(sorted(_DTYPES))}. {_REBUILD}"
        )
    return tuple((str(name), np.dtype(kind), np.dtype(kind).itemsize) for name, kind in layout)


def _count(blob: bytes) -> int:
    """Events in a blob. Raises ArtefactError where it is none."""
    if len(blob) < _PREFIX.size or blob[: len(_MAGIC)] != _MAGIC:
        raise ArtefactError(f"stored events begin with {blob[: len(_MAGIC)]!r}; expected {_MAGIC!r}. {_REBUILD}")
    return int(_PREFIX.unpack_from(blob)[1])


def unpack(blob: bytes) -> dict[str, Array]:
    """The columns of a blob (read-only), ``time`` and ``seq`` among them. Raises ArtefactError where it is torn or foreign."""
    count = _count(blob)
    _, _, at, size = _PREFIX.unpack_from(blob)
    if size > _MOST * len(blob):
        raise ArtefactError(f"stored events of {len(blob)} bytes say that they unpack to {size}. {_REBUILD}")
    try:
        body = _CODEC.decompress(memoryview(blob)[_PREFIX.size :], size, asbytes=True)
        layout = _layout(body[:at])
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise ArtefactError(f"stored events cannot be unpacked ({error}). {_REBUILD}") from error
    expected = at + count * sum(width for *_, width in layout)
    if len(body) != expected:
        raise ArtefactError(f"stored events are {len(body)} bytes; expected {expected} by their header. {_REBUILD}")
    out = {}
    for name, kind, width in layout:
        out[name] = np.frombuffer(body, kind, count, at)
        at += count * width
    return out


def _nothing(kind: np.dtype[Any], count: int) -> Array:
    """Missing values of a column: code 0, MISSING or NaN."""
    return np.full(count, {"i4": 0, "i8": MISSING}.get(kind.str[1:], np.nan), kind)


def _concatenate(parts: Sequence[dict[str, Array]], kinds: Mapping[str, Any] | None = None) -> dict[str, Array]:
    """One set of columns, those of ``kinds`` at least; a column that a part lacks is filled with missing values."""
    found = dict(kinds or {}) | {name: values.dtype for part in parts for name, values in part.items()}
    if len(parts) == 1 and len(parts[0]) == len(found):
        return dict(parts[0])
    return {
        name: np.concatenate([part[name] if name in part else _nothing(np.dtype(kind), len(part["time"])) for part in parts])
        if parts
        else _nothing(np.dtype(kind), 0)
        for name, kind in found.items()
    }


def merge(old: bytes | None, new: bytes, limit: int, *, whole: bool = False) -> bytes:
    """The union of two blobs by seq, sorted by (time, seq), cut to the newest ``limit`` events.

    Idempotent and independent of order, so that pushes and a bulk copy from the log may meet in any way; where ``new`` brings
    nothing, ``old`` itself is returned. whole: ``new`` is all that the log has of the entity, so that an ``old`` that cannot be read is
    replaced; else it raises ArtefactError.
    """
    if old is None and _count(new) <= limit:
        return new
    if old == new:
        return old
    try:
        columns = unpack(new) if old is None else _concatenate([unpack(old), unpack(new)])
    except ArtefactError:
        if not whole:
            raise
        return merge(None, new, limit)
    _, first = np.unique(columns["seq"], return_index=True)
    order = first[np.lexsort((columns["seq"][first], columns["time"][first]))[-limit:]]
    if old is not None and len(order) == _count(old) > order.max(initial=-1):
        return old
    return pack({name: values[order] for name, values in columns.items()})


def index_of(blobs: Sequence[bytes | None], kinds: Mapping[str, Any], facts: Mapping[str, Any]) -> Index:
    """A small index over entities whose blobs these are, with codes 2, 3, ... in the order given.

    kinds: dtype by name of the columns that the log has. facts: as ``LogView.facts``.
    """
    parts = [unpack(b) for b in blobs if b is not None]
    lengths = np.zeros(len(blobs), np.int64)
    lengths[[i for i, b in enumerate(blobs) if b is not None]] = [len(p["time"]) for p in parts]
    offsets = np.zeros(len(blobs) + 3, np.int64)
    np.cumsum(lengths, out=offsets[3:])
    columns = _concatenate(parts, {"time": "<i8", "seq": "<i8", **kinds})
    return Index(offsets, columns.pop("time"), columns.pop("seq"), columns, **facts)
