"""Buy till you die: BG/NBD and Pareto/NBD, which know of a customer's purchases only how many, how recent and since when.

Pareto/NBD: Schmittlein, Morrison and Colombo (1987); BG/NBD: Fader, Hardie and Lee (2005). No library of either is both kept and light
(lifetimes ended in 2020, btyd in 2022; pymc-marketing brings PyMC), so here they are, by maximum likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from zoo.contract import Array

SAMPLE = 4_000
"""Customers that parameters are fitted on, at most; more change the third digit."""
NODES = 48
"""Of the quadrature over the time of death."""
DECAY = 40.0
"""Times of death are left out where their likelihood has fallen by e to this power."""


@dataclass(frozen=True)
class Histories:
    """Customers, float64 (n,) each. repeats: purchases after the first one. recency: time from the first to the newest. age: time from
    the first to now. Times in one unit of any length."""

    repeats: Array
    recency: Array
    age: Array

    def __len__(self) -> int:
        return len(self.age)

    def take(self, rows: Array) -> Histories:
        return Histories(self.repeats[rows], self.recency[rows], self.age[rows])

    def scaled(self, unit: float) -> Histories:
        return Histories(self.repeats, self.recency / unit, self.age / unit)


def histories(users: Array, times: Array, cut: int, period: int) -> tuple[Array, Histories]:
    """Codes of the users with a purchase before ``cut``, ascending, and their histories then, in periods.

    users (m,), times (m,): purchases, in order of user and time. Those of one period since 1970 (a day, say) are one.
    """
    before = times < cut
    who, when = users[before].astype(np.int64), times[before] // period
    new = np.r_[True, (np.diff(who) != 0) | (np.diff(when) != 0)][: len(who)]
    who, when = who[new], when[new]
    starts = np.flatnonzero(np.r_[True, np.diff(who) != 0][: len(who)])
    count = np.diff(np.r_[starts, len(who)])
    first, last = when[starts], when[starts + count - 1]
    return who[starts], Histories(
        (count - 1).astype(np.float64), (last - first).astype(np.float64), cut / period - first.astype(np.float64)
    )


@dataclass(frozen=True)
class Model:
    """likelihood: log-likelihood of each customer (n,) under parameters. silent: probability (n,) of no purchase in the next time.
    parameters: names, in order; all above 0. scales: which of them grow with the unit of time."""

    parameters: tuple[str, ...]
    scales: tuple[bool, ...]
    likelihood: Callable[[Array, Histories], Array]
    silent: Callable[[Array, Histories, float], Array]


def fit(model: Model, customers: Histories, seed: int = 0) -> Array:
    """Parameters of the greatest likelihood, float64 (k,), in the customers' unit of time."""
    from scipy.optimize import minimize

    if not len(customers):
        return np.ones(len(model.parameters))
    if len(customers) > SAMPLE:
        customers = customers.take(np.random.default_rng(seed).choice(len(customers), SAMPLE, replace=False))
    unit = max(float(np.median(customers.age)), 1e-9)
    within = customers.scaled(unit)

    def loss(logs: Array) -> float:
        # a millionth of a row holds back what the customers do not tell
        return -float(np.mean(model.likelihood(np.exp(logs), within))) + 1e-6 * float(logs @ logs)

    found = minimize(loss, np.zeros(len(model.parameters)), method="L-BFGS-B", bounds=[(-8.0, 8.0)] * len(model.parameters))
    parameters: Array = np.exp(found.x) * np.where(model.scales, unit, 1.0)
    return parameters


def bg_likelihood(parameters: Array, customers: Histories) -> Array:
    """BG/NBD: r, alpha (rate of purchases), a, b (chance to die after each); equation 6 of the paper."""
    from scipy.special import betaln, gammaln

    r, alpha, a, b = parameters
    x = customers.repeats
    shared = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
    alive = betaln(a, b + x) - betaln(a, b) - (r + x) * np.log(alpha + customers.age)
    dead = betaln(a + 1, b + np.maximum(x, 1) - 1) - betaln(a, b) - (r + x) * np.log(alpha + customers.recency)
    total: Array = shared + np.where(x > 0, np.logaddexp(alive, dead), alive)
    return total


