"""A transformer block: attention, then feed-forward, each on normalised states and added to them (pre-norm, GELU, fused attention)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from zoo.nextitem.dropout import dropout
from zoo.nextitem.params import TransformerParams


class Block(nn.Module):
    """A subclass may say in ``look`` how queries meet keys; by default every event sees those that a mask leaves."""

    def __init__(self, params: TransformerParams) -> None:
        super().__init__()
        width, inner = params.width, params.feed_forward * params.width
        self.heads, self.dropout = params.heads, params.dropout
        self.before_attention, self.before_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        for linear in (self.attend, self.mix, self.widen, self.narrow):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def look(self, q: Tensor, k: Tensor, v: Tensor, how: Any) -> Tensor:
        """(b, h, t, d) of queries, keys and values of that shape. how: what ``forward`` was given; here bool, which keys are seen."""
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=how)

    def forward(self, state: Tensor, how: Any = None) -> Tensor:
        """(b, t, width) of (b, t, width)."""
        rows, steps, width = state.shape
        q, k, v = self.attend(self.before_attention(state)).view(rows, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = self.look(q, k, v, how)
        state = state + self._drop(self.mix(seen.transpose(1, 2).reshape(rows, steps, width)))
        inner = functional.gelu(self.widen(self.before_inner(state)), approximate="tanh")
        return state + self._drop(self.narrow(inner))

    def _drop(self, values: Tensor) -> Tensor:
        return dropout(values, self.dropout, self.training)
