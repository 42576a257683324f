"""The command ``recommend``: which items users take next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.given import instant, loaded, project_log, say_ids, user_ids
from zoo.cli.state import Json, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


def recommend(
    ctx: typer.Context,
    user: Annotated[list[str], typer.Option(help="A user's identifier; may be repeated.", metavar="ID")],
    task: Annotated[
        str, typer.Argument(help="A model that ranks items: recommendation (its champion) or recommendation@3.", metavar="TASK")
    ] = "recommendation",
    k: Annotated[int, typer.Option("--k", "-k", help="Items to list for each user.", min=1, metavar="N")] = 10,
    exclude_seen: Annotated[
        bool | None, typer.Option(help="Leave out what the user has had already. Default: as in zoo.toml when it was trained.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only items with this value in the item table; once a column.", metavar="COLUMN=VALUE"),
    ] = None,
    at: Annotated[str | None, typer.Option(help="Answer as of this time. Default: the project's clock.", metavar="TIME")] = None,
    as_json: Json = False,
) -> None:
    """List the items that users take next.

    With titles, scores and each member's rank of the item. A user of whom nothing is known is answered by what is popular, and
    marked cold.
    """
    own = state(ctx)
    project = own.project
    moment = None if at is None else instant(at, project.timezone)
    wanted = _wanted(where or ())
    users = user_ids(project_log(own).schema, user)
    with own.progress(f"recommend {task}") as say:
        say(0.0, "loading the model")
        predictor = loaded(own, task)
        answer = predictor.recommend(users, k, exclude_seen=exclude_seen, where=wanted or None, at=moment)

    def human(console: Console) -> None:
        from zoo.cli.render import table

        hidden = ("newest_event_age", "version", "features", "id")
        names = [name for name in answer.column_names if name not in hidden]
        rows = [[str(row[name]) if name.endswith("_id") else row[name] for name in names] for row in answer.to_pylist()]
        console.print(table(f"{task}: {len(rows):,} items", names, rows))
        say_ids(own, console, list(dict.fromkeys(answer["id"].to_pylist())))

    own.answer(as_json, {"task": task, "rows": answer.to_pylist()}, human)


def _wanted(where: Sequence[str]) -> dict[str, Any]:
    """Column -> the value that items must have."""
    out: dict[str, Any] = {}
    for text in where:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(
                f"--where {text!r} cannot be read; expected a column of the item table, =, and a value, as in category=toys"
            )
        if name in out:
            raise UsageError(
                f"--where names {name} twice, as {out[name]!r} and {value!r}; an item has one value: ask for each in turn"
            )
        out[name] = value
    return out
