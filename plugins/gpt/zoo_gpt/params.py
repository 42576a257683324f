"""The parameters of ``gpt``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from zoo.nextitem.params import NextItemParams


class GPTParams(NextItemParams):
    layers: int = Field(2, ge=1, le=24, description="Blocks of attention and feed-forward network.")
    heads: int = Field(2, ge=1, description="Attention heads; they divide the width.")
    feed_forward: int = Field(4, ge=1, description="Width of the feed-forward network in widths of the state.")
    positions: Literal["learned", "rotary", "relative", "none"] = Field(
        "learned",
        description="How a block knows the order: a vector a place, rotated queries and keys (Su et al. 2021), or a bias learnt "
        "for each distance (slower: it needs the matrix of attention), or only by what causal attention sees.",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> GPTParams:
        if self.width % self.heads or (self.positions == "rotary" and self.width // self.heads % 2):
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads of an even width; change one of them")
        return self
