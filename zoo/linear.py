"""Linear models on features: ridge-penalised logistic regression for binary targets, ridge regression for amounts.

The plain model that others have to beat, and the base of uplift learners where there are few rows. The stack's final model,
``zoo.logistic``, is another: it reads members' scores only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.plugin import Array, Artefact, Column, FeatureBatch, FittedModel, ModelSpec, PluginError, Progress, TrainingData

if TYPE_CHECKING:
    from pydantic import BaseModel

STEPS = 50
"""Newton steps at most; a handful do."""
FEW = 20
"""Rows that a category needs to have a column of its own."""
CATEGORIES = 64
"""Most frequent codes of a column that stay apart."""


@cache
def _params() -> type[BaseModel]:
    from pydantic import BaseModel, ConfigDict, Field  # 0.1 s that listing plugins need not pay

    class LinearParams(BaseModel):
        """penalty: of squared weights of standardised columns, in rows."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        penalty: float = Field(default=1.0, gt=0)

    return LinearParams


@dataclass(frozen=True)
class Linear:
    """Numbers as ``asinh(x / s)``, s the median size of those that are not 0 (straight near 0, a logarithm far away), standardised;
    codes as a column each of the frequent ones; what is missing as 0 and a column that says so. Sequences and texts are not read.
    """

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            "linear", _params, ("*",), frozenset({"binary", "value"}), "logistic or linear regression with a ridge penalty"
        )

    def tiny(self) -> BaseModel:
        return _params()()

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:  # noqa: ARG002 - it draws nothing
        if data.kind.kind not in self.spec.targets:
            raise PluginError(f"linear cannot learn a target of kind {data.kind.kind!r}; it learns binary and value")
        columns = columns_of(data.batch)
        if not columns:
            raise PluginError(
                f"linear has no column to learn from: the batch holds {', '.join(data.batch.names) or 'none'}, "
                "and sequences and text are not read"
            )
        rows = table_of(data.batch, columns)
        mean, scale = rows.mean(axis=0), rows.std(axis=0)
        scale[scale < 1e-9] = 1.0
        solve = logistic if data.kind.kind == "binary" else ridge_regression
        weights = solve((rows - mean) / scale, data.target, data.weight, params.model_dump()["penalty"])
        progress(1.0, f"{rows.shape[1]} columns")
        return FittedLinear(data.kind.kind == "binary", columns, mean, scale, weights)

    def load(self, artefact: Artefact) -> FittedModel:
        about = json.loads(artefact.texts["linear.json"])
        columns = [
            _Numbers(**each) if "scale" in each else _Codes(each["name"], tuple(each["kept"])) for each in about["columns"]
        ]
        mean, scale, weights = (artefact.arrays[name] for name in ("mean", "scale", "weights"))
        if weights.ndim != 1 or not mean.shape == scale.shape == (len(weights) - 1,):
            raise PluginError(
                f"weights are {list(weights.shape)}, mean and scale {list(mean.shape)} and {list(scale.shape)}; restore the artefact, or "
                "train again"
            )
        return FittedLinear(bool(about["binary"]), columns, mean, scale, weights)


@dataclass(frozen=True)
class FittedLinear:
    """weights: float64 (columns + 1,), the intercept last."""

    binary: bool
    columns: list[_Numbers | _Codes]
    mean: Array
    scale: Array
    weights: Array

    def predict(self, batch: FeatureBatch) -> Array:
        rows = (table_of(batch, self.columns) - self.mean) / self.scale
        # a sum a row: a product of matrices adds up in another order for other numbers of rows
        eta = (rows * self.weights[:-1]).sum(axis=1) + self.weights[-1]
        return (sigmoid(eta) if self.binary else eta).astype(np.float32)[:, None]

    def save(self) -> Artefact:
        about = {"binary": self.binary, "columns": [each.facts() for each in self.columns]}
        arrays = {"mean": self.mean, "scale": self.scale, "weights": self.weights}
        return Artefact(arrays, {"linear.json": json.dumps(about)})


@dataclass(frozen=True)
class _Numbers:
    name: str
    scale: float

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "scale": self.scale}

    def table(self, column: Column) -> Array:
        values = column.values.astype(np.float64)
        known = np.isfinite(values)
        return np.stack([np.arcsinh(np.where(known, values, 0.0) / self.scale), ~known], axis=1)


@dataclass(frozen=True)
class _Codes:
    name: str
    kept: tuple[int, ...]

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "kept": self.kept}

    def table(self, column: Column) -> Array:
        told: Array = (column.values[:, None] == np.array(self.kept, np.int64)).astype(np.float64)
        return told


def columns_of(batch: FeatureBatch) -> list[_Numbers | _Codes]:
    out: list[_Numbers | _Codes] = []
    for name in batch.names:
        column = batch.stored(name)[1]
        if column.is_sequence or column.is_text:
            continue
        values = batch.column(name).values
        if column.is_code:
            codes, counts = np.unique(values, return_counts=True)
            frequent = np.argsort(-counts, kind="stable")[:CATEGORIES]
            out.append(_Codes(name, tuple(sorted(codes[frequent][counts[frequent] >= FEW].tolist()))))
        else:
            sizes = np.abs(values[np.isfinite(values.astype(np.float64)) & (values != 0)].astype(np.float64))
            out.append(_Numbers(name, float(np.median(sizes)) if len(sizes) else 1.0))
    return out


def table_of(batch: FeatureBatch, columns: list[_Numbers | _Codes]) -> Array:
    """float64 (n, columns)."""
    for each in columns:
        if each.name not in batch:
            raise PluginError(f"linear was trained with {each.name}, which this batch lacks; it has: {', '.join(batch.names)}")
    parts = [each.table(batch.column(each.name)) for each in columns]
    return np.concatenate(parts, axis=1).astype(np.float64)


def sigmoid(eta: Array) -> Array:
    p: Array = np.exp(-np.logaddexp(0, -eta))
    return p


def ridge_regression(rows: Array, target: Array, weight: Array, penalty: float) -> Array:
    full = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    within = full * weight[:, None]
    # amounts of any unit: residuals of size 1 are what the penalty is counted against
    ridge = np.diag(np.r_[np.full(rows.shape[1], penalty), 1e-6])
    found: Array = np.linalg.solve(full.T @ within + ridge, within.T @ target)
    return found


def logistic(rows: Array, target: Array, weight: Array, penalty: float) -> Array:
    """Newton's method, a step halved until it gains; the intercept is held back by a millionth of a row, so that one class ends too."""
    full = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    ridge = np.r_[np.full(rows.shape[1], penalty), 1e-3]
    theta = np.zeros(full.shape[1])

    def loss(at: Array) -> float:
        eta = full @ at
        return float(weight @ (np.logaddexp(0, eta) - target * eta) + (ridge * at**2).sum() / 2)

    now = loss(theta)
    for _ in range(STEPS):
        p = sigmoid(full @ theta)
        slope = full.T @ (weight * (p - target)) + ridge * theta
        bend = (full * (weight * np.maximum(p * (1 - p), 1e-10))[:, None]).T @ full + np.diag(ridge)
        step, size = np.linalg.solve(bend, slope), 1.0
        while (then := loss(theta - size * step)) > now and size > 1e-6:
            size /= 2
        if now - then <= 1e-10 * max(1.0, abs(now)):
            break
        theta, now = theta - size * step, then
    return theta
