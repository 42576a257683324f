"""Commands about models: ``models``, ``promote``, ``rollback``, ``predict`` and ``demo``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.given import instant, loaded, project_log, registry_of, user_ids, versions_of
from zoo.cli.registry import tags_of
from zoo.cli.state import Json, State, state
from zoo.cli.train import Workers
from zoo.errors import UsageError, choices

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.contract import Progress
    from zoo.predictor import Predictor
    from zoo.registry import Version

SCORES = {
    "AUC": "auc",
    "average precision": "average_precision",
    "accuracy": "accuracy",
    "log-loss": "log_loss",
    "NDCG@10": "ndcg@10",
    "HR@10": "hr@10",
}
"""What the list of versions shows of them, where any version has it, by its heading."""
LISTED = 5
"""Users without events that an answer names, at most."""


def models(
    ctx: typer.Context,
    search: Annotated[
        str,
        typer.Option(
            help="Only versions of which every word says something: a name, alias, member, commit, or tag=value.", metavar="TEXT"
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """List the registered versions of models.

    Each with its aliases, its scores on the test rows and the version of the log it was made from; --json says all of it.
    """
    from zoo.registry.search import matching

    own = state(ctx)
    known = versions_of(own)
    versions = matching(known, search)
    declared = {v.reference: _declared(own, v) for v in versions}

    def human(console: Console) -> None:
        from zoo.cli.render import table

        if not versions:
            none = f"no model is registered yet; train one with: {own.command('train TASK')}"
            console.print(f"none of {len(known)} versions matches {search!r}" if known else none)
            return
        scored = {name: m for name, m in SCORES.items() if any(_score(v, m) is not None for v in versions)}
        columns = ["version", "aliases", "created (UTC)", *scored, "log version", "status", "tags"]
        rows = [
            (
                v.reference,
                v.aliases or None,
                v.created,
                *(_score(v, m) for m in scored.values()),
                _log_version(v),
                v.status,
                tags_of(v),
            )
            for v in versions
        ]
        shown = len(columns) - (not any(v.tags for v in versions))
        console.print(table("Registered models", columns[:shown], [row[:shown] for row in rows]))
        for v in versions:
            if v.aliases and declared[v.reference]:
                said = ", ".join(f"{name} = {value!r}" for name, value in declared[v.reference].items())
                console.print(
                    f"{v.reference} answers by the policy of its training; {said} in zoo.toml counts from the next: "
                    f"{own.command(f'train {v.model}')}",
                    markup=False,
                )

    own.answer(as_json, {"models": [{**_version(v), "declared": declared[v.reference]} for v in versions]}, human)


def promote(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(help="The version, as in churn@3.", metavar="MODEL@VERSION")],
    alias: Annotated[str, typer.Option(help="The alias that shall mean it.", metavar="NAME")] = "champion",
    as_json: Json = False,
) -> None:
    """Point an alias at a version of a model.

    The champion is the version that `zoo predict` uses, and that a running `zoo serve` changes to within seconds.
    """
    from zoo.registry import parse

    own = state(ctx)
    asked = parse(reference)
    if asked.number is None and asked.alias is None:
        raise UsageError(f"{reference!r} names no version; expected MODEL@VERSION as in {asked.model}@3. `zoo models` lists them")
    with registry_of(own) as registry:
        version = registry.get(reference)
        before = registry.promote(version.model, version.number, alias)
    document = {"model": version.model, "version": version.number, "alias": alias, "before": before and before.number}

    def human(console: Console) -> None:
        was = "" if before is None or before.number == version.number else f"; before, it was {before.reference}"
        console.print(f"{version.model}@{alias} is {version.reference}{was}")

    own.answer(as_json, document, human)


def rollback(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="A model, or one of its aliases: churn or churn@champion.", metavar="TASK")],
    as_json: Json = False,
) -> None:
    """Point an alias back at the version that it named before.

    A running `zoo serve` changes within seconds. The same command again goes forward.
    """
    from zoo.registry import CHAMPION, parse

    own = state(ctx)
    asked = parse(task)
    if asked.number is not None:
        raise UsageError(
            f"{task!r} names a version; expected a model or an alias, as in {asked.model} or {asked.model}@{CHAMPION}"
        )
    alias = asked.alias or CHAMPION
    with registry_of(own) as registry:
        version, before = registry.rollback(asked.model, alias)
    document = {"model": version.model, "version": version.number, "alias": alias, "before": before.number}

    def human(console: Console) -> None:
        console.print(f"{version.model}@{alias} is {version.reference} again; before, it was {before.reference}")

    own.answer(as_json, document, human)


def predict(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="A model: churn (its champion), churn@3 or churn@NAME.", metavar="TASK")],
    user: Annotated[list[str] | None, typer.Option(help="A user's identifier; may be repeated.", metavar="ID")] = None,
    rows: Annotated[
        Path | None, typer.Option(help="A Parquet, CSV or NDJSON file with a row a prediction.", metavar="FILE")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Answer as of this time. Default: the project's clock.", metavar="TIME")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the N highest scores.", min=1, metavar="N")] = None,
    of: Annotated[str | None, typer.Option(help="The class whose scores --limit looks at.", metavar="CLASS")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Everybody whom the log knows, into the file --out.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the scores to this Parquet or Arrow file (.parquet, .arrow).", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict for users, the rows of a file, or everybody.

    A file has the task's key columns, and `days` where a churn has several horizons; a user of --user is answered with a row for
    each of them. An answer says how old the newest event behind it is, and whether there is any: a user without events is
    answered as one with an empty history. TIME is ISO 8601, such as 2017-09-01 or 2017-09-01T12:00Z; without an
    offset it is read in the project's timezone.
    """
    own = state(ctx)
    project = own.project
    if [bool(user), bool(rows), everyone].count(True) != 1:
        raise UsageError("say whom to predict for: either --user ID, which may be repeated, or --rows FILE, or --all")
    if everyone and out is None:
        raise UsageError("--all writes a file; say which, as in --out scores.parquet")
    if out is not None and (user or limit is not None):
        raise UsageError("--out is for --all or --rows FILE, and writes every row; leave out --user and --limit")
    moment = None if at is None else instant(at, project.timezone)
    from zoo.cli.survey import keyed_rows

    schema = project_log(own).schema
    users, table = user_ids(schema, user or []), None if rows is None else keyed_rows(rows, schema)
    with own.progress(f"predict {task}") as say:
        say(0.0, "loading the model")
        predictor = loaded(own, task)
        if out is not None:
            _into(own, out, predictor, table, moment, say, as_json)
            return
        answer = predictor.predict(predictor.rows_of(users) if table is None else table, at=moment)
    if limit is not None:
        by = "score" if of is None else f"score:{of}"
        if by not in answer.column_names:
            raise UsageError(
                choices("class for --of", of or "(none)", predictor.outputs)
                if predictor.outputs
                else f"{task} has one score; leave out --of {of}"
            )
        answer = answer.sort_by([(by, "descending")]).slice(0, limit)

    def human(console: Console) -> None:
        from zoo.cli.render import duration, table

        usual: dict[str, tuple[Any, ...]] = {"missing": ([],), "calibrated": (True, None), "features": ("fresh",)}
        rare = [name for name, values in usual.items() if any(row[name] not in values for row in answer.to_pylist())]
        left_out = {*usual} - {*rare} | ({"id"} if not project.traces else set())
        shown = answer.select([name for name in answer.column_names if name not in left_out])
        records = [
            {
                ("newest event" if k == "newest_event_age" else k): duration(v) if k == "newest_event_age" else v
                for k, v in r.items()
            }
            for r in shown.to_pylist()
        ]
        rows = [[str(v) if k.endswith("_id") else v for k, v in r.items()] for r in records]
        console.print(
            table(
                f"{task}: {len(rows):,} prediction{'s' * (len(rows) != 1)}",
                list(records[0]) if records else shown.column_names,
                rows,
            )
        )
        new = (str(r["user_id"]) for r in records if r["known"] is False) if "user_id" in answer.column_names else ()
        cold = list(dict.fromkeys(new))  # a user may have several rows
        if cold:
            some = f"{', '.join(cold[:LISTED])}{', ...' if len(cold) > LISTED else ''}"
            console.print(f"No event of {some} before this time, so answered as new. {_example(own)}".rstrip())

    own.answer(as_json, {"task": task, "rows": answer.to_pylist()}, human)


