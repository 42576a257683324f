"""Stacking: honest out-of-fold scores of every member, a final model fitted on them, and the ensemble that answers like one model.

Members know nothing of each other; every fit is an independent job. What the members and the final model are is the plugins' matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any, get_args

import numpy as np

from zoo.cache import Cache
from zoo.calibration import IDENTITY, Calibrator
from zoo.contract import silent
from zoo.errors import ArtefactError, PluginError, UsageError, ZooError
from zoo.fitting import Fit, Member, PluginSource, checked, load_fitted, run_fits, seen
from zoo.jobs import Executor, Serial
from zoo.logistic import ENTITY, KNOWN_AT
from zoo.manager import Plugins, RegisteredModel
from zoo.plugin import Array, Artefact, Column, FeatureBatch, FittedModel, Progress, Target, TargetKind, TrainingData
from zoo.vocabulary import PART, Vocabulary

__all__ = ["Ensemble", "Fitted", "Member", "OutOfFold", "PluginSource", "fit_members", "out_of_fold", "plain_mean", "stack"]
INSTALLED = PluginSource()
HERE = Serial()
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What JSON of another form than the expected one raises."""


@dataclass(frozen=True)
class Fitted:
    """A fitted model with what feeds and reloads it. inputs: patterns of its columns. seconds: fitting time, NaN once loaded."""

    name: str
    model: str
    inputs: tuple[str, ...]
    distribution: str
    version: str
    seconds: float
    fitted: FittedModel

    @staticmethod
    def of(member: Member, model: RegisteredModel, seconds: float, fitted: FittedModel) -> Fitted:
        inputs = tuple(model.plugin.spec.inputs)
        return Fitted(member.name, member.model, inputs, model.distribution, model.version, seconds, fitted)

    def facts(self) -> dict[str, Any]:
        """What ``load`` needs beside the artefact; not how long fitting took: the same content has to have the same digest."""
        return {k: getattr(self, k) for k in ("name", "model", "inputs", "distribution", "version")}

    @staticmethod
    def load(facts: Mapping[str, Any], artefact: Artefact, plugins: Plugins) -> Fitted:
        """A model by what its ensemble recorded of it.

        Raises PluginError where no plugin offers it, naming the one that did, and ArtefactError where the plugin cannot read it.
        """
        kept = isinstance(facts, Mapping) and facts.keys() == {"name", "model", "inputs", "distribution", "version"}
        if (
            not kept
            or not isinstance(facts["inputs"], (list, tuple))
            or not all(isinstance(each, str) for key in facts for each in ([facts[key]] if key != "inputs" else facts[key]))
        ):
            raise ArtefactError(
                f"a model is recorded as {str(facts)[:300]}; expected its name, model, distribution, version, inputs"
            )
        if facts["model"] not in plugins.models:
            raise PluginError(
                f"{facts['name']!r} of this version is a model {facts['model']!r} of distribution {facts['distribution']} "
                f"{facts['version']}, and no plugin loaded offers one; install it, as in `pip install "
                f"{facts['distribution']}=={facts['version']}`, and do not leave it out with --without"
            )
        try:
            fitted = load_fitted(plugins.models[facts["model"]].plugin, artefact)
        except ZooError:
            raise
        except Exception as error:
            raise ArtefactError(
                f"{facts['name']!r} of this version cannot be loaded: {facts['distribution']} fails with {type(error).__name__}: "
                f"{str(error)[:300]}; it is not what that plugin wrote, or the plugin is another one since: restore it, or train again"
            ) from error
        return Fitted(**{**facts, "inputs": tuple(facts["inputs"])}, seconds=math.nan, fitted=fitted)


