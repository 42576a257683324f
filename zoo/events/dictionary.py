"""Append-only dictionaries: identifier -> int32 code (0 nothing, 1 unknown, real ones from 2), kept with the log.

A code never changes its meaning, so codes of an older version stay right in every later one.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import PADDING, UNKNOWN, Array
from zoo.errors import UnknownIdError
from zoo.events.schema import ID_TYPES, IdType

FIRST = 2
"""Code of the first real identifier."""
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
            told = next(
                (repr(v) for v in array.to_pylist() if v is not None and not (abs(v) < 2**63 and v == int(v))), str(error)
            )
            raise UnknownIdError(
                f"{name} {told} is no identifier of this log; expected whole numbers of at most 64 bits, as in 42"
            ) from error
    seen = next((v for v in array[:100].to_pylist() if v is not None), None)
    raise UnknownIdError(
        f"{name} {seen!r} is {found}; this log's are of type {kind}: the same identifier in another type is another one"
    )


class Grown:
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

    def __init__(self, name: str, kind: IdType, grown: Grown, size: int) -> None:
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

    def numbers(self, codes: Array) -> list[int] | None:
        """As ``decode``, of integers that are all there, sooner; None where they are texts, or one is missing or was never given."""
        if self.kind != "int" or self._blank is not None:
            return None
        if len(codes) and not FIRST <= codes.item(codes.argmin()) <= codes.item(codes.argmax()) < self.size:
            return None
        found: list[int] = self._numbers.take(codes).tolist()
        return found

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
