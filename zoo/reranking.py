"""The second stage of a recommender: final models that order candidates, and the choice among them on rows that no member was fitted on.

It must not know where scores come from, nor how members are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from zoo.candidates import FIRST, Candidates, ItemCounts, Stage
from zoo.contract import silent
from zoo.errors import UsageError, choices
from zoo.evaluation.ranking import ndcg
from zoo.fitting import Member, PluginSource
from zoo.manager import Plugins
from zoo.plugin import Array, Artefact, Progress, Target, TrainingData
from zoo.stacking import Fitted
from zoo.tasks.recommendation import AVERAGES

MEAN = "mean"
"""What the rank average is called beside the members."""
STACK = "stack"
"""What the second stage's answer is called beside them."""
FINALS = ("blend", "gbdt")
"""Final models that are tried where none is named, the simplest first."""
PARAMS: Mapping[str, Mapping[str, Any]] = {
    "gbdt": {
        "num_trees": 200,
        "num_leaves": 7,
        "learning_rate": 0.08,
        "feature_fraction": 0.3,
        "min_data_in_leaf": 100,
        "lambda_l2": 20.0,
    }
}
"""Parameters of final models where zoo.toml names none. Chosen on MovieLens 1M's validation rows."""
FOLDS = 4
DEPTH = 100
"""Candidates that each member brings, where zoo.toml does not say."""
FITTED = 250_000
"""Candidates that a final model is fitted on, about, at most."""
TAUS = tuple(tenths / 10 for tenths in range(11))
"""How much of an item's log-frequency is tried to be taken from its score."""
RELEVANCE = Target("relevance")


@dataclass(frozen=True)
class Reranker:
    """chosen: ``mean``, a member's name, or that of ``final``. depth: candidates that each member brings. tau: as of ``order``."""

    chosen: str = MEAN
    depth: int = DEPTH
    final: Fitted | None = None
    tau: float = 0.0

    def scores(self, stage: Stage, counts: ItemCounts, allowed: Array | None = None, k: int | None = None) -> Array:
        """float32 (n, codes), -inf where an item may not be listed; allowed: as of ``Candidates.of``.

        Candidates stand before all others, which follow by the rank average, so that every item has its place. k: how many items of a row
        are asked for; where every row has as many candidates, all others are -inf.
        """
        if self.final is None:
            return rank_average(stage.ranks)
        found = Candidates.of(stage, self.depth, counts, allowed)
        enough = k is not None and np.diff(found.offsets).min(initial=k) >= k
        out = np.full(stage.hidden.shape, -np.inf, np.float32) if enough else rank_average(stage.ranks)
        if len(found.items):
            row, given = found.rows, order(self.final, found, self.tau)
            some = np.flatnonzero(np.diff(found.offsets))
            least = np.full(len(out), np.inf)
            least[some] = np.minimum.reduceat(given, found.offsets[some])
            out[row, found.items] = given - least[row]  # 0 or more, where a rank average is below 0
        return out

    def facts(self) -> dict[str, Any]:
        final = None if self.final is None else self.final.facts()
        return {"chosen": self.chosen, "depth": self.depth, "final": final, "tau": self.tau}

    @staticmethod
    def load(about: Mapping[str, Any], artefact: Artefact, plugins: Plugins) -> Reranker:
        """What ``facts`` says, and the final model's own artefact; without ``tau``, which older ones lack, it is 0.

        Raises ValueError for a ``tau`` that nothing writes, PluginError where the final model's plugin is missing.
        """
        tau = float(about.get("tau", 0.0))
        if not 0 <= tau <= TAUS[-1]:
            raise ValueError(f"tau is {tau}; expected {TAUS[0]} to {TAUS[-1]}")
        final = None if about["final"] is None else Fitted.load(about["final"], artefact, plugins)
        return Reranker(str(about["chosen"]), int(about["depth"]), final, tau)


def rank_average(ranks: Mapping[str, Array]) -> Array:
    """float32 (n, codes): minus the mean of the members' ranks."""
    total = np.zeros(next(iter(ranks.values())).shape)
    for each in ranks.values():
        total -= each
    return (total / len(ranks)).astype(np.float32)


def order(final: Fitted, candidates: Candidates, tau: float = 0.0) -> Array:
    """float64 (c,): the final model's scores, less ``tau`` times the logarithm of the item's count in training (one added).

    That is logit adjustment (Menon et al., 2021): of a softmax such as ``blend``'s, at tau = 1 the order is by how likely the row is given
    the item, which is best where every item counts alike. A row's scores may all be shifted, so counts do as well as shares.
    """
    if not len(candidates.items):
        return np.zeros(0)
    scores = final.fitted.predict(candidates.batch.select(final.inputs))[:, 0].astype(np.float64)
    return adjusted(scores, candidates, tau)


def adjusted(scores: Array, candidates: Candidates, tau: float) -> Array:
    """float64 (c,): scores (c,) at tau 0 as ``order`` has them at another."""
    return scores - tau * candidates.batch.column("popularity").values


