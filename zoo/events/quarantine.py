"""Rows that the log could not take, each with its reason and its content, so that nothing is dropped silently."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zoo.contract import Array
from zoo.events import delta
from zoo.events.rows import Rejected
from zoo.events.tail import TAKEN, Tail

PUSHES = "pushes"
"""Mark of data files that rows of many pushes share."""

SCHEMA = pa.schema(
    [("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("record", pa.string()), ("ingested_at", pa.int64())]
)


class Quarantine:
    """One small Delta table, and the rows of pushes that are in the tail. A source's rows are kept once, however often it comes."""

    def __init__(self, folder: Path, tail: Tail | None = None) -> None:
        self.folder, self._tail = folder, tail
        self._table = delta.open_table(folder)
        self._mutex = threading.Lock()
        self._sources: dict[str, frozenset[str]] = {}

    @staticmethod
    def create(folder: Path) -> None:
        delta.create(folder, SCHEMA)

    def table(self, source: str | None = None) -> pa.Table:
        """Columns source, row (its number in the source), reason, record (JSON), ingested_at (microseconds UTC)."""
        # The tail first: rows that leave it meanwhile are in Delta then.
        waiting = [] if self._tail is None else self._tail.rejected(source)
        files = self.files(source, pushes=True)
        filters = None if source is None else [("source", "=", source)]
        parts = [delta.read(self.folder, files, SCHEMA, SCHEMA.names, filters)]
        with self._mutex:
            taken = delta.transaction(self._table, TAKEN)
        rest = [row[1:] for row in waiting if row[0] > taken and source in (None, row[1])]
        return pa.concat_tables([*parts, _rows(rest)]) if rest else parts[0]

    def files(self, source: str | None = None, pushes: bool = False) -> list[delta.DataFile]:
        """Data files of a source's own, and those of small pushes, which share theirs."""
        with self._mutex:
            delta.refresh(self.folder, self._table)
            found = delta.data_files(self._table)
        return [f for f in found if source is None or _prefix(source) in f.name or (pushes and PUSHES in f.name)]

    def counts(self, source: str | None = None) -> dict[str, int]:
        """Rows by reason."""
        return dict(sorted(Counter(self.table(source)["reason"].to_pylist()).items()))

    def known(self, source: str) -> frozenset[int]:
        """Numbers of the source's rows that are kept."""
        files = self.files(source, pushes=True)
        for file in files:
            if PUSHES in file.name and file.name not in self._sources:
                names = delta.read(self.folder, [file], SCHEMA, ["source"])["source"]
                self._sources[file.name] = frozenset(names.to_pylist())
        waiting = [] if self._tail is None else self._tail.rejected(source)
        held = any(source in self._sources[f.name] if PUSHES in f.name else True for f in files)
        kept = self.table(source)["row"].to_pylist() if held else []
        return frozenset([*kept, *(row[2] for row in waiting if row[1] == source)])

    def take(self, rows: Sequence[Any], last: int) -> None:
        """Take the rows of the tail's segments up to one over, once. The caller holds the writer lock."""
        with self._mutex:
            delta.refresh(self.folder, self._table)
            taken = delta.transaction(self._table, TAKEN)
            rest = [row[1:] for row in rows if row[0] > taken]
            if not rest:
                return
            with delta.Writing(self.folder, SCHEMA, mark=PUSHES) as files:
                files.add(_rows(rest))
                files.commit(self._table, {TAKEN: last})
            small = [f for f in delta.data_files(self._table) if PUSHES in f.name and f.rows < delta.SMALL]
            if len(small) >= delta.MANY:
                with delta.Writing(self.folder, SCHEMA, mark=PUSHES) as files:
                    files.add(delta.read(self.folder, small, SCHEMA, SCHEMA.names))
                    files.commit(self._table, removed=small)

    def forget(self, leaving: Callable[[pa.Table], Array]) -> int:
        """Remove the rows that a bool (n,) of a table's rows marks, and every older file that held them; returns how many.

        The caller holds the write lock.
        """
        with self._mutex:
            delta.refresh(self.folder, self._table)
            gone = 0
            for file in delta.data_files(self._table):
                table = delta.read(self.folder, [file], SCHEMA, SCHEMA.names)
                hit = leaving(table)
                if hit.any():
                    gone += int(hit.sum())
                    mark = file.name.split("-")[1]
                    delta.rewrite(self.folder, self._table, [file], [table.filter(pa.array(~hit))], mark=mark)
            delta.vacuum(self.folder, self._table)
            self._sources = {}
            return gone

    def pending(self, source: str, at: int) -> PendingQuarantine:
        """Rows of one source to be kept. The caller holds the write lock."""
        return PendingQuarantine(self, source, at)

    def replace(self, files: delta.Writing, source: str) -> None:
        """Commit a source's rows in place of those that it has."""
        earlier = self.files(source)
        if files.rows or earlier:
            with self._mutex:
                files.commit(self._table, removed=earlier)


class PendingQuarantine(delta.Writing):
    """Collects rejected rows; ``settle`` makes them the source's only ones."""

    def __init__(self, quarantine: Quarantine, source: str, at: int) -> None:
        super().__init__(quarantine.folder, SCHEMA, mark=_prefix(source))
        self._quarantine, self._source, self._at = quarantine, source, at
        self.counts: Counter[str] = Counter()

    def reject(self, rejected: Rejected) -> None:
        self.counts.update(rejected.reason)
        count = len(rejected)
        self.add(
            pa.table(
                {
                    "source": pa.repeat(self._source, count),
                    "row": rejected.row,
                    "reason": pa.array(rejected.reason, pa.string()),
                    "record": pa.array(rejected.record, pa.string()),
                    "ingested_at": np.full(count, self._at, np.int64),
                },
                schema=SCHEMA,
            )
        )

    def settle(self) -> None:
        """Keep the rows, in place of those of an attempt at the same source that was cut off before its events were in."""
        self._quarantine.replace(self, self._source)


def _rows(rows: Sequence[Any]) -> pa.Table:
    return pa.table([pa.array(column, field.type) for column, field in zip(zip(*rows), SCHEMA)], schema=SCHEMA)


def _prefix(source: str) -> str:
    """What the names of a source's files have in common."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]
