"""What an answer was made of is kept, bounded, found by its id, and forgotten with its people."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop import DAY, START, Shop

from zoo import traces as module
from zoo.cli import app as application
from zoo.cli import render
from zoo.errors import UsageError, ZooError
from zoo.features import Features
from zoo.lineage import ROWS, digest
from zoo.plugin import Artefact
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.registry import Registry
from zoo.traces import Trace, Traces


@pytest.fixture(scope="module")
def shop(trained_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A copy that keeps traces."""
    copy = trained_shop.copy(tmp_path_factory.mktemp("traced") / "shop")
    with (copy.root / "zoo.toml").open("a") as file:
        file.write("\n[traces]\nkeep = 500\n")
    return copy


@pytest.fixture(scope="module")
def churn(shop: Shop) -> Predictor:
    return Predictor.load("churn", shop.root)


def found(predictor: Predictor, id: str) -> Any:
    assert predictor.tracer is not None
    return predictor.tracer.traces.find(id)


def test_a_trace_leads_back_to_values_events_versions_and_models(shop: Shop, churn: Predictor) -> None:
    at = START + 100 * DAY
    answer = churn.predict(users=[3, 5], at=at)
    ids = answer["id"].to_pylist()
    trace = found(churn, ids[1])
    row = answer.to_pylist()[1]
    assert trace["keys"] == {"user_id": 5}
    assert {name: trace["answer"][name] for name in ("score", "gbdt", "gru", "missing")} == {
        name: row[name] for name in ("score", "gbdt", "gru", "missing")
    }
    batch = churn.features.history("churn", {"user_id": [5], "time": [at]})
    assert trace["features"]["user_purchases_28d"] == batch.column("user_purchases_28d").values[0]
    items = shop.log.dictionary("item_id").decode(batch.column("items").values).to_pylist()
    assert trace["features"]["items"] == items
    events = shop.log.table(columns=["user_id", "time"])
    own = np.asarray(events["time"])[np.asarray(events["user_id"]) == 5]
    times = np.sort(own[own < at])[::-1]
    said = [np.datetime64(each.removesuffix("+00:00")).astype("M8[us]").astype(int) for each in trace["events"]]
    assert said == times[: len(said)].tolist()
    assert len(said) > 5
    assert trace["log"]["events"] == shop.log.count()
    assert trace["model"] == "churn@1"
    project = Project.open(shop.root)
    with Registry.open(project.registry_url, project.artefacts) as registry:
        version, artefact = registry.load("churn")
    assert trace["artefact"] == version.digest
    assert trace["members"]["gru"]["sha256"] == digest(artefact.part("members/gru"))
    assert trace["members"]["gru"]["distribution"] == "feature-zoo-recurrent"
    assert trace["code"]["feature-zoo"]


def test_an_explanation_is_traced_as_a_prediction_is(churn: Predictor) -> None:
    at = START + 100 * DAY
    explained, predicted = churn.explain(users=[3, 5], at=at)[1], churn.predict(users=[5], at=at)["id"][0].as_py()
    trace, other = found(churn, explained.id), found(churn, predicted)
    assert trace["answer"] == {"explained": "score", "score": explained.score, "moved": dict(explained.members)}
    for name in ("keys", "as_of", "features", "events", "log", "members", "model"):
        assert trace[name] == other[name], name


def test_each_row_has_an_id_of_its_own_and_a_batch_is_not_traced(churn: Predictor) -> None:
    users = [1] * (ROWS + 1)
    ids = churn.predict(users=users)["id"].to_pylist()
    assert len(set(ids)) == len(users)
    with pytest.raises(UsageError, match="no trace of the answer"):
        found(churn, ids[0])


def test_answers_without_traces_have_ids_too(trained_shop: Shop) -> None:
    plain = Predictor.load("churn", trained_shop.root)
    assert plain.tracer is None
    assert len(plain.predict(users=[1])["id"][0].as_py()) == 18
    assert not (trained_shop.root / "data" / "traces.db").exists()


