"""Between Feast's protobufs and ours: entity keys as codes, pushed rows as events, columns as values to show."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from typing import Any

import pyarrow as pa
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values

from zoo.contract import Array, Column
from zoo.events.view import LogView
from zoo.stores.columns import to_arrow


def _key(proto: Any) -> dict[str, Any]:
    return dict(zip(proto.join_keys, map(feast_value_type_to_python_type, proto.entity_values)))


def keys_of(view: LogView, table: Any, entity_keys: Iterable[Any]) -> dict[str, Array]:
    """Codes int32 (n,) by join key of a feature view."""
    raw = [_key(key) for key in entity_keys]
    return {name: view.codes(name, [row[name] for row in raw]) for name in table.join_keys}


def shown(view: LogView, table: Any, columns: dict[str, Column]) -> dict[str, list[Any]]:
    """Feast values of features, n each. A list cannot hold null in Feast: an event without item shows as 0 or empty text."""
    types = {f.name: f.dtype.to_value_type() for f in table.features}
    return {name: python_values_to_proto_values(to_arrow(view, c).to_pylist(), types[name]) for name, c in columns.items()}


def raw_events(data: Iterable[Any]) -> pa.Table:
    """Feast's (entity key, values, timestamp, created) rows as a table of events; columns without any value are left out."""
    rows = []
    for key, values, at, _ in data:
        row = _key(key) | {name: feast_value_type_to_python_type(value) for name, value in values.items()}
        rows.append({**row, "timestamp": at if at.tzinfo else at.replace(tzinfo=UTC)})
    columns = {name: [row.get(name) for row in rows] for name in rows[0]} if rows else {}
    table = pa.table({n: pa.array(v, pa.timestamp("us", "UTC")) if n == "timestamp" else pa.array(v) for n, v in columns.items()})
    return table.drop_columns([n for n in table.column_names if pa.types.is_null(table[n].type)])
