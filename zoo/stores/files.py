"""File-backed (FileSource, Parquet) scalar views, joined here by polars: Feast's own file store loses rows that repeat."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from zoo.contract import Array
from zoo.errors import FeatureError

_AT, _TIME, _ROW = "__zoo_at", "__zoo_time", "__zoo_row"


def _read(source: FileSource, config: RepoConfig, columns: list[str]) -> pl.DataFrame:
    """The file's columns under Feast's names and when a row was created, sorted by time, then creation.

    ``_AT`` is the time as int64 microseconds UTC (naive: UTC).
    """
    path = FileSource.get_uri_for_file_path(repo_path=Path(config.repo_path or "."), uri=source.path)
    theirs = {ours: name for name, ours in source.field_mapping.items()}
    try:
        table = pl.read_parquet(str(path))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FeatureError(f"the file {path} of source {source.name!r} cannot be read as Parquet: {error}") from error
    created = [source.created_timestamp_column] if source.created_timestamp_column else []
    for name in [source.timestamp_field, *created, *(theirs.get(c, c) for c in columns)]:
        if name not in table.columns:
            raise FeatureError(
                f"{path} has no column {name!r}, which source {source.name!r} names; it has: {', '.join(table.columns)}"
            )
    stamp = table.schema[source.timestamp_field]
    if not isinstance(stamp, pl.Datetime):
        raise FeatureError(f"column {source.timestamp_field!r} of {path} is {stamp}; expected timestamps")
    # a naive column is UTC already, as Feast takes it; an aware one is stored in UTC
    at = pl.col(source.timestamp_field).dt.epoch("us").alias(_AT)
    wanted = [*created, *(c for c in columns if c not in created)]
    return table.sort([source.timestamp_field, *created]).select(at, *(pl.col(theirs.get(c, c)).alias(c) for c in wanted))


def read_view(view: FeatureView, config: RepoConfig, names: list[str]) -> pl.DataFrame:
    """A file-backed view's join keys and columns ``names``, in order of time, for ``as_of_join``."""
    assert isinstance(view.batch_source, FileSource)
    return _read(view.batch_source, config, list(dict.fromkeys([*view.join_keys, *names])))


def as_of_join(table: pl.DataFrame, view: FeatureView, rows: pa.Table, names: list[str], times: Array) -> pa.Table:
    """A view's newest values at or before each row's time (Feast's rule for such views) and within its TTL, in the rows' order.

    table: as ``read_view`` gives it; rows: the view's join keys, n rows; times: int64 (n,) microseconds UTC. Returns columns
    ``names``, n rows.
    """
    keys = rows.column_names
    left = pl.from_arrow(rows)
    assert isinstance(left, pl.DataFrame)
    for key in keys:
        numbers = left.schema[key].is_integer(), table.schema[key].is_integer()
        if numbers[0] != numbers[1]:
            raise FeatureError(f"rows have {key!r} of type {left.schema[key]}, the file of {view.name!r} {table.schema[key]}")
    left = left.with_columns(pl.Series(_TIME, times), pl.int_range(pl.len()).alias(_ROW))
    left = left.with_columns([pl.col(key).cast(table.schema[key]) for key in keys])
    # polars cannot check the order within groups, and warns of it; both sides are sorted here
    found = left.sort(_TIME).join_asof(table, left_on=_TIME, right_on=_AT, by=keys, strategy="backward", check_sortedness=False)
    if view.ttl:
        expired = pl.col(_TIME) - pl.col(_AT) > view.ttl // timedelta(microseconds=1)
        found = found.with_columns([pl.when(expired).then(None).otherwise(pl.col(name)).alias(name) for name in names])
    return found.sort(_ROW).select(names).to_arrow()


def newest_rows(
    source: FileSource, config: RepoConfig, keys: list[str], names: list[str], start: int | None, end: int | None
) -> pa.Table:
    """For materialize: each key's newest row with ``start <= time <= end`` (microseconds UTC), in one chunk."""
    table = _read(source, config, list(dict.fromkeys([*keys, *names])))
    if start is not None and end is not None:
        table = table.filter(pl.col(_AT).is_between(start, end))
    newest = table.unique(keys, keep="last", maintain_order=True)
    stamp = pl.from_epoch(_AT, time_unit="us").dt.replace_time_zone("UTC").alias(source.timestamp_field)
    return newest.with_columns(stamp).drop(_AT).to_arrow().combine_chunks()


def saved_rows(source: FileSource, config: RepoConfig, columns: list[str]) -> pa.Table:
    """All rows of a saved dataset, as they were kept."""
    path = FileSource.get_uri_for_file_path(repo_path=Path(config.repo_path or "."), uri=source.path)
    try:
        return pq.read_table(str(path), columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise FeatureError(f"the saved dataset {path} cannot be read: {error}") from error