def _into(own: State, out: Path, predictor: Predictor, rows: Any, at: int | None, say: Progress, as_json: bool) -> None:
    """Predictions of rows, or of everybody, in a file."""
    from zoo.population import check, write

    check(out)
    given = predictor.everyone() if rows is None else rows
    done = write(predictor.predict_batches(given, at=at), out, len(given), say)
    document = {"model": predictor.version.reference, "rows": done, "file": str(out)}
    own.answer(as_json, document, lambda console: console.print(f"{done:,} rows of {predictor.version.reference} in {out}"))


def demo(
    ctx: typer.Context,
    final: Annotated[bool, typer.Option("--final", help="All four test cuts instead of one; up to an hour.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.", metavar="FILE")] = None,
    workers: Workers = None,
) -> None:
    """Show the whole idea on real purchases.

    A year of them, from the event log to predictions with their versions.
    """
    own = state(ctx)
    if own.without:
        raise UsageError("the demo uses the members that its zoo.toml names; --without does not go with it")
    from zoo.cli.demo import run

    run(own.root, final=final, json_path=json_path, workers=workers, console=own.console)


def _example(own: State) -> str:
    """A sentence with an identifier that the log has; empty for an empty log."""
    import numpy as np

    log = project_log(own)
    known = log.dictionary("user_id")
    return (
        f"The log's user identifiers are {log.schema.user_id}, such as {known.decode(np.array([2]))[0]}."
        if known.size > 2
        else ""
    )


def _score(version: Version, metric: str) -> Any:
    """The stack's test score, wherever the metrics keep it."""
    found = version.metrics.get("stack", version.metrics)
    return found.get(metric) if isinstance(found, Mapping) else None


def _log_version(version: Version) -> Any:
    log = version.lineage.get("log")
    return log.get("log") if isinstance(log, Mapping) else None


def _declared(own: State, version: Version) -> dict[str, Any]:
    """What zoo.toml says of a version's policy in another way than it was trained with."""
    from zoo.policy import Policy

    task = own.project.tasks.get(version.model)
    return {} if task is None else Policy.kept(version.lineage.get("serving")).declared(task.serving)


def _version(version: Version) -> dict[str, Any]:
    return {
        "model": version.model,
        "version": version.number,
        "reference": version.reference,
        "aliases": list(version.aliases),
        "created": version.created,
        "status": version.status,
        "digest": version.digest,
        "metrics": version.metrics,
        "lineage": version.lineage,
        "tags": version.tags,
    }
