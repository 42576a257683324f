"""One task from the log to a registered ensemble: examples, features, out-of-fold scores, stack, members, evaluation, registry."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.cache import Cache, array_digest
from zoo.contract import Array, Examples, Progress, Split, Task, TrainingData, silent
from zoo.errors import UsageError
from zoo.evaluation import (
    class_leaderboard,
    leaderboard,
)
from zoo.evaluation.kept import TestScores
from zoo.explaining import over_folds
from zoo.fallbacks import Fallbacks, fallbacks
from zoo.features import Features
from zoo.finals import Scores, choose
from zoo.fitting import Member, PluginSource
from zoo.jobs import Executor, Serial
from zoo.judging import actionable, calibrated, command, cost, decisions, judged, shares
from zoo.manager import Plugins
from zoo.project import Project, TaskSettings
from zoo.recommender import Recommender, fit_recommender, ranked, second_stage
from zoo.registering import registered
from zoo.registry import Registry, Version
from zoo.reranking import DEPTH
from zoo.stacking import Ensemble, fit_members, out_of_fold, plain_mean
from zoo.tasks.moments import TEST_SHARE
from zoo.tasks.recommendation import AVERAGES
from zoo.tasks.settings import duration, instant
from zoo.vocabulary import Vocabulary

if TYPE_CHECKING:
    from zoo.events.view import LogView

STEPS = {"features": 0.05, "folds": 0.6, "members": 0.9, "evaluation": 0.95, "guards": 1.0}
"""Progress at the end of each step."""


@dataclass(frozen=True)
class Trained:
    """What a run left: the registered version (None where it was not registered), the ensemble and the record in the registry.

    data, test: training and test rows with features. rows: the test rows' keys and times. scores: test scores (n, k) of every
    member, of ``mean`` and of ``stack``; of a ranking task the rank of each row's item (n,), 0 where it was not ranked. fallbacks: what is
    answered while members are lost; None of a ranking task.
    """

    version: Version | None
    ensemble: Ensemble | Recommender
    record: dict[str, Any]
    data: TrainingData
    test: TrainingData
    rows: Examples
    scores: Mapping[str, Array]
    fallbacks: Fallbacks | None = None

    @property
    def groups(self) -> Array:
        """int64 (n,): which user each test row is of, for intervals that draw users."""
        return _groups(self.rows)


def split(
    task: Task, settings: TaskSettings, view: LogView, test_start: int | None, test_end: int | None, open_labels: bool = False
) -> Split:
    """Draw a task's rows on both sides of ``test_start`` (default: of cuts the newest one whose labels are all known, of other rows
    the newest fifth of those at such instants).

    open_labels: keep test rows whose label is not yet certain when the log ends, with the label seen so far.
    The gap between the last label of training and the first test row is one label window (``horizon``), or ``settings.gap``.
    A task that has a ``split`` of its own answers by that; ``gap`` and ``open_labels``, where asked for, are then among its settings,
    and one that has no such setting refuses it.
    """
    if task.split is not None:
        asked = {"gap": settings.gap, "open_labels": open_labels or None}
        return task.split(view, {**settings.own, **{k: v for k, v in asked.items() if v is not None}}, test_start, test_end)
    from importlib import import_module

    own = settings.own
    module = import_module(task.examples.__module__)
    begin = module.first(own, view) if hasattr(module, "first") else 0
    end = view.end or 0
    if test_start is None:
        rows = task.examples(view, own, begin, end + 1)
        known = np.setdiff1d(rows.time, rows.time[rows.known_at > end + 1])
        if not len(known):
            raise UsageError(
                f"no row of {settings.name} has a known label yet: the log ends before the first label window closes"
            )
        if hasattr(module, "span"):
            test_start = int(known[-min(int(own.get("origins", 1)), len(known))])
        else:
            times = np.sort(rows.time[np.isin(rows.time, known)])
            test_start = int(times[int((1 - TEST_SHARE) * len(times))])
        test_end = int(known[-1]) + 1 if test_end is None else test_end
    train = task.examples(view, own, begin, test_start)
    window = module.window(own) if hasattr(module, "window") else 0
    gap = window if settings.gap is None else duration(settings.gap)
    train = train.take(np.flatnonzero(train.known_at + gap <= test_start))
    span = module.span(own) if hasattr(module, "span") else 1
    test = task.examples(view, own, test_start, test_start + span if test_end is None else test_end)
    if not open_labels:
        test = test.take(np.flatnonzero(test.known_at <= end + 1))
    for name, part in (("training", train), ("test", test)):
        if not len(part):
            at = datetime.fromtimestamp(test_start / 1e6, UTC).isoformat()
            raise UsageError(f"{settings.name} has no {name} rows around {at}; name another --test-start, or more history")
    baselines = {} if task.baselines is None else task.baselines(view, own, train, test)
    return Split(train, test, baselines=baselines)


def training_data(features: Features, task: Task, examples: Examples) -> TrainingData:
    """Examples with their features as of each row's time, weighted alike."""
    rows = {**examples.keys, "time": examples.time}
    batch = features.history(task.service, rows, task.context, labelled=True)
    if task.target.kind == "ranking":
        batch = features.described(batch)
    return TrainingData(batch, examples.target, np.ones(len(examples)), examples.time, task.target)


