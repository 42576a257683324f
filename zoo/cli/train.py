"""``zoo train``, and the tables that say how good what it trained is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.given import instant
from zoo.cli.state import Json, state
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.contract import TrainingData

OFTEN = 0.1
"""Share of test rows from which it is said that what is asked for may not be listed."""
FEW = 30
"""Test rows below which it is said that scores on them may be chance."""
METRICS = ("auc", "average_precision", "log_loss")
COSTS = ("ms a row", "MB")
"""What a member costs where it answers."""
Workers = Annotated[int | None, typer.Option(help="Processes that fit models. Default: one a core.", min=1, metavar="N")]


def train(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="A task of zoo.toml.", metavar="TASK")],
    member: Annotated[
        list[str] | None, typer.Option(help="Train only this member of the stack; may be repeated.", metavar="MODEL")
    ] = None,
    test_start: Annotated[str | None, typer.Option(help="Test on rows from here on.", metavar="TIME")] = None,
    test_end: Annotated[str | None, typer.Option(help="Test on rows before this.", metavar="TIME")] = None,
    workers: Workers = None,
    register: Annotated[bool, typer.Option(help="Keep the model in the registry.")] = True,
    check_leaks: Annotated[
        bool,
        typer.Option("--check-leaks", help="Fit a member on shuffled labels and beside a random column, however long it takes."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a task's members and their stack.

    The stack is tested on later rows than it was trained on, and registered. What an earlier run already fitted on the same data
    is reused. TIME is ISO 8601, such as 2017-09-01 or 2017-09-01T12:00Z; without an offset it is read in the project's timezone.
    """
    own = state(ctx)
    project = own.project
    settings = project.task(task)
    for name in member or ():
        if name not in settings.members:
            raise UsageError(f"{name!r} is no member of [tasks.{task}]; its members are: {', '.join(settings.members)}")
    start, end = (None if text is None else instant(text, project.timezone) for text in (test_start, test_end))
    plugins = own.plugins
    with own.progress(f"train {task}") as say:
        say(0.0, "loading Feast")
        from zoo.fitting import PluginSource
        from zoo.jobs import Processes, Serial
        from zoo.training import train

        trained = train(
            project,
            task,
            plugins=plugins,
            source=PluginSource(own.without),
            executor=Serial() if workers == 1 else Processes(workers),
            test_start=start,
            test_end=end,
            members=member or None,
            register=register,
            check_leaks=check_leaks,
            progress=say,
        )
    version = trained.version
    document = {**trained.record, "model": None if version is None else version.model, "version": version and version.number}

    def human(console: Console) -> None:
        from zoo.cli.render import duration

        shown = rankings if "comparisons" in trained.record else leaderboard
        console.print(shown(f"{task}: scores on the test rows", trained.record))
        if len(trained.record.get("members", ())) > 1:
            from zoo.report.quality import verdict
            from zoo.report.run import Run

            console.print(verdict(Run(task, trained.record)))
        if trained.record.get("days"):
            console.print(by_horizon(f"{task}: the stack and the baselines by horizon", trained.record["days"]))
        if risk := trained.record.get("facts", {}).get("value_at_risk"):
            console.print(at_risk(risk))
        second = trained.record.get("second_stage")
        if second:
            console.print(
                f"on {second['validation_rows']:,} validation rows {second['chosen']} was chosen, by NDCG@10 over "
                f"{second['average']}: " + ", ".join(f"{name} {value:.4f}" for name, value in second["ndcg@10"].items())
            )
            if second["tau"]:
                plain, taken = (next(p for p in second["frontier"] if p["tau"] == tau) for tau in (0, second["tau"]))
                console.print(
                    f"its scores are adjusted for popularity by tau = {second['tau']:g}: NDCG@10 over items {plain['items']:.4f} before, "
                    f"{taken['items']:.4f} after; over rows {plain['rows']:.4f} before, {taken['rows']:.4f} after"
                )
        if trained.record.get("exclude_seen") and trained.record["seen_before"] > OFTEN:
            console.print(
                f"In {trained.record['seen_before']:.0%} of the test rows the item is in the user's history, which exclude_seen = true "
                "leaves out of every list: no model can name it. Set it to false in zoo.toml if these should be listed."
            )
        if second and trained.record.get("refit"):
            console.print("members were then fitted again on all rows before the test")
        if trained.record.get("final"):
            for line in of_stack(trained.record):
                console.print(line)
        console.print(
            f"{trained.record.get('rows', 0):,} rows to train on, {trained.record.get('test_rows', 0):,} to test on, {at(trained.test)}"
        )
        if (few := too_few(trained.test)) is not None:
            console.print(few)
        if (off := beyond(trained.record.get("held_out", {}), project.task(task).serving.calibration_error)) is not None:
            console.print(off)
        if trained.record.get("reused"):
            console.print(f"reused from an earlier run: {', '.join(map(str, trained.record['reused']))}")
        for part, line in trained.record.get("slices", {}).items():
            if line.get("worse"):
                console.print(f"Worse than {line['best_member']} on {line['rows']:,} rows: {part}")
        for guard in trained.record.get("guards", ()):
            if not guard["fine"]:
                console.print(f"Leak? {guard['guard']}: {guard['seen']}. What to do: {guard['advice']}.")
        for why, names in untried(trained.record).items():
            console.print(f"Guards against leaks that were {why}: {', '.join(names)}")
        console.print(f"took {duration(trained.record.get('seconds'))}")
        if version is None:
            console.print("not registered, as asked")
        else:
            console.print(
                f"registered as {version.reference}. Make it the one that answers: {own.command(f'promote {version.reference}')}"
            )

    own.answer(as_json, document, human)


