"""Members that rank the catalogue, and their rank average: one model that answers which items a user takes next.

It must not know where rows and features come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from zoo.cache import Cache
from zoo.errors import ArtefactError, PluginError, UsageError
from zoo.evaluation.bootstrap import Estimate
from zoo.evaluation.ranking import CELLS, Ranking, best, comparisons, of_rows, rank, slices, summary
from zoo.fitting import Member, PluginSource, silent
from zoo.jobs import Executor, Serial
from zoo.manager import Plugins
from zoo.plugin import UNKNOWN, Array, Artefact, FeatureBatch, Progress, ScoresItems, Target, TrainingData
from zoo.stacking import INSTALLED, Fitted, fit_members
from zoo.vocabulary import ITEMS, Vocabulary

HISTORY = "items"
"""The sequence column that holds a user's items."""
METRIC = "ndcg@10"
"""By what members are told apart."""
MEAN = "mean"
"""What the rank average is called beside the members."""
FILE = "recommender.json"


def average_rank(scores: Sequence[Array]) -> Array:
    """float32 (n, m) of members' scores, (n, m) each: minus an item's mean rank among the row's items, equal scores sharing theirs."""
    from scipy.stats import rankdata  # half a second that loading a model need not pay

    total = np.zeros(scores[0].shape)
    for each in scores:
        total -= rankdata(-each.astype(np.float64), method="average", axis=1)
    return (total / len(scores)).astype(np.float32)


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
    """members: fitted on one set of rows. popularity: float64, by the vocabulary's item codes, how often those rows held each."""

    members: tuple[Fitted, ...]
    vocabulary: Vocabulary
    popularity: Array
    target: Target

    def seen(self, batch: FeatureBatch) -> FeatureBatch:
        """The batch in the members' codes, which the other methods take."""
        if HISTORY not in batch:
            raise UsageError(
                f"a recommendation reads the items of a history from the column {HISTORY!r}, which the feature service lacks; it has: "
                f"{', '.join(batch.names) or '(none)'}"
            )
        return self.vocabulary.apply(batch)

    def scores_of(self, member: Fitted, batch: FeatureBatch) -> Array:
        """float32 (n, codes) of a member. Raises PluginError where it gives anything else."""
        assert isinstance(member.fitted, ScoresItems)  # resolved for a ranking target
        scores = member.fitted.score_items(batch.select(member.inputs))
        expected = (len(batch), batch.catalogue.size(ITEMS))
        if scores.shape != expected or not np.isfinite(scores[:, UNKNOWN + 1 :]).all():
            raise PluginError(f"{member.name} gave item scores of shape {scores.shape}; expected {expected} finite numbers")
        return scores

    def member_scores(self, batch: FeatureBatch) -> list[Array]:
        """float32 (n, codes) of every member."""
        return [self.scores_of(member, batch) for member in self.members]

    def combine(self, member_scores: Sequence[Array]) -> Array:
        """float32 (n, codes): of one member its own scores, of several their rank average."""
        if len(member_scores) == 1:
            return member_scores[0]
        out = np.zeros(member_scores[0].shape, np.float32)
        out[:, UNKNOWN + 1 :] = average_rank([scores[:, UNKNOWN + 1 :] for scores in member_scores])
        return out

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        """Of a batch in the members' codes, as ``zoo.plugin.ScoresItems`` has it."""
        scores = self.combine(self.member_scores(batch))
        return scores if items is None else scores[:, items]

    def rankings(self, data: TrainingData, *, exclude_seen: bool = True) -> Iterator[tuple[str, Ranking]]:
        """Each member's ranking of labelled rows in the log's codes, then, where there are several members, their rank average's."""
        batch, target = self.seen(data.batch), self.vocabulary.target(data)
        past = batch.column(HISTORY) if exclude_seen else None
        for member in self.members:
            yield member.name, rank(partial(self.scores_of, member), batch, target, seen=past)
        if len(self.members) > 1:
            yield MEAN, rank(self.score_items, batch, target, seen=past)

    def lists(self, batch: FeatureBatch, k: int, *, exclude_seen: bool = True, among: Array | None = None) -> Lists:
        """The first ``k`` items of each row of a batch in the log's codes; among: int32, the log's codes of items that may be listed.

        A row without any item that training knew is answered by popularity, and marked cold.
        """
        batch = self.seen(batch)
        history = batch.column(HISTORY)
        allowed = np.arange(batch.catalogue.size(ITEMS)) > UNKNOWN
        if among is not None:
            codes = self.vocabulary.codes(ITEMS, among)
            allowed &= np.isin(np.arange(len(allowed)), codes)
        parts = []
        for begin in range(0, len(batch), step := max(1, CELLS // len(allowed))):
            rows = np.arange(begin, min(begin + step, len(batch)))
            past = history.take(rows)
            hidden = np.repeat(~allowed[None], len(rows), axis=0)
            who = np.repeat(np.arange(len(rows)), past.lengths)
            if exclude_seen:
                hidden[who, past.values] = True
            cold = np.bincount(who, past.values > UNKNOWN, minlength=len(rows)) == 0
            scores = self.member_scores(batch.take(rows).compact())
            final = np.where(cold[:, None], self.popularity.astype(np.float32), self.combine(scores))
            for each in (final, *scores):
                each[hidden] = -np.inf
            items = best(final, k)
            chosen = [np.take_along_axis(each, items, axis=1) for each in (final, *scores)]
            ranks = [
                np.stack([(each > own[:, at, None]).sum(axis=1) + 1 for at in range(k)], axis=1)
                for each, own in zip(scores, chosen[1:], strict=True)
            ]
            parts.append(Lists(self.vocabulary.log_codes(ITEMS, items), chosen[0], np.stack(ranks).astype(np.int32), cold))
        return Lists.joined(parts, k, len(self.members))

    def save(self) -> Artefact:
        def facts(model: Fitted) -> dict[str, Any]:
            return {k: getattr(model, k) for k in ("name", "model", "inputs", "distribution", "version")}

        about = {"members": [facts(m) for m in self.members], "target": asdict(self.target)}
        return Artefact.merged(
            Artefact({"popularity": self.popularity}, {FILE: json.dumps(about)}),
            self.vocabulary.save().nested("vocabulary"),
            *(m.fitted.save().nested(f"members/{m.name}") for m in self.members),
        )

    @staticmethod
    def load(artefact: Artefact, plugins: Plugins) -> Recommender:
        """What ``save`` wrote. Raises ArtefactError when it is no recommender, PluginError when a member's plugin is missing."""
        try:
            about: Mapping[str, Any] = json.loads(artefact.texts[FILE])
            popularity, kind = artefact.arrays["popularity"], about["target"]["kind"]
        except (KeyError, TypeError, ValueError) as e:
            raise ArtefactError(
                f"not a recommender: {e!r}; expected {FILE} with members and target, and the array popularity"
            ) from e
        members = tuple(Fitted.load(facts, artefact.part(f"members/{facts['name']}"), plugins) for facts in about["members"])
        return Recommender(members, Vocabulary.load(artefact.part("vocabulary")), popularity, Target(kind))


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
    return Recommender(tuple(fitted), vocabulary, item_counts(data, vocabulary), data.kind)


def item_counts(data: TrainingData, vocabulary: Vocabulary) -> Array:
    """float64 by the vocabulary's item codes: events of the rows' histories and targets."""
    codes = np.concatenate([vocabulary.apply(data.batch).column(HISTORY).values, vocabulary.target(data).astype(np.int64)])
    counts = np.bincount(codes, minlength=vocabulary.size(ITEMS)).astype(np.float64)
    counts[: UNKNOWN + 1] = 0
    return counts


def ranked(
    recommender: Recommender, test: TrainingData, validation: TrainingData | None, users: Array, exclude_seen: bool
) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a training record says of the test rows, JSON-ready, and each model's ranks of them.

    users: (n,), whom each test row is of. The best member is the one of highest NDCG@10 on the validation rows, or None without them.
    """
    found = dict(recommender.rankings(test, exclude_seen=exclude_seen))
    lines = {name: as_dict(summary(ranking, users=users, popularity=recommender.popularity)) for name, ranking in found.items()}
    seconds = {member.name: member.seconds for member in recommender.members}
    best_member = None
    if validation is not None and len(recommender.members) > 1:
        before = dict(recommender.rankings(validation, exclude_seen=exclude_seen))
        best_member = max(seconds, key=lambda name: float(of_rows(before[name])[METRIC].mean()))
    parts = slices(
        recommender.seen(test.batch).column(HISTORY).lengths, recommender.vocabulary.target(test), recommender.popularity
    )
    answer = found.get(MEAN) or next(iter(found.values()))
    record = {
        "items": answer.items,
        "exclude_seen": exclude_seen,
        "members": {name: {**lines[name], "seconds": None if math.isnan(s) else s} for name, s in seconds.items()},
        "mean": lines.get(MEAN),
        "best_member": best_member or (next(iter(seconds)) if len(seconds) == 1 else None),
        "comparisons": [vars(each) for each in comparisons(found, against=MEAN, users=users)] if MEAN in found else [],
        "slices": {
            name: {"rows": int(rows.sum()), **as_dict(summary(answer, users=users, rows=rows, cutoffs=(10,)))}
            for name, rows in parts.items()
        },
    }
    return record, {name: ranking.rank for name, ranking in found.items()}


def as_dict(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """A metric's value under its name, its interval under ``NAME_interval``; None where there is none."""
    out: dict[str, Any] = {}
    for name, each in estimates.items():
        low, high = each.low, each.high
        out[name] = None if math.isnan(each.value) else each.value
        out[f"{name}_interval"] = None if math.isnan(low) else [low, high]
    return out
