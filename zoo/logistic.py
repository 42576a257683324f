"""The default final model of a stack: non-negative logistic regression on the logits of the members' scores.

It reads columns named ``score:MEMBER`` or ``score:MEMBER:CLASS`` and knows nothing of what gave them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.averages import Average, names_of, scores_of
from zoo.calibration import logits
from zoo.choice import better
from zoo.errors import UsageError
from zoo.folds import forward_chaining
from zoo.plugin import (
    Array,
    Artefact,
    FeatureBatch,
    FittedModel,
    ModelPlugin,
    ModelSpec,
    PluginError,
    Progress,
    TrainingData,
    hookimpl,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

ENTITY = "entity"
"""A column that is there at fitting only: int64, whose each row is, so that the strength is chosen by whole users."""
KNOWN_AT = "known_at"
"""A column that is there at fitting only: int64, when each row's label is known, so that the strength is chosen on later rows only."""
STRENGTHS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
"""Tried by forward validation, in rows: how many rows the prior of equal weights counts as."""
PLAIN = math.inf
"""The strength that leaves the plain mean of the logits as it is, intercept and all: what a stack falls back to."""
WITHOUT_VALIDATION = 100.0
"""The strength where all rows are of one instant."""
BOUND = 30.0


@cache
def _params() -> type[BaseModel]:
    from pydantic import BaseModel, ConfigDict, Field  # 0.1 s that listing plugins need not pay

    class LogisticParams(BaseModel):
        """strength: rows that the prior of equal weights counts as; None to choose it by forward validation."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        strength: float | None = Field(default=None, gt=0)

    return LogisticParams


@dataclass(frozen=True)
class Logistic:
    """``logit p = b + sum of w[m] * logit p[m]``, w >= 0, fitted by log-loss with the penalty ``strength * sum((w - 1/M)^2)``.

    The penalty pulls towards the plain mean of the logits: with few rows equal weights are hard to beat (the "forecast combination
    puzzle": Smith and Wallis, 2009), and a useless member's weight goes to 0 as the rows speak. For classes the same with
    log-probabilities and a weight for each member and class (vector scaling: Guo et al., 2017). Intercept and scale calibrate, because
    the scores come from rows that no member was trained on. The strength is chosen by forward chaining over the instants of
    those rows: fitted before an instant, judged by log-loss from it on; the rows themselves are never used for both. Where no
    strength beats the plain mean of the logits beyond chance there, the plain mean it is: no weight, no intercept.
    """

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            "logistic",
            _params,
            ("score:*", ENTITY, KNOWN_AT),
            frozenset({"binary", "multiclass"}),
            "final model: non-negative logistic regression on members' scores, shrunk to equal weights",
        )

    def tiny(self) -> BaseModel:
        return _params()()

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:  # noqa: ARG002 - it draws nothing
        width = data.kind.width
        names = names_of(data.batch, width)
        scores = _logits(data.batch, names, width)
        known = np.isfinite(scores).all(axis=(1, 2))
        rows = _Rows(scores[known], data.target[known], data.weight[known])
        strength = params.model_dump()["strength"]
        if strength is None:
            whose, known_at = (data.batch.column(n).values[known] if n in data.batch else None for n in (ENTITY, KNOWN_AT))
            strength = _chosen(rows, data.time[known], known_at, whose, progress)
        weights, intercept = _fit(rows, strength)
        progress(1.0, f"strength {strength:g}")
        return FittedLogistic(names, weights, intercept, strength)

    def load(self, artefact: Artefact) -> FittedModel:
        settings = json.loads(artefact.texts["logistic.json"])
        strength = PLAIN if settings["strength"] is None else float(settings["strength"])
        members, weights, intercept = (
            tuple(map(str, settings["members"])),
            artefact.arrays["weights"],
            artefact.arrays["intercept"],
        )
        if intercept.shape[1:] != () or weights.shape != (len(members), len(intercept)):
            raise PluginError(
                f"weights are {list(weights.shape)} and the intercept {list(intercept.shape)} for {len(members)} members; restore the "
                "artefact, or train again"
            )
        return FittedLogistic(members, weights, intercept, strength)


@dataclass(frozen=True)
class FittedLogistic:
    """members: names. weights: float64 (m, k). intercept: float64 (k,)."""

    members: tuple[str, ...]
    weights: Array
    intercept: Array
    strength: float

    def predict(self, batch: FeatureBatch) -> Array:
        width = len(self.intercept)
        if self.strength == PLAIN and len(self.members) == 1:  # the member itself: logits would lift what is below ``CLIP``
            return scores_of(batch, self.members, width)[:, 0].astype(np.float32)
        eta = _eta(_logits(batch, self.members, width), self.weights, self.intercept)
        return _probabilities(eta).astype(np.float32)

    def save(self) -> Artefact:
        # JSON has no infinity
        settings = {"members": self.members, "strength": None if self.strength == PLAIN else self.strength}
        return Artefact({"weights": self.weights, "intercept": self.intercept}, {"logistic.json": json.dumps(settings)})


@dataclass(frozen=True)
class _Rows:
    """scores: logits (n, m, 1) or log-probabilities (n, m, k)."""

    scores: Array
    target: Array
    weight: Array

    def take(self, rows: Array) -> _Rows:
        return _Rows(self.scores[rows], self.target[rows], self.weight[rows])


def _logits(batch: FeatureBatch, names: tuple[str, ...], width: int) -> Array:
    """float64 (n, m, width)."""
    return logits(scores_of(batch, names, width), classes=width > 1)


def _eta(scores: Array, weights: Array, intercept: Array) -> Array:
    eta: Array = np.einsum("nmk,mk->nk", scores, weights) + intercept
    return eta


def _probabilities(eta: Array) -> Array:
    if eta.shape[1] == 1:
        p: Array = np.exp(-np.logaddexp(0, -eta))
        return p
    raised = np.exp(eta - eta.max(axis=1, keepdims=True))
    shares: Array = raised / raised.sum(axis=1, keepdims=True)
    return shares


def _losses(eta: Array, target: Array) -> Array:
    """Negative log-likelihood of each row, (n,)."""
    if eta.shape[1] == 1:
        loss: Array = np.logaddexp(0, eta[:, 0]) - target * eta[:, 0]
        return loss
    top = eta.max(axis=1)
    total: Array = np.log(np.exp(eta - top[:, None]).sum(axis=1)) + top - eta[np.arange(len(eta)), target.astype(np.int64)]
    return total


def _fit(rows: _Rows, strength: float) -> tuple[Array, Array]:
    """Weights (m, k) and intercept (k,) at the minimum of the penalised log-loss."""
    from scipy.optimize import minimize  # 0.3 s that listing plugins need not pay

    _, members, width = rows.scores.shape
    prior = np.full((members, width), 1 / max(1, members))
    if strength == PLAIN:
        return prior, np.zeros(width)
    total = max(rows.weight.sum(), 1e-9)
    outcome = rows.target[:, None] if width == 1 else np.eye(width)[rows.target.astype(np.int64)]

    def loss(theta: Array) -> tuple[float, Array]:
        weights, intercept = theta[:-width].reshape(members, width), theta[-width:]
        eta = _eta(rows.scores, weights, intercept)
        value = rows.weight @ _losses(eta, rows.target) + strength * ((weights - prior) ** 2).sum() + 1e-3 * (intercept**2).sum()
        slope = rows.weight[:, None] * (_probabilities(eta) - outcome)
        by_weight = np.einsum("nmk,nk->mk", rows.scores, slope) + 2 * strength * (weights - prior)
        return value / total, np.r_[by_weight.ravel(), slope.sum(axis=0) + 2e-3 * intercept] / total

    bounds = [(0.0, BOUND)] * (members * width) + [(-BOUND, BOUND)] * width
    start = np.r_[prior.ravel(), np.zeros(width)]
    found: Any = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-8})
    return found.x[:-width].reshape(members, width), found.x[-width:]


def _chosen(rows: _Rows, time: Array, known_at: Array | None, whose: Array | None, progress: Progress) -> float:
    """The strength of least log-loss on later rows, of equal ones the strongest; PLAIN where that is not better beyond chance.

    known_at: (n,), when each row's label is known; None: at once. whose: (n,), the user of each row, or None: users come back at later
    instants, so whole ones are compared.
    """
    instants = len(np.unique(time))
    if instants < 2:
        return WITHOUT_VALIDATION
    folds = _folds(time, time if known_at is None else known_at, min(4, instants - 1))
    if not folds:  # nobody can say whether weights and intercept would hold, so they are left alone
        return PLAIN
    best, losses = PLAIN, _forward(rows, folds, PLAIN)
    plain = losses
    for done, strength in enumerate(reversed(STRENGTHS)):
        tried = _forward(rows, folds, strength)
        if tried.sum() < losses.sum():
            best, losses = strength, tried
        progress(done / len(STRENGTHS), f"tried strength {strength:g}")
    gain = plain - losses
    scored = np.concatenate([later for _, later in folds])
    return best if better(gain, None if whose is None else whose[scored]) else PLAIN


def _folds(time: Array, known_at: Array, count: int) -> list[tuple[Array, Array]]:
    """As many folds forward in time as there can be, at most ``count``; none where no label is known before a later instant."""
    for fewer in range(count, 0, -1):
        try:
            return forward_chaining(time, known_at, fewer)
        except UsageError:
            continue
    return []


def _forward(rows: _Rows, folds: Sequence[tuple[Array, Array]], strength: float) -> Array:
    """Weighted losses of the folds' scored rows, fitted on the rows before them."""
    losses = []
    for train, scored in folds:
        weights, intercept = _fit(rows.take(train), strength)
        held_out = rows.take(scored)
        losses.append(held_out.weight * _losses(_eta(held_out.scores, weights, intercept), held_out.target))
    return np.concatenate(losses)


@hookimpl
def zoo_models() -> Sequence[ModelPlugin]:
    from zoo.blend import Blend  # of rankings
    from zoo.linear import Linear  # the plain model of features

    return [Logistic(), Average(), Blend(), Linear()]
