"""Histories of a batch as flat arrays of codes, and the windows that are trained on. Knows numpy and the contract, not torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zoo.plugin import PADDING, UNKNOWN, Array, FeatureBatch, PluginError

GAPS = 34
"""Buckets of time gaps: none, then powers of two of a second up to more than a century."""


@dataclass(frozen=True)
class Sequences:
    """Rows of events, flat, oldest first; each row begins with a start (PADDING in every array), so that none is empty.

    items, types, gaps: int32 (m,). offsets: int64 (n + 1,). targeted: bool (n,), whether a row's last event is its target.
    """

    items: Array
    types: Array
    gaps: Array
    offsets: Array
    targeted: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        return np.diff(self.offsets)

    @staticmethod
    def of(batch: FeatureBatch, target: Array | None = None) -> Sequences:
        """The batch's column ``items``, with ``event_types`` and ``gaps`` where it has them; a row's target, above PADDING, after it.

        Raises PluginError where there is no sequence ``items``.
        """
        if "items" not in batch or not batch.stored("items")[1].is_sequence:
            raise PluginError(
                "a next-item network reads the items of a history from a sequence column 'items', which this batch lacks; "
                f"it has: {', '.join(batch.names) or '(none)'}"
            )
        column = batch.column("items")
        rows, size = len(batch), column.lengths
        targeted = np.zeros(rows, bool) if target is None else target > PADDING
        offsets = np.concatenate([[0], np.cumsum(1 + size + targeted)])
        within = np.arange(len(column.values)) - np.repeat(np.cumsum(size) - size, size)
        places = np.repeat(offsets[:-1] + 1, size) + within

        def laid(values: Array) -> Array:
            out = np.zeros(offsets[-1], np.int32)
            out[places] = values
            return out

        def aligned(name: str) -> Array | None:
            if name not in batch:
                return None
            other = batch.column(name)
            return other.values if np.array_equal(other.lengths, size) else None

        items, types, gaps = laid(column.values), aligned("event_types"), aligned("gaps")
        if target is not None:
            items[offsets[1:][targeted] - 1] = target[targeted].astype(np.int32)
        none = np.zeros(offsets[-1], np.int32)
        return Sequences(
            items, none if types is None else laid(types), none if gaps is None else laid(buckets(gaps)), offsets, targeted
        )

    def newest(self, length: int) -> tuple[Array, Array]:
        """(first, size) int64 (n,): the last ``length`` events of every row."""
        size = np.minimum(self.lengths, length)
        return self.offsets[1:] - size, size

    def windows(self, length: int, held_out: Array, order: np.random.Generator) -> tuple[Array, Array]:
        """(first, size) int64 (w,): windows of at most ``length + 1`` events, which overlap by one, so that every event is a target once.

        A long row is cut at places that ``order`` draws. held_out: bool (n,), rows whose last event is not learnt from.
        """
        size = self.lengths - held_out
        # the first window takes 1..length events more than its start, the others length each
        phase = np.where(size > length + 1, order.integers(1, length + 1, len(size)), length)
        count = 1 + np.maximum(0, -(-(size - 1 - phase) // length))
        row = np.repeat(np.arange(len(size)), count)
        number = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        begin = np.where(number > 0, phase[row] + (number - 1) * length, 0)
        end = np.minimum(phase[row] + number * length, size[row] - 1)
        kept = end > begin
        return (self.offsets[row] + begin)[kept], (end - begin + 1)[kept]

    def weights(self, by_type: Mapping[str, float], names: list[str], count: Array, power: float) -> Array:
        """float32 (m,): what an event counts as a target; 0 for UNKNOWN and starts. count: float64 by item code."""
        out = (self.items > UNKNOWN).astype(np.float32)
        if by_type:
            absent = [name for name in by_type if name not in names]
            if absent:
                raise PluginError(f"event_weights names {absent[0]!r}; the event types are: {', '.join(names) or '(none)'}")
            wanted = np.array([1.0] * (UNKNOWN + 1) + [by_type.get(name, 1.0) for name in names[UNKNOWN + 1 :]], np.float32)
            wanted[PADDING] = max(by_type.values())  # a target is of the types asked for, whichever they are
            out *= wanted[self.types]
        if power:
            rarity = np.maximum(count, 1.0) ** -power
            out *= rarity[self.items].astype(np.float32)
        mean = out[out > 0].mean() if (out > 0).any() else 1.0
        return np.asarray(out / mean, np.float32)


def buckets(seconds: Array) -> Array:
    """int32: 1 for gaps below a second or unknown, one more for every doubling."""
    finite = np.nan_to_num(np.asarray(seconds, np.float64), nan=0.0, posinf=1e12)
    doublings: Array = np.log2(1 + np.maximum(finite, 0.0)).astype(np.int32)
    bucket: Array = np.minimum(1 + doublings, GAPS - 1)
    return bucket
