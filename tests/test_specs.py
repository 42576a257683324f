from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from random_logs import TYPES, build

from zoo.errors import FeatureError
from zoo.events import specs
from zoo.events.evaluate import Evaluator
from zoo.events.specs import (
    Aggregation,
    Condition,
    Feature,
    Kind,
    count,
    distinct,
    last_distinct_n,
    last_n,
    maximum,
    mean,
    ratio,
    recency,
    seconds,
    total,
)
from zoo.stores.source import schema_of

PAGE = (Path(__file__).parents[1] / "docs/reference/features.md").read_text()


def test_aggregation_survives_json() -> None:
    aggregation = Aggregation(
        ("user_id", "campaign_id"),
        (
            last_n("items", "item_id", 50, where=("view", "cart")),
            total("spend", "value", "28d"),
            recency("r"),
            count("visits", step="visit"),
            count("dear", where=("view", Condition("value", ">=", 5.0), Condition("items.category", "in", ("milk", "käse")))),
            ratio("conversion", ("purchase",), (Condition("weight", "<", 0.5),), "7d", smoothing=1, otherwise=0.0),
            last_distinct_n("ages", "age", 3, by="item_id", max_age="7d"),
        ),
        members="campaign_items",
        lag=3600,
    )
    assert Aggregation.from_json(aggregation.to_json()) == aggregation
    assert Aggregation.from_json(aggregation.to_json()).to_json() == aggregation.to_json()


def test_equal_conditions_have_equal_text() -> None:
    texts = {Aggregation(("user_id",), (count("n", where=(Condition("value", ">=", v),)),)).to_json() for v in (1, 1.0, True)}
    assert len(texts) == 1


def test_text_says_nothing_of_options_that_are_not_used() -> None:
    text = Aggregation(("user_id",), (count("n"),)).to_json()
    assert not any(word in text for word in ("smoothing", "over", "lag", "by"))


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Condition("value", "~", 1), "operator '~'; choose one of =="),
        (lambda: Condition("gap", ">", 1), "depends on the other events"),
        (lambda: Condition("value", "in", 1), "expected several values for 'in'"),
        (lambda: Condition("value", "==", (1, 2)), "expected several values for 'in', else one"),
        (lambda: Condition("value", ">", "a"), "texts are compared by"),
        (lambda: Condition("value", ">", float("nan")), "expected numbers or texts"),
        (lambda: Condition("value", "==", None), "expected numbers or texts"),
        (lambda: count("n", where="view"), "expected a tuple of event types and conditions"),
        (lambda: total("n", "value", of="sum"), "say step='visit'"),
        (lambda: mean("n", "gap", step="visit", of="sum"), "tells when a visit began"),
        (lambda: Feature("n", "distinct", "item_id", step="visit"), "looks at events"),
        (lambda: distinct("n", "age"), "cannot be of 'age'"),
        (lambda: ratio("n", (), smoothing=-1), "smoothing -1.0"),
        (lambda: Feature("n", "median"), "choose one of last_n"),
        (lambda: Feature("n", "count", step="week"), "step 'week'"),
        (lambda: maximum("n", ""), "names no column"),
        (lambda: Aggregation(("user_id",), (count("n", "1h"),), lag=3600), "within the lag of 3600 seconds"),
        (lambda: Aggregation(("user_id",), (), lag=-1), "lag of -1 seconds"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused(make: Any, message: str) -> None:
    with pytest.raises(FeatureError, match=re.escape(message)):
        make()


FUNCTIONS = {
    name: made
    for name, made in vars(specs).items()
    if inspect.isfunction(made) and inspect.signature(made).return_annotation == "Feature"
}
"""What declares a feature."""
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 6 and cells[0].startswith("`")
}
"""The page's table of aggregations by function: definition, options, type, missing, cost."""


def declared(name: str) -> Feature:
    """A feature by its function, with whatever it must be told."""
    told = {"name": "f", "column": "value", "n": 3, "half_life": "7d", "horizon": "1d", "where": ("view",)}
    needed = [p.name for p in inspect.signature(FUNCTIONS[name]).parameters.values() if p.default is p.empty]
    return FUNCTIONS[name](*(told[parameter] for parameter in needed))  # type: ignore[no-any-return]


def test_the_page_lists_every_aggregation_and_every_kind_has_a_function() -> None:
    assert list(ROWS) == [name for name in ROWS if name in FUNCTIONS]
    assert set(ROWS) == set(FUNCTIONS)
    assert {declared(name).kind for name in FUNCTIONS} == set(get_args(Kind))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_page_says_the_options_type_and_missing_value_that_a_function_has(name: str) -> None:
    _, options, kind, missing, _ = ROWS[name]
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    assert re.findall(r"`(\w+)`", options) == [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    aggregation = Aggregation(("user_id",), (declared(name),))
    dtype = str(schema_of(aggregation)[0].dtype)
    shown = {"list": "Array(Float64)", "int64": "Int64", "float64": "Float64", "that of the column": "Float64"}
    assert dtype == shown[kind]
    nobody = Evaluator(build([]), TYPES).evaluate(aggregation, np.array([2], np.int32), np.array([0]))["f"]
    assert nobody.values.dtype == (np.int64 if kind == "int64" else np.float64)
    if nobody.offsets is not None:
        assert missing == "empty"
        assert len(nobody.values) == 0
    else:
        assert {"0": 0.0, "NaN": None, "null": None}[missing] == (None if np.isnan(nobody.values[0]) else nobody.values[0])
