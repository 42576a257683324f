"""The command ``uplift``: whom a treatment changes, from a table of a randomised trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.state import Json, State, plain, state
from zoo.cli.train import Workers
from zoo.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.uplift.trial import Trial

MEMBERS = ("linear", "gbdt")
"""Models that learners stand on where none is named, if they are there; the plain one first."""


def uplift(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="A row for each customer: Parquet, or CSV named .csv. Or a campaign task of zoo.toml: its log then has the rows.",
            metavar="FILE",
        ),
    ],
    treatment: Annotated[str, typer.Option(help="The column that says which arm a row was given.", metavar="COLUMN")],
    outcome: Annotated[
        str | None, typer.Option(help="The column of what came of it: 0 and 1, or amounts; of a table.", metavar="COLUMN")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="The treatment's value to compare with. Default: 0, where the values are 0 and 1.", metavar="VALUE"),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="No feature: identifiers, and what became known after the treatment; may be repeated.", metavar="COLUMN"
        ),
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(help="A model that learners stand on; may be repeated. Default: linear and gbdt.", metavar="MODEL"),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            help="Contact at most so many rows of --score, without it of FILE; tested on the same share.", min=0, metavar="N"
        ),
    ] = None,
    not_randomised: Annotated[
        bool, typer.Option("--not-randomised", help="Say that the treatment was not given at random.")
    ] = False,
    score: Annotated[Path | None, typer.Option(help="Say for the rows of this table whom to contact.", metavar="FILE")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write what --score says: .parquet or .csv.", metavar="FILE")] = None,
    record: Annotated[Path | None, typer.Option(help="Keep the whole answer there, as JSON.", metavar="FILE")] = None,
    seed: Annotated[int, typer.Option(help="Of how rows are dealt to halves and parts.", metavar="N")] = 0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Tell whom a treatment changes, from a randomised trial.

    Half of the rows choose among learners of uplift, the other half tests the choice; then it is fitted on all rows. The answer
    warns where the treatment seems not to have been given at random. A table needs no log and no project.
    """
    own = state(ctx)
    if (score is None) != (out is None):
        raise UsageError("--score names the rows to decide on and --out where to write it; give both or neither")
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise UsageError(f"--out {out}: expected a name that ends in .parquet or .csv")
    with own.progress("uplift") as say:
        say(0.0, "reading")
        from zoo.evaluation.uplift import best_arms
        from zoo.fitting import Member, PluginSource
        from zoo.jobs import Processes, Serial
        from zoo.judging import command
        from zoo.uplift.study import study
        from zoo.uplift.trial import Layout, read_table, trial_of

        names = member or [name for name in MEMBERS if name in own.plugins.models]
        if not file.exists() and (own.root / "zoo.toml").is_file() and str(file) in own.project.tasks:
            if outcome is not None or ignore or score is not None:
                raise UsageError(
                    f"{file} is a task: its log says outcome and features; leave out --outcome, --ignore and --score"
                )
            rows, layout = _of_log(own, str(file), treatment, control), Layout(())
        elif outcome is None:
            raise UsageError("--outcome is missing: the column of what came of the treatment")
        else:
            rows, layout = trial_of(read_table(file), treatment, outcome, control, ignore or ())
        new = None if score is None else read_table(score)
        wanted = None if new is None else layout.batch(new)
        done = study(
            rows,
            [Member(name, name, seed=seed) for name in names],
            budget=budget,
            of_rows=None if new is None else len(new),
            declared=False if not_randomised else None,
            seed=seed,
            source=PluginSource(own.without),
            executor=Serial() if workers == 1 else Processes(workers),
            progress=say,
        )
    document = {
        "file": str(file),
        "treatment": treatment,
        "outcome": outcome or "response",
        "left_out": list(layout.left_out),
        **done.record,
    }
    given: dict[str, Any] = {"treatment": treatment, "control": control, "outcome": outcome, "ignore": ignore, "member": member}
    given |= {"budget": budget, "not_randomised": not_randomised, "score": score, "out": out, "record": record}
    document["command"] = command("uplift", str(file), **given, seed=seed or None)
    if new is not None and out is not None and wanted is not None:
        import polars as pl

        effects = done.policy(wanted)
        arm = best_arms(effects, budget)
        columns = [pl.Series("contact", [rows.arms[each] for each in arm])]
        columns += [pl.Series(f"uplift:{name}", effects[:, at]) for at, name in enumerate(rows.arms[1:])]
        decided = new.with_columns(columns)
        if out.suffix == ".csv":
            decided.write_csv(out)
        else:
            decided.write_parquet(out)
        document["scored"] = {"file": str(out), "rows": len(new), "contacted": int((arm > 0).sum())}
    if record is not None:
        record.write_text(json.dumps(plain(document), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _answer(own, as_json, document)


def _of_log(own: State, task: str, treatment: str, control: str | None) -> Trial:
    from zoo.features import Features
    from zoo.uplift.of_log import trial_of_log

    settings = own.project.task(task)
    if settings.task != "campaign":
        raise UsageError(f"{task} is a task of kind {settings.task}; uplift is learnt of campaigns")
    if control is None:
        raise UsageError("--control is missing: the arm of customers that were held back")
    return trial_of_log(Features.open(own.project.root), own.plugins.task("campaign"), settings.own, treatment, control)


def _answer(own: State, as_json: bool, document: Mapping[str, Any]) -> None:
    def human(console: Console) -> None:
        from zoo.cli.render import pairs, table

        if document["warning"]:
            console.print(f"WARNING: {document['warning']}.\n")
        for arm, board in document["uplift"].items():
            rows = [
                [name + (" (chosen)" if name == board["chosen"] else ""), *_interval(line["qini"]), _p(line)]
                for name, line in board["lines"].items()
            ]
            effect = _interval({"value": board["effect"], "interval": board["effect_interval"]})
            title = (
                f"{arm}: {document['outcome']} {effect[0]:+.4f} a row more than without (95 % {effect[1]}); Qini on {board['rows']:,} "
                "rows that took no part in choosing"
            )
            console.print(table(title, ["order by", "Qini", "95 %", "p against chosen"], rows))
        policy = document["policy"]
        rows = [
            [name, line["contacted"], *_interval(line["value"]), *_apart(line), line.get("against")]
            for name, line in policy["values"].items()
        ]
        title = f"{document['outcome']} a row by policy, {document['test_rows']:,} rows; effects by {policy['chosen']}"
        console.print(table(title, ["policy", "contacted", "value", "95 %", "more", "95 %", "p", "than"], rows))
        facts = {"rows to choose, to test": f"{document['rows']:,}, {document['test_rows']:,}"}
        if policy["budget"] is not None:
            facts["budget"] = (
                f"{policy['budget']:,} contacts, {policy['share']:.1%} of the rows to decide on; the test's rows likewise"
            )
        facts["values"] = "without what a contact costs"
        told = document["randomised"]["auc"].items()
        facts["treatment told by features"] = "; ".join(f"{arm}: AUC {_each(by)}" for arm, by in told) + " (95 %; by chance 0.5)"
        if document["left_out"]:
            facts["no features"] = ", ".join(document["left_out"])
        if "scored" in document:
            facts["decided"] = "{file}: {contacted:,} of {rows:,} to contact".format(**document["scored"])
        console.print(pairs("", facts))

    own.answer(as_json, document, human)


def _each(by: Mapping[str, Any]) -> str:
    return ", ".join("{} {:.3f} to {:.3f}".format(name, *line["interval"]) for name, line in by.items())


def _interval(each: Mapping[str, Any]) -> list[Any]:
    low, high = each["interval"]
    return [each["value"], "-" if low is None or high is None else f"{low:.4f} to {high:.4f}"]


def _p(line: Mapping[str, Any]) -> str:
    return f"{line['difference']['p_value']:.3f}" if line.get("difference") else ""


def _apart(line: Mapping[str, Any]) -> list[Any]:
    """A policy's difference, its interval and its p value; blanks of the one that others are held against."""
    return [*_interval(line["difference"]), _p(line)] if line.get("difference") else [None, None, None]
