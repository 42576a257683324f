"""Models that count: items (popularity), and pairs of items in one history (co-visitation, cosine)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.plugin import UNKNOWN, Array, Artefact, FeatureBatch, PluginError, Progress, TrainingData
from zoo_neighbours.histories import Histories, faded, of_items
from zoo_neighbours.stored import about, array

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from zoo_neighbours.params import CovisitParams, ItemKNNParams, PopularityParams, RepeatParams

FIRST = UNKNOWN + 1
PAIRS = 1 << 23
"""Pairs of items that are looked at together: half a GB. Where users have thousands of items each, all pairs would be tens of GB."""


@dataclass(frozen=True)
class FittedPopularity:
    """counts: float64 (size,), decayed to the newest event of training. own, half_life, event_weights: the parameters."""

    counts: Array
    own: float
    half_life: float | None
    event_weights: dict[str, float]

    @staticmethod
    def fit(data: TrainingData, params: PopularityParams) -> FittedPopularity:
        histories = Histories.training(data, params.event_weights)
        weight = histories.weight
        if params.half_life is not None and len(weight):
            time = histories.days("half_life")
            weight = weight * 0.5 ** ((time.max() - time) / params.half_life)
        counts = np.bincount(histories.items, weight, minlength=histories.size)
        return FittedPopularity(counts, params.own, params.half_life, dict(params.event_weights))

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        scores = np.repeat(self.counts[None].astype(np.float32), len(batch), axis=0)
        if self.own:
            histories = Histories.of(batch, self.event_weights)
            weight = histories.aged(batch.as_of, self.half_life)
            known = histories.items < len(self.counts)
            np.add.at(scores, (histories.row[known], histories.items[known]), (self.own * weight[known]).astype(np.float32))
        return of_items(scores, batch, items)

    def predict(self, batch: FeatureBatch) -> Array:
        return self.score_items(batch)

    def save(self) -> Artefact:
        about = {"own": self.own, "half_life": self.half_life, "event_weights": self.event_weights}
        return Artefact({"counts": self.counts}, {"popularity.json": json.dumps(about)})

    @staticmethod
    def load(artefact: Artefact) -> FittedPopularity:
        """What ``save`` wrote. Raises PluginError for other arrays."""
        counts = array(artefact, "counts", "f", 1)
        return FittedPopularity(counts, **about(artefact, "popularity.json"))


@dataclass(frozen=True)
class FittedRepeat:
    """What a row's own events say of their items, and behind those the share of training's events that every item has.

    share: float64 (size,). frequency: float64 (size,), the share of training's users that have the item, half a user added. half_life,
    rarity, event_weights: the parameters.
    """

    share: Array
    frequency: Array
    half_life: float | None
    rarity: float
    event_weights: dict[str, float]

    @staticmethod
    def fit(data: TrainingData, params: RepeatParams) -> FittedRepeat:
        histories = Histories.training(data, params.event_weights)
        if params.half_life is not None:
            histories.days("half_life")
        counts = histories.counts()
        users = np.unique(histories.row * histories.size + histories.items) % histories.size
        frequency = (np.bincount(users, minlength=histories.size) + 0.5) / (histories.rows + 1.0)
        share = counts / max(float(counts.sum()), 1e-300)
        return FittedRepeat(share, frequency, params.half_life, params.rarity, dict(params.event_weights))

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        histories = Histories.of(batch, self.event_weights)
        weight, known = histories.aged(batch.as_of, self.half_life), histories.items < len(self.share)
        row, own = histories.row[known], histories.items[known]
        scores = np.repeat(self.share[None].astype(np.float32), len(batch), axis=0)
        np.add.at(scores, (row, own), (weight[known] * (-np.log(self.frequency[own])) ** self.rarity).astype(np.float32))
        return of_items(scores, batch, items)

    def predict(self, batch: FeatureBatch) -> Array:
        return self.score_items(batch)

    def save(self) -> Artefact:
        about = {"half_life": self.half_life, "rarity": self.rarity, "event_weights": self.event_weights}
        return Artefact({"share": self.share, "frequency": self.frequency}, {"repeat.json": json.dumps(about)})

    @staticmethod
    def load(artefact: Artefact) -> FittedRepeat:
        """What ``save`` wrote. Raises PluginError for other arrays."""
        share, frequency = array(artefact, "share", "f", 1), array(artefact, "frequency", "f", 1)
        if len(share) != len(frequency) or not ((frequency > 0) & (frequency < 1)).all():
            raise PluginError(
                f"{len(share)} shares and {len(frequency)} frequencies, not all of them between 0 and 1, are no counts of one catalogue; "
                "restore the artefact, or train again"
            )
        return FittedRepeat(share, frequency, **about(artefact, "repeat.json"))


@dataclass(frozen=True)
class FittedSimilar:
    """Each event of a row votes for what is similar to its item.

    similar: sparse float32 (size, size), row i: what item i speaks for. length: newest events that vote, 0 for all. fade, power: how the
    vote of older ones falls, by half every ``fade`` events (None: not so) and as r ** -power.
    """

    similar: csr_array
    length: int
    fade: float | None
    power: float
    event_weights: dict[str, float]

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        histories = Histories.of(batch, self.event_weights)
        back = histories.back
        weight = histories.weight * faded(back, self.fade) * back.astype(np.float64) ** -self.power
        if self.length:
            weight[back > self.length] = 0.0
        votes = histories.votes(weight)[:, : self.similar.shape[0]]
        scores = self._of_one(votes) if len(batch) == 1 else (votes @ self.similar).toarray()
        return of_items(scores, batch, items)

    def _of_one(self, votes: csr_array) -> Array:
        """float32 (1, size): ``votes @ similar`` of one row, to the bit; a product of sparse matrices takes several times as long."""
        return np.asarray((self.similar[votes.indices].T @ votes.data)[None])

    def predict(self, batch: FeatureBatch) -> Array:
        return self.score_items(batch)

    def save(self) -> Artefact:
        about = {"length": self.length, "fade": self.fade, "power": self.power, "event_weights": self.event_weights}
        matrix = self.similar
        arrays = {
            "data": matrix.data,
            "indices": matrix.indices.astype(np.int32),
            "indptr": matrix.indptr.astype(np.int64),
        }
        return Artefact(arrays, {"similar.json": json.dumps(about)})

    @staticmethod
    def load(artefact: Artefact) -> FittedSimilar:
        """What ``save`` wrote. Raises PluginError for indices outside the matrix: scipy follows them without a look."""
        data, indices, indptr = (
            array(artefact, "data", "f", 1),
            array(artefact, "indices", "i", 1),
            array(artefact, "indptr", "i", 1),
        )
        size = len(indptr) - 1
        rising = size >= 0 and indptr[0] == 0 and indptr[-1] == len(indices) == len(data) and (np.diff(indptr) >= 0).all()
        if not rising or indices.min(initial=0) < 0 or indices.max(initial=-1) >= size:
            raise PluginError(
                f"similar items are no matrix of {size} rows and columns with {len(data)} entries: a start of a row or an index lies "
                "outside; restore the artefact, or train again"
            )
        return FittedSimilar(_csr(data, indices, indptr), **about(artefact, "similar.json"))


def covisit(data: TrainingData, params: CovisitParams, progress: Progress) -> FittedSimilar:
    """Row i, column j: how often j came after i (or, for less, before), nearer events counting more, over j's popularity."""
    from scipy.sparse import coo_array, csr_array

    histories = Histories.training(data, params.event_weights)
    size, items = histories.size, histories.items
    total = csr_array((size, size), dtype=np.float64)
    for lag, older, newer in histories.pairs(params.window):
        apart = np.full(len(older), lag**-params.lag_power)
        if params.half_life is not None:
            time = histories.days("half_life")
            apart *= 0.5 ** ((time[newer] - time[older]) / params.half_life)
        weights = [apart * histories.weight[newer], params.backward * apart * histories.weight[older]]
        sources, followers = (items[older], items[newer]), (items[newer], items[older])
        for weight, source, follower in zip(weights, sources, followers, strict=True):
            if weight.any():
                total = total + coo_array((weight, (source, follower)), shape=(size, size)).tocsr()
        progress(0.9 * lag / params.window, f"pairs {lag} apart")
    popular = np.maximum(histories.counts(), 1.0) ** -params.normalise
    total.data *= popular[total.indices]
    return FittedSimilar(
        strongest(total, params.neighbours), params.length, None, params.recency_power, dict(params.event_weights)
    )


