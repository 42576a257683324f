"""What bert says of a row, that nothing is encoded twice, that trained layers are BERT's own, and what its artefacts need."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from zoo_bert import Bert, encoder, zoo_models
from zoo_bert.columns import Columns
from zoo_bert.fitting import newest, spread
from zoo_bert.inputs import Reader
from zoo_bert.model import FittedBert
from zoo_bert.network import Layer
from zoo_bert.params import BertParams, Gap, Words

from zoo.plugin import Array, Artefact, Catalogue, Column, FeatureBatch, PluginError, Target, TrainingData
from zoo.testing import contract, toy

TINY = Bert().tiny()
DAY = 86_400.0
NAMES = {
    "item_id": ["", "?", "soft drinks", "cheese", "milk", "bread"],
    "event_type": ["", "?", "purchase", "view", "price_watch"],
    "users.age": ["", "?", "45-54"],
}
MODES = [
    pytest.param({"trained_layers": 0}, id="frozen-phrases"),
    pytest.param({"trained_layers": 2}, id="two-layers-phrases"),
    pytest.param({"trained_layers": 0, "unit": "text"}, id="frozen-texts"),
    pytest.param({"trained_layers": 1, "unit": "text"}, id="one-layer-texts"),
]

test_contract = contract(Bert())


def batch(histories: list[list[tuple[int, int, float]]], **scalars: Column) -> FeatureBatch:
    """Rows of (item, event type, days ago), oldest first."""
    flat = [event for history in histories for event in history]
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    user = {
        "things": Column(np.array([item for item, _, _ in flat], np.int32), offsets, "item_id"),
        "kinds": Column(np.array([kind for _, kind, _ in flat], np.int32), offsets, "event_type"),
        "ages": Column(np.array([days * DAY for _, _, days in flat]), offsets),
        **scalars,
    }
    count = len(histories)
    names = {name: np.array(texts, object) for name, texts in NAMES.items()}
    rows = np.arange(count, dtype=np.int32)
    return FeatureBatch({"user": user}, {"user": rows}, np.full(count, 10**15), np.full(count, -1), Catalogue(names))


def texts(rows: FeatureBatch, **changes: Any) -> list[str]:
    params = TINY.model_copy(update=changes)
    loaded = encoder.load(params.model_name_or_path, params.trained_layers)
    return Reader.make(loaded, Columns.choose(rows, params), params).texts(rows)


def fitted(data: TrainingData, seed: int = 3, **changes: Any) -> FittedBert:
    params = BertParams.model_validate(TINY.model_dump() | changes)
    return Bert().fit(data, params=params, seed=seed, progress=lambda _done, _text: None)


def test_the_plugin_offers_bert() -> None:
    assert [plugin.spec.name for plugin in zoo_models()] == ["bert"]


def test_text_is_newest_first_with_gaps_in_words_and_merges_names_of_a_day() -> None:
    history = [(5, 2, 400), (4, 2, 100), (5, 2, 20), (4, 3, 3.2), (3, 2, 3.1), (2, 2, 1.5), (3, 2, 0.4), (2, 2, 0.3), (3, 2, 0.3)]
    assert texts(batch([history]), max_tokens=500) == [
        "today: bought cheese x2, soft drinks. yesterday: bought soft drinks. 3 days ago: bought cheese. viewed milk. "
        "2 weeks ago: bought bread. 3 months ago: bought milk. over a year ago: bought bread."
    ]


def test_text_says_no_history_unknown_names_and_events_without_an_item() -> None:
    rows = batch([[], [(1, 2, 0)], [(0, 4, 2)], [(9, 1, 0)]])
    assert texts(rows) == [
        "nothing yet.",
        "today: bought something new.",
        "2 days ago: price watch.",
        "today: met something new.",
    ]


def test_names_beyond_the_daily_limit_are_counted() -> None:
    history = [(2, 2, 0), (3, 2, 0), (4, 2, 0), (5, 2, 0)]
    assert texts(batch([history]), names_per_day=2) == ["today: bought bread, milk, 2 more."]


def test_text_keeps_its_beginning_within_the_budget_of_tokens() -> None:
    history = [(2 + i % 4, 2, float(i)) for i in reversed(range(60))]
    whole, short = texts(batch([history]), max_tokens=4000)[0], texts(batch([history]), max_tokens=50)[0]
    assert whole.startswith(short.removesuffix("."))
    assert len(short) < len(whole)
    tokens = len(encoder.load("tiny-random", 0).tokens([short])[0])
    assert 35 <= tokens <= 50 + 12  # commas and stops come on top where phrases are read alone; one phrase may not fit
    with pytest.raises(ValueError, match="max_tokens"):
        BertParams(max_tokens=49)


def test_profile_is_said_first_and_padding_is_not() -> None:
    rows = batch([[(2, 2, 0)]] * 3, user_age=Column(np.array([2, 0, 1], np.int32), dictionary="users.age"))
    assert texts(rows) == ["user age 45-54. today: bought soft drinks.", *["today: bought soft drinks."] * 2]
    assert texts(rows, said=()) == ["today: bought soft drinks."] * 3


def test_without_times_and_event_types_only_names_are_said() -> None:
    assert texts(batch([[(2, 2, 5), (3, 2, 4)]]).select(["things"])) == ["cheese, soft drinks."]
    assert texts(batch([[(2, 2, 5), (3, 3, 4)]]).select(["kinds", "ages"])) == ["4 days ago: viewed. 5 days ago: bought."]


def test_a_named_column_that_does_not_fit_is_refused_with_the_choices() -> None:
    with pytest.raises(PluginError, match=r"items='ages' is not such a column; choose one of: things, kinds"):
        texts(batch([[(2, 2, 0)]]), items="ages")
    with pytest.raises(PluginError, match="nothing to read"):
        texts(batch([[]]).select(["none"]))


def test_rows_that_share_a_stored_history_say_the_same_as_alone() -> None:
    rows = batch([[(2, 2, 1)], [], [(3, 2, 0), (4, 3, 0)]]).take(np.array([2, 0, 2, 1, 2]))
    alone = [texts(rows.take(np.array([i])).compact())[0] for i in range(5)]
    assert texts(rows) == alone


def test_wording_is_a_parameter_and_chinese_is_read_character_by_character(tmp_path: Path) -> None:
    folder = chinese_bert(tmp_path / "bert")
    words = Words(
        gaps=(Gap(below=1, say="今天"), Gap(below=30, say="{n}天前")),
        long_ago="很久以前",
        verbs={"purchase": "买了"},
        colon="",
        space="",
        comma="，",  # the full-width comma of Chinese text
        stop="。",
    )
    rows = batch([[(3, 2, 40), (2, 2, 3), (3, 2, 0)]])
    names = {**rows.catalogue.names, "item_id": np.array(["", "?", "牛奶", "面包"], object)}
    rows = replace(rows, catalogue=Catalogue(names))
    model = fitted(
        TrainingData(rows.take(np.zeros(8, np.int64)), np.arange(8) % 2.0, np.ones(8), np.arange(8)),
        model_name_or_path=str(folder),
        words=words.model_dump(),
        epochs=1,
    )
    assert model.texts(rows) == ["今天买了面包。3天前买了牛奶。很久以前买了面包。"]
    tokenizer = model.reader.encoder.tokenizer
    assert tokenizer.encode("买了牛奶").tokens == ["[CLS]", "买", "了", "牛", "奶", "[SEP]"]
    assert model.predict(rows).shape == (1, 1)


def chinese_bert(folder: Path, shift: float = 0.0) -> Path:
    """A tiny BERT whose vocabulary is Chinese characters, as bert-base-chinese's is."""
    from transformers import BertConfig, BertModel, BertTokenizer

    characters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天前很久以买了牛奶面包，。:3", *(f"##{n}" for n in range(10))]
    with encoder.quiet():
        BertTokenizer(vocab={text: i for i, text in enumerate(characters)}).save_pretrained(folder)
        config = BertConfig(
            vocab_size=len(characters), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        model = BertModel(config)
        model.embeddings.word_embeddings.weight.data[5] += shift
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("changes", MODES)
def test_every_mode_learns_and_answers_alone_as_in_a_batch_and_after_loading(changes: dict[str, Any]) -> None:
    data = toy(300)
    model = fitted(data, **changes)
    scores = model.predict(data.batch)
    assert float(np.corrcoef(scores[:, 0], data.target)[0, 1]) > 0.3
    some = np.array([7, 0, 123])
    np.testing.assert_allclose(model.predict(data.batch.take(some)), scores[some], atol=1e-5)
    np.testing.assert_array_equal(Bert().load(model.save()).predict(data.batch), scores)
    np.testing.assert_array_equal(fitted(data, **changes).predict(data.batch), scores)


def test_text_alone_beats_chance_on_fresh_rows() -> None:
    model = fitted(toy(400), scalars=(), said=())
    fresh = toy(400, seed=1)
    scores = model.predict(fresh.batch)[:, 0]
    positive, negative = scores[fresh.target == 1], scores[fresh.target == 0]
    assert (positive[:, None] > negative).mean() > 0.6


def test_trained_layer_is_the_pretrained_one_and_its_first_state_is_exact() -> None:
    whole, cut = encoder.load("tiny-random", 0), encoder.load("tiny-random", 1)
    layer = Layer(cut.config, 0.0)
    layer.adopt(cut.top[0])
    tokens = torch.from_numpy(whole.tokens(["today: bought milk"])[0].astype(np.int64))[None]
    with torch.inference_mode():
        expected = whole.frozen(input_ids=tokens).last_hidden_state
        below = cut.frozen(input_ids=tokens).last_hidden_state
        padded = torch.cat([below, torch.full((1, 3, below.shape[2]), 9.0)], 1)
        mask = torch.arange(padded.shape[1])[None] < tokens.shape[1]
        torch.testing.assert_close(layer(padded, mask, None)[:, : tokens.shape[1]], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.first(padded, mask, None), expected[:, 0], atol=1e-5, rtol=0)


def test_trained_layers_move_and_frozen_ones_do_not() -> None:
    model = fitted(toy(120), embed_encoder=True)
    before, after = encoder.load("tiny-random", 1), model.save()
    adopted = after.arrays["network/text.layers.0.query.weight"]
    assert np.abs(adopted - before.top[0]["attention.self.query.weight"].numpy()).max() > 1e-4
    frozen = after.part("encoder/weights").arrays
    assert frozen.keys() == before.frozen.state_dict().keys()
    for name, weight in before.frozen.state_dict().items():
        np.testing.assert_array_equal(frozen[name], weight.numpy())


def test_a_state_depends_on_its_text_alone() -> None:
    loaded = encoder.load("tiny-random", 0)
    tokens = loaded.tokens([" ".join(["milk", "bread", "x"][: 1 + i % 3] * (1 + i % 5)) for i in range(60)])
    together = {row: state for rows, states in loaded.states(tokens) for row, state in zip(rows, states, strict=True)}
    for i in (0, 17, 59):
        np.testing.assert_array_equal(next(loaded.states([tokens[i]]))[1][0], together[i])


def test_each_text_is_encoded_once_and_found_by_the_next_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fitted(toy(200)).predict(toy(200).batch)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    for _ in range(2):
        np.testing.assert_array_equal(fitted(toy(200)).predict(toy(200).batch), plain)
        shards = [load_file(path) for path in tmp_path.rglob("*.safetensors")]
        keys = np.concatenate([shard["keys"] for shard in shards])
        assert len(np.unique(keys, axis=0)) == len(keys) > 50
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_or_unwritable_cache_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = toy(200)
    plain = fitted(data).predict(data.batch)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    fitted(data)
    shards = list(tmp_path.rglob("*.safetensors"))
    for path in shards:
        path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(fitted(data).predict(data.batch), plain)
    assert "cannot be read and is computed again" in caplog.text
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(blocked))
    np.testing.assert_array_equal(fitted(data).predict(data.batch), plain)
    assert "are not kept" in caplog.text


