"""The raw events, and the one door through which new ones are pushed: ``store.push("events", frame)``."""

from datetime import timedelta

from entities import household
from feast import FeatureView, Field, PushSource
from feast.types import Float64, Int64, String

from zoo.stores import EventSource

raw = EventSource(name="event_log", description="Every event as it was logged")

push = PushSource(name="events", batch_source=raw)

events = FeatureView(
    name="events",
    entities=[household],
    ttl=timedelta(0),
    source=push,
    schema=[
        Field(name="item_id", dtype=Int64),
        Field(name="event_type", dtype=String),
        Field(name="event_id", dtype=String),
        Field(name="session", dtype=Int64),
        Field(name="quantity", dtype=Float64),
        Field(name="value", dtype=Float64),
        Field(name="store_id", dtype=Int64),
        Field(name="retail_discount", dtype=Float64),
        Field(name="coupon_discount", dtype=Float64),
        Field(name="coupon_line", dtype=Int64),
        Field(name="campaign_id", dtype=Int64),
    ],
)
