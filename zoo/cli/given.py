"""What several commands take, open or write: identifiers and instants as they were typed, the log, registered versions, pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.errors import UnknownReferenceError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.cli.state import State
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema
    from zoo.predictor import Predictor
    from zoo.registry import Registry, Version


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


def registry_of(own: State, *, create: bool = False) -> Registry:
    """The project's registry, to be closed. Raises RegistryError where there is none yet, unless it is to be made then."""
    from zoo.registry import Registry

    return Registry.of(own.project, create=create)


def versions_of(own: State) -> list[Version]:
    """Every version; none where there is no registry yet, and none is made."""
    from zoo.registry.database import missing

    if missing(own.project.registry_url) is not None:
        return []
    with registry_of(own) as registry:
        return registry.versions()


def loaded(own: State, reference: str) -> Predictor:
    """A version that answers. Raises as ``Predictor.load``; of a task that was never trained the error says so."""
    from zoo.predictor import Predictor
    from zoo.registry import parse

    try:
        return Predictor.load(reference, repo=own.project.root, without=own.without)
    except UnknownReferenceError:
        model = parse(reference).model
        if model in own.project.tasks and not any(version.model == model for version in versions_of(own)):
            raise UnknownReferenceError(
                f"{model} was never trained in {own.project.root}, so nothing answers for it; train it with: "
                + own.command(f"train {model}")
            ) from None
        raise
