"""Churn: will a recently active user stay away for the whole label window?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Examples, Target, Task
from zoo.errors import UsageError
from zoo.tasks.settings import duration, instant, known

if TYPE_CHECKING:
    from zoo.events.view import LogView

DEFAULTS: Mapping[str, Any] = {"event_type": "purchase", "active": "56d", "horizon": "14d", "every": "14d", "start": None}


def examples(view: LogView, settings: Mapping[str, Any], start: int, end: int) -> Examples:
    """Rows (user, cut) at cuts ``start``, ``start + every``, ... before ``end``.

    A user is in where an event of ``event_type`` lies in [cut - active, cut); the target is 1 where none lies in
    [cut, cut + horizon). Times are microseconds UTC. Raises UsageError where the log has no such event type.
    """
    chosen = known("churn", settings, DEFAULTS)
    types = view.event_types()
    if chosen["event_type"] not in types:
        raise UsageError(
            f"[tasks.churn] event_type {chosen['event_type']!r} is not in the log; it has: {', '.join(sorted(types))}"
        )
    active, horizon, every = (duration(chosen[k]) for k in ("active", "horizon", "every"))
    events = view.events([], [chosen["event_type"]])
    users, times = events.user_id, events.time
    size = int(users.max(initial=0)) + 1
    rows, cuts, targets = [], [], []
    for cut in range(start, end, every):
        before = np.bincount(users[(times >= cut - active) & (times < cut)], minlength=size) > 0
        after = np.bincount(users[(times >= cut) & (times < cut + horizon)], minlength=size) > 0
        who = np.flatnonzero(before)
        rows.append(who)
        cuts.append(np.full(len(who), cut, np.int64))
        targets.append(~after[who])
    codes = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int32)
    time = np.concatenate([*cuts, np.zeros(0, np.int64)])
    ids = np.asarray(view.log.dictionary("user_id").decode(codes))
    return Examples({"user_id": ids}, time, np.concatenate([*targets, np.zeros(0, bool)]).astype(np.float64), time + horizon)


def first(settings: Mapping[str, Any], view: LogView) -> int:
    """The first cut: ``start``, or where it is not set, one active window after the log's first event."""
    chosen = known("churn", settings, DEFAULTS)
    if chosen["start"] is not None:
        return instant(chosen["start"])
    begin = view.start()
    return 0 if begin is None else begin + duration(chosen["active"])


TASK = Task(
    name="churn",
    entities=("user_id",),
    target=Target("binary"),
    examples=examples,
    summary="will a recently active user have no purchase in the next days",
)
