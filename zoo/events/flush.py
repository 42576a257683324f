"""Moving the tail's segments into the log's Delta tables, each exactly once, whoever dies when."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from zoo.events.beside import Beside, DiedError
from zoo.events.lock import BusyError
from zoo.events.tail import TAKEN

if TYPE_CHECKING:
    from zoo.events.log import EventLog

ROWS = 50_000
"""Events in the tail from which they are moved at once."""
AGE = 10.0
"""Seconds after which they are moved however few they are."""
GRACE = 3.0
"""Seconds that the process is given to end what it is at when the log is closed: under load it may need long, and what it has not moved
by then is as durable where it is."""
AGAIN = 1.0
"""Seconds after which it is tried again while another writer is at work, or after the process that does it has died."""

_log = logging.getLogger(__name__)


def move(log: EventLog) -> int:
    """Move what is in the tail; returns how many events that were. The caller holds the writer lock.

    What is there is copied into Delta, then removed. Killed in between, the next call does the rest.
    """
    moved = copy(log)
    remove(log)
    return moved


def copy(log: EventLog) -> int:
    """Copy what is in the tail into Delta, whence readers take it from then on; returns how many events that were.

    Bad rows and codes go first, each table noting how far it came; then the events, in one commit that says up to which segment. The
    caller holds the writer lock.
    """
    tail = log.tail_file
    state = log.state()
    segments = tail.pending(state.taken)
    moved = 0
    if segments:
        last = segments[-1].id
        log.quarantine.take([row for row in tail.rejected() if row[0] <= last], last)
        log.dictionaries.settle([code[1:] for code in tail.given(state.taken) if code[0] <= last])
        with log.start() as files:
            for tables in _together(tail.pieces(segments[0].first, segments[-1].first + segments[-1].rows)):
                files.add(pa.concat_tables(tables))
            moved = files.rows
            log.finish(files, {**{s.key: s.taken or 0 for s in segments if s.key is not None}, TAKEN: last})
    return moved


def remove(log: EventLog) -> None:
    """Remove from the tail what Delta holds. Pushes go on, and whoever else does the same at once does no harm."""
    taken, tail = log.state().taken, log.tail_file
    if tail.segments and tail.segments[0].id <= taken:
        tail.drop(taken)


def _together(pieces: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    """Tables, as many together as are worth a row group. Whoever pushes meanwhile goes first."""
    held: list[pa.Table] = []
    for piece in pieces:
        time.sleep(0)
        held.append(piece)
        if sum(map(len, held)) >= ROWS:
            yield held
            held = []
    if held:
        yield held


class Flusher:
    """A thread of the pushing process that has the tail moved when it is long or old, and ends when nothing was pushed for a while.

    A process beside this one copies (``zoo.events.beside``): its work would hold up pushes from within their interpreter. What it copied
    is removed here, a little at a time: pushes wait for whoever removes, who must not wait for the processor behind others.
    """

    def __init__(self, log: EventLog) -> None:
        self._of = weakref.ref(log)
        self._root = log.root
        self._wake = threading.Event()
        self._over = threading.Event()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._beside = Beside(log.root)
        weakref.finalize(log, self.stop)

    def poke(self, pending: int) -> None:
        """Tell how many events are in the tail."""
        if pending >= ROWS:
            self._wake.set()
        with self._guard:
            if self._thread is None and pending:
                self._over, self._beside = threading.Event(), Beside(self._root)
                work = self._over, self._beside
                self._thread = threading.Thread(target=self._run, args=work, name="zoo-flusher", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread and its process, and wait for what they move; the rest stays durable in the tail. A later push starts others.

        A process that does not end within ``GRACE`` is killed: what it is at may hang, as a disk behind a network does.
        """
        with self._guard:
            thread, self._thread, beside = self._thread, None, self._beside
            self._over.set()
            self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(GRACE)
            while thread.is_alive():
                beside.kill()
                thread.join(1.0)
        self._wake.clear()

    def _run(self, over: threading.Event, beside: Beside) -> None:
        with beside:
            due = time.monotonic() + AGE
            while not over.is_set():
                self._wake.wait(max(due - time.monotonic(), 0))
                self._wake.clear()
                log = self._of()
                if log is None or over.is_set():
                    return
                due = time.monotonic() + AGE
                try:
                    with self._guard:
                        if not log.state().pending:
                            self._thread = None
                            return
                    beside.copy()
                    remove(log)
                except BusyError:
                    due = time.monotonic() + AGAIN
                except DiedError as error:
                    if over.is_set():  # killed by ``stop``
                        return
                    _log.warning("%s; nothing of the log's tail is lost, and another process is started", error)
                    due = time.monotonic() + AGAIN
                except Exception as error:  # noqa: BLE001 - whatever it is, nothing is lost, and the next round tries again
                    _log.warning("the log's tail is not moved yet, and nothing of it is lost: %s", error)
                del log
