"""Everybody at once, from an event loop, or in the child of a fork: the answers of one call in one thread."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shop import DAY, DAYS, START, USERS, Shop

from zoo.errors import LateError, UsageError
from zoo.features import Features
from zoo.population import write
from zoo.predictor import Predictor
from zoo.scoring import Scorer

EVERYONE = list(range(1, USERS + 1))
AT = START + DAYS * DAY


@pytest.fixture(scope="module")
def churn(trained_shop: Shop) -> Predictor:
    return Predictor.load("churn", trained_shop.root)


def silent(done: float, text: str) -> None:
    pass


def close(one: pa.Table, other: pa.Table) -> None:
    """fp32 differs in its last bits between sizes of a batch."""
    for name in ("user_id", "newest_event_age", "known", "version", "missing"):
        assert one[name].to_pylist() == other[name].to_pylist()
    for name in ("score", "gbdt", "gru"):
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), rtol=0, atol=1e-5)


# Everybody


def test_everybody_is_answered_as_when_asked_for_alone(churn: Predictor) -> None:
    tables = list(churn.predict_batches(at=AT, size=100))
    assert [len(table) for table in tables] == [100, 100, USERS - 200]
    whole = pa.concat_tables(tables)
    assert sorted(whole["user_id"].to_pylist()) == EVERYONE
    close(whole, churn.predict(users=whole["user_id"].to_pylist(), at=AT))
    assert "id" not in whole.column_names


def test_rows_are_answered_in_order_with_repeats_and_strangers(churn: Predictor) -> None:
    users = [5, 999_999, 5, 7]
    found = pa.concat_tables(churn.predict_batches({"user_id": users}, at=AT, size=3))
    close(found, churn.predict(users=users, at=AT))
    assert list(churn.predict_batches({"user_id": []})) == []


def test_a_batch_needs_no_online_store_and_sees_one_version_of_the_log(trained_shop: Shop, tmp_path: Path) -> None:
    root = trained_shop.copy(tmp_path / "shop").root
    (root / "data" / "online.db").unlink()
    predictor = Predictor.load("churn", root)
    tables = predictor.predict_batches(at=AT, size=200)
    first = next(tables)
    user = next(iter(set(EVERYONE) - set(first["user_id"].to_pylist())))
    event = {"event_id": ["late"], "user_id": [user], "event_type": ["purchase"], "item_id": [1], "time": [AT - 1]}
    predictor.features.reader.log.append(pa.table(event))
    (second,) = tables
    ages = dict(zip(second["user_id"].to_pylist(), second["newest_event_age"].to_pylist(), strict=True))
    assert ages[user] != 1e-6
    assert not (root / "data" / "online.db").exists()


def test_rows_of_several_keys_have_to_be_given(trained_shop: Shop) -> None:
    campaign = Predictor.load("campaign", trained_shop.root)
    with pytest.raises(UsageError, match="asked about user_id, campaign_id, not about users alone; give rows"):
        next(campaign.predict_batches())
    rows = {"user_id": [1, 2], "campaign_id": [1, 2]}
    (found,) = campaign.predict_batches(rows, at=AT)
    assert found["score"].to_pylist() == pytest.approx(campaign.predict(rows, at=AT)["score"].to_pylist(), abs=1e-6)
    with pytest.raises(UsageError, match="size is 0"):
        next(campaign.predict_batches(rows, size=0))


@pytest.mark.parametrize("name", ["scores.parquet", "scores.arrow"])
def test_a_file_holds_every_table_and_replaces_the_one_before_once_it_is_whole(tmp_path: Path, name: str) -> None:
    tables = [pa.table({"user_id": [n], "score": [n / 4]}) for n in range(3)]
    path, told = tmp_path / name, list[str]()
    path.write_bytes(b"before")
    assert write(iter(tables), path, 3, lambda _, text: told.append(text)) == 3
    found = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()
    assert found.equals(pa.concat_tables(tables))
    assert told[-1] == "3 of 3 rows"
    held = path.read_bytes()

    def breaking() -> Any:
        yield tables[0]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write(breaking(), path, 3, silent)
    assert path.read_bytes() == held
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"unknown ending of the file to write '.csv'; choose one of: .arrow, .feather, .parquet"
    ):
        write([], tmp_path / "scores.csv", 0, silent)
    with pytest.raises(UsageError, match=r"no folder .*nowhere to write scores"):
        write([], tmp_path / "nowhere" / "scores.parquet", 0, silent)
    with pytest.raises(UsageError, match="nobody to predict for"):
        write([], tmp_path / "scores.parquet", 0, silent)


def zoo(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "zoo", "--repo", str(root), *words], capture_output=True, text=True, check=False)


def test_the_command_writes_everybody_into_a_file(trained_shop: Shop, churn: Predictor, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    done = zoo(trained_shop.root, "predict", "churn", "--all", "--out", str(out), "--json")
    assert json.loads(done.stdout) == {"model": "churn@1", "rows": USERS, "file": str(out)}
    found = pq.read_table(out)
    close(found, churn.predict(users=found["user_id"].to_pylist()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--all"], "--all writes a file; say which"),
        (["--all", "--user", "1", "--out", "x.parquet"], "say whom to predict for"),
        (["--user", "1", "--out", "x.parquet"], "--out is for --all or --rows FILE"),
    ],
)
def test_options_that_cannot_go_together_are_refused(trained_shop: Shop, words: list[str], message: str) -> None:
    done = zoo(trained_shop.root, "predict", "churn", *words)
    assert (done.returncode, message in done.stderr.replace("\n", " ")) == (2, True)


# From an event loop


def test_async_answers_are_those_of_threads(churn: Predictor) -> None:
    async def ask() -> list[pa.Table]:
        return await asyncio.gather(*(churn.predict_async(users=[user], at=AT, deadline=60) for user in EVERYONE[:100]))

    answers = pa.concat_tables(asyncio.run(ask()))
    close(answers, churn.predict(users=EVERYONE[:100], at=AT))
    told: dict[str, Any] = {"users": EVERYONE[:2], "at": AT, "top": 2, "events": 1}
    assert asyncio.run(churn.explain_async(**told, deadline=60)) == churn.explain(**told)


def test_async_errors_reach_the_caller_and_cancelling_harms_nobody(churn: Predictor) -> None:
    async def ask() -> Any:
        with pytest.raises(UsageError, match="either rows or users"):
            await churn.predict_async()
        with pytest.raises(UsageError, match="ranks no items"):
            await churn.recommend_async([1])
        with pytest.raises(UsageError, match="unknown output 'yes'"):
            await churn.explain_async(users=[1], output="yes")
        with pytest.raises(LateError):
            await replace(churn, _scorer=Scorer()).predict_async(users=[1], deadline=1e-9)
        gone = asyncio.ensure_future(churn.predict_async(users=[1]))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await churn.predict_async(users=[2], at=AT)

    close(asyncio.run(ask()), churn.predict(users=[2], at=AT))


# In the child of a fork


def in_a_fork(work: Any) -> Any:
    """What the work returns, JSON-ready, in a child of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def test_a_predictor_that_was_loaded_before_a_fork_answers_in_the_child(churn: Predictor) -> None:
    expected = [churn.predict(users=[user], at=AT, deadline=60)["score"][0].as_py() for user in (1, 2)]

    def work() -> Any:
        late = [churn.predict(users=[user], at=AT, deadline=60) for user in (1, 2)]
        at_once = asyncio.run(churn.predict_async(users=[1], at=AT))
        return [*(table["score"][0].as_py() for table in (*late, at_once)), late[0]["missing"][0].as_py()]

    assert in_a_fork(work) == [*expected, expected[0], []]
    assert churn.predict(users=[1], at=AT)["score"][0].as_py() == expected[0]


def test_a_child_reads_what_is_pushed_after_the_fork(trained_shop: Shop, tmp_path: Path) -> None:
    root = trained_shop.copy(tmp_path / "shop").root
    churn = Predictor.load("churn", root)
    churn.predict(users=[1])
    event = {"event_id": ["after"], "user_id": [1], "event_type": ["purchase"], "item_id": [1], "time": [AT]}

    def work() -> Any:
        churn.features.append(event)
        return churn.predict(users=[1], at=AT + 1)["newest_event_age"][0].as_py()

    assert in_a_fork(work) == 1e-6
    assert churn.predict(users=[1], at=AT + 1)["newest_event_age"][0].as_py() == 1e-6
    assert Features.open(root).reader.log.count() == churn.features.reader.log.count()
