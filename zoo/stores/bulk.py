"""Copying every entity's recent events from the log to an online store: beside pushes, and on from where a killed copy stopped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, Progress
from zoo.errors import ArtefactError, FeatureError
from zoo.events.view import ENTITIES, LogView
from zoo.stores.frames import newer, pack_slices
from zoo.stores.reader import LogReader
from zoo.stores.retention import Retention

if TYPE_CHECKING:
    from zoo.stores.online import EventOnlineStore, Key

ENTITIES_AT_ONCE = 2_000
EVENTS_AT_ONCE = 200_000
"""Entities, and about how many events, that are written in one step."""
_ATTEMPTS = 100


class Bulk:
    """One copy. Its record in the store, ``COUNT KIND CODE``, says that entities before CODE of the KIND-th entity kind, and all of
    the kinds before, hold the log's first COUNT events; who finds one goes on from there. A store that lost the record meanwhile
    (a Redis that restarted empty) has lost entities, too: the copy begins again.
    """

    def __init__(self, store: EventOnlineStore, config: Any) -> None:
        self.store, self.config, self.kept = store, config, Retention.of(config)
        self.now = LogReader.of(config).now()
        self.damaged: set[Key] = set()

    def everything(self, view: LogView, progress: Progress | None = None) -> dict[str, int]:
        """Copy all entities and raise the watermark; returns how many entities have events, by kind."""
        space, kinds = self.store.space(self.config, view), sorted(self.kept.reaches, key=ENTITIES.index)
        count = count_of(view)
        copied = {entity: int((np.diff(view.index(entity).offsets)[2:] > 0).sum()) for entity in kinds}
        began, done = time.monotonic(), 0
        fresh = f"{count} 0 0"
        record = self.store.copying(self.config, space, fresh)
        while True:
            first, number, code = map(int, record.split())
            if first > count:  # another process's, which saw more of the log
                view = LogReader.of(self.config).view()
                count = count_of(view)
            if number >= len(kinds):
                if self.store.finish(self.config, space, record, first):
                    break
            else:
                entity = kinds[number]
                todo = self._present(view, entity)
                todo = todo[np.searchsorted(todo, code) :]
                part = todo[: self._many(view, entity, todo)]
                ended = len(part) == len(todo)
                then = f"{first} {number + 1} 0" if ended else f"{first} {number} {int(part[-1]) + 1}"
                if self._step(view, entity, part, record, then):
                    record, done = then, done + len(part)
                    if progress:
                        rate = done / max(time.monotonic() - began, 1e-9)
                        share = 1.0 if ended else 1 - len(todo[len(part) :]) / max(copied[entity], 1)
                        progress(
                            (number + share) / len(kinds), f"events of {copied[entity]:,} {entity[:-3]}s, {rate:,.0f} a second"
                        )
                    continue
            # another copy has moved on, ended it, or the store was emptied
            found = self.store.copying(self.config, space)
            if not found and self.store.load(self.config, space, {})[1] >= count:
                break
            record = found or self.store.copying(self.config, space, fresh)
        self._again(view, count)
        return copied

    def entities(self, view: LogView, entity: str, codes: Array) -> int:
        """Copy these entities; returns how many have events."""
        low, high = view.index(entity).bounds(codes)
        codes = codes[(codes > 1) & (high > low)]
        for at in range(0, len(codes), ENTITIES_AT_ONCE):
            self._step(view, entity, codes[at : at + ENTITIES_AT_ONCE], "", "")
        return len(codes)

    def _again(self, view: LogView, count: int) -> None:
        """A value that could not be read may have held events beyond the log's first ``count``: copy it from the log as it is now."""
        damaged, self.damaged = self.damaged, set()
        if not damaged or self.store.load(self.config, self.store.space(self.config, view), {})[1] <= count:
            return
        view = LogReader.of(self.config).view()
        for entity in self.kept.reaches:
            codes = sorted(code for kind, code in damaged if kind == entity)
            self.entities(view, entity, np.array(codes, np.int32))

    @staticmethod
    def _present(view: LogView, entity: str) -> Array:
        """int32, ascending: codes of the entities that have events."""
        codes = np.flatnonzero(np.diff(view.index(entity).offsets)).astype(np.int32)
        return codes[codes > 1]

    @staticmethod
    def _many(view: LogView, entity: str, codes: Array) -> int:
        low, high = view.index(entity).bounds(codes[:ENTITIES_AT_ONCE])
        return max(int(np.searchsorted(np.cumsum(high - low), EVENTS_AT_ONCE)), 1)

    def _step(self, view: LogView, entity: str, codes: Array, record: str, then: str) -> bool:
        """Write these entities' events from the log, and move the record on; False where the record is another by now."""
        space, count = self.store.space(self.config, view), count_of(view)
        index = view.index(entity)
        low, high = index.bounds(codes)
        low, since = self.kept.bounds(entity, view.evaluator(entity), low, high, self.now)
        columns = {"time": index.time, "seq": index.seq, **self.kept.columns(entity, index.columns)}
        packed = dict(zip(codes.tolist(), pack_slices(columns, low, high, since.tolist())))
        left = codes
        for _ in range(_ATTEMPTS):
            values, _ = self.store.load(self.config, space, {entity: left})
            changes = [
                ((entity, code), old, self._whole((entity, code), old, packed[code], count))
                for code, old in zip(left.tolist(), values[entity])
            ]
            again = self.store.exchange(self.config, space, changes, record, then)
            if again is None:
                return False
            if not again:
                return True
            left = left[again]
        raise FeatureError(
            f"{_ATTEMPTS} other writers came first to the same {entity} keys; push smaller batches or fewer at once"
        )

    def _whole(self, key: Key, old: bytes | None, new: bytes, count: int) -> bytes:
        """What the log's first ``count`` events say of an entity, and what the store holds of it beyond those."""
        if old is None:
            return new
        try:
            return new + (newer(old, count) or b"")
        except ArtefactError:
            self.damaged.add(key)
            return new


def count_of(view: LogView) -> int:
    """How many of the log's events a view is of."""
    return view.log.count(view.version)
