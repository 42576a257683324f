"""Which of the log's codes a model knows: those of its training window, numbered densely.

A code that the window did not hold becomes UNKNOWN, so nothing learned later can leak into a fold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from zoo.errors import ArtefactError, FeatureError
from zoo.plugin import PADDING, UNKNOWN, Array, Artefact, Block, Catalogue, Column, FeatureBatch, TrainingData

FIRST = 2
"""The first code of a real identifier; 0 and 1 are padding and unknown in the log and in every vocabulary."""
ITEMS = "item_id"
"""The dictionary whose codes are the rows of ``catalogue.items``."""


PART = "vocabulary"
"""The part of an artefact that holds a model's vocabulary, and the identifiers behind it."""


@dataclass(frozen=True)
class Vocabulary:
    """Dictionary name -> the log codes kept, int32; the code at position i becomes i + 2.

    Those of training are sorted. In a log other than the one trained on a code may be 0: what it stood for is not there.
    """

    kept: Mapping[str, Array]

    @staticmethod
    def of(data: TrainingData) -> Vocabulary:
        """The codes that training rows hold; for a ranking target the items that they lead to are among them."""
        return Vocabulary.fit(data.batch, items=data.target.astype(np.int64) if data.kind.kind == "ranking" else None)

    @staticmethod
    def fit(batch: FeatureBatch, min_count: int = 1, items: Array | None = None) -> Vocabulary:
        """Keep the codes that rows of this batch hold at least ``min_count`` times, each stored row counted once.

        The attributes of kept items (code columns of ``catalogue.items``) count once an item. items: further item codes that count.
        """
        counts: dict[str, Array] = {}
        if items is not None:
            _count(counts, ITEMS, items)
        for entity, block in batch.blocks.items():
            used = np.unique(batch.row_of[entity])
            for column in block.values():
                if column.dictionary is not None:
                    part = column if len(used) == len(column) else column.take(used)
                    _count(counts, column.dictionary, part.values)
        kept_items = _at_least(counts.get(ITEMS, np.zeros(0, np.int64)), min_count)
        for name, column in batch.catalogue.items.items():
            if column.dictionary is not None:
                _check_length(f"catalogue.items[{name!r}]", kept_items, len(column))
                _count(counts, column.dictionary, column.take(kept_items).values)
        kept = {name: kept_items if name == ITEMS else _at_least(n, min_count) for name, n in counts.items()}
        return Vocabulary(kept)

    def size(self, dictionary: str) -> int:
        """Number of codes after mapping, padding and unknown included."""
        return FIRST + len(self.kept.get(dictionary, ()))

    def apply(self, batch: FeatureBatch) -> FeatureBatch:
        """The batch with every code column and its catalogue in this vocabulary's codes."""
        blocks = {entity: self._block(block) for entity, block in batch.blocks.items()}
        return batch.with_blocks(blocks, catalogue=self._catalogue(batch.catalogue))

    def target(self, data: TrainingData) -> Array:
        """The rows' target as a model is given it: items in this vocabulary's codes, anything else as it is."""
        if data.kind.kind != "ranking":
            return data.target
        return self.codes(ITEMS, data.target.astype(np.int64)).astype(np.float64)

    def codes(self, dictionary: str, log_codes: Array) -> Array:
        """int32, same shape: this vocabulary's codes of the log's."""
        return self._column(Column(log_codes, dictionary=dictionary)).values

    def log_codes(self, dictionary: str, codes: Array) -> Array:
        """int32, same shape: the inverse of ``codes`` for those below ``size``; 0 and 1 stay."""
        table: Array = np.concatenate([np.arange(FIRST, dtype=np.int32), self.kept.get(dictionary, np.zeros(0, np.int32))])
        return table[codes]

    def extended(self, catalogue: Catalogue, items: Array) -> Vocabulary:
        """These codes, and behind them the log's item codes ``items`` and whatever codes of their attributes are not among them."""
        extra = {ITEMS: items.astype(np.int32)}
        for column in catalogue.items.values():
            if column.dictionary is not None:
                used = np.unique(column.values[items])
                before = extra.get(column.dictionary, np.zeros(0, np.int32))
                extra[column.dictionary] = np.union1d(before, used[used >= FIRST]).astype(np.int32)
        kept = dict(self.kept)
        for name, codes in extra.items():
            held = kept.get(name, np.zeros(0, np.int32))
            kept[name] = np.concatenate([held, np.setdiff1d(codes, held)])
        return Vocabulary(kept)

    def narrowed(self, batch: FeatureBatch) -> FeatureBatch:
        """A batch in the codes of an extended vocabulary, in this one's: what is behind these codes is UNKNOWN."""

        def column(each: Column) -> Column:
            if each.dictionary is None:
                return each
            return replace(each, values=np.where(each.values < self.size(each.dictionary), each.values, UNKNOWN).astype(np.int32))

        blocks = {entity: {name: column(each) for name, each in block.items()} for entity, block in batch.blocks.items()}
        names = {name: texts[: self.size(name)] for name, texts in batch.catalogue.names.items()}
        codes = np.arange(self.size(ITEMS))
        items = {name: column(each.take(codes)) for name, each in batch.catalogue.items.items()}
        return replace(batch, blocks=blocks, catalogue=Catalogue(names, items))

    def save(self) -> Artefact:
        names = sorted(self.kept)
        # Dictionary names are free text, artefact names are not.
        return Artefact({f"kept/{i}": self.kept[name] for i, name in enumerate(names)}, {"dictionaries.json": json.dumps(names)})

    @staticmethod
    def load(artefact: Artefact) -> Vocabulary:
        try:
            names = json.loads(artefact.texts["dictionaries.json"])
            kept = {str(name): artefact.arrays[f"kept/{i}"] for i, name in enumerate(names)}
        except (KeyError, ValueError, TypeError, RecursionError) as e:
            raise ArtefactError(f"not a vocabulary: {e!r}; expected dictionaries.json and one array kept/N for each name") from e
        for name, codes in kept.items():
            if (
                codes.dtype != np.int32
                or codes.ndim != 1
                or codes.min(initial=FIRST) < FIRST
                or len(np.unique(codes)) != len(codes)
            ):
                raise ArtefactError(
                    f"not a vocabulary: the codes of {name!r} are {codes.dtype.name} {list(codes.shape)}; expected distinct int32 of at "
                    f"least {FIRST}; restore it, or train again"
                )
        return Vocabulary(kept)

    @cached_property
    def _tables(self) -> dict[str, Array]:
        """Lookup tables int32; the last entry stands for every code beyond."""
        tables = {}
        for name, kept in self.kept.items():
            table = np.full(max(FIRST - 1, kept.max(initial=0)) + 2, UNKNOWN, np.int32)
            table[kept] = np.arange(FIRST, FIRST + len(kept))
            table[PADDING] = PADDING  # last, for those that are not in this log
            tables[name] = table
        return tables

    def _column(self, column: Column) -> Column:
        if column.dictionary is None:
            return column
        _check_codes(column.dictionary, column.values)
        table = self._tables.get(column.dictionary)
        if table is None:
            return replace(column, values=np.minimum(column.values, UNKNOWN).astype(np.int32))
        return replace(column, values=table[np.minimum(column.values, len(table) - 1)])

    def _block(self, block: Block) -> Block:
        return {name: self._column(column) for name, column in block.items()}

    @cached_property
    def _mapped(self) -> list[tuple[Catalogue, Catalogue]]:
        return []

    def _catalogue(self, catalogue: Catalogue) -> Catalogue:
        # A service asks with one catalogue again and again, and copying its texts costs more than a prediction.
        if self._mapped and self._mapped[0][0] is catalogue:
            return self._mapped[0][1]
        names = {name: texts[self._rows(name, len(texts))] for name, texts in catalogue.names.items()}
        items = {}
        for name, column in catalogue.items.items():
            items[name] = self._column(column.take(self._rows(ITEMS, len(column))))
        mapped = Catalogue(names, items)
        self._mapped[:] = [(catalogue, mapped)]
        return mapped

    def _rows(self, dictionary: str, length: int) -> Array:
        kept = self.kept.get(dictionary, np.zeros(0, np.int32))
        _check_length(f"dictionary {dictionary!r} of the catalogue", kept, length)
        return np.concatenate([np.arange(FIRST, dtype=np.int32), kept])