def bg_silent(parameters: Array, customers: Histories, ahead: float) -> Array:
    """Dead, or alive without a purchase: who lives has the rate Gamma(r + x, alpha + age)."""
    r, alpha, a, b = parameters
    x = customers.repeats
    odds = a / (b + np.maximum(x, 1) - 1) * np.exp((r + x) * (np.log(alpha + customers.age) - np.log(alpha + customers.recency)))
    alive = np.where(x > 0, 1 / (1 + odds), 1.0)
    buys = -np.expm1((r + x) * (np.log(alpha + customers.age) - np.log(alpha + customers.age + ahead)))
    silent: Array = 1 - alive * buys
    return silent


def pareto_parts(parameters: Sequence[Array], customers: Histories) -> tuple[Array, Array]:
    """Log-likelihoods (n,) of being alive now and of having died since the newest purchase, of Pareto/NBD: r, alpha (rate of purchases),
    s, beta (rate of death), each a number or (n,).

    The second integrates over the time of death by Gauss-Legendre nodes in its logarithm, where hypergeometric functions would
    lose digits (Fader and Hardie, 2005, "A note on deriving the Pareto/NBD model").
    """
    from scipy.special import gammaln

    x, since, now = customers.repeats, customers.recency, customers.age
    r, alpha, s, beta = (np.broadcast_to(each, np.shape(x)) for each in parameters)
    shared = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + s * np.log(beta)
    alive = shared - (r + x) * np.log(alpha + now) - s * np.log(beta + now)
    with np.errstate(over="ignore"):
        end = np.minimum(now, (alpha + since) * np.exp(DECAY / (r + x)) - alpha)
    low = np.minimum(alpha, beta)
    begin, width = np.log(low + since), np.log(low + end) - np.log(low + since)
    at, weight = np.polynomial.legendre.leggauss(NODES)
    log_time = begin[:, None] + width[:, None] * (at + 1) / 2
    time = np.exp(log_time) - low[:, None]
    inside = log_time - (r + x)[:, None] * np.log(alpha[:, None] + time) - (s + 1)[:, None] * np.log(beta[:, None] + time)
    top = inside.max(axis=1)
    with np.errstate(divide="ignore"):
        integral = top + np.log((np.exp(inside - top[:, None]) * weight).sum(axis=1) * width / 2)
    return alive, shared + np.log(s) + integral


def pareto_likelihood(parameters: Array, customers: Histories) -> Array:
    total: Array = np.logaddexp(*pareto_parts(tuple(parameters), customers))
    return total


def pareto_silent(parameters: Array, customers: Histories, ahead: float) -> Array:
    """Dead, or alive without a purchase: who lives has rates Gamma(r + x, alpha + age) and Gamma(s, beta + age) from here on."""
    r, alpha, s, beta = parameters
    alive, dead = pareto_parts((r, alpha, s, beta), customers)
    x, zero = customers.repeats, np.zeros(len(customers))
    later = pareto_parts((r + x, alpha + customers.age, s, beta + customers.age), Histories(zero, zero, zero + ahead))
    nothing = np.exp(np.logaddexp(*later))
    silent: Array = 1 - np.exp(alive - np.logaddexp(alive, dead)) * (1 - nothing)
    return silent


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "bg_nbd": Model(("r", "alpha", "a", "b"), (False, True, False, False), bg_likelihood, bg_silent),
        "pareto_nbd": Model(("r", "alpha", "s", "beta"), (False, True, False, True), pareto_likelihood, pareto_silent),
    }
)
"""Name -> model, as leaderboards call them."""
