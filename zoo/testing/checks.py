"""The contract as checks: each is a function that returns None when kept, a reason when it does not apply, or raises CheckFailed.

No pytest here: the command line runs the same checks.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from zoo.artefacts import ArtefactStore
from zoo.contract import (
    PADDING,
    UNKNOWN,
    Array,
    Column,
    Explains,
    FeatureBatch,
    ModelPlugin,
    ModelSpec,
    ScoresItems,
    TargetKind,
)
from zoo.errors import ArtefactError
from zoo.manager import NAME
from zoo.testing import case as given
from zoo.testing.case import SMALL, Case, CheckFailed, expect, expect_close, expect_same
from zoo.testing.child import in_child
from zoo.testing.loss import losses
from zoo.testing.toy import KINDS

HEAVY = ("torch", "transformers", "lightgbm", "feast", "pandas", "sqlalchemy")
NOT_TRIED = "not tried, for toy_columns failed"
BETTER_THAN_BASE = 0.9
"""A model's loss on held-out toy rows may be at most this share of the base rate's."""
SAME_ORDER = 0.95
"""Rank correlation of summed contributions and scores, or share of rows whose first class is the same, at least."""


def light_import(plugin: ModelPlugin) -> None:
    """Importing the plugin's module imports nothing heavy, so that listing plugins stays quick."""
    with tempfile.TemporaryDirectory() as folder:
        heavy = in_child(plugin, {}, HEAVY, Path(folder))
    expect(
        not heavy,
        f"importing {type(plugin).__module__} also imports {', '.join(heavy)}; expected none of {', '.join(HEAVY)}: "
        "import them inside fit, load and predict",
    )


def spec_valid(plugin: ModelPlugin) -> None:
    """The spec names the model, its targets, its inputs and a pydantic class of parameters that needs no argument."""
    from pydantic import BaseModel

    spec, kinds = plugin.spec, get_args(TargetKind)
    expect(
        isinstance(plugin, ModelPlugin), f"{type(plugin).__name__} lacks part of ModelPlugin; expected spec, fit, load and tiny"
    )
    expect(isinstance(spec, ModelSpec), f"spec is a {type(spec).__name__}; expected a ModelSpec")
    expect(NAME.fullmatch(spec.name), f"the name is {spec.name!r}; expected lower-case letters, digits, - and _, a letter first")
    expect(
        spec.targets and spec.targets <= set(kinds),
        f"targets are {set(spec.targets)}; expected at least one of {', '.join(kinds)}",
    )
    expect(
        isinstance(spec.inputs, tuple) and spec.inputs and all(isinstance(p, str) and p for p in spec.inputs),
        f"inputs are {spec.inputs!r}; expected a tuple of column patterns, ('*',) for every column",
    )
    params = spec.params()
    expect(isinstance(params, type) and issubclass(params, BaseModel), f"params() returned {params!r}; expected a pydantic class")
    params()
    expect(isinstance(plugin.tiny(), params), f"tiny() returned a {type(plugin.tiny()).__name__}; expected a {params.__name__}")


def params_round_trip(plugin: ModelPlugin) -> None:
    """Parameters written as JSON and read back are equal: they are recorded with every version that is trained."""
    kind = plugin.spec.params()
    for which, params in (("tiny()", plugin.tiny()), ("the defaults", kind())):
        back = kind.model_validate_json(params.model_dump_json())
        expect(back == params, f"{which} came back from JSON as {back!r}; expected {params!r}")


def params_refuse_unknown(plugin: ModelPlugin) -> None:
    """A misspelt parameter is refused, not ignored."""
    from pydantic import ValidationError

    try:
        plugin.spec.params().model_validate({"no_such_parameter": 1})
    except ValidationError:
        return
    raise CheckFailed(
        "a parameter 'no_such_parameter' was accepted; expected an error: set model_config = ConfigDict(extra='forbid')"
    )


def fresh_process(plugin: ModelPlugin) -> str | None:
    """A model saved here answers the same, bit for bit, in a new process."""
    cases = {kind: Case(plugin, kind) for kind in kinds_of(plugin)}
    if any(case.unfit for case in cases.values()):
        return NOT_TRIED
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = ArtefactStore(folder)
        in_child(plugin, {kind: store.write(case.fitted.save()) for kind, case in cases.items()}, (), folder)
        for kind, case in cases.items():
            expect_same(np.load(folder / f"{kind}.npy", allow_pickle=False), case.scores, f"{kind} scores of a fresh process")
    return None


def toy_columns(case: Case) -> str | None:
    """Toy rows have the columns that the model's inputs name, or the model does without those that they lack."""
    expect(not case.unfit, case.unfit)
    return f"toy rows have no column that matches {', '.join(map(repr, case.lacking))}" if case.lacking else None


def valid_scores(case: Case) -> None:
    """float32 (n, k), finite, probabilities where the target asks for them; also for no row at all."""
    expect(len(case.scores) > 0, "no scores")
    case.predict(case.fitted, case.held_out().batch.take(np.zeros(0, np.int64)))


