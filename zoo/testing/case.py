"""One plugin under test with one kind of target: its toy data, its fits, and assertions that say what was seen and expected."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from zoo.contract import Array, Block, Column, FeatureBatch, FittedModel, ModelPlugin, TargetKind, TrainingData
from zoo.testing.toy import toy, with_member_scores

TRAINING, HELD_OUT, SMALL = 400, 200, 40
TOLERANCE = 1e-5


class CheckFailed(AssertionError):
    """A plugin does not keep the contract; the message says what was seen, and what was expected."""


@dataclass(frozen=True)
class Case:
    """Toy rows are made afresh for every use, so that a plugin that changes its input fails one check and not all."""

    plugin: ModelPlugin
    kind: TargetKind

    def training(self, n: int = TRAINING) -> TrainingData:
        return self.given(self.rows(n, 1))

    def held_out(self, n: int = HELD_OUT) -> TrainingData:
        return self.given(self.rows(n, 2))

    def rows(self, n: int, seed: int) -> TrainingData:
        """Toy rows with every column; for a final model, one that reads no feature, with members' scores too."""
        data = toy(n, seed, self.kind)
        return data if data.batch.select(self.plugin.spec.inputs).names else with_member_scores(data, seed)

    def given(self, data: TrainingData) -> TrainingData:
        """The data as zoo hands it over: declared columns only."""
        return replace(data, batch=data.batch.select(self.plugin.spec.inputs))

    def fit(self, data: TrainingData, heard: list[tuple[float, str]] | None = None) -> FittedModel:
        """A model of tiny parameters and seed 7; ``heard`` collects what it says of its progress."""
        calls = [] if heard is None else heard
        return self.plugin.fit(data, params=self.plugin.tiny(), seed=7, progress=lambda done, text: calls.append((done, text)))

    @property
    def lacking(self) -> tuple[str, ...]:
        """Patterns of the model's inputs that match no column of its toy rows."""
        names = self.rows(1, 1).batch.names
        return tuple(p for p in self.plugin.spec.inputs if not any(fnmatchcase(name, p) for name in names))

    @cached_property
    def unfit(self) -> str:
        """Why the model cannot be tried, where its inputs name columns that toy rows lack and it does not do without; else empty."""
        if not self.lacking:
            return ""
        rows, why = self.rows(SMALL, 1), "so it is given no column at all"
        if self.given(rows).batch.names:
            try:
                self.predict(self.fit(self.given(rows)), self.given(rows).batch)
            except Exception as error:  # noqa: BLE001 - the boundary: whatever a plugin raises is its result
                why = f"and without it the model fails with {type(error).__name__}: {error}"
            else:
                return ""
        return (
            f"toy rows have no column that matches {', '.join(map(repr, self.lacking))} of the model's inputs, {why}. "
            f"They have: {', '.join(rows.batch.names)}. Let the model do without columns that a service lacks, or read columns "
            "by their kind, with inputs=('*',)"
        )

    @cached_property
    def heard(self) -> list[tuple[float, str]]:
        """What ``fitted`` said of its progress."""
        return []

    @cached_property
    def fitted(self) -> FittedModel:
        """Fitted on ``training()``, once."""
        return self.fit(self.training(), self.heard)

    @cached_property
    def scores(self) -> Array:
        """Of ``fitted`` on ``held_out()``."""
        return self.predict(self.fitted, self.held_out().batch)

    def predict(self, model: FittedModel, batch: FeatureBatch) -> Array:
        """Scores whose shape, dtype and range are as the kind of target demands."""
        scores = model.predict(batch)
        width = batch.catalogue.size("item_id") if self.kind == "ranking" else toy(1, 0, self.kind).kind.width
        expect(isinstance(scores, np.ndarray), f"predict returned a {type(scores).__name__}; expected a numpy array")
        expect(
            scores.dtype == np.float32 and scores.shape == (len(batch), width),
            f"predict returned {scores.dtype} {scores.shape} for {len(batch)} rows; expected float32 {(len(batch), width)}",
        )
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        expect(
            not len(bad),
            f"{len(bad)} of {len(batch)} rows have a score that is not finite, first row {bad[:1]}; expected numbers",
        )
        if self.kind in ("binary", "multiclass") and len(scores):
            low, high = float(scores.min()), float(scores.max())
            expect(low >= 0 and high <= 1, f"scores go from {low:.6g} to {high:.6g}; expected probabilities from 0 to 1")
        if self.kind == "multiclass" and len(scores):
            worst = float(np.abs(scores.sum(axis=1) - 1).max())
            expect(worst <= TOLERANCE, f"a row's probabilities are {worst:.3g} off a sum of 1; expected at most {TOLERANCE:g}")
        return scores


def expect(condition: object, message: str) -> None:
    """Raise CheckFailed with the message unless the condition is true."""
    if not condition:
        raise CheckFailed(message)


