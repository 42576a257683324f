"""Text files in pieces: CSV, whose fields are all text, and NDJSON, whose values have types; both may be gzipped."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from zoo.contract import Array
from zoo.errors import SchemaError
from zoo.events import values
from zoo.events.sources import CHUNK, Chunk, Malformed, once


def _opened(path: Path, packed: bool) -> IO[bytes]:
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


class CsvSource:
    """Everything is text, so that identifiers keep their leading zeros; an empty field is null."""

    text = True
    types: Mapping[str, pa.DataType] | None = None

    def __init__(self, path: Path, packed: bool) -> None:
        self._path, self._packed = path, packed
        with _opened(path, packed) as raw:
            header = raw.readline(1_000_000).decode("utf-8-sig")
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
    if any(kind not in values.JSON_TYPES for kind in columns.values()):
        return None
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
