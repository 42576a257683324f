"""Reading event files piece by piece: Parquet, CSV and NDJSON (the last two also gzipped)."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from zoo.contract import Array
from zoo.errors import SchemaError, UsageError, choices
from zoo.events import values

CHUNK = 131_072
"""Rows that are in memory at a time."""
FORMATS = (".parquet", ".pq", ".csv", ".tsv", ".ndjson", ".jsonl")


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


def open_source(path: Path) -> Source:
    """The file as a source; SchemaError where it is not what its name says, UsageError for a name that says nothing."""
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}; expected a file that ends in {', '.join(FORMATS)}")
    suffixes = [s.lower() for s in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    suffix = (suffixes[:-1] if packed else suffixes)[-1:] or [""]
    if suffix[0] not in FORMATS:
        raise UsageError(choices("kind of file", path.name, [f"NAME{s}" for s in FORMATS]))
    try:
        if suffix[0] in (".parquet", ".pq"):
            return ParquetSource(path)
        if suffix[0] in (".csv", ".tsv"):
            return CsvSource(path, packed)
        return JsonSource(path, packed)
    except (OSError, EOFError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} cannot be read as {suffix[0][1:]}: {error}; is the file whole?") from error


def digest(path: Path) -> str:
    """``sha256:`` and the digest of a file's bytes: the identity of the file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


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

    def chunks(self, columns: Mapping[str, str]) -> Iterator[tuple[Chunk, float]]:
        for start in range(0, len(self._rows), CHUNK):
            part = self._rows[start : start + CHUNK]
            rows = np.arange(start, start + len(part), dtype=np.int64)
            yield Chunk(rows, {n: [row.get(n) for row in part] for n in columns}), (start + len(part)) / len(self._rows)


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


def _opened(path: Path, packed: bool) -> IO[bytes]:
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


