"""Rows T1 and T2: the demo's churn and campaign response, and what stands in the way of a bound that is not reached.

Choices are made on rows before the test cuts: parameters stand in feature_repo/zoo.toml. Test rows are looked at once, at the end.
Intervals draw customers.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from figures import QUICK, Figure
from tasks_best import beside_best, losses

from zoo.cache import Cache
from zoo.contract import Array, Examples, TrainingData
from zoo.evaluation import evaluate
from zoo.evaluation.bootstrap import Estimate
from zoo.features import Features, apply
from zoo.fitting import Member
from zoo.jobs import Processes
from zoo.manager import plugins
from zoo.project import Project
from zoo.stacking import fit_members
from zoo.tasks.settings import instant
from zoo.training import Trained, train
from zoo.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
RESAMPLES = 200 if QUICK else 2_000
WORKERS = 2
ECE, SLOPE = 0.02, (0.9, 1.1)
WINDOWS = "LightGBM untuned on windows, this run"


class Line:
    """Scores of one line over the rows of several cuts, and its metrics: means over the cuts, except of calibration, which pools rows."""

    def __init__(self, runs: Sequence[Trained], scores: Sequence[Array]) -> None:
        self.target = np.concatenate([run.test.target for run in runs])
        self.score = np.concatenate(scores)[:, 0].astype(np.float64)
        users = np.concatenate([next(iter(run.rows.keys.values())) for run in runs])
        self.groups = np.unique(users, return_inverse=True)[1]
        self.cuts = np.concatenate([np.full(len(run.test), at) for at, run in enumerate(runs)])
        given: dict[str, Any] = {"groups": self.groups, "resamples": RESAMPLES}
        ranked = ["auc", "average_precision", "log_loss", "brier"]
        self.metrics: dict[str, Estimate] = evaluate(self.target, self.score, cuts=self.cuts, metrics=ranked, **given)
        self.metrics |= evaluate(self.target, self.score, metrics=["ece", "slope", "intercept"], **given)


def asked(
    row: str, what: str, line: Line, metric: str, limit: float, why: str, unit: str = "", peer: Any = None, name: str = ""
) -> Figure:
    """One bound on a line's metric: at least the limit of AUC and average precision, at most of anything else."""
    found = line.metrics[metric]
    above = metric in ("auc", "average_precision")
    reached = found.value >= limit if above else found.value <= limit
    return Figure(
        id=row,
        what=what,
        ours=found.value,
        unit=unit or {"auc": "AUC", "log_loss": "nats", "ece": "calibration error"}.get(metric, metric.replace("_", " ")),
        peer=peer,
        peer_name=name,
        lower_is_better=not above,
        interval=(found.low, found.high),
        seeds=(0,),
        must=f"at {'least' if above else 'most'} {limit}",
        reached=reached,
        why="" if reached else why,
    )


def honest(
    row: str, what: str, lines: dict[str, Line], before: Sequence[str], bound: bool = True, drift: str = ""
) -> list[Figure]:
    """Calibration of the stack, and the stack beside its best member.

    before: by cut, the best member on its training rows. bound: whether calibration has bounds.
    """
    stack = lines["stack"]
    error, slope = (stack.metrics[name] for name in ("ece", "slope"))
    noisy = f"{drift}; ten bins of equal mass are noisy, and noise makes it larger: see the interval, and the slope beside it"
    limits = {
        "calibration error, ten bins of equal mass": (error, f"at most {ECE}", error.value <= ECE, noisy),
        "calibration slope": (
            slope,
            f"{SLOPE[0]} to {SLOPE[1]}",
            SLOPE[0] <= slope.value <= SLOPE[1],
            f"its interval is {slope.low:.2f} to {slope.high:.2f}",
        ),
    }
    figures = [
        Figure(
            id=row,
            what=f"{what}, stack: {name}",
            ours=found.value,
            unit="slope" if found is slope else "calibration error",
            interval=(found.low, found.high),
            seeds=(0,),
            must=must if bound else "",
            reached=inside if bound else None,
            why=why if bound and not inside else "",
        )
        for name, (found, must, inside, why) in limits.items()
    ]
    members = [name for name in lines if name not in ("mean", "stack")]
    loss = {name: losses(line.target, line.score[:, None]) for name, line in lines.items()}
    figures += beside_best(row, what, loss, members, np.array(before)[stack.cuts], stack.groups, stack.cuts)
    return figures


