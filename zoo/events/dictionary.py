"""Append-only dictionaries: identifier -> int32 code (0 nothing, 1 unknown, real ones from 2), kept with the log.

A code never changes its meaning, so codes of an older version stay right in every later one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import PADDING, UNKNOWN, Array
from zoo.errors import UnknownIdError
from zoo.events import delta
from zoo.events.schema import ID_TYPES, IdType

FIRST = 2
"""Code of the first real identifier."""
SCHEMA = pa.schema([("dictionary", pa.string()), ("code", pa.int32()), ("text", pa.string()), ("number", pa.int64())])
# Below this many values, hashing each in Python is cheaper than building a hash of the whole dictionary.
FEW = 2_000
_SPREAD = 8
"""Integer identifiers that span less than this times their number are looked up in a table by value."""


def as_array(values: Any) -> pa.Array:
    """Identifiers as one Arrow array: from Arrow, NumPy, polars, pandas or a list; NaN counts as null."""
    if hasattr(values, "to_arrow"):
        values = values.to_arrow()
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        try:
            values = pa.array(values, from_pandas=True)
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise UnknownIdError(f"identifiers of mixed or unusable types: {error}; expected one type for all of them") from error
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values


def as_ids(values: Any, kind: IdType, name: str) -> pa.Array:
    """Identifiers in the type that the log declares; UnknownIdError for any other (``"1"`` is not ``1``).

    Whole numbers kept as floats, as pandas does where some are missing, count as integers.
    """
    array = as_array(values)
    found = array.type
    if pa.types.is_null(found):
        return array.cast(ID_TYPES[kind])
    if kind == "string":
        if pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found):
            return array.cast(pa.string())
    elif pa.types.is_integer(found) or pa.types.is_floating(found):
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise UnknownIdError(f"{name}: {error}; expected whole numbers of at most 64 bits") from error
    seen = next((v for v in array[:100].to_pylist() if v is not None), None)
    raise UnknownIdError(
        f"{name} {seen!r} is {found}; this log's are of type {kind}: the same identifier in another type is another one"
    )


class Dictionary:
    """One dictionary as it was at one version; immutable, safe to share between threads.

    values: the identifiers in order of code, ``values[i]`` has code ``i + 2``.
    """

    def __init__(self, name: str, kind: IdType, values: pa.Array, lookup: dict[Any, int]) -> None:
        self.name, self.kind, self.values = name, kind, values
        # Shared with older and newer versions of the same dictionary: it only grows, and codes beyond ``size`` are ignored.
        self._lookup = lookup
        self._sorted: tuple[Array, Array] | None = None
        self._table: Array | None = None

    @property
    def size(self) -> int:
        """Number of codes, padding and unknown included."""
        return len(self.values) + FIRST

    @property
    def ids(self) -> list[Any]:
        """The identifiers as Python values, in order of code from 2 on."""
        return list(self.values.to_pylist())

    def encode(self, values: Any) -> Array:
        """int32 (n,): a code a value; 1 for an identifier that is not here, 0 for null.

        Raises UnknownIdError where the type is not the declared one.
        """
        ids = as_ids(values, self.kind, self.name)
        if len(ids) <= FEW:
            return self._encode_few(ids)
        if self.kind == "int":
            return self._encode_ints(ids)
        packed = ids.dictionary_encode()
        index = pc.index_in(packed.dictionary, value_set=self.values).fill_null(UNKNOWN - FIRST)
        codes = np.append(np.asarray(index, np.int32) + FIRST, PADDING).astype(np.int32)
        encoded: Array = codes[np.asarray(packed.indices.fill_null(len(codes) - 1))]
        return encoded

    def _encode_few(self, ids: pa.Array) -> Array:
        known = len(self._lookup)
        if known < len(self.values):
            missing = self.values[known:].to_pylist()
            self._lookup.update(zip(missing, range(known + FIRST, known + FIRST + len(missing)), strict=True))
        size, get = self.size, self._lookup.get
        found = (PADDING if value is None else get(value, UNKNOWN) for value in ids.to_pylist())
        return np.fromiter((code if code < size else UNKNOWN for code in found), np.int32, len(ids))

    def _encode_ints(self, ids: pa.Array) -> Array:
        keys = np.asarray(ids.fill_null(0) if ids.null_count else ids)
        found = self._by_value(keys)
        if ids.null_count:
            found[np.asarray(ids.is_null())] = PADDING
        return found

    def _by_value(self, keys: Array) -> Array:
        """int32 (n,): codes of numbers, from a table by value where they lie close together, else by search."""
        own = self._numbers[FIRST:]
        if not len(own):
            return np.full(len(keys), UNKNOWN, np.int32)
        if self._sorted is None:
            order = np.argsort(own, kind="stable")
            self._sorted = own[order], (order + FIRST).astype(np.int32)
        values, codes = self._sorted
        first, last = int(values[0]), int(values[-1])
        if last - first >= _SPREAD * len(own):
            at = np.minimum(np.searchsorted(values, keys), len(own) - 1)
            return np.where(values[at] == keys, codes[at], UNKNOWN).astype(np.int32)
        if self._table is None:
            table = np.full(last - first + 2, UNKNOWN, np.int32)
            table[own - first] = np.arange(FIRST, self.size, dtype=np.int32)
            self._table = table
        outside = (keys < first) | (keys > last)
        return self._table[np.where(outside, last - first + 1, keys - first)]

    @cached_property
    def _numbers(self) -> Array:
        """int64 (size,): integer identifiers by code."""
        return np.concatenate(([0, 0], np.asarray(self.values, np.int64)))

    def decode(self, codes: Array) -> pa.Array:
        """Identifiers of codes int (n,); null for 0 and 1. Raises UnknownIdError for a code that was never given."""
        codes = np.asarray(codes)
        low, high = (int(codes.min()), int(codes.max())) if len(codes) else (FIRST, FIRST)
        if len(codes) and (low < 0 or high >= self.size):
            raise UnknownIdError(
                f"code {high if high >= self.size else low} is not in {self.name}; expected 0 to {self.size - 1}"
            )
        missing = codes < FIRST if low < FIRST else None
        if self.kind == "int":  # numpy looks up in a small table faster than Arrow does
            return pa.array(self._numbers.take(codes), mask=missing)
        return self.values.take(pa.array(codes - FIRST, mask=missing))


class DictionaryStore:
    """Every dictionary of one log, as one small Delta table; reads only files that it has not read yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table = delta.open_table(folder)
        self._read: set[str] = set()
        self._held: dict[str, Dictionary] = {}
        self._loaded = -1
        self._mutex = threading.Lock()

    @staticmethod
    def create(folder: Path) -> None:
        delta.create(folder, SCHEMA)

    def version(self) -> int:
        with self._mutex:
            self._refresh()
            return int(self._table.version())

    def names(self) -> list[str]:
        """Dictionaries that hold at least one identifier."""
        with self._mutex:
            self._refresh()
            return sorted(self._held)

    def get(self, name: str, kind: IdType) -> Dictionary:
        """The dictionary as it is now; empty where nothing entered it yet."""
        with self._mutex:
            self._refresh()
            return self._held.get(name) or Dictionary(name, kind, pa.array([], ID_TYPES[kind]), {})

    def _refresh(self) -> None:
        delta.refresh(self.folder, self._table)
        if self._loaded == self._table.version():
            return
        files = [f for f in delta.data_files(self._table) if f.name not in self._read]
        found = delta.read(self.folder, files, SCHEMA, SCHEMA.names, packed=["dictionary"]).combine_chunks()
        names = found["dictionary"].combine_chunks()
        for index, name in enumerate(names.dictionary.to_pylist()):
            rows = found.filter(pc.equal(names.indices, index))
            held = self._held.get(name)
            rows = rows.filter(pc.greater_equal(rows["code"], held.size if held else FIRST)).sort_by("code")
            column = "number" if rows["text"].null_count == len(rows) else "text"
            if len(rows):
                self._put(name, rows[column].combine_chunks())
        # Last, so that an interrupt half way is made good by the next call.
        self._read.update(f.name for f in files)
        self._loaded = int(self._table.version())

    def _put(self, name: str, values: pa.Array) -> None:
        held = self._held.get(name)
        kind: IdType = "int" if pa.types.is_integer(values.type) else "string"
        joined = pa.concat_arrays([held.values, values]) if held else values
        self._held[name] = Dictionary(name, kind, joined, held._lookup if held else {})

    def extend(self, new: Mapping[str, pa.Array]) -> int:
        """Give codes to identifiers that have none, in order of first appearance, in one commit; returns the version.

        new: identifiers by dictionary, nulls and repeats welcome. The caller holds the write lock.
        """
        with self._mutex:
            self._refresh()
            parts, grown = [], {}
            for name, values in new.items():
                held = self._held.get(name)
                values = pc.drop_null(values.unique())
                if held is not None:
                    values = values.filter(pa.array(held.encode(values) == UNKNOWN))
                if not len(values):
                    continue
                codes = np.arange(len(values), dtype=np.int32) + (held.size if held else FIRST)
                grown[name] = values
                nothing = {"text": pa.nulls(len(values), pa.string()), "number": pa.nulls(len(values), pa.int64())}
                filled = {"number" if pa.types.is_integer(values.type) else "text": values}
                parts.append(
                    pa.table({"dictionary": pa.repeat(name, len(values)), "code": codes, **nothing, **filled}, schema=SCHEMA)
                )
            if parts:
                with delta.Writing(self.folder, SCHEMA) as writing:
                    for part in parts:
                        writing.add(part)
                    writing.commit(self._table)
                for name, values in grown.items():
                    self._put(name, values)
                self._merge()
                self._read = {f.name for f in delta.data_files(self._table)}
                self._loaded = int(self._table.version())
            return int(self._table.version())

    def _merge(self) -> None:
        """Make one file of many small ones, so that opening the log stays quick after many pushes."""
        small = [f for f in delta.data_files(self._table) if f.rows < delta.SMALL]
        if len(small) >= delta.MANY:
            table = delta.read(self.folder, small, SCHEMA, SCHEMA.names)
            with delta.Writing(self.folder, SCHEMA) as merged:
                merged.add(table.sort_by([("dictionary", "ascending"), ("code", "ascending")]))
                merged.commit(self._table, removed=small)
