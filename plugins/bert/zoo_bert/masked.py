"""Masked items (BERT4Rec: Sun et al. 2019): a bidirectional transformer tells hidden events of a history from those on both sides.

An event of an UNKNOWN item is one whose item is hidden, so that code serves as the mask. The next item is told by a mask at the end. In
scoring nothing stands after it, so in a share of the batches hidden events are told from what stands before them alone (UniLM: Dong et
al. 2019, "Unified language model pre-training", whose objectives take turns by batch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.nextitem.blocks import Block
from zoo.nextitem.network import Network, Tokens
from zoo.plugin import PADDING, UNKNOWN

if TYPE_CHECKING:
    from zoo_bert.params import ItemRanking


class MaskedNetwork(Network):
    """Places are counted from the end, where the next item is asked for."""

    def __init__(self, params: ItemRanking, items: int, types: int) -> None:
        super().__init__(params, items, types)
        self.masked, self.newest, self.leftward = params.masked, params.newest, params.leftward
        self.place = nn.Embedding(params.max_length + 1, params.width)
        nn.init.normal_(self.place.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(params) for _ in range(params.layers))
        self.last, self.turn = nn.LayerNorm(params.width), nn.Linear(params.width, params.width)
        self.told = nn.LayerNorm(params.width)
        nn.init.normal_(self.turn.weight, std=params.width**-0.5)
        nn.init.zeros_(self.turn.bias)

    def pose(self, window: Tokens) -> tuple[Tokens, Tensor]:
        """A share ``masked`` of the events is hidden; in a share ``newest`` of the windows only the newest one, as in scoring."""
        place = torch.arange(window.items.shape[1], device=window.items.device)
        end = place == window.length[:, None] - 1
        hidden = (torch.rand(window.items.shape, device=place.device) < self.masked) & (place < window.length[:, None])
        hidden = torch.where(torch.rand(len(hidden), 1, device=place.device) < self.newest, end, hidden)
        hidden &= window.items > UNKNOWN
        return _masked(window, hidden), torch.where(hidden, place, -1)

    def ask(self, history: Tokens) -> Tokens:
        """The history with a hidden event after it."""
        room = torch.zeros_like(history.length)[:, None]
        longer = (torch.cat([each, room], 1) for each in (history.items, history.types, history.gaps))
        wide = Tokens(*longer, history.length + 1)
        place = torch.arange(wide.items.shape[1], device=room.device)
        return _masked(wide, place == history.length[:, None])

    def states(self, vectors: Tensor, length: Tensor) -> Tensor:
        place = length[:, None] - 1 - torch.arange(vectors.shape[1], device=length.device)
        here = place >= 0
        vectors = vectors + self.place(place.clamp(min=0))
        if self.leftward and (not self.training or bool(torch.rand(()) < self.leftward)):
            seen = place[0, :, None] <= place[0]  # padding stands behind what may be seen
        else:
            seen = None if bool(here.all()) else here[:, None, None]
        for block in self.blocks:
            vectors = block(vectors, seen)
        told: Tensor = self.told(functional.gelu(self.turn(self.last(vectors))))
        return told


def _masked(tokens: Tokens, hidden: Tensor) -> Tokens:
    return Tokens(
        tokens.items.masked_fill(hidden, UNKNOWN),
        tokens.types.masked_fill(hidden, PADDING),
        tokens.gaps.masked_fill(hidden, PADDING),
        tokens.length,
    )
