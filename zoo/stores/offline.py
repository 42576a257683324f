"""Feast's offline store over the event log: n rows in, n rows out, in order, strictly before each row's time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import _get_requested_feature_views_to_features_dict

from zoo.contract import Array
from zoo.errors import FeatureError, UsageError
from zoo.events.view import LogView
from zoo.stores import blocks
from zoo.stores.columns import chosen, expired, features_of, join_columns, source_of, to_arrow
from zoo.stores.files import as_of_join, newest_rows, read_view, saved_rows
from zoo.stores.job import EventLogRetrievalJob
from zoo.stores.pull import pulled
from zoo.stores.reader import LogReader, instant
from zoo.stores.source import TableSource


class EventLogOfflineStoreConfig(FeastConfigBaseModel):
    """``offline_store`` in feature_store.yaml."""

    type: Literal["zoo.stores.EventLogOfflineStore"] = "zoo.stores.EventLogOfflineStore"

    log: str = "data/log"
    """Folder of the event log, relative to the repository."""

    clock: str = "wall"
    """What "now" is: ``wall``, ``log_end`` for a log that has ended, or a UTC instant."""


def in_utc(rows: pa.Table) -> pa.Table:
    """The rows with every time in UTC, naive ones taken as UTC: as Feast makes them, where it is not told ``coerce_tz_aware: false``."""
    for at, name in enumerate(rows.column_names):
        found = rows.schema.types[at]
        if pa.types.is_timestamp(found) and found.tz != "UTC":
            rows = rows.set_column(at, name, rows[name].cast(pa.timestamp(found.unit, "UTC")))
    return rows


def entity_times(values: pa.ChunkedArray) -> Array:
    """int64 microseconds UTC of an event_timestamp column; naive times are taken as UTC, as Feast does."""
    if not pa.types.is_timestamp(values.type):
        raise FeatureError(f"the entity rows' time column is {values.type}; expected a timestamp")
    if values.null_count:
        raise FeatureError(
            f"the entity rows' time column has {values.null_count} nulls (NaT) in {len(values)} rows; expected an instant a row: "
            "leave those rows out, or give them a time"
        )
    return np.asarray(values.cast(pa.timestamp("us", values.type.tz)).cast(pa.int64()).combine_chunks())


def _span(times: pd.Series[Any]) -> tuple[datetime, datetime] | tuple[None, None]:
    """First and last of the rows' times, which a saved dataset records."""
    if not pd.api.types.is_datetime64_any_dtype(times.dtype) or times.isna().all():
        return None, None
    aware = times if times.dt.tz else times.dt.tz_localize("UTC")
    return aware.min().to_pydatetime(), aware.max().to_pydatetime()


