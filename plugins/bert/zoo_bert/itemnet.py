"""Next item from item texts: vectors of the texts, projected; means of a history that fade at learned rates; scores by inner product.

An item is known by its text alone, so one that training never saw has a vector like any other. Where the encoder's top layers are trained
too, a step reads some of its items' texts with gradients, and all other items have the vectors of their last reading (a memory bank, as
in Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination"), which every pass makes anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.nextitem.dropout import dropout
from zoo.nextitem.network import Network, Tokens
from zoo.plugin import UNKNOWN, Array

if TYPE_CHECKING:
    from zoo_bert.params import TextRanking
    from zoo_bert.tuned import TextLayers, Texts


class TextItems(nn.Module):
    """In the place of item embeddings: the vectors of all items' texts (m, size), standardised, and their projection.

    top: the encoder's trained layers, or None. texts: what they read, in training only.
    """

    def __init__(self, vectors: Tensor, width: int, top: TextLayers | None = None, texts: Texts | None = None) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.vectors: Tensor
        self.narrow, self.norm = nn.Linear(vectors.shape[1], width), nn.LayerNorm(width)
        nn.init.normal_(self.narrow.weight, std=vectors.shape[1] ** -0.5)
        nn.init.zeros_(self.narrow.bias)
        self.top, self.texts = top, texts
        self._fresh: Tensor | None = None

    def forward(self, codes: Tensor) -> Tensor:
        used, where = codes.unique(return_inverse=True)
        return functional.embedding(where, self.norm(self.narrow(self.now[used])))

    @property
    def now(self) -> Tensor:
        """(m, size): the vectors, in a step of training those with gradients among them."""
        return self.vectors if self._fresh is None else self._fresh

    @property
    def weight(self) -> Tensor:
        """(m, width)."""
        projected: Tensor = self.norm(self.narrow(self.now))
        return projected

    def read(self, codes: Tensor, most: int) -> None:
        """For one step, read the texts of these items with gradients, ``most`` of them drawn where there are more."""
        self._fresh = None
        if self.top is None or self.texts is None:
            return
        states, mean, scale, of = self._texts(self.texts)
        texts = of[codes.unique()].unique()
        texts = texts[texts >= 0]
        if len(texts) > most:
            texts = texts[torch.randperm(len(texts))[:most].to(texts.device)].sort().values
        if not len(texts):
            return
        made = (self.top([states[at] for at in texts.tolist()]) - mean) * scale
        place = of.new_full((len(states) + 1,), -1)  # the last is of items without a text
        place[texts] = torch.arange(len(texts), device=of.device)
        items = (place[of] >= 0).nonzero()[:, 0]
        made = made[place[of[items]]]
        self._fresh = self.vectors.index_copy(0, items, made)
        self.vectors[items] = made.detach()

    def settle(self) -> None:
        """Read all texts with the weights as they are, without gradients."""
        self._fresh = None
        if self.top is not None and self.texts is not None:
            texts = self.texts
            made = (self.top.of(texts.states) - texts.mean) * texts.scale
            some = texts.of >= 0
            vectors = self.vectors.new_zeros(self.vectors.shape)
            vectors[torch.from_numpy(some)] = torch.from_numpy(made[texts.of[some]]).to(vectors.device)
            self.vectors.copy_(vectors)

    def _texts(self, texts: Texts) -> tuple[Sequence[Array], Tensor, Tensor, Tensor]:
        mean, scale, of = (torch.from_numpy(each).to(self.vectors.device) for each in (texts.mean, texts.scale, texts.of))
        return texts.states, mean, scale, of


class TextNetwork(Network):
    """rate: an item counts ``exp(-exp(rate))`` of the one after it, in as many means as there are rates."""

    def __init__(
        self, params: TextRanking, types: int, vectors: Tensor, top: TextLayers | None = None, texts: Texts | None = None
    ) -> None:
        super().__init__(params, 1, types)
        width, fades = params.width, params.fades
        del self.bias
        self.fresh, self.pace = params.fresh, params.encoder_learning_rate / params.learning_rate
        self.items = TextItems(vectors, width, top, texts)  # type: ignore[assignment]
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
        self.items.read(window.items, self.fresh)  # type: ignore[operator]
        read, place = super().pose(window)
        return read, place.masked_fill(torch.rand(place.shape, device=place.device) > self.told, -1)

    def paces(self) -> list[tuple[float, list[nn.Parameter]]]:
        """The encoder's layers, which have learnt already, more slowly than what begins at random."""
        top = [weight for name, weight in self.named_parameters() if name.startswith("items.top.")]
        rest = [weight for name, weight in self.named_parameters() if not name.startswith("items.top.")]
        return [(1.0, rest), (self.pace, top)] if top else [(1.0, rest)]

    def settle(self) -> None:
        self.items.settle()  # type: ignore[operator]

    def states(self, vectors: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002 - padding is behind what a mean may see
        steps = torch.arange(vectors.shape[1], device=vectors.device)
        back = (steps[:, None] - steps).float()
        fading = torch.exp(-torch.exp(self.rate)[:, None, None] * back.clamp(min=0)) * (back >= 0)
        means = torch.einsum("kts,bsd->btkd", fading / fading.sum(-1, keepdim=True), vectors)
        read = dropout(torch.cat([vectors[:, :, None], means], 2).flatten(2), self.dropout, self.training)
        wide = dropout(functional.gelu(self.mix(read)), self.dropout, self.training)
        return self.norm(self.out(wide)) * (self.temperature * vectors.shape[-1] ** -0.5)

    @property
    def catalogue(self) -> tuple[Tensor, Tensor]:
        texts = self.items
        return texts.weight[UNKNOWN + 1 :], self.preference(texts.now[UNKNOWN + 1 :])[:, 0]  # type: ignore[index, operator]