@dataclass(frozen=True)
class OutOfFold:
    """Scores of rows by members that were not trained on them.

    scores: float64 (n, members, k), NaN where a row has none. fold: int32 (n,), the fold that scored a row, -1 for none.
    seconds: by member, fitting and scoring summed over folds. reused: by member, how many folds came from the cache.
    """

    members: tuple[str, ...]
    scores: Array
    fold: Array
    seconds: Mapping[str, float]
    reused: Mapping[str, int]

    @property
    def rows(self) -> Array:
        """int64: the rows that have scores."""
        return np.flatnonzero(self.fold >= 0)

    def only(self, members: Sequence[str]) -> OutOfFold:
        """The scores of these members, in this order."""
        at = [self.members.index(name) for name in members]
        kept = set(members)
        seconds, reused = ({k: v for k, v in by.items() if k in kept} for by in (self.seconds, self.reused))
        return OutOfFold(tuple(members), self.scores[:, at], self.fold, seconds, {k: int(v) for k, v in reused.items()})

    def best(self, data: TrainingData) -> str:
        """The best single member here: by log-loss for probabilities, by squared error for anything else."""
        target, weight, scores = data.target[self.rows], data.weight[self.rows], self.scores[self.rows]
        if data.kind.kind in ("binary", "multiclass"):
            p = np.concatenate([1 - scores, scores], axis=2) if data.kind.width == 1 else scores
            losses = -np.log(np.maximum(p[np.arange(len(p)), :, target.astype(np.int64)], 1e-15))
        else:
            losses = ((scores - target[:, None, None]) ** 2).mean(axis=2)
        return self.members[int((weight @ losses).argmin())]


