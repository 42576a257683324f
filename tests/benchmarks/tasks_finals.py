"""What should combine a stack's members: rules of choosing the final model, each judged on later blocks of rows before any test cut.

Members are cheap ones with few settings. At each block a rule knows the losses of earlier blocks whose labels were known by then, as
``zoo train`` does at its test cut; what it chooses is fitted on the rows before the block. No row of a test part is looked at.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from figures import QUICK, Figure
from tasks_behaviour import CUT, SHARED, opened
from tasks_best import losses
from tasks_purchases import demo

from zoo.cache import Cache
from zoo.choice import least
from zoo.contract import Array, Task, TrainingData
from zoo.evaluation.bootstrap import difference_of_means
from zoo.features import Features
from zoo.finals import CANDIDATES, DEFAULT, Scores
from zoo.fitting import Member
from zoo.folds import forward_chaining
from zoo.jobs import Processes
from zoo.manager import plugins
from zoo.stacking import out_of_fold
from zoo.tasks.settings import instant
from zoo.training import training_data
from zoo.vocabulary import Vocabulary

FOLDS = 5
RESAMPLES = 200 if QUICK else 10_000
LOGS: Mapping[str, tuple[str, str, str, dict[str, Any]]] = {
    "demo, churn in 14 days": (
        "demo",
        "churn",
        "2017-08-18",
        {"event_type": "purchase", "active": "56d", "horizon": "14d", "every": "7d", "start": "2017-03-01"},
    ),
    "demo, churn in 28 days": (
        "demo",
        "churn",
        "2017-08-04",
        {"event_type": "purchase", "active": "56d", "horizon": "28d", "every": "7d", "start": "2017-03-01"},
    ),
    "online_retail, churn in 30 days": (
        "online_retail",
        "churn",
        "2011-08-10",
        {"event_type": "purchase", "active": "200d", "horizon": "30d", "every": "7d", "start": "2011-02-04"},
    ),
    "retailrocket_mb, purchase in 7 days": (
        "retailrocket_mb",
        "propensity",
        CUT,
        {"after": ["view", "cart"], "horizon": "7d"},
    ),
    "retailrocket_mb, next action": ("retailrocket_mb", "behaviour", CUT, {"horizon": "1d"}),
}
"""Name -> log, task, the time before which its rows stand, settings. No label reaches into a test part."""
TREES = {"num_threads": 1, "num_trees": 200, "num_leaves": 7, "learning_rate": 0.04}
SHORT: Mapping[str, dict[str, Any]] = {"demo": {"streams": ["visit_*"], "max_length": 30}}
"""What the recurrent member reads of a log: elsewhere its newest 20 events."""
Rule = Callable[[Mapping[str, Array], Array], str]


def unless_better(default: str) -> Rule:
    return lambda loss, whose: least(loss, default, whose)


def least_of_all(loss: Mapping[str, Array], _: Array) -> str:
    return min(loss, key=lambda name: loss[name].sum())


def not_below_best(loss: Mapping[str, Array], whose: Array) -> str:
    picked = least(loss, DEFAULT, whose)
    return "best" if loss["best"].sum() < loss[picked].sum() else picked


RULES: Mapping[str, tuple[str, Rule]] = {
    "logistic unless another is better beyond chance": ("logistic", unless_better("logistic")),
    "the best member unless another is better beyond chance": ("best", unless_better("best")),
    "the mean unless another is better beyond chance": ("mean", unless_better("mean")),
    "the same as the first, the best member where that has the lower loss": ("logistic", not_below_best),
    "the least loss": ("logistic", least_of_all),
}
"""Name -> what it takes before anything is known, and how it chooses by the losses so far."""


def members(data: TrainingData, log: str) -> list[Member]:
    """Trees, trees on windows only, a recurrent net and, where there are two classes, the plain model."""
    sequences = tuple(name for name in data.batch.names if data.batch.stored(name)[1].is_sequence)
    out = [
        Member("gbdt", "gbdt", TREES),
        Member("windows", "gbdt", {**TREES, "drop": sequences}),
        Member("gru", "gru", {"epochs": 2, **SHORT.get(log, {"max_length": 20})}),
    ]
    return [*out, Member("linear", "linear")] if data.kind.kind == "binary" else out


def before(features: Features, log: str, task: Task, settings: dict[str, Any], end: str, cache: Path) -> Scores:
    """Out-of-fold scores of the members on rows whose labels are known before ``end``."""
    view = features.reader.view()
    task = task.resolved(view, settings)
    begin = instant(settings["start"]) if "start" in settings else view.start()
    rows = task.examples(view, settings, begin, instant(end))
    rows = rows.take(np.flatnonzero(rows.known_at <= instant(end)))
    data = training_data(features, task, rows)
    folds = forward_chaining(rows.time, rows.known_at, FOLDS)
    oof = out_of_fold(members(data, log), data, folds, executor=Processes(1), cache=Cache(cache))
    whose = np.unique(next(iter(rows.keys.values())), return_inverse=True)[1]
    return Scores(oof, data, rows.known_at, whose, Vocabulary.of(data))


def judged(scores: Scores) -> tuple[dict[str, Array], dict[str, list[str]], Array]:
    """By rule and by final model the loss of each later row, what each rule chose block by block, and whose the rows are."""
    blocks, data, whose = scores.blocks(), scores.data, scores.entities
    assert whose is not None
    loss = {}
    for name in CANDIDATES:
        forward = scores.forward(name, blocks)
        loss[name] = np.full(len(data), np.nan)
        for _, rows in blocks:
            loss[name][rows] = losses(data.target[rows], forward[rows])
    chosen: dict[str, list[str]] = {name: [] for name in RULES}
    for at, (_, rows) in enumerate(blocks):
        known = [each[scores.known_at[each] <= data.time[rows].min()] for _, each in blocks[:at]]
        told = np.concatenate([*known, np.zeros(0, np.int64)]).astype(np.int64)
        for name, (first, rule) in RULES.items():
            chosen[name].append(rule({n: each[told] for n, each in loss.items()}, whose[told]) if len(told) else first)
    out = {rule: np.concatenate([loss[n][rows] for n, (_, rows) in zip(names, blocks)]) for rule, names in chosen.items()}
    later = np.concatenate([rows for _, rows in blocks])
    return out | {f"always {name}": each[later] for name, each in loss.items()}, chosen, whose[later]


def opened_logs(folder: Path) -> Iterator[tuple[str, Scores]]:
    found, made = plugins(), {"demo": demo()[1]}
    for what, (log, task, end, settings) in LOGS.items():
        if log not in made:
            made[log] = opened(folder / log, SHARED / log / "events.parquet")
        yield what, before(made[log], log, found.task(task), settings, end, folder / "cache")


def finals() -> list[Figure]:
    """A row for each log and target: the rule that is used, beside every other rule and every final model."""
    out, used = [], next(iter(RULES))
    with tempfile.TemporaryDirectory() as folder:
        for what, scores in opened_logs(Path(folder)):
            loss, chosen, whose = judged(scores)
            print(what, {name: round(float(each.mean()), 5) for name, each in loss.items()}, chosen, file=sys.stderr, flush=True)
            apart = {
                name: difference_of_means("log_loss", each, loss[used], groups=whose, resamples=RESAMPLES)
                for name, each in loss.items()
                if name != used
            }
            best = loss["always best"]
            out.append(
                Figure(
                    id="finals",
                    what=f"{what}, {len(best):,} rows of {len(np.unique(whose)):,} users in later blocks before the test cut: log-loss of "
                    f"what the rule in use chose ({used}: {', '.join(chosen[used])}; others less it: "
                    + ", ".join(f"{name} {each.value:+.5f} ({each.low:+.5f} to {each.high:+.5f})" for name, each in apart.items())
                    + ")",
                    ours=float(loss[used].mean()),
                    peer=float(best.mean()),
                    peer_name="always the best member so far",
                    unit="nats",
                    seeds=(0,),
                )
            )
    return out
