"""What a stack answers while members are lost: final models for each single loss, imputed scores beyond it, and how good either is.

It must not know why a member is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from zoo.calibration import Calibrator, logits
from zoo.errors import ArtefactError
from zoo.manager import Plugins
from zoo.plugin import Array, Artefact, FeatureBatch, TrainingData
from zoo.stacking import Ensemble, Fitted, OutOfFold

FILE = "fallbacks.json"
RIDGE = 1e-3
"""Added to the variances of the scores, in parts of their mean, before they are inverted."""
MOST = 6
"""Members up to which every combination of losses is judged beforehand; of more, losses of one, of two and of all."""


@dataclass(frozen=True)
class Fallbacks:
    """without: by lost member, the final model fitted on the scores of the others. calibrators: by lost member, what maps that
    model's scores; versions from before there were any have that of the whole stack in their place.

    mean, spread: float64 (m * k,) and (m * k, m * k), of the members' logits on rows that they were not trained on. usual: float64
    (k,), the mean target of these rows, which is the answer when no member is left. held_out: by lost members' names joined with
    "+" ("" for none), JSON-ready: log_loss (of other targets mean squared error), bias (mean answer less mean target, by output) and, of
    probabilities, ece (expected calibration error; of several outputs the largest) on rows that neither members nor final models saw.
    """

    without: Mapping[str, Fitted]
    mean: Array
    spread: Array
    usual: Array
    held_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calibrators: Mapping[str, Calibrator] = field(default_factory=dict)

    def combine(self, ensemble: Ensemble, batch: FeatureBatch, scores: Array, lost: Array) -> Array:
        """float32 (n, k): the answer to members' scores (n, m, k), of which those that are lost, bool (n, m), are not looked at."""
        if len(batch) and (lost == lost[0]).all():  # as most batches are: all rows lack the same members, or none
            return self._combined(ensemble, batch, scores, lost[0])
        out = np.empty((len(batch), scores.shape[2]), np.float32)
        patterns, which = np.unique(lost, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            rows = np.flatnonzero(which.ravel() == number)
            own = batch if len(rows) == len(batch) else batch.take(rows)
            out[rows] = self._combined(ensemble, own, scores[rows], pattern)
        return out

    def _combined(self, ensemble: Ensemble, batch: FeatureBatch, scores: Array, lost: Array) -> Array:
        """As ``combine``, of rows that all lack the same members, bool (m,)."""
        if not lost.any():
            return ensemble.combine(batch, scores)
        if lost.all():
            return np.tile(self.usual.astype(np.float32), (len(batch), 1))
        (gone,) = np.nonzero(lost)
        name = ensemble.members[gone[0]].name
        final = self.without.get(name) if len(gone) == 1 else None
        if final is None:
            return ensemble.combine(batch, self.imputed(scores, lost, ensemble.target.kind))
        left = tuple(member for member, away in zip(ensemble.members, lost, strict=True) if not away)
        curve = self.calibrators.get(name, ensemble.calibrator)
        return replace(ensemble, members=left, final=final, calibrator=curve).combine(batch, scores[:, ~lost])

    def imputed(self, scores: Array, lost: Array, kind: str) -> Array:
        """float32 (n, m, k): in place of lost members' scores what is expected of them given the others', on the scale of logits.

        The conditional mean of a normal distribution (Little and Rubin, Statistical Analysis with Missing Data, 2019, chapter 11).
        """
        n, _, k = scores.shape
        unknown = np.repeat(lost, k)
        known = np.where(lost[:, None], 0.5, scores)
        odds = _logits(known, kind).reshape(n, -1)
        spread = self.spread[np.ix_(~unknown, ~unknown)]
        away = odds[:, ~unknown] - self.mean[~unknown]
        odds[:, unknown] = self.mean[unknown] + away @ np.linalg.solve(spread, self.spread[np.ix_(~unknown, unknown)])
        return np.where(lost[:, None], _scores(odds.reshape(scores.shape), kind), scores).astype(np.float32)

    def judged(self, ensemble: Ensemble, test: TrainingData, scores: Array) -> Fallbacks:
        """With ``held_out`` of these rows, and of their members' scores (n, m, k)."""
        found = {}
        for lost in losses(len(ensemble.members)):
            answer = self._combined(ensemble, test.batch, scores, np.array(lost))
            name = "+".join(member.name for member, away in zip(ensemble.members, lost, strict=True) if away)
            found[name] = _judged(answer.astype(np.float64), test)
        return replace(self, held_out=found)

    def calibrated(self, members: Sequence[str], lost: Array, bound: float) -> list[bool | None]:
        """By row: whether answers that lack these members, bool (n, m), were off by at most ``bound`` on held-out rows (``ece``).

        None where that was not measured: of some combinations of many members, of versions from before it was, and of other targets.
        """
        if not lost.any():
            return [self._calibrated("", bound)] * len(lost)
        return [
            self._calibrated("+".join(name for name, away in zip(members, row, strict=True) if away), bound)
            for row in lost.tolist()
        ]

    def _calibrated(self, lost: str, bound: float) -> bool | None:
        error = self.held_out.get(lost, {}).get("ece")
        return None if error is None else bool(error <= bound)

    def save(self) -> Artefact:
        about = {
            "without": {name: final.facts() for name, final in self.without.items()},
            "held_out": dict(self.held_out),
            "calibrators": {name: curve.to_json() for name, curve in self.calibrators.items()},
        }
        return Artefact.merged(
            Artefact({"mean": self.mean, "spread": self.spread, "usual": self.usual}, {FILE: json.dumps(about)}),
            *(final.fitted.save().nested(f"without/{name}") for name, final in self.without.items()),
        )

    @staticmethod
    def load(artefact: Artefact, plugins: Plugins) -> Fallbacks | None:
        """What ``save`` wrote; None where nothing is there, as of old versions. Raises ArtefactError, PluginError."""
        if FILE not in artefact.texts:
            return None
        try:
            about: Mapping[str, Any] = json.loads(artefact.texts[FILE])
            finals, held_out = dict(about["without"]), dict(about["held_out"])
            curves = {name: Calibrator.from_json(curve) for name, curve in about.get("calibrators", {}).items()}
            mean, spread, usual = (artefact.arrays[name] for name in ("mean", "spread", "usual"))
        except (KeyError, TypeError, ValueError) as e:
            raise ArtefactError(
                f"not fallbacks: {e!r}; expected {FILE} with without and held_out, and mean, spread, usual"
            ) from e
        without = {name: Fitted.load(facts, artefact.part(f"without/{name}"), plugins) for name, facts in finals.items()}
        return Fallbacks(without, mean, spread, usual, held_out, curves)


def fallbacks(oof: OutOfFold, data: TrainingData, fit: Callable[[OutOfFold], tuple[Fitted, Calibrator]]) -> Fallbacks:
    """Final models and imputation for lost members, from the rows that have out-of-fold scores.

    fit: gives the final model for some of the members, and its calibrator; its errors are raised.
    """
    without, curves = {}, {}
    for name in oof.members if len(oof.members) > 1 else ():
        without[name], curves[name] = fit(oof.only([other for other in oof.members if other != name]))
    target, weight = data.target[oof.rows], np.maximum(data.weight[oof.rows], 1e-12)
    odds = _logits(oof.scores[oof.rows], data.kind.kind).reshape(len(oof.rows), -1)
    known = np.isfinite(odds).all(axis=1)
    odds = odds[known]
    mean = np.average(odds, axis=0, weights=weight[known])
    spread = np.atleast_2d(np.cov(odds, rowvar=False, aweights=weight[known]))
    spread += RIDGE * max(float(np.trace(spread)) / len(spread), 1e-9) * np.eye(len(spread))
    return Fallbacks(without, mean, spread, np.average(_outcome(target, data), axis=0, weights=weight), calibrators=curves)


def losses(members: int) -> Iterator[tuple[bool, ...]]:
    """Which members may be lost, the loss of none first."""
    sizes: Sequence[int] = range(members + 1) if members <= MOST else (0, 1, 2, members)
    for size in sizes:
        for lost in combinations(range(members), size):
            yield tuple(at in lost for at in range(members))


def _outcome(target: Array, data: TrainingData) -> Array:
    """float64 (n, k): the target as the answer that would be right."""
    if data.kind.kind == "multiclass":
        return np.eye(data.kind.width)[target.astype(np.int64)]
    return np.repeat(np.asarray(target, np.float64)[:, None], data.kind.width, axis=1)


def _ece(outcome: Array, answer: Array) -> float:
    from zoo.evaluation.metrics import Ranked, ece

    rows, order = Ranked.of(outcome, answer)
    return float(ece(rows, np.ones((1, len(order))))[0])


def _judged(answer: Array, test: TrainingData) -> dict[str, Any]:
    from zoo.evaluation.calibration import as_binary

    outcome = _outcome(test.target, test)
    bias = (answer - outcome).mean(axis=0).tolist()
    if test.kind.kind == "multiclass":
        loss = float(-(outcome * np.log(np.maximum(answer, 1e-15))).sum(axis=1).mean())
        return {"log_loss": loss, "bias": bias, "ece": _ece(*as_binary(test.target, answer))}
    if test.kind.kind == "binary":
        p = np.clip(answer, 1e-15, 1 - 1e-15)
        loss = float(-(outcome * np.log(p) + (1 - outcome) * np.log1p(-p)).mean())
        return {"log_loss": loss, "bias": bias, "ece": max(_ece(outcome[:, k], answer[:, k]) for k in range(answer.shape[1]))}
    return {"mean_squared_error": float(((answer - outcome) ** 2).mean()), "bias": bias}


def _logits(scores: Array, kind: str) -> Array:
    """float64: logits of probabilities, log-probabilities of classes; other scores as they are."""
    if kind not in ("binary", "multiclass"):
        return scores.astype(np.float64)
    return logits(scores, classes=kind == "multiclass")


def _scores(logits: Array, kind: str) -> Array:
    """The inverse of ``_logits``; of classes they sum to 1."""
    if kind == "binary":
        p: Array = np.exp(-np.logaddexp(0, -logits))
        return p
    if kind == "multiclass":
        raised = np.exp(logits - logits.max(axis=2, keepdims=True))
        shares: Array = raised / raised.sum(axis=2, keepdims=True)
        return shares
    return logits
