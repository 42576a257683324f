"""One fit of one member as an independent job: its window's vocabulary, its columns, its plugin, and the cache around it.

It must not know which fits make a stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.cache import Cache, FileCheckpoint, array_digest, code_digest, data_digest, folder_digest, key_of
from zoo.contract import silent
from zoo.errors import PluginError, UsageError
from zoo.jobs import Executor, Job, Shared
from zoo.manager import Plugins, RegisteredModel, plugins
from zoo.plugin import Array, Artefact, FeatureBatch, FittedModel, ModelPlugin, Progress, Target, TrainingData
from zoo.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pydantic import BaseModel

NAME = re.compile(r"[A-Za-z0-9._-]+")
SEEDS = "seeds.txt"
"""How many models an artefact holds, where members are averages of several."""
FORMAT = 1
"""Part of every cache key: raise it when what a job does to its data changes."""


@dataclass(frozen=True)
class PluginSource:
    """How a job, perhaps in another process, comes by the plugins. extra: plugins, or import paths ``"module:attribute"``."""

    without: tuple[str, ...] = ()
    extra: tuple[object, ...] = ()

    def load(self) -> Plugins:
        return plugins(self.without, [resolve_name(e) if isinstance(e, str) else e for e in self.extra])


@dataclass(frozen=True)
class Member:
    """A model of an ensemble before it is fitted. name: letters, digits, ``._-``. model, params: a plugin and its parameters.

    seeds: how many models of different seeds are averaged. bagging: share of the rows that each is fitted on, drawn anew without
    replacement (Buehlmann and Yu, 2002, "Analyzing bagging").
    """

    name: str
    model: str
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    seeds: int = 1
    bagging: float = 1.0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(f"member name {self.name!r}; expected letters, digits, '.', '_' and '-' only")

    def resolve(self, found: Plugins, target: Target) -> tuple[RegisteredModel, BaseModel]:
        """The plugin and the checked parameters; UsageError naming the member where they do not fit."""
        from pydantic import ValidationError

        model = found.model(self.model)
        spec = model.plugin.spec
        if target.kind not in spec.targets:
            able = sorted(name for name, each in found.models.items() if target.kind in each.plugin.spec.targets)
            raise UsageError(
                f"member {self.name!r}: {self.model} predicts {', '.join(sorted(spec.targets))}; the task is {target.kind}; "
                f"models that predict it: {', '.join(able) or '(none)'}"
            )
        try:
            return model, spec.params()(**self.params)
        except ValidationError as e:
            wrong = "; ".join(f"{'.'.join(map(str, x['loc'])) or 'params'}: {x['msg']}" for x in e.errors())
            valid = ", ".join(spec.params().model_fields) or "(none)"
            raise UsageError(f"member {self.name!r}: {wrong}; {self.model} has the parameters: {valid}") from e


@dataclass(frozen=True)
class Fit:
    """A member, the rows it is fitted on (int64), and the rows it then scores, or None to have the fitted model itself.

    name: what errors and progress call it, unlike any other's of one run.
    """

    name: str
    member: Member
    train: Array
    scored: Array | None = None


@dataclass(frozen=True)
class Result:
    """artefact: the fitted model's, or the array ``scores`` float32 (scored rows, k). seconds: of fitting and scoring."""

    fit: Fit
    artefact: Artefact
    seconds: float
    reused: bool


@dataclass(frozen=True)
class _Request:
    fit: Fit
    shared: Shared
    source: PluginSource
    checkpoint: Path | None = None


def run_fits(
    fits: Sequence[Fit], data: TrainingData, source: PluginSource, executor: Executor, cache: Cache | None, progress: Progress
) -> Iterator[Result]:
    """Each fit's result as it is done, those in the cache first.

    Raises UsageError for members that cannot be meant, before any fit; JobError naming the fit that failed.
    """
    members = {fit.member.name: fit.member for fit in fits}
    if len({(fit.name, fit.member.name) for fit in fits}) < len(fits) or any(
        members[f.member.name] is not f.member for f in fits
    ):
        raise UsageError(f"two members have one name; the members are: {', '.join(fit.member.name for fit in fits)}")
    found = source.load()
    for member in members.values():
        member.resolve(found, data.kind)
    keys = {} if cache is None else _keys(fits, data, found)
    left, done = [], 0
    for fit in fits:
        kept = cache.get(keys[fit.name]) if cache else None
        if kept is None:
            left.append(Job(fit.name, fit))
            continue
        done += 1
        progress(done / len(fits), f"{fit.name}: reused")
        yield Result(fit, kept.part("result"), float(kept.texts["seconds"]), reused=True)
    if not left:
        return
    with executor.share(data) as shared:
        halfway = {name: cache.unfinished / key for name, key in keys.items()} if cache else {}
        work = [Job(j.name, _Request(j.argument, shared, source, halfway.get(j.name))) for j in left]
        for job, (artefact, seconds) in executor.map(do, work):
            if cache:
                cache.put(keys[job.name], Artefact.merged(artefact.nested("result"), Artefact(texts={"seconds": repr(seconds)})))
                halfway[job.name].unlink(missing_ok=True)
            done += 1
            progress(done / len(fits), f"{job.name}: {seconds:.1f} s")
            yield Result(job.argument.fit, artefact, seconds, reused=False)