def untried(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Guards that did not look, by why."""
    out: dict[str, list[str]] = {}
    for guard in record.get("guards", ()):
        if not guard.get("tried", True):
            out.setdefault(guard["seen"], []).append(guard["guard"])
    return out


def at(test: TrainingData) -> str:
    """When test rows stand, and that one instant says little of others."""
    import numpy as np

    instants = np.unique(test.time)
    first, last = (datetime.fromtimestamp(int(each) / 1e6, UTC).isoformat(" ", "minutes") for each in (instants[0], instants[-1]))
    if len(instants) > 1:
        return f"at {len(instants):,} instants from {first} to {last}"
    return (
        f"all at {first}: another instant may tell otherwise, see --test-start and --test-end (of churn also origins in zoo.toml)"
    )


def beyond(held_out: Mapping[str, Mapping[str, Any]], bound: float) -> str | None:
    """Which answers, by the members that they lack, are off by more than the policy's bound on the test rows."""
    off = [f"{name or 'no member'} ({each['ece']:.3f})" for name, each in held_out.items() if each.get("ece", 0.0) > bound]
    if not off:
        return None
    return (
        f"Answers that lack {', '.join(off)} were off by more than calibration_error = {bound:g} on the test rows; each says so "
        "(`calibrated`: false)"
    )


def too_few(test: TrainingData) -> str | None:
    """Why the scores on these test rows say little or nothing, if so."""
    if test.kind.kind in ("binary", "multiclass") and len(test) and (test.target == test.target[0]).all():
        return (
            f"All {len(test):,} test rows are of one class ({test.target[0]:g}): no score on them tells a good model from a bad one. Name "
            "an earlier --test-start, or a longer horizon in zoo.toml"
        )
    return f"Only {len(test):,} test rows: the scores may be chance. See the intervals" if len(test) < FEW else None


def leaderboard(title: str, record: Mapping[str, Any]) -> Any:
    """A table of members, mean and stack from a training record."""
    from zoo.cli.render import cell, table

    lines = {**record.get("members", {}), **{name: record[name] for name in ("mean", "stack") if record.get(name)}}
    lines |= record.get("baselines", {})
    if "classes" in record:
        return _of_classes(title, lines, list(record["classes"]))
    rows = []
    for name, line in lines.items():
        interval = line.get("auc_interval")
        shown = f"{cell(interval[0])} to {cell(interval[1])}" if interval else None
        seconds = line.get("seconds")
        took = None if seconds is None else f"{seconds:.1f}"
        rows.append((name, line.get("auc"), shown, *(line.get(m) for m in METRICS[1:]), took, *_costs(line)))
    heads = ["model", "AUC", "95 % interval", "average precision", "log-loss", "seconds", *COSTS]
    return table(title, heads, rows)


def by_horizon(title: str, days: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Any:
    """A table of a leaderboard each horizon, from what a record has of ``days``."""
    from zoo.cli.render import cell, table

    rows = []
    for ahead, lines in days.items():
        for name, line in lines.items():
            low, high = line["auc_interval"]
            shown = f"{cell(low)} to {cell(high)}"
            stands = (line["rows"], cell(line["base_rate"]))
            rows.append((ahead, name, line["auc"], shown, *(line[metric] for metric in METRICS[1:]), *stands))
    return table(title, ["days", "model", "AUC", "95 % interval", "average precision", "log-loss", "rows", "stay away"], rows)


def at_risk(risk: Mapping[str, Any]) -> str:
    """Value at risk in a sentence; amounts are sums of the event column that it names."""
    top = risk["in_top_tenth"]
    held = "" if top is None else f"; the tenth of users with the greatest score times worth held {top:.1%} of that"
    return (
        f"value at risk over {risk['horizon_days']:g} days, in units of the event column {risk['column']!r}: the users of a cut spend "
        f"{risk['worth']:,.2f}, of which the scores expect {risk['expected']:,.2f} to go; {risk['lost']:,.2f} did go{held}"
    )


def _costs(line: Mapping[str, Any]) -> list[str | None]:
    """What a member costs where it answers: milliseconds a row and megabytes; nothing of what is no member."""
    return [None if line.get(name) is None else f"{line[name]:.3g}" for name in ("ms", "mb")]


def of_stack(record: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what was chosen on later rows, on calibration, and on acting by the stated costs and capacity."""
    from zoo.cli.render import cell

    final, stack = record["final"], record["stack"]
    losses = final.get("log_loss", {})
    tried = ", ".join(f"{name} {cell(loss)}" for name, loss in losses.items())
    # the chosen one need not be the least: a default stays unless another beats it
    least = min(losses, key=lambda name: losses[name], default=final["chosen"])
    kept = "" if least == final["chosen"] else ", which stays unless another is better beyond chance"
    yield f"final model {final['chosen']}{kept}" + (
        f", by log-loss on {final['rows']:,} later training rows: {tried}" if tried else ""
    )
    for member, why in final.get("dropped", {}).items():
        yield f"{member} is left out: {why}"
    if final.get("kept_log_loss") is not None:
        yield f"without what is left out, {final['chosen']} has log-loss {cell(final['kept_log_loss'])} on the same rows"
    if not record.get("refit", True):
        yield "members are those that scored the newest fold (refit = false)"
    mapped = final["calibration"]
    tried = ", ".join(f"{name} {cell(loss)}" for name, loss in mapped["log_loss"].items())
    yield f"calibration {mapped['chosen']}" + (f", by log-loss on later ones: {tried}" if tried else "")
    said = []
    for name, what in (("ece", "calibration error"), ("slope", "slope"), ("intercept", "intercept")):
        if stack.get(name) is not None:
            low, high = stack[f"{name}_interval"]
            said.append(f"{what} {cell(stack[name])} ({cell(low)} to {cell(high)})")
    # resampled rows are noisier than rows, and noise only adds to distances
    above = stack.get("ece") is not None and stack["ece"] < stack["ece_interval"][0]
    more = "; the interval lies above the calibration error, as noise adds to it: see slope and intercept" if above else ""
    yield "the stack on the test rows: " + ", ".join(said) + more
    for name, act in record.get("decisions", {}).items():
        stated = f"a missed positive costs {act['ratio']:g} needless acts" if name == "costs" else f"capacity {act['capacity']:g}"
        worth = f"; cost a row {cell(act['cost'])}, of acting on nobody {cell(act['nobody'])}, on all {cell(act['everybody'])}"
        yield (
            f"{stated}: act from {cell(act['threshold'])} on, {act['acted']:.1%} of the test rows, "
            f"precision {cell(act['precision'])}, recall {cell(act['recall'])}{worth if 'cost' in act else ''}"
        )


def _of_classes(title: str, lines: Mapping[str, Mapping[str, Any]], classes: list[str]) -> Any:
    from zoo.cli.render import cell, table

    rows = []
    for name, line in lines.items():
        low, high = line["log_loss_interval"]
        seconds = line.get("seconds")
        took = None if seconds is None else f"{seconds:.1f}"
        of_classes = [line.get(f"average_precision:{each}") for each in classes]
        rows.append((name, line["log_loss"], f"{cell(low)} to {cell(high)}", line["accuracy"], *of_classes, took, *_costs(line)))
    heads = [f"AP {each}" for each in classes]
    return table(title, ["model", "log-loss", "95 % interval", "accuracy", *heads, "seconds", *COSTS], rows)


def rankings(title: str, record: Mapping[str, Any]) -> Any:
    """A table of members and their rank average from the training record of a task that ranks items."""
    from zoo.cli.render import cell, table

    rows = []
    lines = {**record["members"], **{name: record[name] for name in ("mean", "stack") if record.get(name)}}
    for name, line in lines.items():
        low, high = line["ndcg@10_interval"]
        seconds = line.get("seconds")
        interval, took = f"{cell(low)} to {cell(high)}", None if seconds is None else f"{seconds:.1f}"
        metrics = [line[metric] for metric in ("hr@1", "hr@10", "ndcg@10")]
        rows.append((name, *metrics, interval, line["mrr@10"], line["coverage@10"], took))
    return table(title, ["model", "HR@1", "HR@10", "NDCG@10", "95 % interval", "MRR@10", "coverage@10", "seconds"], rows)