def data_untouched(case: Case) -> None:
    """Fitting and predicting change no byte of what they are given."""
    data, rows = case.training(SMALL), case.held_out(SMALL)
    before = given.fingerprint(data), given.fingerprint(rows)
    case.predict(case.fit(data), rows.batch)
    for when, old, new in (("fit", before[0], given.fingerprint(data)), ("predict", before[1], given.fingerprint(rows))):
        changed = [path for path in old if old[path] != new[path]]
        expect(not changed, f"{when} changed {', '.join(changed)}; expected the data as it was: copy before writing")


def read_only_data(case: Case) -> None:
    """Arrays that refuse to be written to, as memory-mapped ones do, serve as well."""
    case.predict(case.fit(given.read_only(case.training(SMALL))), given.read_only(case.held_out(SMALL)).batch)


def same_seed(case: Case) -> None:
    """Two fits with one seed score the same, bit for bit, whatever the global random state is."""
    _ = case.fitted
    np.random.random(7)  # moves the global state that a plugin might use by mistake
    expect_same(case.predict(case.fit(case.training()), case.held_out().batch), case.scores, "a second fit with the same seed")


def one_class(case: Case) -> None:
    """A window whose rows all have one label is no error."""
    labels = {"binary": (0.0, 1.0), "multiclass": (2.0,), "value": (0.0, 7.5), "ranking": (2.0, float(UNKNOWN), float(PADDING))}
    for label in labels.get(case.kind, (0.0,)):
        data = case.training(SMALL)
        case.predict(case.fit(replace(data, target=np.full(len(data), label))), case.held_out(SMALL).batch)


def declared_inputs(case: Case) -> None:
    """Columns that it did not declare, or did not see in fit, change no score."""
    everything = case.rows(len(case.scores), 2).batch
    expect_same(case.predict(case.fitted, _with_strangers(everything)), case.scores, "with columns that fit did not see")


def alone_equals_batch(case: Case) -> None:
    """A row scores the same alone, with or without the stored rows of others, as among others."""
    batch = case.held_out().batch
    for row in range(0, len(batch), len(batch) // 12):
        one = batch.take(np.array([row]))
        expect_close(case.predict(case.fitted, one), case.scores[row : row + 1], f"row {row} alone")
        expect_close(case.predict(case.fitted, one.compact()), case.scores[row : row + 1], f"row {row} alone, stored alone")


def order_free(case: Case) -> None:
    """Rows in another order have the same scores."""
    order = np.random.default_rng(0).permutation(len(case.scores))
    expect_close(case.predict(case.fitted, case.held_out().batch.take(order)), case.scores[order], "rows in another order")


def padding_free(case: Case) -> None:
    """One very long sequence in the batch changes nobody else's score."""
    scores = case.predict(case.fitted, given.with_long_row(case.held_out().batch))
    expect_close(scores[:-1], case.scores, "beside a row with a sequence 30 times as long")


def empty_history(case: Case) -> None:
    """No event and no known number: neither in predict, nor in all rows of fit, is it an error."""
    case.predict(case.fitted, given.without_history(case.held_out().batch))
    data = case.training(SMALL)
    model = case.fit(replace(data, batch=given.without_history(data.batch)))
    case.predict(model, case.held_out(SMALL).batch)


def unseen_codes(case: Case) -> None:
    """Items and categories that are unknown (1) or missing (0) are no error."""
    for code in (UNKNOWN, PADDING):
        case.predict(case.fitted, given.with_codes(case.held_out().batch, code))


def two_threads(case: Case) -> None:
    """Threads that predict at once with one model get what one thread gets."""
    batch = case.held_out().batch
    halves = np.array_split(np.arange(len(batch)), 2)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda rows: case.predict(case.fitted, batch.take(rows)), halves * 4))
    for rows, scores in zip(halves * 4, answers, strict=True):
        expect_close(scores, case.scores[rows], "two threads at once")


def artefact_round_trip(case: Case) -> None:
    """Saved, stored as files, read and loaded, a model answers the same, bit for bit; its arrays and names can be stored."""
    artefact = case.fitted.save()
    for name, array in artefact.arrays.items():
        expect(array.dtype != object, f"array {name!r} of the artefact holds Python objects; expected numbers: put text in texts")
    with tempfile.TemporaryDirectory() as folder:
        store = ArtefactStore(folder)
        try:
            loaded = case.plugin.load(store.read(store.write(artefact)))
        except ArtefactError as error:
            raise CheckFailed(f"the artefact cannot be stored: {error}") from error
    expect_same(case.predict(loaded, case.held_out().batch), case.scores, "scores after saving and loading")


def beats_base_rate(case: Case) -> None:
    """On held-out rows whose label depends on the sequence, the loss is clearly below that of a constant."""
    data, held_out = case.training(), case.held_out()
    what, seen, base = losses(case.scores.astype(np.float64), data, held_out)
    expect(
        seen <= BETTER_THAN_BASE * base,
        f"{what} on {len(held_out)} held-out rows is {seen:.4f}, the base rate's {base:.4f}; "
        f"expected at most {BETTER_THAN_BASE} of that, {BETTER_THAN_BASE * base:.4f}",
    )


