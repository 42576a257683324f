"""The smallest honest model: smoothed averages of the target over ranges of one column. numpy only; serves zoo's own tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

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


class EchoParams(BaseModel):
    """column: the numeric column to read; empty for the one whose ranges tell the target apart best."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = ""
    ranges: int = Field(default=8, ge=1)
    smoothing: float = Field(default=5.0, gt=0)


@dataclass(frozen=True)
class Echo:
    """A model plugin and, through its hook, a whole plugin: ``plugins(extra=[Echo()])``."""

    name: str = "echo"
    inputs: tuple[str, ...] = ("*",)

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            self.name,
            lambda: EchoParams,
            self.inputs,
            frozenset({"binary", "multiclass", "value", "relevance"}),
            "smoothed averages over ranges of one numeric column",
        )

    @hookimpl
    def zoo_models(self) -> Sequence[ModelPlugin]:
        return [self]

    def tiny(self) -> EchoParams:
        return EchoParams()

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:  # noqa: ARG002 - it draws nothing
        assert isinstance(params, EchoParams)
        target = data.target[:, None]
        if data.kind.kind == "multiclass":
            target = (target == np.arange(data.kind.width)).astype(np.float64)
        total = np.maximum(data.weight.sum(), 1e-9)
        base = data.weight @ target / total
        names = [params.column] if params.column else _numeric(data.batch)
        best, best_gain = FittedEcho("", np.zeros(0), base[None].astype(np.float32)), -1.0
        for done, name in enumerate(names, 1):
            values = _values(data.batch, name)
            known = values[np.isfinite(values)]
            edges = np.unique(np.quantile(known, np.linspace(0, 1, params.ranges + 1)[1:-1])) if len(known) else np.zeros(0)
            which = _ranges(values, edges)
            weight = np.bincount(which, data.weight, minlength=len(edges) + 2)
            sums = np.stack([np.bincount(which, data.weight * t, minlength=len(weight)) for t in target.T], axis=1)
            means = (sums + params.smoothing * base) / (weight + params.smoothing)[:, None]
            gain = float(weight @ ((means - base) ** 2).sum(axis=1) / total)
            if gain > best_gain:
                best, best_gain = FittedEcho(name, edges, means.astype(np.float32)), gain
            progress(done / len(names), f"read {name}")
        return best

    def load(self, artefact: Artefact) -> FittedModel:
        return FittedEcho(artefact.texts["column"], artefact.arrays["edges"], artefact.arrays["means"])


@dataclass(frozen=True)
class FittedEcho:
    """edges: float64 (r,), inner bounds of the ranges. means: float32 (r + 2, k), the last for missing values."""

    column: str
    edges: Array
    means: Array

    def predict(self, batch: FeatureBatch) -> Array:
        if not self.column:
            return np.repeat(self.means, len(batch), axis=0)
        scores: Array = self.means[_ranges(_values(batch, self.column), self.edges)]
        return scores

    def save(self) -> Artefact:
        return Artefact({"edges": self.edges, "means": self.means}, {"column": self.column})


def _numeric(batch: FeatureBatch) -> list[str]:
    return [name for name in batch.names if not (column := batch.stored(name)[1]).is_sequence and column.is_numeric]


def _values(batch: FeatureBatch, name: str) -> Array:
    if name not in batch:
        raise PluginError(f"echo reads column {name!r}, which this batch lacks; it has: {', '.join(batch.names) or '(none)'}")
    return batch.column(name).values.astype(np.float64)


def _ranges(values: Array, edges: Array) -> Array:
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right"))
