"""The ``zoo`` application: its global options and its table of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import (
    archive,
    data,
    explain,
    forget,
    init,
    models,
    plugins,
    recommend,
    registry,
    report,
    serve,
    trace,
    train,
    tune,
    uplift,
    vectors,
)
from zoo.cli.state import ZooCommand, ZooGroup

app = typer.Typer(
    cls=ZooGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: zoo init shop --events events.parquet && zoo --repo shop apply. Plugins may add commands; `zoo plugins` lists them.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"feature-zoo {version('feature-zoo')}")
        raise typer.Exit


@app.callback()
def zoo(
    repo: Annotated[
        Path | None,
        typer.Option(help="The project's folder. Default: this folder, else feature_repo in it.", metavar="DIR"),
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="Leave out a plugin; may be repeated.", metavar="NAME")] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error happened.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Features of an event log, a zoo of models trained on them, and one stacked prediction."""


_COMMANDS = (
    ("init", init.init, "zoo init shop --events events.parquet --items items.parquet"),
    ("apply", data.apply, "zoo apply"),
    ("ingest", data.ingest, "zoo ingest events-2017-12.parquet"),
    ("materialize", data.materialize, "zoo materialize"),
    ("check-features", data.check_features, "zoo check-features churn --entities 500"),
    ("forget", forget.forget, "zoo forget 42"),
    ("train", train.train, "zoo train churn --workers 2"),
    ("tune", tune.tune, "zoo tune churn --member gbdt --minutes 30"),
    ("models", models.models, "zoo models --search 'churn owner=anna'"),
    ("promote", models.promote, "zoo promote churn@3"),
    ("rollback", models.rollback, "zoo rollback churn"),
    ("demote", registry.demote, "zoo demote churn@canary"),
    ("tag", registry.tag, "zoo tag churn@3 owner=anna reviewed=yes"),
    ("retire", registry.retire, "zoo retire churn --keep 5"),
    ("export", archive.export, "zoo export churn@3 churn-3.zoo --key signing.pem"),
    ("import", archive.import_, "zoo import churn-3.zoo --key public.pem"),
    ("predict", models.predict, "zoo predict churn --user 1 --user 42"),
    ("explain", explain.explain, "zoo explain churn --user 42"),
    ("report", report.report, "zoo report churn@3"),
    ("recommend", recommend.recommend, "zoo recommend --user 1 -k 5 --where category=toys"),
    ("item-vectors", vectors.item_vectors, "zoo item-vectors recommendation@3 --declare"),
    ("uplift", uplift.uplift, "zoo uplift trial.parquet --treatment sent --outcome visit --budget 5000"),
    ("trace", trace.trace, "zoo trace 5f0c7d2a91be44d3-0"),
    ("serve", serve.serve, "zoo serve churn --port 8000"),
    ("key", serve.key, "zoo key shop-backend --role read --role push"),
    ("plugins", plugins.plugins, "zoo plugins"),
    ("demo", models.demo, "zoo demo --json demo.json"),
)

for _name, _function, _example in _COMMANDS:
    app.command(_name, cls=ZooCommand, epilog=f"Example: {_example}")(_function)

_plugin = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after one plugin.")
_plugin.command("check", cls=ZooCommand, epilog="Example: zoo plugin check gru")(plugins.check)
app.add_typer(_plugin, name="plugin", epilog="Example: zoo plugin check gru")
