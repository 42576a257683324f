"""Guards against leaks find a leak that is there, and nothing where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop import DAY, Shop

from zoo.contract import PADDING, Array, Block, Column, Examples, FeatureBatch, Split, Target, TrainingData
from zoo.fitting import Member, PluginSource
from zoo.leaks import FEWEST, Runs, canary, fits, look, newer, overlap, shuffled, single_features, target_like
from zoo.manager import plugins
from zoo.project import Project
from zoo.training import train

SOURCE = PluginSource()
GBDT = Member("gbdt", "gbdt", {"num_trees": 40, "num_leaves": 15, "num_threads": 1, "feature_fraction": 1.0})


def rows(users: list[int], times: list[int], known: list[int] | None = None) -> Examples:
    time = np.array(times, np.int64)
    return Examples({"user_id": np.array(users)}, time, np.zeros(len(users)), time + 1 if known is None else np.array(known))


def made(n: int = 600, seed: int = 0, signal: float = 1.0, **more: Any) -> TrainingData:
    """Rows with two columns, of which ``x`` says something of the label; more: further columns of the batch."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    target = (rng.random(n) < 1 / (1 + np.exp(-2 * signal * x))).astype(np.float64)
    block: Block = {"x": Column(x), "z": Column(rng.normal(size=n)), **{k: v(rng, target) for k, v in more.items()}}
    time = np.arange(n, dtype=np.int64) * DAY
    batch = FeatureBatch({"user": block}, {"user": np.arange(n, dtype=np.int32)}, time, time - 1)
    return TrainingData(batch, target, np.ones(n), time)


HALF = np.arange(400), np.arange(400, 600)


# Features from the future


def test_a_feature_at_its_rows_own_time_is_newer() -> None:
    batch = made().batch
    assert newer(batch, batch).fine
    found = newer(batch, replace(batch, newest=np.where(np.arange(600) < 3, batch.as_of, batch.newest)))
    assert not found.fine
    assert found.seen.startswith("3 of 1,200 rows")
    assert "include_equal" in found.advice


# Rows on both sides


def test_a_row_on_both_sides_is_counted() -> None:
    assert overlap(Split(rows([1, 2, 2], [10, 10, 11]), rows([1, 2], [20, 20]))).fine
    found = overlap(Split(rows([1, 2, 2], [10, 10, 20]), rows([1, 2], [20, 20])))
    assert not found.fine
    assert found.seen.startswith("1 of 2 test rows")


def test_rows_that_share_a_user_but_no_time_are_told_apart_by_every_key() -> None:
    def pairs(users: list[int], campaigns: list[int], time: int) -> Examples:
        return replace(rows(users, [time] * len(users)), keys={"user_id": np.array(users), "campaign_id": np.array(campaigns)})

    assert overlap(Split(replace(pairs([1, 2], [7, 7], 5), known_at=np.array([5, 5])), pairs([1, 2], [8, 8], 5))).fine
    assert not overlap(Split(pairs([1, 2], [7, 8], 5), pairs([1, 2], [8, 8], 5))).fine


def test_a_training_label_of_the_time_after_its_users_test_row_is_an_overlap() -> None:
    fine = Split(rows([1, 2], [10, 10], [19, 99]), rows([1, 3], [20, 20]))  # user 2 is no test row
    assert overlap(fine).fine
    found = overlap(Split(rows([1, 2], [10, 10], [21, 99]), rows([1, 3], [20, 20])))
    assert not found.fine
    assert found.seen.startswith("1 of 2 training labels became known only after a test row of the same user_id")


# A feature that is the label


def noisy(rng: np.random.Generator, target: Array) -> Column:
    return Column(np.where(rng.random(len(target)) < 0.005, 1 - target, target) * -3.0)


def coded(rng: np.random.Generator, target: Array) -> Column:
    return Column((2 + target * 5 + rng.integers(0, 5, len(target))).astype(np.int32), dictionary="status")


def sequence(rng: np.random.Generator, target: Array) -> Column:
    lengths = target.astype(np.int64) + 1
    return Column(rng.random(lengths.sum()), np.concatenate([[0], np.cumsum(lengths)]))


def missing(rng: np.random.Generator, target: Array) -> Column:
    return Column(np.where(target == 1, np.nan, rng.random(len(target))))


@pytest.mark.parametrize(
    ("leak", "named"),
    [(noisy, "closed"), (coded, "closed"), (sequence, "closed (how many)"), (missing, "closed")],
    ids=["reversed", "codes", "lengths", "missing values"],
)
def test_a_feature_that_tells_the_label_by_itself_is_named(leak: Any, named: str) -> None:
    found = target_like(made(closed=leak))
    assert not found.fine
    assert f"{named} (AUC " in found.seen
    assert " x " not in found.seen
    assert "leave it out" in found.advice


