"""An entity kind's events over several indexes: hash partitions on disk, and in memory what newer events changed."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from zoo.contract import Array, Column, gather
from zoo.events.encode import Encoded
from zoo.events.evaluate import Evaluator
from zoo.events.index import Index
from zoo.events.merging import joined, merged
from zoo.events.slices import room, taken

AT_ONCE = 2_000_000
"""Events of entities with newer ones that are put together in memory at a time."""
THREADS = max(1, min(len(os.sched_getaffinity(0)), 8)) if hasattr(os, "sched_getaffinity") else 2
"""That share the rows of one question."""
_MANY = 20_000
"""Rows from which on the order in which an index answers them matters, and threads share them."""
_ROWS = 1 << 16
"""Rows, at most, that one of those threads answers before it takes the next ones."""
BUDGET = max(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4, 1 << 28)
"""Bytes of what is derived from columns (running sums, filtered positions) that is kept for the next call: a quarter of the memory."""


@dataclass(frozen=True)
class Piece:
    """Rows that one index answers. rows: int64 (k,), None for all of them in order; codes: int32 (k,) as that index has them."""

    number: int
    rows: Array | None
    codes: Array


class Overlay:
    """Entities with events that the stored partitions lack, in ranges of about ``AT_ONCE`` events, put together when asked for.

    codes: int32 (k,) sorted by (partition, code). bounds: range r is codes bounds[r] to bounds[r + 1].
    """

    def __init__(self, stored: Sequence[Index], since: Encoded, entity: str) -> None:
        self.stored = stored
        keys, number = since.keys(entity), len(stored)
        some = np.unique(keys[keys > 0])
        self.codes = some[np.argsort(some % number, kind="stable")].astype(np.int32)
        ranks = np.empty(int(some[-1]) + 1 if len(some) else 1, np.int64)
        ranks[self.codes] = np.arange(len(self.codes))
        own = np.where(keys > 0, ranks[keys] + 2, 0)
        self.late = Index.build(own, since.time, since.seq, since.others(entity), len(self.codes) + 2)
        lengths = np.diff(self.late.offsets)[2:].copy()
        for part, rows in _by_partition(self.codes, number):
            low, high = stored[part].bounds(self.codes[rows] // number)
            lengths[rows] += high - low
        total = np.cumsum(lengths)
        cuts = [0]
        while cuts[-1] < len(total):
            before = total[cuts[-1] - 1] if cuts[-1] else 0
            cuts.append(max(int(np.searchsorted(total, before + AT_ONCE, side="right")), cuts[-1] + 1))
        self.bounds = np.array(cuts)

    def index(self, number: int) -> Index:
        """All events of a range's entities; the i-th has code i + 2."""
        start, stop = self.bounds[number : number + 2]
        codes = self.codes[start:stop]
        count = len(self.stored)
        parts = [self.stored[part].events(codes[rows] // count) for part, rows in _by_partition(codes, count)]
        return merged(joined(parts), self.late.events(np.arange(start, stop) + 2))


def _by_partition(codes: Array, partitions: int) -> Iterator[tuple[int, slice]]:
    """(partition, where its codes are) for codes sorted by partition."""
    parts = codes % partitions
    for part in np.unique(parts).tolist():
        yield part, slice(*np.searchsorted(parts, [part, part + 1]).tolist())


class Partitions:
    """The indexes of one entity kind, asked together; threads may share it.

    stored: the partitions of the first events. since: the events after those, None where there are none. base: the stored partitions
    alone, whose evaluators are shared. evaluator: makes one over an index.
    """

    def __init__(
        self,
        stored: Sequence[Index],
        since: Encoded | None,
        entity: str,
        evaluator: Callable[[Index], Evaluator],
        base: Partitions | None = None,
    ) -> None:
        self.stored, self.base, self._make = stored, base, evaluator
        self.overlay = Overlay(stored, since, entity) if since is not None and (since.keys(entity) > 0).any() else None
        self._place: tuple[Array, Array] | None = None
        if self.overlay is not None:
            codes, bounds = self.overlay.codes, self.overlay.bounds
            number = np.full(int(codes.max()) + 1, -1, np.int32)
            local = np.zeros(len(number), np.int32)
            number[codes] = len(stored) + np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
            local[codes] = np.arange(len(codes)) - np.repeat(bounds[:-1], np.diff(bounds)) + 2
            self._place = number, local
        self._evaluators: OrderedDict[int, Evaluator] = OrderedDict()
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self.stored) + (0 if self.overlay is None else len(self.overlay.bounds) - 1)

    @property
    def events(self) -> int:
        """Events that name an entity of this kind."""
        return sum(len(index) for index in self.stored) + (0 if self.overlay is None else len(self.overlay.late))

    def index(self, number: int) -> Index:
        """A stored partition (which lacks newer events), or, beyond those, entities that have newer ones."""
        if number < len(self.stored):
            return self.stored[number]
        assert self.overlay is not None
        return self.overlay.index(number - len(self.stored))

    def route(self, codes: Array, times: Array | None = None) -> list[Piece]:
        """Which index answers which rows; together all of them.

        times: int64 (n,) of the rows. Where they are given and many, an index is given its rows in about the order of its events, so that
        what is looked at for one row lies near what was for the last.
        """
        count = len(self.stored)
        near = times if times is not None and len(codes) > _MANY else None
        if (len(self) == 1 and near is None) or not len(codes):
            return [Piece(0, None, codes)]
        number = codes % count
        local = codes // count
        if self._place is not None:
            numbers, locals_ = self._place
            known = np.where((codes >= 0) & (codes < len(numbers)), codes, 0)
            late = numbers[known] >= 0
            number = np.where(late, numbers[known], number)
            local = np.where(late, locals_[known], local)
        order = np.argsort(number.astype(np.uint16), kind="stable") if near is None else _order(number, local, near)
        counts = np.bincount(number, minlength=len(self))
        stops = np.cumsum(counts)
        pieces = [
            Piece(int(p), order[stops[p] - counts[p] : stops[p]], local[order[stops[p] - counts[p] : stops[p]]])
            for p in np.flatnonzero(counts)
        ]
        return [Piece(pieces[0].number, None, local)] if len(pieces) == 1 and near is None else pieces

    def shares(self, rows: int) -> bool:
        """Whether threads share so many rows, partition by partition.

        Threads that went through all partitions, each for some of the rows, would each fetch all of the index from memory.
        """
        return len(self.stored) > 1 and rows > _MANY

    def answered(self, pieces: Sequence[Piece], work: Callable[[Piece], dict[str, Column]]) -> dict[str, Column]:
        """Columns of all rows in order. pieces: name their rows, each of which one of them has; work: makes the columns of some rows."""
        count = sum(len(piece.codes) for piece in pieces)
        if not self.shares(count):
            return _joined(pieces, [work(piece) for piece in pieces], count, map)
        parts = [part for piece in pieces for part in _cut(piece)]
        with ThreadPoolExecutor(THREADS, "partitions") as threads:
            return _joined(parts, list(threads.map(work, parts)), count, threads.map)

    def evaluator(self, number: int) -> Evaluator:
        """Computes features over one index; what it derives is kept while all of them stay within ``BUDGET``."""
        if self.base is not None and number < len(self.stored):
            return self.base.evaluator(number)
        with self._mutex:
            found = self._evaluators.get(number)
            if found is None:
                # derived columns are the evaluator's, so that letting it go lets them go
                found = self._evaluators[number] = self._make(replace(self.index(number), _derived={}))
            self._evaluators.move_to_end(number)
            held = {n: e.held() for n, e in self._evaluators.items()}
            # calls go through the partitions in turn: what was used longest ago is needed next, so the others go first
            for n in list(self._evaluators)[-2::-1]:
                if sum(held.values()) <= BUDGET:
                    break
                del self._evaluators[n], held[n]
            return found

    def newest(self, codes: Array, times: Array) -> Array:
        """int64 (n,): time of each entity's newest event strictly before t; -1 where there is none."""
        out = np.full(len(codes), -1, np.int64)
        for piece in self.route(codes):
            rows: Any = slice(None) if piece.rows is None else piece.rows
            out[rows] = self.evaluator(piece.number).index.newest(piece.codes, times[rows])
        return out

    def each(self) -> Iterator[tuple[Index, Array]]:
        """Every index with only the entities that it is right about, and int32 (entities,) their codes by its own."""
        count = len(self.stored)
        for number, index in enumerate(self.stored):
            codes = np.arange(len(index.offsets) - 1, dtype=np.int32) * count + number
            if self._place is not None:
                late = self._place[0][np.where(codes < len(self._place[0]), codes, 0)] >= 0
                if late.any():
                    own = np.flatnonzero(~late)
                    index, codes = index.events(own), np.concatenate([[0, 0], codes[own]]).astype(np.int32)
            yield index, codes
        if self.overlay is not None:
            for number in range(len(self.overlay.bounds) - 1):
                start, stop = self.overlay.bounds[number : number + 2]
                yield self.overlay.index(number), np.concatenate([[0, 0], self.overlay.codes[start:stop]]).astype(np.int32)


def _order(number: Array, local: Array, times: Array) -> Array:
    """int64 (n,): rows ascending by index, then code, then time as finely as there is room for."""
    first, rows = int(times.min()), max(len(times) - 1, 0).bit_length()
    entity = number.astype(np.int64) * (int(local.max()) + 1) + local
    span = (int(times.max()) - first).bit_length()
    room = 63 - int(entity.max()).bit_length()
    if room < rows:
        return np.lexsort((times, entity))
    # one number holds entity, time and row: sorting numbers takes a tenth of the time of finding their order
    room = min(room - rows, span)
    entity <<= room
    entity |= (times - first) >> (span - room)
    entity <<= rows
    entity |= np.arange(len(times))
    entity.sort()
    entity &= (1 << rows) - 1
    return entity


def _cut(piece: Piece) -> Iterator[Piece]:
    """About equal parts of a piece, as many for each thread."""
    rows = len(piece.codes)
    edges = np.linspace(0, rows, THREADS * -(-rows // (THREADS * _ROWS)) + 1).astype(np.int64).tolist()
    for begin, stop in pairwise(edges):
        yield Piece(piece.number, None if piece.rows is None else piece.rows[begin:stop], piece.codes[begin:stop])


def _joined(
    pieces: Sequence[Piece], found: Sequence[dict[str, Column]], count: int, every: Callable[..., Iterable[Column]]
) -> dict[str, Column]:
    """Columns of ``count`` rows from those of the pieces, which are emptied. every: ``map``, or that of threads."""
    # where each row is among the pieces' rows
    place = room(count, np.int32 if count < 1 << 31 else np.int64)
    begin = 0
    for piece in pieces:
        place[piece.rows] = np.arange(begin, begin + len(piece.codes), dtype=place.dtype)
        begin += len(piece.codes)

    def column(name: str) -> Column:
        columns = [each.pop(name) for each in found]  # what is joined is not held beside its parts
        values = np.concatenate([column.values for column in columns])
        if columns[0].offsets is None:
            return Column(taken(values, place), dictionary=columns[0].dictionary)
        lengths = np.concatenate([column.lengths for column in columns])
        whole, offsets = gather(values, (np.cumsum(lengths) - lengths)[place], lengths[place])
        return Column(whole, offsets, columns[0].dictionary)

    names = list(found[0])
    return dict(zip(names, every(column, names)))
