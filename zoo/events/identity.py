"""Which explicit event ids a log already holds, as 128-bit fingerprints in memory."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from zoo.contract import Array

# Fingerprints that wait in a set until they are worth sorting into the large array.
RECENT = 50_000


def fingerprints(ids: Iterable[str]) -> list[bytes]:
    """BLAKE2b of 128 bits an id, as NumPy's S16 holds it: two ids sharing one is less likely than the disk lying."""
    return [blake2b(text.encode(), digest_size=16).digest().rstrip(b"\0") for text in ids]


class EventIds:
    """A growing set of event ids; ``seq`` is the last sequence number that it has read."""

    def __init__(self) -> None:
        self.seq = -1
        self._sorted: list[Array] = []  # arrays of falling size, so that adding sorts each id a few times only
        self._recent: set[bytes] = set()

    def copy(self) -> EventIds:
        """A set that may grow on its own; the large arrays are shared."""
        other = EventIds()
        other.seq, other._sorted, other._recent = self.seq, list(self._sorted), set(self._recent)
        return other

    def add(self, ids: pa.Array | list[str]) -> Array:
        """Add ids (no nulls) and return bool (n,): which were there before, or earlier in the same array."""
        prints = fingerprints(ids if isinstance(ids, list) else ids.to_pylist())
        old = np.zeros(len(prints), bool)
        if self._sorted:
            keys = np.array(prints, "S16")
            for held in self._sorted:
                at = np.minimum(np.searchsorted(held, keys), len(held) - 1)
                old |= held[at] == keys
        known = []
        for key, there in zip(prints, old.tolist()):
            known.append(there or key in self._recent)
            if not there:
                self._recent.add(key)
        if len(self._recent) > RECENT:
            self._settle()
        return np.array(known, bool)

    def _settle(self) -> None:
        # no id is in two of them, so to merge is enough, which a stable sort does of two sorted runs
        arrays = [*self._sorted, np.sort(np.array(list(self._recent), "S16"))]
        while len(arrays) > 1 and len(arrays[-2]) < 2 * len(arrays[-1]):
            arrays[-2:] = [np.sort(np.concatenate(arrays[-2:]), kind="stable")]
        self._sorted, self._recent = arrays, set()
