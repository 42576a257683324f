"""Metrics of binary scores under row weights, for many weightings at once: a bootstrap resample is a vector of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from zoo.plugin import Array

BINS = 10
"""Equal-mass bins of the expected calibration error."""


@dataclass(frozen=True)
class Ranked:
    """Rows sorted by falling score. target, score: float64 (n,). ties: starts of the runs of equal score, int64."""

    target: Array
    score: Array
    ties: Array

    @staticmethod
    def of(target: Array, score: Array) -> tuple[Ranked, Array]:
        """The rows in order, and that order (int64 (n,))."""
        order: Array = np.argsort(-score, kind="stable")
        ranked = score[order]
        ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        return Ranked(target[order], ranked, ties), order

    def by_tie(self, weight: Array) -> tuple[Array, Array]:
        """Weight of positives and of negatives in each run of equal score, (b, runs) each."""
        positive = np.add.reduceat(weight * self.target, self.ties, axis=1)
        negative = np.add.reduceat(weight * (1 - self.target), self.ties, axis=1)
        return positive, negative


@dataclass(frozen=True)
class Metric:
    """compute: ``(rows, weight (b, n)) -> float64 (b,)``, NaN where undefined. probability: whether scores must lie in 0..1."""

    compute: Callable[[Ranked, Array], Array]
    larger_is_better: bool
    probability: bool


def auc(rows: Ranked, weight: Array) -> Array:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting half."""
    positive, negative = rows.by_tie(weight)
    below = negative.sum(axis=1, keepdims=True) - negative.cumsum(axis=1) + negative / 2
    return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def average_precision(rows: Ranked, weight: Array) -> Array:
    """Sum over thresholds of the gain in recall times precision, without interpolation (as scikit-learn defines it)."""
    positive, negative = rows.by_tie(weight)
    found = positive.cumsum(axis=1)
    precision = _ratio(found, found + negative.cumsum(axis=1), 0.0)
    return _ratio((positive * precision).sum(axis=1), positive.sum(axis=1))


def log_loss(rows: Ranked, weight: Array) -> Array:
    """Mean negative log-likelihood in nats; scores are kept one float64 epsilon away from 0 and 1."""
    p = np.clip(rows.score, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    loss = -(rows.target * np.log(p) + (1 - rows.target) * np.log1p(-p))
    return _ratio(weight @ loss, weight.sum(axis=1))


def brier(rows: Ranked, weight: Array) -> Array:
    """Mean squared difference between score and outcome."""
    return _ratio(weight @ (rows.score - rows.target) ** 2, weight.sum(axis=1))


def ece(rows: Ranked, weight: Array) -> Array:
    """Expected calibration error over bins of equal mass (equal scores share a bin): mean of |mean score - observed rate|.

    Biased upwards by sampling noise (Nixon et al., 2019, "Measuring calibration in deep learning"), and a resample adds noise, so
    the bootstrap interval tends to lie above the estimate: read it as an upper bound.
    """
    edges = np.quantile(rows.score, np.arange(1, BINS) / BINS)
    bin_of = np.searchsorted(edges, rows.score, side="right")
    starts = np.flatnonzero(np.r_[True, bin_of[1:] != bin_of[:-1]])
    gap = np.add.reduceat(weight * (rows.score - rows.target), starts, axis=1)
    return _ratio(np.abs(gap).sum(axis=1), weight.sum(axis=1))


def slope(rows: Ranked, weight: Array) -> Array:
    """Calibration slope: that of a logistic regression of the outcome on the logit of the score. 1 where scores are neither too bold
    (below 1) nor too timid (above). Van Calster et al. (2019), "Calibration: the Achilles heel of predictive analytics".
    """
    return _recalibrated(rows, weight)[:, 1]


def intercept(rows: Ranked, weight: Array) -> Array:
    """Calibration in the large: the intercept of that regression with its slope held at 1; above 0 where scores are too low."""
    return _recalibrated(rows, weight, free_slope=False)[:, 0]


STEPS = 30
"""Newton steps to the regression of all rows; about eight are taken."""


def _recalibrated(rows: Ranked, weight: Array, free_slope: bool = True) -> Array:
    """float64 (b, 2): intercept and slope of the logistic regression of outcome on logit, by Newton's method; NaN where undefined.

    From the solution for the sum of the weightings, one step leads to each: its error is of order 1/n, far below its spread (the
    one-step bootstrap: Shao and Tu, 1995, "The jackknife and bootstrap", 5.4).
    """
    p = np.clip(rows.score, 1e-6, 1 - 1e-6)
    x = np.log(p) - np.log1p(-p)
    powers = np.stack([np.ones(len(x)), x, x * x], axis=1)

    def step(theta: Array, each: Array) -> Array:
        q = 1 / (1 + np.exp(-(theta[0] + theta[1] * x)))
        wrong, curve = each @ (powers[:, :2] * (rows.target - q)[:, None]), each @ (powers * (q * (1 - q))[:, None])
        if not free_slope:
            return np.stack([_ratio(wrong[:, 0], curve[:, 0], 0.0), np.zeros(len(each))], axis=1)
        spread = curve[:, 0] * curve[:, 2] - curve[:, 1] ** 2
        spread = np.where(spread > 1e-9 * curve[:, 0] * curve[:, 2], spread, 0.0)
        down = curve[:, 2] * wrong[:, 0] - curve[:, 1] * wrong[:, 1], curve[:, 0] * wrong[:, 1] - curve[:, 1] * wrong[:, 0]
        return np.stack([_ratio(each, spread, 0.0) for each in down], axis=1)

    theta, together = np.array([0.0, 1.0]), weight.sum(axis=0, keepdims=True)
    for _ in range(STEPS):
        move = np.clip(step(theta, together)[0], -2, 2)
        theta = theta + move
        if np.abs(move).max() < 1e-10:
            break
    out: Array = theta if len(weight) == 1 else theta + step(theta, weight)
    out = np.broadcast_to(out, (len(weight), 2)).copy()
    positives, total = weight @ rows.target, weight.sum(axis=1)
    out[(positives <= 0) | (positives >= total)] = np.nan
    if free_slope and np.ptp(x) < 1e-9:
        out[:] = np.nan
    return out


def _ratio(above: Array, below: Array, empty: float = np.nan) -> Array:
    result: Array = np.full(np.shape(above), empty)
    np.divide(above, below, out=result, where=below > 0)
    return result


METRICS = MappingProxyType(
    {
        "auc": Metric(auc, larger_is_better=True, probability=False),
        "average_precision": Metric(average_precision, larger_is_better=True, probability=False),
        "log_loss": Metric(log_loss, larger_is_better=False, probability=True),
        "brier": Metric(brier, larger_is_better=False, probability=True),
        "ece": Metric(ece, larger_is_better=False, probability=True),
        "slope": Metric(slope, larger_is_better=True, probability=True),
        "intercept": Metric(intercept, larger_is_better=True, probability=True),
    }
)
"""Name -> metric. Of slope and intercept neither larger nor smaller is better: 1 and 0 are."""
RANKING = ("auc", "average_precision", "log_loss", "brier", "ece")
"""Those of a leaderboard, in its order."""
CALIBRATION = ("ece", "slope", "intercept")
"""Those that say whether probabilities can be taken at their word."""
