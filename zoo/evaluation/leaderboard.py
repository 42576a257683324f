"""The leaderboard: members, baselines and stack on the same rows and the same resamples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from zoo.errors import UsageError, choices
from zoo.evaluation.bootstrap import Difference, Estimate, compare, evaluate
from zoo.plugin import Array

TESTED = ("log_loss", "auc")
"""What lines are compared by: probabilities first, as stacks are chosen by them; an order alone may come with any scores."""


@dataclass(frozen=True)
class Row:
    """One line. base_rate: share of positives. seconds: what fitting took, NaN where not given.

    differences: this line minus the reference line, by metric, the task's main one first; empty for the reference itself or where none
    was asked for.
    """

    name: str
    rows: int
    base_rate: float
    metrics: Mapping[str, Estimate]
    seconds: float = math.nan
    differences: Mapping[str, Difference] = field(default_factory=lambda: MappingProxyType({}))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: a metric's value under its name, its interval under ``NAME_interval``; None where undefined.

        ``differences``: by metric the ``value``, ``interval`` and ``p_value``; not there without any.
        """
        out: dict[str, Any] = {"rows": self.rows, "base_rate": self.base_rate, "seconds": _finite(self.seconds)}
        for name, estimate in self.metrics.items():
            out[name] = _finite(estimate.value)
            out[f"{name}_interval"] = [_finite(estimate.low), _finite(estimate.high)]
        if self.differences:
            out["differences"] = {
                name: {"value": _finite(d.value), "interval": [_finite(d.low), _finite(d.high)], "p_value": _finite(d.p_value)}
                for name, d in self.differences.items()
            }
        return out


def leaderboard(
    target: Array,
    scores: Mapping[str, Array],
    *,
    groups: Array | None = None,
    cuts: Array | None = None,
    seconds: Mapping[str, float] = MappingProxyType({}),
    against: str | None = None,
    metrics: Sequence[str] = TESTED,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """One line for each entry of ``scores`` (name -> (n,) or (n, 1) probabilities), in that order.

    against: name of the line that the others are compared with, by ``metrics``, the main one first. Other arguments as in ``evaluate``.
    """
    if against is not None and against not in scores:
        raise UsageError(choices("line of the leaderboard", against, scores))
    lines = []
    for name, score in scores.items():
        estimates = evaluate(target, score, groups=groups, cuts=cuts, resamples=resamples, seed=seed)
        apart: dict[str, Difference] = {}
        if against is not None and name != against:
            how: dict[str, Any] = {"groups": groups, "cuts": cuts, "resamples": resamples, "seed": seed}
            apart = {metric: compare(target, score, scores[against], metric=metric, **how) for metric in metrics}
        lines.append(Row(name, len(target), float(np.mean(target)), estimates, seconds.get(name, math.nan), apart))
    return lines


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
