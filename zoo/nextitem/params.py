"""Parameters of next-item training that every network takes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator


class NextItemParams(BaseModel):
    """What is read, how the loss is made, how long is trained. A plugin's own parameters inherit from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: int = Field(64, ge=1, description="Width of item embeddings and of the states that score them.")
    max_length: int = Field(200, ge=1, description="Events of a window; a longer history is trained on in several windows.")
    event_types: bool = Field(False, description="Add an embedding of each event's type, where the batch has event_types.")
    gaps: bool = Field(False, description="Add an embedding of the time since the event before, where the batch has gaps.")
    embedding_dropout: float = Field(0.2, ge=0, lt=1)
    dropout: float = Field(0.2, ge=0, lt=1)

    loss: Literal["auto", "softmax", "sampled", "gbce"] = Field(
        "auto",
        description="softmax: over the whole catalogue. sampled: over the target and `negatives` items, corrected for their "
        "frequency (logQ). gbce: gSASRec's calibrated binary loss over uniform negatives. auto: softmax up to 10,000 items.",
    )
    negatives: int = Field(512, ge=1, description="Sampled items, shared by the positions of a batch.")
    calibration: float = Field(0.75, ge=0, le=1, description="gSASRec's t: 0 is plain binary cross-entropy, 1 wholly calibrated.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over the catalogue; not with gbce.")
    item_weight: float = Field(0.0, ge=0, le=1, description="A position weighs its target's count to minus this power.")
    popularity_prior: float = Field(
        0.0, ge=0, le=1, description="Share of log-popularity added to logits in training only, and so taken out of the scores."
    )
    event_weights: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="What positions weigh by the next event's type; types not named weigh 1."
    )

    epochs: int = Field(40, ge=1, description="Most passes over the training rows.")
    patience: int = Field(8, ge=1, description="Passes without a better NDCG@10 on the held-out items before training stops.")
    validation: float = Field(
        0.1, ge=0, le=0.5, description="Share of rows whose target is held out for early stopping; 0: none, all epochs."
    )
    tokens: int = Field(6_400, ge=1, description="Events of a batch, padding included.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak of the schedule (linear warm-up, cosine decay).")
    weight_decay: float = Field(0.0, ge=0)
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="What the factors of matrix products are rounded to in training; sums, weights and scores stay float32. bfloat16 is "
        "quicker on processors that multiply it (avx512_bf16, amx_bf16) and no different on others.",
    )
    device: str = Field(
        "auto", description="auto: a GPU where torch sees one, else the processor; or a torch device, such as cpu or cuda:1."
    )


class TransformerParams(NextItemParams):
    """For networks of transformer blocks."""

    layers: int = Field(2, ge=1, le=24, description="Blocks of attention and feed-forward network.")
    heads: int = Field(2, ge=1, description="Attention heads; they divide the width.")
    feed_forward: int = Field(4, ge=1, description="Width of the feed-forward network in widths of the state.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; change one of them")
        return self
