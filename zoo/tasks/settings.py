"""Reading a task's own settings: durations, dates, names; unknown ones are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

from zoo.errors import FeatureError, UsageError, choices
from zoo.events.specs import seconds

MICROSECONDS = 1_000_000


def known(task: str, settings: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """The settings over these defaults. Raises UsageError for a name that the task does not have."""
    for name in settings:
        if name not in names:
            raise UsageError(choices(f"setting in [tasks.{task}]", name, names))
    return {**names, **settings}


def duration(value: Any) -> int:
    """Microseconds of ``"14d"``."""
    found = seconds(value)
    if found is None:
        raise UsageError("a duration is missing; expected a text such as 14d")
    return found * MICROSECONDS


def lasting(task: str, name: str, value: Any) -> int:
    """Microseconds of a setting that is a duration above 0. Raises UsageError, which names it, for anything else."""
    try:
        found = duration(value) if type(value) in (str, int) else 0
    except FeatureError:
        found = 0
    if found <= 0:
        raise UsageError(f"[tasks.{task}] {name} is {value!r}; expected a duration above 0, such as 14d")
    return found


def instant(value: Any) -> int:
    """int64 microseconds UTC of an instant, a date (its midnight UTC) or an ISO text of either."""
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise UsageError(f"cannot read the date {value!r}; expected ISO 8601 such as 2017-09-01") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        raise UsageError(f"cannot read the date {value!r}; expected ISO 8601 such as 2017-09-01")
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return round(aware.timestamp() * MICROSECONDS)


def not_in_log(task: str, event_type: str, types: Iterable[str]) -> UsageError:
    """What to raise where a task names a type of event that the log, which has ``types``, lacks."""
    held = ", ".join(sorted(types)) or "no event yet; bring some in with: zoo ingest FILE"
    return UsageError(f"[tasks.{task}] event_type {event_type!r} is not in the log; it has: {held}")
