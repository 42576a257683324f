"""The write-ahead tail: pushes that are durable and not in the Delta tables yet, in one SQLite file beside them.

A push is one segment, and all that came of it carries the segment's number: its rows, the codes of identifiers that it brought and the
rows that it could not bring. The log's Delta tables say how far they have taken segments over (``TAKEN``), so a reader that looks at
the tail first and at Delta second sees each of them once, whoever dies when.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from zoo.errors import ZooError
from zoo.events.few import Few
from zoo.events.lock import file_lock
from zoo.events.segments import Rows, Segment, packed, unpacked

TAKEN = "tail"
"""Application transaction of a Delta table: the last segment that it has taken over."""
_TABLES = """
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL, rows INTEGER NOT NULL, end INTEGER, at INTEGER NOT NULL,
    key TEXT, taken INTEGER, body BLOB
);
CREATE TABLE IF NOT EXISTS codes (segment INTEGER NOT NULL, dictionary TEXT NOT NULL, code INTEGER NOT NULL, value BLOB);
CREATE INDEX IF NOT EXISTS codes_segment ON codes (segment);
CREATE TABLE IF NOT EXISTS rejected (
    segment INTEGER NOT NULL, source TEXT NOT NULL, row INTEGER NOT NULL, reason TEXT NOT NULL, record TEXT NOT NULL, at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS rejected_segment ON rejected (segment);
CREATE INDEX IF NOT EXISTS rejected_source ON rejected (source);
"""
_AFTER = "SELECT id, first, rows, end, at, key, taken, body FROM segments WHERE id > ? ORDER BY id"
_REMOVALS = (
    "DELETE FROM segments WHERE id <= ?",
    "DELETE FROM codes WHERE segment <= ?",
    "DELETE FROM rejected WHERE segment <= ?",
)
_PAGES = 16_384
"""Pages (64 MiB) of SQLite's log from which a push copies them into the file itself; removing segments does before."""
_ROOM = 4 << 20
"""Bytes by which SQLite's log is lengthened at a time."""
_AT_ONCE = 64
"""Segments removed in one transaction, so that pushes do not wait for long."""
_ROWS_AT_ONCE = 20_000
"""As ``_AT_ONCE``, rows of segments."""
_PAUSE = 0.002
"""Seconds between two of them, in which pushes go on: who removes would be first at the lock again."""
_TRIES = 5
"""Times that SQLite's log is copied into the file beside pushes before they wait for it."""


class Tail:
    """One log's tail, opened; threads may share it. The file is made by the first push."""

    def __init__(self, root: Path, schema: pa.Schema) -> None:
        self.path, self.schema = root / "tail.db", schema
        self._lock_path = root / "tail.lock"
        self._mutex = threading.RLock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._process, self._connection = os.getpid(), 0
        self._owner: int | None = None
        self._reset()

    def _reset(self) -> None:
        self._stamp = -1
        self._fresh = False
        self.segments: list[Segment] = []
        self.rows = Rows(self.schema)
        self.end: int | None = None
        """Newest time of the segments, at least."""
        self.codes: list[tuple[int, str, int, Any]] = []
        self.keys: dict[str, Segment] = {}

    # Reading

    def stamp(self) -> int:
        """A number that changes whenever another connection changed the file; 0 where there is none."""
        if self._fresh and self._owner == threading.get_ident():
            return self._stamp
        if self._process != os.getpid():  # connections do not survive a fork; the child leaves the parent's alone
            self._process, self._reader, self._writer, self._owner = os.getpid(), None, None, None
            self._connection += 1  # another connection counts from anew
            self._reset()
        with self._mutex:
            if self._reader is None:
                if not os.path.exists(self.path):  # noqa: PTH110 - asked on every read
                    return 0
                with self._failing():
                    reader = self._connect()
                    if not reader.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        return 0  # a first push is about to make its tables
                    self._reader = reader
            try:
                return (self._connection << 40) + int(self._reader.execute("PRAGMA data_version").fetchone()[0])
            except sqlite3.DatabaseError as error:
                raise self._damaged(error) from error

    def refresh(self, stamp: int | None = None) -> int:
        """Bring ``segments``, ``rows`` and ``codes`` up to date; returns the stamp that they are of (``stamp``: just looked at)."""
        with self._mutex:
            stamp = self.stamp() if stamp is None else stamp
            if stamp != self._stamp:
                if self._reader is not None:
                    self._load(self._reader)
                self._stamp = stamp
            self._fresh = self._owner == threading.get_ident()  # nobody else writes until it lets go
            return stamp

    def _load(self, connection: sqlite3.Connection) -> None:
        """Read what came since, and let go of what was taken over. All at one moment."""
        last = self.segments[-1].id if self.segments else 0
        with self._failing():
            connection.execute("BEGIN")
            try:
                least = connection.execute("SELECT min(id) FROM segments").fetchone()[0]
                fresh = connection.execute(_AFTER, (last,)).fetchall()
                codes = connection.execute(
                    "SELECT segment, dictionary, code, value FROM codes WHERE segment > ? ORDER BY rowid", (last,)
                ).fetchall()
            finally:
                connection.execute("COMMIT")
        gone = len(self.segments) if least is None else bisect_left(self.segments, least, key=lambda s: s.id)
        for segment in self.segments[:gone]:
            self.keys.pop(segment.key or "", None)
        del self.segments[:gone]
        del self.codes[: bisect_left(self.codes, least, key=lambda c: c[0]) if least is not None else len(self.codes)]
        for *meta, body in fresh:
            segment = Segment(*meta)
            self._hold(segment, unpacked(body, segment.first, self.schema) if segment.rows else None)
        self.codes.extend(codes)
        if self.segments:
            self.rows.drop(self.segments[0].first)
        else:
            self.rows, self.end = Rows(self.schema), None

    def _hold(self, segment: Segment, rows: pa.Table | Few | None) -> None:
        self.segments.append(segment)
        if segment.end is not None:
            self.end = segment.end if self.end is None else max(self.end, segment.end)
        if segment.key is not None:
            self.keys[segment.key] = segment
        if rows is not None and segment.first >= self.rows.stop:
            self.rows.add(rows, segment.first)

    def pending(self, taken: int) -> list[Segment]:
        """Segments that Delta, whose ``TAKEN`` this is, does not hold. The caller refreshed the tail before it looked at Delta."""
        with self._mutex:
            return self.segments[bisect_right(self.segments, taken, key=lambda s: s.id) :]

    def beyond(self, taken: int) -> tuple[int, int, int] | None:
        """(number of the newest segment, first seq, seq after the last) of ``pending``; None where nothing is."""
        with self._mutex:
            if not self.segments or self.segments[-1].id <= taken:
                return None
            newest = self.segments[-1]
            oldest = self.segments[bisect_right(self.segments, taken, key=lambda s: s.id)]
            return newest.id, oldest.first, newest.first + newest.rows

    def given(self, after: int) -> list[tuple[int, str, int, Any]]:
        """(segment, dictionary, code, identifier) of segments after one, in order of code."""
        with self._mutex:
            return self.codes[bisect_right(self.codes, after, key=lambda c: c[0]) :]

    def between(self, first: int, stop: int) -> list[pa.Table]:
        """Events in memory with ``first <= seq < stop``, in order."""
        return list(self.pieces(first, stop))

    def pieces(self, first: int, stop: int) -> Iterator[pa.Table]:
        """``between``, of which a piece is made when it is asked for; all of them were there at the first."""
        with self._mutex:
            found = self.rows.within(first, stop)
        yield from self.rows.made(found)

    def few(self, first: int, stop: int, names: Sequence[str]) -> Few | None:
        """``Rows.few``."""
        with self._mutex:
            return self.rows.few(first, stop, names)

    def rejected(self, source: str | None = None) -> list[tuple[int, str, int, str, str, int]]:
        """(segment, source, row, reason, record, at) of rows in the tail's quarantine, in order."""
        query = f"SELECT * FROM rejected {'' if source is None else 'WHERE source = ?'} ORDER BY rowid"  # noqa: S608
        with self._mutex:
            if not self.stamp():
                return []
            assert self._reader is not None
            with self._failing():
                return self._reader.execute(query, () if source is None else (source,)).fetchall()

    # Writing

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep every other writer of the tail out, of this process and others, until the end."""
        if self._owner == threading.get_ident():
            yield
            return
        with file_lock(self._lock_path):
            self._owner, self._fresh = threading.get_ident(), False
            try:
                yield
            finally:
                self._owner = None

    @contextmanager
    def transaction(self, synchronous: str = "FULL") -> Iterator[sqlite3.Connection]:
        """A connection whose changes are made, all of them, once the block has ended; none where it raises.

        synchronous: FULL has them on disk by then, NORMAL by the next FULL or not at all.
        """
        with self.exclusive(), self._failing():
            if self._process != os.getpid() or self._writer is None:
                self.stamp()
                self._writer = self._connect()
                self._writer.execute("PRAGMA journal_mode=WAL")
                self._writer.execute(f"PRAGMA wal_autocheckpoint={_PAGES}")
                self._writer.executescript(f"BEGIN;{_TABLES}COMMIT;")
            connection = self._writer
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                before = self._logged()
                connection.execute("COMMIT")
                if self._logged() > max(before, _ROOM // 64):
                    self._make_room()
            except BaseException:
                connection.rollback()
                raise
            finally:
                self._fresh = False

    def _logged(self) -> int:
        """Bytes of SQLite's own log."""
        try:
            return os.stat(f"{self.path}-wal").st_size  # noqa: PTH116 - asked twice a push
        except FileNotFoundError:
            return 0

    def _make_room(self) -> None:
        """Lengthen SQLite's log with zeros, which it writes over: a push that lengthens it waits for the file system's journal as well.

        SQLite takes its log to end at the first frame that is not one. The caller holds ``exclusive``.
        """
        with suppress(OSError), Path(f"{self.path}-wal").open("ab") as file:  # without room, pushes take longer
            file.write(bytes(_ROOM))

    def add(
        self,
        connection: sqlite3.Connection,
        segment: Segment,
        rows: pa.Table | Few,
        codes: Sequence[tuple[str, int, Any]],
        bad: Sequence[Any],
    ) -> None:
        """Write one push. codes: (dictionary, code, identifier). bad: (source, row, reason, record, at)."""
        s = segment
        body = packed(rows) if s.rows else None
        meta = (s.id, s.first, s.rows, s.end, s.at, s.key, s.taken, body)
        connection.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", meta)
        if codes:
            connection.executemany("INSERT INTO codes VALUES (?, ?, ?, ?)", ((s.id, *code) for code in codes))
        if bad:
            connection.executemany("INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?)", ((s.id, *row) for row in bad))

    def note(self, segments: Sequence[tuple[Segment, pa.Table | Few, Sequence[tuple[str, int, Any]]]]) -> None:
        """Hold in memory what this process has just committed, so that nobody reads it from disk. The caller holds ``exclusive``."""
        with self._mutex:
            for segment, rows, codes in segments:
                if self.segments and self.segments[-1].id >= segment.id:
                    continue
                self._hold(segment, rows if segment.rows else None)
                self.codes.extend((segment.id, *code) for code in codes)
            self._stamp = self.stamp()
            self._fresh = True

    def drop(self, last: int) -> None:
        """Remove segments up to one that the Delta tables have taken over, a few at a time so that pushes go on."""
        alone = self._owner == threading.get_ident()
        rows, number = 0, 0
        for segment in self.segments[: bisect_right(self.segments, last, key=lambda s: s.id)]:
            rows, number = rows + segment.rows, number + 1
            if rows >= _ROWS_AT_ONCE or number >= _AT_ONCE or segment.id == last:
                rows = number = 0
                # what a crash brings back is removed again, so the disk is not waited for
                with self.transaction("NORMAL") as connection:
                    for removal in _REMOVALS:
                        connection.execute(removal, (segment.id,))
                if not alone:
                    time.sleep(_PAUSE)
        # SQLite begins its log anew once all of it is in the file, which a push between two pages prevents: at last pushes wait
        with self._failing(), closing(self._connect()) as connection:
            for _ in range(_TRIES):
                _, logged, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if logged == copied:
                    break
            else:
                with self.exclusive():
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self.refresh()

    def scrub(self) -> None:
        """Leave no byte of what was removed in the file. The caller holds ``exclusive``, and the tail is empty."""
        if not self.path.exists():
            return
        with self._mutex, self._failing():
            with self.transaction():
                pass
            assert self._writer is not None
            self._writer.execute("VACUUM")
            busy = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                raise ZooError(f"{self.path} is being read, so bytes of what was removed stay in it; run it again")
            self._reset()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: sqlite3.DatabaseError) -> ZooError:
        return ZooError(
            f"the log's tail {self.path} cannot be used: {error}. What was said to be taken before is whole; "
            "check free space and permissions, then try again"
        )
