"""Forgetting: afterwards no byte tells of who was forgotten, nobody else's answers change, and what was killed half way is completed."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import tiny_shop as shop
from services import _redis, redis_url
from tiny_shop import _applied, repo
from typer.testing import CliRunner

from zoo.cli.app import app
from zoo.contract import Artefact
from zoo.errors import FeatureError, UsageError, ZooError
from zoo.events import build
from zoo.events import forget as forgetting
from zoo.events.ingest import append, ingest
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema
from zoo.events.view import LogView
from zoo.features import Features
from zoo.registry import Registry
from zoo.stores.frames import index_of

__all__ = ["_applied", "_redis", "redis_url", "repo"]

NOW = 2_000_000_000_000_000
ANN = "ann+secret@example.org"
TRACES = (ANN.encode(), b"event-of-ann", b"note of ann")


def events(users: list[Any], ids: list[str], **columns: Any) -> pa.Table:
    count = len(users)
    given = {
        "user_id": users,
        "item_id": list(range(count)),
        "event_type": ["view"] * count,
        "time": list(range(count)),
        "event_id": ids,
    }
    return pa.table({**given, **columns})


def contents(path: Path) -> bytes:
    """The bytes of a file, and what compressed ones hold."""
    raw = path.read_bytes()
    if path.suffix == ".parquet":
        raw += repr(pq.read_table(path).to_pylist()).encode()
    return raw


def traces(root: Path, needles: tuple[bytes, ...] = TRACES) -> list[tuple[str, bytes]]:
    found = [(path, contents(path)) for path in sorted(root.rglob("*")) if path.is_file()]
    return [(str(path.relative_to(root)), needle) for path, held in found for needle in needles if needle in held]


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    """A log with Ann in files, tail, quarantine, dictionaries, a table with two versions, and an index."""
    log = EventLog.create(tmp_path / "log", LogSchema(user_id="string", extra={"note": "string"}))
    append(log, events([ANN, "bob"], ["event-of-ann-1", "b1"], note=["note of ann", "hello"]), now=NOW)
    log.flush()
    path = tmp_path / "file.parquet"
    table = events(
        ["bob", ANN, "zoe"], ["b2", "event-of-ann-2", "z1"], note=["hello", "hello", None], price=[1.0, float("inf"), 2.0]
    )
    pq.write_table(table.rename_columns({"time": "timestamp"}), path)
    ingest(log, path, now=NOW, time_unit="us")
    log.put_table("users", pa.table({"user_id": [ANN, "bob"], "city": ["note of ann, in Rome", "Oslo"]}), key="user_id")
    log.put_table("users", pa.table({"user_id": [ANN, "bob"], "city": ["Rome", "Oslo"]}), key="user_id")
    append(log, events([ANN], ["event-of-ann-3"], note=["x"]), idempotency_key="key-of-ann", now=NOW)
    append(
        log,
        events([ANN, "bob"], ["event-of-ann-4", "b3"], price=[float("nan"), float("nan")], note=["note of ann", None]),
        now=NOW,
    )
    append(log, events(["bob"], ["b4"], note=["x"]), now=NOW)
    LogView.open(log.root).index("user_id")
    return log


def test_nothing_of_a_person_is_left_and_everything_of_the_others(log: EventLog) -> None:
    assert {needle for _, needle in traces(log.root)} == set(TRACES)
    others = [row for row in log.table().to_pylist() if row["user_id"] != ANN]
    codes = log.dictionary("user_id").encode(["bob", "zoe", ANN]).tolist()
    count, before = log.count(), log.version()
    seen: list[list[int]] = []
    said: list[tuple[float, str]] = []
    done = log.forget(
        [ANN],
        also=lambda: seen.append(log.dictionary("user_id").encode([ANN]).tolist()),
        progress=lambda *told: said.append(told),
    )
    assert (done.users, done.events, done.quarantined, done.profiles, done.epoch) == (1, 2, 2, 1, 1)
    assert seen == [[codes[2]]]
    assert [fraction for fraction, _ in said] == sorted(fraction for fraction, _ in said)
    assert [*dict.fromkeys(text for _, text in said)] == [
        "look through 6 events",
        "write 2 of 3 files anew",
        "look through tables and bad rows",
        "remove what was copied elsewhere",
        "look for identifiers that nothing names any longer",
        "remove identifiers",
    ]
    assert traces(log.root) == []
    for reader in (log, EventLog.open(log.root)):
        assert reader.table().to_pylist() == others
        assert reader.dictionary("user_id").encode(["bob", "zoe", ANN]).tolist() == [*codes[:2], 1]
        assert (reader.count(), reader.size, reader.epoch) == (count, len(others), 1)
        assert reader.lineage()["epoch"] == 1
        assert reader.quarantine.counts() == {"price_not_finite": 1}
        assert reader.read_table("users").to_pylist() == [{"user_id": "bob", "city": "Oslo"}]
        with pytest.raises(ZooError, match=rf"version {before} .* not reproducible.*zoo forget"):
            reader.table(before)
    assert log.table(log.version()).to_pylist() == others


def test_a_log_that_forgot_goes_on(log: EventLog) -> None:
    reader, view = EventLog.open(log.root), LogView.open(log.root)
    before = view.index("user_id")
    assert len(before) > 0
    assert reader.count() == log.count()
    log.forget([ANN])
    count = log.count()
    assert view.newest().epoch == 1
    report = append(reader, events([ANN, "bob"], ["event-of-ann-9", "b4"]), now=NOW)
    assert (report.added, report.repeated) == (1, 1)
    assert log.tail(count - 1)["seq"].to_pylist() == [count]
    assert reader.dictionary("user_id").encode([ANN])[0] == reader.dictionary("user_id").size - 1
    fresh = LogView.open(log.root)
    assert fresh.index("user_id").newest(fresh.codes("user_id", ["zoe"]), np.array([NOW])).tolist() == [2]
    log.flush()
    assert log.forget([ANN]).events == 1
    assert traces(log.root) == []


def test_the_newest_event_may_go_and_its_seq_is_not_given_again(log: EventLog) -> None:
    count = log.count()
    log.forget(["bob"])
    assert log.count() == EventLog.open(log.root).count() == count
    append(log, events(["zoe"], ["z9"]), now=NOW)
    assert log.table()["seq"].to_pylist()[-1] == count


def test_everybody_may_go(log: EventLog) -> None:
    count = log.count()
    log.forget([ANN, "bob", "zoe"])
    assert (log.size, log.count(), log.end()) == (0, count, None)
    assert EventLog.open(log.root).dictionary("user_id").encode(["bob"]).tolist() == [1]
    append(log, events(["eve"], ["e1"]), now=NOW)
    assert log.dictionary("user_id").decode(log.dictionary("user_id").encode(["eve"])).to_pylist() == ["eve"]


def test_someone_whom_the_log_does_not_know_changes_nothing(log: EventLog) -> None:
    table, version = log.table(), log.version()
    done = log.forget(["stranger"])
    assert (done.users, done.events, done.epoch) == (0, 0, 0)
    assert log.table().equals(table)
    assert log.table(version).num_rows > 0


STEPS = ["_rewrite", "_naming", "_unnamed", "tables", "quarantine", "scrub", "also", "dictionaries"]


@pytest.mark.parametrize("step", STEPS)
def test_cut_off_anywhere_the_same_call_does_the_rest(log: EventLog, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    others = [row for row in log.table().to_pylist() if row["user_id"] != ANN]
    told: list[str] = []

    def dies(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    owners = {"tables": (log, "forget_profiles"), "quarantine": (log.quarantine, "forget"), "scrub": (log.tail_file, "scrub")}
    owners["dictionaries"] = (log.dictionaries, "forget")
    with monkeypatch.context() as patch:
        if step != "also":
            owner, name = owners.get(step, (forgetting, step))
            patch.setattr(owner, name, dies)
        with pytest.raises(ZeroDivisionError):
            log.forget([ANN], also=dies if step == "also" else None)
    again = EventLog.open(log.root)
    again.forget([ANN], also=lambda: told.append("once"))
    assert told == ["once"]
    assert traces(log.root) == []
    assert again.table().to_pylist() == others


def test_events_before_an_instant_go(log: EventLog) -> None:
    kept = [row for row in log.table().to_pylist() if row["time"] >= 1]
    done = log.forget(before=1)
    assert done.events == log.count() - len(kept)
    assert log.table().to_pylist() == kept
    assert log.dictionary("user_id").encode([ANN])[0] > 1  # still in the table of users
    assert EventLog.open(log.root).dictionary("user_id").encode(["zoe"])[0] > 1


def test_bad_rows_of_people_whose_identifier_begins_alike_stay(tmp_path: Path) -> None:
    log = EventLog.create(tmp_path, LogSchema(user_id="string"))
    users = ["ann", "ann-marie", "anna", "joann", "ann"]
    append(log, events(users, [f"e{n}" for n in range(5)], price=[float("inf")] * 4 + [1.0]), now=NOW)
    done = log.forget(["ann"])
    assert (done.events, done.quarantined) == (1, 1)
    assert [json.loads(record)["user_id"] for record in log.quarantine.table()["record"].to_pylist()] == users[1:4]


def test_a_key_that_names_a_person_stays_with_nobody_elses_events(tmp_path: Path) -> None:
    log = EventLog.create(tmp_path, LogSchema(user_id="string"))
    for rows in (1, 30_000):  # through the tail, and at once
        prices = [float("inf"), 1.0] * (rows - 1) + [1.0, float("inf")]
        table = events([ANN, "bob"] * rows, [f"{rows}-{n}" for n in range(2 * rows)], price=prices)
        key = f"key-of-ann-{rows}"
        assert append(log, table, idempotency_key=key, now=NOW).added == rows
        again = append(log, table, idempotency_key=key, now=NOW)
        assert (again.added, again.repeated, again.quarantined) == (0, rows, {"price_not_finite": rows})
    log.forget([ANN])
    assert traces(log.root, (b"key-of-ann",)) == []
    assert log.size == 29_999
    assert len(log.quarantine.table()) == 2


@pytest.mark.parametrize("arguments", [{}, {"users": ["bob"], "before": 1}])
def test_whom_or_until_when_must_be_said(log: EventLog, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not both"):
        log.forget(**arguments)


def test_a_log_without_times_has_no_before(tmp_path: Path) -> None:
    log = EventLog.create(tmp_path, LogSchema(clock="order"))
    with pytest.raises(UsageError, match="no times"):
        log.forget(before=5)


def test_numbers_are_people_too(tmp_path: Path) -> None:
    log = EventLog.create(tmp_path, LogSchema())
    append(log, events([7, 8, 9], ["a", "b", "c"]), now=NOW)
    log.forget([8])
    dictionary = EventLog.open(tmp_path).dictionary("user_id")
    assert dictionary.encode([7, 8, 9]).tolist() == [2, 1, 4]
    assert dictionary.encode(np.repeat([7, 8, 9], 1_000)).tolist() == [2] * 1_000 + [1] * 1_000 + [4] * 1_000
    assert dictionary.decode(np.array([2, 3, 4])).to_pylist() == [7, None, 9]


SETTINGS = '[zoo]\nregistry = "sqlite:///data/models.db"\n'
SECRET = 86_042_133_770_421


@pytest.mark.parametrize("online", ["sqlite", "redis"])
def test_a_project_forgets_down_to_the_bytes(repo: Path, redis_url: str, online: str) -> None:
    features = shop.opened(repo, online=redis_url) if online == "redis" else shop.opened(repo)
    times = [shop.START + n for n in range(4)]
    columns = {"user_id": [SECRET, 2, SECRET, 3], "item_id": ["i0", "i0", "i1", "i1"], "event_type": ["view"] * 4, "time": times}
    features.append(shop.events_table({**columns, "event_id": ["event-of-ann-1", "b", "event-of-ann-2", "c"]}))
    features.materialize()
    cache = repo / "data" / "cache" / "states"
    cache.mkdir(parents=True)
    (cache / "x").write_text(str(SECRET))
    rows = {"user_id": [2, 3]}
    answers = features.online("users", rows, at=shop.START + 100)
    code = int(features.reader.log.dictionary("user_id").encode([SECRET])[0])
    done = features.forget([SECRET])
    assert (done.users, done.events) == (1, 2)
    needles = (str(SECRET).encode(), SECRET.to_bytes(8, "little"), b"event-of-ann")
    assert traces(repo / "data", needles) == []
    if online == "redis":
        client = redis.Redis.from_url(redis_url)
        held = [key + (client.get(key) or b"") for key in client.scan_iter() if client.type(key) == b"string"]
        assert not any(needle in value for value in held for needle in needles)
        assert not any(key.endswith(f":user_id:{code}".encode()) for key in client.scan_iter())
    shop.assert_same(features.online("users", rows, at=shop.START + 100), answers)
    shop.assert_same(shop.opened(repo).history("users", {**rows, "time": [shop.START + 100] * 2}), answers)
    gone = features.online("users", {"user_id": [SECRET]}, at=shop.START + 100)
    assert gone.newest.tolist() == [-1]


def kept_of(features: Features, code: int) -> list[str]:
    """Entities whose events online are a user's, or name one."""
    store, config, found = features._online_store, features.store.config, []
    for space in store.names(config, features.reader.log.id):
        found += [f"{space.name}:{code}" for own, _ in store.values(config, space, "user_id") if own == code]
        for item, value in store.values(config, space, "item_id"):
            found += [f"{space.name} {item}" for _ in np.flatnonzero(index_of([value])[0].columns["user_id"] == code)]
    return found


