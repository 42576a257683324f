"""Entity tables (items, users, campaigns) and set tables (campaign_items) beside the log, each replaced whole."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import write_deltalake

from zoo.errors import FeatureError, SchemaError, UnknownIdError, UsageError, choices
from zoo.events import delta
from zoo.events.attributes import VALID_FROM
from zoo.events.dictionary import as_ids
from zoo.events.schema import NAME, LogSchema
from zoo.events.times import naive_to_utc

ENTITIES = ("user_id", "item_id")
"""Entity kinds that have an index."""
_UNSETTLED = 0
"""Mark of a folder in which a table is being changed: a time that no change leaves."""
_COARSEST = 2_000_000_000
"""Nanoseconds between two times that every file system tells apart."""
UTC_TIME = pa.timestamp("us", "UTC")


def as_table(frame: Any) -> pa.Table:
    """Arrow from Arrow, polars or pandas; UsageError for anything else."""
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if hasattr(frame, "to_arrow"):
        frame = frame.to_arrow()
    elif type(frame).__module__.startswith("pandas"):
        frame = pa.Table.from_pandas(frame, preserve_index=False)
    if not isinstance(frame, pa.Table):
        raise UsageError(
            f"cannot read a table from {type(frame).__name__}; expected an Arrow table or a polars or pandas DataFrame"
        )
    return frame


def _stored_type(name: str, found: pa.DataType, timezone: str | None) -> pa.DataType:
    """The type that a column is kept in."""
    types = pa.types
    if types.is_dictionary(found):
        return _stored_type(name, found.value_type, timezone)
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found) or types.is_null(found):
        return pa.string()
    if types.is_boolean(found) or types.is_date32(found):
        return found
    if types.is_integer(found):
        return pa.int64()
    if types.is_floating(found) or types.is_decimal(found):
        return pa.float64()
    if (types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)) and types.is_floating(
        found.value_type
    ):
        return pa.list_(pa.float32())
    if types.is_timestamp(found):
        if found.tz is None and timezone is None:
            raise SchemaError(
                f"column {name!r} holds naive times ({found}); expected times with a timezone, or a log with a timezone"
            )
        return UTC_TIME
    raise SchemaError(f"column {name!r} is {found}; expected text, numbers, booleans, dates, times or lists of floats")


def normalised(frame: Any, keys: Sequence[str], schema: LogSchema, name: str) -> pa.Table:
    """The table as it is kept: keys first, identifiers in the declared type, other columns in their widest type."""
    table = as_table(frame)
    names = table.column_names
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise SchemaError(f"table {name!r} has column {twice[0]!r} twice; expected each name once")
    for key in keys:
        if key not in names:
            raise SchemaError(f"table {name!r} has no key column {key!r}; it has: {', '.join(names) or '(none)'}")
    columns: dict[str, Any] = {}
    for column in [*keys, *(n for n in names if n not in keys)]:
        values = table[column].combine_chunks()
        if column in ENTITIES:
            try:
                columns[column] = as_ids(values, schema.id_type(column), column)
            except UnknownIdError as error:
                raise SchemaError(f"table {name!r}: {error}") from error
            continue
        kept = _stored_type(column, values.type, schema.timezone)
        if kept == UTC_TIME and values.type.tz is None:
            assert schema.timezone is not None
            columns[column] = naive_to_utc(values.cast(pa.timestamp("us"), safe=False), schema.timezone)
            continue
        try:
            columns[column] = values.cast(kept, safe=kept != UTC_TIME)
        except pa.ArrowInvalid as error:
            raise SchemaError(f"table {name!r}, column {column!r}: {error}; expected {kept}") from error
    for key in keys:
        if columns[key].null_count:
            raise SchemaError(f"table {name!r} has {columns[key].null_count} rows without {key!r}; expected a key in every row")
    return pa.table(columns)


def _names(file: Path, ids: pa.Array) -> bool:
    """Whether a data file holds a row of one of these users."""
    with pq.ParquetFile(file) as parquet:
        if "user_id" not in parquet.schema_arrow.names:
            return False
        found = parquet.read(columns=["user_id"])["user_id"]
    return found.type == ids.type and bool(pc.any(pc.is_in(found, value_set=ids)).as_py())


class Tables:
    """The tables of one log, each a Delta table under ``tables/NAME``."""

    def __init__(self, root: Path, schema: LogSchema) -> None:
        self.root, self.schema = root / "tables", schema
        self._settled: tuple[Mapping[str, int] | None, int] = None, 0
        """Versions that no table was newer than, and the folder's mark that says so for as long as it stays."""

    def versions(self) -> dict[str, int]:
        """Version by name."""
        if not self.root.is_dir():
            return {}
        found = sorted(p.name for p in self.root.iterdir() if (p / "_delta_log").is_dir())
        return {name: int(delta.open_table(self.root / name).version()) for name in found}

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """Mark the folder of all tables before a change of one and after it, so that one look at it tells whether there was any.

        A writer that dies in between leaves the first mark, with which readers look at every table.
        """
        (self.root / name).mkdir(parents=True, exist_ok=True)  # which marks the folder in its own way
        before = self.root.stat().st_mtime_ns
        os.utime(self.root, ns=(_UNSETTLED, _UNSETTLED))
        try:
            yield
        finally:
            after = max(time.time_ns(), before + _COARSEST)
            os.utime(self.root, ns=(after, after))

    def moved(self, known: Mapping[str, int]) -> bool:
        """Whether a table is newer than known, gone, or there and not known. One look at the file system while nothing changed."""
        root = str(self.root)  # plain texts: asked on every read
        try:
            mark = os.stat(root).st_mtime_ns  # noqa: PTH116
        except FileNotFoundError:
            mark = 0
        seen, settled = self._settled
        if seen is known and mark == settled:
            return False
        if self._moved(root, known):
            return True
        if mark != _UNSETTLED:
            self._settled = known, mark
        return False

    def _moved(self, root: str, known: Mapping[str, int]) -> bool:
        try:
            there = os.listdir(root)  # noqa: PTH208
        except FileNotFoundError:
            there = []
        for name in there:
            if name not in known and os.path.isdir(f"{root}/{name}/_delta_log"):  # noqa: PTH112
                return True
        for name, version in known.items():
            if name not in there or os.access(f"{root}/{name}/_delta_log/{version + 1:020d}.json", os.F_OK):
                return True
        return False

    def names(self) -> list[str]:
        return sorted(self.versions())

    def read(self, name: str, version: int | None = None) -> pa.Table:
        """The table's rows, key column first; FeatureError where there is no such table."""
        if name not in self.versions():
            raise FeatureError(choices("table", name, self.names()))
        table = delta.open_table(self.root / name, version)
        schema = pa.schema(table.schema().to_arrow())
        return delta.read(self.root / name, delta.data_files(table), schema, schema.names)

    def code_columns(self, name: str) -> list[str]:
        """Dictionaries that the table feeds: ``NAME.COLUMN`` of each text column."""
        schema = pa.schema(delta.open_table(self.root / name).schema().to_arrow())
        return [f"{name}.{f.name}" for f in schema if pa.types.is_string(f.type) and f.name not in ENTITIES]

    def prepare(self, name: str, frame: Any, keys: Sequence[str], unique: bool) -> pa.Table:
        """Check and normalise. ``unique``: a repeated key (and ``valid_from``) is an error; else repeated rows are dropped."""
        if not NAME.match(name):
            raise UsageError(f"table name {name!r} is not letters, digits and underscores; choose another")
        if name == "events":
            raise UsageError("'events' is the log itself; ingest it, or choose another table name")
        table = normalised(frame, keys, self.schema, name)
        if unique and VALID_FROM in table.column_names:
            self._check_dated(name, table)
            keys = [*keys, VALID_FROM]
        counts = table.group_by(list(keys)).aggregate([([], "count_all")])
        if unique and len(counts) < len(table):
            repeated = counts.filter(pc.greater(counts["count_all"], 1))
            example = {key: repeated[key][0].as_py() for key in keys}
            raise SchemaError(
                f"table {name!r} has {len(repeated)} keys in more than one row, for instance {example}; expected one row for each {keys[0]}"
            )
        return table if unique else table.select(list(keys)).group_by(list(keys), use_threads=False).aggregate([])

    def _check_dated(self, name: str, table: pa.Table) -> None:
        found = table[VALID_FROM].type
        if found != UTC_TIME:
            raise SchemaError(f"table {name!r}, column {VALID_FROM!r} is {found}; expected the time from when a row holds")
        if self.schema.clock == "order":
            raise SchemaError(
                f"table {name!r} says from when its rows hold, but this log's events have positions, not times; leave {VALID_FROM!r} out"
            )

    def feeds(self, name: str, table: pa.Table) -> Mapping[str, Any]:
        """Identifiers by dictionary that this table brings."""
        out = {c: table[c].combine_chunks() for c in table.column_names if c in ENTITIES}
        text = (f.name for f in table.schema if pa.types.is_string(f.type) and f.name not in ENTITIES)
        out.update({f"{name}.{column}": table[column].combine_chunks() for column in text})
        return out

    def forget(self, ids: pa.Array) -> int:
        """Remove users' rows from every table that has a ``user_id``, older versions included; returns how many rows.

        The caller holds the write lock.
        """
        gone = 0
        for name in self.names():
            folder = self.root / name
            stored = delta.open_table(folder)
            schema = pa.schema(stored.schema().to_arrow())
            if "user_id" not in schema.names:
                continue
            files = delta.data_files(stored)
            held = delta.read(folder, files, schema, schema.names)
            hit = pc.is_in(held["user_id"], value_set=ids)
            rows = pc.sum(hit).as_py() or 0
            with self._changing(name):
                if rows or any(
                    _names(folder / old, ids) for old in {p.name for p in folder.glob("*.parquet")} - {f.name for f in files}
                ):
                    delta.rewrite(folder, stored, files, [held.filter(pc.invert(hit))])
                delta.vacuum(folder, stored)
            gone += rows
        return gone

    def rewritten(self, name: str) -> int:
        """The first version that can be read: before it, something was forgotten. 0 where nothing was, or the table is gone."""
        folder = self.root / name
        return delta.transaction(delta.open_table(folder), delta.REWRITTEN) if folder.is_dir() else 0

    def write(self, name: str, table: pa.Table) -> int:
        """Replace the table whole and return its version; the same content again changes nothing. The caller holds the write lock."""
        with self._changing(name):
            return self._write(self.root / name, table)

    def _write(self, folder: Path, table: pa.Table) -> int:
        stored = delta.create(folder, table.schema)
        schema = pa.schema(stored.schema().to_arrow())
        if schema.equals(table.schema):
            old = delta.data_files(stored)
            if old and delta.read(folder, old, schema, schema.names).equals(table):
                return int(stored.version())
            with delta.Writing(folder, schema) as writing:
                writing.add(table)
                return writing.commit(stored, removed=old)
        # A change of columns must change the Delta schema in the same commit, which only Delta's own writer can do.
        write_deltalake(stored, table, mode="overwrite", schema_mode="overwrite")
        return int(delta.open_table(folder).version())
