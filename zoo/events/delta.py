"""Delta tables on a local disk: data files are written first, then one atomic commit makes them visible.

A writer that dies leaves nothing but files that no commit names. Writers hold ``zoo.events.lock``.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from zoo.errors import SchemaError, ZooError

FILE_ROWS = 4_000_000
"""Rows after which a new data file is begun."""
SMALL = 50_000
"""Rows below which a data file is worth merging with its neighbours."""
MANY = 64
"""Small files that are tolerated before they are merged."""

EPOCH = "epoch"
"""Application transaction: how many times a table was rewritten without something that it held."""
REWRITTEN = "rewritten"
"""Application transaction: the version by which it was, the oldest that can be read."""

# Every version stays readable: a training run names the version it read.
CONFIGURATION = {"delta.enableExpiredLogCleanup": "false"}


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Turn failures of the disk or of Delta into a ZooError that says what could not be done and why."""
    try:
        yield
    except (OSError, DeltaError, pa.ArrowException) as error:
        raise ZooError(
            f"could not {what}: {error}. The log is whole; check free space and permissions, then run it again."
        ) from error


def create(folder: Path, schema: pa.Schema, configuration: Mapping[str, str] | None = None) -> DeltaTable:
    """Make an empty table unless one is there."""
    return DeltaTable.create(
        str(folder),
        schema,
        mode="ignore",
        configuration={**CONFIGURATION, **(configuration or {})},
        raise_if_key_not_exists=False,
    )


def open_table(folder: Path, version: int | None = None) -> DeltaTable:
    """The table at a version (default: the newest); ZooError where there is none or it cannot be read."""
    if not (folder / "_delta_log").is_dir():
        raise ZooError(f"no table at {folder}; expected a Delta table there")
    try:
        rewritten = 0 if version is None else transaction(DeltaTable(str(folder)), REWRITTEN)
        if version is None or version >= rewritten:
            return DeltaTable(str(folder), version=version)
    except TableNotFoundError as error:
        raise ZooError(f"the table at {folder} is damaged: {error}; restore the folder from a copy") from error
    except (DeltaError, OSError, ValueError) as error:
        at = "" if version is None else f" at version {version}"
        raise ZooError(f"the table at {folder}{at} cannot be read: {error}") from error
    raise ZooError(
        f"version {version} of the table at {folder} is not reproducible: a part of it was forgotten (zoo forget) in version {rewritten}; "
        "the versions from there on can be read"
    )


def refresh(folder: Path, table: DeltaTable) -> None:
    """Read commits that others made since; one look at the file system where there are none."""
    while os.path.exists(f"{folder}/_delta_log/{table.version() + 1:020d}.json"):  # noqa: PTH110 - asked on every read
        table.update_incremental()


