"""Columns told apart by kind: numbers are scaled, codes get embedding rows, both learned on the training rows only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from zoo.plugin import PADDING, UNKNOWN, Array, Column, PluginError

CLIP = 5.0
"""Scaled numbers beyond this many standard deviations are cut."""

ROWS = 16_384
"""Rows that are scaled at once."""
Reader = Callable[[str, float], Array]
"""``(column name, filler) -> values (m,)`` in the order of the matrix being built."""


def squash(values: Array) -> Array:
    """Signed log1p, float64: money, counts and durations span decades. What is not finite becomes NaN."""
    numbers = values.astype(np.float64)
    numbers = np.sign(numbers) * np.log1p(np.abs(numbers))
    return np.where(np.isfinite(numbers), numbers, np.nan)


@dataclass(frozen=True)
class Number:
    """A numeric column, standardised after ``squash``; ``missing`` adds an indicator of absent values."""

    name: str
    mean: float
    std: float
    missing: bool

    @classmethod
    def learn(cls, name: str, values: Array) -> Number:
        numbers = squash(values)
        here = numbers[~np.isnan(numbers)]
        mean, std = (float(here.mean()), float(here.std())) if len(here) else (0.0, 0.0)
        return cls(name, mean, std if std > 1e-9 else 1.0, len(here) < len(numbers))


@dataclass(frozen=True)
class Code:
    """A code column. ``lookup`` int32 maps codes to embedding rows: PADDING, UNKNOWN (rare codes too), then the frequent ones."""

    name: str
    lookup: Array = field(repr=False)

    @property
    def rows(self) -> int:
        return max(int(self.lookup.max()), UNKNOWN) + 1

    @classmethod
    def learn(cls, name: str, values: Array, *, most: int, least: int) -> Code:
        counts = np.bincount(values[values > UNKNOWN], minlength=UNKNOWN + 1)
        ranked = np.argsort(-counts, kind="stable")[:most]
        kept = np.sort(ranked[counts[ranked] >= least])
        lookup = np.full(len(counts), UNKNOWN, np.int32)
        lookup[PADDING] = PADDING
        lookup[kept] = np.arange(UNKNOWN + 1, UNKNOWN + 1 + len(kept), dtype=np.int32)
        return cls(name, lookup)

    def look(self, values: Array) -> Array:
        known = (values >= 0) & (values < len(self.lookup))
        return self.lookup[np.where(known, values, UNKNOWN)]


@dataclass(frozen=True)
class Columns:
    """Columns that are read together, a value of each in every row of two matrices: numbers and codes."""

    numbers: tuple[Number, ...]
    codes: tuple[Code, ...]

    @classmethod
    def learn(cls, columns: Mapping[str, Column], read: Reader, *, most: int, least: int) -> Columns:
        return cls(
            tuple(Number.learn(name, read(name, np.nan)) for name, c in columns.items() if c.is_numeric),
            tuple(Code.learn(name, read(name, PADDING), most=most, least=least) for name, c in columns.items() if c.is_code),
        )

    @property
    def width(self) -> int:
        """Columns of the matrix of numbers: a number each, then the indicators."""
        return len(self.numbers) + sum(number.missing for number in self.numbers)

    def matrices(self, count: int, read: Reader) -> tuple[Array, Array]:
        """float32 (count, width) without NaN, and int32 (count, codes)."""
        numbers = np.empty((count, self.width), np.float32)
        given = [read(number.name, np.nan) for number in self.numbers]
        mean, std, missing = self._scales
        # all columns at once, as one row's answer would else be the time of a hundred calls
        for begin in range(0, count if given else 0, ROWS):
            scaled = squash(np.array([values[begin : begin + ROWS] for values in given], np.float64))
            scaled = np.clip((scaled - mean) / std, -CLIP, CLIP)
            absent = np.isnan(scaled)
            scaled[absent] = 0.0
            numbers[begin : begin + ROWS, : len(given)] = scaled.T
            numbers[begin : begin + ROWS, len(given) :] = absent[missing].T
        codes = np.zeros((count, len(self.codes)), np.int32)
        for i, code in enumerate(self.codes):
            codes[:, i] = code.look(read(code.name, PADDING))
        return numbers, codes

    @cached_property
    def _scales(self) -> tuple[Array, Array, Array]:
        """float64 (numbers, 1) means and standard deviations; bool (numbers,), which have an indicator."""
        mean, std = (np.array([[getattr(number, name)] for number in self.numbers]) for name in ("mean", "std"))
        return mean, std, np.array([number.missing for number in self.numbers], bool)

    def names(self) -> Iterator[str]:
        yield from (number.name for number in self.numbers)
        yield from (code.name for code in self.codes)

    def to_json(self) -> dict[str, Any]:
        return {
            "numbers": [{"name": n.name, "mean": n.mean, "std": n.std, "missing": n.missing} for n in self.numbers],
            "codes": [code.name for code in self.codes],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], lookups: Sequence[Array]) -> Columns:
        """Raises PluginError for lookups that are not rows of embeddings."""
        for lookup in lookups:
            if lookup.dtype != np.int32 or lookup.ndim != 1 or not len(lookup) > UNKNOWN or lookup.min() < 0:
                raise PluginError(
                    f"a lookup of codes is {lookup.dtype.name} {list(lookup.shape)}, expected int32 rows of at least 0, by code; "
                    "restore the artefact, or train again"
                )
        return cls(
            tuple(Number(str(n["name"]), float(n["mean"]), float(n["std"]), bool(n["missing"])) for n in stored["numbers"]),
            tuple(Code(name, lookup) for name, lookup in zip(stored["codes"], lookups, strict=True)),
        )