def test_concurrent_jobs_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy(120)
    plain = fitted(data, cache_mb=1).predict(data.batch)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: fitted(data, cache_mb=1), range(4)))
    for model in models:
        np.testing.assert_array_equal(model.predict(data.batch), plain)


def test_training_leaves_the_global_random_state_as_it_was() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fitted(toy(60), epochs=1)
    torch.testing.assert_close(torch.get_rng_state(), state)


def test_embedded_encoder_needs_no_folder_and_a_reference_needs_the_same_one(tmp_path: Path) -> None:
    data = toy(80)
    folder = chinese_bert(tmp_path / "bert")
    alone = fitted(data, model_name_or_path=str(folder), embed_encoder=True, epochs=1)
    referring = fitted(data, model_name_or_path=str(folder), epochs=1)
    saved, reference = alone.save(), referring.save()
    assert not any(name.startswith("encoder/") for name in [*reference.arrays, *reference.texts])
    np.testing.assert_array_equal(Bert().load(reference).predict(data.batch), referring.predict(data.batch))
    chinese_bert(folder, shift=1.0)
    with pytest.raises(PluginError, match="is not the one that this model was trained on"):
        Bert().load(reference)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(PluginError, match="no encoder in the folder"):
        Bert().load(reference)
    np.testing.assert_array_equal(Bert().load(saved).predict(data.batch), alone.predict(data.batch))


