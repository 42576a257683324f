"""What is trained: the encoder's top layers over frozen states (or a pooling, where none is trained) and a head that also sees numbers.

The last layer is computed for the first token only: a row costs a fraction of a whole layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from zoo_bert.encoder import Encoder

if TYPE_CHECKING:
    from zoo_bert.params import BertParams

PRETRAINED = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "joined": "attention.output.dense",
    "joined_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}
"""Parts of a layer -> their names in transformers."""

HEADS = 4
"""Attention heads of the pooling over whole phrases."""


@dataclass(frozen=True)
class Rows:
    """A batch of b rows of at most t states. states: float16 (m, d), the distinct ones; where: int64 (b, t) into it, -1 is padding.

    gaps: float16 (g, d), the distinct gap phrases; gap: int64 (b, t) into it, -1 without. numbers: float32 (b, w).
    """

    states: Tensor
    where: Tensor
    gaps: Tensor
    gap: Tensor
    numbers: Tensor


def drop(x: Tensor, rate: float, noise: Generator | None) -> Tensor:
    """Dropout from a generator of its own, so that the global one stays as it is; none without a generator."""
    if noise is None or rate == 0:
        return x
    return x * torch.empty(x.shape).bernoulli_(1 - rate, generator=noise) / (1 - rate)


def attention(
    query: Tensor, key: Tensor, mask: Tensor, rate: float, noise: Generator | None, scale: float | None = None
) -> Tensor:
    """Shares (b, h, q, t) of query (b, h, q, e) over key (b, h, t, e), mask bool (b, t)."""
    scores = query @ key.transpose(2, 3) * (scale or query.shape[-1] ** -0.5)
    return drop(scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1), rate, noise)


class Layer(nn.Module):
    """One layer of BERT (Devlin et al. 2019): attention, then feed-forward, each added and normalised."""

    def __init__(self, config: Any, dropout: float) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        size, wide, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.heads, self.dropout, self.activation = config.num_attention_heads, dropout, ACT2FN[config.hidden_act]
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.joined, self.joined_norm = nn.Linear(size, size), nn.LayerNorm(size, eps)
        self.widen, self.narrow, self.norm = nn.Linear(size, wide), nn.Linear(wide, size), nn.LayerNorm(size, eps)

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take a pretrained layer's weights, named as transformers names them."""
        self.load_state_dict({
            f"{ours}.{part}": weights[f"{theirs}.{part}"] for ours, theirs in PRETRAINED.items() for part in ("weight", "bias")
        })  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor, noise: Generator | None) -> Tensor:
        """Every state attends to every state: x (b, t, d), mask (b, t) -> (b, t, d)."""
        query, key, value = (_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        seen = attention(query, key, mask, self.dropout, noise) @ value
        return self._after(x, seen.transpose(1, 2).flatten(2), noise)

    def first(self, x: Tensor, mask: Tensor, noise: Generator | None) -> Tensor:
        """``forward(x)[:, 0]`` (b, d) at a fraction of the work.

        The only query is carried to the states, and their shares are summed before the value projection, so that neither keys nor
        values are computed: q (K x) = (q K) x, and the sum of s V x is V times the sum of s x.
        """
        query = self.query(x[:, 0]).unflatten(-1, (self.heads, -1))
        key, value = (part.weight.unflatten(0, (self.heads, -1)) for part in (self.key, self.value))
        carried = torch.einsum("bhe,hed->bhd", query, key).unsqueeze(1)
        shares = attention(carried, x.unsqueeze(1), mask, self.dropout, noise, scale=query.shape[-1] ** -0.5)[:, 0]
        seen = torch.einsum("bhd,hed->bhe", shares @ x, value).flatten(1) + _repeated(shares.sum(-1), self.value.bias)
        return self._after(x[:, 0], seen, noise)

    def _after(self, x: Tensor, seen: Tensor, noise: Generator | None) -> Tensor:
        x = self.joined_norm(x + drop(self.joined(seen), self.dropout, noise))
        return self.norm(x + drop(self.narrow(self.activation(self.widen(x))), self.dropout, noise))


class TopLayers(nn.Module):
    """The trained layers over a row's token states; the first token's last state is the row's text.

    A state read phrase by phrase does not know its place: a position and what its gap phrase says are added, both from zero.
    """

    def __init__(self, config: Any, layers: int, longest: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(layers))
        self.place = nn.Parameter(torch.zeros(longest, config.hidden_size))
        self.when = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.width = config.hidden_size

    def forward(self, rows: Rows, noise: Generator | None) -> Tensor:
        mask = rows.where >= 0
        x = looked(rows.states.float(), rows.where) + self.place[: mask.shape[1]]
        x = x + looked(self.when(rows.gaps.float()), rows.gap)
        lower, last = self.layers[:-1], self.layers[-1]
        for layer in lower:
            x = layer(x, mask, noise)
        return last.first(x, mask, noise)  # type: ignore[operator]


class Pooling(nn.Module):
    """Over a row's phrases, each one frozen vector: learned queries attend to what a phrase says, when, and its place."""

    def __init__(self, size: int, longest: int, dropout: float, width: int = 64) -> None:
        super().__init__()
        self.what, self.when = nn.Linear(size, width), nn.Linear(size, width, bias=False)
        self.place = nn.Parameter(torch.zeros(longest, width))
        self.both = nn.Linear(width, 2 * width)
        self.query = nn.Parameter(torch.zeros(HEADS, 1, width // HEADS))
        self.width, self.dropout = width, dropout

    def forward(self, rows: Rows, noise: Generator | None) -> Tensor:
        x = looked(self.what(rows.states.float()), rows.where) + looked(self.when(rows.gaps.float()), rows.gap)
        x = functional.gelu(x + self.place[: rows.where.shape[1]])
        key, value = (_heads(part, HEADS) for part in self.both(drop(x, self.dropout, noise)).chunk(2, -1))
        return (attention(self.query, key, rows.where >= 0, self.dropout, noise) @ value).flatten(1)


class Network(nn.Module):
    """Logits (b, outputs) of rows."""

    def __init__(self, text: TopLayers | Pooling, numbers: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.text = text
        self.hidden, self.out = nn.Linear(text.width + numbers, hidden), nn.Linear(hidden, outputs)
        self.dropout = dropout

    def forward(self, rows: Rows, noise: Generator | None = None) -> Tensor:
        text = drop(self.text(rows, noise), self.dropout, noise)
        x = functional.gelu(self.hidden(torch.cat([text, rows.numbers], 1)))
        return self.out(drop(x, self.dropout, noise))


def blank(encoder: Encoder, params: BertParams, longest: int, numbers: int, outputs: int) -> Network:
    """A network of the right shape with arbitrary weights, made without touching the global random state."""
    layers, dropout = params.trained_layers, params.dropout
    with torch.random.fork_rng(devices=[]):
        text = TopLayers(encoder.config, layers, longest, dropout) if layers else Pooling(encoder.size, longest, dropout)
        return Network(text, numbers, params.hidden, outputs, dropout)


def initialise(network: Network, encoder: Encoder, bias: Tensor, noise: Generator) -> None:
    """Pretrained weights for the top layers, random ones elsewhere, and ``bias`` (outputs,), the base rate, as the first answer."""
    for name, weight in network.named_parameters():
        with torch.no_grad():
            if name.endswith("bias") or name.endswith("place"):
                weight.zero_()
            else:
                weight.normal_(0.0, max(weight.shape[-1], 1) ** -0.5, generator=noise)
    if isinstance(network.text, TopLayers):
        nn.init.zeros_(network.text.when.weight)
        for layer, weights in zip(network.text.layers, encoder.top, strict=True):
            layer.adopt(weights)  # type: ignore[operator]
    with torch.no_grad():
        network.out.weight.mul_(0.1)
        network.out.bias.copy_(bias)


def looked(table: Tensor, where: Tensor) -> Tensor:
    """Rows of ``table`` (m, d) at ``where`` (b, t), zeros where that is -1."""
    padded = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return functional.embedding(where.remainder(len(padded)), padded)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(b, t, h * e) -> (b, h, t, e)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _repeated(shares: Tensor, bias: Tensor) -> Tensor:
    """Each head's bias times its share (b, h): dropout makes the shares sum to something else than one."""
    return (shares.unsqueeze(-1) * bias.unflatten(0, (shares.shape[1], -1))).flatten(1)