@dataclass(frozen=True)
class Survey:
    """What the first stage says of labelled rows.

    candidates: of n rows. target: int64 (n,), the vocabulary's code. behind: int64 (n,), a target's place by the rank average among the
    items that are no candidates, 0 where it is a candidate or cannot be listed. ranks: int32 (n,) by member and for the rank average.
    """

    candidates: Candidates
    target: Array
    behind: Array
    ranks: Mapping[str, Array]

    def places(self, scores: Array) -> Array:
        """int64 (n,): the target's rank where the candidates have these scores (c,); 0 where it cannot be listed."""
        row, offsets = self.candidates.rows, self.candidates.offsets
        own = np.full(len(self.target), np.nan)
        at = self.hits
        own[row[at]] = scores[at]
        ahead = np.bincount(row, scores >= own[row], minlength=len(own)).astype(np.int64)
        return np.where(np.isfinite(own), ahead, np.where(self.behind > 0, np.diff(offsets) + self.behind, 0))

    @staticmethod
    def of(candidates: Candidates, target: Array, average: Array, ranks: Mapping[str, Array]) -> Survey:
        """average: (n, codes), the rank average, -inf for what may not be listed."""
        mark = np.zeros(average.shape, bool)
        mark[candidates.rows, candidates.items] = True
        own = average[np.arange(len(target)), target]
        lost = mark[np.arange(len(target)), target] | (target < FIRST) | np.isinf(own)
        behind = ((average >= own[:, None]) & ~mark).sum(axis=1)
        return Survey(candidates, target, np.where(lost, 0, behind), ranks)

    @staticmethod
    def joined(parts: Sequence[Survey]) -> Survey:
        """Of several sets of rows, one after the other."""
        ranks = {name: np.concatenate([part.ranks[name] for part in parts]) for name in parts[0].ranks}
        target, behind = (np.concatenate([getattr(part, name) for part in parts]) for name in ("target", "behind"))
        return Survey(Candidates.joined([part.candidates for part in parts]), target, behind, ranks)

    @property
    def hits(self) -> Array:
        """int64: the candidates that are their row's target."""
        return np.flatnonzero(self.candidates.items == self.target[self.candidates.rows])


@dataclass(frozen=True)
class Choice:
    """reranker: what was chosen, fitted on all rows. ranks: by name, of rows that the model of that name was not fitted on.

    record: JSON-ready.
    """

    reranker: Reranker
    ranks: Mapping[str, Array]
    record: Mapping[str, Any] = field(default_factory=dict)


def choose(
    survey: Survey,
    depth: int,
    *,
    final: str | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    users: Array | None = None,
    average: str = AVERAGES[0],
    source: PluginSource,
    progress: Progress = silent,
) -> Choice:
    """The second stage of least complexity among those that rank best by NDCG@10 on rows they were not fitted on.

    final: a model to take (``mean`` or a member's name among them) instead of choosing. users: (n,), whom each row is of; all rows of a
    user are in one fold. In the order rank average, best member, final models, one takes the place of what stands before it where it is
    better by more than a standard error of the paired difference, over users. average: one of ``AVERAGES``; over items a final model's
    scores are adjusted by the ``tau`` of ``TAUS`` that is best for it, over rows they are as they are.
    Raises UsageError where ``final`` names no model that orders candidates, and for another ``average``.
    """
    if average not in AVERAGES:
        raise UsageError(choices("average of a second stage", average, AVERAGES))
    found = source.load()
    names = [name for name in ((final,) if final else FINALS) if name not in survey.ranks]
    members = {name: member for name in names if (member := _member(name, params or {}, seed, found, asked=final is not None))}
    fold = _folds(survey, users, seed)
    ranks = dict(survey.ranks)
    seconds: dict[str, float] = {}
    if fold is None:  # too little to fit on
        members = {}
    alike, taus = _alike(survey.target), dict.fromkeys(members, 0.0)
    frontiers: dict[str, list[dict[str, float]]] = {}
    for number, (name, member) in enumerate(members.items()):
        assert fold is not None
        started = perf_counter()
        scores = np.zeros(len(survey.candidates.items))
        for part in range(FOLDS):
            model = _fitted(survey, np.flatnonzero(fold != part), member, found)
            scores[(fold == part)[survey.candidates.rows]] = order(model, survey.candidates.take(np.flatnonzero(fold == part)))
            progress((number + (part + 1) / (FOLDS + 1)) / len(members), f"{name}, fold {part + 1} of {FOLDS}")
        at = {tau: survey.places(adjusted(scores, survey.candidates, tau)) for tau in TAUS}
        frontiers[name] = [
            {"tau": tau, "rows": float(ndcg(each).mean()), "items": float((ndcg(each) * alike).mean())}
            for tau, each in at.items()
        ]
        if average == "items":
            taus[name] = max(frontiers[name], key=lambda place: place["items"])["tau"]  # the least of equal ones
        ranks[name] = at[taus[name]]
        seconds[name] = perf_counter() - started
    gain = {name: ndcg(each) * (alike if average == "items" else 1.0) for name, each in ranks.items()}
    chosen = final if final is not None and final in ranks else _simplest(survey, gain, list(members), users)
    fitted = _fitted(survey, np.arange(len(survey.target)), members[chosen], found) if chosen in members else None
    tau = taus.get(chosen, 0.0)
    record = {
        "chosen": chosen,
        "asked_for": final,
        "average": average,
        "tau": tau,
        "frontier": frontiers.get(chosen, []),
        "depth": depth,
        "candidates": len(survey.candidates.items) / max(1, len(survey.target)),
        "recall": len(survey.hits) / max(1, len(survey.target)),
        "validation_rows": len(survey.target),
        "ndcg@10": {name: float(each.mean()) for name, each in gain.items()} if len(survey.target) else {},
        "seconds": seconds,
    }
    return Choice(Reranker(chosen, depth, fitted, tau), ranks, record)


