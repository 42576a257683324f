"""What is known of households, products and campaigns apart from events."""

from entities import campaign, household, product
from feast import FeatureView, Field
from feast.types import Float64, String

from zoo.stores import TableSource

HOUSEHOLD = ("age", "income", "home", "married", "size", "composition", "kids")
PRODUCT = ("category", "department", "brand")
CAMPAIGN = ("campaign_type", "campaign_days", "campaign_products", "campaign_coupons")

user_profile = FeatureView(
    name="user_profile",
    entities=[household],
    source=TableSource(name="households", table="users", columns=HOUSEHOLD),
    schema=[Field(name=name, dtype=String) for name in HOUSEHOLD],
    description="Demographics, known for a third of the households",
)
item_profile = FeatureView(
    name="item_profile",
    entities=[product],
    source=TableSource(name="products", table="items", columns=PRODUCT),
    schema=[Field(name=name, dtype=String) for name in PRODUCT],
    description="What a product is",
)
campaign_profile = FeatureView(
    name="campaign_profile",
    entities=[campaign],
    source=TableSource(name="campaigns", table="campaigns", columns=CAMPAIGN),
    schema=[Field(name=name, dtype=String if name == "campaign_type" else Float64) for name in CAMPAIGN],
    description="What a campaign offers",
)
