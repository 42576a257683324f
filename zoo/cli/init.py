"""The command ``init``: a project for somebody's own log, made from what its files hold."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.state import Json, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.cli.shape import Shape
    from zoo.cli.survey import EntityTable, Survey

FILE = "FILE"
LISTED = 12
"""Event types that the report lists, at most."""


def init(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(help="The project's folder; new or empty.", metavar="DIR")],
    events: Annotated[Path, typer.Option(help="Events: Parquet, CSV or NDJSON (also gzipped).", metavar=FILE)],
    items: Annotated[Path | None, typer.Option(help="One row an item, with item_id.", metavar=FILE)] = None,
    users: Annotated[Path | None, typer.Option(help="One row a user, with user_id.", metavar=FILE)] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="A column of the events by another name, as in user_id=buyer; may be repeated.", metavar="OURS=THEIRS"),
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Where the clock of times without an offset stood, as in Europe/London.", metavar="NAME")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a project for your own log.

    Inspects the files, says what it found, and writes a small Feast repository, a zoo.toml and an empty event log that takes such
    files. Events have columns user_id, item_id, event_type, and timestamp or position; common other names are recognised.
    """
    own = state(ctx)
    mapping = _mapping(column or [])
    _check_empty(directory)
    with own.progress("init") as say:
        from zoo.cli.shape import shape
        from zoo.cli.survey import entity_table, survey
        from zoo.events.schema import check_timezone

        if timezone is not None:
            check_timezone(timezone)
        found = survey(events, mapping, timezone, say)
        schema = found.inspection.schema
        tables = {
            name: entity_table(path, key, schema)
            for name, key, path in (("items", "item_id", items), ("users", "user_id", users))
            if path is not None
        }
        arrow = {name: entry.table for name, entry in tables.items()}
        decided = shape(found, arrow.get("items"), arrow.get("users"), own.plugins)
        written = _write(directory, found, decided, arrow)
    document = _document(directory, found, decided, tables, written)
    steps = _next(directory, events, decided)
    own.answer(as_json, {**document, "next": steps}, lambda console: _report(console, document, found, steps))


def _mapping(columns: list[str]) -> dict[str, str]:
    """The file's name -> the log's, of ``OURS=THEIRS`` options."""
    out: dict[str, str] = {}
    for text in columns:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise UsageError(f"--column {text!r} cannot be read; expected the log's name, =, and the file's, as in user_id=buyer")
        out[theirs] = ours
    return out


