"""What a household did, in order: lines bought, visits made, and who bought an item last."""

from entities import household, product
from feast import FeatureView

from zoo.events.specs import Aggregation, last_n
from zoo.stores import EventSource
from zoo.stores.source import schema_of

BOUGHT = ("purchase",)
LINES = 60
VISITS = 60
HISTORY = 1_000

lines = Aggregation(
    ("user_id",),
    (
        last_n("items", "item_id", LINES, where=BOUGHT),
        last_n("event_types", "event_type", LINES, where=BOUGHT),
        last_n("categories", "items.category", LINES, where=BOUGHT),
        last_n("values", "value", LINES, where=BOUGHT),
        last_n("gaps", "gap", LINES, where=BOUGHT),
        last_n("ages", "age", LINES, where=BOUGHT),
    ),
)
user_sequence = FeatureView(
    name="user_sequence",
    entities=[household],
    source=EventSource(name="user_lines", aggregation=lines),
    schema=schema_of(lines, text=("items.category",)),
    description="The newest lines bought, aligned, oldest first",
)

history = Aggregation(
    ("user_id",),
    (
        last_n("items", "item_id", HISTORY, where=BOUGHT),
        last_n("event_types", "event_type", HISTORY, where=BOUGHT),
        last_n("gaps", "gap", HISTORY, where=BOUGHT),
        last_n("ages", "age", HISTORY, where=BOUGHT),
    ),
)
user_history = FeatureView(
    name="user_history",
    entities=[household],
    source=EventSource(name="user_history", aggregation=history),
    schema=schema_of(history),
    description="The lines bought, as long as histories are, aligned, oldest first",
)

visits = Aggregation(
    ("user_id",),
    (
        last_n("visit_gaps", "gap", VISITS, where=BOUGHT, step="visit"),
        last_n("visit_waits", "wait", VISITS, where=BOUGHT, step="visit"),
        last_n("visit_ages", "age", VISITS, where=BOUGHT, step="visit"),
        last_n("visit_values", "value", VISITS, where=BOUGHT, step="visit", of="sum"),
        last_n("visit_lines", "item_id", VISITS, where=BOUGHT, step="visit", of="count"),
        last_n("visit_categories", "items.category", VISITS, where=BOUGHT, step="visit", of="distinct"),
        last_n("visit_discounts", "retail_discount", VISITS, where=BOUGHT, step="visit", of="sum"),
        last_n("visit_hours", "hour", VISITS, where=BOUGHT, step="visit"),
        last_n("visit_weekdays", "weekday", VISITS, where=BOUGHT, step="visit"),
    ),
)
user_visits = FeatureView(
    name="user_visits",
    entities=[household],
    source=EventSource(name="user_visits", aggregation=visits),
    schema=schema_of(visits),
    description="The newest visits (baskets), aligned, oldest first",
)

buyers = Aggregation(
    ("item_id",),
    (
        last_n("item_users", "user_id", 50, where=BOUGHT),
        last_n("item_event_types", "event_type", 50, where=BOUGHT),
        last_n("item_ages", "age", 50, where=BOUGHT),
    ),
)
item_sequence = FeatureView(
    name="item_sequence",
    entities=[product],
    source=EventSource(name="item_buyers", aggregation=buyers),
    schema=schema_of(buyers),
    description="Who bought an item last",
)
