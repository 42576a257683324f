"""What both online stores share: an entity's recent events are kept, features are computed on reading by the offline functions.

The store follows the log: a watermark says how many of the log's events it holds, and whoever comes next, reader or writer,
first brings in the rest. So a push is seen by the next read, and so is a file that was ingested, or a push whose writer died. It is one
long class, as Feast's interface, blocking and async, and ours stand over the same few steps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

from zoo.contract import Array, Column, Progress
from zoo.deadline import left, until
from zoo.errors import FeatureError, ZooError
from zoo.events.clock import moved
from zoo.events.encode import columns_of, encode, encode_few
from zoo.events.view import LogView
from zoo.stores.bulk import Bulk
from zoo.stores.columns import features_of
from zoo.stores.compaction import Compaction
from zoo.stores.packing import Change, pack_slices
from zoo.stores.protos import key_columns, keys_of, raw_events
from zoo.stores.reader import LogReader
from zoo.stores.recent import Recent, Space, holds
from zoo.stores.request import Request, is_own, requests
from zoo.stores.retention import Retention
from zoo.stores.source import EventSource

if TYPE_CHECKING:
    from zoo.events.log import EventLog

T = TypeVar("T")
_log = logging.getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TAIL = 100_000
"""Events behind the log up to which they are appended; beyond it every entity is copied from the index."""
AT_ONCE = 8_000
"""Events appended in one step of the store."""
_EMPTIED = 3
"""Times that a read brings in what a store lost between two looks at it."""
_FEW = 64
"""Events an entity up to which columns are written as they are: frames of one layout are read together, and most of one is its header."""
_ALWAYS = ("user_id", "item_id", "event_type", "time", "seq")
"""Columns of the log that are read whatever is kept."""


class Reply:
    """What a store was asked for. Either method is called, once."""

    def __init__(self, load: Callable[[], tuple[dict[str, list[bytes | None]], int]]) -> None:
        self._load = load

    def read(self) -> tuple[dict[str, list[bytes | None]], int]:
        """What ``EventOnlineStore.load`` returns."""
        return self._load()

    def close(self) -> None:
        """Nobody wants it any longer."""


def _begins(config: Any, log: EventLog, epoch: int) -> str:
    """How the names of all spaces of one epoch of a log begin."""
    return f"{config.project}:zoo:{log.id}:{epoch}-"


def _equal(codes: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    return codes.keys() == others.keys() and all(np.array_equal(own, others[entity]) for entity, own in codes.items())


@contextmanager
def _releasing(lock: Any) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()


class EventOnlineStore(ABC):
    """Mixed into a Feast online store, which says how to read and change values; other views are left to that store.

    Of an entity, the events are kept that the applied views reach back to (``Retention``), at most the newest ``max_events``.
    Online equals offline at the same instant as long as an entity has no more in that reach. Beyond the cap, what reaches further
    back than the oldest event kept is answered from those that are: windows, distinct and decayed counts leave out what came
    before, ``tenure`` and the first ``gap`` begin there. The newest n of a sequence and recency stay exact while n is at most
    ``max_events``. An instant before the one as of which events were dropped is answered from the log.
    """

    def __init__(self) -> None:
        super().__init__()
        self._following = RLock()
        self._held: dict[str, int] = {}
        self._compaction = Compaction(self, self._following)
        self._spaces: tuple[Any, ...] = ()

    # What a store provides

    @abstractmethod
    def load(self, config: Any, space: Space, codes: Mapping[str, Array]) -> tuple[dict[str, list[bytes | None]], int]:
        """(each entity's value by kind, None where nothing is kept; how many of the log's first events are there) at one moment."""

    def ask(self, config: Any, space: Space, codes: Mapping[str, Array]) -> Reply:
        """``load`` in two steps, for a store that works while its caller does."""
        return Reply(partial(self.load, config, space, codes))

    async def load_async(
        self, config: Any, space: Space, codes: Mapping[str, Array]
    ) -> tuple[dict[str, list[bytes | None]], int]:
        """``load`` in a thread."""
        return await asyncio.to_thread(self.load, config, space, codes)

    @abstractmethod
    def append(
        self, config: Any, space: Space, start: int, stop: int, frames: Sequence[tuple[str, int, bytes]]
    ) -> list[int] | None:
        """In one step append frames to their entities' values and raise the watermark from ``start`` to ``stop``.

        Returns the values' lengths, or None, and changes nothing, where the watermark is another.
        """

    @abstractmethod
    def exchange(self, config: Any, space: Space, change: Change | None, record: str = "", then: str = "") -> list[int] | None:
        """In one step replace values that are still as they were read; returns which were not. None where the record is another.

        change: None to move the record only. record: what ``copying`` returns at the moment (not looked at where empty); ``then`` takes
        its place once all were replaced.
        """

    @abstractmethod
    def copying(self, config: Any, space: Space, record: str = "") -> str:
        """How far a copy of everything is, empty where none is under way; ``record`` is written where there is none."""

    @abstractmethod
    def finish(self, config: Any, space: Space, record: str, count: int) -> bool:
        """In one step end a copy whose record is still this one, and raise the watermark to at least ``count``."""

    @abstractmethod
    def names(self, config: Any, log: str) -> list[Space]:
        """Every space of a log in the store."""

    @abstractmethod
    def values(self, config: Any, space: Space, entity: str) -> Iterator[tuple[int, bytes]]:
        """(code, value) of every entity of a kind."""

    @abstractmethod
    def drop(self, config: Any, space: Space) -> None:
        """Remove a space whole."""

    @abstractmethod
    def erase(self, config: Any) -> None:
        """Leave no byte of what was removed."""

    def space(self, config: Any, view: LogView) -> Space:
        """Where the log's events are for the views that are applied."""
        return self.place(config, view.log, view.log.epoch)

    def place(self, config: Any, log: EventLog, epoch: int) -> Space:
        """``space`` of one epoch of the log."""
        kept = Retention.of(config)
        spaces = self._spaces  # looked at once: other threads may place other epochs meanwhile
        if spaces[:3] != (log, epoch, kept):
            name = f"{_begins(config, log, epoch)}{kept.digest}"
            self._spaces = spaces = (log, epoch, kept, Space(config.project, log.id, name))
        found: Space = spaces[3]
        return found

    # Reading

    def read(
        self, config: Any, reader: LogReader, asked: Callable[[LogView], tuple[T, dict[str, Array]]]
    ) -> tuple[LogView, T, Recent]:
        """(the log's newest version, what ``asked`` makes of it, the kept events of the entities that it names as well).

        The store is asked by the version of the last look, and while it works the log is looked at. asked: gives codes as ``wanted``.
        """
        held, reply = reader.held, None
        if held is not None:
            try:
                made, codes = asked(held)
            except Exception:  # noqa: BLE001 - the log may be another by now: what is wrong shows below
                held = None
            else:
                space = self.place(config, held.log, held.epoch)
                reply = self.ask(config, space, codes)
        try:
            view = reader.view()
            if view is not held:
                made, fresh = asked(view)
                if reply is None or self.place(config, view.log, view.epoch) != space or not _equal(codes, fresh):
                    if reply is not None:
                        reply.close()
                    return view, made, self.recent(config, view, fresh)
        except BaseException:
            if reply is not None:
                reply.close()
            raise
        assert reply is not None
        return view, made, self.recent(config, view, codes, reply)

    def recent(self, config: Any, view: LogView, codes: Mapping[str, Array], reply: Reply | None = None) -> Recent:
        """The kept events of entities (codes each once) by kind, after bringing in what the view has beyond them.

        reply: of the store, where it was asked for them already.
        """
        values, held = (self.ask(config, self.place(config, view.log, view.epoch), codes) if reply is None else reply).read()
        for _ in range(_EMPTIED):
            if holds(view, held):
                return Recent(view, codes, values)
            self.follow(config)  # or the log was rewritten, and its events are elsewhere
            values, held = self.load(config, self.space(config, view), codes)
        return Recent(view, codes, self._reached(values, held, view))

    async def recent_async(self, config: Any, view: LogView, codes: Mapping[str, Array]) -> Recent:
        """As ``recent``."""
        values, held = await self.load_async(config, self.place(config, view.log, view.epoch), codes)
        for _ in range(_EMPTIED):
            if holds(view, held):
                return Recent(view, codes, values)
            await asyncio.to_thread(self.follow, config)
            values, held = await self.load_async(config, self.space(config, view), codes)
        return Recent(view, codes, self._reached(values, held, view))

    @staticmethod
    def _reached(values: dict[str, list[bytes | None]], held: int, view: LogView) -> dict[str, list[bytes | None]]:
        """The values, if the store has what the view has; FeatureError where it loses what is brought in."""
        if not holds(view, held):
            raise FeatureError(
                f"the online store holds {held:,} of the log's {view.count:,} events after it was brought up to date {_EMPTIED} times: "
                "something empties it. Look for a flush, an eviction or a restart, then try again"
            )
        return values

    def wanted(self, config: Any, asked: Iterable[tuple[Any, Mapping[str, Array]]]) -> dict[str, Array]:
        """Codes, each once, by entity kind whose kept events the answers are made of. asked: sources, and codes by join key."""
        out: dict[str, Array] = {}
        for source, keys in asked:
            if not isinstance(source, EventSource):
                continue
            if source.body not in Retention.of(config).sources and source.body not in Retention.again(config).sources:
                continue  # declared, and applied nowhere: the log answers
            entity = source.aggregation.entity[0]  # type: ignore[union-attr]
            codes, known = keys[entity], out.get(entity)
            if codes is known:
                continue
            if len(codes) > 1 and len({*codes.tolist()}) < len(codes):
                codes = np.unique(codes)
            out[entity] = codes if known is None or np.array_equal(known, codes) else np.union1d(known, codes)
        return out

    def features(
        self, view: LogView, source: Any, keys: Mapping[str, Array], times: Array, recent: Recent
    ) -> tuple[dict[str, Column], Array | None]:
        """(columns by name, newest event's time int64 (n,) or None for a table) of a source for n rows, computed as offline.

        keys: codes int32 (n,) by join key.
        """
        if not isinstance(source, EventSource):
            return features_of(view, source, dict(keys), times), None
        aggregation = source.aggregation
        assert aggregation is not None
        entity = aggregation.entity[0]
        if entity in recent.values:
            found = recent.features(aggregation, keys, times)
            if found is not None:
                return found
        seen = aggregation.until(times)
        return features_of(view, source, dict(keys), times), view.newest_events(entity, keys[entity], seen)

    def online_read(
        self, config: Any, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """Feast's read of one view: features as of the clock. An entity without events, or past the view's TTL, is not found."""
        if not is_own(table):
            return super().online_read(config, table, entity_keys, requested_features)  # type: ignore[misc,no-any-return]
        names = requested_features or [f.name for f in table.features]
        request, recent = self._request(config, [(table, names, key_columns(table, entity_keys))])
        results = GetOnlineFeaturesResponse().results
        found, newest = request.answer(self, recent, request.parts[0], results)
        return [
            (_EPOCH + timedelta(microseconds=at), {n: v.values[i] for n, v in zip(names, results)}) if there else (None, None)
            for i, (there, at) in enumerate(zip(found.tolist(), newest.tolist()))
        ]

    async def online_read_async(self, *asked: Any, **named: Any) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """``online_read`` in a thread."""
        return await asyncio.to_thread(self.online_read, *asked, **named)

    def _read_features_per_fv(self, config: Any, grouped_refs: Any, given: Any, join_keys: Any, *how: Any) -> None:
        """Feast's read of all views of one request, which would ask the store once a view and make an object a value."""
        for asked, refs in requests(grouped_refs, given, join_keys):
            if asked is None:
                super()._read_features_per_fv(config, refs, given, join_keys, *how)  # type: ignore[misc]
            else:
                request, recent = self._request(config, asked)
                request.respond(self, recent, *how)

    def _request(self, config: Any, asked: Sequence[Any]) -> tuple[Request, Recent]:
        reader = LogReader.of(config)

        def of(view: LogView) -> tuple[Request, dict[str, Array]]:
            made = Request.of(reader, view, asked)
            return made, made.wanted(self, config)

        _, request, recent = self.read(config, reader, of)
        return request, recent

    async def _read_features_per_fv_async(self, config: Any, grouped_refs: Any, given: Any, join_keys: Any, *how: Any) -> None:
        """As ``_read_features_per_fv``."""
        reader = LogReader.of(config)
        for asked, refs in requests(grouped_refs, given, join_keys):
            if asked is None:
                await super()._read_features_per_fv_async(config, refs, given, join_keys, *how)  # type: ignore[misc]
            else:
                request = Request.of(reader, reader.view(), asked)
                request.respond(self, await self.recent_async(config, request.view, request.wanted(self, config)), *how)

    # Writing

    def online_write_batch(self, config: Any, table: Any, data: list[Any], progress: Any) -> None:
        """Raw events are appended to the log and come back from there; a derived view's keys have their events copied from it."""
        source = table.batch_source
        if not is_own(table):
            super().online_write_batch(config, table, data, progress)  # type: ignore[misc]
            return
        if isinstance(source, EventSource) and source.aggregation is None:
            self.push(config, raw_events(data))
        elif isinstance(source, EventSource):
            view = LogReader.of(config).view()
            entity = source.aggregation.entity[0]  # type: ignore[union-attr]
            codes = np.unique(keys_of(view, key_columns(table, [key for key, *_ in data]))[entity])
            if entity in Retention.of(config).reaches:
                with self._lasting(config, view.log, view.epoch):
                    Bulk(self, config).entities(view, entity, codes)
            self.follow(config)
        if progress:
            progress(len(data))

    async def online_write_batch_async(self, config: Any, table: Any, data: list[Any], progress: Any) -> None:
        """``online_write_batch`` in a thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def push(self, config: Any, rows: Any, idempotency_key: str | None = None) -> Any:
        """Append raw events (as ``zoo.events.ingest.append`` takes them), durable first, then make them visible online.

        Returns the log's report. FeatureError where the store does not answer, by when the events are in the log.

        Events that move the clock far, where it is the log's end, are warned of, in the report and by this module's logger.
        """
        reader, known = LogReader.of(config), self._held.copy()
        before = reader.log.end() if reader.clock == "log_end" else None
        now = reader.now() if reader.clock not in ("wall", "log_end") else time.time_ns() // 1000
        report = reader.log.append(rows, idempotency_key=idempotency_key, now=now)
        try:
            self.follow(config, known)
        except FeatureError as error:
            raise FeatureError(
                f"{error}. The events are in the log all the same, and online from the next read on; pushed again with the same ids or key "
                "they count once"
            ) from error
        warnings = moved(reader.log, before) if reader.clock == "log_end" else ()
        for warning in warnings:
            _log.warning("%s", warning)
        return replace(report, warnings=(*report.warnings, *warnings))

    def follow(self, config: Any, known: Mapping[str, int] | None = None) -> int:
        """Bring in what the log holds and the store does not; returns how many events that were. Any number may do so at once.

        known: how far each space was to this process's knowledge before the events came that are to be brought in. What another
        thread brought in since is there, and nothing is asked of the store. A deadline bounds the wait for other threads that do so,
        not the work itself: what was brought in too late for one answer is there for the next.
        """
        log, seconds = LogReader.of(config).log, left()
        if not self._following.acquire(timeout=-1 if seconds is None else seconds):
            raise FeatureError("the online store is being brought up to date with the log, which takes longer than the deadline")
        with until(None), _releasing(self._following):
            while True:
                epoch = log.epoch
                try:
                    with self._lasting(config, log, epoch):
                        return self._follow(config, log, known or {})
                except ZooError:
                    if log.epoch == epoch:  # else it was rewritten meanwhile, and is read as it is now
                        raise

    def _follow(self, config: Any, log: EventLog, known: Mapping[str, int]) -> int:
        state = log.state()
        space, count = self.place(config, log, state.epoch), state.count
        held = began = self._held.get(space.name, -1)
        if held >= count and held > known.get(space.name, held):
            return 0
        if held < 0 or held >= count:  # what this process knows may be out of date either way; a step from it is refused then
            held = began = self._sound(config, log, space, self.load(config, space, {})[1])
        while held < count:
            if count - held > TAIL:
                Bulk(self, config).everything(LogReader.of(config).view())
                reached: int | None = None
            else:
                reached = self._append(config, log, space, held, count)
            held = self.load(config, space, {})[1] if reached is None else reached
        self._held[space.name] = held
        return max(held - began, 0)

    @contextmanager
    def _lasting(self, config: Any, log: EventLog, epoch: int) -> Iterator[None]:
        """What is written of a log that is rewritten meanwhile is removed: whoever forgot somebody may have looked here before."""
        try:
            yield
        finally:
            if log.epoch != epoch:
                self.forget(config, log)

    def _sound(self, config: Any, log: EventLog, space: Space, held: int) -> int:
        """The watermark; 0, and the space is dropped, where it is beyond the log, whose numbers then mean other events by now.

        So it is where a log lost its tail, or was put back from a copy.
        """
        if held <= (count := log.state().count):
            return held
        _log.warning(
            "the online store holds %s events of a log that has %s: the log has lost some. The store is made anew", held, count
        )
        self.drop(config, space)
        return 0

    def _append(self, config: Any, log: EventLog, space: Space, held: int, count: int) -> int | None:
        """Append the log's events from ``held`` to ``count``, at least; returns the watermark, None where another writer has moved it."""
        kept = Retention.of(config)
        wanted = {*_ALWAYS, *(name for reach in kept.reaches.values() for name in reach.columns)}
        names = [name for name in columns_of(log) if name in wanted]
        few = log.few(held, count, names)
        events = encode(log, log.tail(held - 1, names)) if few is None else encode_few(log, few, held)
        whole = max(count, int(events.seq[-1]) + 1 if len(events) else 0)  # the newest events may be forgotten
        for at in range(0, max(len(events), 1), AT_ONCE):
            part = slice(at, at + AT_ONCE)
            time_, seq = events.time[part], events.seq[part]
            frames: list[tuple[str, int, bytes]] = []
            for entity in kept.reaches:
                codes = events.keys(entity)[part]
                order = np.lexsort((seq, time_, codes))
                order = order[codes[order] > 0]
                own = {name: values[part][order] for name, values in kept.columns(entity, events.others(entity)).items()}
                begins = np.flatnonzero(np.diff(codes[order], prepend=0))
                ends = np.append(begins, len(order))[1:]
                columns = {"time": time_[order], "seq": seq[order], **own}
                packed = pack_slices(columns, begins, ends, narrow=len(order) > _FEW * len(begins))
                frames += zip([entity] * len(packed), codes[order][begins].tolist(), packed)
            stop = int(seq[-1]) + 1 if at + AT_ONCE < len(events) else whole
            lengths = self.append(config, space, held, stop, frames)
            if lengths is None:
                return None
            held = self._held[space.name] = stop
            self._compaction.note(config, space, frames, lengths)
        return held

    def materialize(self, config: Any, progress: Progress | None = None) -> dict[str, int]:
        """Copy every entity's recent events from the log; returns entities by kind. Goes on where a killed one stopped.

        What was kept for views that are applied no longer, or for a log that was rewritten since, is removed.
        """
        reader = LogReader.of(config)
        Retention.again(config)
        while True:
            view = reader.view()
            here = self.place(config, view.log, view.epoch)
            try:
                with self._lasting(config, view.log, view.epoch):
                    self._sound(config, view.log, here, self.load(config, here, {})[1])
                    copied = Bulk(self, config).everything(view, progress)
                break
            except ZooError:
                if view.log.epoch == view.epoch:
                    raise
        self.follow(config)
        here = self.space(config, view)
        for other in self.names(config, here.log):
            if other.name != here.name:
                self.drop(config, other)
        return copied

    def forget(self, config: Any, log: EventLog) -> int:
        """Remove what is kept of a log as it was before it was rewritten, down to the bytes; returns how many spaces that were.

        What is kept of the log as it is holds nobody whom it forgot, and is made anew by the next read.
        """
        first = _begins(config, log, log.epoch)
        old = [space for space in self.names(config, log.id) if not space.name.startswith(first)]
        for space in old:
            self.drop(config, space)
        self.erase(config)
        return len(old)
