"""The training loop: which rows, batches of like length, warm-up and decay, early stopping on the newest rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from zoo.nextitem.loss import focal
from zoo.plugin import Array, PluginError, TargetKind
from zoo_bert.inputs import Inputs
from zoo_bert.network import Network
from zoo_bert.params import BertParams

BUCKET = 16
"""Batches whose rows are sorted by length together: little padding, and batches that still mix short and long texts."""

FEWEST = 20
"""Fewest held-out rows on which early stopping means something."""

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Problem:
    """target: float32 (n,), or int64 class numbers. weight: float32 (n,), mean 1."""

    kind: TargetKind
    inputs: Inputs
    target: Tensor
    weight: Tensor
    gamma: float = 0.0

    def losses(self, logits: Tensor, rows: Array) -> Tensor:
        """float32 (b,): log-loss, or the squared error of a standardised value."""
        target = self.target[rows]
        if self.kind == "multiclass":
            return focal(functional.cross_entropy(logits, target, reduction="none"), self.gamma)
        if self.kind == "value":
            return (logits[:, 0] - target) ** 2
        return focal(functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none"), self.gamma)

    def loss(self, network: Network, rows: Array) -> float:
        """Weighted mean loss of these rows, without dropout."""
        logits = scores(network, self.inputs, rows)
        weight = self.weight[rows]
        return float((self.losses(logits, rows) * weight).sum() / weight.sum().clamp(min=1e-12))


def scores(network: Network, inputs: Inputs, rows: Array, size: int = 256) -> Tensor:
    """Logits (len(rows), outputs), computed in batches of like length."""
    order = np.argsort(inputs.lengths[rows], kind="stable")
    with torch.inference_mode():
        parts = [network(inputs.rows(rows[order[i : i + size]])) for i in range(0, len(rows), size)]
        out = torch.cat(parts)
        return out[torch.from_numpy(np.argsort(order))]


def spread(time: Array, most: int, order: np.random.Generator) -> Array:
    """At most ``most`` rows (all where that is 0), as evenly over time as they come, in order of position."""
    if not most or len(time) <= most:
        return np.arange(len(time))
    ranked = np.lexsort((order.random(len(time)), time))
    return np.sort(ranked[np.linspace(0, len(time) - 1, most).round().astype(np.int64)])


def newest(time: Array, share: float) -> tuple[Array, Array]:
    """(older rows, newest rows): about ``share`` of the rows, cut between two instants so that no instant is on both sides.

    The second is empty where that leaves too few rows or only one instant.
    """
    everything, nothing = np.arange(len(time)), np.empty(0, np.int64)
    if share == 0 or not len(time):
        return everything, nothing
    instants, counts = np.unique(time, return_counts=True)
    after = len(time) - np.cumsum(counts)
    late = time > instants[int(np.abs(after - share * len(time)).argmin())]
    if not FEWEST <= late.sum() <= len(time) / 2:
        return everything, nothing
    return everything[~late], everything[late]


def batches(lengths: Array, size: int, order: np.random.Generator) -> Iterator[Array]:
    """Every position in ``lengths`` (n,) once, in shuffled batches of rows of like length."""
    shuffled = order.permutation(len(lengths))
    parts: list[Array] = []
    for i in range(0, len(shuffled), size * BUCKET):
        bucket = shuffled[i : i + size * BUCKET]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        parts += [bucket[j : j + size] for j in range(0, len(bucket), size)]
    for i in order.permutation(len(parts)):
        yield parts[i]


def train(network: Network, problem: Problem, rows: Array, held_out: Array, params: BertParams, seed: int, tell: Tell) -> None:
    """Train in place on ``rows``; with ``held_out`` rows the weights of the pass with the lowest loss on them are kept.

    Raises PluginError where the loss is not finite.
    """
    noise, order = Generator().manual_seed(seed), np.random.default_rng(seed)
    encoder = [weight for name, weight in network.named_parameters() if name.startswith("text.layers.")]
    head = [weight for name, weight in network.named_parameters() if not name.startswith("text.layers.")]
    groups = [{"params": encoder, "lr": params.encoder_learning_rate}, {"params": head, "lr": params.learning_rate}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=params.weight_decay, fused=True)
    rates = [group["lr"] for group in optimiser.param_groups]
    lengths = problem.inputs.lengths[rows]
    step, total = 0, params.epochs * -(-len(rows) // params.batch_size)
    best, lowest, weights = 0, float("inf"), None
    for epoch in range(1, params.epochs + 1):
        running = 0.0
        for batch in batches(lengths, params.batch_size, order):
            some = rows[batch]
            factor = _factor(step / total, params.warm_up)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss = (problem.losses(network(problem.inputs.rows(some), noise), some) * problem.weight[some]).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            running += float(loss.detach()) * len(batch) / len(rows)
            step += 1
        seen = problem.loss(network, held_out) if len(held_out) else running
        name = "squared error" if problem.kind == "value" else "log-loss"
        if not isfinite(seen) or not isfinite(running):
            raise PluginError(
                f"the {name} became {running if isfinite(seen) else seen} in epoch {epoch} (learning_rate={params.learning_rate:g}, "
                f"encoder_learning_rate={params.encoder_learning_rate:g}); lower them, or look for huge weights"
            )
        tell(
            epoch / params.epochs,
            f"epoch {epoch}/{params.epochs}, {'validation' if len(held_out) else 'training'} {name} {seen:.4f}",
        )
        if len(held_out):
            if seen < lowest:
                best, lowest, weights = epoch, seen, deepcopy(network.state_dict())
            elif epoch - best >= params.patience:
                break
    if weights is not None:
        network.load_state_dict(weights)


def _factor(done: float, warm_up: float) -> float:
    """Of the learning rate when this share of all steps is done: up, then down to nothing, both straight (Devlin et al. 2019)."""
    return max(done, 0.01) / warm_up if done < warm_up else (1 - done) / (1 - warm_up) if warm_up < 1 else 1.0
