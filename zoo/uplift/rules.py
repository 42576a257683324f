"""Baselines without a model: contact everyone, and the rule of one variable that tells most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zoo.plugin import Array, Column, FeatureBatch
from zoo.uplift.trial import Trial

Score = Callable[[FeatureBatch], Array]
"""The outcome with treatment less that without, float64 (n,)."""
BINS = 4
"""Bins of equal mass of a number that has more values than ``FEW``."""
FEW = 8
LEAST = 30
"""Rows that each arm needs in a bin for the bin to have an effect of its own."""


def everyone(rows: Trial) -> Score:
    """The mean effect for all: whoever comes first is as good as anyone."""
    effect = _effect(rows.outcome, rows.arm)[0]
    return lambda batch: np.full(len(batch), effect)


@dataclass(frozen=True)
class Rule:
    """name: the variable. edges: float64, between bins of a number; or values: those with an effect of their own. effect: by bin, float64
    (bins,), the last for whatever is in none. p_value: of the effects being all alike."""

    name: str
    edges: Array | None
    values: Array | None
    effect: Array
    p_value: float

    def __call__(self, batch: FeatureBatch) -> Array:
        effect: Array = self.effect[_bins(batch.column(self.name), self.edges, self.values)]
        return effect

    def words(self, batch: FeatureBatch) -> str:
        """The effect in each bin, in words."""
        column = batch.stored(self.name)[1]
        if self.edges is not None:
            bounds = ["-inf", *(f"{edge:g}" for edge in self.edges), "inf"]
            labels = [f"from {a} to {b}" for a, b in pairwise(bounds)]
        else:
            assert self.values is not None
            texts = batch.catalogue.names.get(column.dictionary or "")
            labels = [str(texts[int(v)]) if texts is not None else f"{v:g}" for v in self.values]
        return f"{self.name}: " + ", ".join(f"{label} {effect:+.4f}" for label, effect in zip(labels, self.effect))


def one_variable(rows: Trial) -> Rule:
    """The variable whose bins differ most in effect, by Cochran's test of heterogeneity (1954)."""
    usable = [name for name in rows.batch.names if _usable(rows.batch.stored(name)[1])]
    found = [_rule(rows, name) for name in usable]
    overall = Rule(rows.batch.names[0], None, np.zeros(0), np.array([_effect(rows.outcome, rows.arm)[0]]), 1.0)
    return min((rule for rule in found if rule is not None), key=lambda rule: rule.p_value, default=overall)


def _usable(column: Column) -> bool:
    return not column.is_sequence and not column.is_text


def _rule(rows: Trial, name: str) -> Rule | None:
    from scipy.stats import chi2

    column = rows.batch.column(name)
    known = column.values[np.isfinite(column.values.astype(np.float64))]
    distinct = np.unique(known)
    edges = values = None
    if column.is_code or len(distinct) <= FEW:
        values = distinct
    else:
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS))
    bin_of = _bins(column, edges, values)
    bins = len(values) if values is not None else len(edges) + 1  # type: ignore[arg-type]
    overall, some = _effect(rows.outcome, rows.arm)[0], rows.outcome[rows.outcome != 0]
    effect, weight = np.full(bins + 1, overall), np.zeros(bins)
    for each in range(bins):
        inside = bin_of == each
        if min(rows.arm[inside].sum(), (1 - rows.arm[inside]).sum()) >= LEAST:
            effect[each], variance = _effect(rows.outcome[inside], rows.arm[inside], some)
            weight[each] = 1 / max(variance, 1e-12)
    told = np.flatnonzero(weight)
    if len(told) < 2:
        return None
    mean = weight[told] @ effect[told] / weight[told].sum()
    differs = weight[told] @ (effect[told] - mean) ** 2
    return Rule(name, edges, values, effect, float(chi2.sf(differs, len(told) - 1)))


def _bins(column: Column, edges: Array | None, values: Array | None) -> Array:
    """int64 (n,): each row's bin, the number of bins where it is in none."""
    of = column.values
    if edges is not None:
        found = np.searchsorted(edges, of, side="right")
        return np.where(np.isfinite(of), found, len(edges) + 1)
    assert values is not None
    if not len(values):
        return np.zeros(len(of), np.int64)
    at = np.minimum(np.searchsorted(values, of), len(values) - 1)
    return np.where(values[at] == of, at, len(values))


def _effect(outcome: Array, arm: Array, some: Array | None = None) -> tuple[float, float]:
    """Difference of means and its variance. some: outcomes that are not 0, of all rows; see ``_variance``."""
    treated, others = outcome[arm == 1], outcome[arm == 0]
    if not len(treated) or not len(others):
        return 0.0, np.inf
    spread = sum(_variance(each, outcome if some is None else some) / len(each) for each in (treated, others))
    return float(treated.mean() - others.mean()), float(spread)


def _variance(outcome: Array, some: Array) -> float:
    """Variance with half an outcome more, of the size of ``some``: of none in few rows nobody knows that there are never any."""
    if not len(some):
        return 0.0
    first, second = ((np.sum(outcome**k) + 0.5 * np.mean(some**k)) / (len(outcome) + 1) for k in (1, 2))
    return float(second - first**2)
