"""A final model for rankings: a softmax over the candidates of a group, linear in their columns.

It reads columns of numbers and groups of rows, and knows nothing of what gave them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from zoo.plugin import Array, Artefact, FeatureBatch, FittedModel, ModelSpec, PluginError, Progress, TrainingData

if TYPE_CHECKING:
    from pydantic import BaseModel

STRENGTHS = (1.0, 10.0, 100.0, 1_000.0)
"""Ridge penalties tried."""
FOLDS = 2
STEPS = 50
"""Newton steps at most; about eight are taken."""


@cache
def _params() -> type[BaseModel]:
    from pydantic import BaseModel, ConfigDict, Field  # 0.1 s that listing plugins need not pay

    class BlendParams(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)

        strength: float | None = Field(
            default=None, gt=0, description="Ridge penalty, in groups; none: chosen on held-out groups."
        )
        columns: tuple[str, ...] = Field(default=("*",), description="Patterns of the columns that are weighed.")

    return BlendParams


@dataclass(frozen=True)
class Blend:
    """``p(candidate | group) = softmax(x @ w)``, the conditional logit (McFadden, 1974), fitted by ``-log p`` of the candidates of highest
    grade with the penalty ``strength / 2 * |w|^2`` on columns brought to unit variance.
    """

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            "blend",
            _params,
            targets=frozenset({"relevance"}),
            summary="final model of rankings: softmax over candidates, linear in members' scores and ranks",
        )

    def tiny(self) -> BaseModel:
        return _params()()

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:
        chosen = params.model_dump()
        names = tuple(n for n in data.batch.names if any(fnmatchcase(n, p) for p in chosen["columns"]) and _usable(data.batch, n))
        table = _table(data.batch, names)
        mean, scale = (
            table.mean(axis=0) if len(table) else np.zeros(len(names)),
            table.std(axis=0) if len(table) else np.ones(len(names)),
        )
        scale[scale < 1e-9] = 1.0
        groups = _Groups.of((table - mean) / scale, data)
        strength = chosen["strength"] or _chosen(groups, seed, progress)
        weights = groups.fitted(strength) / scale
        progress(1.0, f"strength {strength:g}")
        return FittedBlend(names, weights, mean, strength)

    def load(self, artefact: Artefact) -> FittedModel:
        about = json.loads(artefact.texts["blend.json"])
        columns, weights, mean = tuple(map(str, about["columns"])), artefact.arrays["weights"], artefact.arrays["mean"]
        if not weights.shape == mean.shape == (len(columns),):
            raise PluginError(
                f"weights are {list(weights.shape)} and means {list(mean.shape)} for {len(columns)} columns; restore the artefact, or "
                "train again"
            )
        return FittedBlend(columns, weights, mean, float(about["strength"]))


@dataclass(frozen=True)
class FittedBlend:
    """columns: names. weights, mean: float64 (d,), by column."""

    columns: tuple[str, ...]
    weights: Array
    mean: Array
    strength: float

    def predict(self, batch: FeatureBatch) -> Array:
        missing = [name for name in self.columns if name not in batch]
        if missing:
            raise PluginError(f"the blend was fitted on {missing[0]!r}, which is not here; it has: {', '.join(batch.names)}")
        # summed column by column: a row's score must not depend on how many rows are asked for, as a product of matrices may
        score = np.zeros(len(batch))
        for name, weight, mean in zip(self.columns, self.weights, self.mean, strict=True):
            score += weight * np.nan_to_num(_numbers(batch, name) - mean)
        return score.astype(np.float32)[:, None]

    def save(self) -> Artefact:
        about = {"columns": self.columns, "strength": self.strength}
        return Artefact({"weights": self.weights, "mean": self.mean}, {"blend.json": json.dumps(about)})


def _usable(batch: FeatureBatch, name: str) -> bool:
    column = batch.stored(name)[1]
    return column.is_numeric and not column.is_sequence


def _numbers(batch: FeatureBatch, name: str) -> Array:
    values = batch.column(name).values.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _table(batch: FeatureBatch, names: Sequence[str]) -> Array:
    """float64 (n, d), what is missing at the column's mean."""
    out = np.empty((len(batch), len(names)))
    for at, name in enumerate(names):
        values = _numbers(batch, name)
        known = np.isfinite(values)
        out[:, at] = np.where(known, values, values[known].mean() if known.any() else 0.0)
    return out


