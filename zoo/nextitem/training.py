"""One training loop for next-item networks: windows in batches of like length, warm-up and decay, early stopping, checkpoints.

Every pass draws from a generator of its own number, so a run that goes on from a checkpoint gives the same bits as one never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import cos, isfinite, pi
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.nextitem.loss import calibrated_binary_cross_entropy, linear_cross_entropy, sampled_cross_entropy
from zoo.nextitem.network import Network, Tokens
from zoo.nextitem.params import NextItemParams
from zoo.nextitem.sequences import Sequences
from zoo.plugin import UNKNOWN, Array, Artefact, Checkpoint, PluginError, Progress

FULL = 10_000
"""Items up to which ``auto`` means the softmax over all: three products (tokens, width, items) a step."""
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
LAST = 0.02
"""Share of the peak learning rate at the end."""
JUDGES = 2_000
"""Most rows held out for early stopping."""
FEWEST = 20
"""Fewest rows held out on which early stopping means something."""
STATE = "training.json"


@dataclass(frozen=True)
class Flat:
    """Sequences as tensors, their windows cut out by index."""

    items: Tensor
    types: Tensor
    gaps: Tensor
    weight: Tensor

    @staticmethod
    def of(sequences: Sequences, weight: Array, device: torch.device) -> Flat:
        arrays = (sequences.items, sequences.types, sequences.gaps, weight)
        return Flat(*(torch.from_numpy(np.append(each, each.dtype.type(0))).to(device) for each in arrays))

    def tokens(self, first: Tensor, size: Tensor) -> tuple[Tokens, Tensor]:
        """Rows ``first : first + size``, and their weights (b, t), 0 at padding."""
        place = torch.arange(int(size.max()), device=first.device)
        index = torch.where(place < size[:, None], first[:, None] + place, len(self.items) - 1)
        return Tokens(self.items[index].long(), self.types[index].long(), self.gaps[index].long(), size), self.weight[index]


def batches(size: Array, tokens: int, order: np.random.Generator | None = None) -> list[Array]:
    """Every position in ``size`` (n,) once, in batches of like size, ``tokens`` events each with their padding; ``order`` shuffles them."""
    mixed = 0.0 if order is None else order.uniform(0, max(1.0, int(size.max(initial=1)) / 16), len(size))
    ranked = np.argsort(size + mixed, kind="stable")
    parts, begin, widest = [], 0, 0
    for at, wide in enumerate(size[ranked].tolist()):
        widest = max(widest, wide)
        if at > begin and widest * (at + 1 - begin) > tokens:
            parts.append(ranked[begin:at])
            begin, widest = at, wide
    if len(ranked):
        parts.append(ranked[begin:])
    return parts if order is None else [parts[at] for at in order.permutation(len(parts))]


def rate(done: float) -> float:
    """Factor of the learning rate when this share of all steps is done."""
    return (
        max(done, 1e-3) / WARM_UP
        if done < WARM_UP
        else LAST + (1 - LAST) * 0.5 * (1 + cos(pi * (done - WARM_UP) / (1 - WARM_UP)))
    )


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Float32 matrix products of this process on the processor with their factors rounded to bfloat16, or as they are."""
    if precision != "bfloat16":
        yield
        return
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not in its stubs
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@dataclass
class Trainer:
    """A network in training. counts: float64 by item code, how often training holds each. weight: float32, as ``Sequences.weights``."""

    network: Network
    params: NextItemParams
    sequences: Sequences
    counts: Array
    weight: Array
    seed: int

    def __post_init__(self) -> None:
        self.device = next(self.network.parameters()).device
        self.flat = Flat.of(self.sequences, self.weight, self.device)
        self.optimiser = torch.optim.AdamW(
            [{"params": own, "lr": self.params.learning_rate * pace} for pace, own in self.network.paces()],
            betas=(0.9, 0.98),
            weight_decay=self.params.weight_decay,
            fused=True,
        )
        self.peaks = [group["lr"] for group in self.optimiser.param_groups]
        counts = torch.from_numpy(self.counts[UNKNOWN + 1 :]).to(self.device, torch.float32) + 1
        self.log_popularity = (counts / counts.sum()).log()
        self.drawing = counts**0.75
        self.log_drawing = (self.drawing / self.drawing.sum()).log()
        items = len(counts)
        self.loss = self.params.loss if self.params.loss != "auto" else "softmax" if items <= FULL else "sampled"
        if self.loss == "gbce" and self.params.label_smoothing:
            raise PluginError(
                f"label_smoothing={self.params.label_smoothing:g} spreads the target of a softmax, and loss = 'gbce' tells each item by "
                "itself; use loss = 'sampled', or no label_smoothing"
            )
        self.judges = self._held_out()

    def _held_out(self) -> Array:
        """bool (n,): rows whose target is told by the model itself, to know when to stop."""
        fit = np.flatnonzero(self.sequences.targeted & (self.sequences.items[self.sequences.offsets[1:] - 1] > UNKNOWN))
        wanted = min(JUDGES, round(self.params.validation * len(fit)))
        held = np.zeros(len(self.sequences), bool)
        if wanted >= FEWEST:
            held[np.random.default_rng([self.seed, 0]).choice(fit, wanted, replace=False)] = True
        return held

    def loss_of(self, window: Tokens, weight: Tensor) -> Tensor:
        """The loss of a batch of windows, weight (b, t)."""
        read, place = self.network.pose(window)
        told = place.clamp(min=0)
        share = torch.where(place >= 0, weight.gather(1, told), 0.0).flatten()
        real = share.nonzero()[:, 0]
        target = window.items.gather(1, told).flatten()[real] - (UNKNOWN + 1)
        share = share[real] / share[real].sum().clamp(min=1e-9)
        hidden = self.network.encode(read).flatten(0, 1).index_select(0, real)
        items, bias = self.network.catalogue
        if self.params.popularity_prior:
            bias = bias + self.params.popularity_prior * self.log_popularity
        if self.loss == "softmax":
            return linear_cross_entropy(hidden, items, bias, target, share, self.params.label_smoothing)
        if self.loss == "sampled":
            drawn = torch.multinomial(self.drawing, self.params.negatives, replacement=True)
            smoothing = self.params.label_smoothing
            return sampled_cross_entropy(hidden, items, bias, target, share, drawn, self.log_drawing, smoothing)
        drawn = torch.randint(len(items), (self.params.negatives,), device=self.device)
        return calibrated_binary_cross_entropy(hidden, items, bias, target, share, drawn, self.params.calibration)

    def epoch(self, number: int) -> float:
        """One pass in place; the mean loss. Raises PluginError where it, or a weight after it, is not finite."""
        order = np.random.default_rng([self.seed, number])
        first, size = self.sequences.windows(self.params.max_length, self.judges, order)
        if not len(first):
            return 0.0
        parts = batches(size, self.params.tokens, order)
        total, tokens = 0.0, 0
        self.network.train()
        devices = range(torch.cuda.device_count()) if self.device.type == "cuda" else []
        with products(self.params.precision), torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]))
            for step, rows in enumerate(parts):
                done = (number - 1 + step / len(parts)) / self.params.epochs
                for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
                    group["lr"] = peak * rate(done)
                some = (torch.from_numpy(each[rows]).to(self.device) for each in (first, size))
                loss = self.loss_of(*self.flat.tokens(*some))
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                self.optimiser.step()
                value = float(loss.detach())
                if not isfinite(value):
                    raise self._diverged(f"the loss became {value}", number)
                count = int(size[rows].sum())
                total, tokens = total + value * count, tokens + count
        self.network.eval().settle()
        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):  # as the last step may leave them
            raise self._diverged("weights became infinite or NaN", number)
        return total / tokens

    def _diverged(self, what: str, number: int) -> PluginError:
        return PluginError(f"{what} in pass {number} (learning_rate={self.params.learning_rate:g}); lower learning_rate")

    def quality(self) -> float:
        """NDCG@10 of the held-out targets among all items, equal scores before the target; 0 for targets without a finite score."""
        rows = np.flatnonzero(self.judges)
        ends = self.sequences.offsets[1:][rows] - 1
        size = np.minimum(ends - self.sequences.offsets[:-1][rows], self.params.max_length)
        target = torch.from_numpy(self.sequences.items[ends].astype(np.int64) - (UNKNOWN + 1)).to(self.device)
        items, bias = self.network.catalogue
        gain = 0.0
        with torch.inference_mode():
            for at, hidden in last_states(self.network, self.flat, ends - size, size, self.params.tokens):
                scores = torch.addmm(bias, hidden, items.t())
                own = scores.gather(1, target[at][:, None])
                rank = torch.where(own.isfinite(), scores >= own, True).sum(1)  # the target itself is one of them
                gain += float((1 / torch.log2(rank[rank <= 10] + 1.0)).sum())
        return gain / max(1, len(rows))

    def run(self, progress: Progress, checkpoint: Checkpoint) -> dict[str, Any]:
        """Train in place to the best pass; what was seen of each. Goes on from the checkpoint, where there is one."""
        history: list[dict[str, float]] = []
        before, started = 0.0, perf_counter()
        best, best_weights = (-1.0, 0), self.network.state_dict()
        kept = checkpoint.load()
        if kept is not None:
            history, best, best_weights, before = self._restore(kept)
        judged = bool(self.judges.any())
        while len(history) < self.params.epochs and not (judged and len(history) - best[1] >= self.params.patience):
            number = len(history) + 1
            seen = {"loss": self.epoch(number)} | ({"ndcg@10": self.quality()} if judged else {})
            history.append(seen)
            if not judged or seen["ndcg@10"] > best[0]:
                best, best_weights = (seen.get("ndcg@10", 0.0), number), deepcopy(self.network.state_dict())
            text = ", ".join(f"{name} {value:.4f}" for name, value in seen.items())
            progress(number / self.params.epochs, f"pass {number}/{self.params.epochs}: {text}")
            checkpoint.save(partial(self._state, history, best, best_weights, before + perf_counter() - started))
        self.network.load_state_dict(best_weights)
        return {"passes": history, "best": best[1], "loss": self.loss, "seconds": before + perf_counter() - started}

    def _state(
        self, history: list[dict[str, float]], best: tuple[float, int], best_weights: dict[str, Tensor], seconds: float
    ) -> Artefact:
        arrays = {f"network/{name}": plain(tensor) for name, tensor in self.network.state_dict().items()}
        arrays |= {f"best/{name}": plain(tensor) for name, tensor in best_weights.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            arrays |= {f"optimiser/{number}/{name}": plain(tensor) for name, tensor in state.items()}
        return Artefact(arrays, {STATE: json.dumps({"passes": history, "best": best, "seconds": seconds})})

    def _restore(self, kept: Artefact) -> tuple[list[dict[str, float]], tuple[float, int], dict[str, Tensor], float]:
        def tensors(prefix: str) -> dict[str, Tensor]:
            return {name: torch.from_numpy(array).to(self.device) for name, array in kept.part(prefix).arrays.items()}

        self.network.load_state_dict(tensors("network"))
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors("optimiser").items():
            number, what = name.split("/")
            states.setdefault(int(number), {})[what] = tensor
        self.optimiser.load_state_dict({"state": states, "param_groups": self.optimiser.state_dict()["param_groups"]})
        state = json.loads(kept.texts[STATE])
        return state["passes"], tuple(state["best"]), tensors("best"), state["seconds"]


def plain(tensor: Tensor) -> Array:
    """A copy that no later step changes."""
    array: Array = tensor.detach().cpu().numpy().copy()
    return array


def last_states(network: Network, flat: Flat, first: Array, size: Array, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows int64 (b,), their states (b, width) that tell the next item), rows of like length together."""
    device = flat.items.device
    for rows in batches(size, tokens):
        history, _ = flat.tokens(*(torch.from_numpy(each[rows]).to(device) for each in (first, size)))
        asked = network.ask(history)
        hidden = network.encode(asked)
        yield torch.from_numpy(rows).to(device), hidden[torch.arange(len(rows), device=device), asked.length - 1]
