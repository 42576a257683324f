"""The three plugins, and the fitted model that they return."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

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
    calibrated,
    thinned,
)

# torch takes over a second to import and pydantic a quarter: both stay inside functions so that listing plugins is quick.
if TYPE_CHECKING:
    from pydantic import BaseModel

    from zoo.nextitem.model import FittedNextItem
    from zoo_recurrent.inputs import Layout
    from zoo_recurrent.network import Network
    from zoo_recurrent.params import RecurrentParams
    from zoo_recurrent.single import SingleRow

LAYOUT = "model.json"


def _params() -> type[BaseModel]:
    from zoo_recurrent.params import RecurrentParams

    return RecurrentParams


@dataclass(frozen=True)
class FittedRecurrent:
    """Fitted networks; their predictions are averaged. ``mean`` and ``std`` undo the standardisation of a value target.

    keep: share of each class's rows that was learnt from.
    """

    cell: Literal["rnn", "lstm", "gru"]
    params: RecurrentParams
    target: Target
    layout: Layout
    networks: Sequence[Network]
    mean: float = 0.0
    std: float = 1.0
    keep: tuple[float, ...] = (1.0, 1.0)

    def predict(self, batch: FeatureBatch) -> Array:
        """float32 (n, k): probabilities, or amounts for a value target (k = 1)."""
        from zoo_recurrent.network import scores_of

        inputs = self.layout.read(batch)
        scores = self._single(inputs) if len(batch) == 1 else scores_of(self.networks, inputs, self.target.kind)
        if self.target.kind == "value":
            scores = scores * self.std + self.mean
        elif self.params.focal or min(self.keep) < 1:
            return np.asarray(calibrated(scores, np.array(self.keep), self.params.focal).mean(0), np.float32)
        if len(scores) == 1:
            return scores[0]
        import torch

        return np.asarray(torch.from_numpy(scores).mean(0).numpy())  # numpy's sums of many networks have other last bits

    @cached_property
    def _single(self) -> SingleRow:
        from zoo_recurrent.single import SingleRow

        return SingleRow(self.networks, self.target.kind)

    def save(self) -> Artefact:
        arrays = {
            f"networks/{i}/{name}": tensor.numpy().copy()
            for i, network in enumerate(self.networks)
            for name, tensor in network.state_dict().items()
        }
        for i, columns in enumerate((self.layout.scalars, *self.layout.streams)):
            arrays |= {f"lookups/{i}/{j}": code.lookup for j, code in enumerate(columns.codes)}
        layout = {
            "cell": self.cell,
            "params": self.params.model_dump(mode="json"),
            "target": {"kind": self.target.kind, "classes": self.target.classes},
            "scalars": self.layout.scalars.to_json(),
            "streams": [columns.to_json() for columns in self.layout.streams],
            "networks": len(self.networks),
            "mean": self.mean,
            "std": self.std,
            "keep": self.keep,
        }
        return Artefact(arrays, {LAYOUT: json.dumps(layout, indent=1)})


class Recurrent:
    """What the three share; a subclass names its cell."""

    cell: Literal["rnn", "lstm", "gru"]
    summary: str

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            name=self.cell,
            params=_params,
            targets=frozenset({"binary", "multiclass", "value", "ranking"}),
            summary=self.summary,
            resumes=True,
        )

    def tiny(self) -> RecurrentParams:
        from zoo_recurrent.params import ItemParams, RecurrentParams

        ranking = ItemParams(
            width=16, hidden=16, max_length=24, epochs=8, tokens=400, learning_rate=2e-2, dropout=0.0, embedding_dropout=0.0
        )
        return RecurrentParams(
            hidden=12, embedding=6, max_length=24, epochs=8, batch_size=64, learning_rate=2e-2, min_count=1, ranking=ranking
        )

    def fit(
        self,
        data: TrainingData,
        *,
        params: BaseModel,
        seed: int,
        progress: Progress,
        checkpoint: Checkpoint = NO_CHECKPOINT,
    ) -> FittedRecurrent | FittedNextItem:
        """Raises PluginError for a target that cannot be learned, for nothing to read, and for a loss that diverges.

        Fits of a ranking target go on from ``checkpoint``; the others are short, and begin anew.
        """
        import torch

        from zoo_recurrent.fitting import Problem, newest, train
        from zoo_recurrent.inputs import Layout
        from zoo_recurrent.network import Network, Tensors
        from zoo_recurrent.params import RecurrentParams

        chosen = RecurrentParams.model_validate(params.model_dump())
        kind = data.kind.kind
        if kind == "ranking":
            from zoo.nextitem.model import fit_next_item
            from zoo_recurrent.items import NETWORKS

            return fit_next_item(NETWORKS[self.cell], data, chosen.ranking, seed, progress, checkpoint)
        self._check(data)
        layout = Layout.learn(
            data.batch,
            streams=chosen.streams,
            scalars=chosen.scalars,
            max_length=chosen.max_length,
            most=chosen.vocabulary,
            least=chosen.min_count,
        )
        data, keep = thinned(data, chosen.negatives, seed)
        target, mean, std = data.target, 0.0, 1.0
        if kind == "value":
            mean, std = float(target.mean()), float(target.std()) or 1.0
            target = (target - mean) / std
        weight = _weights(data, balanced=chosen.class_weight == "balanced" and kind != "value")
        problem = Problem(
            kind,
            Tensors.of(layout.read(data.batch)),
            torch.tensor(target, dtype=torch.int64 if kind == "multiclass" else torch.float32),
            torch.tensor(weight, dtype=torch.float32),
            chosen.focal,
        )
        bias = torch.tensor(_base(data, weight), dtype=torch.float32)

        everything, nothing = np.arange(len(data)), np.empty(0, np.int64)
        older, held_out = newest(data.time, chosen.validation)
        search = chosen.refit and len(held_out) > 0
        planned = chosen.epochs * (chosen.seeds + search)
        done = 0

        def run(rows: Array, judge: Array, epochs: int, number: int) -> tuple[Network, int]:
            nonlocal done
            network = Network(self.cell, layout, chosen, len(bias))
            best = train(
                network,
                problem,
                rows,
                judge,
                bias=bias,
                params=chosen,
                epochs=epochs,
                seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]),
                tell=lambda passes, text: progress(min(1.0, (done + passes) / planned), text),
            )
            done += chosen.epochs
            return network, best

        if search:
            _, best = run(older, held_out, chosen.epochs, 0)
            networks = [run(everything, nothing, best, i)[0] for i in range(chosen.seeds)]
        else:
            networks = [run(older, held_out, chosen.epochs, i)[0] for i in range(chosen.seeds)]
        progress(1.0, "done")
        return FittedRecurrent(self.cell, chosen, data.kind, layout, networks, mean, std, tuple(keep.tolist()))

    def load(self, artefact: Artefact) -> FittedRecurrent | FittedNextItem:
        """The model that ``save`` wrote; raises PluginError for another cell's artefact, and for weights that are not of its layout."""
        from zoo.nextitem.loading import filled
        from zoo.nextitem.model import FACTS, load_next_item
        from zoo_recurrent.columns import Columns
        from zoo_recurrent.inputs import Layout
        from zoo_recurrent.network import Network
        from zoo_recurrent.params import ItemParams, RecurrentParams

        if FACTS in artefact.texts:
            from zoo_recurrent.items import NETWORKS

            return load_next_item(NETWORKS[self.cell], ItemParams, artefact)
        stored: dict[str, Any] = json.loads(artefact.texts[LAYOUT])
        if stored["cell"] != self.cell:
            raise PluginError(f"the artefact holds a model {stored['cell']!r}, not {self.cell!r}; load it with that plugin")
        params = RecurrentParams.model_validate(stored["params"])
        target = Target(stored["target"]["kind"], tuple(stored["target"]["classes"]))
        scalars, *streams = (
            Columns.from_json(columns, [artefact.arrays[f"lookups/{i}/{j}"] for j in range(len(columns["codes"]))])
            for i, columns in enumerate([stored["scalars"], *stored["streams"]])
        )
        layout = Layout(tuple(streams), scalars, params.max_length)
        networks = []
        for i in range(stored["networks"]):
            networks.append(
                filled(lambda: Network(self.cell, layout, params, target.width), artefact.part(f"networks/{i}").arrays)
            )
        return FittedRecurrent(
            self.cell,
            params,
            target,
            layout,
            networks,
            float(stored["mean"]),
            float(stored["std"]),
            tuple(map(float, stored.get("keep", (1.0, 1.0)))),
        )

    def _check(self, data: TrainingData) -> None:
        kind, target = data.kind, data.target
        if kind.kind not in self.spec.targets:
            raise PluginError(f"{self.cell} cannot learn a {kind.kind} target; it takes: {', '.join(sorted(self.spec.targets))}")
        if kind.horizons:
            raise PluginError(f"{self.cell} predicts one horizon, the target has {len(kind.horizons)}; train one model for each")
        if not len(data):
            raise PluginError(f"{self.cell} was given no training rows; widen the training window")
        low, high = float(target.min()), float(target.max())
        bound = {"binary": 1, "multiclass": kind.width - 1}.get(kind.kind, np.inf)
        if not np.isfinite(target).all() or high > bound or (kind.kind != "value" and low < 0):
            raise PluginError(
                f"targets range from {low:g} to {high:g}; a {kind.kind} target needs finite numbers"
                + ("" if kind.kind == "value" else f" from 0 to {bound}")
                + "; correct the task's labels"
            )


