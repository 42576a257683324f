"""What combines the members of a stack: final models, members left out, calibration, each chosen on later blocks of out-of-fold scores.

Every choice is forward in time: fitted on rows whose labels were known before a block, judged on the block. It must not know how
members are fitted, nor look at a test row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np

from zoo.calibration import IDENTITY, KINDS, NONE, Calibrator, chosen, losses
from zoo.choice import least
from zoo.contract import silent
from zoo.errors import UsageError
from zoo.fitting import PluginSource, checked
from zoo.folds import forward_chaining
from zoo.plugin import Array, FeatureBatch, Progress, Target, TrainingData
from zoo.stacking import Fitted, OutOfFold, stack, with_scores
from zoo.vocabulary import Vocabulary

DEFAULT = "logistic"
"""The final model that stays unless another beats it beyond chance."""
UNTESTED = "mean"
"""The final model where no label is known before a later block, so that nothing can be compared: it cannot be far off."""
SMALL_TREES = {
    "num_trees": 100,
    "num_leaves": 4,
    "learning_rate": 0.05,
    "min_data_in_leaf": 50,
    "feature_fraction": 1.0,
    "lambda_l2": 10.0,
}
"""A handful of columns need no more."""
SCORES = ("score:*",)
CANDIDATES: Mapping[str, tuple[str, Mapping[str, Any], tuple[str, ...] | None]] = MappingProxyType(
    {
        "best": ("average", {"how": "best"}, None),
        "mean": ("average", {"how": "mean"}, None),
        "rank_mean": ("average", {"how": "rank_mean"}, None),
        "greedy": ("average", {"how": "greedy"}, None),
        "logistic": ("logistic", {}, None),
        "gbdt": ("gbdt", SMALL_TREES, SCORES),
    }
)
"""Name -> model, its parameters, the columns that it may read (None: those of its spec). The simplest first."""
JUDGED = ("binary", "multiclass")
"""Kinds of target that have a loss here; others go to the default, which says what it takes."""
BLOCKS = 4
"""Later blocks that final models are judged on, where there are enough instants."""


@dataclass(frozen=True)
class Chosen:
    """final, calibrator: fitted on all out-of-fold rows. members: those that stay. held_out: float64 (n, k), the calibrated stack's scores
    of rows that it was not fitted on, NaN where there are none. record: what was compared, JSON-ready: ``log_loss`` of each final model
    with all members, on later rows, and where some were left out ``kept_log_loss``, of the chosen one without them, on the same rows.
    """

    final: Fitted
    calibrator: Calibrator
    members: tuple[str, ...]
    held_out: Array
    record: dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """Out-of-fold scores, and what fitting a final model on a part of them needs.

    known_at: int64 (n,), when a row's label is known. entities: (n,), whose it is, or None. vocabulary: the members'.
    """

    oof: OutOfFold
    data: TrainingData
    known_at: Array
    entities: Array | None
    vocabulary: Vocabulary
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    source: PluginSource = field(default_factory=PluginSource)

    def fit(self, name: str, rows: Array | None = None) -> Fitted:
        """A candidate, or another model by its name, fitted on these rows (default: all that have scores)."""
        model, params, inputs = CANDIDATES.get(name, (name, {}, None))
        if name not in self.oof.members:  # a member's parameters are for its own inputs, not for a few scores
            params = {**params, **self.params.get(name, {})}
        oof = self.oof if rows is None else replace(self.oof, fold=_masked(self.oof.fold, rows))
        more: dict[str, Any] = {
            "entities": self.entities,
            "known_at": self.known_at,
            "inputs": inputs,
            "vocabulary": self.vocabulary,
        }
        return stack(oof, self.data, model, params, seed=self.seed, source=self.source, **more)

    def blocks(self) -> list[tuple[Array, Array]]:
        """(rows to fit on, rows of a later block), forward in time; none where the scored rows span too few instants."""
        rows = self.oof.rows
        time, known_at = self.data.time[rows], self.known_at[rows]
        for count in range(BLOCKS, 0, -1):
            try:
                folds = forward_chaining(time, known_at, count)
            except UsageError:
                continue
            return [(rows[a], rows[b]) for a, b in folds]
        return []

    def forward(self, name: str, blocks: Sequence[tuple[Array, Array]]) -> Array:
        """float64 (n, k): each later block scored by the candidate fitted before it; NaN elsewhere."""
        out = np.full((len(self.data), self.data.kind.width), np.nan)
        for train, later in blocks:
            final = self.fit(name, train)
            out[later] = answer(final, self.data.batch.take(later), self.oof, later, self.vocabulary, self.data.kind)
        return out

    def calibrated(self, name: str, calibration: str | None = None) -> tuple[Fitted, Calibrator]:
        """A final model and the calibrator of its scores, both as ``choose`` has them for a model by this name."""
        blocks = self.blocks() if self.data.kind.kind in ("binary", "multiclass") else []
        curve = _calibrated(self, self.forward(name, blocks) if blocks else None, blocks, calibration)[1]
        return self.fit(name), curve


def answer(final: Fitted, batch: FeatureBatch, oof: OutOfFold, rows: Array, vocabulary: Vocabulary, target: Target) -> Array:
    """A final model's scores (len(rows), k) of rows by their out-of-fold scores."""
    scored = with_scores(batch, oof.members, oof.scores[rows])
    known = vocabulary.apply(scored.select(final.inputs))
    return checked(final.fitted.predict(known), len(rows), target, "the final model").astype(np.float64)


