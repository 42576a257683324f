"""Recommendation: which item does a user take next, by an event of a chosen type?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import PADDING, Array, Examples, Split, Target, Task
from zoo.errors import UsageError, choices
from zoo.tasks.settings import duration, instant, known, not_in_log

if TYPE_CHECKING:
    from zoo.events.view import LogView

PROTOCOLS = ("leave_one_out", "time_cut", "rolling")
DEFAULTS: Mapping[str, Any] = {
    "event_type": None,
    "protocol": "leave_one_out",
    "test_start": None,
    "validation": "7d",
    "min_history": 1,
    "exclude_seen": True,
    "candidates": 100,
    "average": "rows",
}
"""exclude_seen: whether items of a user's history are left out of rankings and lists. candidates: how many each member brings to the
second stage. average: what NDCG is averaged over where the second stage is chosen, one of ``AVERAGES``.
"""
AVERAGES = ("rows", "items")
"""Of the validation rows, or of the items they ask for, each alike however many rows ask for it (the macro average)."""


@dataclass(frozen=True)
class _Events:
    """A log's events by (user, time, seq). offsets: int64 (users + 1,), by user code.

    wanted: bool (m,), the events whose item is asked for. end: just after the newest event.
    """

    offsets: Array
    users: Array
    times: Array
    items: Array
    wanted: Array
    end: int

    @staticmethod
    def of(view: LogView, chosen: Mapping[str, Any]) -> _Events:
        events, types = view.events(["item_id", "event_type"]), view.event_types()
        items, kinds = events.columns["item_id"], events.columns["event_type"]
        asked = chosen["event_type"]
        names = list(types) if asked is None else [asked] if isinstance(asked, str) else list(asked)
        for name in names:
            if name not in types:
                raise not_in_log("recommendation", name, types)
        wanted = np.isin(kinds, [types[name] for name in names]) & (items > PADDING)
        end = int(events.time.max()) + 1 if len(events) else 0
        offsets = np.concatenate([[0], np.cumsum(view.sizes("user_id"))])
        return _Events(offsets, events.user_id, events.time, items, wanted, end)

    def before(self, users: Array, times: Array) -> Array:
        """int64 (n,): events of each user strictly before a time."""
        # the m events and n questions in one order of (user, time), questions first: a question's rank less the questions before it
        who = np.concatenate([users, self.users])
        when = np.concatenate([times, self.times])
        order = np.lexsort((np.arange(len(who)) >= len(users), when, who))
        question = order < len(users)
        found = np.empty(len(users), np.int64)
        found[order[question]] = np.cumsum(~question)[question]
        return found - self.offsets[users]


def examples(view: LogView, settings: Mapping[str, Any], start: int, end: int) -> Examples:
    """A row for every event of type ``event_type`` (a name, several, or all where None) at ``start <= time < end``: its user at its time.

    The target is the log's code of the event's item, known at that time. Raises UsageError where the log has no such event type.
    """
    chosen = known("recommendation", settings, DEFAULTS)
    events = _Events.of(view, chosen)
    at = _within(events, start, end)
    return _rows(view, events.users[at], events.times[at], events.items[at], events.times[at])


def split(view: LogView, settings: Mapping[str, Any], test_start: int | None = None, test_end: int | None = None) -> Split:
    """One row a user for training, and rows for validation and the test, as ``protocol`` says.

    ``leave_one_out``: the test asks for each user's last event of ``event_type``, validation for the one before it, each as of just before
    that event; training ends before validation. Users' times overlap, so a model may have seen others' later events.
    ``time_cut``: the test asks for each user's first such event from ``test_start`` on (and before ``test_end``), as of ``test_start``;
    validation likewise, one ``validation`` (a duration) earlier, and training ends where validation starts.
    ``rolling``: the same spans, and a row for every such event in them, as of just before it: models stay, histories grow.
    A training row is the user's newest event before training's end, with its item as target. Where that event is of another type, or
    shares its instant with others, the row stands at training's end and has no target of its own (PADDING): its sequence is learnt from.
    Rows to refit on are training rows that end where the test begins.
    Test and validation leave out users with fewer than ``min_history`` events before the row.

    Raises UsageError for settings that cannot be meant, and where a part is empty.
    """
    chosen = known("recommendation", settings, DEFAULTS)
    if chosen["protocol"] not in PROTOCOLS:
        raise UsageError(choices("protocol in [tasks.recommendation]", chosen["protocol"], PROTOCOLS))
    if not isinstance(chosen["min_history"], int) or chosen["min_history"] < 0:
        raise UsageError(
            f"[tasks.recommendation] min_history is {chosen['min_history']!r}; expected a number of events, 0 or more"
        )
    if type(chosen["candidates"]) is not int or chosen["candidates"] < 1:
        raise UsageError(f"[tasks.recommendation] candidates is {chosen['candidates']!r}; expected a number of items, 1 or more")
    if not isinstance(chosen["exclude_seen"], bool):
        raise UsageError(f"[tasks.recommendation] exclude_seen is {chosen['exclude_seen']!r}; expected true or false")
    if chosen["average"] not in AVERAGES:
        raise UsageError(choices("average in [tasks.recommendation]", chosen["average"], AVERAGES))
    events = _Events.of(view, chosen)
    if chosen["protocol"] == "leave_one_out":
        if test_start is not None or test_end is not None or chosen["test_start"] is not None:
            raise UsageError(
                "a test of leave_one_out has no start and no end: it asks for each user's last event; name no test_start"
            )
        test, validation = _last_two(events)
        bounds = [_stops(events, [test[0], validation[0]]), _stops(events, [test[0]])]
    else:
        if view.ordered_only:
            raise UsageError("this log has positions instead of times, so no instant parts its users' events; use leave_one_out")
        begin = test_start if test_start is not None else None if chosen["test_start"] is None else instant(chosen["test_start"])
        if begin is None:
            raise UsageError(f"{chosen['protocol']} needs an instant: test_start in [tasks.recommendation], or --test-start")
        earlier = begin - duration(chosen["validation"])
        end = events.end if test_end is None else test_end
        if chosen["protocol"] == "rolling":
            test, validation = (_within(events, begin, end), None), (_within(events, earlier, begin), None)
        else:
            test, validation = (_firsts(events, begin, end), begin), (_firsts(events, earlier, begin), earlier)
        everyone = np.arange(len(events.offsets) - 1)
        instants = [np.full(len(everyone), each, np.int64) for each in (earlier, begin)]
        bounds = [(events.offsets[:-1] + events.before(everyone, each), each) for each in instants]
    return Split(
        _named("training", _training(view, events, *bounds[0])),
        _named("test", _asked(view, events, test, chosen["min_history"])),
        _named("validation", _asked(view, events, validation, chosen["min_history"])),
        _training(view, events, *bounds[1]),
    )


_Question = tuple[Array, int | None]
"""Positions of the events asked for, and when: at one instant, or (None) each just before its event."""


def _last_two(events: _Events) -> tuple[_Question, _Question]:
    """Test and validation."""
    at = np.flatnonzero(events.wanted)
    users = events.users[at]
    rank = np.searchsorted(users, users, side="right") - np.arange(len(at))  # 1 for a user's last
    return (at[rank == 1], None), (at[rank == 2], None)


def _stops(events: _Events, held_out: Sequence[Array]) -> tuple[Array, Array]:
    """By user: the position at which training stops, and its time, where the events at these positions, later ones first, are held out."""
    size = len(events.offsets) - 1
    stop, time = events.offsets[1:].copy(), np.full(size, events.end, np.int64)
    for last in held_out:
        stop[events.users[last]], time[events.users[last]] = last, events.times[last]
    # features are strictly before an instant, so what shares it is not in training either
    stop = events.offsets[:-1] + np.minimum(events.before(np.arange(size), time), stop - events.offsets[:-1])
    return stop, time


def _within(events: _Events, start: int, end: int) -> Array:
    """Positions of the wanted events in [start, end)."""
    return np.flatnonzero(events.wanted & (events.times >= start) & (events.times < end))


def _firsts(events: _Events, start: int, end: int) -> Array:
    """Positions of each user's first wanted event in [start, end)."""
    at = _within(events, start, end)
    return at[np.unique(events.users[at], return_index=True)[1]]


