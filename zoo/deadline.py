"""Until when an answer is waited for, and threads whose work may be given up. Standard library only."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from zoo.errors import LateError, UsageError

T = TypeVar("T")
MOST = 64
"""Threads of one pool; further work waits for one."""
LONGEST = 86_400.0
"""Seconds that a deadline may be away: nobody waits longer, and no lock or socket can for ever."""
IDLE = 30.0
"""Seconds after which a thread without work ends: pools come and go with the versions that a service swaps."""
_until: ContextVar[float | None] = ContextVar("zoo_deadline", default=None)


def from_now(seconds: float | None) -> float | None:
    """The instant, of ``time.monotonic()``, so many seconds from now. Raises UsageError for a deadline that cannot be meant."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST:
        raise UsageError(
            f"deadline is {seconds!r}; expected seconds from now, more than 0 and at most {LONGEST:g}; None for any time"
        )
    return time.monotonic() + seconds


def left() -> float | None:
    """Seconds until the deadline of this thread's work, at least 0; None where there is none."""
    until = _until.get()
    return None if until is None else max(until - time.monotonic(), 0.0)


@contextmanager
def until(instant: float | None) -> Iterator[None]:
    """Work in this block has to be done at an instant of ``time.monotonic()``, or, with None, whenever it is."""
    token = _until.set(instant)
    try:
        yield
    finally:
        _until.reset(token)


_begun: WeakValueDictionary[int, Any] = WeakValueDictionary()


def anew_in_forks(owner: Any) -> None:
    """Have ``owner._begin()`` called in every child of a fork, where its locks may be held by threads that are no more."""
    _begun[id(owner)] = owner


def _after_fork() -> None:
    for owner in [*_begun.values()]:
        owner._begin()


os.register_at_fork(after_in_child=_after_fork)


class Threads:
    """Runs work in threads that nobody has to wait for: one that hangs keeps neither its caller nor the end of the process.

    ``concurrent.futures`` waits for every thread at the end. A child of a fork, which has no thread of its parent's, starts its own.
    """

    def __init__(self, most: int = MOST, idle: float = IDLE) -> None:
        self._most, self._patience = most, idle
        self._begin()
        anew_in_forks(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        # not a SimpleQueue: where another thread takes what it was woken for after its time, CPython's waits for ever
        self._work: queue.Queue[tuple[Future[Any], Callable[[], Any]]] = queue.Queue()
        self._threads = 0
        self._free = 0  # threads that wait for work, less the work that waits for a thread

    def submit(self, work: Callable[[], T], instant: float | None = None) -> Future[T]:
        """Begin the work, in the caller's context and under this deadline; its answer, or its exception, is the future's.

        Raises RuntimeError where no thread can be begun; nothing of it is left then.
        """
        context, future = copy_context(), Future[T]()

        def run() -> T:
            with until(instant):
                return work()

        with self._lock:
            if self._free <= 0 and self._threads < self._most:
                threading.Thread(target=self._run, name="zoo-answer", daemon=True).start()
                self._threads += 1  # last: one that cannot be begun (RuntimeError) is none
                self._free += 1
            self._free -= 1
        self._work.put((future, lambda: context.run(run)))
        return future

    def within(self, work: Callable[[], T], instant: float, what: str) -> T:
        """The answer of work that is done by the instant. Raises LateError naming ``what`` where it is not; its thread goes on."""
        future = self.submit(work, instant)
        try:
            return future.result(max(instant - time.monotonic(), 0))
        except TimeoutError:
            future.cancel()
            raise LateError(f"{what} not there by the deadline") from None

    async def answer(self, work: Callable[[], T]) -> T:
        """The answer of work, for an event loop. Where whoever waits is cancelled, work that was not begun is not done."""
        import asyncio  # which the commands that import this module need not pay for

        return await asyncio.wrap_future(self.submit(work))

    def _run(self) -> None:
        while True:
            try:
                future, work = self._work.get(timeout=self._patience)
            except queue.Empty:
                with self._lock:
                    if self._free > 0:  # else work that is just being put counts on this thread
                        self._free -= 1
                        self._threads -= 1
                        return
                continue
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - whoever waits for the future is told
                    future.set_exception(error)
            del future, work  # an answer that nobody holds is not kept by a thread that waits
            with self._lock:
                self._free += 1
