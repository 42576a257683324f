"""Commands that look after registered versions: ``tag``, ``demote`` and ``retire``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.given import registry_of
from zoo.cli.state import Json, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from rich.console import Console

    from zoo.registry import Registry, Version


def tag(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(help="The version, as in churn@3 or churn@champion.", metavar="MODEL@VERSION")],
    tags: Annotated[
        list[str], typer.Argument(help="NAME=VALUE, or NAME= to remove one; several may be given.", metavar="NAME=VALUE...")
    ],
    as_json: Json = False,
) -> None:
    """Tag a version of a model.

    Other tags stay as they are. `zoo models --search owner=anna` finds a version by its tag.
    """
    from zoo.registry import parse

    own = state(ctx)
    asked = parse(reference)
    if asked.number is None and asked.alias is None:
        raise UsageError(f"{reference!r} names no version; expected MODEL@VERSION as in {asked.model}@3. `zoo models` lists them")
    odd = next((each for each in tags if not each.partition("=")[0].strip() or "=" not in each), None)
    if odd is not None:
        raise UsageError(f"{odd!r} is no tag; expected NAME=VALUE, as in owner=anna, or NAME= to remove one")
    given = {name.strip(): value or None for name, _, value in (each.partition("=") for each in tags)}
    with registry_of(own) as registry:
        version = registry.get(reference)
        version = registry.tag(version.model, version.number, given)
    document = {"model": version.model, "version": version.number, "tags": dict(version.tags)}

    def human(console: Console) -> None:
        console.print(f"{version.reference}: {tags_of(version) or 'no tags'}")

    own.answer(as_json, document, human)


def demote(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(help="An alias, as in churn@canary.", metavar="MODEL@ALIAS")],
    as_json: Json = False,
) -> None:
    """Take an alias from the version that it names.

    A running `zoo serve` asks a version no more that was its canary. The champion stays: promote another version, or roll back.
    """
    from zoo.registry import CHAMPION, parse

    own = state(ctx)
    asked = parse(reference)
    if asked.alias is None or asked.alias == CHAMPION:
        raise UsageError(
            f"{reference!r} is no alias that can be taken away; expected MODEL@ALIAS, as in {asked.model}@canary. The champion is followed "
            "by another version: zoo promote, zoo rollback"
        )
    with registry_of(own) as registry:
        version = registry.demote(asked.model, asked.alias)
    document = {"model": version.model, "alias": asked.alias, "before": version.number}
    own.answer(
        as_json, document, lambda console: console.print(f"{reference} names nothing any more; it was {version.reference}")
    )


def retire(
    ctx: typer.Context,
    reference: Annotated[
        str, typer.Argument(help="A version, as in churn@3, or with --keep a model.", metavar="MODEL[@VERSION]")
    ],
    keep: Annotated[
        int | None, typer.Option(help="Retire all but the newest N versions, and delete their files.", min=1, metavar="N")
    ] = None,
    as_json: Json = False,
) -> None:
    """Retire a version of a model, or old ones.

    A retired version is never the newest and never promoted; its record stays. With --keep its files go, except where an alias
    names the version or would go back to it.
    """
    from zoo.registry import parse

    own = state(ctx)
    asked = parse(reference)
    if keep is None and asked.number is None:
        raise UsageError(f"{reference!r} names no version; expected MODEL@NUMBER as in {asked.model}@3, or --keep N for a model")
    if keep is not None and asked != parse(asked.model):
        raise UsageError(f"--keep asks for a model; expected {asked.model}, not {reference}")
    with registry_of(own) as registry:
        before = [version.number for version in registry.versions(asked.model) if version.status == "ready"]
        formers = registry.formers(asked.model)
        gone, left = [], {}
        if keep is not None:
            gone = registry.keep(asked.model, keep)
            left = _left(registry, asked.model, before[-keep:], gone)
        elif asked.number is not None:
            registry.retire(asked.model, asked.number)
        now = {version.number for version in registry.versions(asked.model) if version.status == "ready"}
    retired = sorted(set(before) - now)
    ended = sorted({alias for number in retired for alias in formers.get(number, ())})
    document = {
        "model": asked.model,
        "retired": retired,
        "deleted": [version.number for version in gone],
        "left": left,
        "no_way_back": ended,
    }

    def human(console: Console) -> None:
        console.print(f"retired: {', '.join(f'{asked.model}@{number}' for number in retired) or 'none'}")
        for alias in ended:
            console.print(
                f"{asked.model}@{alias} has no way back any more: a rollback would have gone to the version retired now"
            )
        if keep is not None:
            none = "none" if left else f"none, for no version is older than the newest {keep}"
            console.print(f"files deleted of: {', '.join(version.reference for version in gone) or none}")
        for number, why in left.items():
            console.print(f"files left of {asked.model}@{number}: {why}")

    own.answer(as_json, document, human)


def _left(registry: Registry, model: str, newest: Collection[int], gone: Collection[Version]) -> dict[int, str]:
    """Why files of versions that are not the newest stay, by number."""
    formers = registry.formers(model)
    left = {}
    for version in registry.versions(model):
        if version.number in newest or version in gone or not registry.artefacts.exists(version.digest):
            continue
        names = [f"{alias} names it" for alias in version.aliases]
        names += [f"{alias} would go back to it" for alias in formers.get(version.number, ())]
        left[version.number] = ", ".join(names) or "another version has the same files"
    return left


def tags_of(version: Version) -> str | None:
    """As they are shown."""
    return ", ".join(f"{name}={value}" for name, value in sorted(version.tags.items())) or None
