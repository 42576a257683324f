"""How good rankings of a catalogue are: the target's place among all items, never among a sample, and what follows from it.

Sampled metrics can order models differently from full ones (Krichene and Rendle, 2020), so there are none. Ties count against the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from zoo.errors import PluginError, UsageError, choices
from zoo.evaluation.bootstrap import Estimate, estimates_of_means
from zoo.plugin import PADDING, UNKNOWN, Array, Column, FeatureBatch

CUTOFFS = (1, 5, 10, 20)
CELLS = 4_000_000
"""Scores held at once: 16 MB, and a few times that while they are ranked."""
FIRST = UNKNOWN + 1
"""The first code that is an item."""

Scorer = Callable[[FeatureBatch], Array]
"""``score_items`` of a model, over a batch in the model's codes: float32 (n, m)."""


@dataclass(frozen=True)
class Ranking:
    """Where each row's target stands, and what stands first.

    rank: int32 (n,), 1 the best, 0 where the target cannot be recommended: training did not see it, it is filtered as seen, or it is
        not among the items asked for. Items with the target's very score stand before it.
    top: int32 (n, depth), item codes, best first, equal scores by code; 0 beyond the last item that may be recommended.
    items: int, how many items may be recommended at all.
    """

    rank: Array
    top: Array
    items: int

    def __len__(self) -> int:
        return len(self.rank)


def rank(
    score: Scorer,
    batch: FeatureBatch,
    target: Array,
    *,
    seen: Column | None = None,
    among: Array | None = None,
    depth: int = max(CUTOFFS),
) -> Ranking:
    """Rank the whole catalogue for every row, a few rows at a time.

    batch, target (n,), seen and among are in the model's codes. seen: by row, item codes that are not recommended again (a target
    among them is lost). among: int32, the items that may be recommended (default: all). Raises PluginError for scores of another
    shape or that are not finite.
    """
    size = batch.catalogue.size("item_id")
    allowed = np.zeros(size, bool)
    allowed[FIRST:] = True
    if among is not None:
        allowed &= np.isin(np.arange(size), among)
    target = np.asarray(target)
    parts = []
    step = max(1, CELLS // size)
    for begin in range(0, len(batch), step):
        rows = np.arange(begin, min(begin + step, len(batch)))
        scores = score(batch.take(rows).compact())
        if scores.shape != (len(rows), size) or not np.isfinite(scores).all():
            raise PluginError(
                f"scores of shape {scores.shape} for {len(rows)} rows and {size} codes, {(~np.isfinite(scores)).sum()} of them not "
                f"finite; expected {(len(rows), size)} numbers"
            )
        kept = np.where(allowed, scores, -np.inf)
        if seen is not None:
            past = seen.take(rows)
            kept[np.repeat(np.arange(len(rows)), past.lengths), past.values] = -np.inf
        parts.append(placed(kept, target[rows], int(allowed.sum()), depth))
    return joined(parts, int(allowed.sum()), depth)


def placed(scores: Array, target: Array, items: int, depth: int = max(CUTOFFS)) -> Ranking:
    """The ranking of rows whose scores (n, codes) are -inf where an item may not be recommended."""
    return Ranking(_ranks(scores, target.astype(np.int64)).astype(np.int32), best(scores, depth), items)


def joined(parts: Sequence[Ranking], items: int, depth: int = max(CUTOFFS)) -> Ranking:
    """Rankings of one catalogue, one after the other."""
    ranks = [np.zeros(0, np.int32), *(part.rank for part in parts)]
    return Ranking(np.concatenate(ranks), np.concatenate([np.zeros((0, depth), np.int32), *(part.top for part in parts)]), items)


def _ranks(scores: Array, target: Array) -> Array:
    known = (target >= FIRST) & (target < scores.shape[1])
    own = scores[np.arange(len(scores)), np.where(known, target, 0)]
    ahead = (scores >= own[:, None]).sum(axis=1)  # the target itself is one of them: its rank
    return np.where(known & (own > -np.inf), ahead, 0)


def best(scores: Array, depth: int, rising: Array | None = None) -> Array:
    """int32 (n, depth): columns of the largest scores, best first, equal ones by column; 0 where a score is -inf or there is none.

    rising: the scores (n, m) in each row's order, where the caller has them.
    """
    if rising is None:
        some = np.flatnonzero((scores > -np.inf).any(axis=0))
        if 2 * len(some) < scores.shape[1]:  # equal values are what partition is slow at
            columns, values = _best(scores[:, some], depth, None)
            return np.where(values == -np.inf, PADDING, np.append(some, PADDING)[np.minimum(columns, len(some))]).astype(np.int32)
    columns, values = _best(scores, depth, rising)
    return np.where(values == -np.inf, PADDING, columns).astype(np.int32)


def _best(scores: Array, depth: int, rising: Array | None) -> tuple[Array, Array]:
    """(n, depth) columns and their values, as of ``best``; a value is -inf where there is no such column."""
    n, size = scores.shape
    if size < depth:
        scores, rising = np.hstack([scores, np.full((n, depth - size), -np.inf, scores.dtype)]), None
        size = depth
    least = (np.partition(scores, size - depth, axis=1) if rising is None else rising)[:, size - depth, None]
    if n == 1:  # a list for one user, in a third of the time
        over = np.flatnonzero(scores[0] > least[0])
        columns = np.sort(np.append(over, np.flatnonzero(scores[0] == least[0])[: depth - len(over)]))
        order = np.argsort(-scores[0][columns], kind="stable")
        return columns[None, order], scores[:, columns[order]]
    above, equal = scores > least, scores == least
    spare = depth - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= spare))
    columns = np.nonzero(chosen)[1].reshape(n, depth)
    values = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)


