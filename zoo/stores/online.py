"""What both online stores share: an entity's recent events are kept, features are computed on reading by the offline functions.

The store follows the log: a watermark says how many of the log's events it holds, and whoever comes next, reader or writer,
first brings in the rest. So a push is seen by the next read, and so is a file that was ingested, or a push whose writer died.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, Column, Progress
from zoo.errors import FeatureError
from zoo.events.clock import moved
from zoo.events.encode import columns_of, encode
from zoo.events.evaluate import Evaluator
from zoo.events.index import Index
from zoo.events.view import ENTITIES, LogView
from zoo.stores.blob import index_of, pack_slices
from zoo.stores.columns import chosen, features_of
from zoo.stores.protos import keys_of, raw_events, shown
from zoo.stores.reader import LogReader
from zoo.stores.source import EventSource, TableSource

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TAIL = 100_000
"""Events behind the log up to which they are merged one by one; beyond it every entity is copied from the index."""


class EventOnlineStore:
    """Mixed into a Feast online store, which supplies ``load``, ``merge`` and ``mark``; other views are left to that store.

    The newest ``max_events`` events of an entity are kept. Online equals offline at the same instant as long as an entity has no
    more. Beyond that, what reaches further back than the oldest event kept is answered from those that are: windows, distinct and
    decayed counts leave out what came before, ``tenure`` and the first ``gap`` begin there. The newest n of a sequence and recency
    stay exact while n is at most ``max_events``.
    """

    chunk = 2_000
    """Entities merged in one transaction."""

    def __init__(self) -> None:
        super().__init__()
        self._following = RLock()

    def load(self, config: Any, log: str, entity: str, codes: Array) -> tuple[list[bytes | None], int]:
        """(the blob of each entity code, None where nothing is kept; how many of the log's first events are in the store)."""
        raise FeatureError(f"{type(self).__name__} does not say how to load events")

    def merge(self, config: Any, log: str, entity: str, blobs: Mapping[int, bytes], *, whole: bool) -> None:
        """Merge blobs into what is kept, each entity atomically."""
        raise FeatureError(f"{type(self).__name__} does not say how to merge events")

    def mark(self, config: Any, log: str, count: int) -> None:
        """Say that the log's first ``count`` events are in the store; a smaller number than is there changes nothing."""
        raise FeatureError(f"{type(self).__name__} does not say how to mark what it holds")

    # Reading

    def events(self, config: Any, view: LogView, entity: str, codes: Array) -> Index:
        """A small index over the kept events of these entities; the i-th has code i + 2."""
        blobs, held = self.load(config, view.log.id, entity, codes)
        if held < view.log.count():
            self.follow(config)
            blobs, _ = self.load(config, view.log.id, entity, codes)
        return index_of(blobs, view.kinds(entity), view.facts())

    def features(
        self, config: Any, view: LogView, source: Any, keys: Mapping[str, Array], times: Array, kept: dict[str, Any] | None = None
    ) -> tuple[dict[str, Column], Array | None]:
        """(columns by name, newest event's time int64 (n,) or None for a table) of a source for n rows, computed as offline.

        keys: codes int32 (n,) by join key. kept: passed to several calls with the same rows, reads each entity's events once.
        """
        if not isinstance(source, EventSource):
            return features_of(view, source, dict(keys), times), None
        kept = {} if kept is None else kept
        entity = source.aggregation.entity[0]  # type: ignore[union-attr]
        unique, inverse = np.unique(keys[entity], return_inverse=True)
        if entity not in kept or not np.array_equal(kept[entity][0], unique):
            kept[entity] = unique, Evaluator(self.events(config, view, entity, unique), view.event_types())
        evaluator: Evaluator = kept[entity][1]
        own = {**keys, entity: (inverse + 2).astype(np.int32)}
        seen = times + 1 if source.aggregation.include_equal else times  # type: ignore[union-attr]
        return features_of(view, source, own, times, evaluator), evaluator.index.newest(own[entity], seen)

    def online_read(
        self, config: Any, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """Feast's read: features as of the clock. An entity without events, or past the view's TTL, is not found."""
        source = table.batch_source
        if not isinstance(source, EventSource | TableSource):
            return super().online_read(config, table, entity_keys, requested_features)  # type: ignore[misc,no-any-return]
        if isinstance(source, EventSource) and source.aggregation is None:
            return [(None, None)] * len(entity_keys)
        reader = LogReader.of(config)
        view, now = reader.view(), reader.now()
        keys = keys_of(view, table, entity_keys)
        columns, newest = self.features(config, view, source, keys, np.full(len(entity_keys), now, np.int64))
        if newest is None:
            found = np.all([codes > 1 for codes in keys.values()], axis=0)
            newest = np.full(len(found), now)
        else:
            found = newest >= 0
            if table.ttl:
                found &= now - newest <= table.ttl // timedelta(microseconds=1)
        protos = shown(view, table, chosen(table, columns, requested_features or [f.name for f in table.features]))
        return [
            (_EPOCH + timedelta(microseconds=int(at)), {name: values[i] for name, values in protos.items()})
            if there
            else (None, None)
            for i, (there, at) in enumerate(zip(found, newest))
        ]

    async def online_read_async(
        self, config: Any, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """``online_read`` in a thread: Feast's own would look for rows that our stores do not write."""
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    # Writing

    def online_write_batch(self, config: Any, table: Any, data: list[Any], progress: Any) -> None:
        """Raw events are appended to the log and come back from there; a derived view's keys have their events copied from it."""
        source = table.batch_source
        if not isinstance(source, EventSource | TableSource):
            super().online_write_batch(config, table, data, progress)  # type: ignore[misc]
            return
        if isinstance(source, EventSource) and source.aggregation is None:
            self.append(config, raw_events(data))
        elif isinstance(source, EventSource):
            view = LogReader.of(config).view()
            entity = source.aggregation.entity[0]  # type: ignore[union-attr]
            self.copy(config, view, entity, np.unique(keys_of(view, table, [key for key, *_ in data])[entity]))
            self.follow(config)
        if progress:
            progress(len(data))

    async def online_write_batch_async(self, config: Any, table: Any, data: list[Any], progress: Any) -> None:
        """``online_write_batch`` in a thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def append(self, config: Any, rows: pa.Table, idempotency_key: str | None = None) -> Any:
        """Append raw events to the log, durable first, then make them visible online. Returns the log's report.

        Events that move the clock far, where it is the log's end, are warned of, in the report and by this module's logger.
        """
        reader = LogReader.of(config)
        before = reader.log.end() if reader.clock == "log_end" else None
        now = reader.now() if reader.clock not in ("wall", "log_end") else time.time_ns() // 1000
        report = reader.log.append(rows, idempotency_key=idempotency_key, now=now)
        self.follow(config)
        warnings = moved(reader.log, before) if reader.clock == "log_end" else ()
        for warning in warnings:
            _log.warning("%s", warning)
        return replace(report, warnings=warnings)

    def follow(self, config: Any) -> int:
        """Bring in what the log holds and the store does not; returns how many events that were. Any number may do so at once."""
        with self._following:
            view = LogReader.of(config).view()
            _, held = self.load(config, view.log.id, ENTITIES[0], np.zeros(0, np.int32))
            count = view.log.count(view.version)
            if count - held > TAIL:
                for entity in ENTITIES:
                    self.copy(config, view, entity)
            elif count > held:
                self._merge_tail(config, view, held)
            if count > held:
                self.mark(config, view.log.id, count)
            return max(count - held, 0)

    def _merge_tail(self, config: Any, view: LogView, held: int) -> None:
        encoded = encode(view.log, view.log.tail(held - 1, columns_of(view.log)))
        for entity in ENTITIES:
            codes = encoded.keys(entity)
            numbers, own = np.unique(codes, return_inverse=True)  # numbered densely: a push names few of all entities
            own = np.where(codes > 0, own + 2, 0)
            index = Index.build(own, encoded.time, encoded.seq, encoded.others(entity), len(numbers) + 2)
            there = np.flatnonzero(numbers > 0)
            self._write(config, view, entity, index, numbers[there], there + 2, whole=False)

    def copy(self, config: Any, view: LogView, entity: str, codes: Array | None = None, progress: Progress | None = None) -> int:
        """Copy entities' events from the log (all entities without ``codes``); returns how many entities. Safe beside pushes."""
        index = view.index(entity)
        if codes is None:
            codes = np.flatnonzero(np.diff(index.offsets)).astype(np.int32)
        low, high = index.bounds(codes)
        codes = codes[(codes > 1) & (high > low)]
        self._write(config, view, entity, index, codes, codes, progress, whole=True)
        return len(codes)

    def _write(
        self,
        config: Any,
        view: LogView,
        entity: str,
        index: Index,
        codes: Array,
        own: Array,
        progress: Progress | None = None,
        *,
        whole: bool,
    ) -> None:
        """Merge the events of entities ``codes``, which the index knows as ``own``."""
        low, high = index.bounds(own)
        low = np.maximum(low, high - config.online_store.max_events)
        for at in range(0, len(codes), self.chunk):
            part = slice(at, at + self.chunk)
            blobs = pack_slices(index, low[part].tolist(), high[part].tolist())
            self.merge(config, view.log.id, entity, dict(zip(codes[part].tolist(), blobs)), whole=whole)
            if progress:
                progress(min(at + self.chunk, len(codes)) / len(codes), f"events of {len(codes):,} {entity[:-3]}s")
