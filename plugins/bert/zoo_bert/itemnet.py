"""Next item from item texts: vectors of the texts, projected; means of a history that fade at learned rates; scores by inner product.

An item is known by its text alone, so one that training never saw has a vector like any other. Knows no batch and no encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.nextitem.network import Network, Tokens
from zoo.plugin import UNKNOWN

if TYPE_CHECKING:
    from zoo_bert.params import TextRanking


class TextItems(nn.Module):
    """In the place of item embeddings: the vectors of all items' texts (m, size), standardised and frozen, and their projection."""

    def __init__(self, vectors: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.vectors: Tensor
        self.narrow, self.norm = nn.Linear(vectors.shape[1], width), nn.LayerNorm(width)
        nn.init.normal_(self.narrow.weight, std=vectors.shape[1] ** -0.5)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, codes: Tensor) -> Tensor:
        used, where = codes.unique(return_inverse=True)
        return functional.embedding(where, self.norm(self.narrow(self.vectors[used])))

    @property
    def weight(self) -> Tensor:
        """(m, width)."""
        projected: Tensor = self.norm(self.narrow(self.vectors))
        return projected


class TextNetwork(Network):
    """rate: an item counts ``exp(-exp(rate))`` of the one after it, in as many means as there are rates."""

    def __init__(self, params: TextRanking, types: int, vectors: Tensor) -> None:
        super().__init__(params, 1, types)
        width, fades = params.width, params.fades
        del self.bias
        self.items = TextItems(vectors, width)  # type: ignore[assignment]
        self.preference = nn.Linear(vectors.shape[1], 1)
        # half-lives of 1, 4, 16, ... items to begin with
        self.rate = nn.Parameter(torch.log(torch.log(torch.tensor(2.0)) / 4.0 ** torch.arange(fades)))
        self.mix, self.out = nn.Linear((fades + 1) * width, params.hidden), nn.Linear(params.hidden, width)
        self.norm, self.temperature = nn.LayerNorm(width), nn.Parameter(torch.ones(()))
        self.dropout, self.told = params.dropout, params.told
        for linear in (self.mix, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.preference.weight)
        nn.init.zeros_(self.preference.bias)

    def pose(self, window: Tokens) -> tuple[Tokens, Tensor]:
        """Each event from those before it; of long windows a share of the events, drawn anew in every pass."""
        read, place = super().pose(window)
        return read, place.masked_fill(torch.rand(place.shape, device=place.device) > self.told, -1)

    def states(self, vectors: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002 - padding is behind what a mean may see
        steps = torch.arange(vectors.shape[1], device=vectors.device)
        back = (steps[:, None] - steps).float()
        fading = torch.exp(-torch.exp(self.rate)[:, None, None] * back.clamp(min=0)) * (back >= 0)
        means = torch.einsum("kts,bsd->btkd", fading / fading.sum(-1, keepdim=True), vectors)
        read = functional.dropout(torch.cat([vectors[:, :, None], means], 2).flatten(2), self.dropout, self.training)
        wide = functional.dropout(functional.gelu(self.mix(read)), self.dropout, self.training)
        return self.norm(self.out(wide)) * (self.temperature * vectors.shape[-1] ** -0.5)

    @property
    def catalogue(self) -> tuple[Tensor, Tensor]:
        texts = self.items
        return texts.weight[UNKNOWN + 1 :], self.preference(texts.vectors[UNKNOWN + 1 :])[:, 0]  # type: ignore[index, operator]
