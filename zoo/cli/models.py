"""Commands about models: ``train``, ``models``, ``promote``, ``predict``, ``serve`` and ``demo``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.given import instant, project_log, registry_of, user_ids, versions_of
from zoo.cli.registry import tags_of
from zoo.cli.state import Json, State, state
from zoo.errors import UsageError, choices

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.contract import Progress
    from zoo.predictor import Predictor
    from zoo.registry import Version

OFTEN = 0.1
"""Share of test rows from which it is said that what is asked for may not be listed."""
LISTED = 5
"""Users without events that an answer names, at most."""
METRICS = ("auc", "average_precision", "log_loss")
COSTS = ("ms a row", "MB")
"""What a member costs where it answers."""
Workers = Annotated[int | None, typer.Option(help="Processes that fit models. Default: one a core.", min=1, metavar="N")]


def train(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="A task of zoo.toml.", metavar="TASK")],
    member: Annotated[
        list[str] | None, typer.Option(help="Train only this member of the stack; may be repeated.", metavar="MODEL")
    ] = None,
    test_start: Annotated[str | None, typer.Option(help="Test on rows from here on.", metavar="TIME")] = None,
    test_end: Annotated[str | None, typer.Option(help="Test on rows before this.", metavar="TIME")] = None,
    workers: Workers = None,
    register: Annotated[bool, typer.Option(help="Keep the model in the registry.")] = True,
    check_leaks: Annotated[
        bool,
        typer.Option("--check-leaks", help="Fit a member on shuffled labels and beside a random column, however long it takes."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a task's members and their stack.

    The stack is tested on later rows than it was trained on, and registered. What an earlier run already fitted on the same data
    is reused. TIME is ISO 8601, such as 2017-09-01 or 2017-09-01T12:00Z; without an offset it is read in the project's timezone.
    """
    own = state(ctx)
    project = own.project
    settings = project.task(task)
    for name in member or ():
        if name not in settings.members:
            raise UsageError(f"{name!r} is no member of [tasks.{task}]; its members are: {', '.join(settings.members)}")
    start, end = (None if text is None else instant(text, project.timezone) for text in (test_start, test_end))
    plugins = own.plugins
    with own.progress(f"train {task}") as say:
        say(0.0, "loading Feast")
        from zoo.fitting import PluginSource
        from zoo.jobs import Processes, Serial
        from zoo.training import train

        trained = train(
            project,
            task,
            plugins=plugins,
            source=PluginSource(own.without),
            executor=Serial() if workers == 1 else Processes(workers),
            test_start=start,
            test_end=end,
            members=member or None,
            register=register,
            check_leaks=check_leaks,
            progress=say,
        )
    version = trained.version
    document = {**trained.record, "model": None if version is None else version.model, "version": version and version.number}

    def human(console: Console) -> None:
        from zoo.cli.render import duration

        shown = rankings if "comparisons" in trained.record else leaderboard
        console.print(shown(f"{task}: scores on the test rows", trained.record))
        second = trained.record.get("second_stage")
        if second:
            console.print(
                f"on {second['validation_rows']:,} validation rows {second['chosen']} was chosen, by NDCG@10: "
                + ", ".join(f"{name} {value:.4f}" for name, value in second["ndcg@10"].items())
            )
        if trained.record.get("exclude_seen") and trained.record["seen_before"] > OFTEN:
            console.print(
                f"In {trained.record['seen_before']:.0%} of the test rows the item is in the user's history, which exclude_seen = true "
                "leaves out of every list: no model can name it. Set it to false in zoo.toml if these should be listed."
            )
        if second and trained.record.get("refit"):
            console.print("members were then fitted again on all rows before the test")
        if trained.record.get("final"):
            for line in of_stack(trained.record):
                console.print(line)
        console.print(f"{trained.record.get('rows', 0):,} rows to train on, {trained.record.get('test_rows', 0):,} to test on")
        if trained.record.get("reused"):
            console.print(f"reused from an earlier run: {', '.join(map(str, trained.record['reused']))}")
        for part, line in trained.record.get("slices", {}).items():
            if line.get("worse"):
                console.print(f"Worse than {line['best_member']} on {line['rows']:,} rows: {part}")
        for guard in trained.record.get("guards", ()):
            if not guard["fine"]:
                console.print(f"Leak? {guard['guard']}: {guard['seen']}. What to do: {guard['advice']}.")
        console.print(f"took {duration(trained.record.get('seconds'))}")
        if version is None:
            console.print("not registered, as asked")
        else:
            console.print(f"registered as {version.reference}. Make it the one that answers: zoo promote {version.reference}")

    own.answer(as_json, document, human)


