"""Which variables change an effect, and how much: the average over all answers, weighted by how likely the rows make each."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from zoo.linear import logistic, ridge_regression, sigmoid
from zoo.plugin import Array

VARIABLES = 10
"""Variables of which every subset is tried: those that alone tell most."""
SIZES = np.array([0.01, 0.03, 0.1, 0.3])
"""What a variable may change: prior standard deviations of the effect by a standard deviation of it, in those of the outcome."""


def interactions(
    columns: Array, variable: Array, likely: Array, treated: Array, outcome: Array, *, binary: bool
) -> tuple[Array, Array]:
    """The outcome (n,) by how likely it is (n,), the treatment (n,), a constant, and the treatment times each column (n, k).

    Gives the coefficients of the first three, float64 (3,), and those of the last, float64 (k,), which are ``averaged``. columns:
    standardised; variable: int64 (k,), which variable each is of. treated: less its mean, so that effects and the rest are learnt apart.
    """
    plain = np.stack([likely, treated], axis=1)
    line = (logistic if binary else ridge_regression)(plain, outcome, np.ones(len(outcome)), 1e-6)
    plain = np.concatenate([plain, np.ones((len(outcome), 1))], axis=1)
    expected = plain @ line
    if binary:
        expected = sigmoid(expected)
        known = expected * (1 - expected)
        wrong = outcome - expected
    else:
        known = np.full(len(outcome), 1 / max(float(np.var(outcome - expected)), 1e-12))
        wrong = (outcome - expected) * known
    changed, weighted = columns * treated[:, None], plain * known[:, None]
    mixed = weighted.T @ changed
    moved = np.linalg.solve(weighted.T @ plain + 1e-9 * known.mean() * np.eye(3), mixed)
    bend = (changed * known[:, None]).T @ changed - mixed.T @ moved
    change = averaged(changed.T @ wrong, bend, variable, float(known.mean()))
    return line - moved @ change, change


def averaged(slope: Array, bend: Array, variable: Array, unit: float) -> Array:
    """Coefficients that change an effect, float64 (k,), by Bayesian model averaging (Hoeting et al., 1999).

    Before any row is seen, as many variables matter as not: every number of them is equally likely, and every set of that number (Scott
    and Berger, 2010, which allows for how many were tried). Coefficients of those that matter are normal, of one of ``SIZES``. The rows
    speak by the log-likelihood's gradient and curvature where no variable matters (Laplace's approximation).

    slope: float64 (k,). bend: float64 (k, k), the information, positive semidefinite. variable: int64 (k,), which variable each column
    is of, so that the columns of one come together. unit: information of a row on its own scale.
    """
    every = range(int(variable.max(initial=-1)) + 1)

    def told(of: tuple[int, ...]) -> tuple[Array, Array]:
        """By size: log evidence over that of no variable, and the coefficients."""
        at = np.flatnonzero(np.isin(variable, of))
        root, axes = np.linalg.eigh(bend[np.ix_(at, at)])
        spread = SIZES[:, None] ** 2 / unit
        grown = 1 + spread * np.maximum(root, 0.0)
        along = axes.T @ slope[at]
        found = np.zeros((len(SIZES), len(slope)))
        found[:, at] = (spread / grown * along) @ axes.T
        evidence: Array = (spread / grown * along**2 - np.log(grown)).sum(axis=1) / 2
        return evidence, found

    tried = sorted(every, key=lambda each: -float(np.logaddexp.reduce(told((each,))[0])))[:VARIABLES]
    weights, coefficients = [np.full(len(SIZES), -np.log(len(every) + 1))], [np.zeros((len(SIZES), len(slope)))]
    for count in range(1, len(tried) + 1):
        prior = -np.log(len(every) + 1) - np.log(comb(len(every), count))
        for of in combinations(tried, count):
            evidence, found = told(of)
            weights.append(prior + evidence)
            coefficients.append(found)
    log = np.concatenate(weights)
    weight = np.exp(log - log.max())
    out: Array = weight / weight.sum() @ np.concatenate(coefficients)
    return out
