"""Append-only dictionaries: identifier -> int32 code (0 nothing, 1 unknown, real ones from 2), kept with the log.

A code never changes its meaning, so codes of an older version stay right in every later one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
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
from zoo.events.tail import Tail

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
    if found == ID_TYPES[kind]:
        return array
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


class _Grown:
    """What all versions of a dictionary share: it only grows, and a version looks no further than its own size.

    lookup: identifier -> code of the first ``known`` codes. more: identifiers after ``base``.
    """

    def __init__(self, base: pa.Array) -> None:
        self.base = base
        self.more: list[Any] = []
        self.lookup: dict[Any, int] = {}
        self.known = FIRST
        self.mutex = threading.Lock()

    def codes(self, size: int) -> dict[Any, int]:
        """The lookup, filled up to a size at least."""
        if self.known < size:
            with self.mutex:
                if self.known < size:
                    at = self.known - FIRST
                    held = len(self.base)
                    missing = (
                        self.base[at : size - FIRST].to_pylist() + self.more[max(at - held, 0) : max(size - FIRST - held, 0)]
                    )
                    self.lookup.update((v, c) for c, v in enumerate(missing, self.known) if v is not None)
                    self.known = size
        return self.lookup


class Dictionary:
    """One dictionary as it was at one version; immutable, safe to share between threads.

    A forgotten identifier's code stays; its text is null.
    """

    def __init__(self, name: str, kind: IdType, grown: _Grown, size: int) -> None:
        self.name, self.kind, self.size = name, kind, size
        """size: number of codes, padding and unknown included."""
        self._grown = grown
        self._values: pa.Array | None = None
        self._sorted: tuple[Array, Array] | None = None
        self._table: Array | None = None

    @property
    def values(self) -> pa.Array:
        """The identifiers in order of code, ``values[i]`` has code ``i + 2``."""
        if self._values is None:
            count, held = self.size - FIRST, len(self._grown.base)
            parts = [self._grown.base[:count]]
            if count > held:
                parts.append(pa.array(self._grown.more[: count - held], ID_TYPES[self.kind]))
            self._values = pa.concat_arrays(parts)
        return self._values

    @property
    def ids(self) -> list[Any]:
        """The identifiers as Python values, in order of code from 2 on."""
        return list(self.values.to_pylist())

    def encode(self, values: Any) -> Array:
        """int32 (n,): a code a value; 1 for an identifier that is not here, 0 for null.

        Raises UnknownIdError where the type is not the declared one.
        """
        if type(values) is list and len(values) <= FEW:
            plain = int if self.kind == "int" else str
            if {*map(type, values)} == {plain}:  # as most online reads are: no Arrow is needed
                few = self._codes_of(values)
                if self.kind == "string" or UNKNOWN not in few:  # a number may be too large
                    return np.array(few, np.int32)
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
        return np.array(self._codes_of(ids.to_pylist()), np.int32)

    def _codes_of(self, values: list[Any]) -> list[int]:
        size, get = self.size, self._grown.codes(self.size).get
        found = [PADDING if value is None else get(value, UNKNOWN) for value in values]
        return [code if code < size else UNKNOWN for code in found]

    def _encode_ints(self, ids: pa.Array) -> Array:
        keys = np.asarray(ids.fill_null(0) if ids.null_count else ids)
        found = self._by_value(keys)
        if ids.null_count:
            found[np.asarray(ids.is_null())] = PADDING
        return found

    def _by_value(self, keys: Array) -> Array:
        """int32 (n,): codes of numbers, from a table by value where they lie close together, else by search."""
        if self._sorted is None:
            there = np.arange(FIRST, self.size) if self._blank is None else np.flatnonzero(~self._blank)[FIRST:]
            own = self._numbers[there]
            order = np.argsort(own, kind="stable")
            self._sorted = own[order], there[order].astype(np.int32)
        values, codes = self._sorted
        if not len(values):
            return np.full(len(keys), UNKNOWN, np.int32)
        first, last = int(values[0]), int(values[-1])
        if last - first >= _SPREAD * len(values):
            at = np.minimum(np.searchsorted(values, keys), len(values) - 1)
            return np.where(values[at] == keys, codes[at], UNKNOWN).astype(np.int32)
        if self._table is None:
            table = np.full(last - first + 2, UNKNOWN, np.int32)
            table[values - first] = codes
            self._table = table
        outside = (keys < first) | (keys > last)
        return self._table[np.where(outside, last - first + 1, keys - first)]

    @cached_property
    def _numbers(self) -> Array:
        """int64 (size,): integer identifiers by code."""
        return np.concatenate(([0, 0], np.asarray(self.values.fill_null(0), np.int64)))

    @cached_property
    def _by_code(self) -> pa.Array:
        """The same as Arrow."""
        return pa.array(self._numbers)

    @cached_property
    def _blank(self) -> Array | None:
        """bool (size,): codes whose identifier was forgotten; None where none was."""
        if not self.values.null_count:
            return None
        return np.concatenate(([False, False], np.asarray(self.values.is_null())))

    def decode(self, codes: Array) -> pa.Array:
        """Identifiers of codes int (n,); null for 0 and 1. Raises UnknownIdError for a code that was never given."""
        codes = np.asarray(codes)
        low, high = (int(codes.min()), int(codes.max())) if len(codes) else (FIRST, FIRST)
        if len(codes) and (low < 0 or high >= self.size):
            raise UnknownIdError(
                f"code {high if high >= self.size else low} is not in {self.name}; expected 0 to {self.size - 1}"
            )
        missing = codes < FIRST if low < FIRST else None
        if self.kind == "int" and missing is None and self._blank is None:
            return pc.take(self._by_code, pa.array(codes), boundscheck=False)  # they are all there, as was just seen
        if self.kind == "int":
            if self._blank is not None:
                missing = self._blank.take(codes) | (codes < FIRST)
            return pa.array(self._numbers.take(codes), mask=missing)
        return pc.take(self.values, pa.array(codes - FIRST, mask=missing), boundscheck=False)


class DictionaryStore:
    """Every dictionary of one log: a small Delta table, of which only files are read that were not read yet, and codes in the tail."""

    def __init__(self, folder: Path, tail: Tail | None = None) -> None:
        self.folder, self._tail = folder, tail
        self._table = delta.open_table(folder)
        self._mutex = threading.RLock()
        self._reset()

    def _reset(self) -> None:
        self._read: set[str] = set()
        self._held: dict[str, Dictionary] = {}
        self._kept: dict[str, int] = {}
        self._loaded = -1
        self._epoch = delta.transaction(self._table, delta.EPOCH)
        self._segment = 0

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
        """The dictionary as it is at the moment; empty where nothing entered it yet."""
        return self.several({name: kind})[name]

    def several(self, kinds: Mapping[str, IdType]) -> dict[str, Dictionary]:
        """``get`` of several, by name, at one moment."""
        with self._mutex:
            self._refresh()
            return {name: self._get(name, kind) for name, kind in kinds.items()}

    def _get(self, name: str, kind: IdType) -> Dictionary:
        found = self._held.get(name)
        if found is None:
            return Dictionary(name, kind, _Grown(pa.array([], ID_TYPES[kind])), FIRST)
        if found.kind != kind and found.values.null_count == len(found.values):  # every identifier was forgotten
            found = self._held[name] = Dictionary(name, kind, _Grown(pa.nulls(len(found.values), ID_TYPES[kind])), found.size)
        return found

    def _refresh(self) -> None:
        # The tail first: codes that leave it meanwhile are in Delta then.
        given = []
        if self._tail is not None and self._tail.refresh():
            given = self._tail.given(self._segment)
        delta.refresh(self.folder, self._table)
        if self._loaded != self._table.version():
            self._load()
        for segment, name, code, value in given:
            held = self._held.get(name)
            if code == (held.size if held else FIRST):
                self._grow(name, [value])
            self._segment = segment

    def _load(self) -> None:
        if self._epoch != delta.transaction(self._table, delta.EPOCH):
            self._reset()
        files = [f for f in delta.data_files(self._table) if f.name not in self._read]
        found = delta.read(self.folder, files, SCHEMA, SCHEMA.names, packed=["dictionary"]).combine_chunks()
        names = found["dictionary"].combine_chunks()
        for index, name in enumerate(names.dictionary.to_pylist()):
            rows = found.filter(pc.equal(names.indices, index))
            if not len(rows):
                continue
            held = self._held.get(name)
            self._kept[name] = max(self._kept.get(name, FIRST), pc.max(rows["code"]).as_py() + 1)
            rows = rows.filter(pc.greater_equal(rows["code"], held.size if held else FIRST)).sort_by("code")
            column = "number" if rows["text"].null_count == len(rows) else "text"
            if len(rows):
                self._put(name, rows[column].combine_chunks())
        # Last, so that an interrupt half way is made good by the next call.
        self._read.update(f.name for f in files)
        self._loaded = int(self._table.version())

    def _put(self, name: str, values: pa.Array) -> None:
        """Add identifiers after those that are held."""
        held = self._held.get(name)
        if held is not None:
            self._grow(name, values.to_pylist())
            return
        kind: IdType = "int" if pa.types.is_integer(values.type) else "string"
        self._held[name] = Dictionary(name, kind, _Grown(values), len(values) + FIRST)

    def _grow(self, name: str, values: list[Any]) -> None:
        held = self._held.get(name)
        if held is None:
            kind: IdType = "int" if isinstance(values[0], int) else "string"
            self._put(name, pa.array(values, ID_TYPES[kind]))
            return
        grown = held._grown
        if held.size - FIRST != len(grown.base) + len(grown.more) or len(values) > FEW:
            grown = _Grown(held.values)
        if len(values) > FEW:
            grown = _Grown(pa.concat_arrays([held.values, pa.array(values, ID_TYPES[held.kind])]))
        else:
            grown.more.extend(values)
        self._held[name] = Dictionary(name, held.kind, grown, held.size + len(values))

    def new(
        self, brought: Mapping[str, tuple[IdType, pa.Array | list[Any]]], given: dict[tuple[str, Any], int]
    ) -> list[tuple[str, int, Any]]:
        """(dictionary, code, identifier) of identifiers that have no code yet.

        brought: by dictionary their type and the identifiers, each once. given: codes that were given in the same step, by dictionary
        and identifier; those of this call are noted there.
        """
        out = []
        with self._mutex:
            self._refresh()
            for name, (kind, values) in brought.items():
                held = self._held.get(name)
                if held is None or held.kind != kind:
                    held = self.get(name, kind)
                codes = held.encode(values).tolist()
                if UNKNOWN not in codes:
                    continue
                size = held.size + sum(1 for other, _ in given if other == name)
                for code, value in zip(codes, values if isinstance(values, list) else values.to_pylist()):
                    if code == UNKNOWN and (name, value) not in given:
                        given[name, value] = size
                        out.append((name, size, value))
                        size += 1
        return out

    def settle(self, given: Sequence[tuple[str, int, Any]]) -> None:
        """Put codes from the tail into Delta, those that are not there, in one commit. The caller holds the writer lock."""
        with self._mutex:
            self._refresh()
            parts = []
            for name in dict.fromkeys(name for name, _, _ in given):
                kept = self._kept.get(name, FIRST)
                rows = [(code, value) for other, code, value in given if other == name and code >= kept]
                if rows:
                    parts.append(_rows(name, [c for c, _ in rows], pa.array([v for _, v in rows])))
        self._commit(parts)

    def extend(self, new: Mapping[str, pa.Array]) -> int:
        """Give codes to identifiers that have none, in order of first appearance, in one commit; returns the version.

        new: identifiers by dictionary, nulls and repeats welcome. The caller holds the write lock, and the tail is empty.
        """
        with self._mutex:
            self._refresh()
            parts = []
            for name, values in new.items():
                held = self._held.get(name)
                values = pc.drop_null(values.unique())
                if held is not None:
                    values = values.filter(pa.array(held.encode(values) == UNKNOWN))
                if not len(values):
                    continue
                start = held.size if held else FIRST
                parts.append(_rows(name, range(start, start + len(values)), values))
            self._commit(parts)
            return int(self._table.version())

    def _commit(self, parts: list[pa.Table]) -> None:
        if not parts:
            return
        with delta.Writing(self.folder, SCHEMA) as writing:
            for part in parts:
                writing.add(part)
            # whoever reads goes on with a table of its own meanwhile
            table = delta.open_table(self.folder)
            writing.commit(table)
        self._merge(table)
        with self._mutex:
            self._refresh()

    def _merge(self, changed: Any) -> None:
        """Make one file of many small ones, so that opening the log stays quick after many pushes."""
        small = [f for f in delta.data_files(changed) if f.rows < delta.SMALL]
        if len(small) >= delta.MANY:
            table = delta.read(self.folder, small, SCHEMA, SCHEMA.names)
            with delta.Writing(self.folder, SCHEMA) as merged:
                merged.add(table.sort_by([("dictionary", "ascending"), ("code", "ascending")]))
                merged.commit(changed, removed=small)

    def forget(self, codes: Mapping[str, Array]) -> None:
        """Blank the identifiers of codes, by dictionary; the codes stay. One commit, and no older file stays.

        The caller holds the write lock.
        """
        with self._mutex:
            self._refresh()
            files = delta.data_files(self._table)
            table = delta.read(self.folder, files, SCHEMA, SCHEMA.names)
            hit = np.zeros(len(table), bool)
            for name, gone in codes.items():
                hit |= np.asarray(pc.equal(table["dictionary"], name)) & np.isin(np.asarray(table["code"]), gone)
            hit &= np.asarray(table["text"].is_valid()) | np.asarray(table["number"].is_valid())
            if hit.any():
                mask = pa.array(hit)
                blank = {n: pc.if_else(mask, pa.scalar(None, table[n].type), table[n]) for n in ("text", "number")}
                table = pa.table({"dictionary": table["dictionary"], "code": table["code"], **blank}, schema=SCHEMA)
                delta.rewrite(
                    self.folder, self._table, files, [table.sort_by([("dictionary", "ascending"), ("code", "ascending")])]
                )
            delta.vacuum(self.folder, self._table)
            self._reset()


def _rows(name: str, codes: Sequence[int], values: pa.Array) -> pa.Table:
    count = len(values)
    nothing = {"text": pa.nulls(count, pa.string()), "number": pa.nulls(count, pa.int64())}
    filled = {"number" if pa.types.is_integer(values.type) else "text": values}
    return pa.table(
        {"dictionary": pa.repeat(name, count), "code": pa.array(codes, pa.int32()), **nothing, **filled}, schema=SCHEMA
    )
