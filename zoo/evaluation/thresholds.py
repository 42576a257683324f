"""From a probability to an act: the threshold for stated costs or a stated capacity, and what acting by it is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.errors import UsageError
from zoo.evaluation.bootstrap import Estimate, estimates_of_ratios
from zoo.plugin import Array


def threshold_of_costs(ratio: float) -> float:
    """Act from this probability on, where a positive that is missed costs ``ratio`` times a needless act: ``1 / (1 + ratio)``.

    Elkan (2001), "The foundations of cost-sensitive learning". It needs calibrated probabilities.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise UsageError(f"cost ratio {ratio!r}; expected how many needless acts one missed positive costs, above 0")
    return 1 / (1 + ratio)


def threshold_of_capacity(scores: Array, capacity: float) -> float:
    """The score from which on at most ``capacity`` of these scores (n,) lie: a number of rows, or below 1 a share of them.

    Scores have to be of held-out rows. Infinite where not even the highest score can be let in.
    """
    if not (math.isfinite(capacity) and capacity > 0):
        raise UsageError(f"capacity {capacity!r}; expected a number of rows, or a share of them below 1")
    ranked = -np.sort(-np.asarray(scores, np.float64).ravel())
    room = int(min(len(ranked), capacity if capacity >= 1 else capacity * len(ranked)))
    if room == len(ranked):
        return float(ranked[-1]) if len(ranked) else math.inf
    # the lowest score that is let in lies above the first one that is not: equal scores share their lot
    inside = ranked[:room][ranked[:room] > ranked[room]]
    return float(inside[-1]) if len(inside) else math.inf


@dataclass(frozen=True)
class Decision:
    """What acting from ``threshold`` on did on labelled rows. acted: share of rows. precision: share of positives among them.

    recall: share of the positives among rows acted on. cost: a row, in needless acts, with costs stated; ``nobody`` and ``everybody``
    are what acting on no row, and on every row, would have cost. None where no costs were stated.
    """

    threshold: float
    acted: Estimate
    precision: Estimate
    recall: Estimate
    cost: Estimate | None = None
    nobody: float | None = None
    everybody: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; None where undefined."""
        out: dict[str, Any] = {"threshold": _finite(self.threshold)}
        for name in ("acted", "precision", "recall", "cost"):
            found: Estimate | None = getattr(self, name)
            if found is not None:
                out[name] = _finite(found.value)
                out[f"{name}_interval"] = [_finite(found.low), _finite(found.high)]
        if self.nobody is not None:
            out |= {"nobody": self.nobody, "everybody": self.everybody}
        return out


def decision(
    target: Array,
    scores: Array,
    threshold: float,
    ratio: float | None = None,
    *,
    groups: Array | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Decision:
    """target: 0/1 (n,). scores: (n,) or (n, 1). ratio: as in ``threshold_of_costs``. groups: as in ``evaluate``."""
    y = np.asarray(target, np.float64)
    act = (np.asarray(scores, np.float64).reshape(len(y)) >= threshold).astype(np.float64)
    ones = np.ones(len(y))
    above, below = [act, act * y, act * y], [ones, act, y]
    if ratio is not None:
        above, below = [*above, act * (1 - y) + ratio * (1 - act) * y], [*below, ones]
    found = estimates_of_ratios(np.stack(above, axis=1), np.stack(below, axis=1), groups, resamples, seed)
    rate = float(y.mean())
    if ratio is None:
        return Decision(threshold, found[0], found[1], found[2])
    return Decision(threshold, found[0], found[1], found[2], found[3], ratio * rate, 1 - rate)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