@pytest.mark.timeout(100)  # it was brought in for ever
@pytest.mark.parametrize("online", ["sqlite", "redis"])
def test_the_newest_event_that_is_forgotten_is_not_waited_for_online(repo: Path, redis_url: str, online: str) -> None:
    features = shop.opened(repo, online=redis_url) if online == "redis" else shop.opened(repo)
    columns = {
        "user_id": [1, 2, 3],
        "item_id": ["i0"] * 3,
        "event_type": ["view"] * 3,
        "time": [shop.START + n for n in range(3)],
    }
    features.append(shop.events_table({**columns, "event_id": ["a", "b", "c"]}))
    store, config, log = features._online_store, features.store.config, features.reader.log
    for gone, newest in ((3, [shop.START, shop.START + 1, -1]), (1, [-1, shop.START + 1, -1]), (2, [-1] * 3)):
        features.forget([gone])
        assert features.online("users", {"user_id": [1, 2, 3]}, at=shop.START + 9).newest.tolist() == newest
        assert store.load(config, store.space(config, features.reader.view()), {})[1] == log.count() == 3
    features.append(shop.events_table({**columns, "event_id": ["d", "e", "f"]}))
    assert features.online("users", {"user_id": [1, 2, 3]}, at=shop.START + 9).newest.tolist() == columns["time"]


