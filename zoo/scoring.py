"""The members' scores of one batch by a deadline: who failed, was late or gave no number is lost, and said to be."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from zoo.contract import Array, FeatureBatch, Target
from zoo.deadline import Threads, anew_in_forks, left
from zoo.errors import PluginError
from zoo.events.given import distinct
from zoo.fitting import checked
from zoo.spans import failed, span
from zoo.stacking import Ensemble, Fitted

STUCK = 4
"""Calls of a member that were given up and still run, from which on it is not asked: it has enough threads."""
EACH = 16
"""Calls of one member at a time: further ones wait for these, and one that hangs takes no other's threads."""
Numbers = tuple[Array, Array]
"""A member's scores (n, k), and bool (n,): which rows' are finite."""
BETWEEN_STEPS: ContextVar[Callable[[], None]] = ContextVar("zoo.between_steps", default=lambda: None)
"""Called by ``Scorer.ask`` before each member is asked and after the last: a service lets others have the interpreter then."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """scores: float32 (n, m, k), 0 where lost. lost: bool (n, m). why: lost member -> "failed", "late" or "no number"."""

    scores: Array
    lost: Array
    why: Mapping[str, str]


@dataclass
class Scorer:
    """Asks an ensemble's members: in this thread, or, where there is a deadline, each in one of its own. Thread-safe.

    threads: for what needs all members at once, as lists do.
    """

    threads: Threads = field(default_factory=Threads)
    _own: dict[str, Threads] = field(default_factory=dict, repr=False)
    _stuck: dict[str, int] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        anew_in_forks(self)

    def _begin(self) -> None:
        self._lock, self._stuck = threading.Lock(), {}

    def ask(self, ensemble: Ensemble, batch: FeatureBatch, instant: float | None = None) -> Scores:
        """Scores of a batch in the log's codes, by ``instant`` (of ``time.monotonic()``)."""
        target, members = ensemble.target, ensemble.members
        known = ensemble.vocabulary.apply(batch)
        scores = np.zeros((len(batch), len(members), target.width), np.float32)
        lost = np.zeros((len(batch), len(members)), bool)
        why: dict[str, str] = {}

        def work(member: Fitted) -> Callable[[], Numbers]:
            def call() -> Numbers:
                with span("zoo.member", {"zoo.member": member.name, "zoo.rows": len(batch)}) as part:
                    found, good = _finite(_once(member, known.select(member.inputs)), len(batch), target, member.name)
                    if left() == 0:
                        failed(part, "late")
                    elif not good.all():
                        failed(part, "no number")
                    return found, good

            return call

        asked: list[Callable[[], Numbers]] = [work(member) for member in members]
        if instant is not None:
            asked = [self._begun(member.name, call, instant) for member, call in zip(members, asked, strict=True)]
        between_steps = BETWEEN_STEPS.get()
        for at, (member, answer) in enumerate(zip(members, asked, strict=True)):
            between_steps()
            try:
                found, good = answer()
            except TimeoutError:
                why[member.name], lost[:, at] = "late", True
                continue
            except (Exception, SystemExit):  # noqa: BLE001 - a member may fail in any way, and the others have an answer
                _log.exception("member %s failed, and answers are given without it", member.name)
                why[member.name], lost[:, at] = "failed", True
                continue
            if good.all():
                scores[:, at] = found
            else:
                scores[good, at] = found[good]
                why[member.name], lost[:, at] = "no number", ~good
        between_steps()
        return Scores(scores, lost, why)

    def _begun(self, name: str, call: Callable[[], Numbers], instant: float) -> Callable[[], Numbers]:
        """What waits for the call, begun in a thread, until the instant; TimeoutError then."""
        with self._lock:
            if self._stuck.get(name, 0) >= STUCK:
                return _too_late
            if name not in self._own:
                self._own[name] = Threads(most=EACH)
            threads = self._own[name]
        future = threads.submit(call, instant)

        def wait() -> Numbers:
            try:
                return future.result(max(instant - time.monotonic(), 0))
            except TimeoutError:
                if not future.done():
                    self._give_up(name, future)
                raise

        return wait

    def _give_up(self, name: str, future: Future[Numbers]) -> None:
        with self._lock:
            self._stuck[name] = self._stuck.get(name, 0) + 1

        def ended(_: Future[Numbers]) -> None:
            with self._lock:
                self._stuck[name] -= 1

        future.cancel()  # where it has not begun
        future.add_done_callback(ended)


def _once(member: Fitted, batch: FeatureBatch) -> Array:
    """A member's scores; rows that are alike in all that it reads (a user's, beside many candidates) are asked about once."""
    read = [batch.row_of[entity] for entity, block in batch.blocks.items() if block]
    if len(batch) < 2 or not read:
        return np.asarray(member.fitted.predict(batch))
    first, which = distinct([*read, batch.as_of])
    if first is None or len(first) == len(batch):
        return np.asarray(member.fitted.predict(batch))
    found = np.asarray(member.fitted.predict(batch.take(first)))
    if found.shape[:1] != (len(first),):  # which spreading would hide
        raise PluginError(f"{member.name} returned shape {found.shape} for {len(first)} rows; expected a score a row")
    return found[which]


def _finite(scores: Array, rows: int, target: Target, who: str) -> Numbers:
    """(the scores, bool (n,): which rows have numbers). Raises PluginError where they are not what the contract says beside that."""
    good: Array = np.ones(len(scores), bool)
    if scores.shape == (rows, target.width):
        good &= np.isfinite(scores).all(axis=1)
    some = scores if good.all() else scores[good]
    checked(some, rows - int((~good).sum()), target, who)
    return scores, good


def _too_late() -> Numbers:
    raise TimeoutError
