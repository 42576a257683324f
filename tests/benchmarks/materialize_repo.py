"""The Feast repository that F6 materializes: two aligned lists of a user's last 50 events of any kind, and twelve windows."""

from feast import Entity, FeatureView, ValueType

from zoo.events.specs import Aggregation, count, distinct, last_n, mean, recency, total
from zoo.stores import EventSource
from zoo.stores.source import schema_of

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
lists = Aggregation(("user_id",), (last_n("items", "item_id", 50), last_n("values", "price", 50)))
sequence = FeatureView(
    name="sequence", entities=[user], source=EventSource(name="lists", aggregation=lists), schema=schema_of(lists)
)
twelve = Aggregation(
    ("user_id",),
    (
        *(count(f"count_{w}", w) for w in ("1d", "7d", "28d", "90d")),
        *(total(f"spend_{w}", "value", w) for w in ("7d", "28d", "90d")),
        mean("price_28d", "price", "28d"),
        *(distinct(f"days_{w}", "day", w) for w in ("7d", "28d", "90d")),
        recency("recency"),
    ),
)
windows = FeatureView(
    name="windows", entities=[user], source=EventSource(name="twelve", aggregation=twelve), schema=schema_of(twelve)
)
