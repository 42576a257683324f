from __future__ import annotations

import pytest

from zoo.errors import FeatureError
from zoo.events.specs import Aggregation, Feature, count, distinct, last_n, recency, seconds, total


def test_aggregation_survives_json() -> None:
    aggregation = Aggregation(
        ("user_id", "campaign_id"),
        (
            last_n("items", "item_id", 50, where=("view", "cart")),
            total("spend", "value", "28d"),
            recency("r"),
            count("visits", step="visit"),
        ),
        members="campaign_items",
    )
    assert Aggregation.from_json(aggregation.to_json()) == aggregation


@pytest.mark.parametrize(
    ("text", "expected"), [("30m", 1800), ("12h", 43_200), ("28d", 2_419_200), ("8w", 4_838_400), (90, 90), (None, None)]
)
def test_durations_are_read(text: str | int | None, expected: int | None) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["28", "d", "0d", "1.5h", "28 days", ""])
def test_a_bad_duration_is_named(text: str) -> None:
    with pytest.raises(FeatureError, match="28d"):
        seconds(text)


def test_names_declared_twice_are_refused() -> None:
    with pytest.raises(FeatureError, match="'a' is declared twice"):
        Aggregation(("user_id",), (count("a"), distinct("a", "item_id")))


def test_a_feature_without_its_column_is_refused() -> None:
    with pytest.raises(FeatureError, match="names no column"):
        Feature("x", "sum")
    with pytest.raises(FeatureError, match="at least 1"):
        last_n("x", "item_id", 0)
