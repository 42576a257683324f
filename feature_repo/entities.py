"""Who and what features are about."""

from feast import Entity, ValueType

household = Entity(
    name="household", join_keys=["user_id"], value_type=ValueType.INT64, description="A household of the loyalty programme"
)
product = Entity(name="product", join_keys=["item_id"], value_type=ValueType.INT64, description="A product of the shop")
campaign = Entity(name="campaign", join_keys=["campaign_id"], value_type=ValueType.INT64, description="A coupon campaign")
