"""A retrieval as a Ray dataset: one block a partition of the log, computed where Ray likes by tasks that open the log themselves."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from feast.repo_config import RepoConfig

from zoo.contract import Array
from zoo.errors import UsageError
from zoo.events.view import LogView
from zoo.stores.columns import join_columns
from zoo.stores.reader import LogReader
from zoo.stores.source import EventSource

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class Asked:
    """What a task needs to know to answer some rows as its sender would. lineage: of the sender's view of the log."""

    config: RepoConfig
    feature_views: list[Any]
    refs: list[str]
    full_feature_names: bool
    lineage: dict[str, Any]

    def answer(self, rows: pa.Table) -> pa.Table:
        """These rows' answers, from this process's own reading of the log; a log that the task cannot see is a ZooError."""
        from zoo.stores.offline import EventLogOfflineStore  # a cycle at import time: it makes these

        reader = LogReader.of(self.config)
        self.config.__dict__["_zoo_reader"] = replace(reader, _view=LogView.open(reader.root, self.lineage), _pinned=True)
        frame = rows.to_pandas()
        job = EventLogOfflineStore.get_historical_features(
            self.config, self.feature_views, self.refs, frame, None, self.config.project, self.full_feature_names
        )
        return job.to_arrow().combine_chunks()


def of(config: RepoConfig, feature_views: list[Any], refs: list[str], full_feature_names: bool, view: LogView) -> Asked:
    """What to send; the config goes without what this process keeps on it."""
    sent = copy.copy(config)
    for name in [name for name in sent.__dict__ if name.startswith("_zoo")]:
        del sent.__dict__[name]
    return Asked(sent, feature_views, refs, full_feature_names, view.lineage())


def kind_of(feature_view: Any) -> str | None:
    """The entity kind whose partitions answer a view; None of one that is not made from events."""
    source = feature_view.batch_source
    return source.aggregation.entity[0] if isinstance(source, EventSource) and source.aggregation is not None else None


def parts(view: LogView, feature_views: list[Any], rows: pa.Table) -> list[Array]:
    """Rows by partition of the first view's entity, int64 (k,) each; all together where no view is made from events."""
    for feature_view in feature_views:
        entity = kind_of(feature_view)
        if entity is not None:
            number = len(view.partitions(entity).stored)
            of_row = view.codes(entity, rows[join_columns(feature_view)[entity]]) % number
            return [np.flatnonzero(of_row == part) for part in range(number)]
    return [np.arange(len(rows))]


def dataset(asked: Asked, rows: pa.Table, blocks: list[Array]) -> Dataset:
    """One block for each of ``blocks``, its rows in their order; no answer passes through this process."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"to_ray_dataset needs Ray ({error}); install it with: pip install 'feature-zoo[ray]'") from error
    task = ray.remote(_answer)
    shared = ray.put(asked)
    return ray.data.from_arrow_refs([task.remote(shared, rows.take(pa.array(block))) for block in blocks])


def _answer(asked: Asked, rows: pa.Table) -> pa.Table:
    return asked.answer(rows)