class EventLogOfflineStore(OfflineStore):
    """Reads EventSource and TableSource from the log, and joins file-backed views itself (Feast's dask store drops rows)."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Features of each row of ``entity_df`` from events strictly before its event_timestamp.

        Returns n rows for n rows, in order, duplicates kept. Raises FeatureError naming what is missing.
        """
        if not isinstance(entity_df, pd.DataFrame):
            raise UsageError(
                f"entity_df is {type(entity_df).__name__}; expected a pandas DataFrame of entity keys and event_timestamp "
                "(this store runs no SQL, and needs rows to answer for)"
            )
        stamp = infer_event_timestamp_from_entity_df(dict(zip(entity_df.columns, entity_df.dtypes)))
        groups, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, [])
        twice = [name for names in groups.values() for name in names if not full_feature_names and name in entity_df.columns]
        if twice:
            raise UsageError(
                f"entity_df has a column {twice[0]!r}, which is a feature asked for, too; rename the column, or ask for full_feature_names"
            )

        @cache  # read once, when the first answers are asked for, so that every batch is of the same version
        def asked() -> tuple[LogView, pa.Table, dict[str, pl.DataFrame]]:
            files = {v.name: read_view(v, config, n) for v, n in groups.items() if isinstance(v.batch_source, FileSource)}
            return LogReader.of(config).view(), in_utc(pa.Table.from_pandas(entity_df, preserve_index=False)), files

        def compute(part: slice) -> pa.Table:
            view, rows, files = asked()
            rows = rows[part]
            answer = _Answer(files, view, rows, entity_times(rows[stamp]))
            for feature_view, names in groups.items():
                prefix = f"{feature_view.projection.name_to_use()}__" if full_feature_names else ""
                for name, column in answer.columns(feature_view, names).items():
                    rows = rows.append_column(prefix + name, column)
            return rows

        def shared(number: int) -> bool:
            kinds = {kind for v in feature_views if (kind := blocks.kind_of(v)) is not None}
            return any(asked()[0].partitions(kind).shares(number) for kind in kinds)

        def in_blocks() -> Any:
            view, rows, _ = asked()
            sent = blocks.of(config, feature_views, feature_refs, full_feature_names, view)
            return blocks.dataset(sent, rows, blocks.parts(view, feature_views, rows))

        keys, span = [c for c in entity_df.columns if c != stamp], _span(entity_df[stamp])
        metadata = RetrievalMetadata(list(feature_refs), keys, *span)
        root = Path(config.repo_path or ".")
        return EventLogRetrievalJob(compute, full_feature_names, metadata, root, len(entity_df), in_blocks, shared)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """For materialize: one row for each entity with an event in [start, end), its features as of the end.

        Histories reach back before the start on their own, so a list is never cut. For our online stores, which compute features on
        reading, the feature columns are left null: the keys alone say whose events to copy. Of a saved dataset, which Feast reads
        by this call too (its file names no time column), all rows.
        """
        start, end = instant(start_date), instant(end_date)

        def compute(part: slice) -> pa.Table:
            if isinstance(data_source, FileSource) and not data_source.timestamp_field:
                return saved_rows(data_source, config, [*join_key_columns, *feature_name_columns, timestamp_field])
            if isinstance(data_source, FileSource):
                return newest_rows(data_source, config, join_key_columns, feature_name_columns, start, end)
            return pulled(config, data_source, join_key_columns, feature_name_columns, timestamp_field, start, end)

        return EventLogRetrievalJob(compute, False, None, Path(config.repo_path or "."))

    pull_latest_from_table_or_query = pull_all_from_table_or_query


@dataclass
class _Answer:
    """Feature views' columns for the same rows: entity keys (n rows) and times int64 (n,)."""

    files: Mapping[str, pl.DataFrame]
    view: LogView
    rows: pa.Table
    times: Array
    codes: dict[str, Array] = field(default_factory=dict)

    def columns(self, feature_view: FeatureView, names: list[str]) -> dict[str, Any]:
        joins = join_columns(feature_view)
        for column in joins.values():
            if column not in self.rows.column_names:
                raise UsageError(
                    f"entity_df has no column {column!r}, the key of {feature_view.name!r}; it has: {', '.join(self.rows.column_names)}"
                )
        if isinstance(feature_view.batch_source, FileSource):
            keys = self.rows.select(list(joins.values())).rename_columns(list(joins))
            found = as_of_join(self.files[feature_view.name], feature_view, keys, names, self.times)
            return {name: found[name] for name in names}
        source = source_of(feature_view)
        for key, column in joins.items():
            if column not in self.codes:
                self.codes[column] = self.view.codes(key, self.rows[column])
        by_key = {key: self.codes[column] for key, column in joins.items()}
        columns = chosen(feature_view, features_of(self.view, source, by_key, self.times), names)
        shown = {name: to_arrow(self.view, column) for name, column in columns.items()}
        if not feature_view.ttl or isinstance(source, TableSource):
            return shown
        aggregation = source.aggregation
        entity = aggregation.entity[0]  # type: ignore[union-attr]
        newest = self.view.newest_events(entity, by_key[entity], aggregation.until(self.times))  # type: ignore[union-attr]
        past = expired(feature_view, newest, self.times)
        return {name: pc.if_else(pa.array(past), pa.scalar(None, column.type), column) for name, column in shown.items()}


__all__ = ["EventLogOfflineStore", "EventLogOfflineStoreConfig", "EventLogRetrievalJob"]
