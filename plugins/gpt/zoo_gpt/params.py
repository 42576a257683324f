"""The parameters of ``gpt``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from zoo.nextitem.params import TransformerParams


class GPTParams(TransformerParams):
    positions: Literal["learned", "rotary", "relative", "none"] = Field(
        "learned",
        description="How a block knows the order: a vector a place, rotated queries and keys (Su et al. 2021), or a bias learnt "
        "for each distance (slower: it needs the matrix of attention), or only by what causal attention sees.",
    )

    @model_validator(mode="after")
    def _heads_turn(self) -> Self:
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(
                f"rotary positions turn pairs, and {self.width} in {self.heads} heads gives an odd width; change one of them"
            )
        return self
