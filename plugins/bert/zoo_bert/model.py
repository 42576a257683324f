"""``Bert`` the plugin, and what fitting it gives. Light to import: torch and transformers are loaded by fit and load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.plugin import (
    NO_CHECKPOINT,
    Array,
    Artefact,
    Checkpoint,
    FeatureBatch,
    ModelSpec,
    PluginError,
    Progress,
    Target,
    TrainingData,
    balanced,
    calibrated,
    thinned,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from zoo.nextitem.model import FittedNextItem
    from zoo_bert.inputs import Reader
    from zoo_bert.itemtext import FittedItemText
    from zoo_bert.network import Network
    from zoo_bert.params import BertParams

LAYOUT = "bert.json"
ITEM_TEXT = "item_text.json"

CHUNK = 1024
"""Rows predicted at a time, so that states in memory stay few."""

READING = 0.3
"""Share of the progress bar for the frozen layers."""


def _params() -> type[BaseModel]:
    from zoo_bert.params import BertParams

    return BertParams


@dataclass(frozen=True)
class FittedBert:
    """mean, std: of the target where it is a value. keep: share of each class's rows that was learnt from. Predicting is safe from
    several threads."""

    reader: Reader
    network: Network
    target: Target
    mean: float = 0.0
    std: float = 1.0
    keep: tuple[float, ...] = (1.0, 1.0)

    def predict(self, batch: FeatureBatch) -> Array:
        """float32 (n, k): probabilities, or amounts for a value target."""
        parts = [self._predict(batch.take(np.arange(i, min(i + CHUNK, len(batch))))) for i in range(0, len(batch), CHUNK)]
        return np.concatenate(parts) if parts else np.zeros((0, self.target.width), np.float32)

    def texts(self, batch: FeatureBatch) -> list[str]:
        """What the model reads of each row, in words."""
        return self.reader.texts(batch)

    def save(self) -> Artefact:
        """The trained weights, and either the frozen ones too or their digest and where they were found."""
        params = self.reader.params
        arrays = {f"network/{name}": weight.numpy().copy() for name, weight in self.network.state_dict().items()}
        layout = {
            "params": params.model_dump(mode="json"),
            "target": {"kind": self.target.kind, "classes": self.target.classes},
            "columns": self.reader.columns.to_json(),
            "encoder": self.reader.encoder.digest,
            "mean": self.mean,
            "std": self.std,
            "keep": self.keep,
        }
        own = Artefact(arrays, {LAYOUT: json.dumps(layout, indent=1)})
        return Artefact.merged(own, self.reader.encoder.save()) if params.embed_encoder else own

    def _predict(self, batch: FeatureBatch) -> Array:
        from zoo_bert.fitting import scores

        logits = scores(self.network, self.reader.read(batch), np.arange(len(batch)))
        if self.target.kind == "value":
            return logits.numpy() * np.float32(self.std) + np.float32(self.mean)
        found = np.asarray((logits.softmax(1) if self.target.kind == "multiclass" else logits.sigmoid()).numpy())
        gamma = self.reader.params.focal
        if gamma or min(self.keep) < 1:
            found = calibrated(found, np.array(self.keep), gamma).astype(np.float32)
        return found


class Bert:
    """A pretrained encoder over behaviour in words, its top layers fine-tuned."""

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            name="bert",
            params=_params,
            targets=frozenset({"binary", "multiclass", "value", "ranking"}),
            summary="a pretrained text encoder fine-tuned on recent behaviour in words, or item ranking by texts or masked items",
            resumes=True,
        )

    def tiny(self) -> BertParams:
        from zoo_bert.params import BertParams, ItemRanking

        ranking = ItemRanking(
            width=16,
            max_length=24,
            layers=1,
            masked=0.3,
            dropout=0.0,
            embedding_dropout=0.0,
            epochs=12,
            tokens=400,
            learning_rate=2e-2,
        )
        return BertParams(
            model_name_or_path="tiny-random",
            hidden=16,
            epochs=6,
            batch_size=32,
            learning_rate=1e-2,
            encoder_learning_rate=2e-3,
            ranking=ranking,
        )

    def fit(
        self,
        data: TrainingData,
        *,
        params: BaseModel,
        seed: int,
        progress: Progress,
        checkpoint: Checkpoint = NO_CHECKPOINT,
    ) -> FittedBert | FittedItemText | FittedNextItem:
        """Raises PluginError for an encoder that is not to be had, a target that cannot be learned and a loss that diverges."""
        import torch

        from zoo_bert import encoder as encoders
        from zoo_bert.columns import Columns
        from zoo_bert.fitting import Problem, newest, spread, train
        from zoo_bert.inputs import Reader, longest
        from zoo_bert.network import blank, initialise
        from zoo_bert.params import BertParams

        chosen = BertParams.model_validate(params.model_dump())
        self._check(data)
        if data.kind.kind == "ranking":
            if chosen.ranking.mode == "text":
                from zoo_bert import itemtext

                return itemtext.fit(data, chosen, seed, progress, checkpoint)
            from zoo.nextitem.model import fit_next_item
            from zoo_bert.masked import MaskedNetwork

            return fit_next_item(MaskedNetwork, data, chosen.ranking, seed, progress, checkpoint)
        columns = Columns.choose(data.batch, chosen)
        data, keep = thinned(data, chosen.negatives, seed)
        if chosen.trained_layers:
            data = data.take(spread(data.time, chosen.max_rows, np.random.default_rng(seed)))
        kind, target, mean, std = data.kind.kind, data.target, 0.0, 1.0
        if kind == "value":
            mean, std = float(target.mean()), float(target.std()) or 1.0
            target = (target - mean) / std
        progress(0.0, f"loading {chosen.model_name_or_path}")
        encoder = encoders.load(chosen.model_name_or_path, chosen.trained_layers)
        reader = Reader.make(encoder, columns, chosen)
        inputs = reader.read(data.batch, lambda done, of: progress(READING * done / of, f"{done} of {of} texts encoded"))
        weight = data.weight / (data.weight.mean() or 1.0)
        if chosen.class_weight == "balanced" and kind != "value":
            weight = balanced(target, weight)
        problem = Problem(
            kind,
            inputs,
            torch.tensor(target, dtype=torch.int64 if kind == "multiclass" else torch.float32),
            torch.tensor(weight, dtype=torch.float32),
            chosen.focal,
        )
        network = blank(encoder, chosen, longest(chosen), columns.width, data.kind.width)
        base = torch.tensor(_base(data, weight), dtype=torch.float32)
        initialise(network, encoder, base, torch.Generator().manual_seed(seed))
        older, held_out = newest(data.time, chosen.held_out)
        tell = lambda done, text: progress(READING + (1 - READING) * done, text)  # noqa: E731
        train(network, problem, older, held_out, chosen, seed, tell)
        network.requires_grad_(requires_grad=False)
        progress(1.0, "done")
        return FittedBert(reader, network, data.kind, mean, std, tuple(keep.tolist()))

    def load(self, artefact: Artefact) -> FittedBert | FittedItemText | FittedNextItem:
        """Raises PluginError where the encoder that the artefact refers to is missing or is another one."""
        from zoo.nextitem.loading import filled
        from zoo_bert import encoder as encoders
        from zoo_bert.columns import Columns
        from zoo_bert.inputs import Reader, longest
        from zoo_bert.network import blank
        from zoo_bert.params import BertParams

        if ITEM_TEXT in artefact.texts:
            from zoo_bert import itemtext

            return itemtext.load(artefact)
        if LAYOUT not in artefact.texts:
            from zoo.nextitem.model import load_next_item
            from zoo_bert.masked import MaskedNetwork
            from zoo_bert.params import ItemRanking

            return load_next_item(MaskedNetwork, ItemRanking, artefact)
        stored: dict[str, Any] = json.loads(artefact.texts[LAYOUT])
        params = BertParams.model_validate(stored["params"])
        target = Target(stored["target"]["kind"], tuple(stored["target"]["classes"]))
        encoder = encoders.found(artefact, params, stored["encoder"], params.trained_layers)
        columns = Columns.from_json(stored["columns"])
        build = lambda: blank(encoder, params, longest(params), columns.width, target.width)  # noqa: E731
        network = filled(build, artefact.part("network").arrays)
        network.requires_grad_(requires_grad=False)
        return FittedBert(
            Reader.make(encoder, columns, params),
            network,
            target,
            float(stored["mean"]),
            float(stored["std"]),
            tuple(map(float, stored.get("keep", (1.0, 1.0)))),
        )

    def _check(self, data: TrainingData) -> None:
        kind, target = data.kind, data.target
        if kind.kind not in self.spec.targets:
            raise PluginError(f"bert cannot learn a {kind.kind} target; it takes: {', '.join(sorted(self.spec.targets))}")
        if kind.horizons:
            raise PluginError(f"bert predicts one horizon, the target has {len(kind.horizons)}; train one model for each")
        if not len(data):
            raise PluginError("bert was given no training rows; widen the training window")
        low, high = float(target.min()), float(target.max())
        bound = {"binary": 1, "multiclass": kind.width - 1}.get(kind.kind, np.inf)
        if not np.isfinite(target).all() or high > bound or (kind.kind != "value" and low < 0):
            raise PluginError(
                f"targets range from {low:g} to {high:g}; a {kind.kind} target needs finite numbers"
                + ("" if kind.kind == "value" else f" from 0 to {bound}")
                + "; correct the task's labels"
            )


def _base(data: TrainingData, weight: Array) -> Array:
    """The base rate as logits, one pseudo-row a class, so that one class alone stays finite. Zero for a standardised value."""
    if data.kind.kind == "value":
        return np.zeros(1)
    counts = np.bincount(data.target.astype(np.int64), weights=weight, minlength=max(2, data.kind.width)) + 1.0
    if data.kind.kind == "binary":
        return np.log(counts[1:2] / counts[:1])
    return np.log(counts / counts.sum())