def drifted(runs: Sequence[Trained]) -> str:
    """How the share of positives moved: what no model that learns from the past can know."""
    past, now = (
        np.concatenate([part.target for part in parts]).mean() for parts in ([r.data for r in runs], [r.test for r in runs])
    )
    return f"{past:.1%} of the training rows are positive, {now:.1%} of the test rows"


def every(lines: dict[str, Line], metric: str) -> str:
    return ", ".join(f"{name} {line.metrics[metric].value:.4f}" for name, line in lines.items())


def said(run: Trained) -> str:
    """What was chosen on later training rows, and the log-loss there of all that it was chosen from."""
    final = run.record["final"]
    tried = ", ".join(f"{name} {loss:.4f}" for name, loss in final.get("log_loss", {}).items())
    out = f"final model {final['chosen']}{f' of {tried} before the test' if tried else ''}"
    out += f", calibration {final['calibration']['chosen']}"
    return out + (f", without {', '.join(final['dropped'])}" if final.get("dropped") else "")


def demo() -> tuple[Project, Features, Any]:
    """The demo's project with its log made and its features applied."""
    from zoo.cli.demo import Demo, event_log
    from zoo.cli.render import console

    project = Project.open(ROOT / "feature_repo")
    event_log(Demo(project, plugins(), Processes(WORKERS), console(sys.stderr)))
    apply(project.root)
    return project, Features.open(project.root), plugins()


