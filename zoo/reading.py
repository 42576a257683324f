"""An answer's features as the policy has it: fresh from the online store, or, where it does not answer, last known or none."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, FeatureBatch
from zoo.deadline import Threads, anew_in_forks
from zoo.errors import FeatureError, LateError
from zoo.events.given import given_columns
from zoo.features import Features
from zoo.policy import Policy
from zoo.spans import span

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.events.view import LogView
    from zoo.stores.recent import Recent

FRESH, LAST_KNOWN, COLD = "fresh", "last_known", "cold"
BYTES = 64 << 20
"""Of packed events that one ``Remembered`` keeps."""
SHARE = 0.5
"""Of the time left that the store is given, where the policy has an answer without it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """batch: the features. source: object (n,), ``fresh``, ``last_known`` or ``cold``, of each row. recent: the events behind
    them, as the store gave them; None where it was not asked."""

    batch: FeatureBatch
    source: Array
    recent: Recent | None


@dataclass
class Remembered:
    """Packed events of entities as the store gave them last, the newest ``BYTES`` of them. Thread-safe."""

    size: int = BYTES
    _kept: OrderedDict[tuple[str, int], tuple[bytes | None, float]] = field(default_factory=OrderedDict, repr=False)
    _bytes: int = 0
    _of: tuple[str, int] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        anew_in_forks(self)

    def _begin(self) -> None:
        # what a thread was just changing may be half changed
        self._lock, self._kept, self._bytes, self._of = threading.Lock(), OrderedDict(), 0, None

    def note(self, recent: Recent) -> None:
        """Keep what was read. Of a log that was rewritten since, what was kept is dropped: people may be forgotten."""
        now = time.monotonic()
        with self._lock:
            self._turn(recent.view)
            for kind, codes in recent.codes.items():
                for code, value in zip(codes.tolist(), recent.values[kind], strict=True):
                    before = self._kept.pop((kind, code), None)
                    self._bytes += _size(value) - (0 if before is None else _size(before[0]))
                    self._kept[kind, code] = value, now
            while self._bytes > self.size:
                _, (value, _) = self._kept.popitem(last=False)
                self._bytes -= _size(value)

    def since(self, view: LogView, instant: float) -> Callable[[str, int], tuple[bool, bytes | None]]:
        """(whether it is known, its events) of an entity, as read at or after an instant of ``time.monotonic()``."""
        with self._lock:
            self._turn(view)

        def find(kind: str, code: int) -> tuple[bool, bytes | None]:
            with self._lock:
                value, read = self._kept.get((kind, code), (None, -np.inf))
            return (True, value) if read >= instant else (False, None)

        return find

    def _turn(self, view: LogView) -> None:
        log = (view.log.id, view.epoch)
        if self._of != log:
            self._of, self._bytes = log, 0
            self._kept.clear()


def _size(value: bytes | None) -> int:
    return 200 + (0 if value is None else len(value))


@dataclass(frozen=True)
class Reader:
    """Reads one service's features. Thread-safe.

    threads: that ask the store. others: that need no store, so that one which hangs does not keep them.
    """

    features: Features
    service: str
    context: Mapping[str, str]
    policy: Policy
    threads: Threads = field(default_factory=Threads)
    others: Threads = field(default_factory=Threads)
    remembered: Remembered = field(default_factory=Remembered)

    def read(self, rows: Any, at: int | None, instant: float | None = None) -> Read:
        """The features of n rows as of ``at``, by ``instant`` (of ``time.monotonic()``).

        Raises UsageError for rows that cannot be meant; FeatureError or LateError where there are none and the policy refuses, or where
        even what needs no store is late.
        """
        with span("zoo.features", {"zoo.service": self.service}) as part:
            found = self._read(rows, at, instant)
            if part.is_recording():
                part.set_attributes({"zoo.rows": len(found.batch), "zoo.cold_or_last_known": int((found.source != FRESH).sum())})
            return found

    def _read(self, rows: Any, at: int | None, instant: float | None) -> Read:
        if instant is None:
            try:
                return self._fresh(rows, at)
            except FeatureError as error:
                return self._instead(error)(rows, at)
        refuses = self.policy.store == "refuse"
        now = time.monotonic()
        first = instant if refuses else now + SHARE * max(instant - now, 0)
        try:
            return self.threads.within(lambda: self._fresh(rows, at), first, "features were")
        except (FeatureError, LateError) as error:
            instead = self._instead(error)
        return self.others.within(lambda: instead(rows, at), instant, "features were")

    def _fresh(self, rows: Any, at: int | None) -> Read:
        given: list[Recent] = []
        batch = self.features.online(self.service, rows, at, self.context, seen=given.append)
        if self.policy.store == LAST_KNOWN:
            self.remembered.note(given[0])
        return Read(batch, np.full(len(batch), FRESH, object), given[0])

    def _instead(self, error: FeatureError | LateError) -> Callable[[Any, int | None], Read]:
        if self.policy.store == "refuse":
            raise error
        _log.warning("the online store gave no features, so answers are %s: %s", self.policy.store.replace("_", " "), error)
        return self._without_store

    def _without_store(self, rows: Any, at: int | None) -> Read:
        """From what was read last, at most ``last_known_for`` ago, else as if there were no events."""
        known: set[int] = set()
        made: list[Recent] = []
        oldest = time.monotonic() - self.policy.last_known_for

        def values(view: LogView, kind: str, codes: Array) -> list[bytes | None]:
            if self.policy.store == COLD:
                return [None] * len(codes)
            find = self.remembered.since(view, oldest)
            found = [find(kind, code) for code in codes.tolist()]
            if kind == "user_id":
                known.update(code for code, (there, _) in zip(codes.tolist(), found, strict=True) if there)
            return [value for _, value in found]

        batch = self.features.remembered(self.service, rows, at, self.context, values=values, seen=made.append)
        given = given_columns(rows)
        source = np.full(len(batch), COLD, object)
        if known and "user_id" in given:
            source[np.isin(made[0].view.codes("user_id", given["user_id"]), list(known))] = LAST_KNOWN
        return Read(batch, source, made[0])