def test_the_command_shows_a_trace(shop: Shop, churn: Predictor) -> None:
    (id,) = churn.predict(users=[7])["id"].to_pylist()
    command = [sys.executable, "-m", "zoo", "--repo", str(shop.root), "trace", id]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(text in shown for text in ("churn@1", "user_purchases_28d", "feature-zoo-gbdt", "events before it"))
    body = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert body["keys"] == {"user_id": 7}
    wrong = subprocess.run([*command[:-1], "nothing"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "no trace of the answer 'nothing'" in wrong.stderr) == (2, True)


def test_what_a_person_reads_names_the_ids_that_trace_takes(
    shop: Shop, trained_shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(root: Path, *words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            application.app(["--repo", str(root), *words])
        assert ended.value.code == 0
        return capsys.readouterr().out

    ask = ["explain", "churn", "--user", "7", "--top", "1", "--events", "1"]
    line = said(shop.root, *ask).splitlines()[-1]
    (id,) = re.fullmatch(rf"id (\w{{16}}-0) \(zoo --repo {shop.root} trace \1\)", line).groups()  # type: ignore[union-attr]
    assert json.loads(said(shop.root, "trace", id, "--json"))["answer"]["explained"] == "score"
    both = said(shop.root, *ask, "--user", "8").splitlines()[-1]
    ids = re.fullmatch(rf"ids, in this order: (\w+)-0, (\w+)-1 \(zoo --repo {shop.root} trace ID\)", both)
    assert ids is not None
    assert ids[1] == ids[2]
    monkeypatch.setattr(render, "WIDTH", 60)  # too narrow for the table: numbers may be folded, not what is copied
    assert re.search(r"\b\w{16}-0\b", said(shop.root, "predict", "churn", "--user", "7"))
    assert "trace" not in said(trained_shop.root, *ask)  # which keeps none


def test_forgetting_a_person_removes_the_traces_that_name_them_to_the_byte(shop: Shop, tmp_path: Path) -> None:
    copy = shop.copy(tmp_path / "shop")
    churn = Predictor.load("churn", copy.root)
    first, second = (churn.predict(users=[user])["id"][0].as_py() for user in (11, 12))
    assert churn.features.forget([11]).users == 1
    with pytest.raises(UsageError, match="was forgotten"):
        found(churn, first)
    assert found(churn, second)["keys"] == {"user_id": 12}
    held = b"".join(path.read_bytes() for path in (copy.root / "data").glob("traces.db*"))
    assert first.encode() not in held
    assert second.encode() in held
    Features.open(copy.root).forget(before=START + DAY)  # long before the answer, which holds older events all the same
    with pytest.raises(UsageError, match="no trace"):
        found(churn, second)


def test_a_person_is_one_in_whatever_type_they_are_asked_about_and_forgotten(shop: Shop, tmp_path: Path) -> None:
    copy = shop.copy(tmp_path / "shop")
    churn = Predictor.load("churn", copy.root)
    ids = [churn.predict(users=[user])["id"][0].as_py() for user in (21.0, 22)]
    for user, id in zip((21, np.int64(22)), ids, strict=True):
        assert found(churn, id)
        assert churn.features.forget([user]).users == 1
        with pytest.raises(UsageError, match="was forgotten"):
            found(churn, id)


def test_what_was_read_before_somebody_was_forgotten_is_not_kept_afterwards(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shop.copy(tmp_path / "shop")
    churn = Predictor.load("churn", copy.root)
    assert churn.tracer is not None
    late, add = [], Traces.add
    monkeypatch.setattr(Traces, "add", lambda traces, made: late.append(made))
    id = churn.predict(users=[31])["id"][0].as_py()
    assert churn.features.forget([31]).users == 1
    add(churn.tracer.traces, *late)
    with pytest.raises(UsageError, match="was forgotten"):
        found(churn, id)
    assert b'"keys":{"user_id":31}' not in b"".join(path.read_bytes() for path in (copy.root / "data").glob("traces.db*"))
    monkeypatch.undo()
    assert found(churn, churn.predict(users=[32])["id"][0].as_py())


# The store


def trace(number: int, *people: Any, **body: Any) -> Trace:
    return Trace(f"id-{number}", number, people, {"number": number, **body})


def test_a_trace_goes_with_everyone_whom_it_names(tmp_path: Path) -> None:
    traces = Traces(tmp_path / "traces.db", 10)
    traces.add([trace(1, 1, 2), trace(2, "1"), trace(3, 3)])
    assert traces.forget([2]) == 1
    assert traces.forget([1]) == 0
    assert traces.find("id-2") == {"number": 2}
    assert traces.forget(None) == 2
    assert Traces(tmp_path / "other.db", 10).forget([1]) == 0
    assert not (tmp_path / "other.db").exists()


def test_what_answers_were_made_of_is_for_who_serves_them_alone(tmp_path: Path) -> None:
    traces = Traces(tmp_path / "data" / "traces.db", 10)
    before = os.umask(0o022)
    try:
        traces.begin()
        with traces._connected() as connection:
            connection.execute("INSERT INTO traces (id, as_of, body) VALUES ('x', 0, '{}')")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in traces.path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(modes) >= {"traces.db", "traces.db-wal"}
    assert set(modes.values()) == {0o600}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    traces = Traces(tmp_path / "traces.db", 100)
    for start in range(0, 1_000, 100):
        traces.add([trace(number, number % 7) for number in range(start, start + 100)])
    assert traces.find("id-999")
    assert traces.find("id-900")
    with pytest.raises(UsageError, match="newer ones took its place"):
        traces.find("id-899")


def test_a_trace_that_cannot_be_kept_costs_no_answer(tmp_path: Path, churn: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "traces.db").write_bytes(b"no database" * 1_000)
    broken = Traces(tmp_path / "traces.db", 10)
    assert churn.tracer is not None
    assert len(replace(churn, tracer=replace(churn.tracer, traces=broken)).predict(users=[1])) == 1
    assert broken.flush()
    assert "1 traces are not kept" in caplog.text
    with pytest.raises(ZooError, match="cannot be used: file is not a database"):
        broken.forget([1])


@pytest.mark.parametrize("value", [float("nan"), datetime(2024, 1, 1, tzinfo=UTC)])
def test_what_json_cannot_say_costs_its_own_trace_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any) -> None:
    traces = Traces(tmp_path / "traces.db", 10)
    traces.add([trace(1, 1, value=value), trace(2, 2)])
    assert traces.find("id-2") == {"number": 2}
    assert "the trace id-1 is not kept" in caplog.text


def test_an_answer_does_not_wait_while_another_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 2)
    traces = Traces(tmp_path / "traces.db", 10)
    traces.add([trace(0, 0)])
    assert traces.find("id-0")
    with closing(sqlite3.connect(traces.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        traces.add([trace(1, 1)])
        assert not traces.flush(0)
        traces.add([trace(2, 2), trace(3, 3), trace(4, 4)])  # more than may wait
        other.execute("ROLLBACK")
    assert traces.find("id-1")
    with pytest.raises(UsageError, match="no trace"):
        traces.find("id-4")


def test_answers_given_close_together_are_written_together_and_sooner_where_somebody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SOON", 60.0)
    written, write = [], Traces._write
    monkeypatch.setattr(Traces, "_write", lambda own, made, trim: written.append(len(made)) or write(own, made, trim))
    traces = Traces(tmp_path / "traces.db", 10)
    for number in range(5):
        traces.add([trace(number, number)])
    assert traces.flush(10)
    assert written == [5]
    traces.add([trace(5, 5)])
    assert traces.find("id-5")


def test_a_reader_that_keeps_forgotten_bytes_in_the_file_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    traces = Traces(tmp_path / "traces.db", 10)
    traces.add([trace(1, 1, note="a secret")])
    assert traces.find("id-1")
    with closing(sqlite3.connect(traces.path, isolation_level=None)) as other:
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM traces").fetchone() == (1,)
        with pytest.raises(ZooError, match=r"run the same again"):
            traces.forget([1])
    assert traces.forget([1]) == 0
    assert b"a secret" not in b"".join(path.read_bytes() for path in tmp_path.glob("traces.db*"))


def test_a_thread_that_cannot_be_begun_loses_one_trace_and_fails_no_answer(
    tmp_path: Path, no_thread_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    traces = Traces(tmp_path / "traces.db", 10)
    traces.add([trace(1, 1)])
    assert "1 traces are not kept in" in caplog.text
    traces.add([trace(2, 2)])
    assert traces.find("id-2")
    with pytest.raises(UsageError, match="no trace"):
        traces.find("id-1")


def test_a_process_that_ends_or_forks_keeps_its_traces(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from zoo.traces import Trace, Traces
traces = Traces(Path(sys.argv[1]), 10)
traces.add([Trace("parent", 0, (), {})])
child = os.fork()
traces.add([Trace("child" if child == 0 else "later", 0, (), {})])
if child: os.waitpid(child, 0)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "traces.db")], check=True)
    for id in ("parent", "child", "later"):
        assert Traces(tmp_path / "traces.db", 10).find(id) == {}


@pytest.mark.parametrize("line", ["keep = -1", "keep = true", "rows = 3"])
def test_a_number_of_traces_that_cannot_be_meant_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "zoo.toml").write_text(f"[traces]\n{line}\n")
    with pytest.raises(UsageError, match=r"\[traces\] is .*expected keep"):
        Project.open(tmp_path)


def test_digests_tell_contents_apart() -> None:
    one = Artefact({"a": np.zeros(3)}, {"t": "x"})
    assert digest(one) == digest(Artefact({"a": np.zeros(3)}, {"t": "x"}))
    for other in (
        Artefact({"a": np.zeros(3, np.float32)}, {"t": "x"}),
        Artefact({"a": np.ones(3)}, {"t": "x"}),
        Artefact({}, {"t": "x"}),
    ):
        assert digest(one) != digest(other)
