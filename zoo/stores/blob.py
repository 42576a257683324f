"""One entity's recent events as one packed blob: a header naming the columns, then the columns, byte after byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from zoo.contract import Array
from zoo.errors import ArtefactError
from zoo.events.index import MISSING, Index

_MAGIC = b"zoe1"
_DTYPES = {"<i4", "<i8", "<f8"}


def pack(time: Array, seq: Array, columns: dict[str, Array]) -> bytes:
    """Columns of equal length, sorted by (time, seq)."""
    named = {"time": time, "seq": seq, **columns}
    header = json.dumps([[name, values.dtype.str] for name, values in named.items()], separators=(",", ":")).encode()
    return b"".join(
        [_MAGIC, struct.pack("<II", len(header), len(time)), header, *(np.ascontiguousarray(v).tobytes() for v in named.values())]
    )


@lru_cache(maxsize=64)
def _layout(header: bytes) -> tuple[tuple[str, np.dtype], ...]:
    layout = json.loads(header)
    bad = [kind for _, kind in layout if kind not in _DTYPES]
    if bad:
        raise ArtefactError(f"stored events hold a column of type {bad[0]!r}; expected one of {', '.join(sorted(_DTYPES))}")
    return tuple((str(name), np.dtype(kind)) for name, kind in layout)


def unpack(blob: bytes) -> dict[str, Array]:
    """The columns of a blob (read-only), ``time`` and ``seq`` among them. Raises ArtefactError where it is torn or foreign."""
    if len(blob) < 12 or blob[:4] != _MAGIC:
        raise ArtefactError(
            f"stored events begin with {blob[:4]!r}; expected {_MAGIC!r}. Materialize again to rebuild them from the log"
        )
    size, count = struct.unpack_from("<II", blob, 4)
    at = 12 + size
    layout = _layout(bytes(blob[12:at]))
    if len(blob) != at + count * sum(kind.itemsize for _, kind in layout):
        raise ArtefactError(
            f"stored events are {len(blob)} bytes, not what their header says. Materialize again to rebuild them from the log"
        )
    out = {}
    for name, kind in layout:
        out[name] = np.frombuffer(blob, kind, count, at)
        at += count * kind.itemsize
    return out


def _nothing(kind: np.dtype, count: int) -> Array:
    """Missing values of a column: code 0, MISSING or NaN."""
    return np.full(count, {"i4": 0, "i8": MISSING}.get(kind.str[1:], np.nan), kind)


def concatenate(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """One set of columns; a column that a part lacks is filled with missing values."""
    kinds = {name: values.dtype for part in parts for name, values in part.items()}
    return {
        name: np.concatenate([part[name] if name in part else _nothing(kind, len(part["time"])) for part in parts])
        for name, kind in kinds.items()
    }


def merge(old: bytes | None, new: bytes, limit: int) -> bytes:
    """The union of two blobs by seq, sorted by (time, seq), cut to the newest ``limit`` events.

    Idempotent and independent of order, so that pushes and a bulk copy from the log may meet in any way.
    """
    if old is None:
        columns = unpack(new)
        if len(columns["time"]) <= limit:
            return new
    else:
        columns = concatenate([unpack(old), unpack(new)])
        _, first = np.unique(columns["seq"], return_index=True)
        columns = {name: values[first] for name, values in columns.items()}
    order = np.lexsort((columns["seq"], columns["time"]))[-limit:]
    columns = {name: values[order] for name, values in columns.items()}
    return pack(columns.pop("time"), columns.pop("seq"), columns)


def index_of(blobs: Sequence[bytes | None], facts: dict[str, object]) -> Index:
    """A small index over entities whose blobs these are, with codes 2, 3, ... in the order given."""
    parts = [unpack(b) for b in blobs if b is not None]
    lengths = np.zeros(len(blobs), np.int64)
    lengths[[i for i, b in enumerate(blobs) if b is not None]] = [len(p["time"]) for p in parts]
    offsets = np.zeros(len(blobs) + 3, np.int64)
    np.cumsum(lengths, out=offsets[3:])
    if len(parts) == 1:
        columns = dict(parts[0])
    elif parts:
        columns = concatenate(parts)
    else:
        empty = np.zeros(0, np.int64)
        columns = {"time": empty, "seq": empty, "item_id": empty.astype(np.int32), "event_type": empty.astype(np.int32)}
        columns |= dict.fromkeys(("value", "quantity", "price"), empty)
    return Index(offsets, columns.pop("time"), columns.pop("seq"), columns, **facts)  # type: ignore[arg-type]
