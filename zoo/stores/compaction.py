"""Making one frame of an entity's many, beside the pushes that append them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.stores.frames import index_of
from zoo.stores.packing import Change, pack_slices
from zoo.stores.reader import LogReader
from zoo.stores.retention import Retention

if TYPE_CHECKING:
    from zoo.stores.online import EventOnlineStore
    from zoo.stores.recent import Key, Space

_CROWDED = 8192
"""An entity's frames are worth making one each time that its bytes pass a multiple of this by a smaller frame."""
_LONG = 1 << 20
"""As ``_CROWDED``, for frames that are not smaller than that: it is what bounds an entity whose events come in large batches."""
_WAITING = 128
"""Entities that may wait to be compacted; one more, or one that is due again, is compacted by the push that made it so."""
_TOGETHER = 4
"""Entities that are compacted in one step: about a millisecond in which a push waits for the interpreter."""
_PAUSE = 0.005
"""Seconds between two steps, in which pushes go on."""

_log = logging.getLogger(__name__)


class Compaction:
    """The entities of one store that are due, and the thread that compacts them a few at a time; it ends when fewer are due."""

    def __init__(self, store: EventOnlineStore, following: Any) -> None:
        """following: the lock that whoever appends to the store holds."""
        self._store, self._following = store, following
        self._lock = threading.Lock()
        self._due: dict[tuple[str, Key], tuple[Any, Space]] = {}
        self._running = False

    def note(self, config: Any, space: Space, frames: Sequence[tuple[str, int, bytes]], lengths: Sequence[int]) -> None:
        """Tell what was appended, and how long the values are with it. The caller holds ``following``."""
        found = [(space.name, (entity, code)) for (entity, code, frame), n in zip(frames, lengths) if _crowds(len(frame), n)]
        if not found:
            return
        now: list[tuple[str, Key]] = []
        with self._lock:
            for key in found:
                if self._due.pop(key, None) is not None or len(self._due) >= _WAITING:
                    now.append(key)
                else:
                    self._due[key] = config, space
            begin = len(self._due) >= _TOGETHER and not self._running
            self._running |= begin
        if begin:
            threading.Thread(target=self._run, name="zoo-compaction").start()
        if now:
            compact(self._store, config, space, [key for _, key in now])

    def _run(self) -> None:
        while True:
            with self._lock:
                if len(self._due) < _TOGETHER:
                    self._running = False
                    return
                due = {key: self._due.pop(key) for key in list(self._due)[:_TOGETHER]}
            try:
                self._step(due)
            except Exception as error:  # noqa: BLE001 - whatever it is, the values are whole, and are due again when they have grown
                _log.warning("recent events online are in more pieces than they need be: %s", error)
            time.sleep(_PAUSE)

    def _step(self, due: Mapping[tuple[str, Key], tuple[Any, Space]]) -> None:
        spaces: dict[str, tuple[Any, Space, list[Key]]] = {}
        for (name, key), (config, space) in due.items():
            spaces.setdefault(name, (config, space, []))[2].append(key)
        for config, space, keys in spaces.values():
            failed = compact(self._store, config, space, keys)
            if failed:  # of these there are pushes all the time
                with self._following:
                    compact(self._store, config, space, failed)


def compact(store: EventOnlineStore, config: Any, space: Space, keys: Sequence[Key]) -> list[Key]:
    """Make one frame of each entity's, without what no view reaches back to; returns those left as they are, as a writer came between."""
    reader = LogReader.of(config)
    view, now = reader.view(), reader.now()
    codes = {
        entity: np.array([code for e, code in keys if e == entity], np.int32) for entity in dict.fromkeys(e for e, _ in keys)
    }
    values, _ = store.load(config, space, codes)
    failed: list[Key] = []
    for entity, found in values.items():
        there = [(int(code), value) for code, value in zip(codes[entity], found) if value is not None]
        index, since = index_of([value for _, value in there], {}, view.facts())
        own = np.arange(2, len(there) + 2, dtype=np.int32)
        low, cut = Retention.of(config).bounds(entity, view.evaluator_of(index), *index.bounds(own), now)
        columns = {"time": index.time, "seq": index.seq, **index.columns}
        packed = pack_slices(columns, low, index.bounds(own)[1], np.maximum(since, cut))
        change = Change(entity, [code for code, _ in there], [value for _, value in there], packed)
        failed += [(entity, there[i][0]) for i in store.exchange(config, space, change) or ()]
    return failed


def _crowds(added: int, length: int) -> bool:
    """Whether a value of this length is worth making one frame of, after so many bytes of it were appended."""
    step = _CROWDED if added < _CROWDED else _LONG
    return added < length and length // step != (length - added) // step
