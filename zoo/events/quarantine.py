"""Rows that the log could not take, each with its reason and its content, so that nothing is dropped silently."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from zoo.events import delta
from zoo.events.rows import Rejected

SCHEMA = pa.schema(
    [("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("record", pa.string()), ("ingested_at", pa.int64())]
)


class Quarantine:
    """One small Delta table. A source's rows are kept once, however often it is ingested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table = delta.open_table(folder)
        self._mutex = threading.Lock()

    @staticmethod
    def create(folder: Path) -> None:
        delta.create(folder, SCHEMA)

    def table(self, source: str | None = None) -> pa.Table:
        """Columns source, row (its number in the source), reason, record (JSON), ingested_at (microseconds UTC)."""
        return delta.read(self.folder, self.files(source), SCHEMA, SCHEMA.names)

    def files(self, source: str | None = None) -> list[delta.DataFile]:
        with self._mutex:
            delta.refresh(self.folder, self._table)
            return [f for f in delta.data_files(self._table) if source is None or _prefix(source) in f.name]

    def counts(self, source: str | None = None) -> dict[str, int]:
        """Rows by reason."""
        return dict(sorted(Counter(self.table(source)["reason"].to_pylist()).items()))

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


def _prefix(source: str) -> str:
    """What the names of a source's files have in common."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]
