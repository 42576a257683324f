"""The parameters that all three models take."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from zoo.nextitem.params import NextItemParams


class ItemParams(NextItemParams):
    """For ranking targets."""

    hidden: int = Field(128, ge=1, description="Width of the recurrent state.")
    layers: int = Field(1, ge=1, le=4, description="Recurrent layers on top of each other, each but the first beside a skip.")


class RecurrentParams(BaseModel):
    """What to read, the shape of the network, and how it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    streams: tuple[str, ...] | None = Field(None, description="Patterns of the sequence columns to read; default: all.")
    scalars: bool | tuple[str, ...] = Field(True, description="Scalar columns for the head: all, none, or patterns.")
    max_length: int = Field(64, ge=1, description="Newest steps of a sequence that are read.")
    vocabulary: int = Field(5_000, ge=0, description="Most frequent codes of a column that get an embedding of their own.")
    min_count: int = Field(5, ge=1, description="Codes seen fewer times than this in training share the UNKNOWN embedding.")

    hidden: int = Field(32, ge=1, description="Width of the recurrent state and of the head.")
    layers: int = Field(1, ge=1, le=4, description="Recurrent layers on top of each other.")
    embedding: int = Field(16, ge=1, description="Largest embedding width; small dictionaries get less.")
    pooling: Literal["last", "mean_last", "attention"] = Field(
        "last", description="The state at the newest step, alone or beside the mean or an attention over all steps."
    )
    dropout: float = Field(0.2, ge=0, lt=1)

    epochs: int = Field(6, ge=1, description="Most passes over the training rows.")
    patience: int = Field(2, ge=1, description="Passes without a better validation loss before training stops.")
    validation: float = Field(0.15, ge=0, le=0.5, description="Share of the newest rows held out for early stopping; 0: none.")
    refit: bool = Field(False, description="Train again on all rows for the best number of passes.")
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(3e-3, gt=0, description="Peak of the schedule (linear warm-up, cosine decay).")
    weight_decay: float = Field(1e-3, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weight: Literal["balanced"] | None = Field(
        None, description="'balanced' weighs classes alike; scores are then no longer calibrated."
    )
    negatives: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the rows of the most frequent class that are learnt from; scores are corrected for it.",
    )
    focal: float = Field(
        0.0,
        ge=0,
        le=5,
        description="Gamma of the focal loss, which passes over easy rows; scores are corrected for it. 0: log-loss.",
    )
    seeds: int = Field(1, ge=1, le=32, description="Networks whose predictions are averaged.")
    ranking: ItemParams = Field(
        default_factory=ItemParams, description="Everything about a ranking target, where nothing above is used."
    )
