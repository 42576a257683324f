"""The plugin: trains LightGBM on a batch's table, and answers from the trees' text."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.plugin import (
    Array,
    Artefact,
    Contributions,
    FeatureBatch,
    FittedModel,
    ModelSpec,
    PluginError,
    Progress,
    TargetKind,
    TrainingData,
    calibrated,
    thinned,
)
from zoo_gbdt.layout import Layout
from zoo_gbdt.single import SingleRow
from zoo_gbdt.table import table
from zoo_gbdt.trees import check

if TYPE_CHECKING:
    from pydantic import BaseModel

    from zoo_gbdt.params import GBDTParams

OBJECTIVES: dict[TargetKind, str] = {
    "binary": "binary",
    "multiclass": "multiclass",
    "value": "regression",
    "relevance": "lambdarank",
}
MOST_CLASSES = 10_000
FEW_ROWS = 64
"""Up to this many rows, starting threads costs more than it saves."""


def _params() -> type[BaseModel]:
    from zoo_gbdt.params import GBDTParams  # pydantic, which listing the model need not import

    return GBDTParams


class GBDT:
    """Gradient-boosted trees over values, categories and summaries of sequences."""

    spec = ModelSpec(
        "gbdt",
        _params,
        targets=frozenset(OBJECTIVES),
        summary="LightGBM over windows, categories and sequence summaries",
    )

    def tiny(self) -> BaseModel:
        return _params()(num_trees=40, num_leaves=7, learning_rate=0.1, min_category_count=5)

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:
        from zoo_gbdt.fitting import base, boosters, class_weights

        if data.kind.kind not in OBJECTIVES:
            raise PluginError(f"gbdt cannot learn a target of kind {data.kind.kind!r}; it learns {', '.join(sorted(OBJECTIVES))}")
        chosen: GBDTParams = params  # type: ignore[assignment]  # zoo validates with spec.params
        if chosen.focal and data.kind.kind != "binary":
            raise PluginError(f"gbdt has the focal loss for binary targets, and this one is {data.kind.kind}; set focal = 0")
        data, keep = thinned(data, chosen.negatives, seed)
        layout = Layout.learn(data.batch, chosen)
        trained = boosters(table(data.batch, layout), data, chosen, layout.categorical(), seed, progress)
        weight = data.weight * class_weights(data.target) if chosen.class_weight == "balanced" else data.weight
        start = base(data.target, weight) if chosen.focal else 0.0
        kept = tuple(keep.tolist())
        return FittedGBDT(layout, data.kind.kind, data.kind.width, tuple(trained), chosen.num_threads, kept, chosen.focal, start)

    def load(self, artefact: Artefact) -> FittedModel:
        """What ``save`` wrote. Raises PluginError for anything else; the trees are checked before LightGBM reads them."""
        import lightgbm

        layout = Layout.from_json(artefact.texts["layout.json"])
        model = _about(artefact.texts["model.json"])
        objective = "" if model["focal"] else {**OBJECTIVES, **_WRITTEN}[model["kind"]].format(model["width"])
        texts = [artefact.texts[f"trees-{number}.txt"] for number in range(model["seeds"])]
        for text in texts:
            check(text, layout.width, model["width"], objective)
        try:
            boosters = tuple(lightgbm.Booster(model_str=text) for text in texts)
        except lightgbm.basic.LightGBMError as error:
            raise PluginError(
                f"LightGBM cannot read the trees: {error}; restore the artefact from a backup, or train again"
            ) from error
        rest = {name: model[name] for name in ("num_threads", "focal", "start")}
        return FittedGBDT(layout, model["kind"], model["width"], boosters, keep=tuple(model["keep"]), **rest)


_WRITTEN = {"binary": "binary sigmoid:1", "multiclass": "multiclass num_class:{}"}
"""Objectives that LightGBM writes with a setting of theirs."""


def _about(text: str) -> dict[str, Any]:
    """model.json, its values in their ranges. Versions registered before they were options have no keep, focal and start."""
    model: dict[str, Any] = {"keep": (1.0, 1.0), "focal": 0.0, "start": 0.0, **json.loads(text)}
    classes = model["kind"] == "multiclass"
    fits = {
        "kind": model["kind"] in OBJECTIVES,
        "width": _whole(model["width"], 2, MOST_CLASSES) if classes else _whole(model["width"], 1, 1),
        "seeds": _whole(model["seeds"], 1, 32),
        "num_threads": _whole(model["num_threads"], 0, 1 << 16),
        "keep": 1 <= len(model["keep"]) <= MOST_CLASSES and all(0 < share <= 1 for share in model["keep"]),
        "focal": 0 <= model["focal"] <= 5 and (not model["focal"] or model["kind"] == "binary"),
        "start": abs(model["start"]) < 1e300,
    }
    if len(model) > len(fits) or not all(fits.values()):
        odd = [name for name in model if not fits.get(name)]
        raise PluginError(
            f"model.json says {str({name: model[name] for name in odd})[:200]}, which gbdt never writes; train again"
        )
    return model


def _whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


@dataclass(frozen=True)
class FittedGBDT:
    """The average of several boosters over one table.

    keep: share of each class's rows that was learnt from. focal: gamma of the loss. start: of its scores, which the trees add to.
    """

    layout: Layout
    kind: TargetKind
    width: int
    boosters: tuple[Any, ...]
    num_threads: int
    keep: tuple[float, ...] = (1.0, 1.0)
    focal: float = 0.0
    start: float = 0.0

    def predict(self, batch: FeatureBatch) -> Array:
        if not len(batch):
            return np.zeros((0, self.width), np.float32)
        rows = table(batch, self.layout)
        if len(batch) == 1:
            each = [single.ask(rows) for single in self._single]
        else:
            cores = 1 if len(batch) <= FEW_ROWS else threads(self.num_threads)
            each = [booster.predict(rows, num_threads=cores) for booster in self.boosters]
        if self.focal:
            each = [1 / (1 + np.exp(-np.clip(scores + self.start, -500, 500))) for scores in each]
        found = np.reshape(each, (len(each), len(batch), self.width))
        if self.focal or min(self.keep) < 1:
            found = calibrated(found, np.array(self.keep), self.focal)
        return np.asarray(found.mean(0, dtype=np.float64)).astype(np.float32)

    def explain(self, batch: FeatureBatch) -> Contributions:
        """TreeSHAP (Lundberg et al., 2020), the mean over the boosters: contributions sum to their mean raw score."""
        names = self.layout.said(batch)
        found = np.zeros((len(batch), self.width, len(names) + 1))
        if len(batch):
            rows = table(batch, self.layout)
            for booster in self.boosters:
                each = booster.predict(rows, num_threads=threads(self.num_threads), pred_contrib=True)
                found += np.reshape(each, found.shape) / len(self.boosters)
        return Contributions(names, found[:, :, :-1], found[:, :, -1] + self.start)

    @cached_property
    def _single(self) -> tuple[SingleRow, ...]:
        return tuple(SingleRow(booster, booster.num_feature(), self.width) for booster in self.boosters)

    def save(self) -> Artefact:
        model = {"kind": self.kind, "width": self.width, "seeds": len(self.boosters), "num_threads": self.num_threads}
        model |= {"keep": self.keep, "focal": self.focal, "start": self.start}
        trees = {f"trees-{number}.txt": booster.model_to_string() for number, booster in enumerate(self.boosters)}
        return Artefact(texts={"layout.json": self.layout.to_json(), "model.json": json.dumps(model), **trees})


def threads(asked: int) -> int:
    """What was asked for, else OMP_NUM_THREADS, else 0: every core."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return asked or (int(given) if given.isdigit() else 0)
