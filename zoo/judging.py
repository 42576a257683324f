"""What a training record says beside the leaderboard: slices, importance, guards against leaks, data and drift."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.cache import Cache
from zoo.evaluation.drift import drift
from zoo.evaluation.slices import by_slice, of_log
from zoo.explaining import importance, rates
from zoo.fitting import Member, PluginSource
from zoo.leaks import fits, look
from zoo.plugin import Array, Split, TrainingData
from zoo.recommender import Recommender
from zoo.stacking import Ensemble

if TYPE_CHECKING:
    from zoo.events.view import LogView


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
    cache: Cache | None,
    seed: int = 0,
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
        guards += fits(members, data, folds, groups[0], taken, anyhow=check_leaks, source=source, cache=cache)
    out["guards"] = [vars(each) for each in guards]
    return out


def command(task: str, **options: Any) -> str:
    """The command line of a training run; options that are None or False are left out, lists are repeated."""
    words = ["zoo", "train", task]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [word for each in (value if isinstance(value, (list, tuple)) else [value]) for word in (flag, str(each))]
    return shlex.join(words)