def do(request: _Request) -> tuple[Artefact, float]:
    """Fit, and score or save; the rows to score are not looked at before the model is fitted."""
    fit, data = request.fit, request.shared.load()
    member = fit.member
    model, params = member.resolve(request.source.load(), data.kind)
    train = data.take(fit.train)
    vocabulary = Vocabulary.of(train)
    train = replace(train, batch=seen(train.batch, vocabulary, model.plugin.spec.inputs), target=vocabulary.target(train))
    started = perf_counter()
    kept = request.checkpoint if model.plugin.spec.resumes else None
    each = []
    for number in range(member.seeds):
        part = train
        if member.bagging < 1:
            drawn = np.random.default_rng([member.seed, number]).permutation(len(train))
            part = train.take(np.sort(drawn[: max(1, round(member.bagging * len(train)))]))
        # several models each have their own place to go on from
        place = kept and (kept if member.seeds == 1 else kept.with_name(f"{kept.name}.{number}"))
        more = {"checkpoint": FileCheckpoint(place)} if place else {}
        each.append(model.plugin.fit(part, params=params, seed=member.seed + number, progress=silent, **more))
    fitted = each[0] if len(each) == 1 else Averaged(tuple(each))
    if kept and member.seeds > 1:
        for number in range(member.seeds):
            kept.with_name(f"{kept.name}.{number}").unlink(missing_ok=True)
    if fit.scored is None:
        return fitted.save(), perf_counter() - started
    batch = seen(data.batch.take(fit.scored), vocabulary, model.plugin.spec.inputs)
    scores = checked(fitted.predict(batch), len(batch), data.kind, fit.member.name)
    return Artefact({"scores": scores}), perf_counter() - started


@dataclass(frozen=True)
class Averaged:
    """Several fitted models of one plugin, answering with their mean."""

    models: tuple[FittedModel, ...]

    def predict(self, batch: FeatureBatch) -> Array:
        total = self.models[0].predict(batch).astype(np.float64)
        for model in self.models[1:]:
            total += model.predict(batch)
        mean: Array = (total / len(self.models)).astype(np.float32)
        return mean

    def save(self) -> Artefact:
        parts = [model.save().nested(f"seed-{number}") for number, model in enumerate(self.models)]
        return Artefact.merged(Artefact(texts={SEEDS: str(len(parts))}), *parts)


def load_fitted(plugin: ModelPlugin, artefact: Artefact) -> FittedModel:
    """The fitted model of an artefact, of one seed or of several."""
    if SEEDS not in artefact.texts:
        return plugin.load(artefact)
    return Averaged(tuple(plugin.load(artefact.part(f"seed-{number}")) for number in range(int(artefact.texts[SEEDS]))))


def seen(batch: FeatureBatch, vocabulary: Vocabulary, inputs: Sequence[str]) -> FeatureBatch:
    """What a model is given of a batch in the log's codes: its columns, only the rows' own, in the vocabulary's codes."""
    return vocabulary.apply(batch.select(inputs).compact())


def checked(scores: Array, rows: int, target: Target, who: str) -> Array:
    """The scores, if they are what the contract says; PluginError otherwise."""
    expected = (rows, target.width)
    if np.shape(scores) != expected:
        raise PluginError(f"{who} gave scores of shape {np.shape(scores)}; expected {expected}")
    if not np.isfinite(scores).all():
        raise PluginError(f"{who} gave {(~np.isfinite(scores)).any(axis=1).sum()} of {rows} rows a score that is not finite")
    if target.kind in ("binary", "multiclass") and rows and (scores.min() < 0 or scores.max() > 1):
        raise PluginError(f"{who} gave scores from {scores.min():g} to {scores.max():g}; expected probabilities in 0..1")
    return scores


def _keys(fits: Sequence[Fit], data: TrainingData, found: Plugins) -> dict[str, str]:
    """Fit name -> key of all that its result depends on; the member's own name is none of it."""
    of_data = data_digest(data)
    # what next-item networks are made of is no part of their plugins' code
    shared = folder_digest(Path(__file__).parent / "nextitem") if data.kind.kind == "ranking" else ""
    keys = {}
    for fit in fits:
        model, params = fit.member.resolve(found, data.kind)
        keys[fit.name] = key_of(
            FORMAT,
            [fit.member.model, model.distribution, model.version, code_digest(model.plugin)],
            [params.model_dump_json(), fit.member.seed, *([shared] if shared else []), *_several(fit.member)],
            [of_data, array_digest(fit.train), None if fit.scored is None else array_digest(fit.scored)],
        )
    return keys


def _several(member: Member) -> list[float]:
    return [] if member.seeds == 1 and member.bagging == 1 else [member.seeds, member.bagging]
