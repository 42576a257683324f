"""A household and a campaign: how much of what the campaign offers the household has bought."""

from entities import campaign, household
from feast import FeatureView

from zoo.events.specs import Aggregation, count, distinct, recency, total
from zoo.stores import EventSource
from zoo.stores.source import schema_of

BOUGHT = ("purchase",)

overlap = Aggregation(
    ("user_id", "campaign_id"),
    (
        *(count(f"overlap_lines_{w}", w, where=BOUGHT, via="item_id") for w in ("28d", "90d")),
        count("overlap_lines", where=BOUGHT, via="item_id"),
        *(total(f"overlap_spend_{w}", "value", w, where=BOUGHT, via="item_id") for w in ("28d", "90d")),
        distinct("overlap_products", "item_id", where=BOUGHT, via="item_id"),
        distinct("overlap_visits", "session", where=BOUGHT, via="item_id"),
        recency("overlap_recency", where=BOUGHT, via="item_id"),
        total("overlap_coupon_lines", "coupon_line", where=BOUGHT, via="item_id"),
        count("overlap_type_lines_90d", "90d", where=BOUGHT, via="items.title"),
        count("overlap_category_lines_90d", "90d", where=BOUGHT, via="items.category"),
        total("overlap_type_coupon_lines", "coupon_line", where=BOUGHT, via="items.title"),
        total("overlap_category_coupon_lines", "coupon_line", where=BOUGHT, via="items.category"),
    ),
    members="campaign_items",
)
user_campaign = FeatureView(
    name="user_campaign",
    entities=[household, campaign],
    source=EventSource(name="user_campaign", aggregation=overlap),
    schema=schema_of(overlap),
    description="Overlap of a campaign's products with a household's purchases",
)
