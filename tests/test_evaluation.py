from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from zoo.errors import UsageError
from zoo.evaluation import METRICS, compare, evaluate, leaderboard
from zoo.evaluation.metrics import Ranked


def scores_of(seed: int, rows: int = 400, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes and the probabilities they were drawn with."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-signal * rng.normal(size=rows)))
    return (rng.random(rows) < p).astype(float), p


def point(name: str, target, score, weight=None) -> float:
    ranked, order = Ranked.of(np.asarray(target, float), np.asarray(score, float))
    weight = np.ones(len(order)) if weight is None else np.asarray(weight, float)
    return float(METRICS[name].compute(ranked, weight[None, order])[0])


rows = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_weighted_metrics_with_ties_equal_scikit_learn(rows):
    target = np.array([y for y, _, _ in rows], float)
    score = np.array([s / 6 for _, s, _ in rows])
    weight = np.array([w for _, _, w in rows], float)
    if (weight * target).sum() == 0 or (weight * (1 - target)).sum() == 0:
        return
    kwargs = {"sample_weight": weight}
    assert point("auc", target, score, weight) == pytest.approx(oracle.roc_auc_score(target, score, **kwargs), abs=1e-12)
    assert point("average_precision", target, score, weight) == pytest.approx(
        oracle.average_precision_score(target, score, **kwargs), abs=1e-12
    )
    assert point("log_loss", target, score, weight) == pytest.approx(oracle.log_loss(target, score, **kwargs), abs=1e-12)
    assert point("brier", target, score, weight) == pytest.approx(oracle.brier_score_loss(target, score, **kwargs), abs=1e-12)


def test_the_calibration_error_of_equal_mass_bins_is_the_mean_gap_of_the_bins():
    target, p = scores_of(0, 1000)
    score = p**2
    order = np.argsort(score)
    bins = order.reshape(10, 100)
    assert point("ece", target, score) == pytest.approx(np.abs((score - target)[bins].mean(axis=1)).mean(), abs=1e-12)


def test_a_constant_score_has_the_distance_to_the_base_rate_as_calibration_error():
    assert point("ece", [1, 0, 0, 0], [0.5] * 4) == pytest.approx(0.25)


def test_metrics_do_not_depend_on_the_order_of_rows():
    target, p = scores_of(1)
    score = np.round(p, 1)
    shuffled = np.random.default_rng(0).permutation(len(score))
    for name in METRICS:
        assert point(name, target, score) == pytest.approx(point(name, target[shuffled], score[shuffled]), abs=1e-12)


def test_shuffled_labels_score_one_half_inside_the_interval():
    target, score = scores_of(2, 2000)
    shuffled = np.random.default_rng(5).permutation(target)
    estimate = evaluate(shuffled, score, metrics=["auc"])["auc"]
    assert estimate.low < 0.5 < estimate.high
    assert evaluate(target, score, metrics=["auc"])["auc"].low > 0.5


def test_the_interval_matches_a_bootstrap_by_hand_over_households():
    target, score = scores_of(3, 300)
    groups = np.random.default_rng(0).integers(0, 60, 300)
    estimate = evaluate(target, score, groups=groups, metrics=["auc"], resamples=2000)["auc"]
    rng, drawn = np.random.default_rng(1), []
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    for _ in range(400):
        chosen = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        drawn.append(oracle.roc_auc_score(target[chosen], score[chosen]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert estimate.value == pytest.approx(oracle.roc_auc_score(target, score))
    assert estimate.low == pytest.approx(low, abs=0.01)
    assert estimate.high == pytest.approx(high, abs=0.01)


def test_repeated_rows_of_a_household_do_not_narrow_its_interval():
    target, score = scores_of(4, 200)
    once = evaluate(target, score, metrics=["auc"])["auc"]
    repeated, entity = np.tile(np.arange(200), 8), np.tile(np.arange(200), 8)
    naive = evaluate(target[repeated], score[repeated], metrics=["auc"])["auc"]
    by_household = evaluate(target[repeated], score[repeated], groups=entity, metrics=["auc"])["auc"]
    assert (by_household.low, by_household.high) == pytest.approx((once.low, once.high))
    assert naive.high - naive.low < (once.high - once.low) / 2


def test_over_several_cuts_a_metric_is_its_mean_over_the_cuts():
    parts = [scores_of(seed, 150) for seed in range(3)]
    target = np.concatenate([t for t, _ in parts])
    score = np.concatenate([s / (k + 1) for k, (_, s) in enumerate(parts)])
    cuts = np.repeat([30, 10, 20], 150)
    found = evaluate(target, score, cuts=cuts, resamples=10)
    assert found["auc"].value == pytest.approx(np.mean([oracle.roc_auc_score(t, s) for t, s in parts]))
    assert found["brier"].value == pytest.approx(oracle.brier_score_loss(target, score))


def test_a_better_score_differs_and_the_same_score_does_not():
    target, score = scores_of(6, 1000)
    noisy = np.clip(score + np.random.default_rng(0).normal(0, 0.4, 1000), 0, 1)
    better = compare(target, score, noisy)
    assert 0 < better.low < better.value < better.high
    assert better.p_value < 0.01
    same = compare(target, score, score)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert compare(target, noisy, score).value == pytest.approx(-better.value)


def test_the_paired_difference_is_surer_than_the_two_intervals():
    target, score = scores_of(7, 800)
    close = np.clip(score + np.random.default_rng(0).normal(0, 0.05, 800), 0, 1)
    paired = compare(target, score, close)
    single = evaluate(target, score, metrics=["auc"])["auc"]
    assert paired.high - paired.low < (single.high - single.low) / 2


def test_one_class_has_no_auc_but_a_log_loss():
    found = evaluate(np.ones(20), np.linspace(0.1, 0.9, 20), resamples=20)
    assert np.isnan(found["auc"].value)
    assert np.isnan(found["auc"].low)
    assert found["log_loss"].low < found["log_loss"].value < found["log_loss"].high


def test_the_same_seed_gives_the_same_interval_whatever_the_chunks(monkeypatch):
    target, score = scores_of(8)
    whole = evaluate(target, score, resamples=50, seed=3)
    monkeypatch.setattr("zoo.evaluation.bootstrap.CELLS", 400 * 7)
    chunked = evaluate(target, score, resamples=50, seed=3)
    for name, estimate in whole.items():
        assert (chunked[name].low, chunked[name].high) == pytest.approx((estimate.low, estimate.high), abs=1e-12)
    assert evaluate(target, score, resamples=50, seed=4)["auc"].low != whole["auc"].low


def test_the_leaderboard_is_data_that_json_takes():
    target, score = scores_of(9)
    lines = leaderboard(
        target, {"gru": score[:, None], "half": score * 0 + 0.5}, seconds={"gru": 2.5}, against="half", resamples=50
    )
    first, second = (line.as_dict() for line in json_round_trip(lines))
    assert first["auc"] == pytest.approx(oracle.roc_auc_score(target, score))
    assert first["auc_interval"][0] < first["auc"] < first["auc_interval"][1]
    assert first["base_rate"] == pytest.approx(target.mean())
    assert first["rows"] == 400
    assert first["seconds"] == 2.5
    assert list(first["differences"]) == ["log_loss", "auc"]  # the one that stacks are chosen by first
    assert all(each["p_value"] < 0.05 for each in first["differences"].values())
    assert first["differences"]["auc"]["value"] == pytest.approx(first["auc"] - 0.5)
    assert first["differences"]["log_loss"]["value"] == pytest.approx(first["log_loss"] - np.log(2))
    assert second["seconds"] is None
    assert "differences" not in second


def json_round_trip(lines):
    for line in lines:
        assert json.loads(json.dumps(line.as_dict(), allow_nan=False)) == line.as_dict()
    return lines


def test_an_undefined_metric_is_null_in_json():
    (line,) = leaderboard(np.ones(5), {"m": np.full(5, 0.5)}, resamples=5)
    assert line.as_dict()["auc"] is None
    json.dumps(line.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda y, p: evaluate(y, p[:-1]), "expected one value a row"),
        (lambda y, p: evaluate(y, p, groups=np.zeros(3)), "expected one value a row"),
        (lambda y, p: evaluate(y[:0], p[:0]), "at least one row"),
        (lambda y, p: evaluate(y + 1, p), r"targets hold \[2.0\]"),
        (lambda y, p: evaluate(y, p * np.nan), "400 of 400 scores are not finite"),
        (lambda y, p: evaluate(y, p * 2), "need probabilities in 0..1"),
        (lambda y, p: evaluate(y, p, metrics=["roc"]), "unknown metric 'roc'; choose one of: auc"),
        (lambda y, p: leaderboard(y, {"a": p}, against="b"), "choose one of: a"),
    ],
)
def test_misuse_is_named(call, words):
    with pytest.raises(UsageError, match=words):
        call(*scores_of(0))


def test_scores_that_are_no_probabilities_can_be_ranked():
    target, score = scores_of(0)
    found = evaluate(target, score * 1e6 - 5, metrics=["auc", "average_precision"], resamples=5)
    assert found["auc"].value == pytest.approx(oracle.roc_auc_score(target, score))
