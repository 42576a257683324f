"""The command ``report``: one page about one version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.given import registry_of, written
from zoo.cli.state import Json, State, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.report import Run


def report(
    ctx: typer.Context,
    run: Annotated[
        str, typer.Argument(help="A version: churn (its champion), churn@3, churn@NAME; or a record in JSON.", metavar="RUN")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where to write it. Default: data/reports in the project.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a version.

    Leaderboard with paired tests, calibration, lift and gain, slices, weights, costs, importance, drift and guards, in one file that
    loads nothing from anywhere. A record is what `zoo uplift --record FILE` wrote.
    """
    own = state(ctx)
    from zoo.report import render

    found, name = _of_file(Path(run)) if run.endswith(".json") else _of_version(own, run)
    path = output or own.project.data / "reports" / f"{name}.html"
    text = render(found)
    written(path, text)

    def human(console: Console) -> None:
        console.print(f"wrote {path}", soft_wrap=True)

    own.answer(as_json, {"run": found.title, "file": str(path)}, human)


def _of_version(own: State, reference: str) -> tuple[Run, str]:
    from zoo.errors import ArtefactError
    from zoo.evaluation.kept import TestScores
    from zoo.report import Run

    with registry_of(own) as registry:
        version, scores = registry.get(reference), None
        digest = version.metrics.get("scores")
        if digest is not None and registry.artefacts.held(str(digest)):  # a retired version may have lost them
            try:
                scores = TestScores.load(registry.artefacts.read(str(digest)))
            except ArtefactError as error:
                raise ArtefactError(f"the scores of {version.reference}'s test rows cannot be read: {error}") from error
    about: dict[str, Any] = {"registered": f"{version.created:%Y-%m-%d %H:%M} UTC", "status": version.status}
    if version.aliases:
        about["alias"] = ", ".join(version.aliases)
    return Run(version.reference, version.metrics, version.lineage, scores, about), f"{version.model}-{version.number}"


def _of_file(path: Path) -> tuple[Run, str]:
    from zoo.report import Run

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(
            f"cannot read the record {path}: {error}; expected JSON, as `zoo uplift --record FILE` writes it"
        ) from error
    if not isinstance(record, dict):
        raise UsageError(
            f"{path} holds {type(record).__name__}; expected one JSON object, as `zoo uplift --record FILE` writes it"
        )
    return Run(path.stem, record), path.stem