def out_of_fold(
    members: Sequence[Member],
    data: TrainingData,
    folds: Sequence[tuple[Array, Array]],
    *,
    source: PluginSource = INSTALLED,
    executor: Executor = HERE,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> OutOfFold:
    """Fit every member on each fold's training rows and score its other rows; a job each, folds in the cache left out.

    Raises UsageError for members or folds that cannot be meant, JobError naming member and fold when one fails.
    """
    names = _distinct(members)
    fold_of = np.full(len(data), -1, np.int32)
    for number, (train, scored) in enumerate(folds):
        if not len(train) or len(np.intersect1d(train, scored)) or (fold_of[scored] >= 0).any():
            raise UsageError(
                f"fold {number + 1} of {len(folds)} has no training rows, scores rows that it trains on, or rows that an earlier fold "
                "scored; expected training rows, and scored rows that are in no other set"
            )
        fold_of[scored] = number
    fits = {
        f"{member.name}, fold {number + 1} of {len(folds)}": (at, number)
        for number in reversed(range(len(folds)))  # the longest jobs first
        for at, member in enumerate(members)
    }
    scores = np.full((len(data), len(members), data.kind.width), np.nan)
    seconds, reused = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    work = [Fit(name, members[at], *folds[number]) for name, (at, number) in fits.items()]
    for result in run_fits(work, data, source, executor, cache, progress):
        at, number = fits[result.fit.name]
        scores[folds[number][1], at] = result.artefact.arrays["scores"]
        seconds[names[at]] += result.seconds
        reused[names[at]] += result.reused
    return OutOfFold(names, scores, fold_of, seconds, reused)


def fit_members(
    members: Sequence[Member],
    data: TrainingData,
    *,
    rows: Array | None = None,
    source: PluginSource = INSTALLED,
    executor: Executor = HERE,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> list[Fitted]:
    """Every member fitted on these rows (default: all), in the order given; errors as in ``out_of_fold``."""
    names = _distinct(members)
    found, fitted = source.load(), {}
    work = [Fit(member.name, member, np.arange(len(data)) if rows is None else rows) for member in members]
    for result in run_fits(work, data, source, executor, cache, progress):
        member = result.fit.member
        model, _ = member.resolve(found, data.kind)
        fitted[member.name] = Fitted.of(member, model, result.seconds, load_fitted(model.plugin, result.artefact))
    return [fitted[name] for name in names]


def stack(
    oof: OutOfFold,
    data: TrainingData,
    final: str = "logistic",
    params: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    entities: Array | None = None,
    known_at: Array | None = None,
    inputs: Sequence[str] | None = None,
    vocabulary: Vocabulary | None = None,
    source: PluginSource = INSTALLED,
    progress: Progress = silent,
) -> Fitted:
    """The final model, fitted on the rows that have out-of-fold scores: columns ``score:MEMBER`` beside the features.

    entities, known_at: int64 (n,), whose each row is, and when its label is known; a model that asks for the column ``entity`` or
    ``known_at`` is given it, at fitting only. inputs: patterns of the columns that it may read (default: those of its spec).
    vocabulary: whose codes it sees, those of the ensemble's members (default: of all rows).
    """
    member = Member("final", final, params or {}, seed)
    model, settings = member.resolve(source.load(), data.kind)
    patterns = tuple(model.plugin.spec.inputs if inputs is None else inputs)
    rows = data.take(oof.rows)
    batch = with_scores(rows.batch, oof.members, oof.scores[oof.rows])
    told = {name: of for name, of in ((ENTITY, entities), (KNOWN_AT, known_at)) if of is not None and name in patterns}
    if told:
        batch = batch.with_block("rows", {name: Column(np.asarray(of, np.int64)[oof.rows]) for name, of in told.items()})
    rows = replace(rows, batch=seen(batch, vocabulary or Vocabulary.fit(data.batch), patterns))
    started = perf_counter()
    fitted = model.plugin.fit(rows, params=settings, seed=seed, progress=progress)
    return replace(Fitted.of(member, model, perf_counter() - started, fitted), inputs=patterns)


def plain_mean(scores: Array) -> Array:
    """(n, members, k) -> (n, k): the baseline that weighs every member alike."""
    mean: Array = scores.mean(axis=1)
    return mean


def _distinct(members: Sequence[Member]) -> tuple[str, ...]:
    names = tuple(member.name for member in members)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"members: {', '.join(names) or '(none)'}; expected at least one, each with a name of its own")
    return names


def with_scores(batch: FeatureBatch, members: Sequence[str], scores: Array) -> FeatureBatch:
    """The batch with a block of the members' scores (n, members, k): ``score:MEMBER``, or ``score:MEMBER:CLASS`` where k > 1."""
    block = {}
    for m, name in enumerate(members):
        for k in range(scores.shape[2]):
            column = f"score:{name}" if scores.shape[2] == 1 else f"score:{name}:{k}"
            block[column] = Column(scores[:, m, k].astype(np.float64))
    return batch.with_block("members", block)


@dataclass(frozen=True)
class Ensemble:
    """Members, the vocabulary they share, the final model, and what makes its probabilities true: a FittedModel like any other."""

    members: tuple[Fitted, ...]
    final: Fitted
    vocabulary: Vocabulary
    target: Target
    calibrator: Calibrator = IDENTITY

    def member_scores(self, batch: FeatureBatch) -> Array:
        """float32 (n, members, k) for a batch in the log's codes."""
        known = self.vocabulary.apply(batch)
        scores = [checked(m.fitted.predict(known.select(m.inputs)), len(batch), self.target, m.name) for m in self.members]
        return np.stack(scores, axis=1)

    def combine(self, batch: FeatureBatch, member_scores: Array) -> Array:
        """float32 (n, k): the final model's answer to the members' scores."""
        scored = with_scores(batch, [m.name for m in self.members], member_scores)
        known = self.vocabulary.apply(scored.select(self.final.inputs))
        return self.calibrator(checked(self.final.fitted.predict(known), len(batch), self.target, "the final model"))

    def predict(self, batch: FeatureBatch) -> Array:
        return self.combine(batch, self.member_scores(batch))

    def save(self) -> Artefact:
        about = {
            "members": [m.facts() for m in self.members],
            "final": self.final.facts(),
            "target": asdict(self.target),
            "calibrator": self.calibrator.to_json(),
        }
        return Artefact.merged(
            Artefact(texts={"ensemble.json": json.dumps(about)}),
            self.vocabulary.save().nested(PART),
            self.final.fitted.save().nested("final"),
            *(m.fitted.save().nested(f"members/{m.name}") for m in self.members),
        )

    @staticmethod
    def load(artefact: Artefact, plugins: Plugins) -> Ensemble:
        """What ``save`` wrote. Raises ArtefactError when it is no ensemble, PluginError when a model's plugin is missing."""
        try:
            about = json.loads(artefact.texts["ensemble.json"])
            target = Target(about["target"]["kind"], tuple(about["target"]["classes"]), tuple(about["target"]["horizons"]))
            if target.kind not in get_args(TargetKind):
                raise ValueError(f"unknown kind of target {target.kind!r}")
            # versions registered before there were calibrators have none
            calibrator = Calibrator.from_json(about["calibrator"]) if "calibrator" in about else IDENTITY
            members = tuple(Fitted.load(facts, artefact.part(f"members/{facts['name']}"), plugins) for facts in about["members"])
            final = Fitted.load(about["final"], artefact.part("final"), plugins)
        except UNREADABLE as e:
            raise ArtefactError(
                f"not an ensemble: {str(e)[:300]!r}; expected ensemble.json with members, final and target"
            ) from e
        return Ensemble(members, final, Vocabulary.load(artefact.part(PART)), target, calibrator)