class CsvSource:
    """Everything is text, so that identifiers keep their leading zeros; an empty field is null."""

    text = True
    types: Mapping[str, pa.DataType] | None = None

    def __init__(self, path: Path, packed: bool) -> None:
        self._path, self._packed = path, packed
        with _opened(path, packed) as raw:
            header = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="").readline(1_000_000)
        if not header.strip():
            raise SchemaError(f"{path} is empty; expected a header with the columns' names")
        self._delimiter = max(",;\t|", key=header.count)
        self.names: Sequence[str] = next(csv.reader([header], delimiter=self._delimiter))
        once(self.names, str(path))

    def chunks(self, columns: Mapping[str, str]) -> Iterator[tuple[Chunk, float]]:
        broken: list[tuple[int, str]] = []

        def skip(row: Any) -> str:
            # Its number counts the header as 1.
            broken.append((row.number - 2, row.text))
            return "skip"

        size = max(1, self._path.stat().st_size)
        with self._path.open("rb") as counted:
            reader = pa_csv.open_csv(
                pa.CompressedInputStream(counted, "gzip") if self._packed else counted,
                pa_csv.ReadOptions(use_threads=False, block_size=8 << 20),
                pa_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=skip),
                pa_csv.ConvertOptions(
                    check_utf8=False,
                    column_types=dict.fromkeys(self.names, pa.string()),
                    include_columns=list(columns),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            first = 0
            for batch in reader:
                rows, first = _numbered(first, batch.num_rows, [row for row, _ in broken])
                lines = [Malformed(row, "row_malformed", text) for row, text in broken if row < first]
                broken = [(row, text) for row, text in broken if row >= first]
                yield _valid_text(rows, batch, list(columns), lines), min(1.0, counted.tell() / size)
            yield (
                Chunk(
                    np.zeros(0, np.int64),
                    {n: pa.nulls(0, pa.string()) for n in columns},
                    [Malformed(row, "row_malformed", text) for row, text in broken],
                ),
                1.0,
            )


def _numbered(first: int, count: int, skipped: Sequence[int]) -> tuple[Array, int]:
    """Numbers of the next ``count`` rows from ``first`` on, leaving out the skipped ones, and the number after them."""
    gone = np.array(sorted(row for row in skipped if row >= first), np.int64)
    rows = np.arange(first, first + count + len(gone), dtype=np.int64)
    rows = rows[~np.isin(rows, gone)][:count]
    return rows, int(rows[-1]) + 1 if count else first


def _valid_text(rows: Array, batch: pa.RecordBatch, columns: Sequence[str], lines: list[Malformed]) -> Chunk:
    """The chunk without rows whose bytes are no UTF-8."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        raw = [batch.column(name).cast(pa.binary()).to_pylist() for name in columns]
        bad = [not all(v is None or _utf8(v) for v in values) for values in zip(*raw)]
        for index in np.flatnonzero(bad):
            fields = {
                name: v[index].decode("utf-8", "replace") if v[index] is not None else None for name, v in zip(columns, raw)
            }
            lines.append(Malformed(int(rows[index]), "text_not_utf8", json.dumps(fields, ensure_ascii=False)))
        keep = pa.array(~np.array(bad, bool))
        batch, rows = batch.filter(keep), rows[np.asarray(keep)]
    return Chunk(rows, {name: batch.column(name) for name in columns}, lines)


def _utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class JsonSource:
    """One JSON object a line; a line that is none is malformed. Rows are numbered by line, blank ones included."""

    text = False
    types: Mapping[str, pa.DataType] | None = None

    def __init__(self, path: Path, packed: bool) -> None:
        self._path, self._packed = path, packed
        names: dict[str, type] = {}
        with _opened(path, packed) as raw:
            for line in itertools.islice(raw, 1_000):
                record, _ = _object(line)
                names.update((name, type(value)) for name, value in (record or {}).items() if name not in names)
        if not names:
            raise SchemaError(f"{path} has no JSON object in its first lines; expected one object a line (NDJSON)")
        self.names: Sequence[str] = list(names)
        self._numbers = {name for name, kind in names.items() if kind is int}

    def chunks(self, columns: Mapping[str, str]) -> Iterator[tuple[Chunk, float]]:
        # A label may be a number in every line or text in every line; either is quick to read.
        quick = {n: "int64" if kind == "label" and n in self._numbers else kind for n, kind in columns.items()}
        size, start = max(1, self._path.stat().st_size), 0
        with self._path.open("rb") as counted, gzip.open(counted, "rb") if self._packed else counted as raw:
            while lines := list(itertools.islice(raw, CHUNK)):
                yield _quick(lines, start, quick) or _careful(lines, start, columns), min(1.0, counted.tell() / size)
                start += len(lines)


def _quick(lines: list[bytes], start: int, columns: Mapping[str, str]) -> Chunk | None:
    """The rows where every line is an object and every value of its column's type, else None."""
    schema = pa.schema([(name, values.JSON_TYPES[kind]) for name, kind in columns.items()])
    text = b"".join(lines)
    try:
        table = pa_json.read_json(
            pa.BufferReader(text),
            pa_json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)
    except pa.ArrowInvalid:
        return None
    if table.num_rows != len(lines):
        return None
    rows = np.arange(start, start + len(lines), dtype=np.int64)
    return Chunk(rows, {name: table[name].combine_chunks() for name in columns})


def _careful(lines: list[bytes], start: int, columns: Mapping[str, str]) -> Chunk:
    """The rows as Python values, line by line, so that only the bad ones are refused."""
    rows, records, malformed = [], [], []
    for row, line in enumerate(lines, start):
        if not line.strip():
            continue
        record, reason = _object(line)
        if record is None:
            malformed.append(Malformed(row, reason, line.decode("utf-8", "replace").rstrip("\n")))
        else:
            rows.append(row)
            records.append(record)
    return Chunk(np.array(rows, np.int64), {name: [r.get(name) for r in records] for name in columns}, malformed)


def _object(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The line's JSON object, or None and the reason."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None, "text_not_utf8"
    except (ValueError, RecursionError):
        return None, "row_malformed"
    return (value, "") if isinstance(value, dict) else (None, "row_malformed")
