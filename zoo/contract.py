"""What a model plugin and zoo agree on: columns, batches, targets, models and artefacts.

The ground floor: numpy and the standard library only. A plugin imports these names from ``zoo.plugin``. It is one long page on purpose:
who writes a plugin reads it from top to bottom, and finds nothing else to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from zoo.errors import FeatureError, PluginError

if TYPE_CHECKING:
    from pydantic import BaseModel

PADDING = 0
"""Code of "nothing here": padding, or an event without an item."""
UNKNOWN = 1
"""Code of an identifier that the training window did not hold."""

Array = np.ndarray[Any, np.dtype[Any]]
TargetKind = Literal["binary", "multiclass", "ranking", "relevance", "uplift", "value"]
"""``ranking``: which item of the catalogue comes next. ``relevance``: how good each candidate of a group is."""
Progress = Callable[[float, str], None]
"""Called with the fraction done (0 to 1) and a short text."""


def silent(done: float, text: str) -> None:
    """Progress for those who do not look."""


def gather(values: Array, start: Array, lengths: Array) -> tuple[Array, Array]:
    """Concatenate the slices ``values[start[i] : start[i] + lengths[i]]``.

    Returns the flat values (sum(lengths),) and offsets int64 (n + 1,).
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    index = np.arange(offsets[-1], dtype=np.int64)
    index += np.repeat(start - offsets[:-1], lengths)
    return values[index], offsets


@dataclass(frozen=True, slots=True)
class Column:
    """One feature: a value a row, or, with ``offsets``, a sequence a row (oldest first, newest last).

    values: (n,) or, for sequences, the flat (m,); float, int, int32 codes or text (object).
    offsets: int64 (n + 1,) for sequences: row i is ``values[offsets[i]:offsets[i + 1]]``.
    dictionary: for codes, the name of the dictionary that they index (``catalogue.names[dictionary]``).
    """

    values: Array
    offsets: Array | None = None
    dictionary: str | None = None

    def __init__(self, values: Array, offsets: Array | None = None, dictionary: str | None = None) -> None:
        # as a frozen dataclass does in twice the time; an online answer has a column a feature
        _set_values(self, values)
        _set_offsets(self, offsets)
        _set_dictionary(self, dictionary)

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def is_sequence(self) -> bool:
        return self.offsets is not None

    @property
    def is_code(self) -> bool:
        return self.dictionary is not None

    @property
    def is_text(self) -> bool:
        return self.values.dtype == object

    @property
    def is_numeric(self) -> bool:
        return self.dictionary is None and self.values.dtype != object

    @property
    def lengths(self) -> Array:
        """int64 (n,): events in each row's sequence."""
        if self.offsets is None:
            raise FeatureError("a column with one value a row has no lengths; expected a sequence column")
        return np.diff(self.offsets)

    def take(self, rows: Array) -> Column:
        """The same column at these rows (int (k,)), copied."""
        if self.offsets is None:
            return replace(self, values=self.values[rows])
        values, offsets = gather(self.values, self.offsets[:-1][rows], self.lengths[rows])
        return replace(self, values=values, offsets=offsets)

    def tail(self, length: int) -> Column:
        """Sequences cut to their newest ``length`` events."""
        keep = np.minimum(self.lengths, length)
        assert self.offsets is not None
        values, offsets = gather(self.values, self.offsets[1:] - keep, keep)
        return replace(self, values=values, offsets=offsets)

    def padded(self, length: int, fill: float = 0) -> Array:
        """Newest ``length`` events as a matrix (n, length), right-aligned (newest last), filled with ``fill`` on the left."""
        cut = self.tail(length)
        out = np.full((len(cut), length), fill, dtype=cut.values.dtype)
        rows = np.repeat(np.arange(len(cut)), cut.lengths)
        assert cut.offsets is not None
        within = np.arange(len(cut.values)) - np.repeat(cut.offsets[:-1], cut.lengths)
        out[rows, within + np.repeat(length - cut.lengths, cut.lengths)] = cut.values
        return out