def choose(
    scores: Scores,
    final: str | None = None,
    *,
    calibration: str | None = None,
    price: float = 0.0,
    cost: Mapping[str, float] = MappingProxyType({}),
    keep: Collection[str] = (),
    progress: Progress = silent,
) -> Chosen:
    """The final model, the members that stay, and the calibrator.

    final: a candidate or model by name; None: the one of least log-loss on later blocks, ``DEFAULT`` unless another beats it beyond
    chance over whole users (``zoo.choice``). calibration: likewise, of ``zoo.calibration.KINDS``. price: what a millisecond a row is worth,
    in log-loss; a member stays if leaving it out raises the log-loss on later blocks by at least that times its ``cost`` (milliseconds).
    Members without any weight are left out in any case. keep: members that stay all the same.
    Raises UsageError for names that cannot be meant.
    """
    kinds = KINDS if calibration is None else (calibration,)
    Calibrator.fit(kinds[0], np.zeros((0, 1)), np.zeros(0), np.zeros(0))  # names an unknown kind before anything is fitted
    blocks, started = scores.blocks(), perf_counter()
    found = scores.source.load()
    listed = [final] if final is not None else [n for n, (model, *_) in CANDIDATES.items() if model in found.models]
    if scores.data.kind.kind not in JUDGED:
        listed, blocks = [final or DEFAULT], []
    if len(scores.oof.members) == 1 and final is None:
        listed = [DEFAULT]
    forward: dict[str, Array] = {}
    for done, name in enumerate(listed if blocks else ()):
        forward[name] = scores.forward(name, blocks)
        progress((done + 1) / (len(listed) + 1), f"tried final model {name}")
    picked = final or (DEFAULT if blocks or len(scores.oof.members) == 1 or scores.data.kind.kind not in JUDGED else UNTESTED)
    record: dict[str, Any] = {"blocks": len(blocks)}
    if blocks:
        later = np.concatenate([rows for _, rows in blocks])
        loss = {name: _losses(scores, each, later) for name, each in forward.items()}
        picked = least(loss, DEFAULT, _of(scores.entities, later)) if final is None else final
        total = float(scores.data.weight[later].sum())
        record |= {"rows": len(later), "log_loss": {name: float(each.sum()) / total for name, each in loss.items()}}
    scores, dropped, held_out = _pruned(scores, picked, blocks, forward.get(picked), price, cost, keep)
    if dropped and held_out is not None:  # what was compared above was fitted on them all
        later = np.concatenate([rows for _, rows in blocks])
        record["kept_log_loss"] = float(_losses(scores, held_out, later).sum()) / float(scores.data.weight[later].sum())
    fitted = scores.fit(picked)
    kind, curve, held_out, compared = _calibrated(scores, held_out, blocks, calibration)
    record = {"chosen": picked, **record, "seconds": perf_counter() - started}
    if dropped:
        record["dropped"] = dropped
    record["calibration"] = {"chosen": kind, "log_loss": compared}
    progress(1.0, f"final model {picked}, calibration {kind}")
    return Chosen(fitted, curve, scores.oof.members, held_out, record)