@dataclass(frozen=True)
class _Groups:
    """Groups that have something to learn from. table: float64 (c, d). starts: int64 (g,). share: float64 (c,), of the group's weight."""

    table: Array
    starts: Array
    sizes: Array
    share: Array

    @staticmethod
    def of(table: Array, data: TrainingData) -> _Groups:
        group = data.batch.group
        if group is None:
            raise PluginError(
                "blend ranks the candidates of a group, and this batch has no groups; expected offsets in batch.group"
            )
        sizes = np.diff(group)
        some = np.flatnonzero(sizes > 1)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        top, low = np.full(len(sizes), -np.inf), np.full(len(sizes), np.inf)
        np.maximum.at(top, owner, data.target)
        np.minimum.at(low, owner, data.target)
        kept = np.zeros(len(sizes), bool)
        kept[some] = top[some] > low[some]  # where all candidates are alike, there is nothing to learn
        rows = kept[owner]
        share = np.where(data.target == top[owner], data.weight, 0.0)[rows]
        sizes = sizes[kept]
        share /= np.repeat(np.maximum(np.add.reduceat(share, _starts(sizes)), 1e-300), sizes) if len(sizes) else 1.0
        return _Groups(table[rows], _starts(sizes), sizes, share)

    def take(self, which: Array) -> _Groups:
        """Those of a mask (g,)."""
        rows = np.repeat(which, self.sizes)
        return _Groups(self.table[rows], _starts(self.sizes[which]), self.sizes[which], self.share[rows])

    def loss(self, weights: Array) -> float:
        """Sum over groups of -log p."""
        if not len(self.sizes):
            return 0.0
        eta = self.table @ weights
        top = np.maximum.reduceat(eta, self.starts)
        total = np.add.reduceat(np.exp(eta - np.repeat(top, self.sizes)), self.starts)
        return float((np.log(total) + top).sum() - self.share @ eta)

    def slopes(self, weights: Array) -> tuple[Array, Array]:
        """The loss's slope (d,) and curvature (d, d)."""
        eta = self.table @ weights
        raised = np.exp(eta - np.repeat(np.maximum.reduceat(eta, self.starts), self.sizes))
        p = raised / np.repeat(np.add.reduceat(raised, self.starts), self.sizes)
        weighted = self.table * p[:, None]
        means = np.add.reduceat(weighted, self.starts)
        return self.table.T @ (p - self.share), self.table.T @ weighted - means.T @ means

    def fitted(self, strength: float, start: Array | None = None) -> Array:
        """Weights (d,) at the minimum of the penalised loss, which is convex: Newton's method, a step halved while it does not help."""
        weights = np.zeros(self.table.shape[1]) if start is None else start
        if not len(self.sizes) or not len(weights):
            return weights

        def penalised(weights: Array) -> float:
            return self.loss(weights) + strength / 2 * float(weights @ weights)

        value = penalised(weights)
        for _ in range(STEPS):
            slope, curvature = self.slopes(weights)
            step = np.linalg.solve(curvature + strength * np.eye(len(weights)), slope + strength * weights)
            length = 1.0
            while (tried := penalised(weights - length * step)) > value and length > 1e-6:
                length /= 2
            if value - tried <= 1e-9 * abs(value):
                break
            weights, value = weights - length * step, tried
        return weights


def _starts(sizes: Array) -> Array:
    return np.cumsum(sizes) - sizes


def _chosen(groups: _Groups, seed: int, progress: Progress) -> float:
    """The strength of least loss on held-out groups, of equal ones the strongest."""
    fold = np.random.default_rng(seed).permutation(len(groups.sizes)) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for number in range(FOLDS):
        train, held_out = groups.take(fold != number), groups.take(fold == number)
        weights = None
        for at in reversed(range(len(STRENGTHS))):
            weights = train.fitted(STRENGTHS[at], weights)
            losses[at] += held_out.loss(weights)
        progress((number + 1) / (FOLDS + 1), f"tried strengths, fold {number + 1} of {FOLDS}")
    return max(s for s, loss in zip(STRENGTHS, losses, strict=True) if loss == losses.min())
