"""The part of a next-item network that all have: events as vectors, and states as scores of items by tied embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.nextitem.dropout import dropout
from zoo.nextitem.params import NextItemParams
from zoo.nextitem.sequences import GAPS
from zoo.plugin import UNKNOWN


@dataclass(frozen=True)
class Tokens:
    """Events of b rows, oldest first, padded at the end: items, types, gaps int64 (b, t); length int64 (b,)."""

    items: Tensor
    types: Tensor
    gaps: Tensor
    length: Tensor


class Network(nn.Module, ABC):
    """Embeds events, asks the subclass for ``states``, and scores items by their embeddings.

    items: codes of the catalogue, PADDING and UNKNOWN among them. types: codes of event types.
    """

    def __init__(self, params: NextItemParams, items: int, types: int) -> None:
        super().__init__()
        width = params.width
        self.embedding_dropout = params.embedding_dropout
        self.items = nn.Embedding(items, width)
        self.types = nn.Embedding(types, width) if params.event_types else None
        self.gaps = nn.Embedding(GAPS, width) if params.gaps else None
        self.bias = nn.Parameter(torch.zeros(items))
        nn.init.normal_(self.items.weight, std=width**-0.5)
        for extra in (self.types, self.gaps):
            if extra is not None:
                nn.init.normal_(extra.weight, std=0.02)

    @abstractmethod
    def states(self, vectors: Tensor, length: Tensor) -> Tensor:
        """(b, t, width) of vectors (b, t, width), the events of rows of ``length`` (b,), padded at the end."""

    def pose(self, window: Tokens) -> tuple[Tokens, Tensor]:
        """What is read of a window in training, and int64 (b, t): the place in the window of the event to be told from each state, or -1.

        By default every event is told from those before it, so ``states`` must not look ahead.
        """
        read = Tokens(window.items[:, :-1], window.types[:, :-1], window.gaps[:, :-1], window.length - 1)
        place = torch.arange(1, window.items.shape[1], device=window.items.device)
        return read, torch.where(place < window.length[:, None], place, -1)

    def ask(self, history: Tokens) -> Tokens:
        """What is read to score the next item; the state of its last event does."""
        return history

    def paces(self) -> list[tuple[float, list[nn.Parameter]]]:
        """All parameters in groups, each with the share of the learning rate at which it is trained."""
        return [(1.0, list(self.parameters()))]

    def settle(self) -> None:
        """Called after each pass, before the network is judged and kept: what only follows from the weights is made anew."""

    def encode(self, tokens: Tokens) -> Tensor:
        """float32 (b, t, width)."""
        return self.states(self.vectors(tokens), tokens.length)

    def vectors(self, tokens: Tokens) -> Tensor:
        """float32 (b, t, width): the sums of each event's embeddings, some of them dropped in training."""
        vectors: Tensor = self.items(tokens.items)
        if self.types is not None:
            vectors = vectors + self.types(tokens.types)
        if self.gaps is not None:
            vectors = vectors + self.gaps(tokens.gaps)
        return dropout(vectors, self.embedding_dropout, self.training)

    @property
    def catalogue(self) -> tuple[Tensor, Tensor]:
        """Weight (m, width) and bias (m,) of the items that can be recommended: column c is of code ``UNKNOWN + 1 + c``."""
        return self.items.weight[UNKNOWN + 1 :], self.bias[UNKNOWN + 1 :]
