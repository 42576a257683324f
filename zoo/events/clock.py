"""What is told of events whose times are odd: those that move a log's end, so "now" under ``clock: log_end``, and those of long before it
began. It decides no clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.events.log import EventLog

FAR = 7 * 86_400_000_000
"""Microseconds by which events may move the end of a log without a word."""
LONG = 365 * 86_400_000_000
"""Microseconds by which events of a push may be older than the log's first."""


def moved(log: EventLog, before: int | None) -> tuple[str, ...]:
    """A warning where the log's end is over ``FAR`` later than ``before`` (None: the log was empty, nobody's now moved)."""
    after = log.end()
    if log.schema.clock == "order" or before is None or after is None or after - before <= FAR:
        return ()
    old, new = _said(before), _said(after)
    return (
        f'"now" moved by {(after - before) / 86_400_000_000:.1f} days, from {old} to {new}, for every user: under clock: log_end it is '
        "just after the newest event, so windows, recency and ages moved too. "
        "For a shop that is running set clock: wall in feature_store.yaml",
    )


def long_before(first: int | None, oldest: int | None) -> tuple[str, ...]:
    """A warning where a push's oldest event is over ``LONG`` older than the log's first was (None: it had none)."""
    if first is None or oldest is None or first - oldest <= LONG:
        return ()
    return (
        f"the oldest of these events is of {_said(oldest)}, {(first - oldest) / 86_400_000_000:,.0f} days before the first that this log "
        f"had ({_said(first)}). It is taken like any other; if its time is wrong, correct what sends it",
    )


def _said(at: int) -> str:
    moment = datetime(1970, 1, 1) + timedelta(microseconds=at)
    return f"{moment.isoformat(' ', 'minutes')} UTC"
