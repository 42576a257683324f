"""BG/NBD and Pareto/NBD against other ways to the same numbers: special functions, plain integration, simulated customers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import betaln, gammaln, hyp2f1
from scipy.stats import gamma

from zoo.tasks.btyd import MODELS, Histories, bg_likelihood, fit, histories, pareto_likelihood, pareto_parts

BG, PARETO = np.array([0.243, 4.414, 0.793, 2.426]), np.array([0.553, 10.578, 0.606, 11.669])
"""Of the CDNOW customers in weeks: table 2 of Fader, Hardie and Lee (2005), and its Pareto/NBD."""
SOME = Histories(np.array([0.0, 1, 2, 7, 40]), np.array([0.0, 3, 30, 20, 38]), np.array([38.9, 38, 32, 39, 39]))


@pytest.mark.parametrize("parameters", [PARETO, np.array([2.0, 5.0, 0.4, 30.0])])
def test_the_quadrature_of_pareto_nbd_is_the_hypergeometric_form(parameters):
    """Fader and Hardie (2005), A note on deriving the Pareto/NBD model, equations 14 and 15."""
    r, alpha, s, beta = parameters
    x, since, age = SOME.repeats, SOME.recency, SOME.age
    top = max(alpha, beta)
    second = s + 1 if alpha >= beta else r + x
    power = r + s + x

    def part(t):
        return hyp2f1(power, second, power + 1, abs(alpha - beta) / (top + t)) / (top + t) ** power

    inside = part(since) - part(age)
    alive = 1 / ((alpha + age) ** (r + x) * (beta + age) ** s)
    shared = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + s * np.log(beta)
    expected = shared + np.log(alive + s / power * inside)
    np.testing.assert_allclose(pareto_likelihood(parameters, SOME), expected, rtol=1e-9)


def test_pareto_nbd_is_the_mean_over_rates_of_purchase_and_death():
    r, alpha, s, beta = PARETO
    middle = (np.arange(1500) + 0.5) / 1500
    rate, death = gamma.ppf(middle, r, scale=1 / alpha)[:, None], gamma.ppf(middle, s, scale=1 / beta)
    both = rate + death
    lives = rate**2 * np.exp(-both * 32)
    dies = rate**2 * death / both * (np.exp(-both * 30) - np.exp(-both * 32))
    assert np.exp(pareto_likelihood(PARETO, SOME)[2]) == pytest.approx((lives + dies).mean(), rel=5e-3)


def test_bg_nbd_is_the_mean_over_rates_and_chances_to_die():
    r, alpha, a, b = BG
    x, since, age = 7, 20.0, 39.0

    def rates(t):
        return quad(
            lambda rate: rate**x * np.exp(-rate * t + r * np.log(alpha) + (r - 1) * np.log(rate) - alpha * rate - gammaln(r)),
            0,
            9,
            epsabs=0,
        )[0]

    lives, dies = np.exp(betaln(a, b + x) - betaln(a, b)), np.exp(betaln(a + 1, b + x - 1) - betaln(a, b))
    assert np.exp(bg_likelihood(BG, SOME)[3]) == pytest.approx(lives * rates(age) + dies * rates(since), rel=1e-6)


def simulated(name, n=6000, seed=0):
    """Customers of known parameters watched for 39 weeks, and whether they bought nothing in the 13 after."""
    rng = np.random.default_rng(seed)
    r, alpha = (1.2, 6.0) if name == "pareto_nbd" else (1.2, 4.0)
    rate, age = rng.gamma(r, 1 / alpha, n), rng.uniform(27, 39, n)
    dies = rng.exponential(1 / rng.gamma(0.8, 1 / 12.0, n)) if name == "pareto_nbd" else np.full(n, np.inf)
    chance = rng.beta(0.8, 2.5, n) if name == "bg_nbd" else np.zeros(n)
    found, silent = np.zeros((3, n)), np.ones(n, bool)
    found[2] = age
    for at in range(n):
        t = 0.0
        while (t := t + rng.exponential(1 / rate[at])) < min(dies[at], age[at] + 13):
            if t < age[at]:
                found[:2, at] = found[0, at] + 1, t
            else:
                silent[at] = False
            if rng.random() < chance[at]:
                break
    return Histories(*found), silent


TRUE = {"bg_nbd": [1.2, 4.0, 0.8, 2.5], "pareto_nbd": [1.2, 6.0, 0.8, 12.0]}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_probabilities_of_simulated_customers_are_found(name):
    customers, silent = simulated(name)
    model = MODELS[name]
    found = fit(model, customers)
    np.testing.assert_allclose(found[:2], TRUE[name][:2], rtol=0.15)
    assert model.likelihood(found, customers).sum() >= model.likelihood(np.array(TRUE[name]), customers).sum() - 5
    p = model.silent(found, customers, 13.0)
    for low, high in ((0, 0.3), (0.3, 0.7), (0.7, 1.01)):
        inside = (p >= low) & (p < high)
        assert p[inside].mean() == pytest.approx(silent[inside].mean(), abs=0.04)


def test_a_fit_in_other_units_is_the_same():
    customers, _ = simulated("bg_nbd", 1500)
    weeks, days = fit(MODELS["bg_nbd"], customers), fit(MODELS["bg_nbd"], customers.scaled(1 / 7))
    np.testing.assert_allclose(days, weeks * np.array([1, 7, 1, 1]), rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_silence_falls_from_one_to_the_chance_of_no_purchase_ever(name):
    model, parameters = MODELS[name], {"bg_nbd": BG, "pareto_nbd": PARETO}[name]
    now, soon, later, ever = (model.silent(parameters, SOME, ahead) for ahead in (0, 10, 100, 1e12))
    np.testing.assert_allclose(now, 1.0)
    assert (now > soon).all()
    assert (soon > later).all()
    assert (later >= ever).all()
    if name == "bg_nbd":
        assert ever[0] == pytest.approx(0, abs=0.01)  # nobody dies before the first purchase after the first one
    else:
        alive, dead = pareto_parts(PARETO, SOME)
        assert (ever > 1 / (1 + np.exp(alive - dead))).all()


def test_histories_count_periods_with_a_purchase():
    users = np.array([3, 3, 3, 3, 5, 9])
    times = np.array([10, 14, 25, 61, 70, 99])
    who, found = histories(users, times, 80, 10)
    assert who.tolist() == [3, 5]
    assert found.repeats.tolist() == [2, 0]
    assert found.recency.tolist() == [5, 0]
    assert found.age.tolist() == [7, 1]
    assert len(histories(users, times, 0, 10)[0]) == 0


def test_nobody_gives_parameters_that_say_nothing():
    assert fit(MODELS["bg_nbd"], Histories(*np.zeros((3, 0)))).tolist() == [1, 1, 1, 1]
