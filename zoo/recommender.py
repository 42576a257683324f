"""Members that rank the catalogue, and a second stage over them: one model that answers which items a user takes next.

It must not know where rows and features come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from zoo.cache import Cache
from zoo.candidates import FIRST, HISTORY, Candidates, ItemCounts, Stage
from zoo.contract import silent
from zoo.errors import ArtefactError, PluginError, UsageError
from zoo.evaluation.ranking import CELLS, Ranking, best, comparisons, joined, ndcg, placed, slices, summary
from zoo.evaluation.slices import against_best, as_dict
from zoo.fitting import Member, PluginSource
from zoo.jobs import Executor, Serial
from zoo.manager import Plugins
from zoo.plugin import (
    Array,
    Artefact,
    Catalogue,
    EncodesItems,
    FeatureBatch,
    Progress,
    ScoresItems,
    ScoresUnseen,
    Target,
    TrainingData,
)
from zoo.reranking import DEPTH, MEAN, STACK, Choice, Reranker, Survey, choose, rank_average
from zoo.stacking import INSTALLED, UNREADABLE, Fitted, fit_members
from zoo.tasks.recommendation import AVERAGES
from zoo.vocabulary import ITEMS, PART, Vocabulary

FILE = "recommender.json"


@dataclass(frozen=True)
class Lists:
    """items: int32 (n, k), the log's codes, best first, 0 where no more items may be listed. score: float32 (n, k).

    ranks: int32 (members, n, k), each member's rank of the item among those that may be listed. cold: bool (n,).
    """

    items: Array
    score: Array
    ranks: Array
    cold: Array

    @staticmethod
    def joined(parts: Sequence[Lists], k: int, members: int) -> Lists:
        if not parts:
            none = np.zeros((0, k))
            return Lists(none.astype(np.int32), none.astype(np.float32), np.zeros((members, 0, k), np.int32), np.zeros(0, bool))
        rows = [np.concatenate([getattr(part, name) for part in parts]) for name in ("items", "score", "cold")]
        return Lists(rows[0], rows[1], np.concatenate([part.ranks for part in parts], axis=1), rows[2])


@dataclass(frozen=True)
class Recommender:
    """members: fitted on one set of rows. counts: of those rows' items. reranker: how their answers become one."""

    members: tuple[Fitted, ...]
    vocabulary: Vocabulary
    counts: ItemCounts
    target: Target
    reranker: Reranker = field(default_factory=Reranker)

    @property
    def popularity(self) -> Array:
        """float64, by the vocabulary's item codes: how often training held each."""
        return self.counts.popularity

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    def seen(self, batch: FeatureBatch) -> FeatureBatch:
        """The batch in the members' codes, which the other methods take."""
        if HISTORY not in batch:
            raise UsageError(
                f"a recommendation reads the items of a history from the column {HISTORY!r}, which the feature service lacks; it has: "
                f"{', '.join(batch.names) or '(none)'}"
            )
        return self.known(batch.catalogue).apply(batch)

    def known(self, catalogue: Catalogue) -> Vocabulary:
        """Training's codes, and behind them items of this catalogue that training did not hold and a member scores all the same."""
        if not self._scoring_unseen:
            return self.vocabulary
        for met, held in self._wide[:1]:  # looked at once: other threads may bring another catalogue meanwhile
            if met is catalogue:
                return held
        scorable = np.any([each.scorable(catalogue) for each in self._scoring_unseen.values()], axis=0)
        scorable[:FIRST] = False
        more = np.setdiff1d(np.flatnonzero(scorable), self.vocabulary.kept.get(ITEMS, ()))
        wide = self.vocabulary.extended(catalogue, more) if len(more) else self.vocabulary
        self._wide[:] = [(catalogue, wide)]
        return wide

    def counts_of(self, batch: FeatureBatch) -> ItemCounts:
        """``counts`` by the codes of a batch in the members' codes."""
        size = batch.catalogue.size(ITEMS)
        for known, held in self._counts[:1]:
            if known == size:
                return held
        wide = self.counts.widened(size)
        self._counts[:] = [(size, wide)]
        return wide

    def vectors_of(self, batch: FeatureBatch) -> Mapping[str, Array]:
        """Vectors of a batch's items by members that have some, as ``Stage`` has them; made once a catalogue."""
        for met, held in self._vectors[:1]:
            if met is batch.catalogue:
                return held
        found: dict[str, Array] = {}
        for name, fitted in ((member.name, member.fitted) for member in self.members):
            if not isinstance(fitted, EncodesItems):
                continue
            vectors, scorable = np.asarray(fitted.item_vectors(batch.catalogue), np.float32), fitted.scorable(batch.catalogue)
            size = batch.catalogue.size(ITEMS)
            if vectors.ndim != 2 or len(vectors) != size or not np.isfinite(vectors[scorable]).all():
                raise PluginError(f"{name} gave item vectors of shape {vectors.shape}; expected ({size}, d) finite numbers")
            known = scorable & (np.arange(size) >= FIRST)
            unit = np.zeros_like(vectors)
            unit[known] = vectors[known] / np.maximum(np.linalg.norm(vectors[known], axis=1, keepdims=True), 1e-12)
            found[name] = unit
        self._vectors[:] = [(batch.catalogue, found)]
        return found

    @cached_property
    def _scoring_unseen(self) -> dict[str, ScoresUnseen]:
        """The members that do, by name; looked at once, as a look at a protocol takes longer than some of what is computed."""
        return {member.name: member.fitted for member in self.members if isinstance(member.fitted, ScoresUnseen)}

    @cached_property
    def _vectors(self) -> list[tuple[Catalogue, Mapping[str, Array]]]:
        return []

    @cached_property
    def _orders(self) -> dict[str, tuple[Array, Array]]:
        return {}

    @cached_property
    def _wide(self) -> list[tuple[Catalogue, Vocabulary]]:
        return []

    @cached_property
    def _counts(self) -> list[tuple[int, ItemCounts]]:
        return []

    def scores_of(self, member: Fitted, batch: FeatureBatch) -> Array:
        """float32 (n, codes) of a member; items that it cannot score come last. Raises PluginError where it gives anything else."""
        more = 0
        if member.name not in self._scoring_unseen:
            more = batch.catalogue.size(ITEMS) - self.vocabulary.size(ITEMS)
            batch = self.vocabulary.narrowed(batch) if more else batch
        scores = cast("ScoresItems", member.fitted).score_items(batch.select(member.inputs))  # resolved for a ranking target
        expected = (len(batch), batch.catalogue.size(ITEMS))
        if scores.shape != expected or not np.isfinite(scores[:, FIRST:]).all():
            raise PluginError(f"{member.name} gave item scores of shape {scores.shape}; expected {expected} finite numbers")
        if not more:
            return scores
        least = scores[:, FIRST:].min(axis=1, initial=np.inf, keepdims=True)
        below = np.nextafter(np.where(np.isinf(least), 0, least), -np.inf, dtype=np.float32)
        return np.hstack([scores, np.repeat(below, more, axis=1)])

    def stages(self, batch: FeatureBatch, exclude_seen: bool) -> Iterator[Stage]:
        """Of a batch in the members' codes, a few rows at a time, each member asked once."""
        size = batch.catalogue.size(ITEMS)
        vectors = self.vectors_of(batch) if len(self.members) > 1 else {}
        for begin in range(0, len(batch), step := max(1, CELLS // size)):
            rows = batch.take(np.arange(begin, min(begin + step, len(batch)))).compact()
            hidden = np.repeat((np.arange(size) < FIRST)[None], len(rows), axis=0)
            if exclude_seen:
                past = rows.column(HISTORY)
                hidden[np.repeat(np.arange(len(rows)), past.lengths), past.values] = True
            scores = {member.name: self.scores_of(member, rows) for member in self.members}
            yield Stage(rows, hidden, scores, vectors, self._orders)

    def combine(self, stage: Stage, allowed: Array | None = None, k: int | None = None) -> Array:
        """float32 (n, codes), -inf for hidden items: of one member its own scores, of several what the second stage makes of them.

        Of a row that is ``cold`` they are how often training held each item. allowed: bool (codes,), only these may be candidates of the
        second stage. k: of each row only so many items are asked for.
        """
        alone = self.members[0].name if len(self.members) == 1 else self.reranker.chosen
        counts = self.counts_of(stage.batch)
        own = stage.scores.get(alone)
        scores = self.reranker.scores(stage, counts, allowed, k) if own is None else stage.listed(own)
        rows = cold(stage.batch)
        if rows.any():
            scores[rows] = np.where(stage.hidden[rows], np.float32(-np.inf), counts.popularity.astype(np.float32))
        return scores

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        """Of a batch in the members' codes, as ``zoo.plugin.ScoresItems`` has it, items of the history among them."""
        parts = [np.zeros((0, batch.catalogue.size(ITEMS)), np.float32)]
        parts += [np.where(stage.hidden, 0, self.combine(stage)) for stage in self.stages(batch, exclude_seen=False)]
        scores = np.concatenate(parts)
        return scores if items is None else scores[:, items]

    def rankings(self, data: TrainingData, *, exclude_seen: bool = True) -> dict[str, Ranking]:
        """Each member's ranking of labelled rows in the log's codes, then, of several, that of their rank average and of the stack.

        The last one is of what ``lists`` answers, cold rows by popularity among them.
        """
        return self.survey(data, exclude_seen=exclude_seen)[0]

    def survey(
        self, data: TrainingData, *, exclude_seen: bool = True, depth: int = 0
    ) -> tuple[dict[str, Ranking], Survey | None]:
        """Rankings as in ``rankings``, and, where ``depth`` candidates a member are asked for, what a second stage is fitted on."""
        batch, target = self.seen(data.batch), self.known(data.batch.catalogue).target(data).astype(np.int64)
        several = len(self.members) > 1
        found: dict[str, list[Ranking]] = {name: [] for name in (*self.names, *((MEAN,) if several else ()))}
        if several and self.reranker.chosen != MEAN:
            found[STACK] = []
        surveys, begin, items = [], 0, batch.catalogue.size(ITEMS) - FIRST
        for stage in self.stages(batch, exclude_seen):
            own = target[begin : begin + len(stage.batch)]
            begin += len(stage.batch)
            scores = {name: stage.listed(each) for name, each in stage.scores.items()}
            if several:
                scores[MEAN] = rank_average(stage.ranks)
            scores[[*found][-1]] = self.combine(stage)
            part = {name: placed(each, own, items) for name, each in scores.items()}
            for name, each in part.items():
                found[name].append(each)
            if depth:
                candidates = Candidates.of(stage, depth, self.counts_of(stage.batch))
                ranks = {name: each.rank for name, each in part.items() if name != STACK}
                surveys.append(Survey.of(candidates, own, scores[MEAN], ranks))
        return {name: joined(parts, items) for name, parts in found.items()}, Survey.joined(surveys) if surveys else None

    def lists(self, batch: FeatureBatch, k: int, *, exclude_seen: bool = True, among: Array | None = None) -> Lists:
        """The first ``k`` items, or all, of each row of a batch in the log's codes. among: int32, the log's codes of items that may be
        listed.

        A row without any item that training knew is answered by popularity, and marked cold.
        """
        vocabulary, batch = self.known(batch.catalogue), self.seen(batch)
        depth = min(k, batch.catalogue.size(ITEMS))
        allowed = np.arange(batch.catalogue.size(ITEMS)) >= FIRST
        if among is not None:
            allowed &= np.isin(np.arange(len(allowed)), vocabulary.codes(ITEMS, among))
        parts = []
        for whole in self.stages(batch, exclude_seen):
            stage = whole if among is None else replace(whole, hidden=whole.hidden | ~allowed)
            final = stage.listed(self.combine(whole, None if among is None else allowed, k))
            items = best(final, depth)
            ranks = [stage.ahead(name, items) + 1 for name in stage.scores]
            codes = vocabulary.log_codes(ITEMS, items)
            score = np.take_along_axis(final, items, axis=1)
            parts.append(Lists(codes, score.astype(np.float32), np.stack(ranks).astype(np.int32), cold(stage.batch)))
        return Lists.joined(parts, depth, len(self.members))

    def save(self) -> Artefact:
        about = {
            "members": [m.facts() for m in self.members],
            "target": asdict(self.target),
            "reranker": self.reranker.facts(),
        }
        final = self.reranker.final
        return Artefact.merged(
            Artefact(texts={FILE: json.dumps(about)}),
            self.counts.save().nested("counts"),
            self.vocabulary.save().nested(PART),
            *(m.fitted.save().nested(f"members/{m.name}") for m in self.members),
            *(() if final is None else (final.fitted.save().nested("final"),)),
        )

    @staticmethod
    def load(artefact: Artefact, plugins: Plugins) -> Recommender:
        """What ``save`` wrote. Raises ArtefactError when it is no recommender, PluginError when a model's plugin is missing."""
        try:
            about: Mapping[str, Any] = json.loads(artefact.texts[FILE])
            counts, kind = ItemCounts.load(artefact.part("counts")), about["target"]["kind"]
            members = tuple(Fitted.load(facts, artefact.part(f"members/{facts['name']}"), plugins) for facts in about["members"])
            reranker, target = Reranker.load(about["reranker"], artefact.part("final"), plugins), Target(kind)
        except UNREADABLE as e:
            raise ArtefactError(
                f"not a recommender: {str(e)[:300]!r}; expected {FILE} with members, target and reranker, and the arrays counts/*"
            ) from e
        vocabulary = Vocabulary.load(artefact.part(PART))
        counts.check(vocabulary.size(ITEMS))
        return Recommender(members, vocabulary, counts, target, reranker)


def fit_recommender(
    members: Sequence[Member],
    data: TrainingData,
    *,
    source: PluginSource = INSTALLED,
    executor: Executor = Serial(),  # noqa: B008 - it holds nothing
    cache: Cache | None = None,
    progress: Progress = silent,
) -> Recommender:
    """Members fitted on all rows of a ranking target, each a job of its own; errors as in ``stacking.fit_members``."""
    if data.kind.kind != "ranking":
        raise UsageError(f"a recommender ranks the catalogue; the target is {data.kind.kind}")
    fitted = fit_members(members, data, source=source, executor=executor, cache=cache, progress=progress)
    vocabulary = Vocabulary.of(data)
    return Recommender(tuple(fitted), vocabulary, ItemCounts.of(data, vocabulary), data.kind)


def second_stage(
    recommender: Recommender,
    validation: TrainingData,
    *,
    exclude_seen: bool = True,
    depth: int = DEPTH,
    final: str | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    users: Array | None = None,
    average: str = AVERAGES[0],
    source: PluginSource = INSTALLED,
    progress: Progress = silent,
) -> tuple[Recommender, Choice]:
    """The recommender with a second stage chosen, and fitted, on labelled rows that no member was fitted on; as in ``reranking.choose``.

    A recommender of one member stays as it is. exclude_seen: whether items of a history are no candidates.
    """
    if len(recommender.members) < 2 and final is None:
        return recommender, Choice(recommender.reranker, {})
    warm = np.flatnonzero(~cold(recommender.seen(validation.batch)))  # of the others popularity tells
    if len(warm) < len(validation):
        validation, users = validation.take(warm), None if users is None else users[warm]
    survey = recommender.survey(validation, exclude_seen=exclude_seen, depth=depth)[1]
    if survey is None:  # no row
        return recommender, Choice(recommender.reranker, {})
    asked: dict[str, Any] = {"final": final, "params": params, "seed": seed, "users": users, "average": average}
    choice = choose(survey, depth, **asked, source=source, progress=progress)
    return replace(recommender, reranker=choice.reranker), choice


def cold(batch: FeatureBatch) -> Array:
    """bool (n,): rows of a batch in the members' codes whose history holds no item that training knew."""
    past = batch.column(HISTORY)
    who = np.repeat(np.arange(len(past)), past.lengths)
    return np.asarray(np.bincount(who, past.values >= FIRST, minlength=len(past)) == 0)


def _against_best(members: Mapping[str, Ranking], answer: Ranking, rows: Array, users: Array) -> dict[str, Any]:
    if not rows.any():
        return {}
    values = {name: ndcg(ranking.rank[rows]) for name, ranking in members.items()}
    return against_best(values, ndcg(answer.rank[rows]), "ndcg@10", True, {"groups": users[rows]})


def ranked(
    recommender: Recommender, test: TrainingData, choice: Choice | None, users: Array, exclude_seen: bool
) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a training record says of the test rows, JSON-ready, and each model's ranks of them.

    users: (n,), whom each test row is of. The best member is the one of highest NDCG@10 on the validation rows, or None without them.
    """
    found = recommender.rankings(test, exclude_seen=exclude_seen)
    batch, target = recommender.seen(test.batch), recommender.known(test.batch.catalogue).target(test)
    popularity = recommender.counts_of(batch).popularity
    lines = {name: as_dict(summary(ranking, users=users, popularity=popularity)) for name, ranking in found.items()}
    seconds = {member.name: member.seconds for member in recommender.members}
    parts = slices(batch.column(HISTORY).lengths, target, popularity)
    name, answer = list(found.items())[-1]
    best_member = next(iter(seconds)) if len(seconds) == 1 else None
    if choice is not None and choice.ranks:
        best_member = max(seconds, key=lambda member: float(ndcg(choice.ranks[member]).mean()))
    history = test.batch.column(HISTORY)  # in the log's codes, which tell apart what training did not hold
    row = np.repeat(np.arange(len(history)), history.lengths)
    held = np.bincount(row, history.values == test.target[row], minlength=len(history)) > 0
    record = {
        "items": answer.items,
        "exclude_seen": exclude_seen,
        "seen_before": float(held.mean()) if len(held) else 0.0,
        "members": {name: {**lines[name], "seconds": None if math.isnan(s) else s} for name, s in seconds.items()},
        "mean": lines.get(MEAN),
        "stack": lines.get(STACK),
        "best_member": best_member,
        "second_stage": None if choice is None or not choice.record else dict(choice.record),
        "comparisons": [vars(each) for each in comparisons(found, against=name, users=users)] if len(found) > 1 else [],
        "slices": {
            name: {
                "rows": int(rows.sum()),
                **as_dict(summary(answer, users=users, rows=rows, cutoffs=(10,))),
                **_against_best({each: found[each] for each in seconds}, answer, rows, users),
            }
            for name, rows in parts.items()
        },
    }
    return record, {name: ranking.rank for name, ranking in found.items()}
