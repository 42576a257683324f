"""Random logs, and one feature of every kind with every option, for the tests that hold evaluation against something else."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from oracle import SECOND, Event

from zoo.events.attributes import ALWAYS, Attribute, Validity
from zoo.events.index import NO_SESSION, Index, fixed_point
from zoo.events.specs import (
    Condition,
    Feature,
    count,
    decayed,
    distinct,
    first_n,
    last,
    last_distinct_n,
    last_n,
    maximum,
    mean,
    minimum,
    quiet,
    ratio,
    recency,
    std,
    survival,
    tenure,
    total,
)

DAY = 86_400 * SECOND
NIGHTLY = 2_000


def examples(share: int) -> int:
    """Examples of a test that takes long: a share of the profile's, but all of them at night."""
    usual = settings.default.max_examples
    return usual if usual >= NIGHTLY else max(usual // share, 1)


TYPES = {"view": 2, "cart": 3, "purchase": 4}
CATEGORIES = (None, None, "milk", "milk", "tea", "tea", None, "käse")
"""By item code."""
SHOPS = ("", "?", "nørth", "south")
"""By code."""
PRICES: dict[int, list[tuple[int, float | None]]] = {
    2: [(ALWAYS, 1.0), (3 * SECOND, 1.5), (20 * DAY, 2.25)],
    3: [(5 * DAY, 7.0), (10 * DAY, None)],
    5: [(0, 4.0)],
}
"""By item code: (from when, price)."""
_NAMES = {"items.category": ("", "?", "milk", "tea", "käse"), "events.shop": SHOPS}


def code(dictionary: str, value: Any) -> int:
    """The code of a name, 1 where there is none."""
    if dictionary in ("item_id", "user_id"):
        return int(value) if 2 <= int(value) <= 7 else 1
    names = ("", "?", *TYPES) if dictionary == "event_type" else _NAMES[dictionary]
    return names.index(value) if value in names[2:] else 1


def price(item: int | None, time: int) -> float | None:
    """The item's price then."""
    held = [value for since, value in PRICES.get(item or 0, []) if since <= time]
    return held[-1] if held else None


def completed(event: Event) -> Event:
    """With the columns that follow from the others."""
    days, rest = divmod(event["time"], DAY)
    return event | {
        "items.category": CATEGORIES[event["item_id"] or 0],
        "items.price": price(event["item_id"], event["time"]),
        "day": days,
        "weekday": (days + 3) % 7,
        "hour": rest // (3600 * SECOND),
    }


class Log(list[Event]):
    """Events, of which a failure shows what fits on a screen or two."""

    def __repr__(self) -> str:
        return super().__repr__()[:8_000]


@st.composite
def logs(draw: st.DrawFn, most: int = 25, giant: bool = True) -> Log:
    """Random logs with ties, repeated rows, missing values, events without item, huge gaps, users with one event, and, now and then, one
    with very many, in arbitrary order."""
    instants = st.one_of(st.integers(0, 5), st.integers(0, 40 * 86_400), st.just(10**9)).map(lambda s: s * SECOND)
    event = st.fixed_dictionaries(
        {
            "user_id": st.integers(2, 5),
            "item_id": st.sampled_from((None, 2, 3, 4, 5, 6, 7)),
            "event_type": st.sampled_from(sorted(TYPES)),
            "time": st.one_of(instants, instants.map(lambda t: t + 1)),
            "value": st.one_of(st.none(), st.integers(-500, 5000).map(lambda v: v / 100)),
            "weight": st.one_of(st.none(), st.floats(-10, 10)),
            "session": st.sampled_from((None, 1, 2, 3)),
            "shop": st.sampled_from((None, *SHOPS[2:])),
        }
    )
    events = draw(st.lists(event, max_size=most))
    events = events + draw(st.lists(st.sampled_from(events), max_size=4)) if events else events
    if giant and draw(st.integers(0, 9)) == 0:
        events = events + many(draw(st.integers(0, 2**16)), 150)
    return Log(completed(e) | {"seq": i} for i, e in enumerate(draw(st.permutations(events))))


def many(seed: int, number: int) -> list[Event]:
    """Events of one user."""
    drawn = random.Random(seed)
    time, out = 0, []
    for _ in range(number):
        time += drawn.choice((0, 1, 60, 3600, 40_000)) * SECOND
        out.append(
            {
                "user_id": 3,
                "item_id": drawn.choice((None, 2, 2, 2, 3, 7)),
                "event_type": drawn.choice(sorted(TYPES)),
                "time": time,
                "value": drawn.choice((None, 0.01, 19.99)),
                "weight": drawn.uniform(-10, 10),
                "session": drawn.choice((None, None, 1)),
                "shop": drawn.choice((None, "south")),
            }
        )
    return out


def build(events: Sequence[Event], entity: str = "user_id", sessions: bool = True) -> Index:
    """The index of a log."""

    def column(name: str, dtype: Any, missing: Any = 0) -> np.ndarray:
        return np.array([missing if e[name] is None else e[name] for e in events], dtype)

    columns = {
        "user_id": column("user_id", np.int32),
        "item_id": column("item_id", np.int32),
        "event_type": np.array([TYPES[e["event_type"]] for e in events], np.int32),
        "shop": np.array([0 if e["shop"] is None else SHOPS.index(e["shop"]) for e in events], np.int32),
        "value": fixed_point(column("value", float, math.nan)),
        "weight": column("weight", float, math.nan),
    }
    if sessions:
        columns["session"] = column("session", np.int64, NO_SESSION)
    rows = [(item, since, value) for item, dated in PRICES.items() for since, value in dated]
    validity, order = Validity.of(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), 8)
    prices = np.append(np.array([math.nan if r[2] is None else r[2] for r in rows])[order], math.nan)
    categories = np.array([0 if c is None else code("items.category", c) for c in CATEGORIES], np.int32)
    own = {name: name for name in ("user_id", "item_id", "event_type")}
    return Index.build(
        columns[entity],
        column("time", np.int64),
        column("seq", np.int64),
        columns,
        size=8,
        dictionaries={**own, "shop": "events.shop"},
        attributes={
            "items.category": Attribute(categories, "items.category"),
            "items.price": Attribute(prices, None, validity),
        },
    )


