"""From a FeatureBatch to plain matrices: which columns are read, and how their rows and steps are laid out.

Knows numpy and the contract, not torch. No column name has a meaning here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from zoo.plugin import Array, Column, FeatureBatch, PluginError
from zoo_recurrent.columns import Columns, Reader


@dataclass(frozen=True)
class Stream:
    """Aligned sequences of the stored rows in use, flat: row i's steps are ``first[i] : first[i] + length[i]``, oldest first.

    numbers: float32 (m, f). codes: int32 (m, c). first, length: int64 (u,). row_of: int64 (n,), the batch's rows in u.
    """

    numbers: Array
    codes: Array
    first: Array
    length: Array
    row_of: Array


@dataclass(frozen=True)
class Inputs:
    """A batch as matrices: a Stream for each group of sequences, and the scalars of every row (n, f) and (n, c)."""

    streams: tuple[Stream, ...]
    numbers: Array
    codes: Array


class Steps:
    """The newest ``max_length`` steps of aligned sequence columns, read at each stored row that a batch uses.

    Columns are aligned at their newest step; one that is shorter than its companions is filled at its old end, since
    columns that were aligned in the training rows by chance need not be later.
    """

    def __init__(self, batch: FeatureBatch, names: Iterable[str], max_length: int) -> None:
        stored = {name: batch.stored(name) for name in names}
        entities = sorted({entity for entity, _ in stored.values()})
        if len(entities) > 1:
            raise PluginError(
                f"the sequences {', '.join(stored)} were features of one entity in training and are of {' and '.join(entities)} "
                "here; predict with the feature service that the model was trained on"
            )
        rows = batch.row_of[entities[0]]
        if len(rows) == 1:
            self.used, self.row_of = rows, np.zeros(1, np.int64)
        else:
            self.used, self.row_of = np.unique(rows, return_inverse=True)
        self.columns = {name: column for name, (_, column) in stored.items()}
        for name, column in self.columns.items():
            if not column.is_sequence:
                raise PluginError(f"column {name!r} was a sequence in training and has one value a row here")
        # of columns that have the very same offsets once
        lengths = [column.lengths[self.used] for column in {id(c.offsets): c for c in self.columns.values()}.values()]
        self.length = np.minimum(np.stack(lengths).max(0), max_length)
        end = np.cumsum(self.length)
        self.first = end - self.length
        self.count = int(self.length.sum())
        self._back = np.repeat(end, self.length) - np.arange(self.count)
        self._places: dict[int, tuple[Array, Array | None]] = {}

    def read(self, name: str, filler: float) -> Array:
        """The column's values, flat (count,)."""
        column = self.columns[name]
        assert column.offsets is not None
        if id(column.offsets) not in self._places:
            self._places[id(column.offsets)] = self._placed(column.offsets)
        index, here = self._places[id(column.offsets)]
        if here is None:
            return column.values[index]
        return np.append(column.values, filler)[np.where(here, index, len(column.values))]

    def _placed(self, offsets: Array) -> tuple[Array, Array | None]:
        """int64 (count,): where each step stands in values of these offsets; bool (count,): whether it does, None if all do."""
        index = np.repeat(offsets[1:][self.used], self.length) - self._back
        here = index >= np.repeat(offsets[:-1][self.used], self.length)
        return index, None if here.all() else here


@dataclass(frozen=True)
class Layout:
    """Which columns the networks read and how; ``read`` is a pure function of one batch."""

    streams: tuple[Columns, ...]
    scalars: Columns
    max_length: int

    @classmethod
    def learn(
        cls,
        batch: FeatureBatch,
        *,
        streams: tuple[str, ...] | None,
        scalars: bool | tuple[str, ...],
        max_length: int,
        most: int,
        least: int,
    ) -> Layout:
        """Choose columns by kind and learn scales and vocabularies on the batch's rows.

        Raises PluginError where the patterns leave nothing to read.
        """
        groups = aligned(batch, ("*",) if streams is None else streams)
        read = []
        for group in groups:
            steps = Steps(batch, group, max_length)
            if steps.count:  # of steps that training never held nothing can be learned
                read.append(Columns.learn(group, steps.read, most=most, least=least))
        patterns = scalars if isinstance(scalars, tuple) else ("*",) if scalars else ()
        chosen = {
            name: column
            for block in batch.blocks.values()
            for name, column in block.items()
            if not column.is_sequence and not column.is_text and matches(name, patterns)
        }
        head = Columns.learn(chosen, _scalar_reader(batch), most=most, least=least)
        if not groups and not chosen:
            raise PluginError(
                f"nothing to read: streams={streams} and scalars={scalars} match no numeric or code column; "
                f"the batch has: {', '.join(batch.names) or '(none)'}; change the patterns or the feature service"
            )
        return cls(tuple(read), head, max_length)

    def read(self, batch: FeatureBatch) -> Inputs:
        """The batch as matrices. Raises PluginError where a column that was learned is absent or of another kind."""
        wanted = [name for columns in (*self.streams, self.scalars) for name in columns.names()]
        absent = [name for name in wanted if name not in batch]
        if absent:
            raise PluginError(
                f"the batch lacks {', '.join(absent)}, which the model was trained on; it has: {', '.join(batch.names)}"
            )
        streams = []
        for columns in self.streams:
            steps = Steps(batch, columns.names(), self.max_length)
            numbers, codes = columns.matrices(steps.count, steps.read)
            streams.append(Stream(numbers, codes, steps.first, steps.length, steps.row_of))
        return Inputs(tuple(streams), *self.scalars.matrices(len(batch), _scalar_reader(batch)))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def aligned(batch: FeatureBatch, patterns: tuple[str, ...]) -> list[dict[str, Column]]:
    """Sequence columns (numeric or codes) whose name matches, grouped by entity and equal offsets, in order of declaration."""
    groups: list[dict[str, Column]] = []
    for block in batch.blocks.values():
        own: list[dict[str, Column]] = []
        for name, column in block.items():
            if not column.is_sequence or column.is_text or not matches(name, patterns):
                continue
            for group in own:
                if np.array_equal(next(iter(group.values())).offsets, column.offsets):
                    group[name] = column
                    break
            else:
                own.append({name: column})
        groups += own
    return groups


def _scalar_reader(batch: FeatureBatch) -> Reader:
    def read(name: str, filler: float) -> Array:  # noqa: ARG001 - every row has its value
        entity, column = batch.stored(name)
        if column.is_sequence:
            raise PluginError(f"column {name!r} had one value a row in training and is a sequence here")
        return column.values[batch.row_of[entity]]

    return read