def expect_same(seen: Array, expected: Array, what: str) -> None:
    """Bit for bit."""
    if seen.shape == expected.shape and seen.dtype == expected.dtype and seen.tobytes() == expected.tobytes():
        return
    raise CheckFailed(f"{what}: {_difference(seen, expected)}; expected the same bits")


def expect_close(seen: Array, expected: Array, what: str) -> None:
    """Within 1e-5, relative for scores above 1."""
    if seen.shape == expected.shape and np.allclose(seen, expected, rtol=TOLERANCE, atol=TOLERANCE):
        return
    raise CheckFailed(f"{what}: {_difference(seen, expected)}; expected at most {TOLERANCE:g}")


def _difference(seen: Array, expected: Array) -> str:
    if seen.shape != expected.shape or seen.dtype != expected.dtype:
        return f"{seen.dtype} {seen.shape} instead of {expected.dtype} {expected.shape}"
    gap = np.abs(seen.astype(np.float64) - expected)
    row = int(gap.max(axis=1).argmax())
    return f"{int((gap > 0).any(axis=1).sum())} of {len(seen)} rows differ, most row {row}, {seen[row]} for {expected[row]}"


def arrays(data: TrainingData) -> Iterator[tuple[str, Array]]:
    """Every array of the data with the path to it."""
    batch = data.batch
    yield from (("target", data.target), ("weight", data.weight), ("time", data.time))
    yield from (("batch.as_of", batch.as_of), ("batch.newest", batch.newest))
    if batch.group is not None:
        yield "batch.group", batch.group
    yield from ((f"batch.row_of[{entity!r}]", rows) for entity, rows in batch.row_of.items())
    yield from ((f"batch.catalogue.names[{name!r}]", texts) for name, texts in batch.catalogue.names.items())
    blocks = {**{f"batch.blocks[{entity!r}]": block for entity, block in batch.blocks.items()}}
    blocks["batch.catalogue.items"] = batch.catalogue.items
    for path, block in blocks.items():
        for name, column in block.items():
            yield f"{path}[{name!r}].values", column.values
            if column.offsets is not None:
                yield f"{path}[{name!r}].offsets", column.offsets


def fingerprint(data: TrainingData) -> dict[str, str]:
    """Path of every array -> digest of its dtype, shape and content."""
    return {path: _digest(array) for path, array in arrays(data)}


def _digest(array: Array) -> str:
    content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + content).hexdigest()


def read_only(data: TrainingData) -> TrainingData:
    """The same data; writing into any of its arrays raises ValueError."""
    for _, array in arrays(data):
        array.setflags(write=False)
    return data


def with_columns(batch: FeatureBatch, change: Callable[[Column], Column]) -> FeatureBatch:
    """The batch with every stored column changed; members' scores are not features, and stay."""

    def changed(block: Block) -> Block:
        return {name: change(column) for name, column in block.items()}

    blocks = {entity: block if entity == "members" else changed(block) for entity, block in batch.blocks.items()}
    return replace(batch, blocks=blocks)


def without_history(batch: FeatureBatch) -> FeatureBatch:
    """No event in any sequence, and NaN in every column of floats."""

    def change(column: Column) -> Column:
        if column.offsets is not None:
            return replace(column, values=column.values[:0], offsets=np.zeros(len(column) + 1, np.int64))
        if column.values.dtype.kind == "f":
            return replace(column, values=np.full_like(column.values, np.nan))
        return column

    return replace(with_columns(batch, change), newest=np.full(len(batch), -1, np.int64))


def with_codes(batch: FeatureBatch, code: int) -> FeatureBatch:
    """Every code, in sequences too, replaced."""
    return with_columns(batch, lambda c: replace(c, values=np.full_like(c.values, code)) if c.is_code else c)


def with_long_row(batch: FeatureBatch, times: int = 30) -> FeatureBatch:
    """One more row: the one whose sequences are longest, ``times`` over. The other rows stay where they are."""
    lengths = sum((batch.column(name).lengths for name in batch.names if batch.stored(name)[1].is_sequence), np.zeros(len(batch)))
    row = int(np.argmax(lengths))
    blocks, row_of = {}, {}
    for entity, block in batch.blocks.items():
        blocks[entity] = {name: _appended(column, int(batch.row_of[entity][row]), times) for name, column in block.items()}
        stored = next((len(column) for column in blocks[entity].values()), 1)
        row_of[entity] = np.append(batch.row_of[entity], np.int32(stored - 1))
    return replace(
        batch,
        blocks=blocks,
        row_of=row_of,
        as_of=np.append(batch.as_of, batch.as_of[row]),
        newest=np.append(batch.newest, batch.newest[row]),
        group=None,
    )


def _appended(column: Column, stored: int, times: int) -> Column:
    one = column.take(np.array([stored]))
    if column.offsets is None:
        return replace(column, values=np.concatenate([column.values, one.values]))
    longer = np.tile(one.values, times)
    return replace(
        column,
        values=np.concatenate([column.values, longer]),
        offsets=np.append(column.offsets, column.offsets[-1] + len(longer)),
    )
