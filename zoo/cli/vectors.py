"""The command ``item-vectors``: what a model learnt of items, as a feature that Feast reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.given import loaded
from zoo.cli.state import Json, state
from zoo.errors import FeatureError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

DEFINITION = '''"""Vectors of items, written by `zoo item-vectors`; empty for an item without one, and before the model had learnt."""

from entities import {entity}
from feast import FeatureView, Field
from feast.types import Array, Float32, String

from zoo.stores import TableSource

{view} = FeatureView(
    name="{view}",
    entities=[{entity}],
    source=TableSource(name="{view}_table", table="{view}", columns=("vector", "model")),
    schema=[Field(name="vector", dtype=Array(Float32)), Field(name="model", dtype=String)],
    description="What a model of item texts knows of an item",
)
'''


def item_vectors(
    ctx: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(
            help="A model that ranks items by their texts: recommendation or recommendation@3.", metavar="MODEL@VERSION"
        ),
    ] = "recommendation",
    view: Annotated[
        str, typer.Option(help="The table beside the log, and the feature view that reads it.", metavar="NAME")
    ] = "item_vectors",
    member: Annotated[str | None, typer.Option(help="Whose vectors, where several members have some.", metavar="NAME")] = None,
    declare: Annotated[
        bool, typer.Option("--declare", help="Write the feature view into the project as NAME.py, and apply it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a model's item vectors where Feast reads them.

    They replace those that were written before. Every item that the model can score has one, items that training did not hold too.
    """
    own = state(ctx)
    project = own.project
    if not view.isidentifier():
        raise UsageError(f"--view {view!r} names no feature view and no file; expected letters, digits and underscores")
    with own.progress(f"item vectors of {reference}") as say:
        say(0.0, "loading the model")
        from zoo.vectors import readers, write

        predictor = loaded(own, reference)
        declared, path = readers(predictor.features, view), project.root / f"{view}.py"
        text = DEFINITION.format(entity=_entity(predictor.features), view=view)
        if declare and not declared and path.exists():
            raise UsageError(f"{path} is there already, and no applied view reads a table {view!r}; name another --view")
        say(0.3, "reading what the item table says")
        found = write(predictor.version, predictor.ensemble, predictor.features, view, member)
        if declare and not declared:
            say(0.9, "applying the feature view")
            _declare(path, text)
            from zoo.features import Features

            declared = readers(Features.open(project.root), view)
    answer = {
        "model": predictor.version.reference,
        "member": found.member,
        "table": view,
        "items": found.items,
        "width": found.width,
        "valid_from": found.valid_from,
        "views": list(declared),
    }

    def human(console: Console) -> None:
        from zoo.cli.render import moment, pairs

        shown = {**answer, "views": ", ".join(declared) or None, "valid_from": None}
        if found.valid_from is not None:
            shown["valid_from"] = moment(found.valid_from)
        console.print(pairs("", {name.replace("_", " "): value for name, value in shown.items() if value is not None}))
        if not declared:
            console.print(f"No applied feature view reads this table. Declare one, here or with --declare:\n\n{text}")

    own.answer(as_json, answer, human)


def _entity(features: Any) -> str:
    """The repository's name of what item_id is the key of."""
    for entity in features.store.list_entities():
        if entity.join_key == "item_id":
            return str(entity.name)
    raise FeatureError(
        "no entity of the repository has the join key 'item_id', so no feature view can be of items; declare one first"
    )


def _declare(path: Path, text: str) -> None:
    """Write a definition and apply it; one that cannot be applied is taken back."""
    from zoo.features import apply

    path.write_text(text, encoding="utf-8")
    try:
        apply(path.parent)
    except BaseException:
        path.unlink()
        raise
