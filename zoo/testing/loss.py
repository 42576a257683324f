"""How far scores are from the truth, beside what a constant would reach."""

from __future__ import annotations

import numpy as np

from zoo.contract import UNKNOWN, Array, TrainingData


def losses(scores: Array, data: TrainingData, held_out: TrainingData) -> tuple[str, float, float]:
    """Name of the loss on ``held_out``; the scores' (float (n, k)), and that of the best constant learned from ``data``."""
    target = held_out.target
    if held_out.kind.kind == "value":
        return "mean squared error", _mean((scores[:, 0] - target) ** 2), _mean((data.target.mean() - target) ** 2)
    if held_out.kind.kind == "ranking":
        rows = np.flatnonzero(target > UNKNOWN)
        catalogue = scores[rows, UNKNOWN + 1 :]
        own = scores[rows, target[rows].astype(np.int64)][:, None]
        ahead = (catalogue > own).sum(axis=1) + 0.5 * ((catalogue == own).sum(axis=1) - 1)
        return "share of the catalogue ahead of the next item", _mean(ahead / max(1, catalogue.shape[1] - 1)), 0.5
    if held_out.kind.kind == "relevance":
        assert held_out.batch.group is not None
        group = np.repeat(np.arange(len(held_out.batch.group) - 1), np.diff(held_out.batch.group))
        better, worse = np.nonzero((group[:, None] == group) & (target[:, None] > target))
        margin = scores[better, 0] - scores[worse, 0]
        return "share of wrongly ordered pairs", _mean((margin < 0) + 0.5 * (margin == 0)), 0.5
    classes = np.arange(max(2, held_out.kind.width))
    table = np.hstack([1 - scores, scores]) if held_out.kind.kind == "binary" else scores
    base = (data.target[:, None] == classes).mean(axis=0)
    truth = target.astype(np.int64)
    return "log-loss", _log_loss(table[np.arange(len(truth)), truth]), _log_loss(base[truth])


def _log_loss(probability: Array) -> float:
    return _mean(-np.log(np.maximum(probability, 1e-7)))


def _mean(values: Array) -> float:
    return float(np.mean(values))