DEAR = Condition("value", ">=", 5)
MILK = Condition("items.category", "==", "milk")
EACH_CONDITION = (
    DEAR,
    MILK,
    Condition("value", "<", 10.005),
    Condition("weight", "!=", 0),
    Condition("weight", "<=", -1.5),
    Condition("weight", ">", 2),
    Condition("value", "in", (0.01, 19.99)),
    Condition("items.category", "!=", "tea"),
    Condition("items.category", "in", ("käse", "tea", "wine")),
    Condition("items.price", ">", 1),
    Condition("shop", "==", "nørth"),
    Condition("shop", "==", "west"),
    Condition("item_id", "!=", 2),
    Condition("event_type", "!=", "view"),
    Condition("hour", "<", 12),
    Condition("weekday", "in", (5, 6)),
)

FEATURES: tuple[Feature, ...] = (
    last_n("items", "item_id", 4),
    last_n("categories", "items.category", 4),
    last_n("prices", "items.price", 4),
    last_n("bought", "item_id", 3, where=("purchase",)),
    last_n("gaps", "gap", 4),
    last_n("gaps_bought", "gap", 4, where=("purchase", "cart")),
    last_n("ages", "age", 4),
    last_n("times", "time", 4),
    last_n("hours", "hour", 4),
    last_n("values", "value", 4),
    last_n("young_values", "value", 4, max_age="7d"),
    last_n("young_gaps", "gap", 4, max_age="7d"),
    last_n("waits", "wait", 4, where=("purchase", "view")),
    last_n("dear_milk", "item_id", 3, where=("purchase", "view", DEAR, MILK)),
    *(last_n(f"weights_{at}", "weight", 3, where=(condition,)) for at, condition in enumerate(EACH_CONDITION)),
    last_n("visit_values", "value", 3, step="visit", of="sum"),
    last_n("visit_sizes", "", 3, step="visit", of="count"),
    last_n("visit_lengths", "", 3, step="visit", of="length"),
    last_n("visit_items", "item_id", 3, step="visit", of="distinct"),
    last_n("visit_firsts", "item_id", 3, step="visit"),
    last_n("visit_lasts", "item_id", 3, step="visit", of="last"),
    last_n("visit_means", "value", 3, where=("view", "cart"), step="visit", of="mean"),
    last_n("visit_peaks", "weight", 3, step="visit", of="max"),
    last_n("visit_peaks_value", "value", 3, where=(DEAR,), step="visit", of="max"),
    last_n("visit_gaps", "gap", 3, where=("purchase", "view"), step="visit"),
    last_n("visit_gaps_young", "gap", 3, where=("purchase", "view"), step="visit", max_age="14d"),
    last_n("visit_ages", "age", 3, step="visit"),
    last_n("visit_waits", "wait", 3, step="visit"),
    first_n("first_items", "item_id", 3),
    first_n("first_gaps", "gap", 3, where=("view",)),
    first_n("first_waits", "wait", 3, where=("view",)),
    first_n("first_young", "value", 3, max_age="7d"),
    first_n("first_visits", "value", 2, step="visit", of="sum"),
    last_distinct_n("different_items", "item_id", 3),
    last_distinct_n("different_items_ages", "age", 3, by="item_id"),
    last_distinct_n("different_items_gaps", "gap", 3, by="item_id"),
    last_distinct_n("different_items_waits", "wait", 3, by="item_id"),
    last_distinct_n("different_bought", "value", 2, by="items.category", where=("purchase",)),
    last_distinct_n("different_young", "shop", 2, where=(DEAR,), max_age="7d"),
    quiet("quiet", "1d", where=("purchase", "view")),
    quiet("quiet_visits_28d", "2d", "28d", step="visit"),
    survival("survival", "1d", where=("purchase", "cart")),
    survival("survival_visits", "12h", step="visit"),
    decayed("decayed", "7d", where=("purchase",)),
    decayed("decayed_visits", "30d", step="visit"),
    decayed("decayed_value", "7d", "value"),
    decayed("decayed_weight", "1d", "weight", where=(MILK,)),
    decayed("decayed_visit_value", "7d", "value", step="visit", of="sum"),
    count("n"),
    count("n_7d", "7d"),
    count("bought_7d", "7d", where=("purchase",)),
    count("dear_7d", "7d", where=("purchase", DEAR)),
    count("visits", step="visit"),
    count("visits_7d", "7d", step="visit"),
    total("spend", "value"),
    total("spend_7d", "value", "7d", where=("purchase",)),
    total("weight_7d", "weight", "7d"),
    total("gaps_7d", "gap", "7d"),
    total("visit_lengths_7d", "", "7d", step="visit", of="length"),
    total("visit_values_28d", "value", "28d", step="visit", of="mean"),
    mean("mean_value", "value", "28d"),
    mean("mean_gap", "gap", "28d", where=("purchase", "cart")),
    mean("mean_visit_gap", "gap", "28d", step="visit"),
    mean("mean_visit_size", "", "28d", step="visit", of="count"),
    minimum("min_value", "value", "28d"),
    minimum("min_weight", "weight", where=("view",)),
    minimum("min_price", "items.price", "28d"),
    maximum("max_value", "value"),
    maximum("max_gap", "gap", "7d"),
    maximum("max_visit", "value", "28d", step="visit", of="sum"),
    std("std_value", "value", "28d"),
    std("std_weight", "weight"),
    std("std_gap", "gap", "28d"),
    std("std_visit_gap", "gap", step="visit"),
    distinct("distinct_7d", "item_id", "7d"),
    distinct("distinct_categories", "items.category"),
    distinct("distinct_days", "day", "28d", where=(DEAR,)),
    ratio("conversion", ("purchase",), ("view",)),
    ratio("conversion_7d", ("purchase",), ("view",), "7d", otherwise=0.0),
    ratio("conversion_smooth", ("purchase",), ("view",), "28d", smoothing=10, prior=0.05),
    ratio("conversion_visits", ("purchase",), (), step="visit"),
    ratio("value_share", (MILK,), (), "28d", column="value", otherwise=-1.0),
    ratio("weight_share", ("purchase",), ("cart",), column="weight", smoothing=50),
    recency("recency"),
    recency("recency_bought", where=("purchase", DEAR)),
    tenure("tenure"),
    last("last_item", "item_id"),
    last("last_value", "value", where=("view",)),
)
