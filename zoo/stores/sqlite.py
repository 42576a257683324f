"""Recent events in SQLite: a row an entity, in the file where Feast's own SQLite store keeps other views."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any, Literal

from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig

from zoo.contract import Array
from zoo.errors import FeatureError
from zoo.events.tables import ENTITIES
from zoo.stores.frames import IDENTITY
from zoo.stores.online import EventOnlineStore
from zoo.stores.packing import Change
from zoo.stores.recent import Space

# A row's key is one number, so that finding and appending rows is as cheap as SQLite can: space, entity kind, code.
_TABLES = """
CREATE TABLE IF NOT EXISTS zoo_spaces (
    id INTEGER PRIMARY KEY, project TEXT NOT NULL, log TEXT NOT NULL, name TEXT NOT NULL UNIQUE, held INTEGER NOT NULL,
    copying TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS zoo_frames (key INTEGER PRIMARY KEY, events BLOB NOT NULL);
"""
_APPEND = (
    "INSERT INTO zoo_frames VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET events = CAST(events || excluded.events AS BLOB)"
    " RETURNING length(events)"
)
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_REMEDIES = {
    **dict.fromkeys(_DAMAGED, "The log holds every event: remove it and materialize again"),
    **dict.fromkeys(("SQLITE_FULL", "SQLITE_IOERR"), "Free some space on its disk and try again; the log holds every event"),
    **dict.fromkeys(("SQLITE_CANTOPEN", "SQLITE_READONLY"), "Check the path, and the permissions of the file and its directory"),
    "SQLITE_BUSY": "Another process has been writing to it for long: end that one, or try again",
}
_VARIABLES = 500
"""Values in one statement; older builds of SQLite take 999."""


class SqliteEventOnlineStoreConfig(SqliteOnlineStoreConfig):
    """``online_store`` in feature_store.yaml."""

    type: Literal["zoo.stores.SqliteEventOnlineStore"] = "zoo.stores.SqliteEventOnlineStore"

    max_events: int = 20_000
    """Events kept for one entity; windows that reach further back answer for these only."""


class SqliteEventOnlineStore(EventOnlineStore, SqliteOnlineStore):
    """Each change is one transaction; readers never wait for it (WAL)."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    @staticmethod
    def _get_db_path(config: Any) -> str:
        # Feast's own asserts that the store is named sqlite
        path = Path(config.online_store.path)
        return str(path if path.is_absolute() or not config.repo_path else Path(config.repo_path) / path)

    @contextmanager
    def _connected(self, config: Any) -> Iterator[sqlite3.Connection]:
        path = self._get_db_path(config)
        try:
            yield self._connection(path)
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", None) or ""
            remedy = next((words for code, words in _REMEDIES.items() if name.startswith(code)), "Check the file and its disk")
            if name.startswith(_DAMAGED) and (connection := getattr(self._local, "connection", None)) is not None:
                self._local.connection = None
                connection.close()  # the file that takes its place is read through another
            raise FeatureError(f"the online store {path} cannot be used: {error}. {remedy}") from error

    def _connection(self, path: str) -> sqlite3.Connection:
        # one connection a thread: sqlite3 connections may not be shared, and WAL lets readers and a writer work at once
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None and self._local.process != os.getpid():
            self._local.parents, connection = (
                connection,
                None,
            )  # connections do not survive a fork; the child leaves the parent's alone
        if connection is None:
            connection = sqlite3.connect(path, timeout=30, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA secure_delete=ON")
            connection.executescript(_TABLES)
            self._local.connection, self._local.process = connection, os.getpid()
        return connection

    @staticmethod
    def _space(connection: sqlite3.Connection, space: Space) -> tuple[int, int]:
        """(number of this space, events held); (0, 0) where it is not there yet."""
        return connection.execute("SELECT id, held FROM zoo_spaces WHERE name = ?", (space.name,)).fetchone() or (0, 0)

    @staticmethod
    def _kept(connection: sqlite3.Connection, keys: list[int]) -> dict[int, bytes]:
        if len(keys) == 1:
            return dict(connection.execute("SELECT key, events FROM zoo_frames WHERE key = ?", keys).fetchall())
        found: dict[int, bytes] = {}
        some = "SELECT 1 FROM zoo_frames WHERE key BETWEEN ? AND ? LIMIT 1"
        if not keys or connection.execute(some, (min(keys), max(keys))).fetchone() is None:
            return found  # as while a copy fills an empty store
        for at in range(0, len(keys), _VARIABLES):
            part = keys[at : at + _VARIABLES]
            marks = ",".join("?" * len(part))
            found.update(connection.execute(f"SELECT key, events FROM zoo_frames WHERE key IN ({marks})", part))  # noqa: S608 - marks only
        return found

    @contextmanager
    def _changing(self, config: Any, space: Space) -> Iterator[tuple[sqlite3.Connection, int, int]]:
        """(connection, number of the space, events held) in one transaction that holds the write lock."""
        with self._connected(config) as connection, _transaction(connection):
            insert = "INSERT OR IGNORE INTO zoo_spaces (project, log, name, held) VALUES (?, ?, ?, 0)"
            connection.execute(insert, (space.project, space.log, space.name))
            yield connection, *self._space(connection, space)

    def load(self, config: Any, space: Space, codes: Mapping[str, Array]) -> tuple[dict[str, list[bytes | None]], int]:
        with self._connected(config) as connection, _transaction(connection, "DEFERRED"):
            number, held = self._space(connection, space)
            values: dict[str, list[bytes | None]] = {}
            for entity, own in codes.items():
                keys = _keys(number, entity, own.tolist())
                found = self._kept(connection, keys)
                values[entity] = [found.get(key) for key in keys]
            return values, held

    def append(
        self, config: Any, space: Space, start: int, stop: int, frames: Sequence[tuple[str, int, bytes]]
    ) -> list[int] | None:
        with self._changing(config, space) as (connection, number, held):
            if held != start:
                return None
            rows = ((_key(number, entity, code), frame) for entity, code, frame in frames)
            lengths = [connection.execute(_APPEND, row).fetchone()[0] for row in rows]
            connection.execute("UPDATE zoo_spaces SET held = ? WHERE id = ?", (stop, number))
            return lengths

    def exchange(self, config: Any, space: Space, change: Change | None, record: str = "", then: str = "") -> list[int] | None:
        with self._changing(config, space) as (connection, number, _):
            if record and self._record(connection, number) != record:
                return None
            entity, codes, olds, news = change or Change(ENTITIES[0], (), (), ())
            keys = _keys(number, entity, codes)
            kept = self._kept(connection, keys)
            same = [_same(kept.get(key), old) for key, old in zip(keys, olds)]
            rows = zip(compress(keys, same), compress(news, same))
            connection.executemany("INSERT OR REPLACE INTO zoo_frames VALUES (?, ?)", rows)
            if then and all(same):
                connection.execute("UPDATE zoo_spaces SET copying = ? WHERE id = ?", (then, number))
            return [i for i, good in enumerate(same) if not good]

    @staticmethod
    def _record(connection: sqlite3.Connection, number: int) -> str:
        return str(connection.execute("SELECT copying FROM zoo_spaces WHERE id = ?", (number,)).fetchone()[0])

    def copying(self, config: Any, space: Space, record: str = "") -> str:
        with self._changing(config, space) as (connection, number, _):
            connection.execute("UPDATE zoo_spaces SET copying = ? WHERE id = ? AND copying = ''", (record, number))
            return self._record(connection, number)

    def finish(self, config: Any, space: Space, record: str, count: int) -> bool:
        with self._changing(config, space) as (connection, number, _):
            if self._record(connection, number) != record:
                return False
            connection.execute("UPDATE zoo_spaces SET copying = '', held = max(held, ?) WHERE id = ?", (count, number))
            return True

    def names(self, config: Any, log: str) -> list[Space]:
        with self._connected(config) as connection:
            found = connection.execute("SELECT name FROM zoo_spaces WHERE project = ? AND log = ?", (config.project, log))
            return [Space(config.project, log, name) for (name,) in found.fetchall()]

    def values(self, config: Any, space: Space, entity: str) -> Iterator[tuple[int, bytes]]:
        with self._connected(config) as connection:
            number, _ = self._space(connection, space)
            first, stop = _key(number, entity, 0), _key(number, entity, 1 << 32)
            at = first - 1
            query = "SELECT key, events FROM zoo_frames WHERE key > ? AND key < ? ORDER BY key LIMIT 1000"
            while rows := connection.execute(query, (at, stop)).fetchall():
                for key, value in rows:
                    yield key - first, value
                at = rows[-1][0]

    def drop(self, config: Any, space: Space) -> None:
        with self._changing(config, space) as (connection, number, _):
            bounds = (_key(number, ENTITIES[0], 0), _key(number + 1, ENTITIES[0], 0))
            connection.execute("DELETE FROM zoo_frames WHERE key >= ? AND key < ?", bounds)
            connection.execute("DELETE FROM zoo_spaces WHERE id = ?", (number,))

    def erase(self, config: Any) -> None:
        with self._connected(config) as connection:
            connection.execute("VACUUM")
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:  # what was removed still stands in SQLite's log
                path = self._get_db_path(config)
                raise FeatureError(
                    f"the online store {path} is being read, so bytes of what was removed stay in it; run the same again"
                )

    def teardown(self, config: Any, tables: Any, entities: Any) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local = threading.local()
        super().teardown(config, tables, entities)


def _key(number: int, entity: str, code: int) -> int:
    return ((number * len(ENTITIES) + ENTITIES.index(entity)) << 32) + code


def _keys(number: int, entity: str, codes: Iterable[int]) -> list[int]:
    first = _key(number, entity, 0)
    return [first + code for code in codes]


def _same(kept: bytes | None, read: bytes | None) -> bool:
    if kept is None or read is None:
        return kept is read
    return len(kept) == len(read) and kept[:IDENTITY] == read[:IDENTITY]


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[None]:
    """IMMEDIATE takes the write lock first, so that what it reads is still there when it writes; DEFERRED reads as of one moment."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise
