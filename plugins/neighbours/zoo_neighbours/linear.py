"""Linear item-to-item models in closed form: the Gram matrix of items is solved once, dense, over the most frequent items."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.plugin import UNKNOWN, Array, Artefact, FeatureBatch, PluginError, Progress, TrainingData
from zoo_neighbours.histories import UNSEEN, Histories, faded, of_items
from zoo_neighbours.stored import about, array

if TYPE_CHECKING:
    from zoo_neighbours.params import EaseParams, SlitParams

FIRST = UNKNOWN + 1


@dataclass(frozen=True)
class FittedLinear:
    """Scores are a row's votes times ``weights``.

    weights: float32 (k, k), row: the item that votes. kept: int32 (k,), the codes modelled, rising. size: codes of training's catalogue.
    window: newest events that vote, 0 for all. fade: events after which one votes half, None for all alike. binary: an item votes
    once however often it occurs, else each of its events does.
    """

    weights: Array
    kept: Array
    size: int
    window: int
    fade: float | None
    binary: bool
    event_weights: dict[str, float]

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        histories = Histories.of(batch, self.event_weights)
        back = histories.back
        weight = histories.weight * faded(back, self.fade)
        if self.window:
            weight[back > self.window] = 0.0
        if self.binary:
            weight[~newest_of_item(histories)] = 0.0
        votes = histories.votes(weight)[:, self.kept]
        scores = np.full((len(batch), self.size), UNSEEN)
        scores[:, self.kept] = votes @ self.weights
        return of_items(scores, batch, items)

    def predict(self, batch: FeatureBatch) -> Array:
        return self.score_items(batch)

    def save(self) -> Artefact:
        about = {name: getattr(self, name) for name in ("size", "window", "fade", "binary", "event_weights")}
        return Artefact({"weights": self.weights, "kept": self.kept}, {"linear.json": json.dumps(about)})

    @staticmethod
    def load(artefact: Artefact) -> FittedLinear:
        """What ``save`` wrote. Raises PluginError for codes outside the catalogue, and weights that are not theirs."""
        weights, kept, found = array(artefact, "weights", "f", 2), array(artefact, "kept", "i", 1), about(artefact, "linear.json")
        inside = kept.min(initial=0) >= 0 and kept.max(initial=-1) < found["size"] and (np.diff(kept) > 0).all()
        if weights.shape != (len(kept), len(kept)) or not inside:
            raise PluginError(
                f"weights are {list(weights.shape)} for {len(kept)} codes of a catalogue of {found['size']}, or a code lies outside; "
                "restore the artefact, or train again"
            )
        return FittedLinear(weights, kept, **found)


def newest_of_item(histories: Histories) -> Array:
    """bool (m,): whether an event is the newest of its item in its row."""
    order = np.lexsort((np.arange(len(histories.row)), histories.items, histories.row))
    row, items = histories.row[order], histories.items[order]
    last = np.ones(len(order), bool)
    last[:-1] = (row[1:] != row[:-1]) | (items[1:] != items[:-1])
    out = np.zeros(len(order), bool)
    out[order[last]] = True
    return out


def most_frequent(histories: Histories, count: int) -> Array:
    """int32: at most ``count`` codes with the largest sums of weights, equal ones by code; those that occur, rising."""
    counts = histories.counts()
    order = np.argsort(-counts, kind="stable")[:count]
    return np.sort(order[counts[order] > 0]).astype(np.int32)


def ease(data: TrainingData, params: EaseParams, progress: Progress) -> FittedLinear:
    """Steck (2019): ``B = I - P diag(P)^-1`` with ``P = (X'X + regularisation I)^-1``, X users by items, ones."""
    histories = Histories.training(data, params.event_weights)
    kept = most_frequent(histories, params.max_items)
    users = histories.votes(histories.weight * newest_of_item(histories))[:, kept]
    users.eliminate_zeros()
    gram = (users.T @ users).toarray().astype(np.float64)
    progress(0.3, f"pairs of {len(kept)} items" + (" (the most frequent)" if len(kept) == params.max_items else ""))
    inverse = _inverse(gram, params.regularisation)
    weights = inverse / -np.diag(inverse)[None, :]
    np.fill_diagonal(weights, 0.0)
    return _fitted(weights, kept, histories.size, 0, params.fade, True, params)


def slit(data: TrainingData, params: SlitParams, progress: Progress) -> FittedLinear:
    """Ridge regression of every event's item on the faded items of the ``window`` events before it: ``B = (S'S + r I)^-1 S'T``.

    S'S and S'T are sums over pairs of events of one history by their lag, so S (events by items) is never made.
    """
    histories = Histories.training(data, params.event_weights)
    kept = most_frequent(histories, params.max_items)
    place = np.full(histories.size, -1, np.int64)
    place[kept] = np.arange(len(kept))
    known = np.flatnonzero(place[histories.items] >= 0)
    items, weight, k = place[histories.items], histories.weight, len(kept)
    window = min(params.window, int(histories.back.max(initial=1)))  # no event has more before it
    fade = faded(np.arange(1, window + 1), params.fade)
    after = histories.back - 1  # events that follow in the row: this one is in the window of as many, at most
    gram, cross = np.zeros((k, k)), np.zeros((k, k))
    squares = np.concatenate([[0.0], np.cumsum(fade**2)])[np.minimum(after, window)] * weight**2
    single = np.bincount(items[known], squares[known], minlength=k)
    for lag, older, newer in histories.pairs(window):
        both = (items[older] >= 0) & (items[newer] >= 0)
        older, newer = older[both], newer[both]
        key = items[older] * k + items[newer]
        cross += np.bincount(key, fade[lag - 1] * weight[older], minlength=k * k).reshape(k, k)
        if lag < window:
            products = np.concatenate([[0.0], np.cumsum(fade[:-lag] * fade[lag:])])
            together = products[np.minimum(after[newer], window - lag)] * weight[older] * weight[newer]
            gram += np.bincount(key, together, minlength=k * k).reshape(k, k)
        progress(0.5 * lag / window, f"pairs {lag} apart")
    gram += gram.T
    gram[np.arange(k), np.arange(k)] += single
    weights = _inverse(gram, params.regularisation) @ cross
    return _fitted(weights, kept, histories.size, params.window, params.fade, False, params)


def _fitted(weights: Array, kept: Array, size: int, window: int, fade: float | None, binary: bool, params: Any) -> FittedLinear:
    return FittedLinear(np.ascontiguousarray(weights, np.float32), kept, size, window, fade, binary, dict(params.event_weights))


def _inverse(gram: Array, regularisation: float) -> Array:
    """float64 (k, k): of the Gram matrix plus the penalty on its diagonal, by Cholesky factors; the Gram matrix is overwritten."""
    from scipy.linalg import lapack

    if not len(gram):
        return gram
    gram[np.arange(len(gram)), np.arange(len(gram))] += regularisation
    factor, failed = lapack.dpotrf(gram.T, lower=1, overwrite_a=1)
    if failed:  # positive definite but for rounding: a Gram matrix and a positive penalty
        raise PluginError(
            f"regularisation = {regularisation:g} is too small for items that always come together; expected more, 1 for instance"
        )
    inverse, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
    assert not failed
    lower = np.tril(inverse)
    out: Array = lower + np.tril(lower, -1).T
    return out
