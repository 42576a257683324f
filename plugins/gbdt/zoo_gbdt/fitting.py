"""Training: objective, weights, validation on the newest rows, and one booster a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np

from zoo.plugin import Array, PluginError, Progress, TrainingData
from zoo_gbdt.model import OBJECTIVES, threads
from zoo_gbdt.params import GBDTParams

TRUNCATION = 20
"""Places of a ranking that count while trees are grown: the first ten are what lists show, and some more to learn from."""


def boosters(
    rows: Array, data: TrainingData, params: GBDTParams, categorical: list[int], seed: int, progress: Progress
) -> list[lightgbm.Booster]:
    """``params.seeds`` boosters on the table float32 (n, columns)."""
    settings = _settings(data, params)
    weight = data.weight * class_weights(data.target) if params.class_weight == "balanced" else data.weight
    start = None
    if params.focal:
        settings["objective"], start = focal_objective(params.focal), base(data.target, weight)
    held_out = newest(data, params.validation) if params.early_stopping else None

    def dataset(which: Array | slice) -> lightgbm.Dataset:
        return lightgbm.Dataset(
            rows[which],
            data.target[which],
            weight=weight[which],
            init_score=None if start is None else np.full(len(data.target[which]), start),
            group=group_sizes(data, which) if data.kind.kind == "relevance" else None,
            categorical_feature=categorical,
            params=settings,
        )

    def train(seed: int, which: Array | slice, trees: int, told: Callable[[int], None], **given: Any) -> lightgbm.Booster:
        callbacks = [lambda env: told(env.iteration + 1), *given.pop("callbacks", [])]
        return lightgbm.train({**settings, "seed": seed}, dataset(which), trees, callbacks=callbacks, **given)

    out = []
    seeds = np.random.default_rng(seed).integers(2**31 - 1, size=params.seeds)
    search = held_out is not None
    for number, one in enumerate(seeds.tolist()):

        def tell(share_before: float, share: float, trees: int, number: int = number) -> Callable[[int], None]:
            return lambda done: progress(
                (number + share_before + share * done / trees) / params.seeds, f"tree {done}, seed {number + 1} of {params.seeds}"
            )

        trees = params.num_trees
        if held_out is not None:
            stopping = lightgbm.early_stopping(params.early_stopping, verbose=False)
            share = 0.5 if params.refit else 1.0
            found = train(
                one,
                ~held_out,
                trees,
                tell(0.0, share, trees),
                valid_sets=[dataset(held_out)],
                callbacks=[stopping],
                feval=None if start is None else focal_metric(params.focal),
            )
            trees = max(1, found.best_iteration)
            if not params.refit:
                out.append(lightgbm.Booster(model_str=found.model_to_string(num_iteration=trees)))
                continue
        out.append(train(one, slice(None), trees, tell(0.5 * search, 1 - 0.5 * search, trees)))
    return out


def newest(data: TrainingData, share: float) -> Array | None:
    """bool (n,): about the newest ``share`` of the rows, all rows of an instant on one side.

    None where the rows do not span two instants, or where one side would hold one class only.
    """
    instants, counts = np.unique(data.time, return_counts=True)
    if len(instants) < 2:
        return None
    at_or_after = np.cumsum(counts[::-1])[::-1]
    start = 1 + int(np.argmin(np.abs(at_or_after[1:] - share * len(data))))
    held_out: Array = data.time >= instants[start]
    if data.kind.kind != "value" and any(len(np.unique(data.target[side])) < 2 for side in (held_out, ~held_out)):
        return None
    return held_out


def group_sizes(data: TrainingData, which: Array | slice) -> Array:
    """int64: how many of the rows (a mask (n,), or all) each group has, groups without any left out."""
    offsets = data.batch.group
    if offsets is None:
        raise PluginError("gbdt learns relevance from groups of rows, and this batch has none; expected offsets in batch.group")
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[which]
    sizes = np.bincount(owner)
    return sizes[sizes > 0]


def class_weights(target: Array) -> Array:
    """float64 (n,): n / (classes seen * rows of the class), so that every class weighs alike."""
    _, inverse, counts = np.unique(target, return_inverse=True, return_counts=True)
    weights: Array = (len(target) / (len(counts) * counts))[inverse]
    return weights


def base(target: Array, weight: Array) -> float:
    """Log-odds of the rate of a binary target, half a row added on each side; trees by a loss of our own begin there."""
    ones = float(weight @ target)
    return float(np.log((ones + 0.5) / (float(weight.sum()) - ones + 0.5)))


def focal(scores: Array, target: Array, gamma: float) -> tuple[Array, Array, Array]:
    """Loss -(1 - p) ** gamma * log(p) of each row (p: probability of its class), its gradient and its curvature by the score (n,)."""
    sign = 2 * target - 1
    log_p = -np.logaddexp(0, -sign * scores)
    p, left = np.exp(log_p), np.exp(-np.logaddexp(0, sign * scores))
    power = left**gamma
    inner = gamma * p * log_p - left
    curvature = p * power * (left * (gamma * log_p + gamma + 1) - gamma * inner)
    return -power * log_p, sign * power * inner, curvature


def _weight(rows: lightgbm.Dataset) -> Array:
    """float64 (n,); LightGBM forgets weights that are all 1."""
    weight = rows.get_weight()
    return np.ones(rows.num_data()) if weight is None else weight


def focal_objective(gamma: float) -> Callable[[Array, lightgbm.Dataset], tuple[Array, Array]]:
    """What LightGBM minimises. The loss is concave where a row is badly wrong; there the curvature is put just above nothing."""

    def objective(scores: Array, rows: lightgbm.Dataset) -> tuple[Array, Array]:
        weight = _weight(rows)
        _, gradient, curvature = focal(scores, rows.get_label(), gamma)
        return gradient * weight, np.maximum(curvature, 1e-3 * np.abs(gradient) + 1e-9) * weight

    return objective


def focal_metric(gamma: float) -> Callable[[Array, lightgbm.Dataset], tuple[str, float, bool]]:
    """What early stopping looks at: the loss itself."""
    return lambda scores, rows: (
        "focal",
        float(np.average(focal(scores, rows.get_label(), gamma)[0], weights=_weight(rows))),
        False,
    )


def _settings(data: TrainingData, params: GBDTParams) -> dict[str, Any]:
    settings = {
        "objective": OBJECTIVES[data.kind.kind],
        "learning_rate": params.learning_rate,
        "num_leaves": params.num_leaves,
        "min_data_in_leaf": params.min_data_in_leaf,
        "feature_fraction": params.feature_fraction,
        "bagging_fraction": params.bagging_fraction,
        "bagging_freq": 1 if params.bagging_fraction < 1 else 0,
        "lambda_l1": params.lambda_l1,
        "lambda_l2": params.lambda_l2,
        "num_threads": threads(params.num_threads),
        # The same trees for the same seed, whatever the order in which threads finish.
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    if data.kind.kind == "relevance":
        settings["lambdarank_truncation_level"] = TRUNCATION
    if data.kind.kind == "multiclass":
        settings["num_class"] = data.kind.width
    return settings
