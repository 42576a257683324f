"""Answers as rows are what they are as a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from zoo.answers import AS_OF, Answered
from zoo.scoring import Scores


def answered(n: int, outputs: tuple[str, ...] = (), lost: tuple[tuple[int, int], ...] = ()) -> Answered:
    """n rows of two members. lost: (row, member) of scores that are."""
    rng, width = np.random.default_rng(0), max(1, len(outputs))
    away = np.zeros((n, 2), bool)
    for row, member in lost:
        away[row, member] = True
    scores = rng.random((n, 2, width)).astype(np.float32)
    newest = np.where(np.arange(n) % 3 == 2, -1, 1_000_003 * np.arange(n))
    return Answered(
        keys=pa.table({"user_id": pa.array(range(n), pa.int64()), "shop": pa.array([f"s{i}" for i in range(n)])}),
        ids=[f"x-{i}" for i in range(n)],
        final=rng.random((n, width)).astype(np.float32),
        scores=Scores(scores, away, {"gru": "late"} if lost else {}),
        as_of=np.full(n, 10_000_000_007),
        newest=newest,
        source=np.array(["fresh", "cold", "last_known", "fresh"] * n, object)[:n],
        calibrated=([True, None, False] * n)[:n],
        members=("gbdt", "gru"),
        outputs=outputs,
        version="churn@3",
    )


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("outputs", [(), ("view", "purchase")])
@pytest.mark.parametrize("lost", [(), ((0, 0),), ((0, 0), (0, 1))])
def test_rows_are_those_of_the_table(n: int, outputs: tuple[str, ...], lost: tuple[tuple[int, int], ...]) -> None:
    answer = answered(n, outputs, lost if n else ())
    rows = answer.rows
    assert rows == answer.table().to_pylist()
    assert answer.rows is rows  # made once, for the answer and for its trace
    assert [*map(list, rows)] == [answer.table().column_names] * n
    assert {type(value) for row in rows for value in row.values()} <= {int, float, str, bool, list, type(None)}
    if n:
        assert answer.table().schema.metadata == {AS_OF: b"10000000007"}
        assert answer.at == 10_000_000_007
    else:
        assert answer.at is None


def test_what_is_not_there_is_null() -> None:
    first, second, third = answered(3, lost=((0, 1),)).rows
    assert first["gru"] is None
    assert first["missing"] == ["gru"]
    assert second["gru"] is not None
    assert (first["known"], second["known"], third["known"]) == (True, None, None)
    assert third["newest_event_age"] is None