def transaction(table: DeltaTable, name: str) -> int:
    """Number of an application transaction, 0 where there was none."""
    return int(table.transaction_version(name) or 0)


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table and what its statistics say. ``low``, ``high``: bounds of int64 columns by name."""

    name: str
    size: int
    rows: int
    low: Mapping[str, int]
    high: Mapping[str, int]
    nulls: Mapping[str, int]


def data_files(table: DeltaTable) -> list[DataFile]:
    """The files of a table, in order of commit where they carry ``seq``, else by name."""
    found = []
    for row in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        stats: dict[str, dict[str, int]] = {"min": {}, "max": {}, "null_count": {}}
        for key, value in row.items():
            kind, _, column = key.partition(".")
            if column and kind in stats and isinstance(value, int):
                stats[kind][column] = value
        found.append(
            DataFile(row["path"], row["size_bytes"], row["num_records"], stats["min"], stats["max"], stats["null_count"])
        )
    return sorted(found, key=lambda f: (f.low.get("seq", -1), f.name))


def read(
    folder: Path,
    files: Sequence[DataFile],
    schema: pa.Schema,
    columns: Sequence[str],
    filters: Any = None,
    packed: Sequence[str] = (),
) -> pa.Table:
    """Columns of these files, file after file; ``packed`` ones as dictionary arrays."""
    wanted = pa.schema(
        [
            pa.field(f.name, pa.dictionary(pa.int32(), f.type) if f.name in packed else f.type)
            for f in (schema.field(name) for name in columns)
        ]
    )
    try:
        parts = [
            pq.read_table(
                folder / file.name,
                columns=list(columns),
                filters=filters,
                read_dictionary=[name for name in packed if name in columns],
                memory_map=False,
                partitioning=None,
            ).cast(wanted)
            for file in files
        ]
    except (OSError, pa.ArrowException) as error:
        raise ZooError(f"a data file of the table at {folder} is missing or damaged: {error}; restore it from a copy") from error
    return pa.concat_tables(parts).unify_dictionaries() if parts else wanted.empty_table()


def batches(
    folder: Path, file: DataFile, schema: pa.Schema, columns: Sequence[str], first: int, stop: int, rows: int
) -> Iterator[pa.Table]:
    """Columns of one file's rows with ``first <= seq < stop``, at most ``rows`` at a time; the file is in order of ``seq``."""
    read = list(dict.fromkeys([*columns, "seq"]))
    wanted = pa.schema([schema.field(name) for name in read])
    try:
        with pq.ParquetFile(folder / file.name) as parquet:
            place = parquet.schema_arrow.names.index("seq")
            groups = []
            for number in range(parquet.num_row_groups):
                bounds = parquet.metadata.row_group(number).column(place).statistics
                if bounds is None or not bounds.has_min_max or (bounds.max >= first and bounds.min < stop):
                    groups.append(number)
            for batch in parquet.iter_batches(rows, row_groups=groups, columns=read):
                low, high = np.searchsorted(np.asarray(batch.column("seq")), [first, stop])
                if high > low:
                    part = pa.Table.from_batches([batch.slice(low, high - low)]).select(read)
                    yield part.cast(wanted).select(list(columns))
    except (OSError, pa.ArrowException) as error:
        raise ZooError(f"a data file of the table at {folder} is missing or damaged: {error}; restore it from a copy") from error


