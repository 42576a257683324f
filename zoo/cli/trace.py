"""The command ``trace``: from an answer back to what it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.state import Json, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 8
"""Values of a sequence, and event times, that a person is shown; --json has all."""


def trace(
    ctx: typer.Context,
    answer: Annotated[
        str, typer.Argument(help="The id of an answer, as `zoo predict --json` and /v1/predict give it.", metavar="ID")
    ],
    as_json: Json = False,
) -> None:
    """Show what an answer was made of.

    Feature values, times of events, the log's version, what each member said, hashes of the models, the code's version. Traces are
    kept where zoo.toml says how many, as in [traces] keep = 100000, and go with the people whom `zoo forget` removes.
    """
    from zoo.traces import FILE, Traces

    own = state(ctx)
    project = own.project
    path = project.data / FILE
    if not project.traces and not path.exists():
        raise UsageError(f"{project.root} keeps no traces; say how many in zoo.toml, as in: [traces] keep = 100000")
    body = Traces(path, project.traces).find(answer)

    def human(console: Console) -> None:
        from zoo.cli.render import pairs, table

        log = body["log"]
        facts = {
            **body["keys"],
            "answered": body["answered"],
            "as of": body["as_of"],
            "model": f"{body['model']} (artefact {body['artefact'][:16]})",
            "features": f"{body['features_from']}, service {body['service']} {body['service_hash'][:16]}",
            "newest event": body["newest_event"],
            "log": f"version {log['log']}, {log['events']:,} events, rewritten {log['epoch']} times",
            "code": f"feature-zoo {body['code']['feature-zoo']} ({body['code']['sha256'][:16]})",
        }
        console.print(pairs(f"Answer {body['id']}", facts))
        told = {name: value for name, value in body["answer"].items() if name != "items"}
        console.print(pairs("Answer", {name: _short(value) for name, value in told.items()}))
        if "items" in body["answer"]:
            items = body["answer"]["items"]
            console.print(
                table("List", list(items[0]) if items else ["item_id"], [list(map(_short, each.values())) for each in items])
            )
        models: list[tuple[Any, ...]] = [
            (name, m["model"], f"{m['distribution']} {m['version']}", m["sha256"][:16]) for name, m in body["members"].items()
        ]
        models.append(("final", body["final"]["model"], None, body["final"]["sha256"][:16]))
        console.print(table("Models", ["member", "model", "made by", "sha256"], models))
        console.print(
            table("Features", ["feature", "value"], [(name, _short(value)) for name, value in body["features"].items()])
        )
        console.print(pairs("", {"events before it": _short(body["events"]) or None}))

    own.answer(as_json, dict(body), human)


def _short(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    shown = [f"{each:g}" if isinstance(each, float) else str(each) for each in value[:SHOWN]]
    return ", ".join([*shown, *([f"... {len(value) - SHOWN} more"] if len(value) > SHOWN else [])])
