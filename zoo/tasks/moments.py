"""Where rows of behaviour and propensity stand, and what comes next there: after events or at cuts, within a time or a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, Examples, Split
from zoo.errors import UsageError, choices
from zoo.events.index import NO_SESSION
from zoo.tasks.settings import duration, instant

if TYPE_CHECKING:
    from zoo.events.view import LogView

SESSION = "session"
"""The horizon that ends with the running session."""
TEST_SHARE = 0.2
"""Of the rows with known labels, the newest ones that are tested on where no test start is named."""
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "every": None,
        "after": None,
        "active": "28d",
        "horizon": "7d",
        "silence": "30m",
        "start": None,
        "gap": None,
        "open_labels": False,
    }
)
"""every: rows stand at cuts this far apart, one for each user with an event in the ``active`` before; None: a row just after each event.

after: event types that a row follows (None: all), of rows after events. horizon: how far a row looks ahead, or ``"session"``: to the end
of the session of the row's event. silence: after so long without an event a session is over; it also parts sessions where the log
names none. start: no row before this. gap: so long before the test starts training labels are known (None: just before). open_labels:
whether test rows stay whose label is not yet certain at the log's end, with what was seen by then.
"""


@dataclass(frozen=True)
class Moments:
    """Rows (n,), in order of time, and the stream of events (m,) that each looks ahead in: its user's, or its session's.

    users: int32 codes. time, until, known_at: int64 microseconds UTC; a row sees events before ``time``, its label is about those in
    [time, until), and is certain at ``known_at``. position: int64, the place in stream order of the stream's first event at or after
    ``time``. stop: int64, the place past the stream's last event. order: int64 (m,), stream order -> log order. times: int64 (m,), of
    events in log order.
    """

    users: Array
    time: Array
    until: Array
    known_at: Array
    position: Array
    stop: Array
    order: Array
    times: Array

    def next(self, wanted: Array) -> tuple[Array, Array]:
        """Place in log order (int64 (n,)) of each row's next event of a mask (m,) in log order, and whether there is one (bool (n,))."""
        size = len(self.order)
        ahead = np.full(size + 1, size)
        ahead[:size] = np.where(wanted[self.order], np.arange(size), size)
        ahead = np.minimum.accumulate(ahead[::-1])[::-1]
        found = ahead[self.position]
        inside = found < self.stop
        at = self.order[np.where(inside, found, 0)] if size else found
        return at, inside & (self.times[at] < self.until) if size else inside

    def examples(self, view: LogView, target: Array) -> Examples:
        """The rows with this target (n,)."""
        ids = np.asarray(view.log.dictionary("user_id").decode(self.users))
        return Examples({"user_id": ids}, self.time, target.astype(np.float64), self.known_at)


def moments(task: str, view: LogView, chosen: Mapping[str, Any], start: int, end: int) -> Moments:
    """The rows of a task at ``start <= time < end``; chosen: its settings, those of DEFAULTS among them.

    A row after an event stands one microsecond after it, so that its features hold the event; events of one instant share a row.
    Raises UsageError for settings that cannot be meant.
    """
    if view.ordered_only:
        raise UsageError(f"[tasks.{task}] looks ahead in time, and this log has positions instead of times")
    of_session = chosen["horizon"] == SESSION
    if of_session and chosen["every"] is not None:
        raise UsageError(
            f'[tasks.{task}] horizon = "{SESSION}" is about the session of an event, and every = {chosen["every"]!r} draws rows at '
            "cuts; leave out every, or name a horizon such as 7d"
        )
    sessions = of_session and "session" in view.kinds("user_id")
    events = view.events(["event_type", *(["session"] if sessions else [])])
    silence = duration(chosen["silence"])
    streams = events.user_id.astype(np.int64)
    if of_session:
        streams = _sessions(events.user_id, events.time, events.columns.get("session"), silence)
    order = np.argsort(streams, kind="stable")
    stream, times = streams[order], events.time[order]
    stops = np.searchsorted(stream, stream, side="right")
    if chosen["every"] is None:
        kept = _after(task, view, chosen["after"], events.columns["event_type"])[order]
        # the last event of each instant, where one of the instant's events is of a type that is followed
        run = np.cumsum(np.r_[True, (np.diff(stream) != 0) | (np.diff(times) != 0)][: len(times)]) - 1
        last = np.flatnonzero(np.r_[np.diff(run) != 0, True][: len(times)])
        followed = np.bincount(run[kept], minlength=len(last)) > 0
        at = last[followed & (times[last] + 1 >= start) & (times[last] + 1 < end)]
        users, time, position, stop = events.user_id[order][at], times[at] + 1, at + 1, stops[at]
    else:
        users, time = _cuts(events.user_id, events.time, duration(chosen["every"]), duration(chosen["active"]), start, end)
        offsets = np.searchsorted(stream, np.arange(int(streams.max(initial=0)) + 2))
        position, stop = _first_from(stream, times, users, time), offsets[users + 1]
    if of_session:
        until = np.full(len(time), np.iinfo(np.int64).max)
        known_at = times[stop - 1] + silence
    else:
        until = known_at = time + duration(chosen["horizon"])
    r = np.lexsort((users, time))
    return Moments(users[r], time[r], until[r], known_at[r], position[r], stop[r], order, events.time)


