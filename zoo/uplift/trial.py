"""A trial: rows of which each was given one arm, and what came of it; read from a table of entities, without a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import UsageError, choices
from zoo.plugin import PADDING, UNKNOWN, Array, Catalogue, Column, FeatureBatch

if TYPE_CHECKING:
    import polars as pl

DISTINCT = 0.5
"""A text column with more different values than this share of the rows names rows, and is no feature."""


@dataclass(frozen=True)
class Trial:
    """batch: features, none of them newer than the treatment. outcome: float64 (n,), 0/1 or amounts. arm: int64 (n,), a place in
    ``arms``, of which the first is the one to compare with (no treatment). users: (n,), whom each row is of; None: each of another.
    """

    batch: FeatureBatch
    outcome: Array
    arm: Array
    arms: tuple[str, ...]
    users: Array | None = None

    def __len__(self) -> int:
        return len(self.outcome)

    @property
    def binary(self) -> bool:
        return bool(np.isin(self.outcome, (0, 1)).all())

    def take(self, rows: Array) -> Trial:
        users = None if self.users is None else self.users[rows]
        return replace(self, batch=self.batch.take(rows), outcome=self.outcome[rows], arm=self.arm[rows], users=users)

    def against(self, arm: int) -> Trial:
        """The rows of one arm and of the first one."""
        rows = self.take(np.flatnonzero((self.arm == arm) | (self.arm == 0)))
        return replace(rows, arm=(rows.arm == arm).astype(np.int64), arms=(self.arms[0], self.arms[arm]))


@dataclass(frozen=True)
class Layout:
    """Which columns of a table are features. numbers: by name. texts: name -> values seen, whose codes begin at 2."""

    numbers: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @staticmethod
    def of(table: pl.DataFrame, without: Sequence[str]) -> Layout:
        """Numbers and texts of a table but those named; texts that name rows and columns of other types are left out."""
        import polars as pl

        numbers, texts, left = [], {}, []
        for name, kind in table.schema.items():
            if name in without:
                continue
            values = table[name]
            if kind.is_numeric() or kind == pl.Boolean:
                numbers.append(name)
            elif kind in (pl.String, pl.Categorical) or isinstance(kind, pl.Enum):
                seen = values.cast(pl.String).drop_nulls().unique().sort().to_list()
                if len(seen) > max(20, DISTINCT * len(table)):
                    left.append(name)
                else:
                    texts[name] = tuple(seen)
            else:
                left.append(name)
        if not numbers and not texts:
            raise UsageError("no column is left as a feature; expected numbers or texts known before the treatment")
        return Layout(tuple(numbers), texts, tuple(left))

    def batch(self, table: pl.DataFrame) -> FeatureBatch:
        """The features of a table. Raises UsageError for columns that it lacks."""
        import polars as pl

        for name in (*self.numbers, *self.texts):
            if name not in table.columns:
                raise UsageError(
                    f"the table lacks the column {name!r} that the model was fitted on; it has: {', '.join(table.columns)}"
                )
        n = len(table)
        block = {name: Column(table[name].cast(pl.Float64).fill_null(np.nan).to_numpy().copy()) for name in self.numbers}
        names = {}
        for name, seen in self.texts.items():
            code = {value: at + 2 for at, value in enumerate(seen)}
            codes = [PADDING if v is None else code.get(v, UNKNOWN) for v in table[name].cast(pl.String).to_list()]
            block[name] = Column(np.array(codes, np.int32), dictionary=name)
            names[name] = np.array(["", "?", *seen], object)
        nothing = np.zeros(n, np.int64)
        return FeatureBatch({"user": block}, {"user": np.arange(n, dtype=np.int32)}, nothing, nothing - 1, Catalogue(names))


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet or CSV file. Raises UsageError where it is neither."""
    import polars as pl

    if not path.is_file():
        raise UsageError(f"no file {path}; expected a Parquet or CSV file with a row for each customer")
    try:
        return pl.read_csv(path, infer_schema_length=None) if path.suffix.lower() == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"cannot read {path}: {error}; expected Parquet, or CSV named .csv") from error


def trial_of(
    table: pl.DataFrame, treatment: str, outcome: str, control: str | None = None, without: Sequence[str] = ()
) -> tuple[Trial, Layout]:
    """The trial in a table, and its features: every column but treatment, outcome and those named in ``without``.

    control: the treatment's value that others are compared with; needed where the values are not 0 and 1. without: identifiers, and
    whatever became known after the treatment. Raises UsageError for columns and values that cannot be meant.
    """
    import polars as pl

    for what, name in (("treatment", treatment), ("outcome", outcome), *(("column to leave out", name) for name in without)):
        if name not in table.columns:
            raise UsageError(choices(what, name, table.columns))
    if treatment == outcome:
        raise UsageError(
            f"treatment and outcome are both {outcome!r}; expected two columns: who was given what, and what came of it"
        )
    layout = Layout.of(table, (treatment, outcome, *without))
    if not (table.schema[outcome].is_numeric() or table.schema[outcome] == pl.Boolean):
        raise UsageError(f"outcome {outcome!r} holds {table.schema[outcome]}; expected numbers: 0 and 1, or amounts")
    for name in (treatment, outcome):
        if table[name].null_count():
            raise UsageError(f"{name!r} is empty in {table[name].null_count():,} rows; expected a value in each")
    values = _texts(table[treatment])
    seen = sorted(set(values))
    if len(seen) < 2:
        raise UsageError(
            f"treatment {treatment!r} is {seen[0] if seen else 'nothing'!r} in every row; expected at least two values"
        )
    if control is None and set(seen) != {"0", "1"}:
        raise UsageError(f"treatment {treatment!r} holds {_few(seen)}; name the one to compare with, as in --control {seen[0]!r}")
    control = control if control is not None else "0"
    if control not in seen:
        raise UsageError(choices(f"value of {treatment}", control, seen))
    arms = (control, *(value for value in seen if value != control))
    place = {value: at for at, value in enumerate(arms)}
    of = table[outcome].cast(pl.Float64).to_numpy().copy()
    if not np.isfinite(of).all():
        raise UsageError(
            f"outcome {outcome!r} is not finite in {int((~np.isfinite(of)).sum()):,} rows; leave them out or fill them"
        )
    return Trial(layout.batch(table), of, np.array([place[v] for v in values], np.int64), arms), layout


def _texts(values: Any) -> list[str]:
    """Values as people write them: 1 and true are "1"."""
    import polars as pl

    if values.dtype == pl.Boolean:
        values = values.cast(pl.Int8)
    if values.dtype.is_float() and (values == values.round()).all():
        values = values.cast(pl.Int64)
    out: list[str] = values.cast(pl.String).to_list()
    return out


def _few(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
