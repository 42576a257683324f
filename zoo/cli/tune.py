"""``zoo tune``: better parameters for a member, as the lines to put in zoo.toml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.given import instant
from zoo.cli.state import Json, state
from zoo.cli.train import Workers

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 5
"""Best trials that are listed; --json has all."""


def tune(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="A task of zoo.toml.", metavar="TASK")],
    member: Annotated[str | None, typer.Option(help="The member to tune. Default: the first.", metavar="MODEL")] = None,
    minutes: Annotated[float, typer.Option(help="Begin no trial after so long.", min=0.01, metavar="N")] = 10.0,
    trials: Annotated[int | None, typer.Option(help="End at so many trials in all.", min=1, metavar="N")] = None,
    test_start: Annotated[
        str | None, typer.Option(help="As of `zoo train`: rows from here on are not used.", metavar="TIME")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Put the best parameters in zoo.toml.")] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Try parameters of a task's member.

    Each trial is judged by log-loss on later training rows; test rows are not used. Trials are kept in the registry's database: the
    same command again goes on. What is tried of a parameter can be said in zoo.toml, under tasks.TASK.tune.MODEL.
    """
    own = state(ctx)
    project = own.project
    project.task(task)
    start = None if test_start is None else instant(test_start, project.timezone)
    plugins = own.plugins
    with own.progress(f"tune {task}") as say:
        say(0.0, "loading Feast")
        from zoo.fitting import PluginSource
        from zoo.jobs import Processes, Serial
        from zoo.tuning import tune
        from zoo.tuning import write as write_to

        found = tune(
            project,
            task,
            member,
            plugins=plugins,
            minutes=minutes,
            trials=trials,
            source=PluginSource(own.without),
            executor=Serial() if workers == 1 else Processes(workers),
            test_start=start,
            progress=say,
        )
    better = found.best and (found.now is None or (found.loss is not None and found.loss < found.now))
    if write and better:
        write_to(project.root / "zoo.toml", found)

    def human(console: Console) -> None:
        from zoo.cli.render import table

        done = sorted((t for t in found.trials if t["state"] == "complete"), key=lambda t: t["loss"])[:SHOWN]
        rows = [
            (t["number"], f"{t['loss']:.5f}", "zoo.toml's" if t["now"] else ", ".join(f"{k} {v}" for k, v in t["params"].items()))
            for t in done
        ]
        console.print(
            table(f"{task}, {found.member}: the best of {len(found.trials):,} trials", ["trial", "log-loss", "parameters"], rows)
        )
        if found.before:
            console.print(f"{found.before:,} of them were kept from earlier runs")
        if not better:
            console.print("nothing was better than what zoo.toml says")
        elif write:
            console.print(f"written to zoo.toml, [tasks.{task}.params.{found.member}]")
        else:
            console.print("To use it, put these lines in zoo.toml, or say --write:")
            console.print(found.toml(), soft_wrap=True, markup=False, highlight=False)

    own.answer(as_json, found.as_dict(), human)
