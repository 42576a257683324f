"""The training loop that rnn, lstm and gru share: bucketed batches, warm-up and decay, early stopping on the newest rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import cos, isfinite, pi

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from zoo.nextitem.loss import focal
from zoo.plugin import Array, PluginError, TargetKind
from zoo_recurrent.network import Network, Tensors, initialise
from zoo_recurrent.params import RecurrentParams

BUCKET = 16
"""Batches whose rows are sorted by length together: little padding, and batches that still mix short and long histories."""

WARM_UP = 0.2
"""Share of the steps in which the learning rate rises."""

FEWEST = 20
"""Fewest held-out rows on which early stopping means something."""

Tell = Callable[[int, str], None]
"""``(passes done, text)``."""


@dataclass(frozen=True)
class Problem:
    """Rows to fit on as tensors. target: float32 (n,), or int64 class numbers. weight: float32 (n,), mean 1."""

    kind: TargetKind
    inputs: Tensors
    target: Tensor
    weight: Tensor
    gamma: float = 0.0

    def losses(self, logits: Tensor, rows: Tensor, smoothing: float) -> Tensor:
        """float32 (b,): log-loss (focal loss with a ``gamma``), or the squared error of a standardised value."""
        target = self.target[rows]
        if self.kind == "multiclass":
            return focal(functional.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing), self.gamma)
        if self.kind == "value":
            return (logits[:, 0] - target) ** 2
        smooth = target * (1 - smoothing) + smoothing / 2
        return focal(functional.binary_cross_entropy_with_logits(logits[:, 0], smooth, reduction="none"), self.gamma)

    def loss(self, network: Network, rows: Tensor) -> float:
        """Weighted mean loss of these rows, without dropout or smoothing."""
        with torch.inference_mode():
            total = torch.zeros(())
            for some in rows.split(1024):
                total += (self.losses(network(self.inputs, some, None), some, 0.0) * self.weight[some]).sum()
            return float(total / self.weight[rows].sum().clamp(min=1e-12))


def newest(time: Array, share: float) -> tuple[Array, Array]:
    """(older rows, newest rows): about ``share`` of the rows, cut between two instants so that no instant is on both sides.

    The second is empty where that leaves too few rows or only one instant.
    """
    instants, counts = np.unique(time, return_counts=True)
    after = len(time) - np.cumsum(counts)
    cut = int(np.abs(after - share * len(time)).argmin())
    late = time > instants[cut]
    if share == 0 or not FEWEST <= late.sum() <= len(time) / 2:
        late[:] = False
    return np.flatnonzero(~late), np.flatnonzero(late)


def batches(steps: Array, size: int, order: np.random.Generator) -> Iterator[Tensor]:
    """Every position in ``steps`` (n,) once, in shuffled batches of rows of like length."""
    shuffled = order.permutation(len(steps))
    parts: list[Array] = []
    for i in range(0, len(shuffled), size * BUCKET):
        bucket = shuffled[i : i + size * BUCKET]
        bucket = bucket[np.argsort(steps[bucket], kind="stable")]
        parts += [bucket[j : j + size] for j in range(0, len(bucket), size)]
    for i in order.permutation(len(parts)):
        yield torch.from_numpy(parts[i])


def rate(done: float) -> float:
    """Factor of the learning rate when this share of all steps is done (Smith and Topin 2018, one cycle)."""
    return max(done, 0.01) / WARM_UP if done < WARM_UP else 0.5 * (1 + cos(pi * (done - WARM_UP) / (1 - WARM_UP)))


def train(
    network: Network,
    problem: Problem,
    rows: Array,
    held_out: Array,
    *,
    bias: Tensor,
    params: RecurrentParams,
    epochs: int,
    seed: int,
    tell: Tell,
) -> int:
    """Train in place on ``rows`` and return the number of passes that was best.

    With ``held_out`` rows the weights of the pass with the lowest loss on them are kept; without, those of the last pass.
    Raises PluginError where the loss is not finite.
    """
    noise = Generator().manual_seed(seed)
    order = np.random.default_rng(seed)
    initialise(network, bias, noise)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=params.weight_decay, fused=True)
    places, judge = torch.from_numpy(rows), torch.from_numpy(held_out)
    steps = problem.inputs.steps()[places].numpy()
    step, total = 0, epochs * -(-len(rows) // params.batch_size)
    best, lowest, weights = epochs, float("inf"), None
    for epoch in range(1, epochs + 1):
        running = 0.0
        for batch in batches(steps, params.batch_size, order):
            some = places[batch]
            optimiser.param_groups[0]["lr"] = params.learning_rate * rate(step / total)
            losses = problem.losses(network(problem.inputs, some, noise), some, params.label_smoothing)
            loss = (losses * problem.weight[some]).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            running += float(loss.detach()) * len(batch) / len(rows)
            step += 1
        seen = problem.loss(network, judge) if len(judge) else running
        name = "squared error" if problem.kind == "value" else "log-loss"
        if not isfinite(seen) or not isfinite(running):
            raise PluginError(
                f"the {name} became {running if isfinite(seen) else seen} in epoch {epoch} "
                f"(learning_rate={params.learning_rate:g}); lower learning_rate, or look for huge weights"
            )
        tell(epoch, f"epoch {epoch}/{epochs}, {'validation' if len(judge) else 'training'} {name} {seen:.4f}")
        if len(judge):
            if seen < lowest:
                best, lowest, weights = epoch, seen, deepcopy(network.state_dict())
            elif epoch - best >= params.patience:
                break
    if weights is not None:
        network.load_state_dict(weights)
    return best
