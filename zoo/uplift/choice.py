"""Which learner to use, chosen on training rows alone: repeated cross-fitting, and the default where nothing is clearly better.

It must not see rows that the choice is tested on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.contract import silent
from zoo.evaluation.uplift import best_arms, policy_values, qini
from zoo.fitting import Member, PluginSource
from zoo.jobs import Executor, Job, Serial
from zoo.manager import Plugins
from zoo.plugin import Array, FeatureBatch, Progress
from zoo.uplift.learners import LEARNERS, Base
from zoo.uplift.rules import Score, everyone, one_variable
from zoo.uplift.trial import Trial

FOLDS = 5
REPEATS = 2
SURE = 0.95
"""How sure it must be that another is better: the best of many noisy figures is mostly lucky (the winner's curse)."""
MEAN = "mean"
BASELINES = ("everyone", "rule")
STAYS = "shrunk"
"""The learner whose order of rows, over the first member, is taken unless another is clearly better."""
SAFE = "everyone"
"""Likewise for policies: the best arm to all."""
HERE = Serial()


@dataclass(frozen=True)
class Candidate:
    """A way to order rows. name: ``everyone``, ``rule``, ``LEARNER:MEMBER``, or ``mean``: of the effects that ``parts`` estimate."""

    name: str
    learner: str = ""
    member: Member | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """chosen: a candidate's name. values: by candidate, one for each held-out part. better: by candidate, its mean less the chosen
    one's and the standard error of that."""

    chosen: str
    values: Mapping[str, Array]
    better: Mapping[str, tuple[float, float]]


def candidates(members: Sequence[Member], learners: Sequence[str] = tuple(LEARNERS)) -> list[Candidate]:
    """Baselines, each learner over each member, and the mean of those that estimate effects."""
    singles = [Candidate(f"{learner}:{m.name}", learner, m) for learner in LEARNERS if learner in learners for m in members]
    effects = tuple(each.name for each in singles if each.learner != "response")
    mean = [Candidate(MEAN, parts=effects)] if len(effects) > 1 else []
    return [*(Candidate(name) for name in BASELINES), *singles, *mean]


def fit(of: Sequence[Candidate], rows: Trial, plugins: Plugins) -> dict[str, Effects]:
    """Every candidate fitted on each arm's rows and those of the first arm."""
    by_arm = [_fit(of, rows.against(arm), plugins) for arm in range(1, len(rows.arms))]
    return {each.name: Effects(tuple(fitted[each.name] for fitted in by_arm)) for each in of}


@dataclass(frozen=True)
class Effects:
    """Uplift of each arm against the first, float64 (n, arms - 1)."""

    arms: tuple[Score, ...]

    def __call__(self, batch: FeatureBatch) -> Array:
        return np.stack([score(batch) for score in self.arms], axis=1)


@dataclass(frozen=True)
class Mean:
    """The plain mean of effects."""

    parts: tuple[Score, ...]

    def __call__(self, batch: FeatureBatch) -> Array:
        total: Array = np.mean([part(batch) for part in self.parts], axis=0)
        return total


def _fit(of: Sequence[Candidate], rows: Trial, plugins: Plugins) -> dict[str, Score]:
    fitted: dict[str, Score] = {}
    for each in of:
        if each.member is not None:
            fitted[each.name] = LEARNERS[each.learner](rows, Base(each.member, plugins))
        elif not each.parts:
            fitted[each.name] = everyone(rows) if each.name == "everyone" else one_variable(rows)
    for each in of:
        if each.parts:
            fitted[each.name] = Mean(tuple(fitted[name] for name in each.parts))
    return fitted


@dataclass(frozen=True)
class _Held:
    rows: Trial
    train: Array
    held: Array
    of: Sequence[Candidate]
    source: PluginSource
    share: float | None


def _values(job: _Held) -> dict[str, list[float]]:
    held = job.rows.take(job.held)
    effects = {name: each(held.batch) for name, each in fit(job.of, job.rows.take(job.train), job.source.load()).items()}
    budget = None if job.share is None else round(job.share * len(held))
    worth = policy_values(held.outcome, held.arm, {name: best_arms(each, budget) for name, each in effects.items()}, resamples=0)
    return {name: [*qinis(held, each), worth[name][0].value] for name, each in effects.items()}


def qinis(rows: Trial, effects: Array) -> list[float]:
    """The Qini coefficient of each arm's uplift (n, arms - 1), on the rows of that arm and the first one."""
    out = []
    for arm in range(1, len(rows.arms)):
        pair = np.flatnonzero((rows.arm == arm) | (rows.arm == 0))
        out.append(qini(rows.outcome[pair], effects[pair, arm - 1], (rows.arm[pair] == arm).astype(np.float64)))
    return out


def cross_fitted(
    of: Sequence[Candidate],
    rows: Trial,
    *,
    folds: int = FOLDS,
    repeats: int = REPEATS,
    seed: int = 0,
    share: float | None = None,
    source: PluginSource = PluginSource(),  # noqa: B008 - frozen and empty
    executor: Executor = HERE,
    progress: Progress = silent,
) -> dict[str, Array]:
    """By candidate float64 (folds * repeats, arms): on each held-out part the Qini coefficient of every arm but the first, and last
    the value of the policy that gives each row its best arm; where only a ``share`` of them may be contacted, within that. Rows are
    dealt by arm and outcome."""
    jobs = []
    for repeat in range(repeats):
        part = dealt(rows, folds, np.random.default_rng([seed, repeat]))
        for number in range(folds):
            inside, outside = np.flatnonzero(part != number), np.flatnonzero(part == number)
            name = f"cross-fitting {repeat + 1}, part {number + 1} of {folds}"
            jobs.append(Job(name, _Held(rows, inside, outside, of, source, share)))
    found: dict[str, dict[str, list[float]]] = {}
    for done, (job, values) in enumerate(executor.map(_values, jobs), 1):
        found[job.name] = values
        progress(done / len(jobs), job.name)
    return {each.name: np.array([found[job.name][each.name] for job in jobs]) for each in of}


def dealt(rows: Trial, parts: int, rng: np.random.Generator) -> Array:
    """int64 (n,): a part for each row, as many rows of each arm and outcome (of amounts: of none and some) in each.

    Where users have several rows, whole users are dealt: by the arm of their first row, and whether any of them has an outcome.
    """
    if rows.users is not None:
        _, first, whose = np.unique(rows.users, return_index=True, return_inverse=True)
        some = np.bincount(whose, rows.outcome > 0)
        return _dealt(rows.arm[first] * 2 + (some > 0), parts, rng)[whose]
    return _dealt(rows.arm * 2 + (rows.outcome > 0), parts, rng)


def _dealt(strata: Array, parts: int, rng: np.random.Generator) -> Array:
    out = np.empty(len(strata), np.int64)
    for each in np.unique(strata):
        inside = np.flatnonzero(strata == each)
        out[rng.permutation(inside)] = (np.arange(len(inside)) + rng.integers(parts)) % parts
    return out


def choose(values: Mapping[str, Array], stays: str, folds: int = FOLDS) -> Choice:
    """The candidate ``stays``, unless the best one's mean is greater beyond noise: a one-sided t-test of level ``SURE``.

    The error of a difference between overlapping trainings is that of Nadeau and Bengio (2003): its variance over the parts times
    1 / parts + 1 / (folds - 1).
    """
    from scipy.stats import t

    def gap(name: str, than: str) -> tuple[float, float]:
        apart = values[name] - values[than]
        return float(np.nanmean(apart)), float(np.nanstd(apart, ddof=1) * np.sqrt(1 / len(apart) + 1 / (folds - 1)))

    best = max(values, key=lambda name: float(np.nanmean(values[name])))
    more, error = gap(best, stays)
    chosen = best if more > float(t.ppf(SURE, len(values[stays]) - 1)) * error else stays
    return Choice(chosen, values, {name: gap(name, chosen) for name in values})
