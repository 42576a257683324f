"""Which columns of a batch become which columns of a table: learned once on training rows, stored as JSON, applied by ``table``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from zoo.plugin import PADDING, Array, Column, FeatureBatch, PluginError
from zoo_gbdt.params import GBDTParams

FORMAT = 1
NUMBER_STATS = ("mean", "std", "min", "max", "above", "of_mean")
"""above: share of the values greater than the newest. of_mean: the newest over the mean. Trees cannot divide columns by themselves."""
LARGEST_CODE = 1 << 28
"""Codes are looked up in tables as long as the largest; no log has as many identifiers."""
MOST_COLUMNS = 1_000_000
FIRST = 2
"""The first code that means something; 0 is nothing, 1 unknown."""


@dataclass(frozen=True)
class Codes:
    """kept: codes that stay apart as categories, most frequent first. top: codes whose share of a sequence becomes a column."""

    name: str
    kept: tuple[int, ...]
    top: tuple[int, ...] = ()

    def categories(self, values: Array) -> Array:
        """float32: NaN for nothing, 0 for what is rare or unknown, else 1 + the code's place among those kept."""
        return _looked_up(self._categories, values)

    def places(self, values: Array) -> Array:
        """int64: place of each code among the top ones, else their number."""
        return _looked_up(self._places, values)

    @cached_property
    def _categories(self) -> Array:
        lookup = np.zeros(max(self.kept, default=PADDING) + 2, np.float32)
        lookup[list(self.kept)] = np.arange(1, len(self.kept) + 1)
        lookup[PADDING] = np.nan
        return lookup

    @cached_property
    def _places(self) -> Array:
        lookup = np.full(max(self.top, default=PADDING) + 2, len(self.top))
        lookup[list(self.top)] = np.arange(len(self.top))
        return lookup


def _looked_up(lookup: Array, codes: Array) -> Array:
    """The last entry stands for every code beyond the largest that is listed."""
    found: Array = lookup[np.minimum(codes, len(lookup) - 1)]
    return found


@dataclass(frozen=True)
class Entity:
    """What is read of one block: numbers and codes that are a value a row, and sequences of either.

    lengths: of the sequences that had equal offsets in training, one; its length is that of all.
    """

    name: str
    numbers: tuple[str, ...]
    codes: tuple[Codes, ...]
    lengths: tuple[str, ...]
    number_sequences: tuple[str, ...]
    code_sequences: tuple[Codes, ...]

    @property
    def sequences(self) -> tuple[str, ...]:
        return (*self.number_sequences, *(codes.name for codes in self.code_sequences))

    @property
    def values(self) -> tuple[str, ...]:
        return (*self.numbers, *(codes.name for codes in self.codes))


