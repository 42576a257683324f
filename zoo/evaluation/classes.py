"""The leaderboard of scores for several classes: log-loss, accuracy, and each class against the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from zoo.errors import UsageError, choices
from zoo.evaluation.bootstrap import Difference, difference_of_means, estimate_of, estimates_of_means, samples_of_classes
from zoo.evaluation.leaderboard import Row
from zoo.plugin import Array

CLIP = 1e-15
"""Probabilities are kept this far from 0 before the logarithm."""


def class_losses(target: Array, scores: Array) -> Array:
    """float64 (n,): negative log-likelihood of each row's class, of probabilities (n, k)."""
    chosen = scores[np.arange(len(target)), target.astype(np.int64)].astype(np.float64)
    losses: Array = -np.log(np.maximum(chosen, CLIP))
    return losses


def class_leaderboard(
    target: Array,
    scores: Mapping[str, Array],
    classes: Sequence[str],
    *,
    groups: Array | None = None,
    seconds: Mapping[str, float] = MappingProxyType({}),
    against: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """One line for each entry of ``scores`` (name -> probabilities (n, k), rows summing to 1), in that order.

    target: class numbers (n,). classes: k names. Metrics: ``log_loss``, ``accuracy`` (the likeliest class is the right one),
    ``average_precision``, the plain mean of ``average_precision:CLASS`` (one class against the others) over the classes that
    occur; a line's base rate is the share of the most frequent class. against: the line that others are compared with, by log-loss.
    groups, resamples, seed: as in ``evaluate``. Raises UsageError for shapes and values that cannot be meant.
    """
    if against is not None and against not in scores:
        raise UsageError(choices("line of the leaderboard", against, scores))
    number = np.asarray(target).astype(np.int64)
    counts = np.bincount(number, minlength=len(classes))
    if len(counts) > len(classes) or (number < 0).any():
        raise UsageError(f"targets from {number.min()} to {number.max()}; expected numbers of {len(classes)} classes")
    for name, score in scores.items():
        if np.shape(score) != (len(number), len(classes)):
            raise UsageError(f"{name}: scores of shape {np.shape(score)}; expected {(len(number), len(classes))}")
    drawn: dict[str, Any] = {"groups": groups, "resamples": resamples, "seed": seed}
    losses = {name: class_losses(number, score) for name, score in scores.items()}
    lines = []
    for name, score in scores.items():
        hits = (score.argmax(axis=1) == number).astype(np.float64)
        metrics = estimates_of_means({"log_loss": losses[name], "accuracy": hits}, **drawn)
        by_class = samples_of_classes(number, score, "average_precision", groups, resamples, seed)
        metrics["average_precision"] = estimate_of(np.mean(list(by_class.values()), axis=0))
        metrics |= {f"average_precision:{classes[k]}": estimate_of(samples) for k, samples in by_class.items()}
        apart: dict[str, Difference] = {}
        if against is not None and name != against:
            apart["log_loss"] = difference_of_means("log_loss", losses[name], losses[against], **drawn)
        lines.append(
            Row(name, len(number), float(counts.max() / max(1, len(number))), metrics, seconds.get(name, math.nan), apart)
        )
    return lines