def itemknn(data: TrainingData, params: ItemKNNParams, progress: Progress) -> FittedSimilar:
    """Cosine between the users of two items, each user counted once; an item is not its own neighbour."""
    from scipy.sparse import vstack

    histories = Histories.training(data, params.event_weights)
    users = histories.votes(histories.weight)
    users.data[:] = 1.0
    holders, counts = users.T.tocsr(), np.asarray(users.sum(axis=0), np.float64)
    pairs = np.asarray(holders @ np.diff(users.indptr))  # at most as many of each item as its users have items
    parts = []
    for begin, end in _blocks(pairs):
        together = (holders[begin:end] @ users).tocoo()
        row, column = together.coords
        cosine = together.data / (np.sqrt(counts[begin + row] * counts[column]) + params.shrink)
        cosine[begin + row == column] = 0.0
        together.data = cosine
        near = together.tocsr()
        near.eliminate_zeros()
        parts.append(strongest(near, params.neighbours))
        progress(0.9 * end / histories.size, f"items {end} of {histories.size}")
    return FittedSimilar(vstack(parts, format="csr"), 0, params.fade, 0.0, dict(params.event_weights))


def _blocks(pairs: Array) -> Iterator[tuple[int, int]]:
    """Ranges of items, in order, whose pairs (float64 (n,), of each item) are about as many as memory takes at once."""
    edges = np.flatnonzero(np.diff(pairs.cumsum() // PAIRS)) + 1
    return pairwise([0, *edges.tolist(), len(pairs)])


def strongest(matrix: csr_array, count: int) -> csr_array:
    """float32: the ``count`` largest entries of each row (0: all), equal ones by column."""
    matrix.sort_indices()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    kept = np.arange(len(matrix.data))
    if count:
        order = np.lexsort((matrix.indices, -matrix.data, row))
        place = np.arange(len(order)) - matrix.indptr[row]  # rows are in order, so the p-th of a row is p behind its start
        kept = np.sort(order[place < count])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=matrix.shape[0]))])
    return _csr(matrix.data[kept].astype(np.float32), matrix.indices[kept], indptr, matrix.shape[1])


def _csr(data: Array, indices: Array, indptr: Array, width: int | None = None) -> Any:
    from scipy.sparse import csr_array

    return csr_array((data, indices, indptr), shape=(len(indptr) - 1, width or len(indptr) - 1))
