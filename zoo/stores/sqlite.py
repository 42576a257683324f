"""Recent events in SQLite: one blob an entity, in the file where Feast's own SQLite store keeps other views."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig

from zoo.contract import Array
from zoo.errors import FeatureError
from zoo.stores.blob import merge
from zoo.stores.online import EventOnlineStore


class SqliteEventOnlineStoreConfig(SqliteOnlineStoreConfig):
    """``online_store`` in feature_store.yaml."""

    type: Literal["zoo.stores.SqliteEventOnlineStore"] = "zoo.stores.SqliteEventOnlineStore"

    max_events: int = 20_000
    """Events kept for one entity; windows that reach further back answer for these only."""


class SqliteEventOnlineStore(EventOnlineStore, SqliteOnlineStore):
    """An entity's update is one transaction; readers never wait for it (WAL)."""

    _local: threading.local | None = None

    @staticmethod
    def _get_db_path(config: Any) -> str:
        # Feast's own asserts that the store is named sqlite
        path = Path(config.online_store.path)
        return str(path if path.is_absolute() or not config.repo_path else Path(config.repo_path) / path)

    def _connection(self, config: Any) -> sqlite3.Connection:
        # one connection a thread: sqlite3 connections may not be shared, and WAL lets readers and a writer work at once
        if self._local is None:
            self._local = threading.local()
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            path = self._get_db_path(config)
            try:
                connection = sqlite3.connect(path, timeout=30, isolation_level=None)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS zoo_events (project TEXT, entity TEXT, code INTEGER, events BLOB,"
                    " PRIMARY KEY (project, entity, code)) WITHOUT ROWID"
                )
            except sqlite3.DatabaseError as error:
                raise FeatureError(f"the online store {path} cannot be used: {error}. Remove it and materialize again") from error
            self._local.connection = connection
        return connection

    def load(self, config: Any, entity: str, codes: Array) -> list[bytes | None]:
        found: dict[int, bytes] = {}
        numbers = [int(c) for c in codes]
        connection = self._connection(config)
        for at in range(0, len(numbers), 500):  # SQLite's limit of variables in one statement
            part = numbers[at : at + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT code, events FROM zoo_events WHERE project = ? AND entity = ? AND code IN ({marks})"  # noqa: S608 - marks only
            found.update(self._run(connection, query, [config.project, entity, *part]))
        return [found.get(n) for n in numbers]

    def merge(self, config: Any, entity: str, blobs: Mapping[int, bytes]) -> None:
        connection = self._connection(config)
        connection.execute("BEGIN IMMEDIATE")
        try:
            kept = dict(zip(blobs, self.load(config, entity, list(blobs))))  # type: ignore[arg-type]
            rows = [
                (config.project, entity, code, merge(kept[code], new, config.online_store.max_events))
                for code, new in blobs.items()
            ]
            connection.executemany("INSERT OR REPLACE INTO zoo_events VALUES (?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    @staticmethod
    def _run(connection: sqlite3.Connection, query: str, values: list[Any]) -> list[tuple[int, bytes]]:
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise FeatureError(f"the online store cannot be read: {error}. Remove it and materialize again") from error

    def teardown(self, config: Any, tables: Any, entities: Any) -> None:
        if self._local is not None and getattr(self._local, "connection", None) is not None:
            self._local.connection.close()
            self._local = None
        super().teardown(config, tables, entities)
