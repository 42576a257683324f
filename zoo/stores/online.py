"""What both online stores share: an entity's recent events are kept, features are computed on reading by the offline functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array
from zoo.errors import FeatureError
from zoo.events.evaluate import Evaluator
from zoo.events.index import Index
from zoo.events.view import ENTITIES, Encoded, LogView, encode
from zoo.stores.blob import index_of, pack
from zoo.stores.columns import features_of, to_arrow
from zoo.stores.reader import LogReader
from zoo.stores.source import EventSource, TableSource

if TYPE_CHECKING:
    import pyarrow as pa

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CHUNK = 512
"""Entities written in one transaction."""


class EventOnlineStore:
    """Mixed into a Feast online store, which supplies ``load`` and ``merge``; other views are left to that store."""

    def load(self, config: Any, entity: str, codes: Array) -> list[bytes | None]:
        """The blob of each entity code, None where nothing is kept."""
        raise FeatureError(f"{type(self).__name__} does not say how to load events")

    def merge(self, config: Any, entity: str, blobs: Mapping[int, bytes]) -> None:
        """Merge blobs into what is kept, each entity atomically."""
        raise FeatureError(f"{type(self).__name__} does not say how to merge events")

    # -- reading ---------------------------------------------------------------------------------------------------------

    def events(self, config: Any, view: LogView, entity: str, codes: Array) -> Index:
        """A small index over the kept events of these entities; the i-th has code i + 2."""
        return index_of(self.load(config, entity, codes), view.facts())

    def features(
        self, config: Any, source: Any, keys: Mapping[str, Array], times: Array, evaluator: Evaluator | None = None
    ) -> Any:
        """(columns by name, newest event's time int64 (n,)) of a source for n rows, by the functions that answer offline.

        keys: codes int32 (n,) by join key. evaluator: over ``events`` of the first key's rows, where the caller already read them.
        """
        view = LogReader.of(config).view()
        if isinstance(source, TableSource):
            return features_of(view, source, dict(keys), times), np.full(len(times), -1, np.int64)
        first = source.aggregation.entity[0]
        unique, inverse = np.unique(keys[first], return_inverse=True)
        if evaluator is None:
            evaluator = Evaluator(self.events(config, view, first, unique), view.event_types())
        own = {**keys, first: (inverse + 2).astype(np.int32)}
        return features_of(view, source, own, times, evaluator), evaluator.index.newest(own[first], times)

    def online_read(
        self, config: Any, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """Feast's read: features as of the clock. An entity without events, or past the view's TTL, is not found."""
        source = table.batch_source
        if not isinstance(source, EventSource | TableSource):
            return super().online_read(config, table, entity_keys, requested_features)  # type: ignore[misc,no-any-return]
        from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values

        reader = LogReader.of(config)
        view, now = reader.view(), reader.now()
        names = list(requested_features or [f.name for f in table.features])
        if isinstance(source, EventSource) and source.aggregation is None:
            return [(None, None)] * len(entity_keys)
        raw = [dict(zip(k.join_keys, map(feast_value_type_to_python_type, k.entity_values))) for k in entity_keys]
        keys = {name: view.codes(name, [r[name] for r in raw]) for name in table.join_keys}
        columns, newest = self.features(config, source, keys, np.full(len(raw), now, np.int64))
        types = {f.name: f.dtype.to_value_type() for f in table.features}
        protos = {n: python_values_to_proto_values(to_arrow(view, columns[n]).to_pylist(), types[n]) for n in names}
        static = isinstance(source, TableSource)
        known = np.all([codes > 1 for codes in keys.values()], axis=0) if static else newest >= 0
        if table.ttl and not static:
            known &= now - newest <= int(table.ttl.total_seconds() * 1e6)
        out: list[tuple[datetime | None, dict[str, Any] | None]] = []
        for i, found in enumerate(known):
            at = _EPOCH + timedelta(microseconds=int(now if static else newest[i]))
            out.append((at, {n: protos[n][i] for n in names}) if found else (None, None))
        return out

    # -- writing ---------------------------------------------------------------------------------------------------------

    def online_write_batch(self, config: Any, table: Any, data: list[Any], progress: Callable[[int], Any] | None) -> None:
        """Raw events are appended to the log, then to their entities; a derived view's keys have their events copied from the log."""
        source = table.batch_source
        if not isinstance(source, EventSource | TableSource):
            super().online_write_batch(config, table, data, progress)  # type: ignore[misc]
        elif isinstance(source, EventSource) and source.aggregation is None:
            self.append(config, _raw_events(data))
        elif isinstance(source, EventSource):
            from feast.type_map import feast_value_type_to_python_type

            view = LogReader.of(config).view()
            entity = source.aggregation.entity[0]  # type: ignore[union-attr]
            ids = [feast_value_type_to_python_type(key.entity_values[0]) for key, *_ in data]
            self.copy(config, view, entity, np.unique(view.codes(entity, ids)))
        if progress:
            progress(len(data))

    def append(self, config: Any, rows: pa.Table, idempotency_key: str | None = None) -> Any:
        """Append raw events to the log, durable first, then make them visible online. Returns the log's report."""
        reader = LogReader.of(config)
        log = reader.view().log
        last = log.count() - 1
        now = reader.now() if reader.clock not in ("wall", "log_end") else time.time_ns() // 1000
        report = log.append(rows, idempotency_key=idempotency_key, now=now)
        if report.added:
            self.write_events(config, encode(reader.view().log, log.tail(last)))
        return report

    def write_events(self, config: Any, encoded: Encoded) -> None:
        """Merge encoded events into the blobs of the users and items that they name."""
        for entity in ENTITIES:
            codes = encoded.keys(entity)
            columns = {k: v for k, v in encoded.columns.items() if k != entity}
            index = Index.build(codes, encoded.time, encoded.seq, columns, int(codes.max(initial=1)) + 1)
            self._write(config, entity, index, np.unique(codes[codes > 0]))

    def copy(
        self,
        config: Any,
        view: LogView,
        entity: str,
        codes: Array | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> int:
        """Copy entities' events from the log (all entities without ``codes``); returns how many entities. Safe beside pushes."""
        index = view.index(entity)
        if codes is None:
            codes = np.flatnonzero(np.diff(index.offsets)).astype(np.int32)
        self._write(config, entity, index, codes[codes > 1], progress)
        return len(codes)

    def _write(
        self, config: Any, entity: str, index: Index, codes: Array, progress: Callable[[float, str], None] | None = None
    ) -> None:
        low, high = index.bounds(codes)
        for at in range(0, len(codes), CHUNK):
            part = range(at, min(at + CHUNK, len(codes)))
            blobs = {int(codes[i]): _slice(index, low[i], high[i]) for i in part}
            self.merge(config, entity, blobs)
            if progress:
                progress((at + len(blobs)) / len(codes), f"{entity[:-3]} events")


def _slice(index: Index, low: int, high: int) -> bytes:
    return pack(index.time[low:high], index.seq[low:high], {k: v[low:high] for k, v in index.columns.items()})


def _raw_events(data: Iterable[Any]) -> pa.Table:
    """Feast's (entity key, values, timestamp, created) rows as a table of events."""
    import pyarrow as pa
    from feast.type_map import feast_value_type_to_python_type

    rows = []
    for key, values, at, _ in data:
        row = dict(zip(key.join_keys, map(feast_value_type_to_python_type, key.entity_values)))
        row |= {name: feast_value_type_to_python_type(value) for name, value in values.items()}
        row["timestamp"] = at if at.tzinfo else at.replace(tzinfo=UTC)
        rows.append(row)
    columns = {name: [r.get(name) for r in rows] for name in rows[0]} if rows else {}
    table = pa.table({n: pa.array(v, pa.timestamp("us", "UTC")) if n == "timestamp" else pa.array(v) for n, v in columns.items()})
    return table.drop_columns([n for n in table.column_names if pa.types.is_null(table[n].type)])
