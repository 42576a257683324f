"""Commands that move data: ``apply``, ``ingest``, ``materialize`` and ``check-features``."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.state import Json, state
from zoo.errors import FeatureError, SchemaError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.events.ingest import IngestReport
    from zoo.events.log import EventLog
    from zoo.project import Project


def apply(ctx: typer.Context, as_json: Json = False) -> None:
    """Register the repository's feature definitions.

    Does what `feast apply` does: what the Python files in the project declare is what `zoo train` and `zoo predict` read.
    """
    own = state(ctx)
    root = own.project.root
    with own.progress("apply") as say:
        say(0.0, "loading Feast")
        from zoo.features import Features, apply

        services = apply(root)
        features = Features.open(root)
        views = {name: [n for _, names in features.views(name) for n in names] for name in services}

    def human(console: Console) -> None:
        from zoo.cli.render import table

        rows = [
            (name, len(columns), ", ".join(columns[:5]) + (", ..." if len(columns) > 5 else ""))
            for name, columns in views.items()
        ]
        console.print(table("Feature services", ["service", "features", "for instance"], rows))

    own.answer(as_json, {"repo": str(root), "services": views}, human)


def ingest(
    ctx: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(help="Parquet, CSV or NDJSON files; the last two also gzipped.", metavar="FILE...")
    ],
    items: Annotated[
        Path | None, typer.Option(help="Put this in place of the item table: one row an item.", metavar="FILE")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="Put this in place of the user table: one row a user.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take files of events into the log.

    Each file is taken whole and once: one that the log holds already adds nothing. Bad rows are kept apart with their reason.
    Columns are found by the names that `zoo init` wrote under [ingest] in zoo.toml. A log that is not there is made by [log] there.
    """
    own = state(ctx)
    project = own.project
    settings = project.ingest
    folder, clock = log_settings(project)
    with own.progress("ingest") as say:
        from zoo.events.clock import moved
        from zoo.events.ingest import ingest

        mapping, absent = _mapping(files, settings.columns)
        log, made = _log(project, folder)
        tables = {name: path for name, path in (("items", items), ("users", users)) if path is not None}
        for name, entries in _tables(log, tables).items():
            log.put_table(name, entries, key=f"{name[:-1]}_id")
        before = log.end()
        report = ingest(log, files, mapping=mapping, progress=say, time_unit=settings.time_unit, now=_fixed(clock))
        report = replace(report, warnings=moved(log, before) if clock == "log_end" else ())
        end = log.end()
    document = {
        **report_document(report),
        "absent": absent,
        "made": made,
        "tables": list(tables),
        "events": log.count(),
        "end": end,
        "order_only": log.schema.clock == "order",
    }

    def human(console: Console) -> None:
        from zoo.cli.render import moment, pairs

        facts = {
            "rows read": report.rows,
            "added": report.added,
            "known already": report.repeated,
            "kept apart as bad": sum(report.quarantined.values()),
            **{f"  {reason}": rows for reason, rows in report.quarantined.items()},
            "columns without a place": ", ".join(report.ignored) or None,
            "columns that zoo.toml names and no file has": ", ".join(absent) or None,
            "events in the log": log.count(),
            "newest event": "order only" if log.schema.clock == "order" else moment(end),
            "tables put": ", ".join(tables) or None,
            "log version": report.version,
            "seconds": f"{report.seconds:.1f}",
        }
        console.print(pairs("", {name: value for name, value in facts.items() if value is not None}))
        if made:
            console.print(
                f"There was no event log, so an empty one was made in {folder}, as [log] in zoo.toml says it. "
                "Tables of items and users are put in with --items FILE and --users FILE"
            )
        for warning in report.warnings:
            console.print(f"Note: {warning}")
        if report.added:
            console.print(
                f"The next online answer brings these events in first; to have that done before it: {own.command('materialize')}"
            )

    own.answer(as_json, document, human)
    if report.unusable:
        reasons = ", ".join(f"{reason}: {rows}" for reason, rows in report.quarantined.items())
        raise SchemaError(
            f"{', '.join(report.unusable)}: no row can be taken, all are kept apart as bad ({reasons}); is it a file of this log's "
            "events? Look at the columns and types that [ingest] and [log] in zoo.toml name"
        )


def materialize(ctx: typer.Context, as_json: Json = False) -> None:
    """Copy recent events to the online store.

    Each user's and item's newest events go from the log to where `zoo predict` and `zoo serve` read them.
    """
    own = state(ctx)
    root = own.project.root
    with own.progress("materialize") as say:
        say(0.0, "loading Feast")
        from zoo.features import Features

        features = Features.open(root)
        if not features.services():
            raise FeatureError(
                f"the repository has no feature service yet, so there is nothing to materialize; run: {own.command('apply')}"
            )
        began = time.monotonic()
        copied = features.materialize(progress=say)
    seconds = time.monotonic() - began

    def human(console: Console) -> None:
        from zoo.cli.render import table

        rows = [(kind.removesuffix("_id"), count) for kind, count in copied.items()]
        console.print(table("Copied to the online store", ["entity", "entities with events"], rows))
        console.print(f"The online store was rebuilt from the log in {seconds:,.1f} s.")

    own.answer(as_json, {"copied": copied, "seconds": seconds}, human)


