"""Final models without regression: the plain mean of members' scores, their mean rank, the best member alone, and greedy selection.

They read columns named ``score:MEMBER`` or ``score:MEMBER:CLASS`` and know nothing of what gave them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from zoo.calibration import CLIP, IDENTITY, Calibrator, losses
from zoo.plugin import Array, Artefact, FeatureBatch, FittedModel, ModelSpec, PluginError, Progress, TrainingData

if TYPE_CHECKING:
    from pydantic import BaseModel

ROUNDS = 50
"""Of greedy selection, at most; the weights are counts over the rounds taken."""
KNOTS = 257
"""Quantiles that a member's ranks are read from."""


@cache
def _params() -> type[BaseModel]:
    from pydantic import BaseModel, ConfigDict, Field  # 0.1 s that listing plugins need not pay

    class AverageParams(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)

        how: Literal["mean", "rank_mean", "best", "greedy"] = Field(default="mean", description="How members are weighed.")

    return AverageParams


@dataclass(frozen=True)
class Average:
    """A weighted mean of members' probabilities, w >= 0 and of sum 1.

    mean: alike. best: only the member of least log-loss. greedy: the members that lower the log-loss of the mean most are added one by
    one, each as often as it helps, and the set of least loss is taken (Caruana et al., 2004, "Ensemble selection from libraries of
    models"). rank_mean: alike, of each score's share of lower scores among the rows fitted on, mapped to a probability by Platt's map.
    """

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            "average",
            _params,
            ("score:*",),
            frozenset({"binary", "multiclass"}),
            "final model: mean, mean rank, best or greedily selected of members' scores",
        )

    def tiny(self) -> BaseModel:
        return _params()()

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:  # noqa: ARG002 - it draws nothing
        width, how = data.kind.width, params.model_dump()["how"]
        names = names_of(data.batch, width)
        scores = scores_of(data.batch, names, width)
        known = np.isfinite(scores).all(axis=(1, 2))
        scores, target, weight = scores[known], data.target[known], data.weight[known]
        weights = np.full(len(names), 1 / max(1, len(names)))
        if how == "best" and len(scores):
            each = [losses(scores[:, m], target, weight).sum() for m in range(len(names))]
            weights = np.eye(len(names))[int(np.argmin(each))]
        elif how == "greedy" and len(scores):
            weights = _greedy(scores, target, weight)
        if how != "rank_mean":
            progress(1.0, how)
            return FittedAverage(names, weights, width)
        knots = np.quantile(scores, np.linspace(0, 1, KNOTS), axis=0) if len(scores) else np.zeros((KNOTS, len(names), width))
        ranked = FittedAverage(names, weights, width, knots)
        progress(1.0, how)
        return FittedAverage(names, weights, width, knots, Calibrator.fit("platt", ranked.averaged(scores), target, weight))

    def load(self, artefact: Artefact) -> FittedModel:
        about = json.loads(artefact.texts["average.json"])
        arrays, shape = artefact.arrays, Calibrator.from_json(about["shape"])
        members, weights, width, knots = (
            tuple(map(str, about["members"])),
            arrays["weights"],
            int(about["width"]),
            arrays.get("knots"),
        )
        if weights.shape != (len(members),) or width < 1 or (knots is not None and knots.shape[1:] != (len(members), width)):
            raise PluginError(
                f"weights are {list(weights.shape)} and knots {None if knots is None else list(knots.shape)} for {len(members)} members "
                f"with {width} scores; restore the artefact, or train again"
            )
        return FittedAverage(members, weights, width, knots, shape)


@dataclass(frozen=True)
class FittedAverage:
    """members: names. weights: float64 (m,). width: k, scores a member. knots: float64 (KNOTS, m, k), members' quantiles."""

    members: tuple[str, ...]
    weights: Array
    width: int = 1
    knots: Array | None = None
    shape: Calibrator = IDENTITY

    def averaged(self, scores: Array) -> Array:
        """float64 (n, k) of (n, m, k), before ``shape``; a column after the other, so that a row is answered alone as among others."""
        out = np.zeros((len(scores), scores.shape[2]))
        for m, weight in enumerate(self.weights):
            for k in range(scores.shape[2]):
                each = scores[:, m, k]
                if self.knots is not None:
                    each = _shares(self.knots[:, m, k], each)
                out[:, k] += weight * each
        return out if self.knots is None or out.shape[1] == 1 else out / out.sum(axis=1, keepdims=True)

    def predict(self, batch: FeatureBatch) -> Array:
        averaged = self.averaged(scores_of(batch, self.members, self.width))
        return np.clip(self.shape(averaged), 0, 1).astype(np.float32)

    def save(self) -> Artefact:
        arrays = {"weights": self.weights} | ({} if self.knots is None else {"knots": self.knots})
        about = {"members": self.members, "width": self.width, "shape": self.shape.to_json()}
        return Artefact(arrays, {"average.json": json.dumps(about)})


def names_of(batch: FeatureBatch, width: int) -> tuple[str, ...]:
    """The members whose scores a batch holds."""
    columns = [name.removeprefix("score:") for name in batch.names if name.startswith("score:")]
    return tuple(columns) if width == 1 else tuple(dict.fromkeys(name.rpartition(":")[0] for name in columns))


def scores_of(batch: FeatureBatch, names: tuple[str, ...], width: int) -> Array:
    """float64 (n, m, width), the members' probabilities. Raises PluginError where one is missing, or is no probability."""
    scores = np.empty((len(batch), len(names), width))
    for m, name in enumerate(names):
        for k in range(width):
            column = f"score:{name}" if width == 1 else f"score:{name}:{k}"
            if column not in batch:
                raise PluginError(
                    f"the final model was fitted on {column!r}, which is not here; it has: {', '.join(batch.names)}"
                )
            scores[:, m, k] = batch.column(column).values
    if np.nanmin(scores, initial=0) < 0 or np.nanmax(scores, initial=1) > 1:
        raise PluginError("the final model takes probabilities; a member's scores lie outside 0..1")
    return scores


def _shares(knots: Array, scores: Array) -> Array:
    """Share of the rows fitted on with a lower score, ties counting half, kept from 0 and 1."""
    below, to = np.searchsorted(knots, scores, side="left"), np.searchsorted(knots, scores, side="right")
    between = np.interp(scores, knots, np.arange(len(knots)) / (len(knots) - 1))
    share: Array = np.where(to > below, (below + to - 1) / 2 / (len(knots) - 1), between)
    return np.clip(share, CLIP, 1 - CLIP)


def _greedy(scores: Array, target: Array, weight: Array) -> Array:
    count = np.zeros(scores.shape[1])
    total, best, found = np.zeros((len(scores), scores.shape[2])), np.inf, count
    for taken in range(1, ROUNDS + 1):
        each = [losses((total + scores[:, m]) / taken, target, weight).sum() for m in range(scores.shape[1])]
        picked = int(np.argmin(each))
        count[picked] += 1
        total += scores[:, picked]
        if each[picked] < best - 1e-12:
            best, found = each[picked], count / taken
    return found