_set_values, _set_offsets, _set_dictionary = (getattr(Column, name).__set__ for name in ("values", "offsets", "dictionary"))

Block = Mapping[str, Column]
"""Columns of one entity kind, all of one length."""


@dataclass(frozen=True)
class Catalogue:
    """What the codes mean.

    names: dictionary name -> display text (object (size,)) by code; 0 is padding, 1 unknown. ``"item_id"`` holds titles
        where the item table has a ``title``.
    items: columns of the item table; row i belongs to item code i.
    """

    names: Mapping[str, Array] = field(default_factory=dict)
    items: Block = field(default_factory=dict)

    def size(self, dictionary: str) -> int:
        """Number of codes, padding and unknown included."""
        if dictionary not in self.names:
            raise FeatureError(f"no dictionary {dictionary!r} in the catalogue; it has: {', '.join(sorted(self.names))}")
        return len(self.names[dictionary])


@dataclass(frozen=True)
class FeatureBatch:
    """Features of n rows. Each entity's columns are stored once; ``row_of[entity]`` says which stored row belongs to row i.

    blocks: entity kind (``user``, ``item``, ``pair``, ``context``) -> columns.
    row_of: entity kind -> int32 (n,).
    as_of: int64 (n,), microseconds UTC: every feature was built from events strictly before it.
    newest: int64 (n,), time of the newest event seen for the row's user, -1 where there is none.
    group: int64 offsets of ranking groups, or None.
    """

    blocks: Mapping[str, Block]
    row_of: Mapping[str, Array]
    as_of: Array
    newest: Array
    catalogue: Catalogue = field(default_factory=Catalogue)
    group: Array | None = None
    _owner: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for entity, block in self.blocks.items():
            for name in block:
                if name in seen:
                    raise FeatureError(
                        f"feature {name!r} comes from both {seen[name]!r} and {entity!r}; names in one service must differ"
                    )
                seen[name] = entity
        object.__setattr__(self, "_owner", seen)

    def __len__(self) -> int:
        return len(self.as_of)

    @property
    def names(self) -> tuple[str, ...]:
        """Every column's name, in order of declaration."""
        return tuple(name for block in self.blocks.values() for name in block)

    def __contains__(self, name: object) -> bool:
        return name in self._owner

    def stored(self, name: str) -> tuple[str, Column]:
        """The entity kind that owns a column, and the column as stored (once an entity, not once a row)."""
        entity = self._owner.get(name)
        if entity is None:
            raise FeatureError(f"no column {name!r} in this batch; it has: {', '.join(self.names) or '(none)'}")
        return entity, self.blocks[entity][name]

    def column(self, name: str) -> Column:
        """The column expanded to the batch's n rows."""
        entity, column = self.stored(name)
        rows = self.row_of[entity]
        if len(rows) == len(column) and np.array_equal(rows, np.arange(len(rows))):
            return column
        return column.take(rows)

    def take(self, rows: Array) -> FeatureBatch:
        """The batch at these rows (int (k,)); stored columns are shared, not copied."""
        return replace(
            self,
            row_of={entity: index[rows] for entity, index in self.row_of.items()},
            as_of=self.as_of[rows],
            newest=self.newest[rows],
            group=None,
        )

    def compact(self) -> FeatureBatch:
        """Drop stored rows that no row uses (after ``take``), so that the batch holds only what it needs."""
        blocks, row_of = {}, {}
        for entity, block in self.blocks.items():
            used, inverse = np.unique(self.row_of[entity], return_inverse=True)
            blocks[entity] = {name: column.take(used) for name, column in block.items()}
            row_of[entity] = inverse.astype(np.int32)
        return replace(self, blocks=blocks, row_of=row_of)

    def select(self, patterns: Sequence[str]) -> FeatureBatch:
        """Only the columns whose name matches one of the shell-style patterns."""
        asked = tuple(patterns)
        blocks = {entity: {name: block[name] for name in _matching(tuple(block), asked)} for entity, block in self.blocks.items()}
        return self.with_blocks(blocks)

    def with_block(self, entity: str, block: Block, row_of: Array | None = None) -> FeatureBatch:
        """The batch with one more block (default: a value a row), for instance members' scores."""
        rows = np.arange(len(self), dtype=np.int32) if row_of is None else row_of
        return self.with_blocks({**self.blocks, entity: block}, {**self.row_of, entity: rows})

    def with_blocks(
        self, blocks: Mapping[str, Block], row_of: Mapping[str, Array] | None = None, catalogue: Catalogue | None = None
    ) -> FeatureBatch:
        """The batch's rows with other blocks; ``dataclasses.replace``, of one answer after another, takes as long as a small member."""
        return FeatureBatch(blocks, row_of or self.row_of, self.as_of, self.newest, catalogue or self.catalogue, self.group)