def test_a_strong_feature_and_a_code_a_row_are_no_leak() -> None:
    def own(_: np.random.Generator, target: Array) -> Column:
        return Column(np.arange(2, 2 + len(target), dtype=np.int32), dictionary="receipt")

    data = made(signal=3.0, receipt=own)
    found = single_features(data)
    assert 0.9 < found["x"] < 0.98
    assert found["receipt"] < 0.6
    assert target_like(data).fine
    assert "strongest single feature is x, AUC 0.9" in target_like(data).seen


def test_classes_are_each_looked_at_and_too_few_rows_say_nothing() -> None:
    data = made(closed=noisy)
    classes = replace(data, target=data.target * 2, kind=Target("multiclass", ("a", "b", "c")))
    assert "closed" in target_like(classes).seen
    few = np.zeros(600)
    few[: FEWEST - 1] = 1
    assert target_like(replace(data, target=few)).fine


# Guards that fit


def test_shuffled_labels_are_chance_unless_scored_rows_are_learnt_from() -> None:
    train, scored = HALF
    honest = shuffled(GBDT, made(), train, scored, Runs(SOURCE))
    assert honest.fine
    assert honest.seen.startswith("gbdt on shuffled labels has AUC 0.")
    leaky = shuffled(GBDT, made(), np.arange(600), scored, Runs(SOURCE))
    assert not leaky.fine
    assert "zoo_folds" in leaky.advice


def test_a_random_column_is_not_chosen_where_there_is_something_to_learn() -> None:
    found = canary(GBDT, made(), *HALF, np.arange(600), Runs(SOURCE))
    assert found.fine
    assert "beside a random column the log-loss of gbdt changes by" in found.seen
    assert "columns move its scores no more than the random one does" in found.seen


def test_a_random_column_is_chosen_where_there_is_only_noise() -> None:
    found = canary(GBDT, made(signal=0.0), *HALF, np.arange(600), Runs(SOURCE))
    assert not found.fine
    assert "learns noise" in found.advice


def test_a_random_column_that_helps_is_told() -> None:
    # with rows to learn from that are the rows to score, more noise is better
    deep = replace(GBDT, params={**GBDT.params, "num_trees": 300})
    found = canary(deep, made(signal=0.0), np.arange(600), np.arange(600), np.arange(600), Runs(SOURCE))
    assert not found.fine
    assert "a column of noise cannot help" in found.advice


def test_a_slow_member_is_fitted_on_fewer_rows_and_on_none_where_these_would_be_too_few() -> None:
    slow = {"gbdt": 1_000.0}
    told = fits([GBDT], made(), [HALF], np.arange(600), slow, source=SOURCE)
    assert all(each.fine and not each.tried and "--check-leaks" in each.seen for each in told)
    assert "learns from 24 rows" in told[0].seen
    tried = fits([GBDT], made(), [HALF], np.arange(600), slow, anyhow=True, source=SOURCE)
    assert [each.guard for each in tried] == ["shuffled labels", "canary"]
    assert all(each.tried for each in tried)
    half = np.arange(3_000), np.arange(3_000, 4_000)
    fewer = fits([GBDT], made(4_000), [half], np.arange(4_000), {"gbdt": 120.0}, source=SOURCE)
    assert all(each.tried and "; on 1,500 of 3,000 rows" in each.seen for each in fewer)


# In training


def test_a_sequence_without_a_next_item_has_no_label_that_could_overlap() -> None:
    """Recommendation's training rows stand at training's end where their newest event is no target."""
    data = replace(made(), kind=Target("ranking"))
    train = replace(rows([1, 2], [10, 20], [10, 25]), target=np.array([3.0, 4.0]))
    late = Split(train, rows([1, 2], [20, 21]))
    assert not look(late, data, data)[1].fine
    without = replace(late, train=replace(train, target=np.array([3.0, PADDING])))
    assert look(without, data, data)[1].fine


def test_every_run_keeps_what_the_guards_saw(trained_shop: Shop, tmp_path: Path) -> None:
    project = Project.open(trained_shop.copy(tmp_path / "shop").root)
    guards = train(project, "churn", plugins=plugins(), register=False, members=["gbdt"]).record["guards"]
    assert [each["guard"] for each in guards] == [
        "newer features",
        "overlap",
        "target-like features",
        "shuffled labels",
        "canary",
    ]
    assert [each for each in guards if "not tried" in each["seen"]] == []
    assert all(each["fine"] for each in guards[:4])
