"""Predictions that are asked for at the same time are computed together: features of all are read at once, each member is asked once.

Nobody waits for company: a request that comes while nothing is computed begins at once, and what comes meanwhile is the next batch. One
thread computes, for several would only take turns; another begins where it takes long.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.deadline import Threads, from_now
from zoo.errors import FeatureError, LateError
from zoo.predictor import Predictor
from zoo.scoring import BETWEEN_STEPS
from zoo.spans import span

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
ROWS = 64
"""Of one batch. A request with more is computed alone, in a thread apart; short ones do not wait for it."""
PATIENCE = 0.05, 0.25
"""Seconds, at least and at most, that a request waits for those that are computed, before another thread begins: what hangs must not keep
the rest. In between it is twice what batches take, for two that are computed at once take turns and are both late; and never more than half
of what a request's deadline leaves."""
MOST = 16
"""Threads that compute, hanging ones among them."""
TURN = 0.016
"""Seconds, at most, that the event loop gives way to a batch at once, see ``Batches.give_way``."""
ROUND = 0.005
"""Seconds, at most, that a batch waits for the event loop to come round, see ``Batches.offer``."""
APART = 2.0
"""How many times as long as the most urgent of a batch, by whose deadline all are answered, the most patient may have left."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One request's rows. at: microseconds UTC or a datetime. instant: of ``time.monotonic()``, by which it has to be answered.

    render: makes the answer of its rows and of the time, microseconds UTC, that they were answered for (None without rows).
    """

    predictor: Predictor
    table: pa.Table
    at: Any
    instant: float | None
    render: Callable[[list[dict[str, Any]], int | None], Any]
    future: Future[Any] = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)


class Batches:
    """What waits to be predicted, and the threads that do it. Thread-safe.

    A batch holds requests for one loaded version, as of one time (now, or the same instant), with the same columns, in the order in which
    they came. Each row's answer is what it would be alone, within the rounding of float32. A request that cannot be meant fails alone.
    """

    def __init__(
        self,
        apart: Threads | None = None,
        rows: int = ROWS,
        patience: tuple[float, float] = PATIENCE,
        most: int = MOST,
        turn: float = TURN,
    ) -> None:
        """apart: threads for requests of many rows; by default its own."""
        self._apart = apart or Threads(most)
        self._rows, self._patience, self._most, self._turn = rows, patience, most, turn
        self._usual = 0.0  # seconds that a batch takes, smoothed
        self._waiting: deque[Asked] = deque()
        self._busy, self._lock, self._threads = 0, threading.Lock(), Threads(most)
        self._began, self._standing = 0.0, False
        self._offered, self._round = threading.Event(), threading.Event()

    async def predict(
        self,
        predictor: Predictor,
        rows: Any,
        render: Callable[[list[dict[str, Any]], int | None], T],
        *,
        users: Sequence[Any] | None = None,
        at: Any = None,
        deadline: float | None = None,
    ) -> T:
        """``render`` of the rows that ``predictor.predict`` answers with and of their time, in a thread. Arguments and errors as there."""
        table, instant = predictor.rows(rows, users), from_now(deadline)
        asked = Asked(predictor, table, at, instant, render)
        if len(table) > self._rows:
            return await self._apart.answer(lambda: _alone(asked))
        with self._lock:
            self._waiting.append(asked)
        timer = None
        try:
            if not self._begin(1):
                timer = asyncio.get_running_loop().call_later(self._wait(instant), self._begin, self._most, asked)
            found: T = await asyncio.wrap_future(asked.future)
        finally:
            asked.future.cancel()  # where it did not come to an answer, nobody waits for one
            if timer is not None:
                timer.cancel()
        return found

    def give_way(self) -> None:
        """Called by the event loop under overload: leave the interpreter to a batch until it comes to the end of a step, at most for
        ``TURN`` seconds, and then have it wait while the loop comes round once.

        Each request that is read while a batch is computed makes two threads change over, which costs more than to refuse it. A network
        card under load, likewise, interrupts its processor once for many packets.
        """
        self._round.set()
        if not self._busy or time.monotonic() - self._began >= self._patience[1]:  # what hangs has no use for it
            return
        self._offered.clear()
        self._standing = True
        if self._offered.wait(self._turn):
            asyncio.get_running_loop().call_soon(self._round.set)  # after what was read in between
        self._standing = False

    def offer(self) -> None:
        """Called by a thread that computes, between steps: where the event loop gave way, wait until it came round, at most ``ROUND``."""
        if self._standing:
            self._round.clear()
            self._offered.set()
            self._round.wait(ROUND)

    def _wait(self, instant: float | None) -> float:
        """Seconds until another thread begins for the sake of a request that has to be answered by ``instant``."""
        least, longest = self._patience
        usual = min(max(least, 2 * self._usual), longest)
        return usual if instant is None else min(usual, max(instant - time.monotonic(), 0.0) / 2)

    def _begin(self, most: int, asked: Asked | None = None) -> bool:
        """Have one more thread compute, where fewer than ``most`` do; for the sake of this request, where it still waits."""
        with self._lock:
            if self._busy >= most or (asked is not None and asked not in self._waiting):
                return False
            self._busy += 1
        try:
            self._threads.submit(self._work)
        except RuntimeError:  # no thread can be begun
            with self._lock:
                self._busy -= 1
            raise
        return True

    def _work(self) -> None:
        """Compute until nobody waits."""
        while batch := self._next():
            began = self._began = time.monotonic()
            batch[0].context.run(self._compute, batch)
            self.offer()
            self._usual += (time.monotonic() - began - self._usual) / 8

    def _compute(self, batch: list[Asked]) -> None:
        BETWEEN_STEPS.set(self.offer)
        _answer(batch)

    def _next(self) -> list[Asked]:
        """The one that came first and what can be computed with it; without any, this thread is no longer busy."""
        with self._lock:
            batch: list[Asked] = []
            others: deque[Asked] = deque()
            size = 0
            now = time.monotonic()
            while self._waiting and size < self._rows:
                asked = self._waiting.popleft()
                if size + len(asked.table) <= self._rows and (not batch or _together(batch, asked, now)):
                    if asked.future.set_running_or_notify_cancel():
                        batch.append(asked)
                        size += len(asked.table)
                else:
                    others.append(asked)
            self._waiting.extendleft(reversed(others))
            if not batch:
                self._busy -= 1
            return batch