def _check_empty(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; name a folder that is new or empty")
    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty; name a folder that is new or empty, so that nothing of yours is overwritten")


@contextmanager
def _all_or_nothing(directory: Path) -> Iterator[None]:
    """A folder that is new or empty is so again where the block fails or is interrupted."""
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        if made:
            shutil.rmtree(made[-1], ignore_errors=True)
        else:
            for entry in directory.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise


def _write(directory: Path, found: Survey, decided: Shape, tables: Mapping[str, Any]) -> list[str]:
    """The log, its tables and the project's files; returns the files' names."""
    from zoo.cli.definitions import files
    from zoo.events.log import EventLog
    from zoo.project import IngestSettings

    inspection = found.inspection
    name = re.sub(r"\W+", "_", directory.resolve().name, flags=re.ASCII).strip("_") or "shop"
    texts = files(decided, name, IngestSettings(inspection.mapping, inspection.time_unit))
    with _all_or_nothing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        log = EventLog.create(directory / "data/log", inspection.schema)
        for table, rows in tables.items():
            log.put_table(table, rows, key=f"{table[:-1]}_id")
        for file, text in texts.items():
            (directory / file).write_text(text, encoding="utf-8")
    return list(texts)


def _document(
    directory: Path, found: Survey, decided: Shape, tables: Mapping[str, EntityTable], written: list[str]
) -> dict[str, Any]:
    inspection = found.inspection
    theirs = {ours: name for name, ours in inspection.mapping.items()}
    left_out = {f"event column {name}": why for name, why in inspection.left_out.items()}
    if not decided.timed and "event column timestamp" in left_out:
        left_out["event column timestamp"] = "it holds no times; positions say the order"
    for name, entry in tables.items():
        left_out |= {f"{name}.{column}": why for column, why in entry.left_out.items()}
    return {
        "repo": str(directory),
        "files": written,
        "rows": found.rows,
        "complete": inspection.complete,
        "columns": {ours: theirs.get(ours, ours) for ours in inspection.columns},
        "types": {"user_id": inspection.schema.user_id, "item_id": inspection.schema.item_id},
        "clock": inspection.schema.clock,
        "timezone": inspection.schema.timezone,
        "time_unit": inspection.time_unit,
        "first": found.first if decided.timed else None,
        "end": found.end if decided.timed else None,
        "users": found.users,
        "items": found.items,
        "event_types": found.event_types,
        "bad_rows": found.bad,
        "tables": {name: {"rows": len(entry.table), "columns": entry.table.column_names} for name, entry in tables.items()},
        "windows": decided.windows if decided.timed else [],
        "churn": vars(decided.churn) if decided.churn else None,
        "no_churn": decided.no_churn or None,
        "members": decided.members,
        "behaviour": {"members": decided.behaviour, "horizon": decided.horizons[0]} if decided.behaviour else None,
        "propensity": {"event_type": decided.bought, "members": decided.behaviour, "horizon": decided.horizons[1]}
        if decided.behaviour and decided.bought
        else None,
        "recommendation": {"event_type": decided.next_item, "members": decided.ranking} if decided.next_item else None,
        "no_recommendation": decided.no_ranking or None,
        "left_out": {**left_out, **decided.left_out},
    }


def _next(directory: Path, events: Path, decided: Shape) -> list[str]:
    """The commands that follow."""
    from shlex import quote

    zoo = f"zoo --repo {quote(str(directory))}"
    steps = [f"{zoo} apply", f"{zoo} ingest {quote(str(events))}", f"{zoo} materialize"]
    if decided.churn:
        steps += [f"{zoo} train churn", f"{zoo} promote churn@1", f"{zoo} predict churn --user ID"]
    if decided.behaviour:
        steps += [f"{zoo} train behaviour"]
    if decided.next_item:
        steps += [f"{zoo} train recommendation", f"{zoo} promote recommendation@1", f"{zoo} recommend --user ID"]
    return steps


def _report(console: Console, document: Mapping[str, Any], found: Survey, steps: list[str]) -> None:
    from zoo.cli.render import moment, pairs, table

    looked = "" if document["complete"] else " (the first rows of the file; the rest may hold more)"
    span = (
        f"{moment(document['first'])} to {moment(document['end'])}" if document["clock"] == "time" else "an order only, no times"
    )
    facts = {
        "rows looked at": f"{document['rows']:,}{looked}",
        "users": f"{found.users:,}, identifiers are {document['types']['user_id']}",
        "items": f"{found.items:,}, identifiers are {document['types']['item_id']}",
        "from, to": span,
    }
    facts |= {
        f"table {name}": f"{entry['rows']:,} rows: {', '.join(entry['columns'])}" for name, entry in document["tables"].items()
    }
    console.print(pairs(f"{found.inspection.path.name}", facts))
    console.print(table("Columns", ["the log's", "the file's"], document["columns"].items()))
    types = list(document["event_types"].items())
    rows = types[:LISTED] + ([(f"{len(types) - LISTED} more", sum(n for _, n in types[LISTED:]))] if types[LISTED:] else [])
    console.print(table("Event types", ["type", "rows"], rows))
    if document["bad_rows"]:
        console.print(table("Bad rows", ["reason", "rows"], document["bad_rows"].items()))
        console.print("Ingest keeps them apart, each with its reason and content; the log does not take them.")
    if document["left_out"]:
        console.print(table("Not used", ["what", "why"], document["left_out"].items()))
    churn = document["churn"]
    if churn:
        console.print(
            f"Task churn: of the users with a {churn['event_type']} in {churn['active']}, who has none in the next {churn['horizon']}; "
            f"members {', '.join(document['members'])}"
        )
    else:
        console.print(f"No churn task: {document['no_churn']}")
    if (listed := document["behaviour"]) is not None:
        console.print(
            f"Task behaviour: what a user does next after each event, or nothing ({listed['horizon']}); members "
            + ", ".join(listed["members"])
        )
    if (listed := document["propensity"]) is not None:
        console.print(
            f"Task propensity: does a {listed['event_type']} follow each event ({listed['horizon']}); members "
            + ", ".join(listed["members"])
        )
    if (listed := document["recommendation"]) is not None:
        console.print(
            f"Task recommendation: which item comes next by a {listed['event_type']}; members {', '.join(listed['members'])}"
        )
    else:
        console.print(f"No recommendation task: {document['no_recommendation']}")
    console.print(f"Written to {document['repo']}: {', '.join(document['files'])}, and an empty event log in data/log. Next:")
    for step in steps:
        console.print(f"  {step}")
    if document["clock"] == "time":
        console.print(
            '"Now" is just after the newest event. For a shop that is running, set clock: wall in '
            f"{document['repo']}/feature_store.yaml before new events are pushed."
        )
