"""Copying every entity's recent events from the log to an online store: beside pushes, and on from where a killed copy stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.contract import Array, Progress
from zoo.errors import ArtefactError, FeatureError
from zoo.events.dictionary import FIRST
from zoo.events.index import Index
from zoo.events.tables import ENTITIES
from zoo.events.view import LogView
from zoo.stores.packing import Change, newer, pack_slices
from zoo.stores.reader import LogReader
from zoo.stores.retention import Retention

if TYPE_CHECKING:
    from zoo.stores.online import EventOnlineStore
    from zoo.stores.recent import Key, Space

ENTITIES_AT_ONCE = 2_000
EVENTS_AT_ONCE = 200_000
"""Entities, and about how many events, that are written in one step."""
_ATTEMPTS = 100


class Part(NamedTuple):
    """Some entities' events from the log as they are written in one step."""

    entity: str
    codes: Array
    packed: Sequence[bytes]
    then: str
    """The record once they are written; empty where more of its step are to come."""
    done: float
    """Share of the copy that is done with them."""


class Bulk:
    """One copy. Its record in the store, ``COUNT KIND CODE``, says that entities before CODE of the KIND-th entity kind, and all of
    the kinds before, hold the log's first COUNT events; who finds one goes on from there. A store that lost the record meanwhile
    (a Redis that restarted empty) has lost entities, too: the copy begins again.
    """

    def __init__(self, store: EventOnlineStore, config: Any) -> None:
        self.store, self.config, self.kept = store, config, Retention.of(config)
        self.now = LogReader.of(config).now()
        self.damaged: set[Key] = set()
        self.empty = False

    def _space(self, view: LogView) -> Space:
        return self.store.place(self.config, view.log, view.epoch)

    def everything(self, view: LogView, progress: Progress | None = None) -> dict[str, int]:
        """Copy all entities and raise the watermark; returns how many entities with events that were, by kind.

        FeatureError where something is forgotten meanwhile.
        """
        space, kinds = self._space(view), sorted(self.kept.reaches, key=ENTITIES.index)
        asked, count = view, view.count
        copied, began = dict.fromkeys(kinds, 0), time.monotonic()
        fresh = f"{count} 0 {FIRST}"
        record = self.store.copying(self.config, space, fresh)
        self.empty = not self.store.load(self.config, space, {})[1]
        while True:
            asked.unforgotten()  # else the space is nobody's, and is emptied again and again
            first, number, code = map(int, record.split())
            if first > count:  # another process's, which saw more of the log
                view = LogReader.of(self.config).view()
                count = view.count
            for part in _ahead(self._parts(view, kinds, first, number, code)):
                if not self._write(view, part, record):
                    break  # another copy has moved on, ended it, or the store was emptied
                record = part.then or record
                copied[part.entity] += len(part.codes)
                if progress:
                    rate = sum(copied.values()) / max(time.monotonic() - began, 1e-9)
                    progress(part.done, f"events of {copied[part.entity]:,} {part.entity[:-3]}s, {rate:,.0f} a second")
            else:
                if self.store.finish(self.config, space, record, first):
                    break
            found = self.store.copying(self.config, space)
            if not found and self.store.load(self.config, space, {})[1] >= count:
                break
            record = found or self.store.copying(self.config, space, fresh)
        self._again(view, count)
        return copied

    def entities(self, view: LogView, entity: str, codes: Array) -> None:
        """Copy these entities."""
        codes = codes[codes >= FIRST]
        for at in range(0, len(codes), ENTITIES_AT_ONCE):
            for own, packed in self._packed(view, entity, codes[at : at + ENTITIES_AT_ONCE]):
                self._write(view, Part(entity, own, packed, "", 1.0), "")

    def _again(self, view: LogView, count: int) -> None:
        """A value that could not be read may have held events beyond the log's first ``count``: copy it from the log as it is now."""
        damaged, self.damaged = self.damaged, set()
        if not damaged or self.store.load(self.config, self._space(view), {})[1] <= count:
            return
        view = LogReader.of(self.config).view()
        for entity in self.kept.reaches:
            codes = sorted(code for kind, code in damaged if kind == entity)
            self.entities(view, entity, np.array(codes, np.int32))

    def _parts(self, view: LogView, kinds: Sequence[str], first: int, number: int, code: int) -> Iterator[Part]:
        """What is to be written from a record on, in order. A copy that goes on begins a step again until its last part is written."""
        for at in range(number, len(kinds)):
            entity = kinds[at]
            size = view.log.dictionary(entity).size
            for begin in range(code if at == number else FIRST, size, ENTITIES_AT_ONCE):
                stop = min(begin + ENTITIES_AT_ONCE, size)
                then = f"{first} {at} {stop}" if stop < size else f"{first} {at + 1} {FIRST}"
                done = (at + (stop - FIRST) / max(size - FIRST, 1)) / len(kinds)
                last: tuple[Array, Sequence[bytes]] = np.zeros(0, np.int32), ()
                for some in self._packed(view, entity, np.arange(begin, stop, dtype=np.int32)):
                    if len(last[0]):
                        yield Part(entity, *last, "", done)
                    last = some
                yield Part(entity, *last, then, done)

    def _packed(self, view: LogView, entity: str, codes: Array) -> Iterator[tuple[Array, Sequence[bytes]]]:
        """(codes, frames) of those of the entities that have events, about ``EVENTS_AT_ONCE`` events at a time."""
        for index, own in _pieces(view, entity, codes):
            low, high = index.bounds(np.arange(FIRST, FIRST + len(own)))
            low, since = self.kept.bounds(entity, view.evaluator_of(index), low, high, self.now)
            columns = {"time": index.time, "seq": index.seq, **self.kept.columns(entity, index.columns)}
            yield own, pack_slices(columns, low, high, since)

    def _write(self, view: LogView, part: Part, record: str) -> bool:
        """Write entities, and move the record on; False where the record is another by now."""
        space, count = self._space(view), view.count
        entity, codes, packed, then, _ = part
        if not len(codes):
            return self.store.exchange(self.config, space, None, record, then) is not None
        empty = self.empty
        for _ in range(_ATTEMPTS):
            # a value that is there after all is found when it is to be written
            old = [None] * len(codes) if empty else self.store.load(self.config, space, {entity: codes})[0][entity]
            own, empty = codes.tolist(), False
            new = [n if o is None else self._whole((entity, code), o, n, count) for code, o, n in zip(own, old, packed)]
            again = self.store.exchange(self.config, space, Change(entity, own, old, new), record, then)
            if again is None:
                return False
            if not again:
                return True
            codes, packed = codes[again], [packed[i] for i in again]
        raise FeatureError(
            f"{_ATTEMPTS} other writers came first to the same {entity} keys; push smaller batches or fewer at once"
        )

    def _whole(self, key: Key, old: bytes, new: bytes, count: int) -> bytes:
        """What the log's first ``count`` events say of an entity, and what the store holds of it beyond those."""
        try:
            return new + (newer(old, count) or b"")
        except ArtefactError:
            self.damaged.add(key)
            return new


def _ahead(parts: Iterator[Part]) -> Iterator[Part]:
    """The parts, each made by a thread while the one before is written."""
    with ThreadPoolExecutor(1) as one:
        coming = one.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = one.submit(next, parts, None)
            yield part


def _pieces(view: LogView, entity: str, codes: Array) -> Iterator[tuple[Index, Array]]:
    """Small indexes of about ``EVENTS_AT_ONCE`` events, with codes 2, 3, ..., and which of these entities each holds: those with events."""
    partitions = view.partitions(entity)
    for piece in partitions.route(codes):
        index, own = partitions.index(piece.number), codes if piece.rows is None else codes[piece.rows]
        low, high = index.bounds(piece.codes)
        some = np.flatnonzero(high > low)
        parts = np.cumsum((high - low)[some]) // EVENTS_AT_ONCE
        for part in np.split(some, np.flatnonzero(np.diff(parts)) + 1):
            if len(part):
                yield index.events(piece.codes[part]), own[part]
