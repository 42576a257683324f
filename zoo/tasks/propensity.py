"""Propensity: will a user do a thing (purchase, cart; of some items only) within the horizon, or before the session ends?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, Examples, Split, Target, Task
from zoo.errors import UsageError
from zoo.events.items import items_where
from zoo.tasks import moments
from zoo.tasks.settings import known

if TYPE_CHECKING:
    from zoo.events.view import LogView

NAME = "propensity"
DEFAULTS: Mapping[str, Any] = {**moments.DEFAULTS, "event_type": "purchase", "items": None, "where": {}}
"""event_type: a type, or several any of which will do. items: identifiers; where: columns of the item table and the value an item must
have; None and empty: whatever item."""


def examples(view: LogView, settings: Mapping[str, Any], start: int, end: int) -> Examples:
    """Rows (user) at ``start <= time < end``, after events or at cuts (see ``moments.DEFAULTS``).

    The target is 1 where an event of ``event_type`` with such an item lies in [time, time + horizon), or before the session's end.
    """
    chosen = known(NAME, settings, DEFAULTS)
    types, names = view.event_types(), moments.types_of(NAME, view, "event_type", chosen["event_type"])
    rows = moments.moments(NAME, view, chosen, start, end)
    events = view.events(["event_type", "item_id"])
    wanted = np.isin(events.columns["event_type"], [types[name] for name in names])
    if chosen["items"] is not None or chosen["where"]:
        wanted &= np.isin(events.columns["item_id"], _items(view, chosen["items"], chosen["where"]))
    return rows.examples(view, rows.next(wanted)[1])


def _items(view: LogView, items: Any, where: Mapping[str, Any]) -> Array:
    """int32 codes of the items asked for. Raises UsageError for items and columns that the log does not have."""
    codes = np.arange(2, view.log.dictionary("item_id").size, dtype=np.int32)
    if items is not None:
        listed = [items] if isinstance(items, (str, int)) else list(items)
        found = {item: view.code("item_id", item) for item in listed}
        unknown = [item for item, code in found.items() if code < 2]
        if unknown:
            raise UsageError(f"[tasks.{NAME}] items: {unknown[0]!r} is not in the log; expected identifiers of its items")
        codes = np.intersect1d(codes, list(found.values()))
    return np.intersect1d(codes, items_where(view, where)) if where else codes


def split(view: LogView, settings: Mapping[str, Any], test_start: int | None, test_end: int | None) -> Split:
    """As ``moments.split``."""
    chosen = known(NAME, settings, DEFAULTS)
    return moments.split(NAME, lambda view, a, b: examples(view, settings, a, b), view, chosen, test_start, test_end)


TASK = Task(
    name=NAME,
    entities=("user_id",),
    target=Target("binary"),
    examples=examples,
    split=split,
    feature_service="behaviour",
    summary="will a user do a thing, such as purchase, within the horizon or the session",
)
