"""Behaviour: what does a user do next, or is it nothing within the horizon?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Examples, Split, Target, Task
from zoo.errors import UsageError
from zoo.tasks import moments
from zoo.tasks.settings import known

if TYPE_CHECKING:
    from zoo.events.view import LogView

NAME = "behaviour"
NOTHING = "nothing"
"""The class of rows without an event within the horizon."""
DEFAULTS: Mapping[str, Any] = {**moments.DEFAULTS, "horizon": "1d", "event_types": None}
"""event_types: the types told apart (None: all of the log's); events of other types do not count as doing something."""


def target(view: LogView, settings: Mapping[str, Any]) -> Target:
    """A class for each event type, in the order in which the log came to know them, and ``nothing``."""
    names = moments.types_of(NAME, view, "event_types", known(NAME, settings, DEFAULTS)["event_types"])
    if NOTHING in names:
        raise UsageError(
            f"[tasks.{NAME}] the log has an event type {NOTHING!r}, as the class without an event is called; name event_types"
        )
    return Target("multiclass", (*names, NOTHING))


def examples(view: LogView, settings: Mapping[str, Any], start: int, end: int) -> Examples:
    """Rows (user) at ``start <= time < end``, after events or at cuts (see ``moments.DEFAULTS``).

    The target is the class of the user's next event in [time, time + horizon), or until the session's end. Of events at one instant
    the one that was logged first is the next.
    """
    chosen = known(NAME, settings, DEFAULTS)
    rows = moments.moments(NAME, view, chosen, start, end)
    types = view.event_types()
    names = target(view, settings).classes[:-1]
    number = np.full(max(types.values(), default=0) + 1, len(names))
    number[[types[name] for name in names]] = np.arange(len(names))
    kinds = number[view.events(["event_type"]).columns["event_type"]]
    at, found = rows.next(kinds < len(names))
    return rows.examples(view, np.where(found, kinds[at], len(names)) if len(kinds) else np.zeros(0))


def split(view: LogView, settings: Mapping[str, Any], test_start: int | None, test_end: int | None) -> Split:
    """As ``moments.split``."""
    chosen = known(NAME, settings, DEFAULTS)
    return moments.split(NAME, lambda view, a, b: examples(view, settings, a, b), view, chosen, test_start, test_end)


TASK = Task(
    name=NAME,
    entities=("user_id",),
    target=Target("multiclass", (NOTHING,)),
    targets=target,
    examples=examples,
    split=split,
    summary="what a user does next, or nothing within the horizon",
)
