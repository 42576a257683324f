"""The command ``forget``: people, or all events before an instant, leave the project."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.state import Json, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.registry import Version

_AGE = re.compile(r"([0-9]{1,5})([dwy])")
_DAYS = {"d": 1, "w": 7, "y": 365}


def forget(
    ctx: typer.Context,
    users: Annotated[list[str] | None, typer.Argument(help="Identifiers of the people to forget.", metavar="USER...")] = None,
    before: Annotated[
        str | None,
        typer.Option(help="Forget all events before a date (2024-01-31), or older than an age (90d, 12w, 2y).", metavar="WHEN"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove people, or old events, for good.

    They leave the log, its quarantine and tables, the online store and what training has cached, down to the bytes. Older versions of
    the log cannot be read afterwards; model versions trained on them are named. They stay as they are, and so do files that were ingested.
    Killed half way, give it again.
    """
    own = state(ctx)
    root = own.project.root
    with own.progress("forget") as say:
        say(0.0, "loading Feast")
        from zoo.cli.given import user_ids, versions_of
        from zoo.features import Features

        features = Features.open(root)
        instant = None if before is None else _instant(before, features.reader.now())
        log, versions = features.reader.log, versions_of(own)
        done = features.forget(user_ids(log.schema, users or []), instant, say)
        found = bool(done.users or done.events or done.quarantined or done.profiles)
        stale = [version for version in versions if not log.reproducible(_log_of(version))]

    def human(console: Console) -> None:
        from zoo.cli.render import pairs

        facts = {
            "people the log knew": done.users if users else None,
            "events removed": done.events,
            "bad rows removed": done.quarantined,
            "rows of tables removed": done.profiles,
            "log version": done.version,
            "times the log was rewritten": done.epoch,
        }
        console.print(pairs("", {name: value for name, value in facts.items() if value is not None}))
        if not found:
            sought = "these people" if users else f"events before {before}"
            console.print(f"Nothing was found of {sought}, so nothing was removed: forgotten before, or another identifier?")
        if stale:
            names = ", ".join(version.reference + "".join(f" ({alias})" for alias in version.aliases) for version in stale)
            tasks = " and ".join(f"`{own.command(f'train {model}')}`" for model in sorted({version.model for version in stale}))
            console.print(
                f"Not reproducible, for they were trained on the log as it was before: {names}. They go on answering, and learned from "
                f"what is forgotten; {tasks}, then `{own.command('promote MODEL@VERSION')}`, replaces them."
            )

    own.answer(as_json, {**asdict(done), "found": found, "not_reproducible": [version.reference for version in stale]}, human)


def _log_of(version: Version) -> Mapping[str, Any]:
    """What a version says of the log that it was trained on."""
    said = version.lineage.get("log")
    return said if isinstance(said, Mapping) else {}


def _instant(text: str, now: int) -> datetime:
    """The instant that a date or an age before ``now`` (microseconds UTC) means."""
    age = _AGE.fullmatch(text)
    if age is not None:
        return datetime.fromtimestamp(now // 1_000_000, UTC) - timedelta(days=int(age[1]) * _DAYS[age[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--before {text!r} is no date and no age; expected such as 2024-01-31, 90d, 12w or 2y") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