class SimpleRNN(Recurrent):
    cell = "rnn"
    summary = "Elman network over behaviour sequences, scalars in the head"


class LSTM(Recurrent):
    cell = "lstm"
    summary = "Long short-term memory over behaviour sequences, scalars in the head"


class GRU(Recurrent):
    cell = "gru"
    summary = "Gated recurrent units over behaviour sequences, scalars in the head"


def _weights(data: TrainingData, *, balanced: bool) -> Array:
    """float64 (n,), mean 1; ``balanced`` gives every class that occurs the same total."""
    weight = data.weight.astype(np.float64)
    if balanced:
        classes = data.target.astype(np.int64)
        weight = weight / np.maximum(np.bincount(classes, weight), 1e-12)[classes]
    return weight / max(float(weight.mean()), 1e-12)


def _base(data: TrainingData, weight: Array) -> Array:
    """float64 (k,): logits of the base rates (one pseudo-row spread over the classes keeps them finite); 0 for a value."""
    if data.kind.kind == "value":
        return np.zeros(1)
    classes = data.kind.width if data.kind.kind == "multiclass" else 2
    counts = np.bincount(data.target.astype(np.int64), weight, minlength=classes) + 1 / classes
    logits = np.log(counts / counts.sum())
    return logits if data.kind.kind == "multiclass" else np.array([logits[1] - logits[0]])