class Writing:
    """Data files of one coming commit. Leaving without ``commit`` removes them, whatever the reason.

    bounded: int64 columns whose smallest and largest value each file records. mark: letters in the files' names.
    """

    def __init__(self, folder: Path, schema: pa.Schema, bounded: Sequence[str] = (), mark: str = "") -> None:
        self.folder, self.schema, self.bounded, self.mark = folder, schema, bounded, mark
        self.rows = 0
        self._actions: list[AddAction] = []
        self._stats: dict[str, Any] = {}
        self._path: Path | None = None
        self._written: list[Path] = []
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            # Closing writes a footer, which fails too where the disk is full; the file goes either way.
            try:
                self._writer.close()
            except (OSError, pa.ArrowException):
                pass
            finally:
                self._writer = None
        for path in self._written:
            path.unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        """Append rows, in order."""
        if table.num_rows == 0:
            return
        if self._writer is None:
            self._path = self.folder / f"{len(self._actions):05d}-{self.mark}-{uuid.uuid4().hex}.parquet"
            self._written.append(self._path)
            text = [f.name for f in self.schema if pa.types.is_string(f.type)]
            deltas = {f.name: "DELTA_BINARY_PACKED" for f in self.schema if f.name in ("seq", "row")}
            self._writer = pq.ParquetWriter(
                self._path, self.schema, compression="zstd", use_dictionary=text or False, column_encoding=deltas or None
            )
            self._stats = {"numRecords": 0, "minValues": {}, "maxValues": {}, "nullCount": dict.fromkeys(self.schema.names, 0)}
        table = table.select(self.schema.names).cast(self.schema)
        self._writer.write_table(table)
        self._note(table)
        self.rows += table.num_rows
        if self._stats["numRecords"] >= FILE_ROWS:
            self._finish()

    def _note(self, table: pa.Table) -> None:
        stats = self._stats
        stats["numRecords"] += table.num_rows
        for name in self.schema.names:
            stats["nullCount"][name] += table[name].null_count
        for name in self.bounded:
            bounds = pc.min_max(table[name]).as_py()
            if bounds["min"] is not None:
                stats["minValues"][name] = min(bounds["min"], stats["minValues"].get(name, bounds["min"]))
                stats["maxValues"][name] = max(bounds["max"], stats["maxValues"].get(name, bounds["max"]))

    def _finish(self) -> None:
        assert self._path is not None
        self._writer.close()
        self._writer = None
        sync(self._path)
        size = self._path.stat().st_size
        self._actions.append(AddAction(self._path.name, size, {}, int(time.time() * 1000), True, json.dumps(self._stats)))

    def cut(self) -> None:
        """Begin another file with the next rows."""
        if self._writer is not None:
            self._finish()

    def commit(self, table: DeltaTable, transactions: Mapping[str, int] | None = None, removed: Sequence[DataFile] = ()) -> int:
        """Make every row visible in one step and return the new version.

        transactions: application transactions (id -> number) that are recorded in the same step.
        removed: files that leave the table in the same step (they stay on disk for older versions).
        """
        if self._writer is not None:
            self._finish()
        now = int(time.time() * 1000)
        gone = [RemoveAction(f.name, True, now, size=f.size, partition_values={}) for f in removed]
        # From here on a commit may name the files, so an interrupt must not remove them.
        written, self._written = self._written, []
        try:
            table.create_write_transaction(
                [*self._actions, *gone],
                "append",
                self.schema,
                commit_properties=CommitProperties(
                    # A writer that does not hold the lock must fail rather than be given the same sequence numbers.
                    max_commit_retries=0,
                    app_transactions=[Transaction(key, number) for key, number in (transactions or {}).items()],
                ),
            )
        except (OSError, DeltaError):
            self._written = written
            raise
        table.update_incremental()
        sync(self.folder / "_delta_log" / f"{table.version():020d}.json")
        sync(self.folder / "_delta_log")
        return int(table.version())


def rewrite(
    folder: Path,
    table: DeltaTable,
    removed: Sequence[DataFile],
    parts: Iterable[pa.Table],
    bounded: Sequence[str] = (),
    transactions: Mapping[str, int] | None = None,
    mark: str = "",
) -> int:
    """Put rows in the place of files in one commit, after which no older version can be read (``vacuum`` then removes their files)."""
    schema = pa.schema(table.schema().to_arrow())
    marks = {EPOCH: transaction(table, EPOCH) + 1, REWRITTEN: int(table.version()) + 1}
    with Writing(folder, schema, bounded, mark) as writing:
        for part in parts:
            writing.add(part)
            writing.cut()
        return writing.commit(table, {**marks, **(transactions or {})}, removed)


def vacuum(folder: Path, table: DeltaTable) -> None:
    """Remove the data files that no readable version names: those from before it was rewritten, and what dead writers left."""
    oldest = transaction(table, REWRITTEN)
    named = {file.name for file in data_files(open_table(folder, oldest))}
    for version in range(oldest, int(table.version()) + 1):
        named |= {line["add"]["path"] for line in commit_lines(folder / "_delta_log" / f"{version:020d}.json") if "add" in line}
    for file in folder.glob("*.parquet"):
        if file.name not in named:
            file.unlink(missing_ok=True)


def commit_lines(path: Path) -> list[dict[str, Any]]:
    """The actions of one commit."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def stored_text(table: DeltaTable, key: str) -> str:
    """A text in the table's metadata; SchemaError where it is not there."""
    value = table.metadata().configuration.get(key)
    if value is None:
        raise SchemaError(f"the table at {table.table_uri} has no {key!r} in its metadata; it was not made by zoo")
    return str(value)