def check_features(
    ctx: typer.Context,
    service: Annotated[str, typer.Argument(help="A feature service; all of them by default.")] = "",
    entities: Annotated[int, typer.Option(help="Rows of random entities to compare for each service.")] = 100,
    seed: Annotated[int, typer.Option(help="Which entities are drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare online features with the log's.

    Draws entities, reads each service online and from the log as of now, and prints every feature that differs. Exits 1 if any does.
    """
    own = state(ctx)
    with own.progress("check-features") as say:
        say(0.0, "loading Feast")
        from zoo.consistency import drift, foreign
        from zoo.features import Features

        features = Features.open(own.project.root)
        apart = {} if service else {name: views for name in features.services() if (views := foreign(features, name))}
        names = [service] if service else [name for name in features.services() if name not in apart]
        if not names and not apart:
            raise FeatureError(
                f"the repository has no feature service yet, so there is nothing to compare; run: {own.command('apply')}"
            )
        compared, found = {}, []
        for at, name in enumerate(names):
            say(at / len(names), name)
            compared[name], differing = drift(features, name, entities, seed)
            found += differing

    def human(console: Console) -> None:
        from zoo.cli.render import table

        counts = [[name, rows, sum(d.service == name for d in found)] for name, rows in compared.items()]
        console.print(table("Online against the log", ["service", "rows", "features that differ"], counts))
        for name, views in apart.items():
            console.print(f"Not compared: {name}. Not computed from the log, but kept by Feast's own store: {', '.join(views)}.")
        if found:
            rows = [[d.service, d.feature, d.rows, str(d.example), str(d.online), str(d.log)] for d in found]
            console.print(table("", ["service", "feature", "rows", "for instance", "online", "log"], rows))
            console.print(
                f"Rebuild the store with: {own.command('materialize')}. What differs after that belongs to entities with more than "
                "max_events events."
            )

    own.answer(as_json, {"compared": compared, "apart": apart, "drift": [asdict(d) for d in found]}, human)
    if found:
        raise typer.Exit(1)


def report_document(report: IngestReport) -> dict[str, Any]:
    """An ingest report as JSON holds it."""
    return {
        "rows": report.rows,
        "added": report.added,
        "repeated": report.repeated,
        "quarantined": dict(report.quarantined),
        "ignored": list(report.ignored),
        "warnings": list(report.warnings),
        "version": report.version,
        "seconds": report.seconds,
    }


def log_settings(project: Project) -> tuple[Path, str]:
    """The log's folder, and its clock as feature_store.yaml says it: ``wall``, ``log_end`` or an instant.

    Read without Feast, whose import would take longer than most files. Raises FeatureError where feature_store.yaml names no log.
    """
    import yaml

    path = project.root / "feature_store.yaml"
    if not path.is_file():
        raise FeatureError(f"no feature_store.yaml in {project.root}; make a project with: zoo init DIR --events FILE")
    try:
        store = yaml.safe_load(os.path.expandvars(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FeatureError(f"{path} is not YAML: {error}") from error
    offline = store.get("offline_store") if isinstance(store, dict) else None
    if not isinstance(offline, dict) or not str(offline.get("type", "")).startswith("zoo.stores."):
        raise FeatureError(
            f"{path} names no event log; expected offline_store with type: zoo.stores.EventLogOfflineStore and log: PATH"
        )
    return project.root / str(offline.get("log", "data/log")), str(offline.get("clock", "wall"))


def _log(project: Project, folder: Path) -> tuple[EventLog, bool]:
    """The project's log, and whether it had to be made. Raises UsageError where [log] is another schema than its."""
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema

    stated = LogSchema(**project.log) if project.log else None
    if stated is not None and not (folder / "log" / "_delta_log").is_dir():
        return EventLog.create(folder, stated), True
    log = EventLog.open(folder)
    if stated not in (None, log.schema):
        raise UsageError(
            f"[log] in {project.root / 'zoo.toml'} is not the schema of the log in {folder}, which is {log.schema.to_json()}; "
            "a log's schema is fixed when it is made: put [log] back, or make another log"
        )
    return log, False


def _tables(log: EventLog, files: dict[str, Path]) -> dict[str, Any]:
    """Entity tables by name, all of them read before any is put into the log."""
    from zoo.cli.survey import entity_table

    return {name: entity_table(path, f"{name[:-1]}_id", log.schema).table for name, path in files.items()}


def _fixed(clock: str) -> int | None:
    """The instant (microseconds UTC) of a clock that stands still; None where later events are those after the wall clock."""
    if clock in ("wall", "log_end"):
        return None
    from zoo.tasks.settings import instant

    return instant(clock)


def _mapping(files: list[Path], columns: Any) -> tuple[dict[str, str], list[str]]:
    """The part of the stored mapping that these files have, and the columns that none of them has."""
    from zoo.events.readers import open_source

    parts = []
    for file in files:
        names = set(open_source(file).names)
        parts.append({theirs: ours for theirs, ours in columns.items() if theirs in names})
    if any(part != parts[0] for part in parts):
        raise UsageError(
            f"these files differ in the columns that zoo.toml maps ({', '.join(columns)}); ingest them with one command for each kind"
        )
    return parts[0], [theirs for theirs in columns if theirs not in parts[0]]
