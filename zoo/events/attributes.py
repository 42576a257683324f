"""Attributes of entities by code: the same at all times, or, where their table says from when each row holds, as they were then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zoo.contract import Array, Block, Column, gather

VALID_FROM = "valid_from"
"""A table with this column may have several rows a key; each holds from that time until the key's next row."""
ALWAYS = np.iinfo(np.int64).min
"""``valid_from`` of a row without one: it holds until the first dated row."""


def looked_up(values: Array, codes: Array) -> Array:
    """``values`` by code; a code given after they were made counts as 0, the row of nothing."""
    found: Array = values[np.where(codes < len(values), codes, 0)]
    return found


@dataclass(frozen=True)
class Validity:
    """When the rows of a table hold, sorted by (code, time).

    offsets: int64 (codes + 1,): rows of code c are offsets[c] to offsets[c + 1]. since: int64 (r,) microseconds UTC.
    """

    offsets: Array
    since: Array

    @classmethod
    def of(cls, codes: Array, since: Array, size: int) -> tuple[Validity, Array]:
        """(validity, int64 (r,) order): ``order`` sorts rows with these codes and times as the validity has them."""
        order = np.lexsort((since, codes))
        offsets = np.concatenate(([0], np.cumsum(np.bincount(codes, minlength=size)))).astype(np.int64)
        return cls(offsets, since[order]), order

    def rows(self, codes: Array, times: Array | None = None) -> Array:
        """int64 (n,): the row that holds for each code at each time (None: its newest); -1 where none does."""
        known = np.where(codes < len(self.offsets) - 1, codes, 0)
        low, high = self.offsets[known].copy(), self.offsets[known + 1].copy()
        begin = low.copy()
        active = np.flatnonzero(low < high) if times is not None else np.zeros(0, np.int64)
        if times is None:
            low = high
        while len(active):
            assert times is not None
            lo, hi = low[active], high[active]
            middle = (lo + hi) >> 1
            begun = self.since[middle] <= times[active]
            low[active], high[active] = np.where(begun, middle + 1, lo), np.where(begun, hi, middle)
            active = active[low[active] < high[active]]
        return np.where(low > begin, low - 1, -1)


class Attribute(NamedTuple):
    """One column of an entity table.

    values: by code; with a validity by its rows, and last the value of nothing (code 0 or NaN). dictionary: of codes, else None.
    offsets: int64, of a column of lists: list i is ``values[offsets[i]:offsets[i + 1]]``, and nothing is an empty one.
    """

    values: Array
    dictionary: str | None
    validity: Validity | None = None
    offsets: Array | None = None

    def newest(self) -> Column:
        """By code."""
        if self.validity is None:
            return Column(self.values, self.offsets, self.dictionary)
        return self._taken(self.validity.rows(np.arange(len(self.validity.offsets) - 1)))

    def at(self, codes: Array, times: Array) -> Column:
        """(n,): of each code as of its time."""
        if self.validity is not None:
            return self._taken(self.validity.rows(codes, times))
        if self.offsets is not None:
            return self._taken(np.where(codes < len(self.offsets) - 1, codes, 0))
        return Column(looked_up(self.values, codes), dictionary=self.dictionary)

    def _taken(self, rows: Array) -> Column:
        """(n,) at these rows, of which -1 is the last."""
        if self.offsets is None:
            return Column(self.values[rows], dictionary=self.dictionary)
        values, offsets = gather(self.values, self.offsets[:-1][rows], np.diff(self.offsets)[rows])
        return Column(values, offsets)


class EntityTable(NamedTuple):
    """key: the key column. attributes: by column. block: each key's newest row, by code, without the columns of lists.

    there: bool, whether a row holds.
    """

    key: str
    attributes: Mapping[str, Attribute]
    block: Block
    there: Attribute
