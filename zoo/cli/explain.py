"""The command ``explain``: what moved a user's score, and what moves scores on the whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.given import instant, loaded, project_log, registry_of, say_ids, user_ids, written
from zoo.cli.state import Json, State, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

SHORT, LONG, ALL = 5, 10, 1_000_000
"""Columns of a member, and events, that are listed: as text, as JSON, and with ``--all``."""
UNITS = "Amounts are log-odds for probabilities, the value itself for values; columns by scores before the softmax are in those."


def explain(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="A model: churn (its champion), churn@3 or churn@NAME.", metavar="TASK")],
    user: Annotated[list[str] | None, typer.Option(help="A user's identifier; may be repeated.", metavar="ID")] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="A Parquet, CSV or NDJSON file of rows to explain, with the task's key columns.", metavar="FILE"),
    ] = None,
    at: Annotated[str | None, typer.Option(help="Explain as of this time. Default: the project's clock.", metavar="TIME")] = None,
    of: Annotated[
        str | None, typer.Option(help="The class whose score is explained. Default: the likeliest.", metavar="CLASS")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(help=f"Columns of each member to list. Default: {SHORT}, with --json {LONG}.", min=1, metavar="N"),
    ] = None,
    events: Annotated[int, typer.Option(help="Newest events of each sequence to look at.", min=0, metavar="N")] = 10,
    every: Annotated[bool, typer.Option("--all", help="Every column of each member, and every event looked at.")] = False,
    output: Annotated[Path | None, typer.Option(help="Draw it, too: one HTML page.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Say what moved a prediction.

    With --user or --rows: how much each member moved the score of the stack, how much each column moved each member, and how much
    single events did; the strongest few of each. A user is answered at each horizon where a churn has several. Without them: what
    moves scores on the whole, measured on the test rows when the version was trained. Amounts are in log-odds where scores are
    probabilities.
    """
    own = state(ctx)
    if output is not None and not user and rows is None:
        raise UsageError(
            "--output draws what moved single scores: name them with --user ID or --rows FILE; zoo report has the whole"
        )
    if every and top is not None:
        raise UsageError(f"--all lists every column, --top {top} does not; leave one of them out")
    top = ALL if every else top or (SHORT if output is None and not as_json else LONG)
    if user and rows:
        raise UsageError("say whom to explain: either --user ID, which may be repeated, or --rows FILE")
    if not user and rows is None:
        _whole(own, task, top, as_json)
        return
    project = own.project
    moment = None if at is None else instant(at, project.timezone)
    from zoo.cli.survey import keyed_rows

    schema = project_log(own).schema
    users, table = user_ids(schema, user or []), None if rows is None else keyed_rows(rows, schema)
    with own.progress(f"explain {task}") as say:
        say(0.0, "loading the model")
        predictor = loaded(own, task)
        table = predictor.rows_of(users) if table is None else table
        found = predictor.explain(table, at=moment, output=of, top=top, events=events)
    keys = table.select((*predictor.entities, *predictor.context)).to_pylist()
    answers: list[dict[str, Any]] = [{**key, **each.as_dict()} for key, each in zip(keys, found, strict=True)]
    durations = predictor.features.durations(predictor.service)
    named = [", ".join(f"{name} {value}" for name, value in key.items()) for key in keys]
    document = {"task": task, "version": predictor.version.reference, "rows": answers}
    if output is not None:
        from zoo.report.moved import render

        said = partial(_said, durations=durations)
        written(output, render(predictor.version.reference, list(zip(named, answers, strict=True)), said))

    def human(console: Console) -> None:
        for who, row in zip(named, answers, strict=True):
            shown = row["events"] if every else _strongest(row["events"])
            _one(console, who, {**row, "events": shown}, durations)
        console.print(UNITS)
        if not every:
            console.print("These are the strongest; --all lists every column and event.")
        if output is not None:
            console.print(f"wrote {output}", soft_wrap=True)
        say_ids(own, console, [row["id"] for row in answers])

    own.answer(as_json, document, human)


def _strongest(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that moved the stack most, in the order that they had."""
    order = sorted(range(len(events)), key=lambda at: -abs(events[at]["moved"]["stack"]))
    return [events[at] for at in sorted(order[:SHORT])]


def _one(console: Console, who: str, row: Mapping[str, Any], durations: Collection[str]) -> None:
    output = f", {row['output']}" if row["output"] else ""
    console.print(f"{who}{output}: score {row['score']:.4f}, raw {row['raw']:+.3f}")
    if row["source"] != "fresh":
        console.print(f"The online store did not answer: this explains an answer of {row['source'].replace('_', ' ')} features")
    if row["known"] is False:
        console.print("No event of this user before this time: this explains the answer to somebody new")
    lines = [("every member at the base rate", f"{row['base']:+.3f}")]
    lines += [(name, f"{moved:+.3f}") for name, moved in row["members"].items()]
    _titled(console, "Members: how much each moved the stack", ["member", "moved"], lines)
    for name, columns in row["features"].items():
        listed = [(each["column"], f"{each['moved']:+.3f}") for each in columns]
        _titled(console, f"Columns of {name}, by {row['how'][name]}", ["column", "moved"], listed)
    if row["events"]:
        members = list(row["events"][0]["moved"])
        listed = [
            (each["sequence"], each["back"] + 1, _said(each["event"], durations), *(f"{each['moved'][m]:+.3f}" for m in members))
            for each in row["events"]
        ]
        _titled(console, "Events, the newest first, by leaving one out", ["sequence", "place", "event", *members], listed)


def _titled(console: Console, title: str, heads: list[str], rows: Sequence[Sequence[Any]]) -> None:
    from zoo.cli.render import table

    console.print(title)
    console.print(table("", heads, rows))


def _said(event: Mapping[str, Any], durations: Collection[str]) -> str:
    from zoo.cli.render import duration

    def text(name: str, value: Any) -> str:
        if name in durations:
            return duration(value)
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {text(name, value)}" for name, value in event.items() if value is not None)


def _whole(own: State, task: str, top: int, as_json: bool) -> None:
    with registry_of(own) as registry:
        version = registry.get(task)
    found = version.metrics.get("importance")
    if not found:
        raise UsageError(f"{version.reference} keeps no importance of columns; train it again, or name a user: --user ID")

    def human(console: Console) -> None:
        members = [(name, f"{value:.3f}") for name, value in found["members"].items()]
        _titled(console, f"{version.reference}: mean absolute move of the stack", ["member", "moved"], members)
        for name, each in found["features"].items():
            columns = [(column, f"{value:.4f}") for column, value in list(each["columns"].items())[:top]]
            _titled(console, f"Columns of {name}, by {each['how']}, over {each['rows']} rows", ["column", "moved"], columns)
        console.print(UNITS)

    own.answer(as_json, {"version": version.reference, **found}, human)
