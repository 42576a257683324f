"""How good an order by uplift is, and what a policy is worth, on rows whose treatment was drawn at random.

Qini curve and coefficient as scikit-uplift's ``qini_auc_score`` has them (Radcliffe, 2007, "Using control groups to target on predicted
lift"): the area between the curve and the straight line of contacting at random, as a share of the same area of the perfect order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.errors import UsageError
from zoo.evaluation.bootstrap import Difference, Estimate, difference_of, estimate_of, resampled
from zoo.plugin import Array


@dataclass(frozen=True)
class Curve:
    """contacted: rows contacted, best first, float64 (k,). gain: outcomes more than without, float64 (k,). Both begin at 0."""

    contacted: Array
    gain: Array

    def thinned(self, points: int = 101) -> Curve:
        """The curve at so many even steps."""
        at = np.linspace(0, self.contacted[-1], points)
        return Curve(at, np.interp(at, self.contacted, self.gain))


def qini_curve(outcome: Array, uplift: Array, treated: Array) -> Curve:
    """Gain by rows contacted: outcomes of the treated ones less those of the others, scaled to as many rows.

    outcome: 0/1 or amounts (n,). uplift: scores (n,), larger means contact sooner; rows of equal score are contacted together.
    treated: 0/1 (n,). Raises UsageError for lengths and values that cannot be meant, and where one of the two groups is empty.
    """
    outcome, uplift, treated = _checked(outcome, uplift, treated)
    x, y = _Ordered.of(outcome, uplift, treated).curve(np.ones((1, len(outcome))))
    return Curve(x[0], y[0])


def qini(outcome: Array, uplift: Array, treated: Array) -> float:
    """The Qini coefficient: 0 for an order at random, 1 for the perfect one; arguments as in ``qini_curve``."""
    return float(_qini(outcome, uplift, treated, None, 0, 0)[0])


def evaluate_qini(
    outcome: Array, uplift: Array, treated: Array, *, groups: Array | None = None, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The Qini coefficient with its percentile bootstrap interval over rows, or over ``groups`` (n,): whom each row is of."""
    return estimate_of(_qini(outcome, uplift, treated, groups, resamples, seed))


def compare_qini(
    outcome: Array, a: Array, b: Array, treated: Array, *, groups: Array | None = None, resamples: int = 1000, seed: int = 0
) -> Difference:
    """How much a's Qini coefficient exceeds b's, on the same resamples; arguments as in ``evaluate_qini``."""
    of_a, of_b = (_qini(outcome, each, treated, groups, resamples, seed) for each in (a, b))
    return difference_of("qini", of_a - of_b)


def policy_values(
    outcome: Array,
    arm: Array,
    policies: Mapping[str, Array],
    *,
    against: str | None = None,
    groups: Array | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[Estimate, Difference | None]]:
    """The mean outcome a row if each were given the arm that a policy names, by inverse propensity; and its difference to ``against``.

    outcome (n,). arm: the arm that each row was given, int (n,). policies: name -> arm (n,) for each row, or, where it is drawn, how
    likely each arm is, float (n, arms). The propensity of an arm is its share of the rows, of each resample too (Hirano, Imbens and
    Ridder, 2003: estimated shares vary less than known ones). NaN where a policy names an arm that no row was given. groups: as in
    ``evaluate_qini``.
    """
    outcome, arm = np.asarray(outcome, np.float64), np.asarray(arm, np.int64)
    if not len(outcome) or len(arm) != len(outcome) or any(len(each) != len(outcome) for each in policies.values()):
        raise UsageError(f"{len(outcome)} outcomes and {len(arm)} arms; expected one arm of each policy for every row")
    if against is not None and against not in policies:
        raise UsageError(f"policy {against!r} is not among those to value: {', '.join(policies)}")
    samples = {
        name: resampled(weighted_value(outcome, arm, np.asarray(policy)), len(outcome), groups, resamples, seed)
        for name, policy in policies.items()
    }
    return {
        name: (
            estimate_of(each),
            None if against in (None, name) else difference_of("policy_value", each - samples[str(against)]),
        )
        for name, each in samples.items()
    }