@lru_cache(maxsize=4096)  # of every answer anew it would take as long as a small member
def _matching(names: tuple[str, ...], patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The names that match one of the shell-style patterns, in their order."""
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


@dataclass(frozen=True)
class Target:
    """What is predicted: its kind, and the names of classes or horizons where there are several."""

    kind: TargetKind = "binary"
    classes: tuple[str, ...] = ()
    horizons: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Columns that ``predict`` returns."""
        return max(1, len(self.classes) if self.kind == "multiclass" else len(self.horizons))


@dataclass(frozen=True)
class TrainingData:
    """Rows to fit on, in no particular order.

    target: float64 (n,): 0/1 for binary, class numbers for multiclass, amounts for value, grades for relevance; for ranking the
        code of the row's next item, in the batch's codes: UNKNOWN where training did not see that item, PADDING where the row has
        no next item of its own and only its sequence is learnt from.
        A ranking row is one user at one instant, with the history before it as aligned sequence columns: ``items``,
        ``event_types`` and, where the log has times, ``gaps`` and ``ages``. A sequence model may learn from every position of
        them: each item is the next one of those before it.
    weight: float64 (n,). time: int64 (n,), microseconds UTC, the instant a row was drawn at (equals ``batch.as_of``).
    """

    batch: FeatureBatch
    target: Array
    weight: Array
    time: Array
    kind: Target = field(default_factory=Target)

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Array) -> TrainingData:
        return replace(
            self, batch=self.batch.take(rows), target=self.target[rows], weight=self.weight[rows], time=self.time[rows]
        )


