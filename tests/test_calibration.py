"""Calibrators against scikit-learn, by hand and on later rows; figures of calibration; thresholds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from zoo.calibration import IDENTITY, KINDS, Calibrator, chosen, losses
from zoo.choice import better, least
from zoo.errors import ArtefactError, UsageError
from zoo.evaluation import calibration, decision, evaluate, reliability, threshold_of_capacity, threshold_of_costs

MAPS = KINDS[1:]


def rows(seed: int = 0, n: int = 4000, a: float = 1.0, b: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, 1) and outcomes whose log-odds are ``b + a`` times the scores'."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return 1 / (1 + np.exp(-x))[:, None], (rng.random(n) < 1 / (1 + np.exp(-(b + a * x)))).astype(float)


def test_platt_is_the_logistic_regression_on_the_logit():
    p, y = rows(a=0.5, b=-0.7)
    (curve,) = Calibrator.fit("platt", p, y, np.ones(len(y))).curves
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(np.log(p / (1 - p)), y)
    assert (curve["a"], curve["c"]) == pytest.approx((oracle.coef_[0, 0], oracle.intercept_[0]), abs=2e-3)
    assert curve["a"] == curve["b"]


def test_beta_is_the_logistic_regression_on_both_logarithms():
    rng = np.random.default_rng(1)
    p = rng.beta(2, 5, 20_000)[:, None]
    eta = 0.6 * np.log(p[:, 0]) - 1.5 * np.log1p(-p[:, 0]) - 0.2
    y = (rng.random(len(p)) < 1 / (1 + np.exp(-eta))).astype(float)
    (curve,) = Calibrator.fit("beta", p, y, np.ones(len(y))).curves
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(np.column_stack([np.log(p), -np.log1p(-p)]), y)
    assert (curve["a"], curve["b"], curve["c"]) == pytest.approx((*oracle.coef_[0], oracle.intercept_[0]), abs=1e-2)


def test_isotonic_is_that_of_scikit_learn_kept_from_certainty():
    p, y = rows(n=300, a=2.0)
    mapped = Calibrator.fit("isotonic", p, y, np.ones(300))(p)[:, 0]
    oracle = IsotonicRegression().fit_transform(p[:, 0], y)
    assert oracle.min() == 0
    np.testing.assert_allclose(mapped, np.clip(oracle, 1 / 302, 301 / 302), atol=1e-12)


@pytest.mark.parametrize("kind", MAPS)
def test_what_is_too_bold_is_made_true_on_rows_not_seen(kind):
    p, y = rows(0, 20_000, 0.4, -0.5)
    later, outcome = rows(1, 20_000, 0.4, -0.5)
    fitted = Calibrator.fit(kind, p, y, np.ones(len(y)))
    before, after = (calibration(outcome, each, resamples=20) for each in (later, fitted(later)))
    assert before["slope"].value == pytest.approx(0.4, abs=0.05)
    assert after["slope"].value == pytest.approx(1, abs=0.1)
    assert after["intercept"].value == pytest.approx(0, abs=0.06)
    assert after["ece"].value < 0.02 < 0.1 < before["ece"].value


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(MAPS),
    st.lists(st.tuples(st.sampled_from([0.0, 1e-9, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30),
)
def test_a_map_rises_or_stays_inside_0_and_1_and_comes_back_from_json(kind, pairs):
    p, y = np.array([[score] for score, _ in pairs]), np.array([float(hit) for _, hit in pairs])
    fitted = Calibrator.fit(kind, p, y, np.ones(len(y)))
    grid = np.linspace(0, 1, 101)[:, None].astype(np.float32)
    out = fitted(grid)
    assert out.dtype == np.float32
    assert (np.diff(out[:, 0]) >= 0).all()
    assert 0 <= out.min() <= out.max() <= 1
    again = Calibrator.from_json(fitted.to_json())
    assert again(grid).tobytes() == out.tobytes()
    assert all(again(grid[[i]])[0] == out[i] for i in (0, 37, 100))


def test_several_classes_are_mapped_one_by_one_and_sum_to_1():
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(6000, 3))
    true = np.exp(eta) / np.exp(eta).sum(axis=1, keepdims=True)
    bold = np.exp(2 * eta) / np.exp(2 * eta).sum(axis=1, keepdims=True)
    y = (true.cumsum(axis=1) < rng.random(6000)[:, None]).sum(axis=1).astype(float)
    mapped = Calibrator.fit("platt", bold[:3000], y[:3000], np.ones(3000))(bold)
    np.testing.assert_allclose(mapped.sum(axis=1), 1)
    ones = np.ones(3000)
    assert losses(mapped[3000:], y[3000:], ones).mean() < losses(bold[3000:], y[3000:], ones).mean() - 0.02


def forward(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.arange(n // 3), np.arange(n // 3, 2 * n // 3)), (np.arange(2 * n // 3), np.arange(2 * n // 3, n))]


def test_calibration_is_chosen_on_later_rows_and_left_out_where_it_does_not_help():
    for a, expected in ((1.0, {"none"}), (0.3, {"platt", "beta"})):
        p, y = rows(2, 3000, a)
        kind, loss = chosen(p, y, np.ones(3000), forward(3000))
        assert kind in expected
        assert set(loss) == set(KINDS)
    assert loss["platt"] < loss["none"]
    assert chosen(p, y, np.ones(3000), []) == ("none", {})


def test_a_gain_of_a_few_users_many_times_over_is_within_chance():
    user = np.repeat(np.arange(20), 50)
    gain = np.where(np.arange(20) < 11, 1.0, -1.0)[user]
    assert better(gain)
    assert not better(gain, user)
    assert least({"plain": gain, "other": np.zeros(1000)}, "plain") == "other"
    assert least({"plain": gain, "other": np.zeros(1000)}, "plain", user) == "plain"
    assert not better(np.ones(1000), np.zeros(1000))
    assert better(np.ones(20), np.arange(20))


def test_a_better_loss_must_be_so_beyond_chance():
    def found(users: int, mean: float) -> bool:
        gain = np.random.default_rng(0).normal(size=users)
        return better((gain - gain.mean()) / gain.std() + mean, np.arange(users))

    # in standard errors of the mean: 1.6 is within chance, 1.8 is not
    assert [found(400, size / 20) for size in (0.9, 1.6, 1.8)] == [False, False, True]
    # 1.8 of them over 400 users of whom two decide are
    assert not better(np.r_[30.0, -30.0, np.zeros(398)] + 1.8 * np.sqrt(1800) / 400, np.arange(400))


def test_what_is_no_calibrator_is_named():
    with pytest.raises(UsageError, match="unknown calibration 'plat'; choose one of: beta, isotonic, none, platt"):
        Calibrator.fit("plat", np.zeros((1, 1)), np.zeros(1), np.ones(1))
    for text in ("[]", "{}", json.dumps({"kind": "platt", "curves": [{"a": 1}]}), json.dumps({"kind": "x", "curves": []})):
        with pytest.raises(ArtefactError, match="not a calibrator"):
            Calibrator.from_json(text)
    assert Calibrator.from_json(IDENTITY.to_json()) == IDENTITY


# Figures


def test_slope_and_intercept_are_those_of_the_regression_on_the_logit():
    p, y = rows(3, 2000, 0.7, 0.4)
    found = evaluate(y, p, metrics=["slope", "intercept"], resamples=400)
    x = np.log(p / (1 - p))
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(x, y)
    assert found["slope"].value == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
    assert found["slope"].low < 0.7 < found["slope"].high
    # with the slope held at 1 the sum of what is predicted is the sum of what happened
    assert (1 / (1 + np.exp(-(x[:, 0] + found["intercept"].value)))).sum() == pytest.approx(y.sum(), abs=1e-6)


def test_the_interval_of_the_slope_matches_a_bootstrap_by_hand():
    p, y = rows(4, 300, 0.8)
    x, rng = np.log(p / (1 - p)), np.random.default_rng(0)
    by_hand = []
    for _ in range(200):
        drawn = rng.integers(0, 300, 300)
        by_hand.append(LogisticRegression(C=np.inf).fit(x[drawn], y[drawn]).coef_[0, 0])
    found = evaluate(y, p, metrics=["slope"], resamples=1000)["slope"]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(by_hand, [2.5, 97.5])), abs=0.08)


def test_slope_and_intercept_are_undefined_where_nothing_can_be_said():
    assert np.isnan(evaluate(np.ones(9), np.linspace(0.1, 0.9, 9), metrics=["slope"], resamples=5)["slope"].value)
    assert np.isnan(evaluate([0, 1, 1], [0.5] * 3, metrics=["slope"], resamples=5)["slope"].value)


def test_the_reliability_curve_is_bins_of_equal_mass_with_the_rate_inside_its_interval():
    p, y = rows(5, 1000)
    order = np.argsort(p[:, 0]).reshape(10, 100)
    curve = reliability(y, p, groups=np.arange(1000) // 2, resamples=200)
    assert [each.rows for each in curve] == [100] * 10
    np.testing.assert_allclose([each.score for each in curve], p[order, 0].mean(axis=1))
    np.testing.assert_allclose([each.rate.value for each in curve], y[order].mean(axis=1))
    assert all(each.rate.low <= each.rate.value <= each.rate.high for each in curve)
    assert [each.rows for each in reliability([0.0, 1.0], [0.5, 0.5], resamples=5)] == [2]


def test_calibration_of_classes_is_that_of_the_likeliest_one():
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]])
    assert reliability([0, 1, 0, 0], scores, bins=1, resamples=5)[0].rate.value == 0.75


# Thresholds


def test_the_threshold_of_costs_is_the_cheapest_there_is_on_calibrated_scores():
    p, y = rows(6, 50_000)
    ratio = 4.0
    costs = {t: decision(y, p, t, ratio, resamples=2).cost.value for t in (0.05, threshold_of_costs(ratio), 0.5, 0.9)}
    assert min(costs, key=costs.get) == threshold_of_costs(ratio) == 0.2
    found = decision(y, p, 0.2, ratio, resamples=50)
    act = p[:, 0] >= 0.2
    assert found.precision.value == pytest.approx(y[act].mean())
    assert found.recall.value == pytest.approx(y[act].sum() / y.sum())
    assert found.cost.value == pytest.approx(((act & (y == 0)).sum() + ratio * (~act & (y == 1)).sum()) / len(y))
    assert (found.nobody, found.everybody) == pytest.approx((ratio * y.mean(), 1 - y.mean()))
    assert found.cost.low < found.cost.value < found.cost.high < min(found.nobody, found.everybody)
    json.dumps(found.as_dict(), allow_nan=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 35))
def test_no_more_rows_than_the_capacity_are_let_in_and_one_more_would_be_too_many(scores, capacity):
    values = np.array(scores) / 5
    threshold = threshold_of_capacity(values, capacity)
    inside = (values >= threshold).sum()
    assert inside <= capacity
    below = values[values < threshold]
    assert not len(below) or (values >= below.max()).sum() > capacity


def test_a_share_is_a_capacity_and_nothing_below_0():
    assert (np.arange(100) >= threshold_of_capacity(np.arange(100), 0.1)).sum() == 10
    for wrong in (0.0, -1.0, np.nan):
        with pytest.raises(UsageError, match="expected a number of rows"):
            threshold_of_capacity(np.arange(3), wrong)
        with pytest.raises(UsageError, match="expected how many needless acts"):
            threshold_of_costs(wrong)
    nobody = decision([0, 1], [0.2, 0.3], np.inf, resamples=5).as_dict()
    assert (nobody["threshold"], nobody["acted"], nobody["precision"]) == (None, 0.0, None)


def test_few_rows_of_a_class_choose_no_calibration_and_few_rows_no_steps():
    rng = np.random.default_rng(0)
    p, weight = rng.uniform(0.05, 0.95, (600, 1)), np.ones(600)
    folds = [(np.arange(300), np.arange(300, 600))]
    none = chosen(p, np.zeros(600), weight, folds)
    assert none[0] == "none"
    assert list(none[1]) == ["none"]
    assert set(chosen(p, (rng.random(600) < p[:, 0] ** 3).astype(float), weight, folds)[1]) == {"none", "platt", "beta"}
