"""A decoder-only transformer over vectors of events: blocks with causal attention, and how they know the order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.nextitem.blocks import Block
from zoo.nextitem.network import Network

if TYPE_CHECKING:
    from zoo_gpt.params import GPTParams


class CausalBlock(Block):
    """Every event sees itself and those before it. How: cosines and sines of each place where positions are rotary, else None."""

    def __init__(self, params: GPTParams) -> None:
        super().__init__(params)
        self.distance = nn.Parameter(torch.zeros(params.heads, params.max_length)) if params.positions == "relative" else None

    def look(self, q: Tensor, k: Tensor, v: Tensor, how: tuple[Tensor, Tensor] | None) -> Tensor:
        if how is not None:
            q, k = rotated(q, how), rotated(k, how)
        if self.distance is None:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        rows, _, steps, _ = q.shape
        apart = torch.arange(steps, device=q.device)[:, None] - torch.arange(steps, device=q.device)
        bias = self.distance[:, apart.clamp(min=0)].masked_fill(apart < 0, torch.finfo(q.dtype).min)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].expand(rows, -1, -1, -1))


def rotated(values: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """values (b, h, t, d) turned by cosines and sines (t, d / 2) of each place."""
    cos, sin = turn
    left, right = values.chunk(2, -1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)


class GPTNetwork(Network):
    def __init__(self, params: GPTParams, items: int, types: int) -> None:
        super().__init__(params, items, types)
        self.place = nn.Embedding(params.max_length, params.width) if params.positions == "learned" else None
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=0.02)
        self.blocks = nn.ModuleList(CausalBlock(params) for _ in range(params.layers))
        self.last = nn.LayerNorm(params.width)
        self.turning = params.positions == "rotary"
        self.half = params.width // params.heads // 2

    def states(self, vectors: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002 - padding is behind what attention may see
        if self.place is not None:
            vectors = vectors + self.place.weight[: vectors.shape[1]]
        turn = self.turn(vectors) if self.turning else None
        for block in self.blocks:
            vectors = block(vectors, turn)
        return self.last(vectors)

    def turn(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        speed = 10_000 ** -(torch.arange(self.half, device=vectors.device) / self.half)
        angle = torch.arange(vectors.shape[1], device=vectors.device)[:, None] * speed
        return angle.cos(), angle.sin()
