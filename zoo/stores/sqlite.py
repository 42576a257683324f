"""Recent events in SQLite: one blob an entity, in the file where Feast's own SQLite store keeps other views."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig

from zoo.contract import Array
from zoo.errors import FeatureError
from zoo.events.view import ENTITIES
from zoo.stores.blob import merge
from zoo.stores.online import EventOnlineStore

# A row's key is one number, so that finding and appending rows is as cheap as SQLite can: log, entity kind, code.
_TABLES = """
CREATE TABLE IF NOT EXISTS zoo_logs (
    id INTEGER PRIMARY KEY, project TEXT NOT NULL, log TEXT NOT NULL, held INTEGER NOT NULL, UNIQUE (project, log)
);
CREATE TABLE IF NOT EXISTS zoo_events (key INTEGER PRIMARY KEY, events BLOB NOT NULL);
"""
_REMEDIES = {
    **dict.fromkeys(("SQLITE_CORRUPT", "SQLITE_NOTADB"), "The log holds every event: remove it and materialize again"),
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
    """Each batch of entities is one transaction; readers never wait for it (WAL)."""

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
            raise FeatureError(f"the online store {path} cannot be used: {error}. {remedy}") from error

    def _connection(self, path: str) -> sqlite3.Connection:
        # one connection a thread: sqlite3 connections may not be shared, and WAL lets readers and a writer work at once
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(path, timeout=30, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_TABLES)
            self._local.connection = connection
        return connection

    @staticmethod
    def _log(connection: sqlite3.Connection, config: Any, log: str) -> tuple[int, int]:
        """(number of this log, events held); (0, 0) where it is not there yet."""
        query = "SELECT id, held FROM zoo_logs WHERE project = ? AND log = ?"
        return connection.execute(query, (config.project, log)).fetchone() or (0, 0)

    @staticmethod
    def _kept(connection: sqlite3.Connection, keys: list[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for at in range(0, len(keys), _VARIABLES):
            part = keys[at : at + _VARIABLES]
            marks = ",".join("?" * len(part))
            found.update(connection.execute(f"SELECT key, events FROM zoo_events WHERE key IN ({marks})", part))  # noqa: S608 - marks only
        return found

    def load(self, config: Any, log: str, entity: str, codes: Array) -> tuple[list[bytes | None], int]:
        with self._connected(config) as connection:
            # the watermark first: what is read after it is at least as new
            number, held = self._log(connection, config, log)
            keys = _keys(number, entity, codes.tolist())
            found = self._kept(connection, keys)
            return [found.get(key) for key in keys], held

    def merge(self, config: Any, log: str, entity: str, blobs: Mapping[int, bytes], *, whole: bool) -> None:
        limit = config.online_store.max_events
        with self._connected(config) as connection, _transaction(connection):
            insert = "INSERT OR IGNORE INTO zoo_logs (project, log, held) VALUES (?, ?, 0)"
            connection.execute(insert, (config.project, log))
            number, _ = self._log(connection, config, log)
            keys = _keys(number, entity, blobs)
            kept = self._kept(connection, keys)
            rows = (
                (key, kept.get(key), merge(kept.get(key), blob, limit, whole=whole)) for key, blob in zip(keys, blobs.values())
            )
            changed = ((key, blob) for key, old, blob in rows if blob is not old)
            connection.executemany("INSERT OR REPLACE INTO zoo_events VALUES (?, ?)", changed)

    def mark(self, config: Any, log: str, count: int) -> None:
        update = (
            "INSERT INTO zoo_logs (project, log, held) VALUES (?, ?, ?)"
            " ON CONFLICT (project, log) DO UPDATE SET held = max(held, excluded.held)"
        )
        with self._connected(config) as connection:
            connection.execute(update, (config.project, log, count))

    def teardown(self, config: Any, tables: Any, entities: Any) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local = threading.local()
        super().teardown(config, tables, entities)


def _keys(number: int, entity: str, codes: Any) -> list[int]:
    first = (number * len(ENTITIES) + ENTITIES.index(entity)) << 32
    return [first + code for code in codes]


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One that begins by taking the write lock, so that what it reads is still there when it writes."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise
