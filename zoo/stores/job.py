"""What a retrieval gives: one Arrow table, polars or pandas frames, a stream of batches, or a file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.saved_dataset import SavedDatasetStorage

from zoo.errors import UsageError
from zoo.events.partitions import THREADS

if TYPE_CHECKING:
    import polars as pl

BATCH = 65_536
"""Rows of a batch where the reader names no number."""


_LARGE = 1 << 17
_SMALL = 1 << 14
_MOST = 1 << 18


def _parts(rows: int, shared: bool) -> list[slice]:
    """Consecutive rows that are answered on their own: an equal share for each processor, but neither so few that the calls cost more
    than the answers, nor so many that what is in work outgrows the result. shared: whether processors share out each part."""
    number = -(-rows // _MOST) if shared else max(-(-rows // _LARGE), min(THREADS, rows // _SMALL), 1)
    edges = [rows * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


class EventLogRetrievalJob(RetrievalJob):
    """Computes its table when asked, and only once; or batch by batch, keeping none."""

    def __init__(
        self,
        compute: Callable[[slice], pa.Table],
        full_feature_names: bool,
        metadata: RetrievalMetadata | None,
        root: Path,
        rows: int | None = None,
        blocks: Callable[[], Any] | None = None,
        shared: Callable[[int], bool] = lambda rows: False,
    ) -> None:
        """compute: the answers of a slice of the rows. rows: how many there are; None where only the whole can be computed.

        shared: whether processors share out what ``compute`` does for so many rows. blocks: makes a Ray dataset of them; None where it
        is made of the whole.
        """
        self._compute = compute
        self._full_feature_names = full_feature_names
        self._metadata = metadata
        self._root = root
        self._rows = rows
        self._blocks = blocks
        self._shared = shared
        self._table: pa.Table | None = None

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        return []

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if self._table is None:
            rows = self._rows or 0
            shared = self._shared(rows)
            parts = _parts(rows, shared)
            if len(parts) > 1:
                self._compute(slice(0, 0))  # what all parts share is made once
                with ThreadPoolExecutor(1 if shared else THREADS, "history") as threads:
                    self._table = pa.concat_tables(threads.map(self._compute, parts))
            else:
                self._table = self._compute(slice(None))
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def to_ray_dataset(self) -> Any:
        """The result as a ``ray.data.Dataset``: one block a partition of the log, each computed by a Ray task that opens the log itself.

        Rows keep their order within a block, not across blocks; carry a column that names them where order matters. Every node must see
        the log's folder. Raises UsageError where Ray is not installed.
        """
        return super().to_ray_dataset() if self._blocks is None else self._blocks()

    def to_polars(self) -> pl.DataFrame:
        """The result as a polars frame; numbers and lists are not copied."""
        import polars as pl

        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def to_arrow_batches(self, size: int = BATCH) -> Iterator[pa.Table]:
        """The result in order, in tables of ``size`` rows (the last may be shorter), each computed when it is asked for.

        All are of the log's version at the first. Memory holds one batch, so that a result larger than memory can be read.
        """
        if size < 1:
            raise UsageError(f"batches of {size} rows; expected at least 1")
        whole = self._table is not None or self._rows is None
        count = self._to_arrow_internal().num_rows if whole else self._rows or 0
        for start in range(0, count, size):
            yield self._to_arrow_internal().slice(start, size) if whole else self._compute(slice(start, start + size))

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result as Parquet where a SavedDatasetFileStorage says."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise UsageError(f"cannot persist to {type(storage).__name__}; expected SavedDatasetFileStorage")
        path = Path(FileSource.get_uri_for_file_path(repo_path=self._root, uri=storage.file_options.uri))
        if path.exists() and not allow_overwrite:
            raise UsageError(f"{path} exists; pass allow_overwrite=True to replace it")
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.to_arrow(timeout=timeout), path)
