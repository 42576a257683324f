"""Rows that the log could not take, each with its reason and its content, so that nothing is dropped silently."""

from __future__ import annotations

import hashlib
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

    @staticmethod
    def create(folder: Path) -> None:
        delta.create(folder, SCHEMA)

    def table(self, source: str | None = None) -> pa.Table:
        """Columns source, row (its number in the source), reason, record (JSON), ingested_at (microseconds UTC)."""
        table = delta.open_table(self.folder)
        files = [f for f in delta.data_files(table) if source is None or _prefix(source) in f.name]
        return delta.read(self.folder, files, SCHEMA, SCHEMA.names)

    def counts(self, source: str | None = None) -> dict[str, int]:
        """Rows by reason."""
        return dict(sorted(Counter(self.table(source)["reason"].to_pylist()).items()))

    def pending(self, source: str, at: int) -> PendingQuarantine:
        """Rows of one source to be kept. The caller holds the write lock."""
        return PendingQuarantine(self.folder, source, at)


class PendingQuarantine(delta.Writing):
    """Collects rejected rows; ``settle`` makes them the source's only ones."""

    def __init__(self, folder: Path, source: str, at: int) -> None:
        super().__init__(folder, SCHEMA, mark=_prefix(source))
        self._source, self._at = source, at
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
        table = delta.open_table(self.folder)
        earlier = [f for f in delta.data_files(table) if _prefix(self._source) in f.name]
        if self.rows or earlier:
            self.commit(table, removed=earlier)


def _prefix(source: str) -> str:
    """What the names of a source's files have in common."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]
