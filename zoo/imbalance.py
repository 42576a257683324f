"""Rare classes: fewer rows of the most frequent one, focal loss, and what makes probabilities of the scores again. Numpy only."""

from __future__ import annotations

import numpy as np

from zoo.contract import Array, TrainingData
from zoo.errors import PluginError


def thinned(data: TrainingData, share: float, seed: int) -> tuple[TrainingData, Array]:
    """The rows with about ``share`` of those of the most frequent class, drawn evenly, and float64 (classes,): what was kept of each.

    Share 1 leaves the rows as they are. A network that learns from these rows tells another base rate: see ``calibrated``. Raises
    PluginError for a target without classes.
    """
    if share >= 1:
        return data, np.ones(max(2, data.kind.width))
    if data.kind.kind not in ("binary", "multiclass"):
        raise PluginError(f"rows of a {data.kind.kind} target have no most frequent class; leave 'negatives' at 1")
    classes = data.target.astype(np.int64)
    counts = np.bincount(classes, minlength=max(2, data.kind.width))
    most = int(counts.argmax())
    own = np.flatnonzero(classes == most)
    number = max(1, round(share * len(own))) if len(own) else 0
    drawn = np.random.default_rng([seed, 0x5EED]).choice(own, number, replace=False)
    keep = np.ones(len(counts))
    keep[most] = number / max(1, len(own))
    return data.take(np.sort(np.concatenate([np.flatnonzero(classes != most), drawn]))), keep


def balanced(target: Array, weight: Array) -> Array:
    """float64 (n,): the weights (n,) such that every class that occurs has the same total, with the mean that they had."""
    _, inverse = np.unique(target, return_inverse=True)
    even = weight / np.maximum(np.bincount(inverse, weight), 1e-12)[inverse]
    return np.asarray(even * (weight.mean() / max(float(even.mean()), 1e-300)))


def calibrated(scores: Array, keep: Array, gamma: float = 0.0) -> Array:
    """float64 in the shape of ``scores`` (..., k): probabilities as if nothing had been left out and the loss were the log-loss.

    scores: probabilities that were learnt; k = 1 for a binary target's, of class 1. keep: (classes,), as ``thinned`` says it. gamma: of
    the focal loss, whose minimiser is not the probability but a known function of it (Charoenphakdee et al. 2021, theorem 11).
    """
    found = np.asarray(scores, np.float64)
    binary = found.shape[-1] == 1
    if binary:
        found = np.concatenate([1 - found, found], -1)
    if gamma:
        left = np.clip(1 - found, 1e-12, 1)
        seen = np.clip(found, 1e-300, 1)
        found = seen / (left**gamma - gamma * left ** (gamma - 1) * seen * np.log(seen))
        found /= found.sum(-1, keepdims=True)
    found = found / keep
    found /= found.sum(-1, keepdims=True)
    return found[..., 1:] if binary else found