def _asked(view: LogView, events: _Events, question: _Question, min_history: int) -> Examples:
    at, when = question
    users = events.users[at]
    times = events.times[at] if when is None else np.full(len(at), when, np.int64)
    kept = events.before(users, times) >= min_history
    at, users, times = at[kept], users[kept], times[kept]
    return _rows(view, users, times, events.items[at], np.maximum(events.times[at], times))


def _training(view: LogView, events: _Events, stop: Array, end: Array) -> Examples:
    """stop, end: by user, where training stops: past which position, and when."""
    users = np.flatnonzero(stop > events.offsets[:-1])
    newest = stop[users] - 1
    alone = (newest == events.offsets[users]) | (events.times[newest - 1] < events.times[newest])
    own = events.wanted[newest] & alone
    times = np.where(own, events.times[newest], end[users])
    return _rows(view, users, times, np.where(own, events.items[newest], PADDING), times)


def _rows(view: LogView, users: Array, times: Array, items: Array, known_at: Array) -> Examples:
    order = np.lexsort((users, times))
    ids = np.asarray(view.log.dictionary("user_id").decode(users[order].astype(np.int32)))
    return Examples({"user_id": ids}, times[order], items[order].astype(np.float64), known_at[order])


def _named(part: str, rows: Examples) -> Examples:
    if not len(rows):
        raise UsageError(
            f"recommendation has no {part} rows; name another test_start, a smaller min_history, or bring more history"
        )
    return rows


TASK = Task(
    name="recommendation",
    entities=("user_id",),
    target=Target("ranking"),
    examples=examples,
    split=split,
    summary="which item a user takes next",
)