@dataclass(frozen=True)
class Artefact:
    """Everything a fitted model needs, as arrays (written as safetensors) and texts (written as UTF-8 files).

    Names are relative paths of letters, digits, ``._-`` and ``/``; a text's ends in ``.json``, ``.txt``, or has
    no ending. zoo writes, hashes and records; a plugin does no file I/O.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def nested(self, prefix: str) -> Artefact:
        """The same content under ``prefix/``."""
        return Artefact({f"{prefix}/{k}": v for k, v in self.arrays.items()}, {f"{prefix}/{k}": v for k, v in self.texts.items()})

    def part(self, prefix: str) -> Artefact:
        """What ``nested(prefix)`` put in."""
        cut = len(prefix) + 1
        return Artefact(
            {k[cut:]: v for k, v in self.arrays.items() if k.startswith(f"{prefix}/")},
            {k[cut:]: v for k, v in self.texts.items() if k.startswith(f"{prefix}/")},
        )

    @staticmethod
    def merged(*parts: Artefact) -> Artefact:
        """One artefact of several whose names differ."""
        arrays: dict[str, Array] = {}
        texts: dict[str, str] = {}
        for part in parts:
            twice = (arrays.keys() & part.arrays.keys()) | (texts.keys() & part.texts.keys())
            if twice:
                raise PluginError(f"an artefact would hold {sorted(twice)[0]!r} twice; give each part its own prefix")
            arrays.update(part.arrays)
            texts.update(part.texts)
        return Artefact(arrays, texts)


class Checkpoint(Protocol):
    """Where a long fit keeps how far it is; zoo removes it when the fit is done."""

    def load(self) -> Artefact | None:
        """What was saved last by a run of the same data, parameters, seed and code, or None."""
        ...

    def save(self, make: Callable[[], Artefact]) -> None:
        """Keep what ``make`` returns in place of what was there; not called where the last one is young enough."""
        ...


class _NoCheckpoint:
    def load(self) -> Artefact | None:
        return None

    def save(self, make: Callable[[], Artefact]) -> None:
        pass


NO_CHECKPOINT: Checkpoint = _NoCheckpoint()
"""Keeps nothing."""


@runtime_checkable
class FittedModel(Protocol):
    """A model that can only exist fitted."""

    def predict(self, batch: FeatureBatch) -> Array:
        """float32 (n, k): probabilities for binary (k = 1) and multiclass (k = classes, rows sum to 1), else scores.

        For ranking what ``ScoresItems.score_items(batch)`` gives: a score for every code of the catalogue.
        """
        ...

    def save(self) -> Artefact:
        """Everything that ``ModelPlugin.load`` needs to answer the same, bit for bit."""
        ...


@runtime_checkable
class ScoresItems(FittedModel, Protocol):
    """A fitted model that ranks the catalogue: what fitting a ``ranking`` target returns."""

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        """float32 (n, m), finite, on any scale: the larger, the sooner that item is this row's next one.

        items: int32 (m,) item codes; default every code, so m is ``batch.catalogue.size("item_id")`` and column c is of code c. What
        stands for PADDING and UNKNOWN means nothing. An item's score does not depend on which others are asked for.
        """
        ...


@runtime_checkable
class ScoresUnseen(ScoresItems, Protocol):
    """A fitted model that also scores items which training did not hold, by what the item table says of them.

    It alone is given batches whose codes go on behind those of training: such items, in the catalogue and in histories.
    """

    def scorable(self, catalogue: Catalogue) -> Array:
        """bool (codes,): the items of any catalogue of the log that it can score."""
        ...


@runtime_checkable
class EncodesItems(ScoresUnseen, Protocol):
    """A fitted model with a vector for each item that it can score, which other models may take as a feature."""

    def item_vectors(self, catalogue: Catalogue) -> Array:
        """float32 (codes, d) of any catalogue of the log; rows that are not ``scorable`` mean nothing."""
        ...


@dataclass(frozen=True)
class Contributions:
    """What moved scores. names: of what did, m of them, each once; ``COLUMN`` or ``COLUMN.PART`` where it is a column of the batch or
    made of one. values: float64 (n, k, m), how much each added to the raw score. base: float64 (n, k), the raw score without any.

    The raw score is ``base + values.sum(axis=2)``, on the model's own scale (log-odds, for instance): the larger, the larger what
    ``predict`` gives.
    """

    names: tuple[str, ...]
    values: Array
    base: Array


@runtime_checkable
class Explains(FittedModel, Protocol):
    """A fitted model that says what moved its scores. Optional: of others, zoo leaves out one column at a time and looks."""

    def explain(self, batch: FeatureBatch) -> Contributions:
        """For each row and column of ``predict(batch)``, how much each of the model's own columns moved it."""
        ...


@dataclass(frozen=True)
class ModelSpec:
    """What a model is called and what it takes, cheap enough to list without loading it.

    inputs: shell-style patterns of the columns that it may read; it is given no others.
    params: returns the pydantic model of its parameters (a callable, so that listing imports no pydantic).
    resumes: whether ``fit`` takes ``checkpoint``, to go on where a run that died was.
    """

    name: str
    params: Callable[[], type[BaseModel]]
    inputs: tuple[str, ...] = ("*",)
    targets: frozenset[TargetKind] = frozenset({"binary"})
    summary: str = ""
    resumes: bool = False