def test_an_encoder_that_is_not_to_be_had_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no encoder in the folder '/no/such/folder'.*model_name_or_path"):
        fitted(toy(20), model_name_or_path="/no/such/folder")
    folder = chinese_bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PluginError, match=r"could not be loaded.*model.safetensors"):
        fitted(toy(20), model_name_or_path=str(folder))
    with pytest.raises(PluginError, match="the encoder has 2 layers; choose 0 to 2"):
        fitted(toy(20), trained_layers=3)
    with pytest.raises(PluginError, match="longer than the 508 tokens"):
        fitted(toy(20), unit="text", max_tokens=600)


def test_minilm_is_found_by_its_package_and_fine_tuned() -> None:
    data = toy(48)
    told: list[tuple[float, str]] = []
    params = BertParams(epochs=1)
    model = Bert().fit(data, params=params, seed=1, progress=lambda done, text: told.append((done, text)))
    assert model.reader.encoder.frozen_layers == 5
    assert model.reader.encoder.size == 384
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    saved = model.save()
    assert sum(array.nbytes for array in saved.arrays.values()) < 12_000_000
    scores = model.predict(data.batch)
    np.testing.assert_allclose(model.predict(data.batch.take(np.array([5]))), scores[[5]], atol=1e-5)
    np.testing.assert_array_equal(Bert().load(saved).predict(data.batch), scores)


