"""A coarse table of where stretches of time begin in a sorted index, from which a search looks at a few events, not all of an entity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoo.contract import Array

EVENTS = 4
"""Events that a cell holds about."""
_MANY = 128
"""Events to an entity from which on the table spares a search more than looking into it costs."""
_STEP = 1 << 18


@dataclass(frozen=True)
class Cells:
    """Every entity's time from ``first`` on in ``number`` cells of 2 ** ``shift`` microseconds.

    begins: int (entities * number + 1,), the position of the first event of each cell, one entity after another.
    """

    begins: Array
    number: int
    shift: int
    first: int

    @classmethod
    def of(cls, offsets: Array, time: Array) -> Cells | None:
        """Cells of an index (see ``Index``); None where an entity has few events on average."""
        entities, count = len(offsets) - 1, len(time)
        if count < _MANY * entities or not count:
            return None
        first, last = int(time.min()), int(time.max())
        shift = ((last - first) * EVENTS * entities // count).bit_length()
        number = ((last - first) >> shift) + 1
        begins = np.zeros(entities * number + 1, np.int32 if count < 1 << 31 else np.int64)
        edges = np.unique(np.append(offsets.searchsorted(np.arange(0, count, _STEP)), entities)).tolist()
        for one, another in zip([0, *edges[:-1]], edges):  # what is in work stays small beside the table
            cell = (time[offsets[one] : offsets[another]] - first) >> shift
            cell += np.repeat(np.arange(another - one) * number, np.diff(offsets[one : another + 1]))
            begins[one * number + 1 : another * number + 1] = np.bincount(cell, minlength=(another - one) * number)
        np.cumsum(begins, out=begins)
        return cls(begins, number, shift, first)

    def around(self, codes: Array, times: Array) -> tuple[Array, Array]:
        """(the first position that may have a time >= t, or > t, the last one) for entities and times, (n,) each."""
        cell = times - self.first
        cell >>= self.shift
        np.minimum(np.maximum(cell, 0, out=cell), self.number - 1, out=cell)
        cell += codes * self.number
        begin = self.begins.take(cell)
        cell += 1
        return begin, self.begins.take(cell)