def split(
    task: str,
    examples: Callable[..., Examples],
    view: LogView,
    chosen: Mapping[str, Any],
    test_start: int | None,
    test_end: int | None,
) -> Split:
    """Rows whose label was known at ``test_start``, or ``gap`` before, to train on, rows from there on (before ``test_end``) to test on.

    test_start: by default the newest cut with known labels, or the instant after which lie a fifth of the rows after events.
    test_end: by default after the first cut, or, of rows after events, the log's end. Test rows have labels that the log knows, unless
    ``open_labels``.
    """
    begin, end = (view.start() or 0) if chosen["start"] is None else instant(chosen["start"]), (view.end or 0) + 1
    if test_start is None:
        rows = examples(view, begin, end)
        known = np.sort(rows.time[rows.known_at <= end])
        if not len(known):
            raise UsageError(f"no row of {task} has a known label yet: the log ends before the first label window closes")
        test_start = int(known[-1] if chosen["every"] is not None else known[int((1 - TEST_SHARE) * len(known))])
    if test_end is None:
        test_end = end if chosen["every"] is None else test_start + 1
    train, test = examples(view, begin, test_start), examples(view, test_start, test_end)
    gap = 0 if chosen["gap"] is None else duration(chosen["gap"])
    train = train.take(np.flatnonzero(train.known_at + gap <= test_start))
    if not chosen["open_labels"]:
        test = test.take(np.flatnonzero(test.known_at <= end))
    for name, part in (("training", train), ("test", test)):
        if not len(part):
            at = datetime.fromtimestamp(test_start / 1e6, UTC).isoformat()
            raise UsageError(f"{task} has no {name} rows around {at}; name another --test-start, or more history")
    return Split(train, test)


def types_of(task: str, view: LogView, setting: str, names: Any) -> list[str]:
    """Event types of the log that a setting names: a text, a list, or None for all, in the log's order."""
    types = view.event_types()
    listed = list(types) if names is None else [names] if isinstance(names, str) else list(names)
    for name in listed:
        if name not in types:
            raise UsageError(choices(f"event type in {setting} of [tasks.{task}]", str(name), types))
    return listed


def _after(task: str, view: LogView, names: Any, kinds: Array) -> Array:
    """bool (m,): events that a row follows."""
    types = view.event_types()
    return np.isin(kinds, [types[name] for name in types_of(task, view, "after", names)])


def _sessions(users: Array, times: Array, named: Array | None, silence: int) -> Array:
    """int64 (m,): a number for each session; events without a session of their own are parted by silence."""
    pause = np.r_[True, (np.diff(users) != 0) | (np.diff(times) > silence)][: len(users)]
    number = np.cumsum(pause)
    if named is None:
        return number
    pairs = np.stack([users.astype(np.int64), named])
    own = np.unique(pairs, axis=1, return_inverse=True)[1] + int(number.max(initial=0)) + 1
    return np.where(named == NO_SESSION, number, own)


def _cuts(users: Array, times: Array, every: int, active: int, start: int, end: int) -> tuple[Array, Array]:
    """Users (int32) and instants of rows at cuts."""
    size, who, when = int(users.max(initial=0)) + 1, [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for cut in range(start, end, every):
        seen = np.flatnonzero(np.bincount(users[(times >= cut - active) & (times < cut)], minlength=size))
        who.append(seen.astype(np.int32))
        when.append(np.full(len(seen), cut, np.int64))
    return np.concatenate(who), np.concatenate(when)


def _first_from(stream: Array, times: Array, users: Array, time: Array) -> Array:
    """int64 (n,): the place of each user's first event at or after a time."""
    who, when = np.r_[users.astype(np.int64), stream], np.r_[time, times]
    # questions before the events of their instant: a question's rank less the questions before it
    order = np.lexsort((np.arange(len(who)) >= len(users), when, who))
    question = order < len(users)
    found = np.empty(len(users), np.int64)
    found[order[question]] = np.cumsum(~question)[question]
    return found
