"""Between Feast's protobufs and ours: entity keys as codes, pushed rows as events, columns as values to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any

import numpy as np
import pyarrow as pa
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType

from zoo.contract import Array, Column
from zoo.events.view import LogView
from zoo.stores.columns import to_arrow

_IDS = {"int64_val", "int32_val", "string_val"}
_SCALARS = {
    ValueType.DOUBLE: ("double_val", "fiu"),
    ValueType.FLOAT: ("float_val", "fiu"),
    ValueType.INT64: ("int64_val", "fiu"),
    ValueType.INT32: ("int32_val", "fiu"),
    ValueType.STRING: ("string_val", "U"),
}
_LISTS = {
    ValueType.DOUBLE_LIST: ("double_list_val", "f"),
    ValueType.FLOAT_LIST: ("float_list_val", "f"),
    ValueType.INT64_LIST: ("int64_list_val", "iu"),
    ValueType.INT32_LIST: ("int32_list_val", "iu"),
    ValueType.STRING_LIST: ("string_list_val", "U"),
}
"""Field of a Feast value by its type, and the kinds of column that are written to it as they are."""


def key_columns(table: Any, entity_keys: Iterable[Any]) -> dict[str, list[Any]]:
    """Feast values by join key of a feature view, of entity keys."""
    rows = [dict(zip(key.join_keys, key.entity_values)) for key in entity_keys]
    return {name: [row[name] for row in rows] for name in table.join_keys}


def keys_of(view: LogView, values: Mapping[str, Sequence[Any]]) -> dict[str, Array]:
    """Codes int32 (n,) by join key, of Feast values."""
    return {name: view.codes(name, _ids(own)) for name, own in values.items()}


def _ids(values: Sequence[Any]) -> list[Any]:
    fields = {value.WhichOneof("val") for value in values}
    if len(fields) == 1 and fields <= _IDS:
        field = fields.pop()
        return [getattr(value, field) for value in values]
    return [feast_value_type_to_python_type(value) for value in values]


def write(view: LogView, kind: ValueType, column: Column, found: list[bool], values: Any) -> None:
    """Add n Feast values to a protobuf's repeated field, an empty one where the row is not found or the value is null.

    They are what ``python_values_to_proto_values`` makes, written in place: an object a value would take longer than to compute it.
    A list cannot hold null in Feast: an event without item shows as 0 or empty text.
    """
    seen, plain = _plain(view, column)
    field, kinds = (_SCALARS if column.offsets is None else _LISTS).get(kind, ("", ""))
    if not seen or seen not in kinds:
        made = python_values_to_proto_values(to_arrow(view, column).to_pylist(), kind)
        values.extend(value if there else type(value)() for value, there in zip(made, found))
        return
    add = values.add
    if column.offsets is not None:
        ends = column.offsets.tolist()
        for begin, end, there in zip(ends, ends[1:], found):
            value = add()
            if there:
                own = getattr(value, field)
                own.SetInParent()  # an empty list is one all the same
                own.val.extend(plain[begin:end])
    else:
        whole = seen == "f" and kind in (ValueType.INT64, ValueType.INT32)
        for x, there in zip(plain, found):
            value = add()
            if there and x is not None and x == x:  # NaN is null
                setattr(value, field, int(x) if whole else x)


def _plain(view: LogView, column: Column) -> tuple[str, list[Any]]:
    """(kind of a column's values: f, i, u or U for text, empty for any other; the values, in a sequence 0 or empty text for null)."""
    values = column.values
    if column.dictionary is None:
        kind = values.dtype.kind
        return (kind, values.tolist()) if kind in "fiu" else ("", [])
    held = view.dictionary(column.dictionary)
    if len(values) and values.item(values.argmax()) >= held.size:  # of an event that came after the view was opened
        held = view.log.dictionary(column.dictionary)
    numbers = held.numbers(values)
    if numbers is not None:
        return "i", numbers
    ids = held.decode(values)
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    whole = pa.types.is_integer(ids.type)
    if ids.null_count:
        if not column.is_sequence:
            return "i" if whole else "U", ids.to_pylist()
        ids = ids.fill_null(0 if whole else "")
    return ("i", np.asarray(ids).tolist()) if whole else ("U", ids.to_pylist())


def raw_events(data: Iterable[Any]) -> pa.Table:
    """Feast's (entity key, values, timestamp, created) rows as a table of events; columns without any value are left out."""
    rows = []
    for key, values, at, _ in data:
        named = {**dict(zip(key.join_keys, key.entity_values)), **values}
        row = {name: feast_value_type_to_python_type(value) for name, value in named.items()}
        rows.append({**row, "timestamp": at if at.tzinfo else at.replace(tzinfo=UTC)})
    columns = {name: [row.get(name) for row in rows] for name in rows[0]} if rows else {}
    table = pa.table({n: pa.array(v, pa.timestamp("us", "UTC")) if n == "timestamp" else pa.array(v) for n, v in columns.items()})
    return table.drop_columns([n for n in table.column_names if pa.types.is_null(table[n].type)])