def _count(counts: dict[str, Array], dictionary: str, codes: Array) -> None:
    _check_codes(dictionary, codes)
    found = np.bincount(codes, minlength=FIRST)
    known = counts.get(dictionary, np.zeros(0, np.int64))
    total = np.zeros(max(len(found), len(known)), np.int64)
    total[: len(found)] += found
    total[: len(known)] += known
    counts[dictionary] = total


def _at_least(counts: Array, min_count: int) -> Array:
    return (np.flatnonzero(counts[FIRST:] >= max(1, min_count)) + FIRST).astype(np.int32)


def _check_codes(dictionary: str, codes: Array) -> None:
    if not np.issubdtype(codes.dtype, np.integer) or codes.min(initial=0) < 0:
        raise FeatureError(
            f"codes of dictionary {dictionary!r} have dtype {codes.dtype} and smallest value {codes.min(initial=0)}; "
            "expected integers of at least 0 (0 padding, 1 unknown, identifiers from 2)"
        )


def _check_length(what: str, kept: Array, length: int) -> None:
    need = max(FIRST, kept.max(initial=0) + 1)
    if length < need:
        raise FeatureError(
            f"{what} has {length} rows, but codes up to {need - 1} were seen in training; "
            "expected the catalogue of the same log (dictionaries only ever grow)"
        )
