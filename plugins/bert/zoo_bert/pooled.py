"""Next item from item texts: projected vectors of the texts, means of a history that fade at learned rates, scores by inner product.

An item is known by its text alone, so one that training never saw has a vector like any other. Knows no batch and no encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from zoo_bert.network import drop

if TYPE_CHECKING:
    from zoo_bert.params import TextRanking


class Ranker(nn.Module):
    """Vectors of items and of what histories ask for, of one width d.

    rate: how fast a mean fades: an item counts ``exp(-exp(rate))`` of the one after it.
    """

    def __init__(self, size: int, params: TextRanking) -> None:
        super().__init__()
        width, fades = params.width, params.fades
        self.narrow, self.item_norm, self.bias = nn.Linear(size, width), nn.LayerNorm(width), nn.Linear(size, 1)
        self.rate = nn.Parameter(torch.zeros(fades))
        self.mix, self.out = nn.Linear((fades + 1) * width, params.hidden), nn.Linear(params.hidden, width)
        self.norm, self.temperature = nn.LayerNorm(width), nn.Parameter(torch.ones(()))
        self.dropout = params.dropout

    def items(self, texts: Tensor, noise: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Vectors (m, d) and biases (m,) of standardised text vectors (m, size)."""
        return self.item_norm(self.narrow(drop(texts, self.dropout, noise))), self.bias(texts)[:, 0]

    def histories(self, items: Tensor, here: Tensor, at: Tensor, noise: Generator | None = None) -> Tensor:
        """(b, p, d): what histories ask for just after their positions ``at``.

        items: (b, t, d), oldest first, padded on the right where here (b, t) is 0. at: int64 (b, p).
        """
        back = (at[:, :, None] - torch.arange(items.shape[1])).float()
        past = (back >= 0) & here[:, None].bool()
        fading = torch.exp(-torch.exp(self.rate)[:, None, None] * back.clamp(min=0)[:, None]) * past[:, None]
        means = (fading.flatten(1, 2) @ items).unflatten(1, fading.shape[1:3]) / fading.sum(-1, keepdim=True).clamp(min=1e-6)
        last = items.gather(1, at[..., None].expand(-1, -1, items.shape[-1]))
        read = torch.cat([last, means.transpose(1, 2).flatten(2)], -1)
        wide = functional.gelu(self.mix(drop(read, self.dropout, noise)))
        return self.norm(self.out(drop(wide, self.dropout, noise))) * self.temperature * items.shape[-1] ** -0.5


def blank(size: int, params: TextRanking) -> Ranker:
    """A network of the right shape with arbitrary weights, made without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        return Ranker(size, params)


def initialise(ranker: Ranker, noise: Generator) -> None:
    """Random weights, no preference between items, and means that fade by half every 1, 4, 16, ... items."""
    with torch.no_grad():
        for name, weight in ranker.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() > 1:
                weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=noise)
        ranker.bias.weight.zero_()
        ranker.temperature.fill_(1.0)
        ranker.rate.copy_(torch.log(torch.log(torch.tensor(2.0)) / 4.0 ** torch.arange(len(ranker.rate))))
