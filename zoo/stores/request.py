"""What Feast asks for in one call, answered as a whole: one look at the log, one read of the store, values written in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from feast import utils
from feast.metrics import track_feature_statuses
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse

from zoo.contract import Array
from zoo.events.view import LogView
from zoo.stores.columns import chosen, expired, source_of
from zoo.stores.protos import keys_of, write
from zoo.stores.reader import LogReader
from zoo.stores.source import EventSource, TableSource

if TYPE_CHECKING:
    from zoo.stores.online import EventOnlineStore
    from zoo.stores.recent import Recent


Asked = tuple[Any, Sequence[str], Mapping[str, Sequence[Any]]]
"""Feature view, names of features, and Feast values by join key."""


def is_own(table: Any) -> bool:
    """Whether a feature view is answered from the log's events or tables."""
    return isinstance(table.batch_source, EventSource | TableSource)


@dataclass(frozen=True)
class Part:
    """One feature view of a request. keys: codes int32 (rows,) by join key."""

    table: Any
    names: Sequence[str]
    keys: dict[str, Array]
    rows: int


@dataclass(frozen=True)
class Request:
    """Feature views of one request as of one instant, ``now`` microseconds UTC."""

    view: LogView
    now: int
    parts: list[Part]

    @classmethod
    def of(cls, reader: LogReader, view: LogView, asked: Sequence[Asked]) -> Request:
        """FeatureError for a feature view of raw events."""
        parts = []
        for table, names, values in asked:
            rows = len(next(iter(values.values()), ()))
            source_of(table)  # a view of raw events takes pushes, and has no features
            parts.append(Part(table, names, keys_of(view, values), rows))
        return cls(view, reader.now(view), parts)

    def wanted(self, store: EventOnlineStore, config: Any) -> dict[str, Array]:
        """Codes by entity kind whose kept events the answer is made of."""
        return store.wanted(config, [(part.table.batch_source, part.keys) for part in self.parts])

    def answer(self, store: EventOnlineStore, recent: Recent, part: Part, results: Any) -> tuple[Array, Array]:
        """Add a view's feature vectors to a response's; returns (bool (rows,) which were found, int64 (rows,) newest event's time)."""
        source, table, count = part.table.batch_source, part.table, part.rows
        kinds = _kinds_of(table.features)
        columns, at = store.features(self.view, source, part.keys, np.full(count, self.now, np.int64), recent)
        if at is None:
            held = self.view.entity_table(source.table)
            newest = np.full(count, self.now)
            found = held.there.at(part.keys[held.key], newest).values
        else:
            newest, found = at, at >= 0
            if table.ttl:
                found &= ~expired(table, newest, np.full(count, self.now))
        columns = chosen(table, columns, part.names)
        shared, there = GetOnlineFeaturesResponse.FeatureVector(), found.tolist()
        shared.statuses.extend([FieldStatus.PRESENT if here else FieldStatus.NOT_FOUND for here in there])
        for moment, here in zip(newest.tolist(), there):
            whole, rest = divmod(moment, 1_000_000) if here else (0, 0)
            stamp = shared.event_timestamps.add()
            stamp.seconds, stamp.nanos = whole, 1_000 * rest
        for name in part.names:
            vector = results.add()
            vector.CopyFrom(shared)
            write(self.view, kinds[name], columns[name], there, vector.values)
        return found, newest

    def respond(self, store: EventOnlineStore, recent: Recent, response: Any, full_names: bool, versions: bool) -> None:
        """Add all views' features to Feast's response, named in full or not, with the views' versions or not."""
        for part in self.parts:
            found, _ = self.answer(store, recent, part, response.results)
            _named(response, part, found, full_names, versions)


_kinds: dict[int, tuple[Any, dict[str, Any]]] = {}


def _kinds_of(fields: list[Any]) -> dict[str, Any]:
    """Value types by name of a view's fields, kept by the list's identity: Feast's own look at them costs more than showing values."""
    held = _kinds.get(id(fields))
    if held is None or held[0] is not fields or len(held[1]) != len(fields):
        if len(_kinds) > 256:
            _kinds.clear()
        held = _kinds[id(fields)] = fields, {field.name: field.dtype.to_value_type() for field in fields}
    return held[1]


def _named(response: Any, part: Part, found: Array, full_names: bool, versions: bool) -> None:
    """Write what a response says of a view besides its values, as Feast does, and count for Feast's metrics."""
    name = part.table.projection.name_to_use()
    response.metadata.feature_names.val.extend([f"{name}__{feature}" if full_names else feature for feature in part.names])
    if versions:
        utils._populate_response_from_feature_data([], [], (), response, full_names, part.table, 0, True)
    present, features = int(found.sum()), len(part.names)
    track_feature_statuses(part.table.name, present * features, (len(found) - present) * features)


def requests(
    grouped_refs: Iterable[tuple[Any, list[str]]], given: Mapping[str, Sequence[Any]], join_keys: Mapping[str, str]
) -> Iterator[tuple[list[Asked] | None, list[tuple[Any, list[str]]]]]:
    """Feast's request in as few parts as its order allows: (what is asked, None of views that Feast's store answers; its views).

    grouped_refs: feature views and names of features. given: Feast values by join key. join_keys: of each entity's name.
    """
    for own, group in groupby(grouped_refs, lambda ref: is_own(ref[0])):
        refs = list(group)
        yield [(table, names, _values_of(table, given, join_keys)) for table, names in refs] if own else None, refs


def _values_of(table: Any, given: Mapping[str, Sequence[Any]], join_keys: Mapping[str, str]) -> dict[str, Sequence[Any]]:
    """Feast values by join key of a view, as it names them; KeyError, Feast's own, where one is missing."""
    own = utils._get_table_entity_values(table, join_keys, given)
    names = [join_keys[name] for name in table.entities]  # as ``table.join_keys``, which Feast works out anew at each look
    if not all(own.get(name) for name in names):
        utils._get_unique_entities(table, given, join_keys)
    return {name: own[name] for name in names}
