"""Fitting a next-item network, and the fitted model that scores items."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zoo.nextitem.loading import filled
from zoo.nextitem.network import Network
from zoo.nextitem.params import NextItemParams
from zoo.nextitem.sequences import Sequences
from zoo.nextitem.training import Flat, Trainer, last_states, plain
from zoo.plugin import UNKNOWN, Array, Artefact, Checkpoint, FeatureBatch, PluginError, Progress, TrainingData

FACTS = "next_item.json"
UNSEEN = np.float32(-1e30)
"""The score of an item that the network knows nothing of: below any other, and finite."""

Build = Callable[[Any, int, int], Network]
"""``(params, item codes, event type codes) -> network``: usually the subclass of Network itself."""


@dataclass(frozen=True)
class FittedNextItem:
    """A network that ranks the catalogue. training: what was seen of each pass."""

    network: Network
    params: NextItemParams
    training: dict[str, Any]

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        """float32 (n, m), as ``zoo.plugin.ScoresItems`` has it: logits."""
        sequences = Sequences.of(batch)
        types = len(self.network.types.weight) if self.network.types is not None else 1
        known, bias = self.network.catalogue
        size = max(batch.catalogue.size("item_id"), UNKNOWN + 1 + len(known))
        # codes that came after training are read as unknown
        codes = np.where(sequences.items < UNKNOWN + 1 + len(known), sequences.items, UNKNOWN)
        kinds = np.where(sequences.types < types, sequences.types, UNKNOWN if types > 1 else 0)
        read = Sequences(codes, kinds, sequences.gaps, sequences.offsets, sequences.targeted)
        flat = Flat.of(read, np.zeros(len(codes), np.float32), known.device)
        columns = np.arange(size) if items is None else np.asarray(items)
        out = np.full((len(batch), len(columns)), UNSEEN, np.float32)
        fit = np.flatnonzero((columns > UNKNOWN) & (columns < UNKNOWN + 1 + len(known)))
        place = torch.from_numpy(columns[fit].astype(np.int64) - (UNKNOWN + 1)).to(known.device)
        with torch.inference_mode():
            weight, offset = (known, bias) if items is None else (known[place], bias[place])
            first, length = read.newest(self.params.max_length)
            for rows, hidden in last_states(self.network, flat, first, length, self.params.tokens):
                scores = torch.addmm(offset, hidden, weight.t()).cpu().numpy()
                if items is None:
                    out[rows.cpu().numpy(), UNKNOWN + 1 : UNKNOWN + 1 + len(known)] = scores
                else:
                    out[np.ix_(rows.cpu().numpy(), fit)] = scores
        return out

    def predict(self, batch: FeatureBatch) -> Array:
        return self.score_items(batch)

    def save(self) -> Artefact:
        arrays = {f"network/{name}": plain(tensor) for name, tensor in self.network.state_dict().items()}
        types = 0 if self.network.types is None else len(self.network.types.weight)
        facts = {"params": self.params.model_dump(mode="json"), "items": len(self.network.items.weight), "types": types}
        return Artefact(arrays, {FACTS: json.dumps({**facts, "training": self.training}, indent=1)})


def fit_next_item(
    build: Build, data: TrainingData, params: NextItemParams, seed: int, progress: Progress, checkpoint: Checkpoint
) -> FittedNextItem:
    """A network fitted on the rows of a ranking target. Raises PluginError for what cannot be learnt from."""
    if data.kind.kind != "ranking":
        raise PluginError(f"a next-item network learns ranking targets; this one is {data.kind.kind}")
    size = data.batch.catalogue.size("item_id")
    sequences = Sequences.of(data.batch, data.target.astype(np.int64))
    names = list(map(str, data.batch.catalogue.names.get("event_type", np.zeros(0, object)).tolist()))
    counts = np.bincount(sequences.items, minlength=size).astype(np.float64)
    weight = sequences.weights(params.event_weights, names, counts, params.item_weight)
    if size <= UNKNOWN + 1 or not (weight > 0).any():
        raise PluginError("there is no item to learn: no row has a history or a target of known items; widen the training window")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed]).generate_state(1)[0]))
        network = build(params, size, max(len(names), UNKNOWN + 1))
    network.to(device_of(params.device)).eval()
    training = Trainer(network, params, sequences, counts, weight, seed).run(progress, checkpoint)
    return FittedNextItem(network, params, training)


def load_next_item(build: Build, params: type[NextItemParams], artefact: Artefact) -> FittedNextItem:
    """What ``FittedNextItem.save`` wrote. Raises PluginError where weights are not those of its parameters."""
    facts = json.loads(artefact.texts[FACTS])
    chosen = params.model_validate(facts["params"])
    items, types = int(facts["items"]), max(int(facts["types"]), UNKNOWN + 1)
    network = filled(lambda: build(chosen, items, types), artefact.part("network").arrays)
    return FittedNextItem(network.to(device_of(chosen.device)).eval(), chosen, facts["training"])


def device_of(name: str) -> torch.device:
    """Raises PluginError for a device that torch does not know or see here."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch is built without it
        raise PluginError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}; expected auto, cpu, or a device that torch sees here"
        ) from error
    return device
