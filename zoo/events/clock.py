"""The end of a log as "now": what a reader under ``clock: log_end`` is told when events move it far. It decides no clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.events.log import EventLog

FAR = 7 * 86_400_000_000
"""Microseconds by which events may move the end of a log without a word."""


def moved(log: EventLog, before: int | None) -> tuple[str, ...]:
    """A warning where the log's end is over ``FAR`` later than ``before`` (None: the log was empty, nobody's now moved)."""
    after = log.end()
    if log.schema.clock == "order" or before is None or after is None or after - before <= FAR:
        return ()
    old, new = (datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC") for at in (before, after))
    return (
        f'"now" moved by {(after - before) / 86_400_000_000:.1f} days, from {old} to {new}, for every user: under clock: log_end it is '
        "just after the newest event, so windows, recency and ages moved too. "
        "For a shop that is running set clock: wall in feature_store.yaml",
    )
