"""gbdt keeps the contract, and its table says of every row what a plain loop over the row's events says."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_gbdt import GBDT
from zoo_gbdt.fitting import class_weights, newest
from zoo_gbdt.layout import Codes, Layout
from zoo_gbdt.model import FittedGBDT, threads
from zoo_gbdt.params import GBDTParams
from zoo_gbdt.table import table

from zoo.plugin import Artefact, Catalogue, Column, FeatureBatch, PluginError, Target, TrainingData
from zoo.testing import contract, toy

test_contract = contract(GBDT())


def silent(done: float, text: str) -> None:
    pass


def fit(data: TrainingData, seed: int = 0, progress: Any = silent, **params: Any) -> FittedGBDT:
    chosen = GBDTParams(**{"num_trees": 20, "learning_rate": 0.1, "min_category_count": 5, **params})
    fitted = GBDT().fit(data, params=chosen, seed=seed, progress=progress)
    assert isinstance(fitted, FittedGBDT)
    return fitted


def batch_of(**columns: Column) -> FeatureBatch:
    n = len(next(iter(columns.values())))
    return FeatureBatch({"user": columns}, {"user": np.arange(n, dtype=np.int32)}, np.arange(n), np.full(n, -1), Catalogue())


def ragged(rows: list[list[Any]], dtype: Any, dictionary: str | None = None) -> Column:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Column(np.array([value for row in rows for value in row], dtype), offsets, dictionary)


def cells(batch: FeatureBatch, layout: Layout) -> list[dict[str, float]]:
    """The table as one dictionary a row."""
    return [dict(zip(layout.names(), row.tolist(), strict=True)) for row in table(batch, layout)]


numbers = st.one_of(st.just(float("nan")), st.integers(-50, 50).map(lambda v: v / 4))
histories = st.lists(st.lists(st.tuples(numbers, st.integers(0, 6)), max_size=9), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(histories)
def test_summaries_are_what_a_loop_over_events_finds(rows: list[list[tuple[float, int]]]) -> None:
    batch = batch_of(
        spent=ragged([[v for v, _ in row] for row in rows], np.float64),
        code=ragged([[c for _, c in row] for row in rows], np.int32, "item_id"),
    )
    layout = Layout.learn(batch, GBDTParams(windows=(2, 5), lasts=2, min_category_count=1, top_codes=3))
    [entity] = layout.entities
    [codes] = entity.code_sequences
    for row, seen in zip(rows, cells(batch, layout), strict=True):
        expected: dict[str, float] = {"spent.length": len(row)}
        for over, window in (("", len(row)), (".newest2", 2), (".newest5", 5)):
            part = row[max(0, len(row) - window) :]
            known = [v for v, _ in part if not np.isnan(v)]
            for stat, function in (("mean", np.mean), ("std", np.std), ("min", min), ("max", max)):
                expected[f"spent{over}.{stat}"] = float(function(known)) if known else np.nan
            newest = part[-1][0] if part else np.nan
            usual = abs(np.mean(known)) > 1e-9 if known else False
            expected[f"spent{over}.above"] = np.nan if np.isnan(newest) else sum(v > newest for v in known) / len(known)
            expected[f"spent{over}.of_mean"] = newest / np.mean(known) if usual else np.nan
            for code in codes.top:
                expected[f"code{over}.share_{code}"] = sum(c == code for _, c in part) / len(part) if part else 0.0
        for back in range(2):
            expected[f"spent.last{back}"] = row[-1 - back][0] if len(row) > back else np.nan
        counts = Counter(c for _, c in row if c)
        most = min(counts, key=lambda c: (-counts[c], c)) if counts else 0
        category = {0: np.nan, **{code: 1.0 + place for place, code in enumerate(codes.kept)}}
        expected["code.last"] = category.get(row[-1][1], 0.0) if row else np.nan
        expected["code.most"] = category.get(most, 0.0)
        expected["code.most_share"] = counts[most] / sum(counts.values()) if counts else 0.0
        expected["code.distinct"] = len(counts)
        assert seen.keys() == expected.keys()
        np.testing.assert_allclose([seen[k] for k in expected], list(expected.values()), rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 59), min_size=1, max_size=20), st.integers(0, 3))
def test_a_row_of_the_table_is_the_same_in_any_company(rows: list[int], seed: int) -> None:
    batch = toy(60, seed).batch
    layout = Layout.learn(batch, GBDTParams(min_category_count=2))
    taken = batch.take(np.array(rows))
    whole = table(batch, layout)[rows]
    np.testing.assert_array_equal(table(taken, layout), whole)
    np.testing.assert_array_equal(table(taken.compact(), layout), whole)


def test_the_table_has_a_column_for_every_name_and_categories_are_whole_numbers() -> None:
    batch = toy(200).batch
    layout = Layout.learn(batch, GBDTParams(min_category_count=2))
    rows = table(batch, layout)
    assert rows.dtype == np.float32
    assert rows.shape == (200, len(layout.names()))
    assert len(set(layout.names())) == len(layout.names())
    categories = rows[:, layout.categorical()]
    known = categories[~np.isnan(categories)]
    assert np.array_equal(known, known.round())
    assert {"user_age", "channel", "items.last", "items.most"} <= {layout.names()[k] for k in layout.categorical()}
    assert "query" not in layout.names()


def test_numbers_stay_as_they_are() -> None:
    batch = toy(50).batch
    layout = Layout.learn(batch, GBDTParams())
    column = table(batch, layout)[:, layout.names().index("user_recency")]
    np.testing.assert_array_equal(column, batch.column("user_recency").values.astype(np.float32))


def test_rare_and_unknown_codes_are_one_category_and_none_is_missing() -> None:
    codes = np.array([2] * 5 + [3] * 4 + [4] * 1 + [1] * 9 + [0] * 9, np.int32)
    layout = Layout.learn(batch_of(region=Column(codes, dictionary="r")), GBDTParams(min_category_count=3))
    seen = table(batch_of(region=Column(np.array([2, 3, 4, 1, 77, 0], np.int32), dictionary="r")), layout)[:, 0]
    np.testing.assert_array_equal(seen, [1, 2, 0, 0, 0, np.nan])


def test_only_the_most_frequent_categories_stay_apart() -> None:
    codes = np.repeat(np.arange(2, 12), np.arange(10, 20)).astype(np.int32)
    layout = Layout.learn(batch_of(region=Column(codes, dictionary="r")), GBDTParams(max_categories=3, min_category_count=1))
    assert layout.entities[0].codes == (Codes("region", (11, 10, 9)),)


def test_what_is_frequent_is_learned_on_the_given_rows_only() -> None:
    data = toy(300)
    rows = np.flatnonzero(data.time < np.median(data.time))
    params = GBDTParams(min_category_count=3)
    assert Layout.learn(data.batch.take(rows), params) == Layout.learn(data.batch.take(rows).compact(), params)
    assert Layout.learn(data.batch.take(rows), params) != Layout.learn(data.batch, params)


def test_a_layout_survives_json() -> None:
    layout = Layout.learn(toy(200).batch, GBDTParams(min_category_count=2))
    assert Layout.from_json(layout.to_json()) == layout


def test_a_layout_of_another_format_is_refused() -> None:
    text = json.dumps({**json.loads(Layout.learn(toy(20).batch, GBDTParams()).to_json()), "format": 99})
    with pytest.raises(PluginError, match="the layout has format 99; this version of gbdt reads 1: train it again"):
        Layout.from_json(text)


def test_lacking_columns_are_named() -> None:
    data = toy(100)
    with pytest.raises(PluginError, match=r"gbdt was trained with user_spend_28d, items, which this batch lacks; it has: "):
        fit(data).predict(data.batch.select([n for n in data.batch.names if n not in ("items", "user_spend_28d")]))


def test_a_column_in_another_form_is_named() -> None:
    data = toy(100)
    user = {**data.batch.blocks["user"], "items": data.batch.blocks["user"]["user_age"]}
    with pytest.raises(PluginError, match="items: a sequence in training and a value here"):
        fit(data).predict(replace(data.batch, blocks={**data.batch.blocks, "user": user}))


def test_dropped_columns_are_neither_learned_nor_asked_for() -> None:
    data = toy(100)
    model = fit(data, drop=("item*", "user_[st]*"))
    assert not any(name.startswith(("item", "user_spend", "user_tenure")) for name in model.layout.names())
    kept = [n for n in data.batch.names if n not in ("items", "item", "user_spend_28d")]
    np.testing.assert_array_equal(model.predict(data.batch.select(kept)), model.predict(data.batch))


def test_nothing_to_learn_from_is_an_error() -> None:
    data = toy(20)
    with pytest.raises(PluginError, match="gbdt has no column to learn from: the batch holds query, text is not read"):
        fit(replace(data, batch=data.batch.select(["query"])))


def test_a_kind_of_target_it_does_not_learn_is_refused() -> None:
    with pytest.raises(
        PluginError, match="cannot learn a target of kind 'ranking'; it learns binary, multiclass, relevance, value"
    ):
        fit(toy(20, 0, "ranking"))


def test_sequences_that_are_empty_in_training_may_differ_later() -> None:
    empty = ragged([[], [], []], np.float64)
    layout = Layout.learn(batch_of(lines=empty, visits=empty), GBDTParams())
    seen = cells(batch_of(lines=ragged([[1], [2, 4]], float), visits=ragged([[8, 8, 8], []], float)), layout)
    assert [row["lines.mean"] for row in seen] == [1, 3]
    assert seen[0]["visits.mean"] == 8
    assert np.isnan(seen[1]["visits.mean"])


def test_infinite_numbers_do_not_spoil_a_summary() -> None:
    batch = batch_of(lines=ragged([[1.0, np.inf, 3.0], [-np.inf]], float))
    first, second = cells(batch, Layout.learn(batch, GBDTParams()))
    assert (first["lines.mean"], first["lines.max"]) == (2, 3)
    assert np.isnan(second["lines.min"])


def test_several_seeds_are_averaged() -> None:
    data = toy(200)
    model = fit(data, seeds=3)
    alone = [replace(model, boosters=(booster,)).predict(data.batch) for booster in model.boosters]
    assert len({scores.tobytes() for scores in alone}) == 3
    np.testing.assert_allclose(model.predict(data.batch), np.mean(alone, axis=0), atol=1e-6)


def test_another_seed_gives_other_trees() -> None:
    data = toy(200)
    assert not np.array_equal(fit(data, seed=1).predict(data.batch), fit(data, seed=2).predict(data.batch))


def test_the_newest_rows_are_held_out_by_whole_instants() -> None:
    data = toy(100)
    data = replace(data, time=np.repeat(np.arange(10), 10)[np.random.default_rng(0).permutation(100)])
    held_out = newest(data, 0.22)
    assert held_out is not None
    assert set(data.time[held_out]) == {8, 9}
    assert set(data.time[~held_out]) == set(range(8))


def test_nothing_is_held_out_where_a_side_would_have_one_instant_or_one_class_only() -> None:
    data = toy(100)
    assert newest(replace(data, time=np.zeros(100, np.int64)), 0.2) is None
    target = (data.time < np.quantile(data.time, 0.5)).astype(float)
    assert newest(replace(data, target=target), 0.2) is None
    assert newest(replace(data, target=target, kind=Target("value")), 0.2) is not None


@pytest.mark.parametrize("refit", [True, False])
def test_early_stopping_stops_early_and_tells_progress_that_never_falls(refit: bool) -> None:
    data = toy(400)
    heard: list[float] = []
    model = fit(data, progress=lambda done, text: heard.append(done), num_trees=500, early_stopping=5, refit=refit, seeds=2)
    trees = [booster.num_trees() for booster in model.boosters]
    assert all(1 <= count < 400 for count in trees)
    assert heard == sorted(heard)
    assert 0 < heard[0] <= heard[-1] <= 1


def test_refit_trains_on_all_rows_with_the_number_of_trees_found() -> None:
    data = toy(400)
    model = fit(data, num_trees=500, early_stopping=5)
    count = model.boosters[0].num_trees()
    np.testing.assert_array_equal(fit(data, num_trees=count).predict(data.batch), model.predict(data.batch))
    assert not np.array_equal(
        fit(data, num_trees=500, early_stopping=5, refit=False).predict(data.batch), model.predict(data.batch)
    )


def test_rows_of_one_instant_train_without_early_stopping() -> None:
    data = toy(100)
    model = fit(replace(data, time=np.zeros(100, np.int64)), num_trees=30, early_stopping=2)
    assert model.boosters[0].num_trees() == 30


def test_balanced_classes_weigh_alike_and_raise_the_rare_class() -> None:
    target = np.array([1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(class_weights(target), [2, 2 / 3, 2 / 3, 2 / 3])
    data = toy(400)
    rare = data.take(np.flatnonzero((data.target == 0) | (np.arange(400) % 4 == 0)))
    assert fit(rare, class_weight="balanced").predict(rare.batch).mean() > fit(rare).predict(rare.batch).mean() + 0.1


def test_weights_of_rows_count() -> None:
    data = toy(400)
    heavy = replace(data, weight=np.where(data.target == 1, 10.0, 1.0))
    assert fit(heavy).predict(data.batch).mean() > fit(data).predict(data.batch).mean() + 0.1


def test_a_category_alone_can_tell_the_target() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(2, 40, 600).astype(np.int32)
    batch = batch_of(region=Column(codes, dictionary="r"))
    data = TrainingData(batch, (codes % 2).astype(float), np.ones(600), batch.as_of)
    scores = fit(data, num_trees=100, feature_fraction=1.0).predict(batch)[:, 0]
    assert scores[codes % 2 == 1].min() > scores[codes % 2 == 0].max()


def test_the_artefact_is_text_only_and_keeps_the_trees_as_lightgbm_writes_them() -> None:
    artefact = fit(toy(100), seeds=2).save()
    assert artefact.arrays == {}
    assert sorted(artefact.texts) == ["layout.json", "model.json", "trees-0.txt", "trees-1.txt"]
    assert artefact.texts["trees-0.txt"].startswith("tree\nversion=v")


def test_a_loaded_model_saves_the_same_artefact() -> None:
    artefact = fit(toy(100)).save()
    assert GBDT().load(Artefact(artefact.arrays, artefact.texts)).save() == artefact


@pytest.mark.parametrize("more", [{}, {"seeds": 3}, {"focal": 2.0}], ids=str)
def test_contributions_of_trees_sum_to_the_raw_score(more: dict[str, Any]) -> None:
    data = toy(200)
    model = fit(data, **more)
    said = model.explain(data.batch)
    rows = table(data.batch, model.layout)
    raw = np.mean([booster.predict(rows, raw_score=True) for booster in model.boosters], axis=0) + model.start
    np.testing.assert_allclose(said.base[:, 0] + said.values[:, 0].sum(axis=1), raw, rtol=0, atol=1e-9)
    if len(model.boosters) == 1 and not model.focal:
        np.testing.assert_allclose(1 / (1 + np.exp(-raw)), model.predict(data.batch)[:, 0], rtol=1e-6)


def test_contributions_of_classes_sum_to_the_raw_score_of_each() -> None:
    data = toy(200, kind="multiclass")
    model = fit(data)
    said = model.explain(data.batch)
    raw = model.boosters[0].predict(table(data.batch, model.layout), raw_score=True)
    np.testing.assert_allclose(said.base + said.values.sum(axis=2), raw, rtol=0, atol=1e-9)
    assert said.values.shape == (200, data.kind.width, len(model.layout.names()))


def test_contributions_name_codes_by_their_text_where_each_has_its_own() -> None:
    rows = [[2, 2, 3], [3, 2, 2]] * 20
    data = batch_of(code=ragged(rows, np.int32, "colour"), number=Column(np.arange(40.0)))
    data = replace(data, catalogue=Catalogue({"colour": np.array(["", "", "red", "green"], object)}))
    layout = Layout.learn(data, GBDTParams(windows=(), min_category_count=1))
    assert {"code.share of red", "code.share of green"} <= set(layout.said(data))
    twice = replace(data, catalogue=Catalogue({"colour": np.array(["", "", "red", "red"], object)}))
    assert layout.said(twice) == tuple(layout.names())


@pytest.mark.parametrize(
    ("kind", "more"), [("binary", {"seeds": 2}), ("binary", {"focal": 2.0}), ("multiclass", {}), ("value", {})], ids=str
)
def test_one_row_alone_is_what_the_boosters_say_of_it_to_the_bit(kind: Any, more: dict[str, Any]) -> None:
    data = toy(60, kind=kind)
    model = fit(data, **more)
    rows = table(data.batch, model.layout)
    for number in range(len(rows)):
        for booster, single in zip(model.boosters, model._single, strict=True):
            expected = booster.predict(rows[number : number + 1], num_threads=1).ravel()
            assert np.array_equal(single.ask(rows[number : number + 1]), expected)
    together = model.predict(data.batch)
    alone = [model.predict(data.batch.take(np.array([number])))[0] for number in range(len(rows))]
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-7)


def test_threads_and_copies_ask_boosters_of_their_own() -> None:
    data = toy(80)
    model = fit(data)
    rows = [data.batch.take(np.array([number])) for number in range(80)]
    expected = [model.predict(row).tolist() for row in rows]
    with ThreadPoolExecutor(8) as pool:
        assert [answer.tolist() for answer in pool.map(model.predict, rows * 5)] == expected * 5
    assert deepcopy(model).predict(rows[3]).tolist() == expected[3]


def test_threads_come_from_the_parameter_then_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (threads(2), threads(0)) == (2, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert threads(0) == 0
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads(0) == 0


def test_the_readme_example_runs_and_its_defaults_are_the_real_ones() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    data = toy(300)
    scope: dict[str, Any] = {"data": data, "batch": data.batch}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], scope)
    assert scope["scores"].shape == (300, 1)
    parameters = text[text.index("| what to read") : text.index("For instance")]
    for name, value in re.findall(r"`(\w+)` ([\d.]+)", parameters):
        assert getattr(GBDTParams(), name) == float(value)
    assert set(re.findall(r"`(\w+)`", parameters)) == set(GBDTParams.model_fields)
