"""Maps that make probabilities agree with what happens: Platt, beta and isotonic, and the choice among them on later rows.

Platt (1999), "Probabilistic outputs for support vector machines", on the logit; Kull, Silva Filho and Flach (2017), "Beyond sigmoids:
beta calibration"; Zadrozny and Elkan (2002), "Transforming classifier scores into accurate multiclass probability estimates", for isotonic
maps and for several classes, each of which is mapped against the others before all are brought to the sum of 1.
It must not know what gave the probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.choice import least
from zoo.errors import ArtefactError, UsageError, choices
from zoo.plugin import Array

NONE = "none"
KINDS = (NONE, "platt", "beta", "isotonic")
OF_EACH = 50
"""Rows of the rarest class from which on calibration is considered: fewer cannot tell a bent curve from chance."""
STEPS_FROM = 1_000
"""Rows from which on ``isotonic`` is, which overfits fewer (Niculescu-Mizil and Caruana, 2005)."""
PULL = 0.1
"""Keeps what few rows, or rows of one class, say finite."""
CLIP = 1e-6
"""Probabilities are kept this far from 0 and 1 before the logarithm."""


@dataclass(frozen=True)
class Calibrator:
    """Monotone maps of probabilities, one a column, that rise or stay.

    curves: of ``platt`` and ``beta`` ``a``, ``b``, ``c`` of ``logit q = a ln p - b ln(1 - p) + c``, a = b for Platt; of ``isotonic`` the
    knots ``p`` and ``q``, straight between them.
    """

    kind: str = NONE
    curves: tuple[Mapping[str, Any], ...] = field(default=())

    @staticmethod
    def fit(kind: str, scores: Array, target: Array, weight: Array) -> Calibrator:
        """scores: (n, k), probabilities of class 1 (k = 1) or of each class. target: (n,), class numbers. weight: (n,)."""
        if kind not in KINDS:
            raise UsageError(choices("calibration", kind, KINDS))
        if kind == NONE:
            return Calibrator()
        one = _isotonic if kind == "isotonic" else _platt if kind == "platt" else _beta
        scores = np.asarray(scores, np.float64)
        columns = [target] if scores.shape[1] == 1 else [target == k for k in range(scores.shape[1])]
        return Calibrator(
            kind,
            tuple(one(scores[:, k], np.asarray(y, np.float64), weight) for k, y in enumerate(columns)) if len(scores) else (),
        )

    def __call__(self, scores: Array) -> Array:
        """The scores (n, k) mapped, in their dtype; as they are where nothing was learnt. A row does not depend on the others."""
        if not self.curves:
            return scores
        p = scores.astype(np.float64)
        mapped = np.stack([_mapped(curve, p[:, k]) for k, curve in enumerate(self.curves)], axis=1)
        if len(self.curves) > 1:
            mapped /= mapped.sum(axis=1, keepdims=True)
        return mapped.astype(scores.dtype)

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "curves": self.curves})

    @staticmethod
    def from_json(text: str) -> Calibrator:
        """What ``to_json`` wrote. Raises ArtefactError for anything else."""
        try:
            about = json.loads(text)
            curves = tuple({n: np.asarray(v, np.float64).tolist() for n, v in curve.items()} for curve in about["curves"])
            if about["kind"] not in KINDS or not all(curve.keys() in ({"a", "b", "c"}, {"p", "q"}) for curve in curves):
                raise ValueError(text[:80])
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ArtefactError(f"not a calibrator: {e!r}; expected kind, and curves of a, b, c or of p, q") from e
        return Calibrator(about["kind"], curves)


IDENTITY = Calibrator()
"""Leaves probabilities as they are."""


def logits(scores: Array, *, classes: bool = False) -> Array:
    """float64: log-odds of probabilities, or with ``classes`` the logarithms of theirs; kept ``CLIP`` from 0 and 1 before."""
    low, high = _logs(np.asarray(scores, np.float64))
    return low if classes else low - high


def losses(scores: Array, target: Array, weight: Array) -> Array:
    """Weighted negative log-likelihood of each row (n,), of probabilities (n, k); kept ``CLIP`` from infinity."""
    p = np.asarray(scores, np.float64)
    of_class = np.where(target > 0, p[:, 0], 1 - p[:, 0]) if p.shape[1] == 1 else p[np.arange(len(p)), target.astype(np.int64)]
    loss: Array = -weight * np.log(np.maximum(of_class, CLIP))
    return loss


def chosen(
    scores: Array,
    target: Array,
    weight: Array,
    folds: Sequence[tuple[Array, Array]],
    entities: Array | None = None,
    kinds: Sequence[str] = KINDS,
) -> tuple[str, dict[str, float]]:
    """The kind of least log-loss on later rows, fitted on the rows before them, and each kind's loss there.

    folds: (rows fitted on, later rows). No calibration stays where no kind beats it beyond chance over whole
    entities, nor where rows are too few to say (``OF_EACH``, ``STEPS_FROM``). Without folds nothing is chosen and no loss is known.
    """
    if not folds:
        return NONE, {}
    counts = np.unique(target, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < OF_EACH:
        kinds = (NONE,)
    elif len(target) < STEPS_FROM:
        kinds = [kind for kind in kinds if kind != "isotonic"]
    scored = np.concatenate([later for _, later in folds])
    found = {}
    for kind in kinds:
        parts = [losses(Calibrator.fit(kind, scores[a], target[a], weight[a])(scores[b]), target[b], weight[b]) for a, b in folds]
        found[kind] = np.concatenate(parts)
    total = max(float(weight[scored].sum()), 1e-300)
    picked = least(found, NONE, None if entities is None else entities[scored])
    return picked, {kind: float(loss.sum()) / total for kind, loss in found.items()}


def _platt(p: Array, target: Array, weight: Array) -> dict[str, float]:
    low, high = _logs(p)
    (a, c) = _logistic(np.stack([low - high], axis=1), target, weight)
    return {"a": a, "b": a, "c": c}


def _beta(p: Array, target: Array, weight: Array) -> dict[str, float]:
    low, high = _logs(p)
    (a, b, c) = _logistic(np.stack([low, -high], axis=1), target, weight)
    return {"a": a, "b": b, "c": c}


def _logs(p: Array) -> tuple[Array, Array]:
    kept = np.clip(p, CLIP, 1 - CLIP)
    return np.log(kept), np.log1p(-kept)


def _logistic(x: Array, target: Array, weight: Array) -> list[float]:
    """Slopes, at least 0, and the intercept of a logistic regression; pulled, by ``PULL`` rows, towards what changes nothing."""
    from scipy.optimize import minimize  # 0.3 s that nobody pays who only predicts

    total = max(float(weight.sum()), 1e-9)

    def loss(theta: Array) -> tuple[float, Array]:
        eta = x @ theta[:-1] + theta[-1]
        away = theta - start
        slope = weight * (1 / (1 + np.exp(-eta)) - target)
        value = weight @ (np.logaddexp(0, eta) - target * eta) + PULL * (away**2).sum()
        return value / total, (np.r_[slope @ x, slope.sum()] + 2 * PULL * away) / total

    start = np.r_[np.ones(x.shape[1]), 0.0]
    bounds = [(0.0, 30.0)] * x.shape[1] + [(-30.0, 30.0)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13, "gtol": 1e-9})
    return [float(each) for each in found.x]


def _isotonic(p: Array, target: Array, weight: Array) -> dict[str, list[float]]:
    """The steps that rise (pool adjacent violators); their ends are kept from 0 and 1 by what ``len + 2`` rows can say."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression().fit(p, target, sample_weight=weight)
    edge = 1 / (len(p) + 2)
    return {"p": fitted.X_thresholds_.tolist(), "q": np.clip(fitted.y_thresholds_, edge, 1 - edge).tolist()}


def _mapped(curve: Mapping[str, Any], p: Array) -> Array:
    if "p" in curve:
        q: Array = np.interp(p, curve["p"], curve["q"])
        return q
    low, high = _logs(p)
    q = 1 / (1 + np.exp(-(curve["a"] * low - curve["b"] * high + curve["c"])))
    return q
