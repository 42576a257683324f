"""What several commands take, open or write: identifiers and instants as they were typed, the log, registered versions, pages."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from zoo.errors import UnknownReferenceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from zoo.cli.state import State
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema
    from zoo.predictor import Predictor
    from zoo.registry import Registry, Version

SHOWN = 5
"""Ids of answers that are listed as text."""


def instant(text: str, timezone: str) -> int:
    """int64 microseconds UTC of ISO 8601 text; without an offset it is a time of that timezone. Raises UsageError."""
    from datetime import datetime
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"cannot read the time {text!r}; expected ISO 8601, such as 2017-09-01 or 2017-09-01T12:00Z") from None
    if found.tzinfo is None:
        try:
            found = found.replace(tzinfo=ZoneInfo(timezone))
        except (ZoneInfoNotFoundError, ValueError):
            raise UsageError(
                f"zoo.toml has timezone = {timezone!r}; expected an IANA name such as Europe/London or UTC"
            ) from None
    return int(found.replace(microsecond=0).timestamp()) * 1_000_000 + found.microsecond


def written(path: Path, text: str) -> None:
    """Write a page, and its folder where there is none. Raises UsageError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the page to {path}: {error.strerror}; name another file with --output") from error


def project_log(own: State) -> EventLog:
    """The project's event log. Raises ZooError where there is none."""
    from zoo.cli.data import log_settings
    from zoo.events.log import EventLog

    return EventLog.open(log_settings(own.project)[0])


def user_ids(schema: LogSchema, users: list[str]) -> list[int] | list[str]:
    """Identifiers from the command line in the log's declared type. Raises UsageError for one that it cannot be."""
    if not users or schema.user_id == "string":
        return users
    for text in users:
        if not text.removeprefix("-").isdecimal() or not text.isascii():
            raise UsageError(f"user {text!r} is no whole number; this log's user identifiers are int, as in --user 42")
    return [int(text) for text in users]


def say_ids(own: State, console: Console, ids: Sequence[str]) -> None:
    """Print the ids by which ``zoo trace`` finds these answers, the first few in their order; nothing where the project keeps no traces."""
    if not own.project.traces or not ids:
        return
    listed = ", ".join(ids[:SHOWN]) + (", ... (--json has all)" if len(ids) > SHOWN else "")
    said = (
        f"id {listed} ({own.command(f'trace {ids[0]}')})"
        if len(ids) == 1
        else f"ids, in this order: {listed} ({own.command('trace ID')})"
    )
    console.print(said, soft_wrap=True)


@contextmanager
def registry_of(own: State, *, create: bool = False) -> Iterator[Registry]:
    """The project's registry. Raises RegistryError where there is none yet, unless it is to be made then."""
    from zoo.registry import Registry

    with told_untrained(own), Registry.of(own.project, create=create) as registry:
        yield registry


@contextmanager
def told_untrained(own: State) -> Iterator[None]:
    """Where the registry has no version of a task of the project that is asked for in this block, say that it was never trained."""
    try:
        yield
    except UnknownReferenceError as error:
        if error.model not in own.project.tasks:
            raise
        raise UnknownReferenceError(
            f"{error.model} was never trained in {own.project.root}, so there is no version of it; train it with: "
            + own.command(f"train {error.model}")
        ) from None


def versions_of(own: State) -> list[Version]:
    """Every version; none where there is no registry yet, and none is made."""
    from zoo.registry.database import missing

    if missing(own.project.registry_url) is not None:
        return []
    with registry_of(own) as registry:
        return registry.versions()


def loaded(own: State, reference: str) -> Predictor:
    """A version that answers. Raises as ``Predictor.load``."""
    from zoo.predictor import Predictor

    with told_untrained(own):
        return Predictor.load(reference, repo=own.project.root, without=own.without)
