"""What answers were made of, kept in one bounded SQLite file of the project, until its people are forgotten."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.deadline import Threads
from zoo.errors import UsageError, ZooError

FILE = "traces.db"
"""In the project's data folder."""
OFTEN = 64
"""Writes between two looks at whether there are too many."""
WAITING = 5_000
"""Traces that wait to be written, beyond which further ones are not kept."""
SOON = 0.05
"""Seconds that a trace waits for others, to be written with them, and for its answer, which would share the interpreter with the write."""
PATIENCE = 5.0
"""Seconds that a write waits for another process's, and that whoever needs the file as it is waits for what is being written."""
_TABLES = """
CREATE TABLE IF NOT EXISTS traces (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, as_of INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS people (person TEXT NOT NULL, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS forgotten (epoch INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS people_person ON people (person);
CREATE INDEX IF NOT EXISTS people_number ON people (number);
"""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trace:
    """One row's answer. as_of: microseconds UTC. people: everyone whom ``body`` names, as the log identifies them. body: JSON-ready,
    what it was made of. epoch: of the log that was read."""

    id: str
    as_of: int
    people: tuple[Any, ...]
    body: Mapping[str, Any]
    epoch: int = 0


@dataclass(frozen=True)
class Traces:
    """The newest ``keep`` traces, at least, in a file. Thread-safe; processes may share it."""

    path: Path
    keep: int

    def begin(self) -> None:
        """Make the file, in which a forgetting before the first trace is noted. Where it cannot be made no trace will be kept either."""
        with suppress(OSError, ZooError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._connected():
                pass

    def add(self, traces: Sequence[Trace]) -> None:
        """Keep traces, soon: a thread writes them. An answer must neither fail nor wait for its trace: what goes wrong is logged."""
        try:
            kept, why = _writer(self.path).put(self, traces), f"{WAITING} wait to be written already"
        except RuntimeError as error:  # no thread can be begun
            kept, why = False, str(error)
        if not kept:
            _log.warning("%d traces are not kept in %s: %s", len(traces), self.path, why)

    def flush(self, seconds: float = PATIENCE) -> bool:
        """Wait for what was added in this process to be written; whether it is."""
        return _writer(self.path).flush(seconds)

    def _write(self, traces: Sequence[Trace], trim: bool) -> None:
        rows = [(each, body) for each in traces if (body := _body(each)) is not None]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._connected() as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                (epoch,) = connection.execute("SELECT coalesce(max(epoch), 0) FROM forgotten").fetchone()
                for each, body in rows:
                    if each.epoch < epoch:  # read before somebody was forgotten, who may be in it
                        continue
                    row = each.id, each.as_of, body
                    number = connection.execute("INSERT INTO traces (id, as_of, body) VALUES (?, ?, ?)", row).lastrowid
                    people = {(_person(person), number) for person in each.people}
                    connection.executemany("INSERT INTO people VALUES (?, ?)", people)
                if trim:
                    (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM traces").fetchone()
                    connection.execute("DELETE FROM traces WHERE number <= ?", (last - self.keep,))
                    connection.execute("DELETE FROM people WHERE number <= ?", (last - self.keep,))
        except Exception as error:  # noqa: BLE001 - nobody waits for this thread
            _log.warning("%d traces are not kept in %s: %s", len(traces), self.path, error)

    def find(self, id: str) -> Mapping[str, Any]:
        """The body of an answer's trace. Raises UsageError where none is kept."""
        self.flush()
        if self.path.exists():
            with self._connected() as connection:
                found = connection.execute("SELECT body FROM traces WHERE id = ?", (id,)).fetchone()
            if found is not None:
                body: dict[str, Any] = json.loads(found[0])
                return body
        raise UsageError(
            f"no trace of the answer {id!r} in {self.path}: it was given by another project or before [traces] was set in zoo.toml, "
            "newer ones took its place, or its user was forgotten"
        )

    def forget(self, people: Iterable[Any] | None, epoch: int = 0) -> int:
        """Remove every trace that names one of these people, as the log identifies them, or (None) all, down to the bytes.

        epoch: of the log without them; what was read before is not kept any longer. Returns how many were removed. Raises ZooError where
        the file cannot be used.
        """
        if not self.flush():
            raise ZooError(f"the traces in {self.path} are still being written after {PATIENCE:g} seconds; run the same again")
        if not self.path.exists():
            return 0
        with self._connected() as connection:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                if people is None:
                    gone = connection.execute("SELECT number FROM traces").fetchall()
                else:
                    gone = [(number,) for number in self._named(connection, people)]
                connection.executemany("DELETE FROM traces WHERE number = ?", gone)
                connection.executemany("DELETE FROM people WHERE number = ?", gone)
                connection.execute("INSERT INTO forgotten VALUES (?)", (epoch,))
            connection.execute("VACUUM")
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:  # what is removed still stands in the write-ahead log
                raise ZooError(f"the traces in {self.path} are being read by another process; run the same again")
        return len(gone)

    @staticmethod
    def _named(connection: sqlite3.Connection, people: Iterable[Any]) -> set[int]:
        return {
            number
            for person in people
            for (number,) in connection.execute("SELECT number FROM people WHERE person = ?", (_person(person),))
        }

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        # one connection a call: a kept one would have to know threads and forks
        try:
            os.close(
                os.open(self.path, os.O_RDONLY | os.O_CREAT, 0o600)
            )  # personal data; SQLite gives its other files the same mode
        except OSError as error:
            raise ZooError(f"the traces in {self.path} cannot be used: {error.strerror or error}") from error
        try:
            with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as connection:
                for setting in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
                    connection.execute(f"PRAGMA {setting}")
                connection.executescript(_TABLES)
                yield connection
        except sqlite3.Error as error:
            raise ZooError(f"the traces in {self.path} cannot be used: {error}. Remove the file to begin anew") from error


class _Writer:
    """What waits to be written to one file, and the thread that writes it."""

    def __init__(self) -> None:
        self._lock, self._threads = threading.Lock(), Threads(most=1)
        self._waiting: list[Trace] = []
        self._hurry = threading.Event()
        self._done: Future[None] | None = None
        self._writes = 0

    def put(self, to: Traces, traces: Sequence[Trace]) -> bool:
        """Whether they will be written: there is room for them. Raises RuntimeError where no thread can be begun, and keeps none."""
        with self._lock:
            if len(self._waiting) + len(traces) > WAITING:
                return False
            if not self._waiting:
                self._hurry.clear()
                self._done = self._threads.submit(lambda: self._write(to))
            self._waiting += traces
            return True

    def flush(self, seconds: float) -> bool:
        with self._lock:
            done = self._done  # the newest write: what waits is in it, and those before it are over by then
            self._hurry.set()
        try:
            if done is not None:
                done.result(seconds)
        except TimeoutError:
            return False
        return True

    def _write(self, to: Traces) -> None:
        self._hurry.wait(SOON)
        with self._lock:
            traces, self._waiting = self._waiting, []
        to._write(traces, trim=self._writes % OFTEN == 0 or len(traces) >= OFTEN)
        self._writes += 1


_writers: dict[str, _Writer] = {}
_lock = threading.Lock()


def _writer(path: Path) -> _Writer:
    """The file's in this process."""
    name = os.path.realpath(path)
    with _lock:
        if name not in _writers:
            _writers[name] = _Writer()
        return _writers[name]


def _anew() -> None:
    # a fork's child has no thread of its parent's, and what waited there is written there
    global _lock
    _lock = threading.Lock()
    _writers.clear()


def _flush() -> None:
    for each in [*_writers.values()]:
        each.flush(PATIENCE)


os.register_at_fork(after_in_child=_anew)
atexit.register(_flush)


def _body(trace: Trace) -> str | None:
    try:
        return json.dumps(trace.body, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        _log.warning("the trace %s is not kept: %s", trace.id, error)
        return None


def _person(person: Any) -> str:
    """1 and "1" are two."""
    return json.dumps(person)
