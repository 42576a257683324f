"""The recurrent plugins: what they read, that padding and company change nothing, and how they train.

One file for three models, which differ in their cell.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo_recurrent import GRU, LSTM, SimpleRNN, zoo_models
from zoo_recurrent.columns import Code, Columns, Number
from zoo_recurrent.fitting import batches, newest
from zoo_recurrent.inputs import Layout
from zoo_recurrent.models import FittedRecurrent, Recurrent
from zoo_recurrent.network import Sequences, Tensors
from zoo_recurrent.params import RecurrentParams

from zoo.plugin import UNKNOWN, Array, Catalogue, Column, FeatureBatch, PluginError, Target, TrainingData
from zoo.testing import contract

MODELS = [SimpleRNN(), LSTM(), GRU()]
TINY = GRU().tiny()

test_rnn_contract = contract(SimpleRNN())
test_lstm_contract = contract(LSTM())
test_gru_contract = contract(GRU())


def offsets(lengths: Array) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)])


def shop(count: int = 300, seed: int = 0, longest: int = 12) -> TrainingData:
    """Shoppers who buy when the newest item is even: line sequences, visit sequences, scalars with gaps, text."""
    rng = np.random.default_rng(seed)
    lines, visits = offsets(rng.integers(0, longest + 1, count)), offsets(rng.integers(0, 5, count))
    items = rng.integers(2, 20, lines[-1]).astype(np.int32)
    newest_item = np.where(np.diff(lines) > 0, np.append(items, 0)[lines[1:] - 1], 1)
    target = (rng.random(count) < np.where(newest_item % 2 == 0, 0.9, 0.1)).astype(float)
    user = {
        "items": Column(items, lines, "item_id"),
        "gaps": Column(rng.exponential(1e5, lines[-1]), lines),
        "visit_values": Column(rng.exponential(20.0, visits[-1]), visits),
        "words": Column(np.array(["milk"] * lines[-1], object), lines),
        "recency": Column(np.where(np.diff(lines) > 0, rng.exponential(1e6, count), np.nan)),
        "age": Column(rng.integers(0, 5, count).astype(np.int32), dictionary="age"),
        "note": Column(np.array(["hello"] * count, object)),
    }
    context = {"hour": Column(rng.integers(0, 24, count))}
    time = rng.integers(0, 50, count) * 10**9
    rows = np.arange(count, dtype=np.int32)
    names = {"item_id": np.array(["?"] * 20, object), "age": np.array(["?"] * 5, object)}
    batch = FeatureBatch({"user": user, "context": context}, {"user": rows, "context": rows}, time, time, Catalogue(names))
    return TrainingData(batch, target, np.ones(count), time)


def altered(batch: FeatureBatch, entity: str = "user", **columns: Column) -> FeatureBatch:
    return replace(batch, blocks={**batch.blocks, entity: {**batch.blocks[entity], **columns}})


def fit(
    data: TrainingData, model: Recurrent | None = None, seed: int = 1, texts: list[str] | None = None, **params: object
) -> FittedRecurrent:
    chosen = RecurrentParams.model_validate({**TINY.model_dump(), **params})
    told = [] if texts is None else texts
    return (model or GRU()).fit(data, params=chosen, seed=seed, progress=lambda _, text: told.append(text))


def auc(score: Array, target: Array) -> float:
    return float((score[target == 1][:, None] > score[target == 0][None]).mean())


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return shop()


@pytest.fixture(scope="module")
def fitted(data: TrainingData) -> FittedRecurrent:
    return fit(data)


# --- as a plugin ---------------------------------------------------------------------------------------------------------------


def test_listing_the_models_imports_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys, zoo_recurrent\n"
        "print([m.spec.name for m in zoo_recurrent.zoo_models()], sorted({'torch', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['rnn', 'lstm', 'gru'] []"


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.spec.name)
def test_learns_what_only_the_order_of_items_tells(model: Recurrent) -> None:
    assert any(type(model) is type(other) for other in zoo_models())
    later = shop(seed=1)
    scores = fit(shop(600), model, scalars=False).predict(later.batch)
    assert scores.shape == (300, 1)
    assert scores.dtype == np.float32
    assert auc(scores[:, 0], later.target) > 0.75


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.spec.name)
@pytest.mark.parametrize("pooling", ["last", "mean_last", "attention"])
def test_a_row_scores_alike_alone_and_beside_longer_ones(model: Recurrent, pooling: str, data: TrainingData) -> None:
    chosen = fit(data, model, pooling=pooling, epochs=2, layers=2)
    together = chosen.predict(data.batch)[:, 0]
    for row in range(0, 60, 7):
        alone = chosen.predict(data.batch.take(np.array([row])).compact())
        assert abs(float(alone[0, 0]) - together[row]) < 1e-5


def test_saved_and_loaded_models_answer_bit_for_bit(data: TrainingData) -> None:
    chosen = fit(data, LSTM(), seeds=2, layers=2, pooling="attention", epochs=2)
    artefact = chosen.save()
    assert all(re.fullmatch(r"[\w.\-/]+", name) for name in (*artefact.arrays, *artefact.texts))
    assert {array.dtype.name for array in artefact.arrays.values()} == {"float32", "int32"}
    for array in artefact.arrays.values():
        array.flags.writeable = False
    loaded = LSTM().load(artefact)
    np.testing.assert_array_equal(loaded.predict(data.batch), chosen.predict(data.batch))
    assert loaded.save().texts == artefact.texts
    with pytest.raises(PluginError, match="holds a model 'lstm', not 'gru'"):
        GRU().load(artefact)


# --- randomness and threads ----------------------------------------------------------------------------------------------------


def test_the_seed_alone_decides_and_the_global_generators_are_left_alone(data: TrainingData) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = fit(data, seed=3, epochs=2, layers=2).predict(data.batch)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)
    torch.manual_seed(6)
    np.testing.assert_array_equal(fit(data, seed=3, epochs=2, layers=2).predict(data.batch), first)
    assert np.abs(fit(data, seed=4, epochs=2, layers=2).predict(data.batch) - first).max() > 1e-3


def test_two_threads_share_a_model(fitted: FittedRecurrent, data: TrainingData) -> None:
    expected = fitted.predict(data.batch)
    with ThreadPoolExecutor(2) as pool:
        for scores in pool.map(lambda _: fitted.predict(data.batch), range(6)):
            np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_several_seeds_are_averaged(data: TrainingData) -> None:
    chosen = fit(data, seeds=3, epochs=2)
    single = [replace(chosen, networks=[network]).predict(data.batch) for network in chosen.networks]
    assert np.abs(single[0] - single[1]).max() > 1e-3
    np.testing.assert_allclose(chosen.predict(data.batch), np.mean(single, axis=0), atol=1e-6)


# --- what is read --------------------------------------------------------------------------------------------------------------


def names(layout: Layout) -> Mapping[str, list[list[str]]]:
    return {"streams": [list(columns.names()) for columns in layout.streams], "scalars": [list(layout.scalars.names())]}


def test_columns_are_told_apart_by_kind_and_sequences_grouped_by_equal_offsets(fitted: FittedRecurrent) -> None:
    assert names(fitted.layout) == {"streams": [["gaps", "items"], ["visit_values"]], "scalars": [["recency", "hour", "age"]]}
    assert len(fitted.networks[0].encoders) == 2


def test_patterns_choose_streams_and_scalars(data: TrainingData) -> None:
    chosen = fit(data, streams=("visit_*",), scalars=("rec*", "note"), epochs=1)
    assert names(chosen.layout) == {"streams": [["visit_values"]], "scalars": [["recency"]]}
    without = data.batch.select(["visit_values", "recency"])
    np.testing.assert_array_equal(chosen.predict(without), chosen.predict(data.batch))
    assert names(fit(data, streams=(), epochs=1).layout)["streams"] == []


def test_steps_older_than_max_length_change_nothing(data: TrainingData) -> None:
    chosen = fit(data, max_length=3, epochs=2)
    lines = {name: data.batch.stored(name)[1].tail(3) for name in ("items", "gaps")}
    np.testing.assert_array_equal(chosen.predict(altered(data.batch, **lines)), chosen.predict(data.batch))
    shorter = {name: column.tail(2) for name, column in lines.items()}
    assert np.abs(chosen.predict(altered(data.batch, **shorter)) - chosen.predict(data.batch)).max() > 1e-4


def test_sequences_aligned_only_by_chance_in_training_are_read_from_their_newest_step(data: TrainingData) -> None:
    chosen = fit(data, epochs=2)
    gaps = data.batch.stored("gaps")[1]
    scores = chosen.predict(altered(data.batch, gaps=gaps.tail(4)))
    short = gaps.lengths <= 4
    assert 0 < short.sum() < 300
    np.testing.assert_array_equal(scores[short], chosen.predict(data.batch)[short])
    assert np.isfinite(scores).all()


def test_a_code_that_training_never_saw_scores_as_unknown(fitted: FittedRecurrent, data: TrainingData) -> None:
    items = data.batch.stored("items")[1]
    scores = [
        fitted.predict(altered(data.batch, items=replace(items, values=np.full_like(items.values, code))))
        for code in (UNKNOWN, 10_000, -3)
    ]
    np.testing.assert_array_equal(scores[1], scores[0])
    np.testing.assert_array_equal(scores[2], scores[0])


def test_rare_codes_share_the_unknown_embedding_and_the_vocabulary_is_capped() -> None:
    values = np.repeat([0, 1, 2, 3, 4, 6], [9, 9, 4, 1, 3, 5]).astype(np.int32)
    code = Code.learn("items", values, most=2, least=2)
    np.testing.assert_array_equal(code.look(np.arange(-1, 9)), [1, 0, 1, 2, 1, 1, 1, 3, 1, 1])
    assert code.rows == 4
    assert Code.learn("items", values[:0], most=2, least=2).rows == 2


def scaled(number: Number, values: Array) -> Array:
    """The matrix of one column."""
    return Columns((number,), ()).matrices(len(values), lambda *_: values)[0]


def test_numbers_are_squashed_scaled_clipped_and_missing_ones_marked() -> None:
    values = np.array([-10.0, 0.0, 10.0, np.nan, np.inf])
    number = Number.learn("value", values)
    assert number.missing
    expected = [[-np.sqrt(1.5), 0], [0, 0], [np.sqrt(1.5), 0], [0, 1], [0, 1]]
    np.testing.assert_allclose(scaled(number, values), expected, atol=1e-6)
    assert scaled(number, np.array([1e300]))[0].tolist() == [5.0, 0.0]
    assert not Number.learn("value", values[:3]).missing
    np.testing.assert_array_equal(scaled(Number.learn("constant", np.full(4, 7)), np.array([7, 7])), [[0], [0]])
    np.testing.assert_array_equal(scaled(Number.learn("absent", np.full(4, np.nan)), np.array([0.0])), [[0, 0]])


def test_columns_are_scaled_alike_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = {
        name: np.where(rng.random(100) < share, np.nan, rng.normal(size=100) * 50) for name, share in zip("abc", (0, 0.3, 0))
    }
    columns = Columns(tuple(Number.learn(name, each) for name, each in values.items()), ())
    whole, _ = columns.matrices(100, lambda name, _: values[name])
    assert whole.shape == (100, 4)
    np.testing.assert_array_equal(whole[:, 3], np.isnan(values["b"]))
    monkeypatch.setattr("zoo_recurrent.columns.ROWS", 7)
    np.testing.assert_array_equal(columns.matrices(100, lambda name, _: values[name])[0], whole)


def test_rows_that_share_a_user_encode_its_sequence_once(fitted: FittedRecurrent, data: TrainingData) -> None:
    rows = np.repeat([5, 9], 50)
    encoded: list[int] = []
    hooks = [e.register_forward_hook(lambda _, args, out: encoded.append(len(out))) for e in fitted.networks[0].encoders]
    scores = fitted.predict(data.batch.take(rows))
    for hook in hooks:
        hook.remove()
    assert encoded == [2, 2]
    np.testing.assert_allclose(scores, fitted.predict(data.batch)[rows], atol=1e-6)


def test_padding_follows_the_steps_and_is_zero(data: TrainingData) -> None:
    layout = Layout.learn(data.batch, streams=("items", "gaps"), scalars=False, max_length=12, most=9, least=1)
    inputs = layout.read(data.batch)
    lengths = data.batch.stored("items")[1].lengths
    assert 0 in lengths
    numbers, codes, length = Sequences.of(inputs.streams[0]).padded(torch.arange(300))
    assert numbers.shape == (12, 300, 1)
    assert codes.shape == (12, 300, 1)
    np.testing.assert_array_equal(length, lengths)
    real = np.arange(12)[:, None] < lengths
    assert not numbers[..., 0][~real].any()
    np.testing.assert_array_equal(numbers[..., 0].T[real.T], inputs.streams[0].numbers[:, 0])


def test_an_empty_history_has_a_learned_vector(data: TrainingData) -> None:
    chosen = fit(data, scalars=False, epochs=4)
    empty = Column(np.zeros(0, np.int32), np.zeros(3, np.int64), "item_id")
    cold = {"items": empty, "gaps": replace(empty, dictionary=None), "visit_values": replace(empty, dictionary=None)}
    time = np.zeros(2, np.int64)
    scores = chosen.predict(FeatureBatch({"user": cold}, {"user": np.arange(2, dtype=np.int32)}, time, time))
    assert np.isfinite(scores).all()
    assert chosen.networks[0].encoders[0].empty.abs().max() > 1e-3


def test_a_batch_that_lacks_a_learned_column_is_refused_by_name(fitted: FittedRecurrent, data: TrainingData) -> None:
    with pytest.raises(PluginError, match="lacks recency, which the model was trained on"):
        fitted.predict(data.batch.select(["items", "gaps", "visit_values", "hour", "age"]))
    with pytest.raises(PluginError, match="'items' was a sequence in training"):
        fitted.predict(altered(data.batch, items=data.batch.stored("age")[1]))
    with pytest.raises(PluginError, match="'age' had one value a row in training"):
        fitted.predict(altered(data.batch, age=data.batch.stored("items")[1]))


def test_a_window_without_any_event_gives_the_base_rate(data: TrainingData) -> None:
    empty = {
        name: replace(column, values=column.values[:0], offsets=np.zeros(301, np.int64))
        for name, column in data.batch.blocks["user"].items()
        if column.is_sequence
    }
    chosen = fit(replace(data, batch=altered(data.batch, **empty)), scalars=False, validation=0.0)
    np.testing.assert_allclose(chosen.predict(data.batch), data.target.mean(), atol=0.05)


def test_nothing_to_read_is_an_error_that_names_the_columns(data: TrainingData) -> None:
    with pytest.raises(PluginError, match=r"match no numeric or code column.*items, gaps"):
        fit(data, streams=("nothing",), scalars=False)


# --- training ------------------------------------------------------------------------------------------------------------------


def test_one_class_predicts_near_the_base_rate(data: TrainingData) -> None:
    for value in (0.0, 1.0):
        scores = fit(replace(data, target=np.full(300, value))).predict(data.batch)
        assert np.abs(scores - value).max() < 0.05


def test_classes_sum_to_one_and_are_told_apart(data: TrainingData) -> None:
    items = data.batch.stored("items")[1]
    assert items.offsets is not None
    last = np.where(items.lengths > 0, np.append(items.values, 0)[items.offsets[1:] - 1], 0)
    target = np.where(last == 0, 0.0, 1.0 + (last >= 11))
    chosen = fit(replace(data, target=target, kind=Target("multiclass", ("none", "low", "high"))))
    scores = chosen.predict(data.batch)
    assert scores.shape == (300, 3)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    assert (scores.argmax(1) == target).mean() > 0.8
    np.testing.assert_array_equal(GRU().load(chosen.save()).predict(data.batch), scores)


def test_values_come_back_in_their_own_unit(data: TrainingData) -> None:
    target = 5_000 + 400 * data.target
    chosen = fit(replace(data, target=target, kind=Target("value")))
    scores = chosen.predict(data.batch)[:, 0]
    assert 4_900 < scores.min() < scores.max() < 5_500
    assert np.corrcoef(scores, target)[0, 1] > 0.6


def test_the_newest_rows_are_held_out_and_no_instant_is_on_both_sides() -> None:
    time = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 10))
    older, late = newest(time, 0.13)
    assert len(late) == 30
    assert time[older].max() < time[late].min()
    assert sorted([*older, *late]) == list(range(200))
    assert len(newest(time, 0.0)[1]) == 0
    assert len(newest(np.zeros(200), 0.15)[1]) == 0
    assert len(newest(time[:40], 0.15)[1]) == 0


def test_training_stops_early_and_keeps_the_best_pass(data: TrainingData) -> None:
    noise = replace(data, target=np.random.default_rng(0).integers(0, 2, 300).astype(float))
    texts: list[str] = []
    chosen = fit(noise, texts=texts, epochs=30, patience=2, dropout=0.0, validation=0.3)
    losses = [float(text.rsplit(" ", 1)[1]) for text in texts if text.startswith("epoch")]
    assert len(losses) == int(np.argmin(losses)) + 3 < 30
    _, late = newest(noise.time, 0.3)
    score, truth = chosen.predict(noise.batch)[late, 0].astype(float), noise.target[late]
    assert abs(-np.log(np.where(truth == 1, score, 1 - score)).mean() - min(losses)) < 1e-3


def test_refit_trains_on_all_rows_for_the_best_number_of_passes(data: TrainingData) -> None:
    texts: list[str] = []
    fit(data, texts=texts, epochs=3, refit=True)
    search = [float(text.rsplit(" ", 1)[1]) for text in texts if "validation" in text]
    again = [text for text in texts if "training" in text]
    assert len(again) == int(np.argmin(search)) + 1
    assert again[-1].startswith(f"epoch {len(again)}/{len(again)}")


def test_progress_rises_to_one(data: TrainingData) -> None:
    seen: list[float] = []
    GRU().fit(data, params=TINY.model_copy(update={"seeds": 2, "refit": True}), seed=0, progress=lambda f, _: seen.append(f))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_loss_that_diverges_says_what_to_do(data: TrainingData) -> None:
    with pytest.raises(PluginError, match=r"log-loss became (nan|inf).*lower learning_rate"):
        fit(data, learning_rate=1e30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.full(300, np.nan)}, "targets range from nan.*from 0 to 1"),
        ({"target": np.full(300, 2.0)}, "targets range from 2 to 2; a binary target"),
        ({"kind": Target("relevance")}, "gru cannot learn a relevance target; it takes: binary, multiclass, ranking, value"),
        ({"kind": Target("binary", horizons=("7d", "28d"))}, "the target has 2; train one model for each"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused(change: dict[str, object], message: str, data: TrainingData) -> None:
    with pytest.raises(PluginError, match=message):
        fit(replace(data, **change))


def test_no_rows_is_an_error(data: TrainingData) -> None:
    with pytest.raises(PluginError, match="no training rows"):
        fit(data.take(np.arange(0)))


def test_rows_without_weight_teach_nothing(data: TrainingData) -> None:
    flipped = np.concatenate([data.target, 1 - data.target])
    twice = data.take(np.tile(np.arange(300), 2))
    weighted = replace(twice, target=flipped, weight=np.repeat([1.0, 0.0], 300))
    assert auc(fit(weighted).predict(data.batch)[:, 0], data.target) > 0.8


def test_balanced_classes_raise_the_scores_of_the_rare_one(data: TrainingData) -> None:
    rare = replace(data, target=data.target * (np.arange(300) % 4 == 0))
    plain = fit(rare).predict(data.batch).mean()
    assert abs(plain - rare.target.mean()) < 0.08
    assert fit(rare, class_weight="balanced").predict(data.batch).mean() > plain + 0.15


def test_label_smoothing_keeps_scores_from_the_ends(data: TrainingData) -> None:
    params = {"epochs": 15, "validation": 0.0, "dropout": 0.0}
    assert fit(data, **params).predict(data.batch).max() > 0.97
    assert fit(data, **params, label_smoothing=0.4).predict(data.batch).max() < 0.9


def test_every_row_is_in_one_batch_and_lengths_within_a_batch_are_alike() -> None:
    steps = np.random.default_rng(0).integers(0, 100, 1_000)
    parts = [part.numpy() for part in batches(steps, 20, np.random.default_rng(1))]
    assert sorted(np.concatenate(parts)) == list(range(1_000))
    assert np.mean([np.ptp(steps[part]) for part in parts]) < 15
    again = [part.numpy() for part in batches(steps, 20, np.random.default_rng(2))]
    assert any(set(a) != set(b) for a, b in zip(parts, again, strict=True))


def test_dropout_needs_a_generator_and_unknown_gets_trained(data: TrainingData, fitted: FittedRecurrent) -> None:
    network = fitted.networks[0]
    inputs = Tensors.of(fitted.layout.read(data.batch))
    rows = torch.arange(300)
    with torch.inference_mode():
        torch.testing.assert_close(network(inputs, rows, None), network.predict(inputs), atol=1e-5, rtol=0)
        assert (network(inputs, rows, torch.Generator().manual_seed(0)) - network.predict(inputs)).abs().max() > 0.01
    assert UNKNOWN not in data.batch.stored("items")[1].values
    untrained = torch.Generator().manual_seed(0)
    table = network.encoders[0].mixer.tables[0]
    problem = network(inputs, rows, untrained).sum()
    problem.backward()
    assert table.weight.grad is not None
    assert table.weight.grad[UNKNOWN].abs().max() > 0


def test_parameters_round_trip_and_refuse_what_they_do_not_know() -> None:
    params = RecurrentParams(streams=("visit_*",), pooling="attention")
    assert RecurrentParams.model_validate_json(params.model_dump_json()) == params
    assert json.loads(params.model_dump_json())["streams"] == ["visit_*"]
    with pytest.raises(ValueError, match="hiden"):
        RecurrentParams.model_validate({"hiden": 3})


def test_the_readme_example_runs_and_its_defaults_are_the_real_ones(data: TrainingData) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {"data": data, "batch": data.batch}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], scope)
    assert scope["scores"].shape == (300, 1)
    named = re.findall(r"`(\w+)` ([\d.]+)", text)
    assert len(named) == 13
    for name, value in named:
        assert getattr(RecurrentParams(), name) == float(value)
    tables = text[text.index("what to read |") :]
    assert set(re.findall(r"`(\w+)`", tables.partition("For instance")[0])) == set(RecurrentParams.model_fields)