@pytest.mark.parametrize("work", ["materialize", "online", "write"])
@pytest.mark.parametrize("online", ["sqlite", "redis"])
def test_who_is_forgotten_while_others_write_does_not_come_back(
    repo: Path, redis_url: str, online: str, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = shop.opened(repo, online=redis_url) if online == "redis" else shop.opened(repo)
    times = [shop.START + n for n in range(4)]
    columns = {"user_id": [SECRET, 2, SECRET, 3], "item_id": ["i0", "i0", "i1", "i1"], "event_type": ["view"] * 4, "time": times}
    features.reader.log.append(shop.events_table({**columns, "event_id": ["a", "b", "c", "d"]}))
    code = int(features.reader.log.dictionary("user_id").encode([SECRET])[0])
    other, forgot = Features.open(repo), []
    store = other._online_store

    def late(real: Any) -> Any:
        def write(*given: Any) -> Any:
            if not forgot:  # what is about to be written was read before
                forgot.append(features.forget([SECRET]))
            return real(*given)

        return write

    monkeypatch.setattr(store, "append", late(store.append))
    monkeypatch.setattr(store, "exchange", late(store.exchange))
    asked = {"user_id": [2, 3, SECRET]}
    if work == "materialize":
        assert other.materialize()["user_id"] in (2, 3)
    elif work == "write":
        other.store.materialize_incremental(
            end_date=datetime.fromtimestamp(times[-1] // 10**6 + 60, UTC), feature_views=["user_windows"]
        )
    assert other.online("users", asked, at=shop.START + 100).newest.tolist() == [times[1], times[3], -1]
    assert [done.events for done in forgot] == [2]
    assert kept_of(features, code) == []
    assert len(features._online_store.names(features.store.config, features.reader.log.id)) == 1


def two_views() -> pa.Table:
    """An event of user 1 and one of user 2."""
    return shop.events_table(
        {
            "user_id": [1, 2],
            "item_id": ["i0"] * 2,
            "event_type": ["view"] * 2,
            "time": [shop.START] * 2,
            "event_id": ["a", "b"],
        }
    )


def test_an_index_that_is_built_while_somebody_is_forgotten_does_not_stay(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, other = shop.opened(repo), shop.opened(repo)
    features.reader.log.append(two_views())
    threads = ThreadPoolExecutor(1)
    real, forgot = build.write_columns, []

    def late(*given: Any) -> None:
        if not forgot:
            forgot.append(threads.submit(features.forget, [1]))
            while features.reader.log.epoch == 0:
                time.sleep(0.01)
            assert wait(forgot, timeout=0.5).not_done  # it waits for whoever builds
        real(*given)

    monkeypatch.setattr(build, "write_columns", late)
    rows = {"user_id": [1, 2], "time": [shop.START + 1] * 2}
    with suppress(FeatureError):  # unless it opened what it built in time
        other.history("users", rows)
    assert forgot[0].result().events == 1
    assert [path for path in (repo / "data/log/index").rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert other.history("users", rows).newest.tolist() == [-1, shop.START]


def test_a_view_that_knows_who_was_forgotten_says_so(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    view, real, threads = LogView.open(log.root), EventLog.chunks, ThreadPoolExecutor(1)
    shutil.rmtree(log.root / "index")

    def late(self: EventLog, *given: Any) -> Any:
        for part in real(self, *given):
            if self is view.log and log.epoch == 0:
                threads.submit(log.forget, ["bob"])
                while log.epoch == 0:
                    time.sleep(0.01)
            yield part

    monkeypatch.setattr(EventLog, "chunks", late)
    with pytest.raises(FeatureError, match=r"a part of the log was forgotten \(zoo forget\) after this view of it was opened"):
        view.index("user_id")
    threads.shutdown()
    assert not any(path.is_dir() for path in (log.root / "index").iterdir())


def test_a_cache_that_cannot_be_removed_is_said(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = shop.opened(repo)
    (repo / "data" / "cache").mkdir()

    def busy(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr("zoo.features.shutil.rmtree", busy)
    with pytest.raises(ZooError, match=r"could not remove .*cache: .*Directory not empty"):
        features.forget([1])


def test_the_command_forgets_people_and_what_is_old(repo: Path) -> None:
    (repo / "zoo.toml").write_text(SETTINGS)
    features = shop.opened(repo)
    day = 86_400_000_000
    times = [shop.START, shop.START + day, shop.START + 10 * day]
    table = {"user_id": [1, 2, 3], "item_id": ["i0"] * 3, "event_type": ["view"] * 3, "time": times, "event_id": ["a", "b", "c"]}
    features.append(shop.events_table(table))

    def zoo(*words: str) -> dict[str, Any]:
        answer = CliRunner().invoke(app, ["--repo", str(repo), "forget", *words, "--json"])
        assert answer.exit_code == 0, answer.output
        return dict(json.loads(answer.stdout))

    assert zoo("--before", "5d")["events"] == 2
    assert zoo("3", "99")["users"] == 1
    assert shop.opened(repo).reader.log.size == 0


def test_the_command_names_the_models_that_learned_from_what_is_gone(repo: Path) -> None:
    (repo / "zoo.toml").write_text(SETTINGS)
    log = shop.opened(repo).reader.log
    log.append(two_views())

    def trained() -> None:
        with Registry.open(f"sqlite:///{repo / 'data/models.db'}", repo / "data/artefacts") as registry:
            registry.register("churn", Artefact(texts={"a": "b"}), {}, {"log": log.lineage()})

    def forget(*words: str) -> str:
        answer = CliRunner().invoke(app, ["--repo", str(repo), "forget", *words])
        assert answer.exit_code == 0, answer.output
        return " ".join(answer.stdout.split())

    trained()
    assert "Not reproducible" not in forget("99")  # whom the log does not know: nothing was rewritten
    assert "trained on the log as it was before: churn@1." in forget("2")
    trained()
    assert "churn@1. " in forget("2")  # the second is of the log as it is
    users = {"user_id": [1, 3], "country": ["NL", "DE"], "age": [30, 40]}
    log.put_table("users", pa.table(users), key="user_id")
    trained()
    assert "churn@1, churn@2, churn@3. " in forget("3")  # who is in a table only
    assert "train churn`" in forget("3")  # and again, where the first call was cut off


@pytest.mark.parametrize("words", [("ann",), ("--before", "yore"), ()])
def test_a_command_that_cannot_be_meant_is_refused(repo: Path, words: tuple[str, ...]) -> None:
    (repo / "zoo.toml").write_text(SETTINGS)
    assert CliRunner().invoke(app, ["--repo", str(repo), "forget", *words]).exit_code == 2


def test_no_page_of_the_tail_keeps_what_was_moved(log: EventLog) -> None:
    log.forget([ANN])
    with sqlite3.connect(log.root / "tail.db") as connection:
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
