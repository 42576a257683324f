"""A table that is read once, in pieces: in memory or as Parquet. ``zoo.events.text_sources`` reads CSV and NDJSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zoo.contract import Array
from zoo.errors import SchemaError, UsageError

CHUNK = 131_072
"""Rows that are in memory at a time."""


@dataclass(frozen=True)
class Malformed:
    """A row that is no row: its number, why, and its text."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file: their numbers int64 (n,), columns under the file's names (Arrow, or Python values of JSON)."""

    rows: Array
    columns: Mapping[str, Any]
    malformed: Sequence[Malformed] = ()


class Source(Protocol):
    """A table that is read once, in order.

    names: its columns. types: their Arrow types; None where the file does not say. text: it knows text only.
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def types(self) -> Mapping[str, pa.DataType] | None: ...
    @property
    def text(self) -> bool: ...

    def chunks(self, columns: Mapping[str, str]) -> Iterator[tuple[Chunk, float]]:
        """The rows, and the fraction of the source that has been read. ``columns``: name -> kind (see ``values.read``)."""
        ...


def once(names: Sequence[str], where: str) -> None:
    """Refuse columns that share a name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SchemaError(f"{where} has column {twice[0]!r} {names.count(twice[0])} times; expected each name once")


class TableSource:
    """A table in memory."""

    text = False

    def __init__(self, table: pa.Table) -> None:
        once(table.column_names, "the table")
        self._table = table
        self.names: Sequence[str] = table.column_names
        self.types: Mapping[str, pa.DataType] | None = dict(zip(table.schema.names, table.schema.types))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def chunks(self, columns: Mapping[str, str]) -> Iterator[tuple[Chunk, float]]:
        total = self._table.num_rows
        for start in range(0, total, CHUNK):
            part = self._table.select(list(columns)).slice(start, CHUNK)
            rows = np.arange(start, start + part.num_rows, dtype=np.int64)
            yield Chunk(rows, {n: part[n].combine_chunks() for n in columns}), (start + part.num_rows) / total


class ObjectSource:
    """Rows as Python dicts with JSON values."""

    text = False
    types: Mapping[str, pa.DataType] | None = None

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        odd = next((row for row in rows if not isinstance(row, Mapping)), None)
        if odd is not None:
            raise UsageError(f"a row of type {type(odd).__name__}; expected a dict with the columns' names")
        self._rows = rows
        self.names: Sequence[str] = list(dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self._rows)

    def chunks(self, columns: Mapping[str, str]) -> Iterator[tuple[Chunk, float]]:
        for start in range(0, len(self._rows), CHUNK):
            part = self._rows[start : start + CHUNK]
            rows = np.arange(start, start + len(part), dtype=np.int64)
            yield Chunk(rows, {n: [row.get(n) for row in part] for n in columns}), (start + len(part)) / len(self._rows)


class ListSource:
    """Columns of few rows as lists, each of one plain type: ``table`` is what Arrow makes of them, ``chunks`` does without."""

    text = False

    def __init__(self, columns: Mapping[str, list[Any]], types: Mapping[str, pa.DataType], rows: int) -> None:
        self._columns, self._rows = columns, rows
        self.names: Sequence[str] = list(columns)
        self.types: Mapping[str, pa.DataType] | None = types

    @classmethod
    def of(cls, columns: Mapping[Any, Any], most: int) -> ListSource | None:
        """None where there are more rows than ``most``, or any column is no list or array of whole numbers, floats, truths or texts."""
        found, types, rows = {}, {}, -1
        for name, values in columns.items():
            if type(values) is np.ndarray and values.dtype.str in _NUMBERS and values.ndim == 1 and len(values) <= most:
                values = values.tolist()
            if type(values) is not list or not 0 < len(values) <= most or type(name) is not str:
                return None
            kinds = {*map(type, values)}
            kind = _PLAIN.get(kinds.pop())
            if kind is None or kinds or rows not in (-1, len(values)):
                return None
            found[name], types[name], rows = values, kind, len(values)
        return cls(found, types, rows) if found else None

    def __len__(self) -> int:
        return self._rows

    def chunks(self, columns: Mapping[str, str]) -> Iterator[tuple[Chunk, float]]:
        yield Chunk(np.arange(self._rows, dtype=np.int64), {n: self._columns[n] for n in columns}), 1.0

    def table(self) -> pa.Table:
        """The columns as Arrow. Raises UsageError where a value has no place in its type."""
        try:
            return pa.table({n: pa.array(values, self.types[n]) for n, values in self._columns.items()})  # type: ignore[index]
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise UsageError(f"the columns cannot be read: {error}; expected values of one type in each") from error


_PLAIN: Mapping[type, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
_NUMBERS = {"<i8", "<i4", "<f8"}


class ParquetSource:
    text = False

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        schema = self._file.schema_arrow
        once(schema.names, str(path))
        self.names: Sequence[str] = schema.names
        self.types: Mapping[str, pa.DataType] | None = dict(zip(schema.names, schema.types))

    def chunks(self, columns: Mapping[str, str]) -> Iterator[tuple[Chunk, float]]:
        start, total = 0, self._file.metadata.num_rows
        for batch in self._file.iter_batches(CHUNK, columns=list(columns)):
            rows = np.arange(start, start + batch.num_rows, dtype=np.int64)
            start += batch.num_rows
            yield Chunk(rows, {n: batch.column(n) for n in columns}), start / total
