"""Row T3: churn in 90 days of a gift shop's customers, how far any model could get there, and what more customers or cuts bring.

Choices are made on four earlier cuts, whose labels are known before the test cut. The rows of the ceiling and of the learning curve look
at the test cut's labels on purpose: nothing is chosen by them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import QUICK, Figure
from tasks_purchases import RESAMPLES, WORKERS, Line, asked, drifted, every, fitted, honest, joined, said

from zoo.contract import Array, TrainingData
from zoo.evaluation import evaluate
from zoo.evaluation.bootstrap import Estimate
from zoo.features import Features
from zoo.fitting import Member
from zoo.jobs import Processes
from zoo.manager import plugins
from zoo.project import Project
from zoo.tasks.settings import duration, instant
from zoo.training import split, train, training_data

SHARED = Path("/work/shared/data")
CUT = "2011-09-09"
HORIZON = "90d"
CHURN = """
[tasks.churn]
members = ["gbdt", "gru"]
event_type = "purchase"
active = "400d"  # whoever has ever bought
horizon = "90d"
every = "7d"
start = 2011-01-07
gap = "1m"  # labels are known before the test, and may be known just before it
folds = 3

[tasks.churn.params.gru]
streams = ["visit_*"]
max_length = 30
epochs = 4

"""
LINES = ("items", "event_types", "prices", "quantities", "gaps", "waits", "ages")
SMALL = {
    "num_trees": 300,
    "num_leaves": 4,
    "learning_rate": 0.02,
    "min_data_in_leaf": 100,
    "lambda_l2": 10.0,
    "feature_fraction": 0.1,
    "bagging_fraction": 0.6,
}
TRIALS: dict[str, dict[str, Any]] = {
    "small": {**SMALL, "drop": LINES},
    "small, lines": SMALL,
    "larger": {"drop": LINES},
    "eight leaves": {**SMALL, "num_leaves": 8, "num_trees": 200, "drop": LINES},
}
EARLIER = ("2011-06-10", "2011-05-27", "2011-05-13", "2011-04-29")
"""Cuts that parameters are chosen on: their labels are known before the test cut."""

LINEAR = Member("linear", "linear", {"penalty": 100.0})
PARTS = 5
DEALS = 1 if QUICK else 2
"""How often customers are dealt, or drawn, anew: the mean is told."""
SHARES = (0.25, 0.5, 1.0)
NEWEST = (1, 4, 12)
"""Training cuts of the learning curve, beside all of them."""


def t3() -> list[Figure]:
    """Churn in 90 days of a gift shop's customers."""
    events = SHARED / "online_retail/events.parquet"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "shop"
        _zoo("init", str(root), "--events", str(events), f"--users={events.parent / 'users.parquet'}")
        _settle(root)
        for command in (["apply"], ["ingest", str(events)]):
            _zoo("--repo", str(root), *command)
        features = Features.open(root)
        trials = _earlier(Project.open(root), features)
        best = max(trials, key=lambda name: trials[name])
        _settle(root, TRIALS[best])
        run = train(
            Project.open(root),
            "churn",
            plugins=plugins(),
            features=features,
            executor=Processes(WORKERS),
            test_start=CUT,
            register=False,
        )
        both = _Both.of(Project.open(root), features)
    gbdt = Member("gbdt", "gbdt", {**TRIALS[best], "num_threads": 1})
    bound, curve = both.ceiling([gbdt, LINEAR]), both.curve(gbdt)
    lines = {name: Line([run], [scores]) for name, scores in run.scores.items()}
    stack = lines["stack"]
    what = f"online_retail at {CUT}, no purchase in 90 days, {len(run.test):,} customers, {run.test.target.mean():.1%} positive"
    tried = ", ".join(f"{name} {value:.4f}" for name, value in trials.items())
    top = max(bound, key=lambda name: bound[name].value)
    why = (
        "models trained on the labels of four fifths of the test cut's own customers, which no honest model may see, come to "
        f"{bound[top].value:.4f} on the rest at best (T3 ceiling). Tried on four earlier cuts, mean AUC of gbdt: {tried}"
    )
    first = f"{what}: stack ({every(lines, 'auc')}; {said(run)}; gbdt is {best!r}, of {tried} on four earlier cuts)"
    brier = stack.metrics["brier"]
    return [
        asked(
            "T3",
            first,
            stack,
            "auc",
            0.760,
            why,
            peer=0.745,
            name="logistic regression, as the issue has it; average of models 0.747",
        ),
        Figure(
            id="T3",
            what=f"{what}: stack ({every(lines, 'brier')})",
            ours=brier.value,
            peer=0.202,
            peer_name="logistic regression, as the issue has it",
            unit="Brier",
            interval=(brier.low, brier.high),
            seeds=(0,),
        ),
        *honest("T3", what, lines, [run.record["best_member"]], drift=drifted([run])),
        _shown(
            "T3 ceiling",
            f"{what}: AUC where models are trained on the labels of four fifths of these customers at this cut, alone and beside the "
            f"past, and asked of the rest, which no honest model may do ({DEALS} deals; {_told(bound)})",
            bound[top],
            stack,
        ),
        _shown(
            "T3 learning curve",
            f"{what}: AUC of gbdt by share of the training rows' customers ({DEALS} draws) and by the newest training cuts "
            f"({_told(curve)})",
            curve[f"{SHARES[-1]:.0%} of customers"],
            stack,
        ),
    ]


