"""Tables of per-event snapshots, which Feast's own stores need in order to give lists: made of a case's ``events.parquet``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LISTS = 50


def _columns(case: Path) -> tuple[Any, ...]:
    import pyarrow.parquet as pq

    table = pq.read_table(case / "events.parquet", columns=["user_id", "time", "item_id", "value"])
    users, times, items, values = (np.asarray(table[name]) for name in table.column_names)
    first = np.searchsorted(users, users, side="left")
    return users, times, items, values, np.minimum(np.arange(len(users)) - first + 1, LISTS)


def write_snapshots(case: Path) -> None:
    """``event.parquet``: both lists after every event; ``instant.parquet``: after the last event of every instant."""
    users, times, items, values, length = _columns(case)
    last = np.append((np.diff(users) != 0) | (np.diff(times) != 0), True)
    for name, rows in (("event", np.arange(len(users))), ("instant", np.flatnonzero(last))):
        if not (case / f"{name}.parquet").exists():
            _write(case / f"{name}.parquet", rows, users, times, items, values, length)


def snapshot_bytes(case: Path) -> int:
    """Uncompressed Arrow bytes of a table of per-event snapshots: user, time, and two lists of 8-byte values with their offsets."""
    length = _columns(case)[-1]
    return int(len(length) * (8 + 8 + 2 * 4) + length.sum() * 2 * 8)


def _write(path: Path, rows: Any, users: Any, times: Any, items: Any, values: Any, length: Any) -> None:
    """The lists that end at these positions of the sorted events."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = [("items", pa.list_(pa.int64())), ("values", pa.list_(pa.float64()))]
    schema = pa.schema([("user_id", pa.int64()), ("event_timestamp", pa.timestamp("us", "UTC")), *lists])
    temporary = path.with_suffix(".part")
    with pq.ParquetWriter(temporary, schema) as writer:
        for at in range(0, len(rows), 200_000):
            part = rows[at : at + 200_000]
            offsets = np.concatenate(([0], np.cumsum(length[part]))).astype(np.int32)
            flat = np.arange(offsets[-1]) + np.repeat(part - length[part] + 1 - offsets[:-1], length[part])
            made = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(column[flat])) for column in (items, values)]
            columns = [pa.array(users[part]), pa.array(times[part], pa.timestamp("us", "UTC")), *made]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    temporary.rename(path)
