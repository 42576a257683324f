"""The parameters of the models: how much an event counts, which events are put together, and how firmly."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    event_weights: dict[str, NonNegativeFloat] = Field(
        {}, description="How much an event of each type counts; types not named count 1. Empty: all alike."
    )


class PopularityParams(_Params):
    half_life: float | None = Field(None, gt=0, description="Days after which an event counts half; none: all alike.")
    own: float = Field(0.0, ge=0, description="How many events of all users together one of the row's own counts as.")


class RepeatParams(_Params):
    half_life: float | None = Field(None, gt=0, description="Days after which an event counts half; none: all alike.")
    rarity: float = Field(
        1.0, ge=0, description="An item's events count its inverse document frequency to this power; 0: as often as they are."
    )


class CovisitParams(_Params):
    window: int = Field(10, ge=1, description="Events apart that two items of one history may be at most.")
    backward: float = Field(0.3, ge=0, description="Weight of the item before, beside 1 for the item after.")
    lag_power: float = Field(1.0, ge=0, description="A pair d events apart counts d ** -lag_power.")
    half_life: float | None = Field(None, gt=0, description="Days apart at which a pair counts half; none: time does not matter.")
    normalise: float = Field(0.3, ge=0, le=1, description="Scores are divided by the item's popularity to this power.")
    neighbours: int = Field(500, ge=0, description="Strongest followers that are kept of each item; 0: all.")
    length: int = Field(20, ge=1, description="Newest events of a row that vote.")
    recency_power: float = Field(1.0, ge=0, description="The r-th newest event votes with weight r ** -recency_power.")


class ItemKNNParams(_Params):
    shrink: float = Field(50.0, ge=0, description="Added to the denominator of the cosine: pairs seen rarely count less.")
    neighbours: int = Field(200, ge=0, description="Most similar items that are kept of each item; 0: all.")
    fade: float | None = Field(20.0, gt=0, description="Events after which a row's event votes half; none: all vote alike.")


class _LinearParams(_Params):
    regularisation: float = Field(300.0, gt=0, description="Ridge penalty, in users (ease) or events (slit).")
    max_items: int = Field(
        8_000,
        ge=1,
        description="Most frequent items that are modelled, others score lowest; fitting takes 40 bytes times its square, 2.6 GB.",
    )
    fade: float | None = Field(None, gt=0, description="Events after which a row's event votes half; none: all vote alike.")


class EaseParams(_LinearParams):
    pass


class SlitParams(_LinearParams):
    window: int = Field(20, ge=1, description="Newest events that an item is predicted from.")
    fade: float | None = Field(4.0, gt=0, description="Events after which one counts half; none: all alike.")
