"""The smallest honest model of a ranking target: how often an item followed the newest one. numpy only; serves zoo's own tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from zoo.plugin import (
    UNKNOWN,
    Array,
    Artefact,
    FeatureBatch,
    FittedModel,
    ModelPlugin,
    ModelSpec,
    Progress,
    TrainingData,
    hookimpl,
)


class FollowerParams(BaseModel):
    """smoothing: how many times a follower of average popularity counts as seen beforehand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    smoothing: float = Field(default=5.0, gt=0)


@dataclass(frozen=True)
class Follower:
    """A model plugin and, through its hook, a whole plugin: ``plugins(extra=[Follower()])``."""

    name: str = "follower"

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.name, lambda: FollowerParams, ("items",), frozenset({"ranking"}), "what followed the newest item")

    @hookimpl
    def zoo_models(self) -> Sequence[ModelPlugin]:
        return [self]

    def tiny(self) -> FollowerParams:
        return FollowerParams()

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:  # noqa: ARG002 - it draws nothing
        assert isinstance(params, FollowerParams)
        size = data.batch.catalogue.size("item_id")
        before, after = data.batch.column("items").padded(1)[:, 0], data.target.astype(np.int64)
        column = data.batch.stored("items")[1]
        assert column.offsets is not None
        inner = np.ones(len(column.values), bool)
        inner[column.offsets[:-1][column.lengths > 0]] = False  # the first of a sequence follows nothing
        at = np.flatnonzero(inner)
        rows = np.flatnonzero(after > UNKNOWN)
        before, after = before[rows], after[rows]
        pairs = np.concatenate([before * np.int64(size) + after, column.values[at - 1] * np.int64(size) + column.values[at]])
        counts = np.bincount(pairs, minlength=size * size).reshape(size, size).astype(np.float64)
        popular = counts.sum(axis=0) + 1.0
        followed = (counts + params.smoothing * popular / popular.sum()) / (counts.sum(axis=1, keepdims=True) + params.smoothing)
        progress(1.0, f"counted {len(pairs)} pairs")
        return FittedFollower(followed.astype(np.float32))

    def load(self, artefact: Artefact) -> FittedModel:
        return FittedFollower(artefact.arrays["followed"])


@dataclass(frozen=True)
class FittedFollower:
    """followed: float32 (m, m), how likely column's item follows row's."""

    followed: Array

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        newest = batch.column("items").padded(1)[:, 0]
        newest = np.where(newest < len(self.followed), newest, UNKNOWN)
        scores: Array = self.followed[newest] if items is None else self.followed[newest[:, None], items[None, :]]
        return scores

    def predict(self, batch: FeatureBatch) -> Array:
        return self.score_items(batch)

    def save(self) -> Artefact:
        return Artefact({"followed": self.followed})