@runtime_checkable
class ModelPlugin(Protocol):
    """One kind of model. Stateless: ``fit`` returns another type, so "not fitted" cannot happen."""

    @property
    def spec(self) -> ModelSpec: ...

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:
        """Fit on all rows. Must accept one class only, empty histories and columns of any declared kind."""
        ...

    def load(self, artefact: Artefact) -> FittedModel:
        """The fitted model that ``save`` wrote."""
        ...

    def tiny(self) -> BaseModel:
        """Parameters small enough to fit toy data in about a second."""
        ...


@dataclass(frozen=True)
class Examples:
    """Labelled rows of a task.

    keys: entity and context columns by name, (n,) each, raw identifiers.
    time: int64 (n,), when the row is predicted. target: float64 (n,), for ranking the log's code of the next item.
    known_at: int64 (n,), when its label became certain; training may use a row only at or after that.
    """

    keys: Mapping[str, Array]
    time: Array
    target: Array
    known_at: Array

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: Array) -> Examples:
        return Examples(
            {name: values[rows] for name, values in self.keys.items()}, self.time[rows], self.target[rows], self.known_at[rows]
        )


@dataclass(frozen=True)
class Split:
    """A task's rows on both sides of its test. validation: the rows that choices are made on; None where folds of ``train`` are.

    refit: training rows up to the test, those of validation among them, for what is fitted again once choices are made; None for none.
    baselines: scores (test rows,) of what a task always compares with, by name.
    """

    train: Examples
    test: Examples
    validation: Examples | None = None
    refit: Examples | None = None
    baselines: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Task:
    """A question about the log: which rows, which label, which features.

    entities: key columns of a row (``user_id``, or ``user_id`` and ``campaign_id``).
    context: further request columns with their numpy dtype.
    examples: ``(log, settings, start, end) -> Examples`` drawn at ``start <= time < end``; settings are the task's table in
        zoo.toml.
    split: ``(log, settings, test_start, test_end) -> Split`` where a task's rows are not parted by one instant (leave-one-out), or
        want rows of another kind on either side; instants in microseconds UTC or None. ``gap`` (a duration between the last label of
        training and the test) and ``open_labels`` (True: test rows keep labels that are not certain yet) are among the settings where
        they are asked for.
    targets: ``(log, settings) -> Target`` where the classes are the log's (``target`` then says the kind only).
    contexts: ``(settings) -> context`` where the request columns depend on the settings.
    asked: ``(settings) -> values by context column``, all that rows are trained with: a user named alone gets a row for each.
    baselines: ``(log, settings, train, test) -> scores (test rows,) by name``, what the leaderboard always shows beside the members.
    facts: ``(log, settings, test, scores) -> JSON-ready``, what the stack's scores (test rows,) mean for the task; kept with the run.
    """

    name: str
    entities: tuple[str, ...]
    target: Target
    examples: Callable[..., Examples]
    split: Callable[..., Split] | None = None
    targets: Callable[..., Target] | None = None
    contexts: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None
    asked: Callable[[Mapping[str, Any]], Mapping[str, tuple[Any, ...]]] | None = None
    baselines: Callable[..., Mapping[str, Array]] | None = None
    facts: Callable[..., Mapping[str, Any]] | None = None
    context: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    feature_service: str = ""
    summary: str = ""

    @property
    def service(self) -> str:
        """The feature service that it reads (default: its own name)."""
        return self.feature_service or self.name

    def resolved(self, view: Any, settings: Mapping[str, Any]) -> Task:
        """The task with its target and context as this log and these settings have them."""
        target = self.target if self.targets is None else self.targets(view, settings)
        return replace(self, target=target, context=self.context_of(settings), targets=None, contexts=None)

    def context_of(self, settings: Mapping[str, Any]) -> Mapping[str, str]:
        """The context columns under these settings."""
        return self.context if self.contexts is None else self.contexts(settings)
