"""Percentile bootstrap over entities: a household that appears at several cuts is drawn or left out as a whole.

Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapters 13 (percentile intervals) and 16 (tests).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.errors import UsageError, choices
from zoo.evaluation.metrics import METRICS, RANKING, Metric, Ranked
from zoo.plugin import Array

CELLS = 4_000_000
"""Weights (resamples x rows) held at once: 32 MB."""


@dataclass(frozen=True)
class Estimate:
    """A metric and its 95 % interval; NaN where it is undefined (one class only)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Difference:
    """metric(a) - metric(b) over the same resamples. p_value: two-sided, for the difference being zero."""

    metric: str
    value: float
    low: float
    high: float
    p_value: float


def evaluate(
    target: Array,
    score: Array,
    *,
    groups: Array | None = None,
    cuts: Array | None = None,
    metrics: Sequence[str] = RANKING,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Each metric with its percentile bootstrap interval.

    target: 0/1 (n,). score: (n,) or (n, 1), larger means more likely 1; probabilities where a metric needs them.
    groups: (n,), the entity of each row, drawn as a whole (default: every row on its own).
    cuts: (n,), where rows come from several test cuts: a metric is then its plain mean over the cuts.
    Raises UsageError for lengths, values or names that cannot be meant.
    """
    samples = _samples(target, score, groups, cuts, metrics, resamples, seed)
    return {name: estimate_of(values) for name, values in samples.items()}


def estimates_of_means(
    values: Mapping[str, Array], groups: Array | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """The mean of each named array (n,) with its percentile bootstrap interval; groups as in ``evaluate``. NaN without rows."""
    columns = list(values.values())
    rows = len(columns[0]) if columns else 0
    if not rows:
        return {name: Estimate(np.nan, np.nan, np.nan) for name in values}
    found = estimates_of_ratios(np.stack(columns, axis=1), np.ones((rows, 1)), groups, resamples, seed)
    return dict(zip(values, found, strict=True))


def estimates_of_ratios(
    above: Array, below: Array, groups: Array | None = None, resamples: int = 1000, seed: int = 0
) -> list[Estimate]:
    """Of each column of above (n, k) its sum over that of below (n, k or 1), with the interval; NaN where the latter is 0."""
    entities = np.arange(len(above)) if groups is None else np.unique(groups, return_inverse=True)[1]
    size = int(entities.max()) + 1
    over, under = (
        np.stack([np.bincount(entities, column, size) for column in np.asarray(part, np.float64).T], axis=1)
        for part in (above, below)
    )
    drawn = []
    for counts in _counts(size, resamples, seed, len(above)):
        total = counts @ under
        drawn.append(counts @ over / np.where(total > 0, total, np.nan))
    return [estimate_of(column) for column in np.concatenate(drawn).T]


def compare(
    target: Array,
    a: Array,
    b: Array,
    *,
    metric: str = "auc",
    groups: Array | None = None,
    cuts: Array | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """How much a's metric exceeds b's, on the same resamples; arguments as in ``evaluate``."""
    of_a = _samples(target, a, groups, cuts, [metric], resamples, seed)[metric]
    of_b = _samples(target, b, groups, cuts, [metric], resamples, seed)[metric]
    return difference_of(metric, of_a - of_b)


def difference_of_means(
    name: str, a: Array, b: Array, *, groups: Array | None = None, resamples: int = 1000, seed: int = 0
) -> Difference:
    """mean(a) - mean(b) of what each row adds to a metric (n,), such as its loss; groups as in ``evaluate``."""
    entities = np.arange(len(a)) if groups is None else np.unique(groups, return_inverse=True)[1]
    size, sums = np.bincount(entities).astype(np.float64), np.bincount(entities, np.asarray(a, np.float64) - b)
    return difference_of(name, np.concatenate([c @ sums / (c @ size) for c in _counts(len(size), resamples, seed, len(a))]))


def difference_of(metric: str, samples: Array) -> Difference:
    """A difference on the rows themselves, first in samples (1 + resamples,), with the interval and p-value of the rest."""
    estimate = estimate_of(samples)
    drawn = samples[1:][~np.isnan(samples[1:])]
    one_sided = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Difference(
        metric, estimate.value, estimate.low, estimate.high, min(1.0, 2 * (1 + float(one_sided)) / (1 + len(drawn)))
    )


def samples_of_classes(
    target: Array, scores: Array, metric: str, groups: Array | None, resamples: int, seed: int
) -> dict[int, Array]:
    """By number of each class that occurs: the metric of its scores (of (n, k)) against the other classes, float64 (1 + resamples,)."""
    return {
        k: _samples((target == k).astype(np.float64), scores[:, k], groups, None, [metric], resamples, seed)[metric]
        for k in np.unique(target).tolist()
    }


def resampled(
    compute: Callable[[Array], Array], rows: int, groups: Array | None = None, resamples: int = 1000, seed: int = 0
) -> Array:
    """Any statistic of weighted rows, float64 (1 + resamples,): on the rows themselves, then on each resample.

    compute: ``weight (b, rows) -> (b,)``. groups as in ``evaluate``.
    """
    entities = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    counts = _counts(int(entities.max()) + 1, resamples, seed, rows)
    return np.concatenate([compute(each[:, entities]) for each in counts])


def _samples(
    target: Array, score: Array, groups: Array | None, cuts: Array | None, metrics: Sequence[str], resamples: int, seed: int
) -> dict[str, Array]:
    """Metric name -> float64 (1 + resamples,): on the rows themselves, then on each resample."""
    chosen = _chosen(metrics)
    target, score = _checked(target, score, groups, cuts, chosen)
    entities = np.arange(len(target)) if groups is None else np.unique(groups, return_inverse=True)[1]
    cut_of = np.zeros(len(target), np.int64) if cuts is None else np.unique(cuts, return_inverse=True)[1]
    parts = []
    for cut in range(cut_of.max() + 1):
        rows = np.flatnonzero(cut_of == cut)
        ranked, order = Ranked.of(target[rows], score[rows])
        parts.append((ranked, entities[rows][order]))
    found: dict[str, list[Array]] = {name: [] for name in chosen}
    for counts in _counts(int(entities.max()) + 1, resamples, seed, len(target)):
        by_cut = []
        for ranked, entity in parts:
            weight = counts[:, entity]
            by_cut.append([metric.compute(ranked, weight) for metric in chosen.values()])
        for name, values in zip(chosen, np.mean(by_cut, axis=0), strict=True):
            found[name].append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def _counts(entities: int, resamples: int, seed: int, rows: int) -> Iterator[Array]:
    """How often each entity is drawn, float64 (b, entities): once each, then chunks of resamples."""
    yield np.ones((1, entities))
    rng = np.random.default_rng(seed)
    chunk = max(1, CELLS // max(rows, entities))
    for begin in range(0, resamples, chunk):
        size = min(chunk, resamples - begin)
        drawn = rng.integers(0, entities, (size, entities)) + np.arange(size)[:, None] * entities
        yield np.bincount(drawn.ravel(), minlength=size * entities).reshape(size, entities).astype(np.float64)


def estimate_of(values: Array) -> Estimate:
    """The value on the rows themselves, first in values (1 + resamples,), and the interval of the rest."""
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(values[0]), float(low), float(high))


def _chosen(metrics: Sequence[str]) -> Mapping[str, Metric]:
    for name in metrics:
        if name not in METRICS:
            raise UsageError(choices("metric", name, METRICS))
    return {name: METRICS[name] for name in metrics}


def _checked(
    target: Array, score: Array, groups: Array | None, cuts: Array | None, metrics: Mapping[str, Metric]
) -> tuple[Array, Array]:
    target, score = np.asarray(target, np.float64), np.asarray(score, np.float64)
    if score.ndim == 2 and score.shape[1] == 1:
        score = score[:, 0]
    lengths = {"target": target.shape, "score": score.shape}
    lengths |= {name: np.shape(v) for name, v in (("groups", groups), ("cuts", cuts)) if v is not None}
    if len(set(lengths.values())) > 1 or target.ndim != 1 or not len(target):
        raise UsageError(f"shapes {lengths}; expected one value a row of each, and at least one row")
    if not np.isin(target, (0, 1)).all():
        raise UsageError(f"targets hold {np.setdiff1d(target, (0, 1))[:3].tolist()}; expected 0 and 1 only")
    if not np.isfinite(score).all():
        raise UsageError(
            f"{(~np.isfinite(score)).sum()} of {len(score)} scores are not finite; leave those rows out or fill them"
        )
    needs = [name for name, metric in metrics.items() if metric.probability]
    if needs and (score.min() < 0 or score.max() > 1):
        raise UsageError(
            f"scores from {score.min():g} to {score.max():g}; {', '.join(needs)} need probabilities in 0..1 "
            f"(choose metrics={tuple(n for n, m in METRICS.items() if not m.probability)} for other scores)"
        )
    return target, score