def _alike(target: Array) -> Array:
    """float64 (n,): weights of rows, their mean 1, by which every item that is a target counts alike."""
    _, which, count = np.unique(target, return_inverse=True, return_counts=True)
    weight: Array = len(target) / (len(count) * count[which])
    return weight


def _simplest(survey: Survey, gain: Mapping[str, Array], finals: Sequence[str], users: Array | None) -> str:
    if not len(survey.target):
        return MEAN
    alone = max((name for name in survey.ranks if name != MEAN), key=lambda name: float(gain[name].mean()))
    who, chosen = _users(survey, users), MEAN
    for name in (alone, *finals):
        more = gain[name] - gain[chosen]
        if more.mean() > _standard_error(more, who):
            chosen = name
    return chosen


def _standard_error(values: Array, who: Array) -> float:
    """Of the mean of values (n,), those of one user (codes ``who`` (n,)) being drawn together."""
    of_users = np.bincount(who, values - values.mean())
    return math.sqrt(float(of_users @ of_users)) / len(values)


def _users(survey: Survey, users: Array | None) -> Array:
    """int64 (n,): whom each row is of, as numbers from 0 on."""
    who: Array = np.arange(len(survey.target)) if users is None else np.unique(users, return_inverse=True)[1]
    return who


def _folds(survey: Survey, users: Array | None, seed: int) -> Array | None:
    """int64 (n,), or None where there is too little to fit on and judge by."""
    who = _users(survey, users)
    if not len(who):
        return None
    fold: Array = (np.random.default_rng(seed).permutation(int(who.max()) + 1) % FOLDS)[who]
    learnt = np.bincount(fold[survey.candidates.rows[survey.hits]], minlength=FOLDS)
    return fold if (learnt > 0).all() else None


def _member(name: str, params: Mapping[str, Mapping[str, Any]], seed: int, found: Plugins, asked: bool) -> Member | None:
    """A final model before it is fitted; None where it is one of ours to try and is not installed."""
    if name not in found.models and not asked:
        return None
    if RELEVANCE.kind not in found.model(name).plugin.spec.targets:
        able = [n for n, model in found.models.items() if RELEVANCE.kind in model.plugin.spec.targets]
        raise UsageError(
            f"final {name!r} cannot order candidates; expected {MEAN!r}, a member's name, or one of: {', '.join(able) or '(none)'}"
        )
    member = Member("final", name, {**PARAMS.get(name, {}), **params.get(name, {})}, seed)
    member.resolve(found, RELEVANCE)
    return member


def _fitted(survey: Survey, rows: Array, member: Member, found: Plugins) -> Fitted:
    """The final model fitted on those of the rows whose target is among their candidates.

    Of more than ``FITTED`` candidates some are drawn, every target among them: a softmax over drawn alternatives has the same weights
    at its best (McFadden, 1978), and trees need no more.
    """
    has = np.zeros(len(survey.target), bool)
    has[survey.candidates.rows[survey.hits]] = True
    rows = rows[has[rows]]
    part = survey.candidates.take(rows)
    if len(part.items) > FITTED:
        drawn = np.random.default_rng(member.seed).random(len(part.items)) < FITTED / len(part.items)
        part = part.keep(drawn | (part.items == survey.target[rows][part.rows]))
    grades = (part.items == survey.target[rows][part.rows]).astype(np.float64)
    model, settings = member.resolve(found, RELEVANCE)
    batch = replace(part.batch.select(model.plugin.spec.inputs), group=part.offsets)
    data = TrainingData(batch, grades, np.ones(len(grades)), batch.as_of, RELEVANCE)
    started = perf_counter()
    fitted = model.plugin.fit(data, params=settings, seed=member.seed, progress=silent)
    return Fitted.of(member, model, perf_counter() - started, fitted)