def weighted_value(outcome: Array, arm: Array, policy: Array) -> Callable[[Array], Array]:
    """What a policy is worth, as a function of row weights (b, n): float64 (b,); see ``policy_values``."""
    asked = np.unique(policy) if policy.ndim == 1 else np.flatnonzero(policy.any(axis=0))
    likely = policy[:, None] == asked if policy.ndim == 1 else policy[:, asked]
    given = np.stack([arm == each for each in asked], axis=1).astype(np.float64)
    gained = given * likely * np.asarray(outcome, np.float64)[:, None]

    def compute(weight: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            total: Array = ((weight @ gained) / (weight @ given)).sum(axis=1)
        return total

    return compute


def best_arms(uplift: Array, budget: int | None = None) -> Array:
    """The arm for each row, int64 (n,): 0 for no contact, else the arm of the greatest uplift above 0.

    uplift: (n, arms), of arms 1, 2, ... against none. budget: at most so many rows are contacted, those of the greatest uplift; of
    equal ones some, drawn: a table may have its rows in an order that tells of their arms or outcomes.
    """
    uplift = np.asarray(uplift, np.float64)
    best = uplift.max(axis=1)
    chosen = np.where(best > 0, uplift.argmax(axis=1) + 1, 0)
    if budget is not None:
        order = np.lexsort((np.random.default_rng(0).permutation(len(best)), -best))
        chosen[order[max(0, budget) :]] = 0
    return chosen


@dataclass(frozen=True)
class _Ordered:
    """Rows by falling score. treated, other: outcomes of the rows of each group. ties: starts of the runs of equal score."""

    order: Array
    outcome: Array
    treated: Array
    ties: Array

    @staticmethod
    def of(outcome: Array, score: Array, treated: Array) -> _Ordered:
        order = np.argsort(-score, kind="stable")
        ranked = score[order]
        return _Ordered(order, outcome[order], treated[order], np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]))

    def curve(self, weight: Array) -> tuple[Array, Array]:
        """Rows contacted and gain, (b, runs + 1) each, under row weights (b, n) in the rows' own order."""
        weight = weight[:, self.order]

        def summed(each: Array) -> Array:
            total: Array = np.add.reduceat(weight * each, self.ties, axis=1).cumsum(axis=1)
            return total

        treated, others = summed(self.treated), summed(1 - self.treated)
        gained, anyway = summed(self.treated * self.outcome), summed((1 - self.treated) * self.outcome)
        ratio = np.divide(treated, others, out=np.zeros_like(treated), where=others > 0)
        zero = np.zeros((len(weight), 1))
        return np.concatenate([zero, treated + others], axis=1), np.concatenate([zero, gained - anyway * ratio], axis=1)


def weighted_qini(outcome: Array, uplift: Array, treated: Array) -> Callable[[Array], Array]:
    """The Qini coefficient as a function of row weights (b, n): float64 (b,), NaN where the perfect order gains nothing."""
    outcome, uplift, treated = _checked(outcome, uplift, treated)
    ours, perfect = (_Ordered.of(outcome, each, treated) for each in (uplift, outcome * (2 * treated - 1)))

    def compute(weight: Array) -> Array:
        x, y = ours.curve(weight)
        at_random = x[:, -1] * y[:, -1] / 2
        best = _area(*perfect.curve(weight)) - at_random
        share: Array = np.divide(_area(x, y) - at_random, best, out=np.full(len(weight), np.nan), where=best > 0)
        return share

    return compute


def _qini(outcome: Array, uplift: Array, treated: Array, groups: Array | None, resamples: int, seed: int) -> Array:
    """float64 (1 + resamples,): on the rows themselves, then on each resample."""
    return resampled(weighted_qini(outcome, uplift, treated), len(outcome), groups, resamples, seed)


def _area(x: Array, y: Array) -> Array:
    area: Array = (np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1])).sum(axis=1) / 2
    return area


def _checked(outcome: Array, uplift: Array, treated: Array) -> Sequence[Array]:
    outcome, uplift, treated = (np.asarray(each, np.float64) for each in (outcome, uplift, treated))
    shapes = {"outcome": outcome.shape, "uplift": uplift.shape, "treated": treated.shape}
    if len(set(shapes.values())) > 1 or outcome.ndim != 1:
        raise UsageError(f"shapes {shapes}; expected one value a row of each")
    if not np.isin(treated, (0, 1)).all() or not 0 < treated.sum() < len(treated):
        raise UsageError(f"treated holds {np.unique(treated)[:3].tolist()}; expected 0 and 1, rows of each")
    if not np.isfinite(uplift).all() or not np.isfinite(outcome).all():
        raise UsageError("uplift and outcome hold values that are not finite; leave those rows out or fill them")
    return outcome, uplift, treated


__all__ = [
    "Curve",
    "best_arms",
    "compare_qini",
    "evaluate_qini",
    "policy_values",
    "qini",
    "qini_curve",
    "weighted_qini",
    "weighted_value",
]
