"""A batch as sequences of items, each followed by the row's target where there is one, with what every event counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.plugin import UNKNOWN, Array, FeatureBatch, PluginError, TrainingData

if TYPE_CHECKING:
    from scipy.sparse import csr_array

DAY = 86_400.0
UNSEEN = np.float32(-1e30)
"""The score of an item that a model knows nothing of: below any other, and finite."""


@dataclass(frozen=True)
class Histories:
    """Items of n rows, oldest first: known ones only, so that what lies side by side in an array does so in a row.

    items: int64 (m,) codes from 2 on. row: int64 (m,), rising. weight: float64 (m,), what each event counts.
    time: float64 (m,) days, None where the log has no times. size: codes of the catalogue. rows: n.
    """

    items: Array
    row: Array
    weight: Array
    time: Array | None
    size: int
    rows: int

    @staticmethod
    def of(batch: FeatureBatch, event_weights: Mapping[str, float], target: Array | None = None) -> Histories:
        """The batch's column ``items``, each row's ``target`` (codes (n,)) after it. Raises PluginError where there is no such column."""
        if "items" not in batch or not batch.stored("items")[1].is_sequence:
            raise PluginError(
                f"neighbours read the items of a history from a sequence column 'items', which this batch lacks; "
                f"it has: {', '.join(batch.names) or '(none)'}"
            )
        column = batch.column("items")
        row = np.repeat(np.arange(len(batch)), column.lengths)
        items, weight = column.values.astype(np.int64), np.ones(len(column.values))
        if event_weights:
            weight = _of_types(batch, event_weights)[batch.column("event_types").values]
        time = None
        if "ages" in batch:
            time = batch.as_of[row] / (DAY * 1e6) - batch.column("ages").values / DAY
        if target is not None:
            items, row = np.concatenate([items, target.astype(np.int64)]), np.concatenate([row, np.arange(len(batch))])
            weight = np.concatenate([weight, np.full(len(batch), max(event_weights.values(), default=1.0))])
            time = None if time is None else np.concatenate([time, batch.as_of / (DAY * 1e6)])
        size = batch.catalogue.size("item_id")
        order = np.argsort(row, kind="stable")
        kept = order[(items[order] > UNKNOWN) & (items[order] < size)]
        return Histories(items[kept], row[kept], weight[kept], None if time is None else time[kept], size, len(batch))

    @staticmethod
    def training(data: TrainingData, event_weights: Mapping[str, float]) -> Histories:
        """Histories with their targets; one row a user, as a ranking's training rows are."""
        return Histories.of(data.batch, event_weights, data.target)

    @property
    def back(self) -> Array:
        """int64 (m,): 1 for a row's newest event, 2 for the one before, ..."""
        ends: Array = np.searchsorted(self.row, self.row, side="right")
        return ends - np.arange(len(self.row))

    def counts(self) -> Array:
        """float64 (size,): the sum of weights by item."""
        return np.bincount(self.items, self.weight, minlength=self.size)

    def pairs(self, window: int) -> Iterator[tuple[int, Array, Array]]:
        """(lag, positions of the older events, of those ``lag`` events later in the same row), for lags 1 to ``window``."""
        for lag in range(1, window + 1):
            older = np.flatnonzero(self.row[lag:] == self.row[:-lag])
            if not len(older):
                return
            yield lag, older, older + lag

    def votes(self, weight: Array) -> csr_array:
        """Sparse float32 (rows, size): the sum of weights (m,) by row and item."""
        from scipy.sparse import coo_array

        return coo_array((weight.astype(np.float32), (self.row, self.items)), shape=(self.rows, self.size)).tocsr()

    def aged(self, as_of: Array, half_life: float | None) -> Array:
        """float64 (m,): what each event counts at its row's own instant (microseconds, (n,)), half as much every ``half_life`` days.

        The row's newest event may be long ago. None: as it is. Raises PluginError where there are no times.
        """
        if half_life is None:
            return self.weight
        age = as_of[self.row] / (DAY * 1e6) - self.days("half_life")
        return self.weight * 0.5 ** (age / half_life)

    def days(self, what: str) -> Array:
        """``time``. Raises PluginError naming the parameter that needs it."""
        if self.time is None:
            raise PluginError(
                f"{what} counts days, and this batch has no column 'ages'; leave {what} out, or add ages to the service"
            )
        return self.time


def faded(back: Array, half: float | None) -> Array:
    """float64: 1 for the newest event (back 1), half of it ``half`` events earlier; ones where half is None."""
    return np.ones(len(back)) if half is None else 0.5 ** ((back - 1) / half)


def of_items(scores: Array, batch: FeatureBatch, items: Array | None) -> Array:
    """float32 (n, codes) for the batch's catalogue, or for the items asked for, of scores (n, size) for the codes that training knew."""
    missing = batch.catalogue.size("item_id") - scores.shape[1]
    if missing > 0:
        scores = np.hstack([scores, np.full((len(scores), missing), UNSEEN)])
    chosen: Array = scores if items is None else scores[:, items]
    return np.ascontiguousarray(chosen, np.float32)


def _of_types(batch: FeatureBatch, weights: Mapping[str, float]) -> Array:
    """float64: by event type code."""
    names: list[Any] = batch.catalogue.names["event_type"].tolist() if "event_types" in batch else []
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise PluginError(
            f"event_weights names {unknown[0]!r}; the event types of this batch are: "
            f"{', '.join(map(str, names[UNKNOWN + 1 :])) or '(none)'}"
        )
    return np.array([weights.get(name, 1.0) for name in names])
