"""What a push leaves in the tail: a segment and its rows, as bytes and in memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.events.few import Few, Growing

_LENGTH = 1_024
"""Rows of small pushes that are kept in one list a column, which is let go of as a whole."""
_PIECES = 64
"""Tables of one size that are kept before they are made one."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One push. first: seq of its first row. end: its newest time. at: when it came (microseconds UTC).

    key: what its idempotency key is recorded as, with the number that tells its body from others (``taken``).
    """

    id: int
    first: int
    rows: int
    end: int | None
    at: int
    key: str | None
    taken: int | None


class Rows:
    """Consecutive events in memory: those of large pushes as tables, those of small ones as lists that grow."""

    def __init__(self, schema: pa.Schema) -> None:
        self.first: list[int] = []
        self._schema = schema
        self._names = [name for name in schema.names if name != "seq"]
        self._parts: list[pa.Table | Growing] = []

    @property
    def stop(self) -> int:
        """Seq after the last."""
        return self.first[-1] + len(self._parts[-1]) if self.first else -1

    def add(self, rows: pa.Table | Few, first: int) -> None:
        if isinstance(rows, Few):
            last = self._parts[-1] if self._parts else None
            if not isinstance(last, Growing) or len(last) >= _LENGTH or self.stop != first:
                last = Growing(self._names)
                self.first.append(first)
                self._parts.append(last)
            last.add(rows)
            return
        self.first.append(first)
        self._parts.append(rows)
        size = 1
        while len(self._parts) >= _PIECES and all(
            isinstance(t, pa.Table) and len(t) <= size * _PIECES for t in self._parts[-_PIECES:]
        ):
            merged = pa.concat_tables(self._parts[-_PIECES:]).combine_chunks()
            self._parts[-_PIECES:], self.first[-_PIECES:] = [merged], [self.first[-_PIECES]]
            size *= _PIECES

    def drop(self, before: int) -> None:
        """Let go of parts that hold nothing from this seq on."""
        while self.first and self.first[0] + len(self._parts[0]) <= before:
            del self.first[0], self._parts[0]

    def within(self, first: int, stop: int) -> list[tuple[pa.Table | Growing, int, int, int]]:
        """(a part, its first row with ``first <= seq < stop`` and the one after its last, seq of that first row), in order."""
        low, high = max(bisect_right(self.first, first) - 1, 0), bisect_left(self.first, stop)
        found = []
        for start, part in zip(self.first[low:high], self._parts[low:high]):
            begin, end = max(first - start, 0), min(stop - start, len(part))
            if begin < end:
                found.append((part, begin, end, start + begin))
        return found

    def made(self, found: Iterable[tuple[pa.Table | Growing, int, int, int]]) -> Iterator[pa.Table]:
        """The tables of what ``within`` found. Rows may be added meanwhile."""
        for part, begin, end, seq in found:
            rows = part.slice(begin, end - begin) if isinstance(part, pa.Table) else part.between(begin, end)
            yield rows.table(self._schema, seq) if isinstance(rows, Few) else rows

    def few(self, first: int, stop: int, names: Sequence[str]) -> Few | None:
        """Columns of events ``first`` to ``stop`` where small pushes brought them one after another; None for any others."""
        found = self.within(first, stop)
        if len(found) != 1 or isinstance(found[0][0], pa.Table) or found[0][2] - found[0][1] != stop - first:
            return None
        part, begin, end, _ = found[0]
        return part.between(begin, end, [name for name in names if name != "seq"])


def packed(table: pa.Table | Few) -> bytes:
    """Rows as a segment keeps them: JSON or Arrow IPC, without ``seq`` and without columns that hold nothing."""
    if isinstance(table, Few):
        return table.packed()
    kept = table.select([n for n in table.column_names if n != "seq" and table[n].null_count < len(table)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, kept.schema) as writer:
        writer.write_table(kept)
    return bytes(sink.getvalue())


def unpacked(body: bytes, first: int, schema: pa.Schema) -> pa.Table | Few:
    """The inverse of ``packed``; a table has every column of the log's schema, ``seq`` from ``first`` on."""
    if Few.is_packed(body):
        return Few.unpacked(body)
    return completed(pa.ipc.open_stream(body).read_all(), first, schema)


def completed(table: pa.Table, first: int, schema: pa.Schema) -> pa.Table:
    """The table with every column of the schema, in its order, ``seq`` from ``first`` on."""
    count, names = len(table), set(table.column_names)
    columns = []
    for field in schema:
        if field.name == "seq":
            columns.append(pa.chunked_array([np.arange(first, first + count, dtype=np.int64)]))
        elif field.name in names:
            columns.append(table[field.name])
        else:
            columns.append(pa.chunked_array([pa.nulls(count, field.type)]))
    return pa.table(columns, schema=schema)


def oldest(table: pa.Table | Few) -> int | None:
    """Oldest time of rows, None where there are none."""
    if isinstance(table, Few):
        return min(table.columns["time"], default=None)
    found: int | None = pc.min(table["time"]).as_py() if len(table) else None
    return found


def newest(table: pa.Table | Few) -> int | None:
    """Newest time of rows, None where there are none."""
    if isinstance(table, Few):
        return max(table.columns["time"], default=None)
    found: int | None = pc.max(table["time"]).as_py() if len(table) else None
    return found
