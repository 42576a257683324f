"""The command ``explain``: what moved a user's score, and what moves scores on the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.given import instant, project_log, registry_of, user_ids
from zoo.cli.state import Json, State, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


def explain(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="A model: churn (its champion), churn@3 or churn@NAME.", metavar="TASK")],
    user: Annotated[list[str] | None, typer.Option(help="A user's identifier; may be repeated.", metavar="ID")] = None,
    at: Annotated[str | None, typer.Option(help="Explain as of this time. Default: the project's clock.", metavar="TIME")] = None,
    of: Annotated[
        str | None, typer.Option(help="The class whose score is explained. Default: the likeliest.", metavar="CLASS")
    ] = None,
    top: Annotated[int, typer.Option(help="Columns of each member to list.", min=1, metavar="N")] = 10,
    events: Annotated[int, typer.Option(help="Newest events of each sequence to look at.", min=0, metavar="N")] = 10,
    as_json: Json = False,
) -> None:
    """Say what moved a prediction.

    For each user: members of the stack, columns of each member, and single events. Without a user: what moved scores of test rows
    on the whole, as kept when the version was trained. Amounts are log-odds for probabilities.
    """
    own = state(ctx)
    if not user:
        _whole(own, task, top, as_json)
        return
    project = own.project
    moment = None if at is None else instant(at, project.timezone)
    users = user_ids(project_log(own).schema, user)
    with own.progress(f"explain {task}") as say:
        say(0.0, "loading the model")
        from zoo.predictor import Predictor

        predictor = Predictor.load(task, repo=project.root, without=own.without)
        found = predictor.explain(users, at=moment, output=of, top=top, events=events)
    rows: list[dict[str, Any]] = [{"user_id": who, **each.as_dict()} for who, each in zip(users, found, strict=True)]
    document = {"task": task, "version": predictor.version.reference, "rows": rows}

    def human(console: Console) -> None:
        for row in rows:
            _one(console, row)

    own.answer(as_json, document, human)


def _one(console: Console, row: Mapping[str, Any]) -> None:
    output = f", {row['output']}" if row["output"] else ""
    console.print(f"user {row['user_id']}{output}: score {row['score']:.4f}, raw {row['raw']:+.3f}")
    lines = [("every member at the base rate", f"{row['base']:+.3f}")]
    lines += [(name, f"{moved:+.3f}") for name, moved in row["members"].items()]
    _titled(console, "Members: how much each moved the stack", ["member", "moved"], lines)
    for name, columns in row["features"].items():
        listed = [(each["column"], f"{each['moved']:+.3f}") for each in columns]
        _titled(console, f"Columns of {name}, by {row['how'][name]}", ["column", "moved"], listed)
    if row["events"]:
        members = list(row["events"][0]["moved"])
        listed = [
            (each["sequence"], each["back"] + 1, _said(each["event"]), *(f"{each['moved'][m]:+.3f}" for m in members))
            for each in row["events"]
        ]
        _titled(console, "Events, the newest first, by leaving one out", ["sequence", "place", "event", *members], listed)


def _titled(console: Console, title: str, heads: list[str], rows: Sequence[Sequence[Any]]) -> None:
    from zoo.cli.render import table

    console.print(title)
    console.print(table("", heads, rows))


def _said(event: Mapping[str, Any]) -> str:
    said = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in event.items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in said.items())


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

    own.answer(as_json, {"version": version.reference, **found}, human)
