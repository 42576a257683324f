"""Feast data sources over the event log. What a sequence is lives on the source, because Feast's pull methods see no feature view."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from feast.data_source import DataSource
from feast.field import Field
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import RepoConfig
from feast.types import Array, FeastType, Float64, Int64, PrimitiveFeastType, String
from feast.value_type import ValueType

from zoo.events.specs import SEQUENCES, Aggregation, Feature

TIMESTAMP = "event_timestamp"


class _LogSource(DataSource):
    """What both sources share: a name, a JSON of their own, and event_timestamp as the time column."""

    def __init__(self, name: str, body: str, description: str = "", tags: dict[str, str] | None = None, owner: str = "") -> None:
        super().__init__(name=name, timestamp_field=TIMESTAMP, description=description, tags=tags, owner=owner)
        self.body = body

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and super().__eq__(other) and self.body == other.body

    __hash__ = DataSource.__hash__

    def source_type(self) -> Any:
        return DataSourceProto.CUSTOM_SOURCE

    @classmethod
    def from_proto(cls, data_source: DataSourceProto) -> _LogSource:
        source = cls.__new__(cls)
        _LogSource.__init__(
            source,
            data_source.name,
            data_source.custom_options.configuration.decode("utf-8"),
            data_source.description,
            dict(data_source.tags),
            data_source.owner,
        )
        return source

    def _to_proto_impl(self) -> DataSourceProto:
        proto = DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{type(self).__module__}.{type(self).__name__}",
            timestamp_field=self.timestamp_field,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )
        proto.custom_options.configuration = self.body.encode("utf-8")
        return proto

    def validate(self, config: RepoConfig) -> None:
        """Nothing to check without the log; ``zoo apply`` and the first read name a missing column."""

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        return lambda kind: ValueType[kind]

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        """Feast asks for these only to infer a schema; ours is declared, see ``schema_of``."""
        return [(TIMESTAMP, "UNIX_TIMESTAMP")]


@lru_cache(maxsize=256)  # asked for on every read
def _parsed(body: str) -> Aggregation:
    return Aggregation.from_json(body)


class EventSource(_LogSource):
    """Events of the log, and how they become features of an entity or a pair.

    Without an aggregation it is the log's raw events, the batch source of a PushSource.
    """

    def __init__(self, *, name: str, aggregation: Aggregation | None = None, description: str = "", **kwargs: Any) -> None:
        super().__init__(name, aggregation.to_json() if aggregation else "", description, **kwargs)

    @property
    def aggregation(self) -> Aggregation | None:
        return _parsed(self.body) if self.body else None


class TableSource(_LogSource):
    """Columns of an entity table kept beside the log (``items``, ``users``, ``campaigns``).

    The same at all times, or, where the table has a column ``valid_from``, the row that holds at t (``valid_from`` <= t).
    """

    def __init__(self, *, name: str, table: str, columns: tuple[str, ...] = (), description: str = "", **kwargs: Any) -> None:
        """columns: of the table; all of them where none is named; a feature has its column's name."""
        super().__init__(name, json.dumps({"columns": list(columns), "table": table}, sort_keys=True), description, **kwargs)

    @property
    def table(self) -> str:
        return str(json.loads(self.body)["table"])

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns named; empty: all of the table's."""
        return tuple(json.loads(self.body)["columns"])


def schema_of(
    aggregation: Aggregation,
    *,
    item_id: PrimitiveFeastType = Int64,
    user_id: PrimitiveFeastType = Int64,
    text: Iterable[str] = (),
) -> list[Field]:
    """The Feast fields of an aggregation's features, so that a view need not say them again.

    item_id, user_id: the type of the log's identifiers. text: event columns that hold text (``items.category``).
    """

    def of(feature: Feature) -> FeastType:
        column = feature.column
        element: PrimitiveFeastType = Float64
        if column == "item_id":
            element = item_id
        elif column == "user_id":
            element = user_id
        elif column == "event_type" or column in text:
            element = String
        elif column in ("time", "day", "weekday", "hour"):
            element = Int64
        if feature.kind in SEQUENCES:
            return Array(element if feature.of in ("first", "last") else Float64)
        if feature.kind == "last":
            return element
        return Int64 if feature.kind in ("count", "distinct") else Float64

    return [Field(name=f.name, dtype=of(f)) for f in aggregation.features]
