"""What a training record says beside the leaderboard: shares, cost, calibration, decisions, slices, importance, guards, data and drift."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.cache import Cache
from zoo.contract import silent
from zoo.errors import UsageError
from zoo.evaluation import calibration, decision, reliability, threshold_of_capacity, threshold_of_costs
from zoo.evaluation.drift import drift
from zoo.evaluation.slices import by_slice, of_log
from zoo.explaining import importance, rates
from zoo.finals import Chosen
from zoo.fitting import Member, PluginSource, seen
from zoo.jobs import Executor
from zoo.leaks import fits, look
from zoo.plugin import Array, Examples, FeatureBatch, Progress, Split, Target, TrainingData
from zoo.project import TaskSettings
from zoo.recommender import Recommender
from zoo.stacking import Ensemble, Fitted
from zoo.vocabulary import Vocabulary

if TYPE_CHECKING:
    from zoo.events.view import LogView

ALONE = 0.5
"""Share of instants with one row from which on rows are not of cuts, so that a number of rows at one instant means nothing."""
TIMED = 256
"""Test rows that a member is timed on, in one call; the quicker of two."""


def judged(
    record: Mapping[str, Any],
    ensemble: Ensemble | Recommender,
    view: LogView,
    rows: Split,
    data: TrainingData,
    test: TrainingData,
    scores: Mapping[str, Array],
    groups: tuple[Array, Array],
    *,
    members: Sequence[Member],
    folds: Sequence[tuple[Array, Array]],
    check_leaks: bool,
    source: PluginSource,
    executor: Executor,
    cache: Cache | None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Further entries of a record, JSON-ready. scores: of the test rows, by line. groups: whom each training and each test row is of."""
    asked: dict[str, Any] = {"answer": list(scores)[-1], "groups": groups[1], "seed": seed}
    parts = by_slice(of_log(view, rows.test, rows.train), test.target, scores, list(record["members"]), test.kind, **asked)
    out: dict[str, Any] = {
        "slices": parts | record.get("slices", {}),
        "drift": drift(data.batch, test.batch),
        "data": {
            "users in training": len(np.unique(groups[0])),
            "users in the test": len(np.unique(groups[1])),
            "columns": len(data.batch.names),
            "test rows of users without events": int((test.batch.newest < 0).sum()),
        },
    }
    if isinstance(ensemble, Ensemble):
        out["importance"] = importance(ensemble, test.batch, rates(record, test.kind))
    guards = look(rows, data, test)
    if folds:
        taken = {name: line["fold_seconds"] for name, line in record["members"].items()}
        work: dict[str, Any] = {"source": source, "executor": executor, "cache": cache, "progress": progress}
        guards += fits(members, data, folds, groups[0], taken, anyhow=check_leaks, **work)
    out["guards"] = [vars(each) for each in guards]
    return out


def command(*words: str, **options: Any) -> str:
    """A command line of zoo; options that are None or False are left out, lists are repeated."""
    line = ["zoo", *words]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            line.append(flag)
        elif value is not None and value is not False:
            line += [word for each in (value if isinstance(value, (list, tuple)) else [value]) for word in (flag, str(each))]
    return shlex.join(line)


def shares(test: TrainingData) -> dict[str, Any]:
    """What guessing would know: the share of positive rows, or of each class."""
    if test.kind.kind != "multiclass":
        return {"base_rate": float(np.mean(test.target))}
    counts = np.bincount(test.target.astype(np.int64), minlength=test.kind.width) / len(test)
    return {"classes": dict(zip(test.kind.classes, counts.tolist(), strict=True))}


def cost(fitted: Fitted, batch: FeatureBatch, vocabulary: Vocabulary) -> dict[str, float]:
    """``ms``: milliseconds a row, of scoring ``TIMED`` rows in one call; ``mb``: megabytes of its artefact."""
    some, best = batch.take(np.arange(min(TIMED, len(batch)))), float("inf")
    for _ in range(2):
        started = perf_counter()
        fitted.fitted.predict(seen(some, vocabulary, fitted.inputs))
        best = min(best, perf_counter() - started)
    artefact = fitted.fitted.save()
    size = sum(a.nbytes for a in artefact.arrays.values()) + sum(len(t.encode()) for t in artefact.texts.values())
    return {"ms": 1e3 * best / max(1, len(some)), "mb": size / 1e6}


def calibrated(target: Array, scores: Array, groups: Array) -> dict[str, Any]:
    """Slope and intercept of the stack with their intervals, and its reliability curve; of several classes those of the likeliest one."""
    out: dict[str, Any] = {}
    for name, found in calibration(target, scores, groups=groups).items():
        out |= {name: found.value, f"{name}_interval": [found.low, found.high]}
    out["reliability"] = [each.as_dict() for each in reliability(target, scores, groups=groups)]
    plain: dict[str, Any] = _plain(out)
    return plain


def actionable(settings: TaskSettings, kind: Target, train: Examples) -> None:
    """Raises UsageError for stated costs or a stated capacity that this task's rows give no meaning to."""
    stated = {name: getattr(settings, name) for name in ("cost_ratio", "capacity") if getattr(settings, name) is not None}
    if stated and kind.kind != "binary":
        name, value = next(iter(stated.items()))
        raise UsageError(
            f"[tasks.{settings.name}] {name} is {value:g}, and the task is {kind.kind}: a threshold is chosen for questions of yes or "
            "no; take it out"
        )
    capacity = stated.get("capacity", 0)
    instants, counts = np.unique(train.time, return_counts=True)
    alone = float(np.mean(counts == 1))
    if capacity >= 1 and alone > ALONE:
        raise UsageError(
            f"[tasks.{settings.name}] capacity is {capacity:g} rows at one instant, and of {len(instants):,} instants of its training "
            f"rows {alone:.0%} have one row alone; expected a share of rows below 1, such as capacity = 0.05, or a task with rows at cuts"
        )


def decisions(
    settings: TaskSettings, made: Chosen, train: Examples, test: TrainingData, scores: Array, groups: Array
) -> dict[str, Any]:
    """What acting by the stated costs and capacity does on the test rows; the capacity's threshold comes from held-out training rows: a
    number of rows is that of one instant (the newest of them), a share is of them all. See ``actionable``.
    """
    if test.kind.kind != "binary":
        return {}
    ratio, out = settings.cost_ratio, {}
    if ratio is not None:
        out["costs"] = decision(test.target, scores, threshold_of_costs(ratio), ratio, groups=groups).as_dict() | {"ratio": ratio}
    known = np.isfinite(made.held_out[:, 0])
    if settings.capacity is not None and known.any():
        newest = known & (train.time == train.time[known].max()) if settings.capacity >= 1 else known
        threshold = threshold_of_capacity(made.held_out[newest, 0], settings.capacity)
        found = decision(test.target, scores, threshold, ratio, groups=groups)
        out["capacity"] = found.as_dict() | {"capacity": settings.capacity}
    return {"decisions": _plain(out)} if out else {}


def _plain(value: Any) -> Any:
    """JSON-ready: what is not finite is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