def leaderboard(title: str, record: Mapping[str, Any]) -> Any:
    """A table of members, mean and stack from a training record."""
    from zoo.cli.render import cell, table

    lines = {**record.get("members", {}), **{name: record[name] for name in ("mean", "stack") if record.get(name)}}
    lines |= record.get("baselines", {})
    if "classes" in record:
        return _of_classes(title, lines, list(record["classes"]))
    rows = []
    for name, line in lines.items():
        interval = line.get("auc_interval")
        shown = f"{cell(interval[0])} to {cell(interval[1])}" if interval else None
        seconds = line.get("seconds")
        took = None if seconds is None else f"{seconds:.1f}"
        rows.append((name, line.get("auc"), shown, *(line.get(m) for m in METRICS[1:]), took, *_costs(line)))
    heads = ["model", "AUC", "95 % interval", "average precision", "log-loss", "seconds", *COSTS]
    return table(title, heads, rows)


def _costs(line: Mapping[str, Any]) -> list[str | None]:
    """What a member costs where it answers: milliseconds a row and megabytes; nothing of what is no member."""
    return [None if line.get(name) is None else f"{line[name]:.3g}" for name in ("ms", "mb")]


def of_stack(record: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what was chosen on later rows, on calibration, and on acting by the stated costs and capacity."""
    from zoo.cli.render import cell

    final, stack = record["final"], record["stack"]
    tried = ", ".join(f"{name} {cell(loss)}" for name, loss in final.get("log_loss", {}).items())
    yield f"final model {final['chosen']}" + (f", by log-loss on {final['rows']:,} later training rows: {tried}" if tried else "")
    for member, why in final.get("dropped", {}).items():
        yield f"{member} is left out: {why}"
    if not record.get("refit", True):
        yield "members are those that scored the newest fold (refit = false)"
    mapped = final["calibration"]
    tried = ", ".join(f"{name} {cell(loss)}" for name, loss in mapped["log_loss"].items())
    yield f"calibration {mapped['chosen']}" + (f", by log-loss on later ones: {tried}" if tried else "")
    said = []
    for name, what in (("ece", "calibration error"), ("slope", "slope"), ("intercept", "intercept")):
        if stack.get(name) is not None:
            low, high = stack[f"{name}_interval"]
            said.append(f"{what} {cell(stack[name])} ({cell(low)} to {cell(high)})")
    yield "the stack on the test rows: " + ", ".join(said)
    for name, act in record.get("decisions", {}).items():
        stated = f"a missed positive costs {act['ratio']:g} needless acts" if name == "costs" else f"capacity {act['capacity']:g}"
        worth = f"; cost a row {cell(act['cost'])}, of acting on nobody {cell(act['nobody'])}, on all {cell(act['everybody'])}"
        yield (
            f"{stated}: act from {cell(act['threshold'])} on, {act['acted']:.1%} of the test rows, "
            f"precision {cell(act['precision'])}, recall {cell(act['recall'])}{worth if 'cost' in act else ''}"
        )


def _of_classes(title: str, lines: Mapping[str, Mapping[str, Any]], classes: list[str]) -> Any:
    from zoo.cli.render import cell, table

    rows = []
    for name, line in lines.items():
        low, high = line["log_loss_interval"]
        seconds = line.get("seconds")
        took = None if seconds is None else f"{seconds:.1f}"
        of_classes = [line.get(f"average_precision:{each}") for each in classes]
        rows.append((name, line["log_loss"], f"{cell(low)} to {cell(high)}", line["accuracy"], *of_classes, took, *_costs(line)))
    heads = [f"AP {each}" for each in classes]
    return table(title, ["model", "log-loss", "95 % interval", "accuracy", *heads, "seconds", *COSTS], rows)


def rankings(title: str, record: Mapping[str, Any]) -> Any:
    """A table of members and their rank average from the training record of a task that ranks items."""
    from zoo.cli.render import cell, table

    rows = []
    lines = {**record["members"], **{name: record[name] for name in ("mean", "stack") if record.get(name)}}
    for name, line in lines.items():
        low, high = line["ndcg@10_interval"]
        seconds = line.get("seconds")
        interval, took = f"{cell(low)} to {cell(high)}", None if seconds is None else f"{seconds:.1f}"
        metrics = [line[metric] for metric in ("hr@1", "hr@10", "ndcg@10")]
        rows.append((name, *metrics, interval, line["mrr@10"], line["coverage@10"], took))
    return table(title, ["model", "HR@1", "HR@10", "NDCG@10", "95 % interval", "MRR@10", "coverage@10", "seconds"], rows)


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

    def human(console: Console) -> None:
        from zoo.cli.render import table

        if not versions:
            none = "no model is registered yet; train one with: zoo train TASK"
            console.print(f"none of {len(known)} versions matches {search!r}" if known else none)
            return
        rows = [
            (v.reference, v.aliases or None, v.created, *(_score(v, m) for m in METRICS), _log_version(v), v.status, tags_of(v))
            for v in versions
        ]
        columns = ["version", "aliases", "created (UTC)", "AUC", "average precision", "log-loss", "log version", "status", "tags"]
        tagged = any(v.tags for v in versions)
        shown = len(columns) - (not tagged)
        console.print(table("Registered models", columns[:shown], [row[:shown] for row in rows]))

    own.answer(as_json, {"models": [_version(v) for v in versions]}, human)


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

    A file has the task's key columns. An answer says how old the newest event behind it is, and whether there is any: a user
    without events is answered as one with an empty history. TIME is ISO 8601, such as 2017-09-01 or 2017-09-01T12:00Z; without an
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
        from zoo.predictor import Predictor

        if out is not None:
            _into(own, out, Predictor.load(task, repo=project.root, without=own.without), table, moment, say, as_json)
            return
        predictor = Predictor.load(task, repo=project.root, without=own.without)
        answer = predictor.predict(table, users=users or None, at=moment)
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

        usual = {"missing": [], "features": "fresh"}
        rare = [name for name, value in usual.items() if any(row[name] != value for row in answer.to_pylist())]
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
        cold = [str(r["user_id"]) for r in records if not r["known"]] if "user_id" in answer.column_names else []
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


def serve(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models to answer for. Default: those of the tasks that have a champion.", metavar="MODEL..."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 for any free one.", min=0, max=65535)] = 8000,
    as_json: Json = False,
) -> None:
    """Answer predictions over HTTP.

    POST /v1/predict, POST /v1/recommend and POST /v1/events, until Ctrl-C. The log on stderr says the address once it listens, --json
    prints it.
    """
    own = state(ctx)
    project = own.project
    if not (models or project.tasks):
        raise UsageError(f"{project.root} has no task, so there is no model to answer; name one, as in: zoo serve churn@3")
    asked = tuple(models or _answering(own))
    from zoo.service import serve

    def ready(url: str, versions: list[str]) -> None:
        own.document({"url": url, "models": versions})

    serve(project.root, asked, host, port, own.without, ready if as_json else None)


def key(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Who holds the key; a former key of that name ends.", metavar="NAME")],
    role: Annotated[list[str], typer.Option(help="read, push or admin; may be repeated.", metavar="ROLE")],
    as_json: Json = False,
) -> None:
    """Make an API key for the service, and print it once.

    Its hash is kept in the file that `keys` in `[service.auth]` of zoo.toml names (keys.json where it names none); a running
    `zoo serve` reads it within seconds. The key itself is kept nowhere.
    """
    from zoo.service.access import add_key
    from zoo.service.settings import Settings

    own = state(ctx)
    path = Settings.of(own.project).keys or own.project.root / "keys.json"
    made = add_key(path, name, role)

    def human(console: Console) -> None:
        console.print(made, soft_wrap=True, highlight=False)

    own.answer(as_json, {"name": name, "roles": sorted(set(role)), "key": made, "file": str(path)}, human)


def _answering(own: State) -> list[str]:
    """Tasks that have a champion; all of them where none has, for the error that says what is missing."""
    champions = {version.model for version in versions_of(own) if "champion" in version.aliases}
    return [task for task in own.project.tasks if task in champions] or list(own.project.tasks)


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