def members_of(settings: TaskSettings, only: Sequence[str] | None = None) -> list[Member]:
    """The stack's members as zoo.toml says; ``only`` picks or adds some."""
    names = settings.members if only is None else only
    several = [{k: by[n] for k, by in (("seeds", settings.seeds), ("bagging", settings.bagging)) if n in by} for n in names]
    more: list[dict[str, Any]] = list(several)
    return [Member(n, n, settings.params.get(n, {}), settings.seed, **each) for n, each in zip(names, more, strict=True)]


def train(
    project: Project,
    task_name: str,
    *,
    plugins: Plugins,
    features: Features | None = None,
    source: PluginSource = PluginSource(),  # noqa: B008 - frozen and empty
    executor: Executor | None = None,
    test_start: int | str | None = None,
    test_end: int | str | None = None,
    open_labels: bool = False,
    members: Sequence[str] | None = None,
    register: bool = True,
    check_leaks: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train a task's stack, evaluate it on rows after ``test_start``, register it.

    source: how child processes come by the plugins (the same that made ``plugins``). test_start, test_end: microseconds UTC or ISO
    dates. open_labels: as in ``split``. check_leaks: try the guards of ``zoo.leaks`` that fit a member however long that takes.
    Raises UsageError for
    settings that cannot be meant, JobError naming the member and fold that failed.
    """
    started = perf_counter()
    say = progress or silent
    settings = project.task(task_name)
    task = plugins.task(settings.task)
    chosen = members_of(settings, members)
    absent = sorted({*settings.serving.required} - {member.name for member in chosen})
    if register and absent:
        raise UsageError(
            f"[tasks.{task_name}.serving] requires {', '.join(absent)}, which this run would not train; name it as a member, too, "
            "take it from required, or do not register the run"
        )
    features = features or Features.open(project.root)
    features.reader.log.flush()  # so that the Delta version alone names what is trained on
    features = features.pinned()  # one version for labels, features and lineage
    executor = executor or Serial()
    cache = Cache(project.cache)
    # text encoders keep the states of their frozen layers there, for all folds and processes
    os.environ.setdefault("ZOO_CACHE", str(project.cache / "states"))
    view = features.reader.view()
    task = task.resolved(view, settings.own)
    for member in chosen:
        member.resolve(plugins, task.target)
    say(0.0, "examples")
    begin, end = (None if t is None else instant(t) for t in (test_start, test_end))
    rows = split(task, settings, view, begin, end, open_labels)
    actionable(settings, task.target, rows.train)
    data, test = training_data(features, task, rows.train), training_data(features, task, rows.test)
    say(STEPS["features"], "features")
    work: dict[str, Any] = {"source": source, "executor": executor, "cache": cache}
    folds: Sequence[tuple[Array, Array]] = []
    if task.target.kind == "ranking":
        done, run, record = _ranked(features, settings, task, chosen, rows, data, test, work, say)
    else:
        done, folds, run, record = _stacked(plugins, settings, task, chosen, rows, data, test, work, say)
    say(STEPS["evaluation"], "evaluation")
    whose = _groups(rows.train), done.groups
    own: dict[str, Any] = {"members": chosen, "folds": folds, "check_leaks": check_leaks, "seed": settings.seed, **work}
    own["progress"] = _part(say, "evaluation", "guards")
    record |= judged(record, done.ensemble, view, rows, data, test, done.scores, whose, **own)
    say(1.0, "evaluated")
    record["command"] = command(
        "train", task_name, test_start=_iso(begin), test_end=_iso(end), member=members, check_leaks=check_leaks
    )
    record |= _beside(task, view, settings.own, rows, done)
    about = {"task": task_name, "rows": len(data), "test_rows": len(test), "train": _span(rows.train), "test": _span(rows.test)}
    record = {**about, **record, "seconds": perf_counter() - started}
    if register:
        kept = TestScores.of(test.target, done.groups, test.time, done.scores, task.target)
        with Registry.of(project) as registry:
            record["scores"] = registry.artefacts.write(kept.save())
    version = None
    if register:
        version = registered(project, record, done.ensemble, done.fallbacks, features, task, settings, view, folds, run)
    plugins.trained(record)
    return replace(done, version=version, record=record)


def _stacked(
    plugins: Plugins,
    settings: TaskSettings,
    task: Task,
    chosen: Sequence[Member],
    rows: Split,
    data: TrainingData,
    test: TrainingData,
    work: Mapping[str, Any],
    say: Progress,
) -> tuple[Trained, Sequence[tuple[Array, Array]], str, dict[str, Any]]:
    """The stack trained and tested: the run so far, its folds, a digest of its out-of-fold scores, its part of the record."""
    folds = plugins.folds(data, rows.train.known_at, settings.folds, settings.seed)
    oof = out_of_fold(chosen, data, folds, **work, progress=_part(say, "features", "folds"))
    # without refit, members stay as they were when they scored the newest block
    fitted_on = np.arange(len(data)) if settings.refit in (None, True) else folds[-1][0]
    vocabulary = Vocabulary.of(data.take(fitted_on))
    fitted = fit_members(chosen, data, rows=fitted_on, **work, progress=_part(say, "folds", "members"))
    costs = {f.name: cost(f, test.batch, vocabulary) for f in fitted}
    whose = _groups(rows.train)
    level = Scores(oof, data, rows.train.known_at, whose, vocabulary, settings.params, settings.seed, work["source"])
    made = choose(
        level,
        settings.final,
        calibration=settings.calibration,
        price=settings.price,
        cost={name: each["ms"] for name, each in costs.items()},
        keep=settings.serving.required,
        progress=_part(say, "members", "evaluation"),
    )
    whole = Ensemble(tuple(fitted), made.final, vocabulary, task.target, made.calibrator)
    every = whole.member_scores(test.batch)
    kept = [at for at, f in enumerate(fitted) if f.name in made.members]
    ensemble = replace(whole, members=tuple(fitted[at] for at in kept))
    scores = {f.name: every[:, at] for at, f in enumerate(fitted)}
    scores |= {"mean": plain_mean(every), "stack": ensemble.combine(test.batch, every[:, kept])}
    spares = fallbacks(
        oof.only(made.members),
        data,
        lambda left: replace(level, oof=left).calibrated(made.record["chosen"], settings.calibration),
    )
    spares = spares.judged(ensemble, test, every[:, kept])
    done = Trained(None, ensemble, {}, data, test, rows.test, scores, spares)
    asked: dict[str, Any] = {"groups": done.groups, "seconds": {f.name: f.seconds for f in fitted}, "against": "stack"}
    if task.target.kind == "multiclass":
        lines = class_leaderboard(test.target, scores, task.target.classes, **asked)
    else:
        lines = leaderboard(test.target, scores, **asked)
    board = {line.name: line.as_dict() for line in lines}
    record = {
        **shares(test),
        "members": {name: {**board[name], "fold_seconds": oof.seconds[name], **costs[name]} for name in oof.members},
        "mean": board["mean"],
        "stack": {**board["stack"], **calibrated(test.target, scores["stack"], done.groups)},
        "best_member": oof.best(data),
        "final": made.record,
        "weights": over_folds(level, made.record["chosen"], ensemble),
        "refit": settings.refit in (None, True),
        **decisions(settings, made, rows.train, test, scores["stack"], done.groups),
        "held_out": dict(spares.held_out),
        "reused": sorted(name for name, folds_reused in oof.reused.items() if folds_reused == len(folds)),
    }
    return done, folds, hashlib.sha256(oof.scores.tobytes()).hexdigest(), record


def _ranked(
    features: Features,
    settings: TaskSettings,
    task: Task,
    chosen: Sequence[Member],
    rows: Split,
    data: TrainingData,
    test: TrainingData,
    work: Mapping[str, Any],
    say: Progress,
) -> tuple[Trained, str, dict[str, Any]]:
    """Members that rank and their second stage, trained and tested: the run so far, a digest of its ranks, its part of the record."""
    own, choice = settings.own, None
    exclude_seen, refit = bool(own.get("exclude_seen", True)), bool(settings.refit)
    recommender = fit_recommender(chosen, data, **work, progress=_part(say, "features", "folds"))
    if rows.validation is not None:
        recommender, choice = second_stage(
            recommender,
            training_data(features, task, rows.validation),
            exclude_seen=exclude_seen,
            depth=own.get("candidates", DEPTH),
            final=settings.final,
            params=settings.params,
            seed=settings.seed,
            users=_groups(rows.validation),
            average=own.get("average", AVERAGES[0]),
            source=work["source"],
            progress=_part(say, "folds", "members"),
        )
    if refit and rows.refit is not None:
        data = training_data(features, task, rows.refit)
        again = fit_recommender(chosen, data, **work, progress=_part(say, "folds", "members"))
        recommender = replace(again, reranker=recommender.reranker)
    done = Trained(None, recommender, {}, data, test, rows.test, {})
    record, ranks = ranked(recommender, test, choice, done.groups, exclude_seen)
    record["refit"] = refit and rows.refit is not None
    return replace(done, scores=ranks), array_digest(np.stack(list(ranks.values()))), record


def _beside(task: Task, view: LogView, own: Mapping[str, Any], rows: Split, done: Trained) -> dict[str, Any]:
    """What a run's record says beside its members: the task's baselines, each part of the context, what the scores mean."""
    out: dict[str, Any] = {}
    if "stack" not in done.scores or np.ndim(done.test.target) != 1 or task.target.kind != "binary":
        return out
    stack = np.asarray(done.scores["stack"])[:, 0]
    lines = {**rows.baselines, "stack": stack}
    if rows.baselines:
        board = leaderboard(done.test.target, lines, groups=done.groups, against="stack")
        out["baselines"] = {line.name: line.as_dict() for line in board if line.name != "stack"}
    for name in task.context:
        parts = rows.test.keys[name]
        out[name] = {
            f"{part:g}": {
                line.name: line.as_dict()
                for line in leaderboard(done.test.target[at], {n: each[at] for n, each in lines.items()}, groups=done.groups[at])
            }
            for part in np.unique(parts)
            for at in (np.flatnonzero(parts == part),)
        }
    if task.facts is not None:
        out["facts"] = dict(task.facts(view, own, rows.test, stack))
    return out


def _groups(rows: Examples) -> Array:
    """int64 (n,): which user each row is of."""
    return np.unique(next(iter(rows.keys.values())), return_inverse=True)[1]


def _part(say: Progress, begin: str, end: str) -> Callable[[float, str], None]:
    low, high = STEPS[begin], STEPS[end]
    return lambda done, text: say(low + (high - low) * done, text)


def _iso(time: int | None) -> str | None:
    return None if time is None else datetime.fromtimestamp(time / 1e6, UTC).isoformat()


def _span(rows: Examples) -> list[str]:
    return [datetime.fromtimestamp(t / 1e6, UTC).isoformat() for t in (int(rows.time.min()), int(rows.time.max()))]


__all__ = ["Split", "Trained", "members_of", "split", "train", "training_data"]
