"""The registry's database: SQLite or PostgreSQL, migrated when it is opened, its errors said in words. Knows no registry rules."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from zoo.address import hidden
from zoo.errors import RegistryError
from zoo.registry.models import REVISION

VERSION_TABLE = "zoo_schema_version"
"""Not Alembic's default name, so that one PostgreSQL database can hold other programs' tables as well."""
BUSY_SECONDS = 30
"""How long a writer waits for another program's (SQLite; ours queue up, see ``_turn``), and for a connection (PostgreSQL)."""
_LOCK = 0x7A6F6F
_MIGRATING = Lock()  # Alembic keeps the migration that is running in module globals, so a process can only run one
_DAMAGED = "is damaged: restore it from a backup, or move it away with its -wal and -shm files to start an empty one"
_FORMS = "a path, sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME (an '@' in the password as %40)"


class Database:
    """Transactions on one database at the revision that this zoo knows."""

    def __init__(self, url: str | Path) -> None:
        """Open, and create or migrate the tables. Raises RegistryError."""
        self._url = _parsed(url)
        self._engine = _sqlite(self._url) if self.is_sqlite else _postgresql(self._url)
        try:
            with self._in_words():
                if self.is_sqlite:
                    _check_file(self._engine, self._url)
                _migrate(self._engine, self._url)
        except BaseException:
            self.close()
            raise

    @property
    def is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Session]:
        """A session that commits when the block ends well. Say ``write`` if it may: SQLite then waits for its turn at the start."""
        engine = self._engine.execution_options(zoo_write=True) if write else self._engine
        with (
            _turn(self._url) if write else nullcontext(),
            self._in_words(),
            Session(engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise RegistryError(_words(self._url, getattr(error, "orig", None) or error)) from error


def _parsed(url: str | Path) -> URL:
    """The address with its driver named. What cannot be read is never repeated, for it may hold a password."""
    if isinstance(url, Path) or ":" not in url:
        return URL.create("sqlite", database=str(Path(url).absolute()))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise RegistryError(f"the registry's URL cannot be read; expected {_FORMS}") from None
    if parsed.get_backend_name() != "sqlite" and url.count("@") > 1:
        # The rest of such a password would be taken for the host, and shown in messages.
        raise RegistryError(f"the registry's URL has more than one '@'; expected {_FORMS}")
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise RegistryError(f"a registry cannot be kept in {parsed.drivername!r}; expected {_FORMS}")
    if parsed.database in (None, "", ":memory:"):
        raise RegistryError(f"a registry in memory would end with this process; expected {_FORMS}")
    return parsed.set(database=str(Path(str(parsed.database)).absolute()))


def emptied(url: str | Path) -> Path | None:
    """The SQLite file of this URL, if it is there without content; SQLite would take it (and a single byte) for a new database."""
    address = _parsed(url)
    path = Path(str(address.database))
    return path if address.get_backend_name() == "sqlite" and path.is_file() and path.stat().st_size <= 1 else None


def missing(url: str | Path) -> Path | None:
    """The SQLite file of this URL, if it is not there."""
    address = _parsed(url)
    path = Path(str(address.database))
    return path if address.get_backend_name() == "sqlite" and not path.exists() else None


def _sqlite(url: URL) -> Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(f"cannot create {path.parent} for the registry: {error.strerror}; name another path") from error
    # No pool: opening costs a fraction of a millisecond, and no connection then crosses a thread or a fork.
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin where ``begin`` below says, not where sqlite3 guesses
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that turns from reading to writing fails at once if another wrote meanwhile; one that begins as a writer waits.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("zoo_write") else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    patience = {} if "connect_timeout" in url.query else {"connect_timeout": BUSY_SECONDS}
    # Version numbers are counted under a row lock, which needs each statement to see what was committed before it.
    return create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED", connect_args=patience)


def _check_file(engine: Engine, url: URL) -> None:
    """Find damage when the registry is opened, rather than when a damaged page is first read; the file is small."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if found != "ok":
        raise RegistryError(f"the registry {url.database} {_DAMAGED} ({found})")


@contextmanager
def _turn(url: URL) -> Iterator[None]:
    """On SQLite, hold the lock file beside the database: whoever waits longest is next, and it is dropped with its holder.

    SQLite's own waiting is a lottery in which newcomers draw more often: of 64 writers some lost for longer than ``BUSY_SECONDS``.
    """
    if url.get_backend_name() != "sqlite":
        yield
        return
    path = Path(str(url.database))
    try:
        lock = path.with_name(f".{path.name}.lock").open("ab")
    except OSError as error:
        raise RegistryError(
            f"the registry {path} may not be written to: check the permissions of its directory ({error.strerror})"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _migrate(engine: Engine, url: URL) -> None:
    with engine.connect() as connection:
        if _revision(connection) == REVISION:
            return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    with _MIGRATING, _turn(url), engine.execution_options(zoo_write=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        current = _revision(connection)
        if current is not None and current not in known:
            raise RegistryError(
                f"the registry is at revision {current!r}, and this zoo knows up to {REVISION!r}; upgrade feature-zoo"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()  # noqa: S608
    return found


def _words(url: URL, error: BaseException) -> str:
    """What went wrong and what to do, without the password."""
    said = str(error).strip().partition("\n")[0]
    if url.get_backend_name() == "sqlite":
        where = f"the registry {url.database}"
        code = getattr(error, "sqlite_errorname", "")
        remedies = {
            "SQLITE_CORRUPT": _DAMAGED,
            "SQLITE_NOTADB": _DAMAGED,
            "SQLITE_BUSY": f"was being written to by another process for {BUSY_SECONDS} s: end that one, or try again",
            "SQLITE_FULL": "has no room left on its disk: free some space and try again; nothing of this was written",
            "SQLITE_IOERR": "cannot be read or written: check its disk, and whether it has room, and try again",
            "SQLITE_READONLY": "may not be written to: check the permissions of the file and its directory",
            "SQLITE_CANTOPEN": "cannot be opened: check the path, and the permissions of the file and its directory",
        }
        known = next((words for name, words in remedies.items() if code.startswith(name)), "refused: check the file and its disk")
        return f"{where} {known} ({said})"
    secrets = {str(url.password or ""), *(str(value) for key, value in url.query.items() if "password" in key)} - {""}
    shown = url.set(query={}).render_as_string(hide_password=True)
    return f"the registry {shown} did not answer: {hidden(said, secrets)}; check that the server runs, and the URL and account in zoo.toml"