def _pruned(
    scores: Scores,
    name: str,
    blocks: Sequence[tuple[Array, Array]],
    forward: Array | None,
    price: float,
    cost: Mapping[str, float],
    keep: Collection[str],
) -> tuple[Scores, dict[str, str], Array | None]:
    """The scores of members that stay, why the others do not, and the later blocks' scores of those that do."""
    dropped: dict[str, str] = {}
    fitted = scores.fit(name).fitted
    weights = getattr(fitted, "weights", None)
    if weights is not None and len(weights) == len(scores.oof.members):
        idle = [m for m, weight in zip(scores.oof.members, weights, strict=True) if not np.any(weight) and m not in keep]
        if idle:
            dropped = dict.fromkeys(idle, "no weight")
            scores = replace(scores, oof=scores.oof.only([m for m in scores.oof.members if m not in dropped]))
            forward = scores.forward(name, blocks) if blocks else None
    while price > 0 and forward is not None and len(scores.oof.members) > 1:
        later = np.concatenate([rows for _, rows in blocks])
        total = float(scores.data.weight[later].sum())
        before = float(_losses(scores, forward, later).sum()) / total
        tried = {}
        for member in [each for each in scores.oof.members if each not in keep]:
            less = replace(scores, oof=scores.oof.only([m for m in scores.oof.members if m != member]))
            without = less.forward(name, blocks)
            worth = float(_losses(less, without, later).sum()) / total - before
            tried[member] = (price * cost.get(member, 0.0) - worth, worth, less, without)
        if not tried:
            break
        member = max(tried, key=lambda each: tried[each][0])
        saved, worth, less, without = tried[member]
        if saved <= 0:
            break
        dropped[member] = f"it lowers the log-loss by {worth:.5f} and costs {cost.get(member, 0.0):.3g} ms a row"
        scores, forward = less, without
    return scores, dropped, forward


def _calibrated(
    scores: Scores, forward: Array | None, blocks: Sequence[tuple[Array, Array]], asked: str | None
) -> tuple[str, Calibrator, Array, dict[str, float]]:
    """Kind, calibrator, the later blocks' scores under it, and what was compared.

    The kind is chosen on the blocks after the first one, each mapped by what was learnt on those before it; those scores are what
    ``held_out`` answers with, so that nothing was fitted on them.
    """
    data = scores.data
    if forward is None:
        return NONE, IDENTITY, np.full((len(data), data.kind.width), np.nan), {}
    later = np.concatenate([rows for _, rows in blocks])
    place = np.full(len(data), -1)
    place[later] = np.arange(len(later))
    known = np.where(place >= 0, scores.known_at, np.iinfo(np.int64).max)
    pairs = []
    for _, rows in blocks[1:]:
        before = np.flatnonzero((data.time < data.time[rows].min()) & (known <= data.time[rows].min()))
        if len(before):
            pairs.append((place[before], place[rows]))
    p, target, weight = forward[later], data.target[later], data.weight[later]
    kind, compared = chosen(p, target, weight, pairs, _of(scores.entities, later), KINDS if asked is None else (NONE, asked))
    kind = kind if asked is None else asked
    held_out = forward.copy() if kind == NONE else np.full_like(forward, np.nan)
    for a, b in pairs:
        held_out[later[b]] = Calibrator.fit(kind, p[a], target[a], weight[a])(p[b])
    return kind, Calibrator.fit(kind, p, target, weight), held_out, compared


def _losses(scores: Scores, forward: Array, rows: Array) -> Array:
    return losses(forward[rows], scores.data.target[rows], scores.data.weight[rows])


def _of(entities: Array | None, rows: Array) -> Array | None:
    return None if entities is None else entities[rows]


def _masked(fold: Array, rows: Array) -> Array:
    """The folds of these rows, -1 for all others."""
    out = np.full_like(fold, -1)
    out[rows] = fold[rows]
    return out
