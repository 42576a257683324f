"""What Feast's materialize reads from the log: whose events to copy, or, for other online stores, everyone's features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from feast.repo_config import RepoConfig

from zoo.contract import Array
from zoo.events.view import LogView
from zoo.stores.columns import features_of, to_arrow
from zoo.stores.reader import LogReader
from zoo.stores.source import EventSource, TableSource


def computes_on_reading(config: RepoConfig) -> bool:
    """Whether the repository's online store is one of ours."""
    return str(getattr(config.online_store, "type", "")).startswith("zoo.stores.")


def pulled(
    config: RepoConfig, source: Any, joins: list[str], names: list[str], stamp: str, start: int | None, end: int | None
) -> pa.Table:
    """One row an entity: join keys, features, and the time of its newest event in [start, end) (microseconds UTC), in one chunk."""
    reader = LogReader.of(config)
    view, until = reader.view(), reader.now() if end is None else end
    ours = computes_on_reading(config)
    if isinstance(source, TableSource) and not ours:
        key = view.key_of(source.table)
        codes = np.arange(2, view.size(key), dtype=np.int32)
        newest = np.full(len(codes), until - 1)
    elif isinstance(source, EventSource) and source.aggregation is not None and len(source.aggregation.entity) == 1:
        key = source.aggregation.entity[0]
        codes = np.arange(2, view.log.dictionary(key).size, dtype=np.int32)
        newest = view.newest_events(key, codes, np.full(len(codes), until))
        some = newest >= (0 if start is None else start)
        codes, newest = codes[some], newest[some]
    else:
        # raw events, tables and pairs have nothing of their own to copy: they are read from the entities' events and the tables
        nothing = {**{k: pa.array([], pa.int64()) for k in joins}, **{n: pa.array([], pa.null()) for n in names}}
        return pa.table({**nothing, stamp: pa.array([], pa.timestamp("us", "UTC"))})
    features = {n: pa.nulls(len(codes)) for n in names} if ours else _features(view, source, key, codes, until, names)
    keys = view.ids(key, codes)
    return pa.table({joins[0]: keys, **features, stamp: pa.array(newest, pa.timestamp("us", "UTC"))}).combine_chunks()


def _features(view: LogView, source: Any, key: str, codes: Array, until: int, names: list[str]) -> dict[str, pa.Array]:
    columns = features_of(view, source, {key: codes}, np.full(len(codes), until))
    return {name: to_arrow(view, columns[name]) for name in names}