@dataclass(frozen=True)
class Layout:
    """entities in the order of their table columns; windows: newest events summarised, besides all of them."""

    entities: tuple[Entity, ...]
    windows: tuple[int, ...]
    lasts: int

    @staticmethod
    def learn(batch: FeatureBatch, params: GBDTParams) -> Layout:
        """Every column but text and those dropped. Frequencies are counted in these rows only.

        Raises PluginError where nothing is left to learn from.
        """
        entities = []
        for name, block in batch.blocks.items():
            rows = batch.row_of[name]
            stored = np.unique(rows)
            used = {n: c for n, c in block.items() if not c.is_text and not any(fnmatchcase(n, p) for p in params.drop)}
            values = {n: c for n, c in used.items() if not c.is_sequence}
            sequences = {n: c for n, c in used.items() if c.is_sequence}
            entity = Entity(
                name,
                tuple(n for n, c in values.items() if c.is_numeric),
                tuple(Codes(n, frequent(c.values[rows], params)) for n, c in values.items() if c.is_code),
                tuple(names[0] for names in aligned(sequences)),
                tuple(n for n, c in sequences.items() if c.is_numeric),
                tuple(
                    Codes(n, kept, kept[: params.top_codes])
                    for n, c in sequences.items()
                    if c.is_code
                    for kept in (frequent(c.take(stored).values, params),)
                ),
            )
            if used:
                entities.append(entity)
        if not entities:
            raise PluginError(
                f"gbdt has no column to learn from: the batch holds {', '.join(batch.names) or 'none'}, "
                f"text is not read, and {list(params.drop)} are dropped"
            )
        return Layout(tuple(entities), tuple(sorted(params.windows)), params.lasts)

    def names(self) -> list[str]:
        """Name of every table column, such as ``values.newest5.mean``."""
        return [name for entity in self.entities for name, _ in self._columns(entity)]

    def said(self, batch: FeatureBatch) -> tuple[str, ...]:
        """``names()`` for people: codes by their text, where the catalogue has one of its own for each."""
        texts: dict[str, str] = {}
        for codes in (codes for entity in self.entities for codes in entity.code_sequences):
            names = batch.catalogue.names.get(batch.stored(codes.name)[1].dictionary or "")
            known = {code: str(names[code]) for code in codes.top if names is not None and code < len(names)}
            if len(set(known.values())) == len(codes.top):
                over = ["", *(f".newest{window}" for window in self.windows)]
                texts |= {
                    f"{codes.name}{o}.share_{code}": f"{codes.name}{o}.share of {text}"
                    for o in over
                    for code, text in known.items()
                }
        return tuple(texts.get(name, name) for name in self.names())

    def categorical(self) -> list[int]:
        """Numbers of the table columns that hold categories."""
        flags = [flag for entity in self.entities for _, flag in self._columns(entity)]
        return [number for number, flag in enumerate(flags) if flag]

    def _columns(self, entity: Entity) -> list[tuple[str, bool]]:
        """(name, is a category) in the order in which ``table`` fills them."""
        columns = [(name, False) for name in entity.numbers] + [(codes.name, True) for codes in entity.codes]
        columns += [(f"{name}.length", False) for name in entity.lengths]
        over = ["", *(f".newest{window}" for window in self.windows)]
        for name in entity.number_sequences:
            columns += [(f"{name}{window}.{stat}", False) for window in over for stat in NUMBER_STATS]
            columns += [(f"{name}.last{back}", False) for back in range(self.lasts)]
        for codes in entity.code_sequences:
            columns += [(f"{codes.name}{window}.share_{code}", False) for window in over for code in codes.top]
            columns += [(f"{codes.name}.last", True), (f"{codes.name}.most", True)]
            columns += [(f"{codes.name}.most_share", False), (f"{codes.name}.distinct", False)]
        return columns

    def check(self, batch: FeatureBatch) -> None:
        """Raise PluginError naming the columns that the batch lacks, or holds in another form."""
        missing, other = [], []
        for entity in self.entities:
            block = batch.blocks.get(entity.name, {})
            for names, sequence in ((entity.values, False), (entity.sequences, True)):
                missing += [name for name in names if name not in block]
                other += [name for name in names if name in block and block[name].is_sequence != sequence]
        if missing:
            raise PluginError(
                f"gbdt was trained with {', '.join(missing)}, which this batch lacks; it has: {', '.join(batch.names) or '(none)'}. "
                "Predict with the feature service that it was trained on, or train it again"
            )
        if other:
            raise PluginError(
                f"{', '.join(other)}: a sequence in training and a value here, or the other way round; train gbdt again"
            )

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)})

    @property
    def width(self) -> int:
        """Number of table columns, counted without naming them."""
        over = 1 + len(self.windows)
        return sum(
            len(e.numbers) + len(e.codes) + len(e.lengths) + len(e.number_sequences) * (over * len(NUMBER_STATS) + self.lasts)
            + sum(over * len(codes.top) + 4 for codes in e.code_sequences)
            for e in self.entities
        )  # fmt: skip

    @staticmethod
    def from_json(text: str) -> Layout:
        """What ``to_json`` wrote. Raises PluginError for another format, and for what no training would have learned."""
        content = json.loads(text)
        if content.get("format") != FORMAT:
            raise PluginError(
                f"the layout has format {content.get('format')}; this version of gbdt reads {FORMAT}: train it again"
            )

        def names(entries: list[str]) -> tuple[str, ...]:
            _expect(all(isinstance(name, str) for name in entries), "names that are no text")
            return tuple(entries)

        def codes(entries: list[dict[str, Any]]) -> tuple[Codes, ...]:
            names([e["name"] for e in entries])
            for listed in (e[which] for e in entries for which in ("kept", "top")):
                _expect(all(type(code) is int and FIRST <= code < LARGEST_CODE for code in listed), "codes that no log has")
                _expect(len(set(listed)) == len(listed), "a code twice")
            return tuple(Codes(e["name"], tuple(e["kept"]), tuple(e["top"])) for e in entries)

        entities = tuple(
            Entity(
                *names([e["name"]]),
                names(e["numbers"]),
                codes(e["codes"]),
                names(e["lengths"]),
                names(e["number_sequences"]),
                codes(e["code_sequences"]),
            )
            for e in content["entities"]
        )
        windows, lasts = tuple(content["windows"]), content["lasts"]
        _expect(all(type(size) is int and 0 <= size < LARGEST_CODE for size in (*windows, lasts)), "windows that are no lengths")
        layout = Layout(entities, windows, lasts)
        _expect(0 < layout.width <= MOST_COLUMNS, f"{layout.width} columns (1 to {MOST_COLUMNS} are possible)")
        _expect(all(set(e.lengths) <= set(e.sequences) for e in entities), "lengths of sequences that it does not read")
        return layout


def _expect(so: bool, otherwise: str) -> None:
    if not so:
        raise PluginError(f"the layout has {otherwise}, which gbdt never writes; restore the artefact, or train again")


def aligned(columns: Mapping[str, Column]) -> list[list[str]]:
    """Names of the sequence columns, put together where their offsets are equal."""
    groups: list[list[str]] = []
    for name, column in columns.items():
        for group in groups:
            one, other = column.offsets, columns[group[0]].offsets
            if one is other or (one is not None and other is not None and np.array_equal(one, other)):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def frequent(values: Array, params: GBDTParams) -> tuple[int, ...]:
    """Codes from FIRST on that occur often enough to stay apart; of equally frequent ones the smaller first."""
    counts = np.bincount(values, minlength=FIRST)
    counts[:FIRST] = 0
    order = np.argsort(-counts, kind="stable")[: params.max_categories]
    return tuple(int(code) for code in order if counts[code] >= params.min_category_count)
