"""Scores of a whole population in a file: written a batch at a time, there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.contract import Progress
from zoo.errors import UsageError, choices

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {".parquet": "Parquet", ".arrow": "Arrow IPC", ".feather": "Arrow IPC"}


def write(tables: Iterable[pa.Table], path: Path, rows: int, progress: Progress) -> int:
    """Write tables of one schema to a Parquet or Arrow IPC file, by its ending; returns how many rows that were.

    rows: how many are expected, for progress. A file of that name is replaced once the new one is whole. Raises UsageError for another
    ending, for a folder that is not there, and where there is no table.
    """
    check(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    done, writer = 0, None
    try:
        for table in tables:
            writer = writer or _writer(unfinished, path.suffix, table.schema)
            writer.write_table(table)
            done += len(table)
            progress(done / max(rows, 1), f"{done:,} of {rows:,} rows")
        if writer is None:
            raise UsageError("there is nobody to predict for, so there is nothing to write")
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return done


def check(path: Path) -> None:
    """Raise UsageError for a file that cannot be written: before the work, not after it."""
    if path.suffix not in KINDS:
        raise UsageError(choices("ending of the file to write", path.suffix, KINDS))
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} in; make it first")


def _writer(path: Path, suffix: str, schema: pa.Schema) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetWriter(path, schema) if suffix == ".parquet" else pa.ipc.new_file(path, schema)
