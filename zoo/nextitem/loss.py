"""Losses of the next item over the whole catalogue or a sample of it."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 192
"""Positions whose logits are in memory at once: few enough for a processor's cache, for every product reads or writes them."""
LARGE = 40.0
"""Largest logit, by a bound on it, up to which exponentials and their sums stay within float32 as they are."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made with the loss, chunk by chunk in one buffer, so that the logits are never held.

    The bias is one more column of the weight, and a one of each row, so that it and its gradient come with the products.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, share: Tensor, smoothing: float
    ) -> Tensor:
        count, items = len(hidden), len(weight)
        rows, table = torch.cat([hidden, hidden.new_ones(count, 1)], 1), torch.cat([weight, bias[:, None]], 1)
        turned, wanted = table.t().contiguous(), table[target]
        of_target = (rows * wanted).sum(1)
        if smoothing:
            of_target = (1 - smoothing) * of_target + smoothing * (rows @ table.mean(0))
        large = count > 0 and not bool(rows.norm(dim=1).max() * table.norm(dim=1).max() < LARGE)  # of NaN, too
        of_hidden, of_table = torch.empty_like(hidden), torch.zeros_like(table)
        room = hidden.new_empty(min(CHUNK, max(1, count)), items)
        loss = hidden.new_zeros(())
        for begin in range(0, count, CHUNK):
            some = slice(begin, min(begin + CHUNK, count))
            h, part, own = rows[some], share[some], of_target[some]
            logits = torch.mm(h, turned, out=room[: len(h)])
            if large:
                top = logits.amax(1, keepdim=True)
                logits.sub_(top)
                own = own - top[:, 0]
            total = logits.exp_().sum(1)
            loss += ((total.log() - own) * part).sum()
            # softmax minus the wanted distribution, without another pass over the matrix: its rows are scaled outside of it
            scale = (part / total)[:, None]
            torch.mm(logits, weight, out=of_hidden[some])
            of_hidden[some].mul_(scale)
            of_table.addmm_(logits.t(), h * scale)
        pull = ((1 - smoothing) * share)[:, None]
        of_hidden.sub_(wanted[:, :-1] * pull)
        of_table.index_add_(0, target, rows * pull, alpha=-1)
        if smoothing:
            even = share[:, None] * (smoothing / items)
            of_hidden.sub_(even * weight.sum(0))
            of_table.sub_((rows * even).sum(0))
        ctx.save_for_backward(of_hidden, of_table[:, :-1], of_table[:, -1])
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        [scale] = outer
        of_hidden, of_weight, of_bias = ctx.saved_tensors
        return of_hidden * scale, of_weight * scale, of_bias * scale, None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, share: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of ``hidden @ weight.T + bias``, float32 (), without ever holding the logits.

    hidden: (n, d). weight: (m, d). bias: (m,). target: int64 (n,) in 0..m - 1. share: (n,), what each row counts; default 1 / n.
    smoothing: share of the target spread over all m. Time is that of three products (n, d, m); memory CHUNK x m.
    """
    part = hidden.new_full((len(hidden),), 1 / max(1, len(hidden))) if share is None else share
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, target, part, smoothing)  # type: ignore[no-untyped-call]
    return loss


def sampled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    share: Tensor,
    drawn: Tensor,
    log_drawn: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    """Softmax over the target and ``drawn`` items (k,), with logQ correction (Bengio and Senecal 2008), float32 ().

    log_drawn: (m,), log of the probability that a draw gives an item. Drawn items equal to a row's target are left out of that row.
    The target is there for certain, so it alone is not corrected: the sum of exponentials is then the catalogue's in the mean.
    smoothing: share of the target spread over all m; the mean of their logits is linear in the state, so it is not sampled.
    """
    own = (hidden * weight[target]).sum(1) + bias[target]
    others = torch.addmm(bias[drawn] - log_drawn[drawn] - log(len(drawn)), hidden, weight[drawn].t())
    others = others.masked_fill(drawn[None] == target[:, None], torch.finfo(others.dtype).min)
    wanted = own
    if smoothing:
        wanted = (1 - smoothing) * own + smoothing * (hidden @ weight.mean(0) + bias.mean())
    return ((torch.logaddexp(own, others.logsumexp(1)) - wanted) * share).sum()


def calibrated_binary_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, share: Tensor, drawn: Tensor, calibration: float
) -> Tensor:
    """gBCE over uniformly ``drawn`` negatives (k,) (Petrov and Macdonald 2023), float32 (). calibration: their t."""
    sampling = min(1.0, len(drawn) / max(1, len(weight) - 1))
    beta = sampling * (calibration * (1 - 1 / sampling) + 1 / sampling)
    own = (hidden * weight[target]).sum(1) + bias[target]
    others = torch.addmm(bias[drawn], hidden, weight[drawn].t())
    others = others.masked_fill(drawn[None] == target[:, None], torch.finfo(others.dtype).min)
    return ((functional.softplus(others).sum(1) - beta * functional.logsigmoid(own)) * share).sum()


def focal(losses: Tensor, gamma: float) -> Tensor:
    """Log-losses (b,) -> focal losses (1 - p) ** gamma * loss, p being exp(-loss) (Lin et al. 2017); gamma 0 leaves them as they are."""
    if not gamma:
        return losses
    return (-torch.expm1(-losses)).clamp(min=1e-6) ** gamma * losses
