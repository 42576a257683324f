"""Campaign response: will a user who received a campaign redeem one of its coupons?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Examples, Target, Task
from zoo.errors import UsageError
from zoo.tasks.settings import duration, instant, known

if TYPE_CHECKING:
    from zoo.events.view import LogView

DEFAULTS: Mapping[str, Any] = {"sent": "campaign_sent", "response": "coupon_redeemed", "within": "60d", "start": None}


def examples(view: LogView, settings: Mapping[str, Any], start: int, end: int) -> Examples:
    """Rows (user, campaign) at the time the user received the campaign, ``start <= time < end``.

    The target is 1 where an event of type ``response`` with the same campaign_id follows before the campaign's end (``ends`` in the
    campaigns table, microseconds UTC), or within ``within`` where there is none. A row is known at that end.
    """
    chosen = known("campaign", settings, DEFAULTS)
    types = view.event_types()
    for name in ("sent", "response"):
        if chosen[name] not in types:
            raise UsageError(
                f"[tasks.campaign] {name} {chosen[name]!r} is no event type of the log; it has: {', '.join(sorted(types))}"
            )
    if "campaign_id" not in view.kinds("user_id"):
        raise UsageError("the log has no event column campaign_id; the campaign task needs it on the sent and response events")
    events = view.events(["campaign_id", "event_type"], [chosen["sent"], chosen["response"]])
    users, times, campaign, kind = events.user_id, events.time, events.columns["campaign_id"], events.columns["event_type"]
    sent = np.flatnonzero((kind == types[chosen["sent"]]) & (times >= start) & (times < end) & ~np.isnan(campaign))
    sent = sent[np.argsort(times[sent], kind="stable")]
    until = _ends(view, campaign[sent], times[sent], duration(chosen["within"]))
    answered = np.flatnonzero((kind == types[chosen["response"]]) & ~np.isnan(campaign))
    # of (user, campaign), then of instants, their places among all there are: numbers small enough for one key of both
    _, place = np.unique(campaign[np.concatenate([answered, sent])], return_inverse=True)
    _, pair = np.unique(users[np.concatenate([answered, sent])] * np.int64(len(place) + 1) + place, return_inverse=True)
    keys, wanted = pair[: len(answered)], pair[len(answered) :]
    order = np.lexsort((times[answered], keys))
    keys, answer_times = keys[order], times[answered][order]
    # the first response after the sending: search (key, time) pairs by rank
    stamps = np.concatenate([answer_times, times[sent]])
    _, rank = np.unique(stamps, return_inverse=True)
    span = np.int64(rank.max(initial=0)) + 2
    at = np.searchsorted(keys * span + rank[: len(keys)], wanted * span + rank[len(keys) :], side="right")
    safe = np.minimum(at, max(len(keys) - 1, 0))
    hit = (at < len(keys)) & (keys[safe] == wanted) & (answer_times[safe] < until) if len(keys) else np.zeros(len(sent), bool)
    ids = np.asarray(view.log.dictionary("user_id").decode(users[sent]))
    return Examples(
        {"user_id": ids, "campaign_id": campaign[sent].astype(np.int64)}, times[sent].copy(), hit.astype(np.float64), until
    )


def _ends(view: LogView, campaign: np.ndarray, times: np.ndarray, within: int) -> np.ndarray:
    if "campaigns" not in view.log.tables():
        return times + within
    table = view.log.read_table("campaigns")
    if "ends" not in table.column_names:
        return times + within
    known = table.filter(table["ends"].is_valid())
    ends = dict(zip(known["campaign_id"].to_pylist(), np.asarray(known["ends"]).astype(np.int64)))
    return np.array([ends.get(int(c), t + within) for c, t in zip(campaign, times)], np.int64)


def first(settings: Mapping[str, Any], view: LogView) -> int:
    """``start``, or the log's first event."""
    chosen = known("campaign", settings, DEFAULTS)
    if chosen["start"] is not None:
        return instant(chosen["start"])
    return view.start() or 0


TASK = Task(
    name="campaign",
    entities=("user_id", "campaign_id"),
    target=Target("binary"),
    examples=examples,
    summary="will a user who receives a campaign redeem one of its coupons",
)