def contributions_add_up(case: Case) -> None:
    """A model that explains itself: contributions are finite, named once each, the same for a row alone, and their sums order rows as
    its scores do.
    """
    model, batch = case.fitted, case.held_out().batch
    if not isinstance(model, Explains):
        return  # it need not
    found = model.explain(batch)
    width, names = case.scores.shape[1], len(found.names)
    expect(
        len(set(found.names)) == names > 0, f"contributions are named {', '.join(found.names) or '(none)'}; expected each once"
    )
    for what, array, shape in (("values", found.values, (len(batch), width, names)), ("base", found.base, (len(batch), width))):
        expect(array.shape == shape, f"{what} of contributions have shape {array.shape}; expected {shape}")
        expect(np.isfinite(array).all(), f"{what} of contributions hold numbers that are not finite")
    one = model.explain(batch.take(np.array([3])))
    expect(one.names == found.names, "a row alone has contributions of other names than among others")
    expect_close(one.values[:, 0], found.values[3:4, 0], "contributions of row 3 alone")
    raw = found.base + found.values.sum(axis=2)
    if width > 1:
        what, agreement = "name the same class first", float((raw.argmax(axis=1) == case.scores.argmax(axis=1)).mean())
    else:
        what, agreement = "order rows alike", _rank_correlation(raw[:, 0], case.scores[:, 0])
    expect(
        agreement >= SAME_ORDER,
        f"base and contributions, summed, and the scores do not {what} (agreement {agreement:.3f}); expected at least {SAME_ORDER}: "
        "the larger the sum, the larger the score",
    )


def _rank_correlation(a: Array, b: Array) -> float:
    places = [np.argsort(np.argsort(each, kind="stable")) for each in (a, b)]
    return float(np.corrcoef(places[0], places[1])[0, 1]) if a.std() and b.std() else 1.0


def items_apart(case: Case) -> None:
    """A model that ranks the catalogue scores any items, in any order, none at all included, as it scores them among all others."""
    model, batch = case.fitted, case.held_out().batch
    if not isinstance(model, ScoresItems):
        raise CheckFailed(f"fitting a ranking target gave a {type(model).__name__} without score_items; expected a ScoresItems")
    expect_same(model.score_items(batch), case.scores, "score_items without items, beside predict")
    codes = np.random.default_rng(0).integers(0, case.scores.shape[1], 9).astype(np.int32)
    for items in (codes, codes[:1], codes[:0]):
        scores = model.score_items(batch, items)
        expect(
            scores.dtype == np.float32 and scores.shape == (len(batch), len(items)),
            f"score_items returned {scores.dtype} {scores.shape} for {len(batch)} rows and {len(items)} items; "
            f"expected float32 {(len(batch), len(items))}",
        )
        if len(items):
            expect_close(scores, case.scores[:, items], f"scores of {len(items)} items apart")


def progress_told(case: Case) -> None:
    """fit tells how far it is: numbers from 0 to 1 that never fall, each with a text."""
    _ = case.fitted
    done = [fraction for fraction, _ in case.heard]
    expect(done, "fit never called progress; expected at least one call")
    expect(all(isinstance(text, str) for _, text in case.heard), "progress was called without a text; expected (fraction, text)")
    expect(all(math.isfinite(f) and 0 <= f <= 1 for f in done), f"progress went from {min(done)} to {max(done)}; expected 0 to 1")
    for before, after in itertools.pairwise(done):
        expect(after >= before, f"progress fell from {before:.3f} to {after:.3f}; expected it never to fall")


GENERAL: Mapping[str, Callable[[ModelPlugin], str | None]] = {
    f.__name__: f for f in (spec_valid, light_import, params_round_trip, params_refuse_unknown, fresh_process)
}
FOR_EACH_KIND: Mapping[str, Callable[[Case], str | None]] = {
    f.__name__: f
    for f in (
        toy_columns,
        valid_scores,
        data_untouched,
        read_only_data,
        same_seed,
        one_class,
        declared_inputs,
        alone_equals_batch,
        order_free,
        padding_free,
        empty_history,
        unseen_codes,
        two_threads,
        artefact_round_trip,
        beats_base_rate,
        progress_told,
        contributions_add_up,
    )
}
FOR_ONE_KIND: Mapping[TargetKind, Mapping[str, Callable[[Case], str | None]]] = {"ranking": {"items_apart": items_apart}}


def kinds_of(plugin: ModelPlugin) -> tuple[TargetKind, ...]:
    """The kinds of target that it takes and that there is toy data for."""
    return tuple(kind for kind in KINDS if kind in plugin.spec.targets)


def _with_strangers(batch: FeatureBatch) -> FeatureBatch:
    rng = np.random.default_rng(5)
    n = len(batch)
    lengths = rng.integers(0, 4, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    strangers = {
        "undeclared_number": Column(rng.random(n)),
        "undeclared_code": Column(rng.integers(0, 3, n).astype(np.int32), dictionary="event_type"),
        "undeclared_sequence": Column(rng.random(offsets[-1]), offsets),
    }
    return batch.with_block("undeclared", strangers)