def _together(batch: list[Asked], asked: Asked, now: float) -> bool:
    """Whether a request may be computed with these."""
    first = batch[0]
    if first.predictor is not asked.predictor or first.at != asked.at or not first.table.schema.equals(asked.table.schema):
        return False
    given = [each.instant for each in (*batch, asked) if each.instant is not None]
    if not given:
        return True
    return len(given) == len(batch) + 1 and max(given) - now <= APART * (min(given) - now)


def _answer(batch: list[Asked]) -> None:
    """Give each request of a batch what it asked for, or why it has none."""
    if len(batch) == 1:
        _told(batch[0], lambda: _alone(batch[0]))
        return
    import pyarrow as pa

    first = batch[0]
    try:
        with span("zoo.batch", {"zoo.requests": len(batch)}):
            rows, at = _predicted(first.predictor, pa.concat_tables([each.table for each in batch]), first.at, _earliest(batch))
    except (FeatureError, LateError) as error:  # of what all share
        for each in batch:
            each.future.set_exception(error)
        return
    except Exception:  # noqa: BLE001 - whose fault it is shows when each is computed alone
        for each in batch:
            _told(each, lambda each=each: _alone(each))  # type: ignore[misc]
        return
    begin = 0
    for each in batch:
        end = begin + len(each.table)
        _told(each, lambda each=each, own=rows[begin:end]: each.render(own, at))  # type: ignore[misc]
        begin = end


def _alone(asked: Asked) -> Any:
    return asked.render(*_predicted(asked.predictor, asked.table, asked.at, asked.instant))


def _predicted(predictor: Predictor, table: pa.Table, at: Any, instant: float | None) -> tuple[list[dict[str, Any]], int | None]:
    deadline = None if instant is None else instant - time.monotonic()
    if deadline is not None and deadline <= 0:
        raise LateError("the deadline passed before work on this began")
    found = predictor.answer(table, at=at, deadline=deadline)
    return found.rows, found.at


def _earliest(batch: list[Asked]) -> float | None:
    return min((each.instant for each in batch if each.instant is not None), default=None)


def _told(asked: Asked, work: Callable[[], Any]) -> None:
    try:
        asked.future.set_result(work())
    except Exception as error:  # noqa: BLE001 - whoever waits is told
        asked.future.set_exception(error)
