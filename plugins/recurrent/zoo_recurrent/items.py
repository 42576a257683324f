"""Recurrent networks of the next item: one or more layers over item vectors, and a projection back to the items' width."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo.nextitem.dropout import dropout
from zoo.nextitem.network import Network
from zoo_recurrent.cells import states
from zoo_recurrent.params import ItemParams

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class ItemNetwork(Network):
    """Subclasses name their cell."""

    cell: Literal["rnn", "lstm", "gru"]

    def __init__(self, params: ItemParams, items: int, types: int) -> None:
        super().__init__(params, items, types)
        self.dropout = params.dropout
        wide = [params.width, *[params.hidden] * (params.layers - 1)]
        self.cells = nn.ModuleList(CELLS[self.cell](width, params.hidden) for width in wide)
        self.project, self.last = nn.Linear(params.hidden, params.width), nn.LayerNorm(params.width)
        for cell in self.cells:
            for name, weight in cell.named_parameters():
                if "weight_hh" in name:
                    for gate in weight.data.chunk(len(weight) // params.hidden):
                        nn.init.orthogonal_(gate)

    def states(self, vectors: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002 - padding comes after what it could reach
        vectors = vectors.transpose(0, 1)
        for number, cell in enumerate(self.cells):
            told = dropout(states(cell, vectors), self.dropout, self.training)
            vectors = told + vectors if number else told
        return self.last(self.project(vectors.transpose(0, 1)))


class RNNItems(ItemNetwork):
    cell = "rnn"


class LSTMItems(ItemNetwork):
    cell = "lstm"


class GRUItems(ItemNetwork):
    cell = "gru"


NETWORKS: dict[str, type[ItemNetwork]] = {network.cell: network for network in (RNNItems, LSTMItems, GRUItems)}