def _shown(row: str, what: str, found: Estimate, stack: Line) -> Figure:
    return Figure(
        id=row,
        what=what,
        ours=found.value,
        unit="AUC",
        peer=stack.metrics["auc"].value,
        peer_name="stack, trained on the past",
        lower_is_better=False,
        interval=(found.low, found.high),
        seeds=tuple(range(DEALS)),
    )


def _told(lines: dict[str, Estimate]) -> str:
    return ", ".join(f"{name} {each.value:.4f}" for name, each in lines.items())


@dataclass(frozen=True)
class _Both:
    """Training and test rows as one batch, so that folds can mix them. past, now: their places. whose: int64 (n,), customers."""

    data: TrainingData
    past: Array
    now: Array
    whose: Array

    @staticmethod
    def of(project: Project, features: Features) -> _Both:
        task = plugins().task("churn")
        parts = split(task, project.task("churn"), features.reader.view(), instant(CUT), None)
        pair = (parts.train, parts.test)
        rows = joined(pair)
        places = np.arange(len(rows))
        whose = np.unique(rows.keys["user_id"], return_inverse=True)[1]
        return _Both(training_data(features, task, rows), places[: len(parts.train)], places[len(parts.train) :], whose)

    def asked(self, member: Member, train: Array, test: Array) -> Array:
        return fitted(member, self.data.take(train), self.data.take(test), {})[:, 0].astype(np.float64)

    def auc(self, scores: Sequence[Array]) -> Estimate:
        """Mean over several scores (test rows,), customers drawn for the interval."""
        many, whose = len(scores), self.whose[self.now]
        deal = np.repeat(np.arange(many), len(self.now))
        target = np.tile(self.data.target[self.now], many)
        more: dict[str, Any] = {"groups": np.tile(whose, many), "cuts": deal, "resamples": RESAMPLES}
        return evaluate(target, np.concatenate(scores), metrics=["auc"], **more)["auc"]

    def ceiling(self, members: Sequence[Member]) -> dict[str, Estimate]:
        """AUC by model and by what it was trained on."""
        out = {}
        for member in members:
            out[f"{member.name} on the past"] = self.auc([self.asked(member, self.past, self.now)])
            for name, more in (("this cut", self.past[:0]), ("the past and this cut", self.past)):
                scores = []
                for seed in range(DEALS):
                    part, score = np.random.default_rng(seed).permutation(len(self.now)) % PARTS, np.zeros(len(self.now))
                    for held in range(PARTS):
                        score[part == held] = self.asked(member, np.r_[more, self.now[part != held]], self.now[part == held])
                    scores.append(score)
                out[f"{member.name} on {name}"] = self.auc(scores)
        return out

    def curve(self, member: Member) -> dict[str, Estimate]:
        """AUC by share of the training rows' customers, and by the newest training cuts."""
        out, count = {}, self.whose.max() + 1
        for share in SHARES:
            kept = [np.random.default_rng(seed).permutation(count) < share * count for seed in range(DEALS if share < 1 else 1)]
            scores = [self.asked(member, self.past[some[self.whose[self.past]]], self.now) for some in kept]
            out[f"{share:.0%} of customers"] = self.auc(scores)
        cuts = np.unique(self.data.time[self.past])
        for newest in NEWEST:
            rows = self.past[self.data.time[self.past] >= cuts[-newest]]
            out[f"{newest} of {len(cuts)} cuts"] = self.auc([self.asked(member, rows, self.now)])
        return out


def _zoo(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "zoo", *words], check=True, stdout=subprocess.DEVNULL)


def _settle(root: Path, gbdt: dict[str, Any] | None = None) -> None:
    """Put T3's churn task in the place of what the project has."""
    path = root / "zoo.toml"
    text = re.sub(r"\[tasks\.churn\].*?(?=\n#|\n\[tasks\.(?!churn)|\Z)", "", path.read_text(), flags=re.S)
    text = text.rstrip("\n") + "\n" + CHURN
    if gbdt is not None:
        lines = [f"{name} = {list(value) if isinstance(value, tuple) else value}" for name, value in gbdt.items()]
        text += "[tasks.churn.params.gbdt]\nnum_threads = 1\n" + "\n".join(lines).replace("'", '"') + "\n"
    path.write_text(text)


def _earlier(project: Project, features: Features) -> dict[str, float]:
    """Mean AUC of each trial over the earlier cuts, trained on labels known by then."""
    task, own, view = plugins().task("churn"), dict(project.task("churn").own), features.reader.view()
    own.pop("gap", None)
    first, last = instant(own["start"]), instant(EARLIER[0])
    rows = task.examples(view, own, first, last + 1)
    data = training_data(features, task, rows)
    out: dict[str, list[float]] = {name: [] for name in TRIALS}
    for cut in map(instant, EARLIER[:1] if QUICK else EARLIER):
        past, now = np.flatnonzero(rows.time <= cut - duration(HORIZON)), np.flatnonzero(rows.time == cut)
        for name, params in TRIALS.items():
            member = Member("gbdt", "gbdt", {**params, "num_threads": 1})
            score = fitted(member, data.take(past), data.take(now), {})
            out[name].append(evaluate(data.target[now], score, metrics=["auc"], resamples=2)["auc"].value)
    return {name: float(np.mean(values)) for name, values in out.items()}


if __name__ == "__main__":
    for figure in t3():
        print(figure, flush=True)