@contextmanager
def fresh(project: Project) -> Iterator[Project]:
    """A copy of the project with its log and nothing that was fitted, so that what a run takes is what it costs."""
    before = os.environ.get("ZOO_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repo"
        left_out = shutil.ignore_patterns("source", "cache", "artefacts", "registry.db*", "__pycache__")
        shutil.copytree(project.root, root, ignore=left_out)
        apply(root)
        copy = Project.open(root)
        os.environ["ZOO_CACHE"] = str(copy.cache / "states")
        try:
            yield copy
        finally:
            os.environ.pop("ZOO_CACHE")
            if before is not None:
                os.environ["ZOO_CACHE"] = before


def t1() -> list[Figure]:
    """Churn at the demo's four cuts."""
    with fresh(demo()[0]) as project:
        return _t1(project)


def _t1(project: Project) -> list[Figure]:
    from zoo.cli.demo import CUTS
    from zoo.cli.demo import WINDOWS as SETTINGS

    features, found = Features.open(project.root), plugins()
    work: dict[str, Any] = {"executor": Processes(WORKERS), "cache": Cache(project.cache)}
    runs, windows, curve = [], [], {share: [] for share in (0.25, 0.5, 1.0)}
    for cut in CUTS[-1:] if QUICK else CUTS:
        run = train(project, "churn", plugins=found, features=features, executor=work["executor"], test_start=cut, register=False)
        runs.append(run)
        windows.append(fitted(Member("windows", "gbdt", SETTINGS), run.data, run.test, work))
        gbdt = Member("gbdt", "gbdt", project.task("churn").params["gbdt"])
        whose = np.unique(households(run, project, features, found, "churn", cut), return_inverse=True)[1]
        for share, parts in curve.items():
            kept = np.random.default_rng(0).permutation(whose.max() + 1) < share * (whose.max() + 1)
            parts.append(fitted(gbdt, run.data.take(np.flatnonzero(kept[whose])), run.test, work))
    lines = {name: Line(runs, [run.scores[name] for run in runs]) for name in runs[0].scores}
    peer = Line(runs, windows)
    learnt = {share: Line(runs, parts).metrics for share, parts in curve.items()}
    why = "how far models come that know labels of the test cuts: T1 ceiling. Learning curve, gbdt on " + ", ".join(
        f"{s:.0%} of the households {m['auc'].value:.4f} / {m['log_loss'].value:.4f}" for s, m in learnt.items()
    )
    what = f"demo purchases, churn in 14 days, mean of {len(runs)} cuts, {len(peer.target):,} rows"
    chose = "; ".join(f"{cut}: {said(run)}" for cut, run in zip(CUTS[-len(runs) :], runs))
    stack = lines["stack"]
    first = f"{what}: stack ({every(lines, 'auc')}; {chose})"
    second = f"{what}: stack ({every(lines, 'log_loss')})"
    return [
        asked("T1", first, stack, "auc", 0.845, why, peer=peer.metrics["auc"].value, name=WINDOWS),
        asked("T1", second, stack, "log_loss", 0.402, why, peer=peer.metrics["log_loss"].value, name=WINDOWS),
        *honest("T1", what, lines, [run.record["best_member"] for run in runs], drift=drifted(runs)),
    ]


def t1_ceiling() -> list[Figure]:
    """How far models come that know labels of T1's test cuts."""
    from bench_demo import ceiling

    return bounded(ceiling())


def bounded(bound: dict[str, dict[str, Estimate]]) -> list[Figure]:
    """AUC and log-loss by what models were trained on."""
    honest_one = "gbdt on the past"
    past, figures = bound[honest_one], []
    for metric, above in (("auc", True), ("log_loss", False)):
        top = (max if above else min)(bound.keys() - {honest_one}, key=lambda name: bound[name][metric].value)
        found = bound[top][metric]
        told = ", ".join(f"{name} {each[metric]}" for name, each in bound.items())
        figures.append(
            Figure(
                id="T1 ceiling",
                what=f"demo purchases, churn in 14 days, mean of the test cuts: {'AUC' if above else 'log-loss'} where models are trained "
                "on the labels of four fifths of the test cuts' households, alone and beside the past, and asked of the other households, "
                f"which no honest model may do; the best, {top} (all: {told})",
                ours=found.value,
                unit="AUC" if above else "nats",
                peer=past[metric].value,
                peer_name=honest_one,
                lower_is_better=not above,
                interval=(found.low, found.high),
                seeds=(0,),
            )
        )
    return figures


def households(
    run: Trained, project: Project, features: Features, found: Any, task: str, start: str, end: str | None = None
) -> Array:
    """The households of a run's training rows."""
    from zoo.training import split

    cut = instant(start), None if end is None else instant(end)
    rows = split(found.task(task), project.task(task), features.pinned().reader.view(), *cut)
    assert len(rows.train) == len(run.data)
    return next(iter(rows.train.keys.values()))


def fitted(member: Member, data: TrainingData, test: TrainingData, work: dict[str, Any]) -> Array:
    """Test scores (n, 1) of a member fitted on these rows."""
    (one,) = fit_members([member], data, **work)
    return one.fitted.predict(Vocabulary.of(data).apply(test.batch.select(one.inputs).compact()))


def joined(parts: Sequence[Examples]) -> Examples:
    """Rows of several parts as one, in their order."""
    keys = {name: np.concatenate([rows.keys[name] for rows in parts]) for name in parts[0].keys}
    return Examples(keys, *(np.concatenate([getattr(rows, f) for rows in parts]) for f in ("time", "target", "known_at")))


def t2() -> list[Figure]:
    """Campaign response of every test campaign, those that still run when the log ends with the redemptions seen by then."""
    with fresh(demo()[0]) as project:
        return _t2(project)


def _t2(project: Project) -> list[Figure]:
    from zoo.cli.demo import CAMPAIGNS
    from zoo.cli.demo import WINDOWS as SETTINGS

    features, found = Features.open(project.root), plugins()
    work: dict[str, Any] = {"executor": Processes(WORKERS), "cache": Cache(project.cache)}
    start, end = CAMPAIGNS
    more: dict[str, Any] = {"test_start": start, "test_end": end, "open_labels": True, "register": False}
    run = train(project, "campaign", plugins=found, features=features, executor=work["executor"], **more)
    lines = {name: Line([run], [scores]) for name, scores in run.scores.items()}
    peer = Line([run], [fitted(Member("windows", "gbdt", SETTINGS), run.data, run.test, work)])
    stack, rate = lines["stack"], run.test.target.mean()
    what = f"demo, campaign response, {len(run.test):,} rows, {rate:.1%} positive"
    first = f"{what}: stack ({every(lines, 'auc')}; {said(run)})"
    second = f"{what}: stack ({every(lines, 'average_precision')})"
    value = "average_precision"
    return [
        asked("T2", first, stack, "auc", 0.785, "see the members", peer=peer.metrics["auc"].value, name=WINDOWS),
        asked("T2", second, stack, value, 0.40, "see the members", peer=peer.metrics[value].value, name=WINDOWS),
        *honest("T2", what, lines, [run.record["best_member"]], bound=False),
    ]


if __name__ == "__main__":
    for figure in {"t1": t1, "t2": t2}[sys.argv[1]]():
        print(figure, flush=True)