def ndcg(place: Array, k: int = 10) -> Array:
    """float64 (n,): 1 / log2(1 + place) where it is 1 to k, else 0, with one relevant item a row; a place of 0 is none."""
    hit = (place > 0) & (place <= k)
    return np.where(hit, 1 / np.log2(1 + np.maximum(place, 1.0)), 0.0)


def of_rows(ranking: Ranking, cutoffs: Sequence[int] = CUTOFFS, popularity: Array | None = None) -> dict[str, Array]:
    """Metric -> float64 (n,), a value a row: ``hr@k`` (1 where the target is among the first k), ``ndcg@k`` (1 / log2(1 + rank) there,
    with one relevant item), ``mrr@k`` (1 / rank there) and, given how often training saw each code (float (m,)), ``novelty@k``: the
    mean of -log2 of the share of training's events that the first k items have, one event added to each item.
    """
    place = np.where(ranking.rank > 0, ranking.rank, np.inf)
    out: dict[str, Array] = {}
    for k in _cutoffs(cutoffs, ranking):
        hit = place <= k
        out[f"hr@{k}"] = hit.astype(np.float64)
        out[f"ndcg@{k}"] = ndcg(ranking.rank, k)
        out[f"mrr@{k}"] = np.where(hit, 1 / place, 0.0)
    if popularity is not None:
        counts = popularity[FIRST:] + 1.0
        surprise = np.concatenate([np.zeros(FIRST), -np.log2(counts / counts.sum())])
        for k in _cutoffs(cutoffs, ranking):
            first = ranking.top[:, :k]
            out[f"novelty@{k}"] = surprise[first].sum(axis=1) / np.maximum(1, (first > 0).sum(axis=1))
    return out


