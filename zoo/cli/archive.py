"""Commands that take a version from one registry to another: ``export`` and ``import``."""

from __future__ import annotations

from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.given import registry_of
from zoo.cli.state import Json, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


def export(
    ctx: typer.Context,
    reference: Annotated[str, typer.Argument(help="The version, as in churn@3 or churn@champion.", metavar="MODEL@VERSION")],
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    key: Annotated[Path, typer.Option(help="Your private key, Ed25519 in PEM.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Write a version into one signed file.

    It holds the artefact with every file's hash, metrics, lineage and tags, for `zoo import` of another project. A pair of keys comes from:
    openssl genpkey -algorithm ed25519 -out signing.pem; openssl pkey -in signing.pem -pubout -out public.pem
    """
    from zoo.registry.archive import export as exported

    own = state(ctx)
    if file.exists():
        raise UsageError(f"{file} is there already; name another file, or remove it")
    beside = file.with_name(f".{file.name}.{token_hex(4)}")
    with registry_of(own) as registry:
        version = registry.get(reference)
        try:
            with beside.open("xb") as archive:
                found = exported(registry, version.reference, key, archive)
            beside.replace(file)  # whole, or not there
        except OSError as error:
            raise UsageError(f"cannot write {file}: {error.strerror or error}") from error
        finally:
            beside.unlink(missing_ok=True)
    document = {
        "model": version.model,
        "version": version.number,
        "file": str(file),
        "bytes": found.size,
        "note": found.note,
    }

    def human(console: Console) -> None:
        console.print(f"{version.reference} is in {file}, {found.size:,} bytes")
        if found.note is not None:
            console.print(f"Note: {found.note}")

    own.answer(as_json, document, human)


def import_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `zoo export` wrote.", metavar="FILE")],
    key: Annotated[
        list[Path], typer.Option(help="A public key that you trust, Ed25519 in PEM; may be repeated.", metavar="FILE")
    ],
    as_json: Json = False,
) -> None:
    """Register a version that another project exported.

    It becomes the model's next version here, which no alias names: `zoo promote` does. A file that no trusted key signed is refused unread.
    What keeps it from answering here (a plugin, the feature service, identifiers that the log lacks) is warned of.
    """
    from zoo.opening import lacking
    from zoo.registry.archive import import_ as imported
    from zoo.registry.archive import opened

    own = state(ctx)
    with opened(file) as archive, registry_of(own, create=True) as registry:
        found = imported(registry, archive, key)
        version, artefact = registry.load(found.version.reference)
    lacks = lacking(own.project, version, artefact, own.without)
    warnings = [f"the same artefact is registered already, as {', '.join(found.before)}"] if found.before else []
    warnings += lacks
    document = {
        "model": version.model,
        "version": version.number,
        "origin": found.origin,
        "signer": found.signer,
        "warnings": warnings,
    }

    def human(console: Console) -> None:
        console.print(f"{found.origin}, signed by {found.signer}, is registered as {version.reference}")
        for warning in warnings:
            console.print(f"WARNING: {warning}")
        told = "Once that is settled, make" if lacks else "Make"
        console.print(f"{told} it the one that answers: {own.command(f'promote {version.reference}')}")

    own.answer(as_json, document, human)
