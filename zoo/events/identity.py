"""Which explicit event ids a log already holds, as 128-bit fingerprints in memory."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from zoo.contract import Array

# Fingerprints that wait in a set until they are worth sorting into the large array.
RECENT = 50_000


def fingerprints(ids: pa.Array) -> Array:
    """BLAKE2b of 128 bits an id, S16 (n,): two ids sharing one is less likely than the disk lying."""
    return np.array([blake2b(text.encode(), digest_size=16).digest() for text in ids.to_pylist()], "S16")


class EventIds:
    """A growing set of event ids; ``seq`` is the last sequence number that it has read."""

    def __init__(self) -> None:
        self.seq = -1
        self._sorted: Array = np.empty(0, "S16")
        self._recent: set[Any] = set()

    def copy(self) -> EventIds:
        """A set that may grow on its own; the large array is shared."""
        other = EventIds()
        other.seq, other._sorted, other._recent = self.seq, self._sorted, set(self._recent)
        return other

    def add(self, ids: pa.Array) -> Array:
        """Add ids (no nulls) and return bool (n,): which were there before, or earlier in the same array."""
        prints = fingerprints(ids)
        known = np.zeros(len(prints), bool)
        if len(self._sorted):
            at = np.minimum(np.searchsorted(self._sorted, prints), len(self._sorted) - 1)
            known = self._sorted[at] == prints
        _, first = np.unique(prints, return_index=True)
        repeated = np.ones(len(prints), bool)
        repeated[first] = False
        known |= repeated
        keys = prints.tolist()
        if self._recent:
            known |= np.fromiter((key in self._recent for key in keys), bool, len(keys))
        self._recent.update(key for key, old in zip(keys, known) if not old)
        if len(self._recent) > RECENT:
            self._sorted = np.sort(np.concatenate([self._sorted, np.array(list(self._recent), "S16")]), kind="stable")
            self._recent = set()
        return known