def test_listing_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, zoo_bert; zoo_bert.zoo_models()[0].spec; print({'torch', 'transformers', 'pydantic'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert out.stdout.strip() == "set()"


def test_held_out_rows_are_the_newest_instants_and_samples_spread_over_time() -> None:
    time = np.repeat(np.arange(10), 30)
    older, late = newest(time, 0.15)
    assert set(time[late].tolist()) in ({8, 9}, {9})
    assert sorted([*older, *late]) == list(range(300))
    chosen = spread(time, 50, np.random.default_rng(0))
    assert np.bincount(time[chosen]).tolist() == [5] * 10
    assert len(spread(time, 0, np.random.default_rng(0))) == 300


def test_targets_that_cannot_be_learned_are_refused() -> None:
    data = toy(40)
    for changed, message in (
        (replace(data, target=data.target + 1), "targets range from 1 to 2"),
        (replace(data, kind=Target("relevance")), "cannot learn a relevance target"),
        (replace(data, kind=Target("value", horizons=("7d", "28d"))), "one horizon"),
        (data.take(np.empty(0, np.int64)), "no training rows"),
    ):
        with pytest.raises(PluginError, match=re.escape(message)):
            fitted(changed)


def test_missing_numbers_and_huge_ones_give_finite_scores() -> None:
    rows = batch([[(2, 2, 1)]] * 40, spend=Column(np.array([np.nan, np.inf, 1e300, -5.0] * 10)))
    model = fitted(TrainingData(rows, np.arange(40) % 2.0, np.ones(40), np.arange(40)))
    assert np.isfinite(model.predict(rows)).all()


def test_layout_is_plain_json_that_a_reader_understands() -> None:
    stored: Artefact = fitted(toy(40), epochs=1).save()
    layout = json.loads(stored.texts["bert.json"])
    assert layout["columns"]["items"] == "items"
    assert layout["columns"]["times"] == "ages"
    assert len(layout["encoder"]) == 64
    assert all(isinstance(array, np.ndarray) for array in stored.arrays.values())


def test_no_rows_give_no_scores() -> None:
    model = fitted(toy(40), epochs=1)
    empty: Array = model.predict(toy(40).batch.take(np.empty(0, np.int64)))
    assert empty.shape == (0, 1)
