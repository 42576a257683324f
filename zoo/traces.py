"""What answers were made of, kept in one bounded SQLite file of the project, until its people are forgotten."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import UsageError, ZooError

FILE = "traces.db"
"""In the project's data folder."""
OFTEN = 64
"""Writes between two looks at whether there are too many."""
_TABLES = """
CREATE TABLE IF NOT EXISTS traces (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, as_of INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS people (person TEXT NOT NULL, number INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS people_person ON people (person);
CREATE INDEX IF NOT EXISTS people_number ON people (number);
"""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trace:
    """One row's answer. as_of: microseconds UTC. people: everyone whom ``body`` names. body: JSON-ready, what it was made of."""

    id: str
    as_of: int
    people: tuple[Any, ...]
    body: Mapping[str, Any]


@dataclass
class Traces:
    """The newest ``keep`` traces, at least, in a file. Thread-safe; processes may share it."""

    path: Path
    keep: int
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _writes: int = 0

    def add(self, traces: Sequence[Trace]) -> None:
        """Keep traces. An answer must not fail for its trace: what goes wrong is logged."""
        rows = [(each.id, each.as_of, json.dumps(each.body, allow_nan=False, separators=(",", ":"))) for each in traces]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, self._connected() as connection, connection:
                for each, row in zip(traces, rows, strict=True):
                    number = connection.execute("INSERT INTO traces (id, as_of, body) VALUES (?, ?, ?)", row).lastrowid
                    people = {(_person(person), number) for person in each.people}
                    connection.executemany("INSERT INTO people VALUES (?, ?)", people)
                if self._writes % OFTEN == 0 or len(traces) >= OFTEN:
                    (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM traces").fetchone()
                    connection.execute("DELETE FROM traces WHERE number <= ?", (last - self.keep,))
                    connection.execute("DELETE FROM people WHERE number <= ?", (last - self.keep,))
                self._writes += 1
        except (ZooError, OSError) as error:
            _log.warning("%d traces are not kept in %s: %s", len(traces), self.path, error)

    def find(self, id: str) -> Mapping[str, Any]:
        """The body of an answer's trace. Raises UsageError where none is kept."""
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

    def forget(self, people: Iterable[Any] = (), before: int | None = None) -> int:
        """Remove every trace that names one of these people, or of answers as of an instant before this one, down to the bytes.

        Returns how many. Raises ZooError where the file cannot be used.
        """
        if not self.path.exists():
            return 0
        with self._lock, self._connected() as connection:
            with connection:
                gone = [(number,) for number in self._named(connection, people)]
                if before is not None:
                    gone += connection.execute("SELECT number FROM traces WHERE as_of < ?", (before,)).fetchall()
                connection.executemany("DELETE FROM traces WHERE number = ?", gone)
                connection.executemany("DELETE FROM people WHERE number = ?", gone)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
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
            with closing(sqlite3.connect(self.path, timeout=5)) as connection:
                for setting in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
                    connection.execute(f"PRAGMA {setting}")
                connection.executescript(_TABLES)
                yield connection
        except sqlite3.Error as error:
            raise ZooError(f"the traces in {self.path} cannot be used: {error}. Remove the file to begin anew") from error


def _person(person: Any) -> str:
    """1 and "1" are two."""
    return json.dumps(person)
