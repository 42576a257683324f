"""Qini and policy values against their definitions, row by row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import UsageError
from zoo.evaluation.uplift import best_arms, compare_qini, evaluate_qini, policy_values, qini, qini_curve

rows = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.booleans()), min_size=4, max_size=40)


def by_hand(outcome, uplift, treated):
    """Points (rows contacted, gain), one after each run of equal scores: the definition, without cumulative sums."""
    points = [(0, 0.0)]
    for threshold in sorted(set(uplift), reverse=True):
        chosen = [(y, t) for y, u, t in zip(outcome, uplift, treated) if u >= threshold]
        with_it, without = [y for y, t in chosen if t], [y for y, t in chosen if not t]
        scale = len(with_it) / len(without) if without else 0.0
        points.append((len(chosen), sum(with_it) - sum(without) * scale))
    return points


def area(points):
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


@settings(max_examples=100, deadline=None)
@given(rows)
def test_qini_is_the_area_beyond_chance_as_a_share_of_the_perfect_orders(rows):
    outcome, uplift, treated = (np.array(each, float) for each in zip(*rows))
    if not 0 < treated.sum() < len(treated):
        return
    ours, perfect = by_hand(outcome, uplift, treated), by_hand(outcome, outcome * (2 * treated - 1), treated)
    curve = qini_curve(outcome, uplift, treated)
    np.testing.assert_allclose(np.c_[curve.contacted, curve.gain], ours, atol=1e-9)
    chance = len(rows) * ours[-1][1] / 2
    best = area(perfect) - chance
    if best > 1e-9:
        assert qini(outcome, uplift, treated) == pytest.approx((area(ours) - chance) / best, abs=1e-9)


def trial(n=4000, seed=0):
    """Treatment helps rows with x > 0 and harms the others."""
    rng = np.random.default_rng(seed)
    x, treated = rng.normal(size=n), rng.integers(0, 2, n)
    outcome = (rng.random(n) < 0.3 + 0.2 * treated * np.sign(x)).astype(float)
    return x, treated, outcome


def test_the_order_of_the_true_effect_beats_chance_and_its_reverse_does_not():
    x, treated, outcome = trial()
    right, wrong = (evaluate_qini(outcome, s * x, treated, resamples=200) for s in (1, -1))
    assert right.low > 0 > wrong.high
    chance = evaluate_qini(outcome, np.random.default_rng(1).normal(size=len(x)), treated, resamples=200)
    assert chance.low < 0 < chance.high
    apart = compare_qini(outcome, x, -x, treated, resamples=200)
    assert apart.low > 0
    assert apart.value == pytest.approx(right.value - wrong.value)


def test_a_resample_is_the_rows_drawn_again():
    x, treated, outcome = trial(60)
    drawn = np.random.default_rng(0).integers(0, 60, (100, 60))
    values = [qini(outcome[d], x[d], treated[d]) for d in drawn if 0 < treated[d].sum() < 60]
    estimate = evaluate_qini(outcome, x, treated, resamples=100, seed=0)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_a_policys_value_is_the_mean_outcome_of_rows_that_were_given_its_arm():
    rng = np.random.default_rng(0)
    arm = rng.integers(0, 3, 900)
    outcome = rng.random(900) + arm
    found = policy_values(outcome, arm, {"none": 0 * arm, "last": 0 * arm + 2, "as given": arm}, against="none", resamples=100)
    assert found["none"][0].value == pytest.approx(outcome[arm == 0].mean())
    assert found["last"][0].value == pytest.approx(outcome[arm == 2].mean())
    assert found["as given"][0].value == pytest.approx(sum(outcome[arm == a].mean() for a in range(3)))
    assert found["none"][1] is None
    assert found["last"][1].low > 1.5


def test_a_mixed_policy_is_valued_by_inverse_propensity():
    x, treated, outcome = trial()
    policy = (x > 0).astype(int)
    agreed = treated == policy
    share = np.where(treated == 1, treated.mean(), 1 - treated.mean())
    found, apart = policy_values(outcome, treated, {"all": np.ones(len(x), int), "best": policy}, against="all")["best"]
    assert found.value == pytest.approx((outcome * agreed / share).mean())
    assert apart.low > 0


def test_a_policy_that_draws_arms_is_worth_their_mixture():
    rng = np.random.default_rng(0)
    arm = rng.integers(0, 3, 900)
    outcome = rng.random(900) + arm
    drawn = np.tile([0.75, 0.0, 0.25], (900, 1))
    found, apart = policy_values(outcome, arm, {"none": 0 * arm, "drawn": drawn}, against="none", resamples=100)["drawn"]
    assert found.value == pytest.approx(0.75 * outcome[arm == 0].mean() + 0.25 * outcome[arm == 2].mean())
    assert apart.low > 0.4
    certain = np.eye(3)[arm]
    both = policy_values(outcome, arm, {"arms": arm, "certain": certain}, against="arms", resamples=20)["certain"][1]
    assert (both.low, both.high) == pytest.approx((0, 0))
    without = policy_values(outcome[arm != 1], arm[arm != 1], {"drawn": drawn[arm != 1]}, resamples=0)["drawn"][0]
    assert without.value == pytest.approx(found.value)  # an arm that is never drawn need not have been given


def test_the_best_arm_is_taken_where_it_gains_within_the_budget():
    uplift = np.array([[0.1, 0.3], [-0.1, -0.2], [0.2, 0.1], [0.4, 0.0]])
    assert best_arms(uplift).tolist() == [2, 0, 1, 1]
    assert best_arms(uplift, 2).tolist() == [2, 0, 0, 1]
    assert best_arms(uplift, 0).tolist() == [0, 0, 0, 0]


def test_within_a_budget_equal_rows_are_drawn_wherever_they_stand_in_the_table():
    treated = np.repeat([1, 0], 5_000)  # a table that has the treated ones first
    outcome = np.where(np.arange(10_000) % 10 == 0, 1.0, 0.0)  # a tenth in either group
    policy = best_arms(np.ones((10_000, 1)), 2_000)
    assert (policy > 0).sum() == 2_000
    assert policy[treated == 1].mean() == pytest.approx(0.2, abs=0.02)
    found = policy_values(outcome, treated, {"some": policy}, resamples=0)["some"][0]
    assert found.value == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("outcome", "uplift", "treated", "message"),
    [
        ([1, 0], [0.1, 0.2], [1, 1], "expected 0 and 1, rows of each"),
        ([1, 0], [0.1], [1, 0], "expected one value a row"),
        ([1, 0], [np.nan, 0.2], [1, 0], "not finite"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(outcome, uplift, treated, message):
    with pytest.raises(UsageError, match=message):
        qini(np.array(outcome, float), np.array(uplift, float), np.array(treated, float))


def test_a_policy_to_compare_with_has_to_be_there():
    with pytest.raises(UsageError, match="'all' is not among those to value: none"):
        policy_values(np.ones(2), np.array([0, 1]), {"none": np.zeros(2, int)}, against="all")
