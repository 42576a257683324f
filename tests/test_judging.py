"""What a record says beside the leaderboard: the command that makes the run again, and what acting on scores does."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from zoo.calibration import IDENTITY
from zoo.contract import Examples, Target
from zoo.errors import UsageError
from zoo.finals import Chosen
from zoo.judging import actionable, command, decisions
from zoo.plugin import Column, FeatureBatch, TrainingData
from zoo.project import TaskSettings


def test_a_command_has_the_options_that_were_given_and_no_other() -> None:
    assert command("train", "churn") == "zoo train churn"
    assert command("train", "churn", test_start=None, check_leaks=False, member=None) == "zoo train churn"
    given = command("train", "churn", test_start="2017-09-01T00:00:00+00:00", member=("gbdt", "gru"), check_leaks=True)
    assert given == "zoo train churn --test-start 2017-09-01T00:00:00+00:00 --member gbdt --member gru --check-leaks"


def test_words_with_spaces_are_quoted() -> None:
    assert shlex.split(command("train", "my task; rm -rf", test_end="a b")) == [
        "zoo",
        "train",
        "my task; rm -rf",
        "--test-end",
        "a b",
    ]


def rows(cuts: int, users: int) -> tuple[Examples, np.ndarray]:
    """Rows of each user at each cut, and scores that rise with the user."""
    time = np.repeat(np.arange(cuts), users) * 1_000
    user = np.tile(np.arange(users), cuts)
    target = (user >= users // 2).astype(np.float64)
    return Examples({"user_id": user}, time, target, time), (user + 0.5) / users


def acting(settings: TaskSettings, train: Examples, held_out: np.ndarray) -> dict[str, Any]:
    """What acting does on ten test rows with scores 0.05, 0.15, ..., of which the upper half are positive."""
    score = (np.arange(10) + 0.5) / 10
    batch = FeatureBatch(
        {"user": {"x": Column(score)}}, {"user": np.arange(10, dtype=np.int32)}, np.zeros(10, int), np.zeros(10, int)
    )
    test = TrainingData(batch, (score > 0.5).astype(np.float64), np.ones(10), np.zeros(10, np.int64))
    final: Any = None
    made = Chosen(final, IDENTITY, (), held_out[:, None], {})
    return decisions(settings, made, train, test, score[:, None], np.arange(10)).get("decisions", {})


def test_a_capacity_is_rows_of_the_newest_cut_or_a_share_of_all_rows() -> None:
    train, score = rows(cuts=3, users=20)
    held_out = np.where(train.time > 0, score, np.nan)  # of the first cut there are none
    settings = TaskSettings("churn", "churn", ("gbdt",), capacity=4)
    few = acting(settings, train, held_out)["capacity"]
    assert few["threshold"] == score[16]  # the fourth of twenty users, not of forty rows
    assert (few["capacity"], few["acted"], few["precision"], few["recall"]) == (4, 0.2, 1.0, pytest.approx(0.4))
    share = acting(replace(settings, capacity=0.5), train, held_out)["capacity"]
    assert (share["threshold"], share["acted"]) == (score[10], 0.5)
    assert acting(settings, train, np.full(len(train), np.nan)) == {}  # nothing held out: no threshold


def test_stated_costs_are_compared_with_acting_on_nobody_and_on_all() -> None:
    train, score = rows(cuts=2, users=20)
    found = acting(TaskSettings("churn", "churn", ("gbdt",), cost_ratio=3.0), train, score)
    assert list(found) == ["costs"]
    costs = found["costs"]
    assert (costs["threshold"], costs["ratio"], costs["acted"]) == (0.25, 3.0, 0.8)
    assert (costs["cost"], costs["nobody"], costs["everybody"]) == (pytest.approx(0.3), 1.5, 0.5)


def test_a_capacity_that_no_instant_has_rows_for_is_refused_before_anything_is_fitted() -> None:
    settings = TaskSettings("propensity", "propensity", ("gbdt",), capacity=500)
    cuts, _ = rows(cuts=3, users=20)
    after = replace(cuts, time=np.arange(60))
    actionable(settings, Target("binary"), cuts)
    actionable(replace(settings, capacity=0.05), Target("binary"), after)
    said = r"capacity is 500 rows at one instant, and of 60 instants .* 100% have one row alone; expected a share"
    with pytest.raises(UsageError, match=said):
        actionable(settings, Target("binary"), after)


@pytest.mark.parametrize("stated", [{"capacity": 0.1}, {"cost_ratio": 2.0}])
def test_costs_and_capacities_of_several_classes_are_refused(stated: dict[str, float]) -> None:
    settings = TaskSettings("behaviour", "behaviour", ("gbdt",), **stated)
    with pytest.raises(UsageError, match=r"\[tasks.behaviour\] (capacity|cost_ratio) is .*, and the task is multiclass"):
        actionable(settings, Target("multiclass", ("a", "b", "c")), rows(2, 5)[0])
