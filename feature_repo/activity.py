"""How much, how often and how long ago: windows over the events of households and items."""

from entities import household, product
from feast import FeatureView

from zoo.events.specs import Aggregation, count, decayed, distinct, quiet, recency, survival, tenure, total
from zoo.stores import EventSource
from zoo.stores.source import schema_of

BOUGHT = ("purchase",)
WINDOWS = ("7d", "14d", "28d", "56d", "84d", "112d")

user = Aggregation(
    ("user_id",),
    (
        *(count(f"user_lines_{w}", w, where=BOUGHT) for w in WINDOWS),
        *(count(f"user_visits_{w}", w, where=BOUGHT, step="visit") for w in WINDOWS),
        *(distinct(f"user_days_{w}", "day", w, where=BOUGHT) for w in WINDOWS),
        *(decayed(f"user_visits_half_{h}", h, where=BOUGHT, step="visit") for h in ("3d", "7d", "14d", "30d", "60d")),
        *(quiet(f"user_quiet_{w}", "14d", w, where=BOUGHT, step="visit") for w in ("56d", "112d")),
        quiet("user_quiet", "14d", where=BOUGHT, step="visit"),
        survival("user_survival", "14d", where=BOUGHT, step="visit"),
        *(total(f"user_spend_{w}", "value", w, where=BOUGHT) for w in WINDOWS),
        *(total(f"user_discounts_{w}", "retail_discount", w, where=BOUGHT) for w in ("28d", "112d")),
        *(distinct(f"user_categories_{w}", "items.category", w, where=BOUGHT) for w in ("28d", "112d")),
        *(distinct(f"user_stores_{w}", "store_id", w, where=BOUGHT) for w in ("56d",)),
        count("user_visits", where=BOUGHT, step="visit"),
        total("user_spend", "value", where=BOUGHT),
        recency("user_recency", where=BOUGHT),
        tenure("user_tenure", where=BOUGHT),
    ),
)
user_activity = FeatureView(
    name="user_activity",
    entities=[household],
    source=EventSource(name="user_activity", aggregation=user),
    schema=schema_of(user),
    description="A household's purchases over windows",
)

coupons = Aggregation(
    ("user_id",),
    (
        *(total(f"user_coupon_lines_{w}", "coupon_line", w, where=BOUGHT) for w in ("28d", "90d")),
        total("user_coupon_lines", "coupon_line", where=BOUGHT),
        total("user_coupon_discounts", "coupon_discount", where=BOUGHT),
        count("user_campaigns", where=("campaign_sent",)),
        count("user_campaigns_60d", "60d", where=("campaign_sent",)),
        recency("user_campaign_recency", where=("campaign_sent",)),
        count("user_redemptions", where=("coupon_redeemed",)),
        count("user_redemptions_90d", "90d", where=("coupon_redeemed",)),
        distinct("user_campaigns_redeemed", "campaign_id", where=("coupon_redeemed",)),
        recency("user_redemption_recency", where=("coupon_redeemed",)),
    ),
)
user_coupons = FeatureView(
    name="user_coupons",
    entities=[household],
    source=EventSource(name="user_coupons", aggregation=coupons),
    schema=schema_of(coupons),
    description="What a household did with coupons and campaigns",
)

item = Aggregation(
    ("item_id",),
    (
        *(count(f"item_lines_{w}", w, where=BOUGHT) for w in ("7d", "28d", "112d")),
        *(total(f"item_spend_{w}", "value", w, where=BOUGHT) for w in ("28d",)),
        *(distinct(f"item_users_{w}", "user_id", w, where=BOUGHT) for w in ("28d",)),
        recency("item_recency", where=BOUGHT),
    ),
)
item_activity = FeatureView(
    name="item_activity",
    entities=[product],
    source=EventSource(name="item_activity", aggregation=item),
    schema=schema_of(item),
    description="An item's sales over windows",
)
