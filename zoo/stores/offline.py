"""Feast's offline store over the event log: n rows in, n rows out, in order, strictly before each row's time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import _get_requested_feature_views_to_features_dict

from zoo.contract import Array
from zoo.errors import FeatureError, UsageError
from zoo.stores.columns import features_of, to_arrow
from zoo.stores.reader import LogReader, microseconds
from zoo.stores.source import TIMESTAMP, EventSource, TableSource


class EventLogOfflineStoreConfig(FeastConfigBaseModel):
    """``offline_store`` in feature_store.yaml."""

    type: Literal["zoo.stores.EventLogOfflineStore"] = "zoo.stores.EventLogOfflineStore"

    log: str = "data/log"
    """Folder of the event log, relative to the repository."""

    clock: str = "wall"
    """What "now" is: ``wall``, ``log_end`` for a log that has ended, or a UTC instant."""


class EventLogRetrievalJob(RetrievalJob):
    """Computes its table when asked, and only once."""

    def __init__(
        self, compute: Callable[[], pa.Table], full_feature_names: bool, metadata: RetrievalMetadata | None, root: Path
    ) -> None:
        self._compute = compute
        self._full_feature_names = full_feature_names
        self._metadata = metadata
        self._root = root
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
            self._table = self._compute()
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

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


def entity_times(values: pa.ChunkedArray) -> Array:
    """int64 microseconds UTC of an event_timestamp column; naive times are taken as UTC, as Feast does."""
    if not pa.types.is_timestamp(values.type):
        raise FeatureError(f"the entity rows' time column is {values.type}; expected a timestamp")
    return np.asarray(values.cast(pa.timestamp("us", values.type.tz)).cast(pa.int64()).combine_chunks())


def as_of_join(
    source: FileSource, config: RepoConfig, view: FeatureView, rows: pa.Table, keys: list[str], names: list[str], times: Array
) -> pa.Table:
    """A file-backed view's newest values at or before each row (Feast's own rule for such views), in the rows' order."""
    import polars as pl

    path = FileSource.get_uri_for_file_path(repo_path=Path(config.repo_path or "."), uri=source.path)
    mapping = {v: k for k, v in source.field_mapping.items()}
    stamp = source.timestamp_field
    wanted = list(dict.fromkeys([*keys, *names]))
    table = pl.read_parquet(str(path)).select(
        [pl.col(mapping.get(c, c)).alias(c) for c in wanted] + [pl.col(stamp).alias("__at")]
    )
    at = pl.col("__at")
    if isinstance(table.schema["__at"], pl.Datetime) and table.schema["__at"].time_zone is None:
        at = at.dt.replace_time_zone("UTC")
    table = table.with_columns(at.dt.convert_time_zone("UTC").dt.cast_time_unit("us").dt.epoch("us"))
    left = pl.from_arrow(rows.select(keys))
    assert isinstance(left, pl.DataFrame)
    left = left.with_columns(pl.Series("__t", times), pl.int_range(pl.len()).alias("__row"))
    left = left.with_columns([pl.col(k).cast(table.schema[k]) for k in keys])
    # polars warns that it cannot check the order within groups; both sides were sorted in the line that passes them
    joined = left.sort("__t").join_asof(
        table.sort("__at"), left_on="__t", right_on="__at", by=keys, strategy="backward", check_sortedness=False
    )
    if view.ttl:
        expired = pl.col("__t") - pl.col("__at") > int(view.ttl.total_seconds() * 1e6)
        joined = joined.with_columns([pl.when(expired).then(None).otherwise(pl.col(n)).alias(n) for n in names])
    return joined.sort("__row").select(names).to_arrow()


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

        def compute() -> pa.Table:
            view = LogReader.of(config).view()
            rows = pa.Table.from_pandas(entity_df, preserve_index=False)
            times = entity_times(rows[stamp])
            out = rows
            codes: dict[str, Array] = {}
            for feature_view, names in groups.items():
                prefix = f"{feature_view.projection.name_to_use()}__" if full_feature_names else ""
                joins = [feature_view.projection.join_key_map.get(k, k) for k in feature_view.join_keys]
                missing = [k for k in joins if k not in rows.column_names]
                if missing:
                    raise UsageError(
                        f"entity_df has no column {missing[0]!r}, the key of {feature_view.name}; it has: {', '.join(rows.column_names)}"
                    )
                source = feature_view.batch_source
                if isinstance(source, FileSource):
                    renamed = rows.select(joins).rename_columns(list(feature_view.join_keys))
                    found = as_of_join(source, config, feature_view, renamed, list(feature_view.join_keys), names, times)
                    columns = {n: found[n] for n in names}
                elif isinstance(source, EventSource | TableSource):
                    for key, column in zip(feature_view.join_keys, joins):
                        codes.setdefault(column, view.codes(key, rows[column]))
                    keys = {key: codes[column] for key, column in zip(feature_view.join_keys, joins)}
                    values = features_of(view, source, keys, times)
                    columns = {n: to_arrow(view, values[n]) for n in names}
                else:
                    raise UsageError(
                        f"feature view {feature_view.name} has a {type(source).__name__}; expected EventSource, TableSource or FileSource"
                    )
                for name, column in columns.items():
                    out = out.append_column(prefix + name, column)
            return out

        metadata = RetrievalMetadata(list(feature_refs), [c for c in entity_df.columns if c != stamp])
        return EventLogRetrievalJob(compute, full_feature_names, metadata, Path(config.repo_path or "."))

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
        reading, the feature columns are left null: the keys alone say whose events to copy.
        """

        def compute() -> pa.Table:
            return _pull(config, data_source, join_key_columns, feature_name_columns, timestamp_field, start_date, end_date)

        return EventLogRetrievalJob(compute, False, None, Path(config.repo_path or "."))

    pull_latest_from_table_or_query = pull_all_from_table_or_query


def _pull(
    config: RepoConfig, source: Any, joins: list[str], names: list[str], stamp: str, start: datetime | None, end: datetime | None
) -> pa.Table:
    reader = LogReader.of(config)
    if isinstance(source, FileSource):
        import polars as pl

        path = FileSource.get_uri_for_file_path(repo_path=Path(config.repo_path or "."), uri=source.path)
        table = pl.read_parquet(str(path))
        zone = table.schema[stamp].time_zone  # type: ignore[attr-defined]
        instants = [None if d is None else (d if zone else d.replace(tzinfo=None)) for d in (start, end)]
        table = table.filter(
            pl.col(stamp).is_between(pl.lit(instants[0]), pl.lit(instants[1])) if start and end else pl.lit(value=True)
        )
        return table.sort(stamp).unique(joins, keep="last", maintain_order=True).to_arrow().combine_chunks()
    view = reader.view()
    if not isinstance(source, EventSource) or source.aggregation is None or len(source.aggregation.entity) > 1:
        # raw events, tables and pairs have nothing of their own to copy: they are read from the entities' events and the tables
        columns = {**{k: pa.array([], pa.int64()) for k in joins}, **{n: pa.array([], pa.null()) for n in names}}
        return pa.table({**columns, stamp: pa.array([], pa.timestamp("us", "UTC"))})
    entity = source.aggregation.entity[0]
    index = view.index(entity)
    until = reader.now() if end is None else microseconds(end)
    since = 0 if start is None else microseconds(start)
    codes = np.arange(2, len(index.offsets) - 1, dtype=np.int32)
    newest = index.newest(codes, np.full(len(codes), until))
    codes, newest = codes[newest >= since], newest[newest >= since]
    keys = pa.table({entity: view.log.dictionary(entity).decode(codes)})
    if _computes_on_reading(config):
        columns = {n: pa.nulls(len(codes)) for n in names}
    else:
        values = view.evaluate(source.aggregation, {entity: codes}, np.full(len(codes), until))
        columns = {n: to_arrow(view, values[n]) for n in names}
    return pa.table({joins[0]: keys[entity].combine_chunks(), **columns, stamp: pa.array(newest, pa.timestamp("us", "UTC"))})


def _computes_on_reading(config: RepoConfig) -> bool:
    return str(getattr(config.online_store, "type", "")).startswith("zoo.stores.")


__all__ = ["TIMESTAMP", "EventLogOfflineStore", "EventLogOfflineStoreConfig", "EventLogRetrievalJob"]