def coverage(ranking: Ranking, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """``coverage@k``: the share of the items that may be recommended that is among the first k of at least one row."""
    found = {k: np.unique(ranking.top[:, :k]) for k in _cutoffs(cutoffs, ranking)}
    return {f"coverage@{k}": float((codes > 0).sum()) / max(1, ranking.items) for k, codes in found.items()}


def summary(
    ranking: Ranking,
    *,
    users: Array | None = None,
    popularity: Array | None = None,
    rows: Array | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Mean of every metric over the rows (bool (n,), default all) with its 95 % bootstrap interval over users ((n,), default a row each).

    Coverage has no interval: it is no mean. NaN where there is no row.
    """
    chosen = np.arange(len(ranking)) if rows is None else np.flatnonzero(rows)
    part = Ranking(ranking.rank[chosen], ranking.top[chosen], ranking.items)
    values = of_rows(part, cutoffs, popularity)
    out = estimates_of_means(values, None if users is None else users[chosen], resamples, seed)
    return out | {name: Estimate(value, math.nan, math.nan) for name, value in coverage(part, cutoffs).items()}


def slices(lengths: Array, target: Array, popularity: Array) -> dict[str, Array]:
    """Name -> bool (n,), rows of each slice; one may be empty.

    lengths: int (n,), events in each row's history; its quartiles are over the rows that have one. popularity: float (m,), how often
    training saw each code: ``head`` items, the most popular, hold the first third of all training events, ``middle`` and ``tail`` items
    the second and last; ``cold items`` were never seen. Each row belongs to the slice of its target.
    """
    some = lengths > 0
    edges = np.quantile(lengths[some], [0.25, 0.5, 0.75]) if some.any() else np.zeros(3)
    quartile = np.searchsorted(edges, lengths, side="left")
    out = {}
    for q, name in enumerate(("shortest", "second", "third", "longest")):
        out[f"{name} histories"] = some & (quartile == q)
    out["cold users"] = ~some
    third = thirds(popularity)
    target = np.asarray(target).astype(np.int64)
    of_target = np.where((target >= FIRST) & (target < len(popularity)), third[np.minimum(target, len(popularity) - 1)], 3)
    for part, name in enumerate(("head items", "middle items", "tail items", "cold items")):
        out[name] = of_target == part
    return out


def thirds(popularity: Array) -> Array:
    """int64 (m,): 0 for head items, which hold the first third of all events, 1 and 2 for middle and tail, 3 for items without any."""
    order = np.argsort(-popularity[FIRST:], kind="stable") + FIRST
    held = np.cumsum(popularity[order])
    third = np.full(len(popularity), 3)
    third[order] = np.minimum(2, np.floor((held - popularity[order]) * 3 / max(1.0, held[-1] if len(held) else 0)))
    third[popularity <= 0] = 3
    return third


@dataclass(frozen=True)
class Comparison:
    """How much the mean of ``metric`` over users is higher for model ``a`` than for ``b``, with its 95 % interval.

    p_value: two-sided, of the paired t test over users; p_holm: after Holm's correction for all comparisons made together.
    """

    a: str
    b: str
    metric: str
    value: float
    low: float
    high: float
    p_value: float
    p_holm: float


def comparisons(
    rankings: Mapping[str, Ranking],
    *,
    metric: str = "ndcg@10",
    against: str | None = None,
    users: Array | None = None,
    rows: Array | None = None,
) -> list[Comparison]:
    """Every pair of models, or each of the others with ``against``, on the same rows; users and rows as in ``summary``.

    The t test is as good here as randomisation (Smucker, Allan and Carterette, 2007). Holm (1979) holds the chance of any false
    claim at the level of one.
    """
    if against is not None and against not in rankings:
        raise UsageError(choices("model", against, rankings))
    if len({len(ranking) for ranking in rankings.values()}) > 1:
        raise UsageError(
            f"rankings of {', '.join(rankings)} have different numbers of rows; expected the same rows in the same order"
        )
    means = {name: _by_user(ranking, metric, users, rows) for name, ranking in rankings.items()}
    pairs = [(name, against) for name in rankings if name != against] if against is not None else list(combinations(rankings, 2))
    found = [_paired(a, b, metric, means[a] - means[b]) for a, b in pairs]
    corrected = holm(np.array([each.p_value for each in found]))
    return [Comparison(*(c.a, c.b, c.metric, c.value, c.low, c.high, c.p_value), float(p)) for c, p in zip(found, corrected)]


def holm(p_values: Array) -> Array:
    """float64 (n,): p values after Holm's step-down correction; NaN stays and counts as a comparison."""
    order = np.argsort(p_values, kind="stable")
    raised = np.minimum(1.0, p_values[order] * np.arange(len(order), 0, -1))
    out = np.empty(len(order))
    out[order] = np.maximum.accumulate(raised)
    return out


def _by_user(ranking: Ranking, metric: str, users: Array | None, rows: Array | None) -> Array:
    values = of_rows(ranking, [int(metric.partition("@")[2])] if metric.partition("@")[2].isdecimal() else CUTOFFS)
    if metric not in values:
        raise UsageError(choices("metric of a comparison", metric, values))
    chosen = np.arange(len(ranking)) if rows is None else np.flatnonzero(rows)
    of = np.arange(len(chosen)) if users is None else np.unique(users[chosen], return_inverse=True)[1]
    means: Array = np.bincount(of, values[metric][chosen]) / np.bincount(of)
    return means


def _paired(a: str, b: str, metric: str, difference: Array) -> Comparison:
    from scipy.special import stdtr, stdtrit  # 0.1 s that reading a report need not pay

    n, mean = len(difference), float(difference.mean()) if len(difference) else math.nan
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    if error == 0:
        return Comparison(a, b, metric, mean, mean, mean, 1.0 if mean == 0 else 0.0, math.nan)
    half = float(stdtrit(n - 1, 0.975)) * error if n > 1 else math.nan
    p_value = 2 * float(stdtr(n - 1, -abs(mean / error))) if n > 1 else math.nan
    return Comparison(a, b, metric, mean, mean - half, mean + half, p_value, math.nan)


def _cutoffs(cutoffs: Sequence[int], ranking: Ranking) -> Sequence[int]:
    for k in cutoffs:
        if not 1 <= k <= ranking.top.shape[1]:
            raise UsageError(f"a metric at {k} of lists of {ranking.top.shape[1]} items; expected 1 to {ranking.top.shape[1]}")
    return cutoffs
