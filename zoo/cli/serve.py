"""``zoo serve``, and ``zoo key`` for who may ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.given import told_untrained, versions_of
from zoo.cli.state import Json, State, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


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

    POST /v1/predict, /v1/recommend, /v1/explain and /v1/events, until Ctrl-C. The log on stderr says the address once it listens, --json
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

    with told_untrained(own):
        serve(project.root, asked, host, port, own.without, ready if as_json else None)


def key(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Who holds the key; a former key of that name ends.", metavar="NAME")],
    role: Annotated[list[str] | None, typer.Option(help="read, push or admin; may be repeated.", metavar="ROLE")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the key of this name out, and make none.")] = False,
    as_json: Json = False,
) -> None:
    """Make an API key for the service, and print it once; or take one out.

    Its hash is kept in the file that `keys` in `[service.auth]` of zoo.toml names (keys.json where it names none); a running
    `zoo serve` reads it within seconds. The key itself is kept nowhere.
    """
    from zoo.service.access import add_key, revoke_key
    from zoo.service.settings import Settings

    own = state(ctx)
    if revoke == bool(role):
        raise UsageError(f"say what {name} may do, as in --role read, or --revoke, one of them")
    path = Settings.of(own.project).keys or own.project.root / "keys.json"
    if revoke:
        roles = revoke_key(path, name)
        told = f"the key of {name} is taken out of {path}; a running `zoo serve` refuses it within seconds"
        own.answer(
            as_json, {"name": name, "roles": roles, "revoked": True, "file": str(path)}, lambda console: console.print(told)
        )
        return
    made = add_key(path, name, role or ())

    def human(console: Console) -> None:
        console.print(made, soft_wrap=True, highlight=False)

    own.answer(as_json, {"name": name, "roles": sorted(set(role or ())), "key": made, "file": str(path)}, human)


def _answering(own: State) -> list[str]:
    """Tasks that have a champion; all of them where none has, for the error that says what is missing."""
    champions = {version.model for version in versions_of(own) if "champion" in version.aliases}
    return [task for task in own.project.tasks if task in champions] or list(own.project.tasks)
