"""Which columns of a batch become words and which numbers, chosen once on the training batch and kept with the model.

No column name has a meaning here but the ones that the parameters give, ``ages`` being the only default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.plugin import Array, Column, FeatureBatch, PluginError

if TYPE_CHECKING:
    from zoo_bert.params import BertParams

AGES = "ages"
CLIP = 5.0
"""Scaled numbers beyond this many standard deviations are cut."""


@dataclass(frozen=True)
class Number:
    """A numeric column: signed log1p, then standardised. ``missing`` adds an indicator of absent values."""

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

    def scale(self, values: Array) -> list[Array]:
        """float64 (n,), missing values at the mean, and the indicator (n,) where there is one."""
        numbers = np.clip((squash(values) - self.mean) / self.std, -CLIP, CLIP)
        absent = np.isnan(numbers)
        return [np.where(absent, 0.0, numbers), *([absent.astype(np.float64)] if self.missing else [])]


@dataclass(frozen=True)
class Columns:
    """items, event_types, times: aligned sequences of one entity, each may be None. said: scalars put in words. numbers: for the head."""

    items: str | None
    event_types: str | None
    times: str | None
    said: tuple[str, ...]
    numbers: tuple[Number, ...]

    @classmethod
    def choose(cls, batch: FeatureBatch, params: BertParams) -> Columns:
        """Raises PluginError for a named column that is missing, of the wrong kind or not aligned, and where nothing is left to read."""
        sequences = {name: column for name in batch.names if (column := batch.stored(name)[1]).is_sequence}
        codes = [name for name, column in sequences.items() if column.is_code]
        items = _named(params.items, "items", codes) or _first(codes, sequences, "item_id") or _other(codes, sequences)
        aligned = _aligned(batch, items, sequences)
        typed = [name for name in aligned if sequences[name].is_code and name != items]
        timed = [name for name in aligned if sequences[name].is_numeric]
        event_types = _named(params.event_types, "event_types", typed) or _first(typed, sequences, "event_type")
        times = _named(params.times, "times", timed) or (AGES if AGES in timed else None)
        scalars = {name: column for name in batch.names if not (column := batch.stored(name)[1]).is_sequence}
        said = tuple(name for name in _matching(scalars, params.said) if scalars[name].is_code or scalars[name].is_text)
        numbers = tuple(
            Number.learn(name, batch.column(name).values)
            for name in _matching(scalars, params.scalars)
            if scalars[name].is_numeric
        )
        if not (items or event_types or said or numbers):
            raise PluginError(
                f"bert found nothing to read in columns {', '.join(batch.names) or '(none)'}; give the feature service a sequence of "
                "codes (items, event types), a code or a number, or widen `said` and `scalars`"
            )
        return cls(items, event_types, times, said, numbers)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Columns:
        numbers = tuple(Number(str(n["name"]), float(n["mean"]), float(n["std"]), bool(n["missing"])) for n in stored["numbers"])
        return cls(stored["items"], stored["event_types"], stored["times"], tuple(stored["said"]), numbers)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def matrix(self, batch: FeatureBatch) -> Array:
        """float32 (n, width): the scaled numbers and their indicators."""
        parts = [part for number in self.numbers for part in number.scale(batch.column(number.name).values)]
        return np.stack(parts, 1).astype(np.float32) if parts else np.zeros((len(batch), 0), np.float32)

    @property
    def width(self) -> int:
        return sum(1 + number.missing for number in self.numbers)


def squash(values: Array) -> Array:
    """Signed log1p, float64: money, counts and durations span decades. What is not finite becomes NaN."""
    numbers = values.astype(np.float64)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    return np.sign(numbers) * np.log1p(np.abs(numbers))


def _named(name: str | None, parameter: str, choices: Sequence[str]) -> str | None:
    if name is not None and name not in choices:
        raise PluginError(
            f"bert's parameter {parameter}={name!r} is not such a column; choose one of: {', '.join(choices) or '(none)'}, or leave it out"
        )
    return name


def _first(names: Sequence[str], columns: dict[str, Column], dictionary: str) -> str | None:
    return next((name for name in names if columns[name].dictionary == dictionary), None)


def _other(names: Sequence[str], columns: dict[str, Column]) -> str | None:
    """A code sequence that is not the event type."""
    return next((name for name in names if columns[name].dictionary != "event_type"), None)


def _aligned(batch: FeatureBatch, items: str | None, sequences: dict[str, Column]) -> list[str]:
    """Sequences of the same entity and lengths as the items; as the first code's where there are no items."""
    anchor = items or next((name for name, column in sequences.items() if column.is_code), None)
    if anchor is None:
        return []
    entity, column = batch.stored(anchor)
    return [
        name
        for name, other in sequences.items()
        if batch.stored(name)[0] == entity and np.array_equal(other.lengths, column.lengths)
    ]


def _matching(names: dict[str, Column], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
