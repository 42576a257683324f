"""The network: one recurrent encoder a stream, their pooled states beside the scalars, a small head.

Randomness comes from a passed generator only (``noise``; None means no dropout), so modules have no training mode,
are safe to share between threads, and leave torch's global generator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from zoo.plugin import UNKNOWN, Array, TargetKind
from zoo_recurrent.cells import states
from zoo_recurrent.columns import Columns
from zoo_recurrent.inputs import Inputs, Layout, Stream
from zoo_recurrent.params import RecurrentParams

CODE_DROPOUT = 0.02
"""Share of codes read as UNKNOWN in training, so that its embedding means something."""

PREDICT_ROWS = 1024
"""Sequences encoded at once in prediction."""

Cell = Literal["rnn", "lstm", "gru"]


class Bare:
    """Leaves weights unset (for ``initialise`` or a state dict): torch's own rule draws from the global generator."""

    def reset_parameters(self) -> None:
        pass


class Linear(Bare, nn.Linear):
    pass


class Embedding(Bare, nn.Embedding):
    pass


class RNN(Bare, nn.RNN):
    pass


class LSTM(Bare, nn.LSTM):
    pass


class GRU(Bare, nn.GRU):
    pass


CELLS: dict[Cell, type[nn.RNNBase]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


@dataclass(frozen=True)
class Sequences:
    """A Stream as tensors; the row after the last step is zeros and stands for padding."""

    numbers: Tensor
    codes: Tensor
    first: Tensor
    length: Tensor
    row_of: Tensor

    @classmethod
    def of(cls, stream: Stream) -> Sequences:
        numbers, codes = (np.pad(matrix, ((0, 1), (0, 0))) for matrix in (stream.numbers, stream.codes))
        plain = (numbers, codes, stream.first, stream.length, stream.row_of.astype(np.int64))
        return cls(*(torch.from_numpy(array) for array in plain))

    def padded(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers (t, b, f) and codes (t, b, c) of these sequences, oldest first, and lengths (b,).

        Padding is at the end: what runs forward in time cannot see it before a row's last real step.
        """
        length = self.length[rows]
        step = torch.arange(max([1, *length.tolist()]))[:, None]
        index = torch.where(step < length, self.first[rows] + step, len(self.numbers) - 1)
        return self.numbers[index], self.codes[index], length


@dataclass(frozen=True)
class Tensors:
    """Inputs as tensors."""

    streams: tuple[Sequences, ...]
    numbers: Tensor
    codes: Tensor

    @classmethod
    def of(cls, inputs: Inputs) -> Tensors:
        streams = tuple(Sequences.of(stream) for stream in inputs.streams)
        return cls(streams, torch.from_numpy(inputs.numbers), torch.from_numpy(inputs.codes))

    def steps(self) -> Tensor:
        """int64 (n,): steps of all streams, the cost of a row."""
        total = torch.zeros(len(self.numbers), dtype=torch.int64)
        for stream in self.streams:
            total += stream.length[stream.row_of]
        return total


def drop(values: Tensor, share: float, noise: Generator | None) -> Tensor:
    """Inverted dropout; unchanged without ``noise``."""
    if noise is None or share == 0:
        return values
    return values * torch.empty_like(values).bernoulli_(1 - share, generator=noise).div_(1 - share)


class Mixer(nn.Module):
    """Numbers (..., f) and codes (..., c) side by side as one vector (..., width), codes as embeddings."""

    def __init__(self, columns: Columns, most: int) -> None:
        super().__init__()
        sizes = [(code.rows, min(most, ceil(1.6 * code.rows**0.56))) for code in columns.codes]
        self.tables = nn.ModuleList(Embedding(rows, width) for rows, width in sizes)
        self.numbers = columns.width
        self.width = columns.width + sum(width for _, width in sizes)

    def forward(self, numbers: Tensor, codes: Tensor, noise: Generator | None) -> Tensor:
        if noise is not None and codes.shape[-1]:
            hidden = torch.empty(codes.shape).bernoulli_(CODE_DROPOUT, generator=noise).bool()
            codes = codes.masked_fill(hidden & (codes > UNKNOWN), UNKNOWN)
        return torch.cat([numbers, *(table(codes[..., i]) for i, table in enumerate(self.tables))], -1)


class Encoder(nn.Module):
    """Sequences to one vector each; an empty sequence gets a learned vector."""

    def __init__(self, cell: Cell, columns: Columns, params: RecurrentParams) -> None:
        super().__init__()
        hidden = params.hidden
        self.pooling, self.dropout = params.pooling, params.dropout
        self.mixer = Mixer(columns, params.embedding)
        self.project = Linear(self.mixer.width, hidden)
        self.cells = nn.ModuleList(CELLS[cell](hidden, hidden) for _ in range(params.layers))
        self.width = hidden if self.pooling == "last" else 2 * hidden
        self.attention = Linear(hidden, 1) if self.pooling == "attention" else None
        self.empty = nn.Parameter(torch.empty(self.width))

    def forward(self, numbers: Tensor, codes: Tensor, length: Tensor, noise: Generator | None) -> Tensor:
        """numbers (t, b, f), codes (t, b, c), length (b,) -> (b, width)."""
        told = torch.relu(self.project(self.mixer(numbers, codes, noise)))
        for i, cell in enumerate(self.cells):
            told = states(cell, drop(told, self.dropout, noise) if i else told)
        pooled = told[(length - 1).clamp(min=0), torch.arange(len(length))]
        if self.pooling != "last":
            real = (torch.arange(len(told))[:, None] < length)[..., None]
            if self.attention is None:
                share = real / length.clamp(min=1)[:, None]
            else:
                # the most negative float rather than -inf: an empty row's softmax would be NaN, and so would its gradient
                share = torch.softmax(self.attention(told).masked_fill(~real, torch.finfo(torch.float32).min), 0)
            pooled = torch.cat([pooled, (told * share).sum(0)], -1)
        return torch.where(length[:, None] > 0, pooled, self.empty)


class Network(nn.Module):
    """One encoder a stream, and a head of one hidden layer over their vectors and the scalars; returns logits (n, k)."""

    def __init__(self, cell: Cell, layout: Layout, params: RecurrentParams, outputs: int) -> None:
        super().__init__()
        self.dropout = params.dropout
        self.encoders = nn.ModuleList(Encoder(cell, columns, params) for columns in layout.streams)
        self.mixer = Mixer(layout.scalars, params.embedding)
        self.inner = Linear(self.mixer.width + sum(encoder.width for encoder in self.encoders), params.hidden)
        self.output = Linear(params.hidden, outputs)

    def head(self, pooled: list[Tensor], numbers: Tensor, codes: Tensor, noise: Generator | None) -> Tensor:
        parts = [self.mixer(numbers, codes, noise), *(drop(vector, self.dropout, noise) for vector in pooled)]
        return self.output(drop(torch.relu(self.inner(torch.cat(parts, -1))), self.dropout, noise))

    def forward(self, inputs: Tensors, rows: Tensor, noise: Generator | None) -> Tensor:
        """Logits of these rows (b,); a sequence that several of them share is encoded once."""
        pooled = []
        for encoder, stream in zip(self.encoders, inputs.streams, strict=True):
            used, back = torch.unique(stream.row_of[rows], return_inverse=True)
            pooled.append(encoder(*stream.padded(used), noise)[back])
        return self.head(pooled, inputs.numbers[rows], inputs.codes[rows], noise)

    def predict(self, inputs: Tensors) -> Tensor:
        """Logits of every row, without gradients: sequences of like length are encoded together, each once."""
        with torch.inference_mode():
            pooled = []
            for encoder, stream in zip(self.encoders, inputs.streams, strict=True):
                vectors = torch.empty(len(stream.length), encoder.width)
                for some in torch.argsort(stream.length, stable=True).split(PREDICT_ROWS):
                    vectors[some] = encoder(*stream.padded(some), None)
                pooled.append(vectors[stream.row_of])
            return self.head(pooled, inputs.numbers, inputs.codes, None)


def scores_of(networks: Sequence[Network], inputs: Inputs, kind: TargetKind) -> Array:
    """float32 (networks, n, k): what each says of every row: probabilities, or of a value the logits themselves."""
    tensors = Tensors.of(inputs)
    with torch.inference_mode():
        logits = torch.stack([network.predict(tensors) for network in networks])
        if kind == "value":
            return np.asarray(logits.numpy())
        return np.asarray((torch.softmax(logits, -1) if kind == "multiclass" else torch.sigmoid(logits)).numpy())


def initialise(network: Network, bias: Tensor, noise: Generator) -> None:
    """Uniform weights within 1 / sqrt(fan in), torch's own rule; the output starts at ``bias`` (k,), the base rate."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.5, generator=noise)
            elif isinstance(module, nn.Linear | nn.RNNBase):
                width = module.in_features if isinstance(module, nn.Linear) else module.hidden_size
                bound = max(1, width) ** -0.5
                for weights in module.parameters():
                    weights.uniform_(-bound, bound, generator=noise)
            elif isinstance(module, Encoder):
                module.empty.zero_()
        network.output.bias.copy_(bias)
