"""Decoder-only transformer blocks (pre-norm, GELU, fused causal attention) over vectors of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.nextitem.network import Network

if TYPE_CHECKING:
    from zoo_gpt.params import GPTParams


class Block(nn.Module):
    def __init__(self, params: GPTParams) -> None:
        super().__init__()
        width, inner = params.width, params.feed_forward * params.width
        self.heads, self.dropout, self.positions = params.heads, params.dropout, params.positions
        self.before_attention, self.before_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.distance = nn.Parameter(torch.zeros(params.heads, params.max_length)) if params.positions == "relative" else None
        for linear in (self.attend, self.mix, self.widen, self.narrow):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, state: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        rows, steps, width = state.shape
        q, k, v = self.attend(self.before_attention(state)).view(rows, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if turn is not None:
            q, k = rotated(q, turn), rotated(k, turn)
        if self.distance is None:
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            apart = torch.arange(steps, device=state.device)[:, None] - torch.arange(steps, device=state.device)
            bias = self.distance[:, apart.clamp(min=0)].masked_fill(apart < 0, torch.finfo(state.dtype).min)
            seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].expand(rows, -1, -1, -1))
        state = state + self.drop(self.mix(seen.transpose(1, 2).reshape(rows, steps, width)))
        inner = functional.gelu(self.widen(self.before_inner(state)), approximate="tanh")
        return state + self.drop(self.narrow(inner))

    def drop(self, values: Tensor) -> Tensor:
        return functional.dropout(values, self.dropout, self.training)


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
        self.blocks = nn.ModuleList(Block(params) for _ in range(params.layers))
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
