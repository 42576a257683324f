"""Between codes and what Feast shows: identifiers as arrow arrays, and entity rows as codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from feast.types import Array as ListType
from feast.types import String

from zoo.contract import UNKNOWN, Array, Column, gather
from zoo.errors import FeatureError, choices
from zoo.events.schema import LogSchema
from zoo.events.specs import SEQUENCES, Feature
from zoo.events.tables import ENTITIES
from zoo.events.view import LogView
from zoo.stores.source import EventSource, TableSource

T = TypeVar("T")


def source_of(feature_view: Any) -> EventSource | TableSource:
    """What a feature view is computed from; FeatureError where that is neither events nor an entity table."""
    source = feature_view.batch_source
    if isinstance(source, TableSource) or (isinstance(source, EventSource) and source.aggregation is not None):
        return source
    what = "raw events" if isinstance(source, EventSource) else f"a {type(source).__name__}"
    raise FeatureError(
        f"feature view {feature_view.name!r} is made of {what}; expected an EventSource with an aggregation or a TableSource "
        "(file-backed views answer through store.get_historical_features and get_online_features)"
    )


def check_identifiers(feature_views: Iterable[Any], schema: LogSchema) -> None:
    """FeatureError where a view of the log declares a type of ``user_id`` or ``item_id`` that the log does not hold."""
    for feature_view in feature_views:
        source = feature_view.batch_source
        if not isinstance(source, EventSource | TableSource):
            continue
        aggregation = source.aggregation if isinstance(source, EventSource) else None
        held = {f.name: f.column for f in aggregation.features if _shows_identifiers(f)} if aggregation else {}
        for field in [*feature_view.entity_columns, *feature_view.features]:
            column = held.get(field.name, "" if aggregation and field in feature_view.features else field.name)
            if column not in ENTITIES:
                continue
            declared = field.dtype.base_type if isinstance(field.dtype, ListType) else field.dtype
            if (declared == String) != (schema.id_type(column) == "string"):
                kept = {"string": "String", "int": "Int64"}[schema.id_type(column)]
                raise FeatureError(
                    f"feature view {feature_view.name!r} declares {field.name!r} as {field.dtype}, but the log's {column} is of type "
                    f"{schema.id_type(column)}; declare {kept} (of an entity: value_type=ValueType.{kept.upper()}) and apply again"
                )


def _shows_identifiers(feature: Feature) -> bool:
    """Whether a feature's values, or its lists' elements, are what its column holds."""
    return feature.kind == "last" or (feature.kind in SEQUENCES and feature.of in ("first", "last"))


def join_columns(feature_view: Any) -> dict[str, str]:
    """Join key -> the column of the rows that holds it, which a projection may rename."""
    renamed = feature_view.projection.join_key_map
    return {key: renamed.get(key, key) for key in feature_view.join_keys}


def chosen(feature_view: Any, columns: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """The named columns; FeatureError where the view's schema names one that its source does not compute."""
    for name in names:
        if name not in columns:
            raise FeatureError(
                f"feature view {feature_view.name!r}: {choices('feature', name, columns)}. Take schema_of(aggregation)"
            )
    return {name: columns[name] for name in names}


def to_arrow(view: LogView, column: Column) -> pa.Array:
    """A column with identifiers in place of codes: one chunk, lists for sequences, null for code 0 and NaN."""
    if column.dictionary is not None:
        values = view.log.dictionary(column.dictionary).decode(column.values)
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    else:
        values = pa.array(column.values, from_pandas=column.offsets is None)
    if column.offsets is None:
        return values
    if column.offsets[-1] < 2**31:
        return pa.ListArray.from_arrays(pa.array(column.offsets.astype(np.int32)), values)
    return pa.LargeListArray.from_arrays(pa.array(column.offsets), values)


def expired(feature_view: Any, newest: Array, times: Array) -> Array:
    """bool (n,): whose newest event (int64 (n,), -1 for none) is older at its time than the view's ``ttl``; none without one."""
    if not feature_view.ttl:
        return np.zeros(len(times), bool)
    found: Array = (newest >= 0) & (times - newest > feature_view.ttl // timedelta(microseconds=1))
    return found


def blank(view: LogView, source: Any, columns: Mapping[str, Column], keys: Iterable[str], rows: Array) -> dict[str, Column]:
    """The columns with the answers of an entity that the log does not know at these rows (bool (n,))."""
    nothing = features_of(view, source, {key: np.array([UNKNOWN], np.int32) for key in keys}, np.zeros(1, np.int64))
    out = {}
    for name, column in columns.items():
        if column.offsets is None:
            out[name] = replace(
                column, values=np.where(rows, nothing[name].values[:1], column.values).astype(column.values.dtype)
            )
        else:
            values, offsets = gather(column.values, column.offsets[:-1], np.where(rows, 0, column.lengths))
            out[name] = replace(column, values=values, offsets=offsets)
    return out


def features_of(view: LogView, source: Any, keys: dict[str, Array], times: Array, evaluator: Any = None) -> dict[str, Column]:
    """A source's features for n rows given codes by join key: aggregated from events, or looked up in an entity table."""
    if isinstance(source, TableSource):
        key, attributes, *_ = view.entity_table(source.table)
        names = source.columns or tuple(attributes)
        for name in names:
            if name not in attributes:
                raise FeatureError(choices(f"feature column of table {source.table!r}", name, attributes))
        if key not in keys:
            raise FeatureError(
                f"table {source.table!r} has the key {key!r}; expected an entity with that join key, not {', '.join(keys)}"
            )
        return {n: attributes[n].at(keys[key], times) for n in names}
    return view.evaluate(source.aggregation, keys, times, evaluator)
