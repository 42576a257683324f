"""Whether probabilities can be taken at their word: calibration error, slope and intercept, and the reliability curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.evaluation.bootstrap import Estimate, estimates_of_ratios, evaluate
from zoo.evaluation.metrics import BINS, CALIBRATION
from zoo.plugin import Array


@dataclass(frozen=True)
class Bin:
    """Rows of nearby scores. score: their mean. rate: the share of positives among them, with its 95 % interval."""

    rows: int
    score: float
    rate: Estimate

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "score": self.score, "rate": self.rate.value, "rate_interval": [self.rate.low, self.rate.high]}


def as_binary(target: Array, scores: Array) -> tuple[Array, Array]:
    """Targets and scores (n,) of a question of yes or no; of several classes, is the likeliest class the right one (Guo et al., 2017)?"""
    scores = np.asarray(scores, np.float64)
    if scores.ndim == 1 or scores.shape[1] == 1:
        return np.asarray(target, np.float64), scores.reshape(len(target))
    return (scores.argmax(axis=1) == np.asarray(target)).astype(np.float64), scores.max(axis=1)


def calibration(
    target: Array, scores: Array, *, groups: Array | None = None, cuts: Array | None = None, resamples: int = 500, seed: int = 0
) -> dict[str, Estimate]:
    """``ece`` (ten bins of equal mass), ``slope`` and ``intercept`` of probabilities (n,), (n, 1) or (n, classes); as in ``evaluate``."""
    outcome, p = as_binary(target, scores)
    return evaluate(outcome, p, groups=groups, cuts=cuts, metrics=CALIBRATION, resamples=resamples, seed=seed)


def reliability(
    target: Array, scores: Array, *, groups: Array | None = None, bins: int = BINS, resamples: int = 1000, seed: int = 0
) -> list[Bin]:
    """The reliability curve: bins of equal mass (equal scores share one), from the least score to the largest; as in ``calibration``."""
    outcome, p = as_binary(target, scores)
    if not len(p):
        return []
    edges = np.quantile(p, np.arange(1, bins) / bins)
    inside = np.searchsorted(edges, p, side="right")
    inside = np.unique(inside, return_inverse=True)[1]
    member = (inside[:, None] == np.arange(inside.max() + 1)).astype(np.float64)
    rates = estimates_of_ratios(member * outcome[:, None], member, groups, resamples, seed)
    size = member.sum(axis=0)
    return [Bin(int(n), float(s / n), rate) for n, s, rate in zip(size, p @ member, rates, strict=True)]
