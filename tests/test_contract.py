"""Columns, batches and artefacts agree with the plain Python they stand for, and with the names that plugins may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import plugin as facade
from zoo.contract import Artefact, Catalogue, Column, Examples, FeatureBatch, ModelPlugin, Target, Task, TrainingData, gather
from zoo.errors import FeatureError, PluginError
from zoo.testing import Echo, toy

lists_of_events = st.lists(st.lists(st.integers(-5, 5), max_size=6), min_size=1, max_size=6)


def ragged(rows: list[list[int]], dictionary: str | None = None) -> Column:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Column(np.array([value for row in rows for value in row], np.int32), offsets, dictionary)


def rows_of(column: Column) -> list[list[Any]]:
    assert column.offsets is not None
    return [column.values[a:b].tolist() for a, b in zip(column.offsets, column.offsets[1:], strict=False)]


def batch_of_three() -> FeatureBatch:
    """Three rows; rows 0 and 2 share a user, whose sequence is [7]."""
    return FeatureBatch(
        {
            "user": {"events": ragged([[7], [8, 9], [1]]), "spend": Column(np.array([1.5, 2.5, 9.0]))},
            "pair": {"overlap": Column(np.array([0.1, 0.2, 0.3]))},
        },
        {"user": np.array([0, 1, 0], np.int32), "pair": np.arange(3, dtype=np.int32)},
        np.array([10, 20, 30]),
        np.array([9, -1, 9]),
        group=np.array([0, 3]),
    )


@given(lists_of_events, st.data())
def test_taking_rows_of_sequences_is_taking_items_of_a_list(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = ragged(rows, "item_id").take(np.array(chosen, np.int64))
    assert rows_of(taken) == [rows[i] for i in chosen]
    assert taken.dictionary == "item_id"


@given(lists_of_events, st.integers(0, 8))
def test_a_tail_keeps_the_newest_events(rows: list[list[int]], length: int) -> None:
    assert rows_of(ragged(rows).tail(length)) == [row[len(row) - min(length, len(row)) :] for row in rows]


@given(lists_of_events, st.integers(1, 8))
def test_padding_is_on_the_left_and_the_newest_event_last(rows: list[list[int]], length: int) -> None:
    expected = [[99] * (length - len(row[-length:])) + row[-length:] for row in rows]
    assert ragged(rows).padded(length, 99).tolist() == expected


@given(lists_of_events)
def test_gathering_every_slice_gives_everything_back(rows: list[list[int]]) -> None:
    column = ragged(rows)
    assert column.offsets is not None
    values, offsets = gather(column.values, column.offsets[:-1], column.lengths)
    np.testing.assert_array_equal(values, column.values)
    np.testing.assert_array_equal(offsets, column.offsets)


def test_a_column_knows_what_it_is() -> None:
    number, code = Column(np.array([1.0])), Column(np.array([2], np.int32), dictionary="item_id")
    text, sequence = Column(np.array(["a"], object)), ragged([[1, 2], []])
    assert [c.is_numeric for c in (number, code, text, sequence)] == [True, False, False, True]
    assert [c.is_code for c in (number, code, text, sequence)] == [False, True, False, False]
    assert [c.is_text for c in (number, code, text, sequence)] == [False, False, True, False]
    assert [c.is_sequence for c in (number, code, text, sequence)] == [False, False, False, True]
    assert [len(c) for c in (number, code, text, sequence)] == [1, 1, 1, 2]
    assert sequence.lengths.tolist() == [2, 0]


def test_a_column_without_sequences_has_no_lengths() -> None:
    with pytest.raises(FeatureError, match="expected a sequence column"):
        _ = Column(np.array([1.0])).lengths


def test_a_batch_expands_a_shared_row_to_every_row_that_uses_it() -> None:
    batch = batch_of_three()
    assert rows_of(batch.column("events")) == [[7], [8, 9], [7]]
    assert batch.column("spend").values.tolist() == [1.5, 2.5, 1.5]
    assert batch.stored("events")[0] == "user"
    assert len(batch.stored("events")[1]) == 3


def test_taking_rows_of_a_batch_shares_what_is_stored() -> None:
    batch = batch_of_three()
    taken = batch.take(np.array([2, 1]))
    assert rows_of(taken.column("events")) == [[7], [8, 9]]
    assert taken.as_of.tolist() == [30, 20]
    assert taken.newest.tolist() == [9, -1]
    assert taken.blocks["user"]["spend"].values is batch.blocks["user"]["spend"].values
    assert taken.group is None


def test_compact_drops_stored_rows_that_nobody_uses_and_changes_no_column() -> None:
    batch = batch_of_three().take(np.array([2, 0]))
    compact = batch.compact()
    assert len(compact.blocks["user"]["spend"]) == 1
    assert len(compact.blocks["pair"]["overlap"]) == 2
    for name in batch.names:
        np.testing.assert_array_equal(compact.column(name).values, batch.column(name).values)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.data())
def test_compact_is_invisible_on_toy_rows(seed: int, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, 29), max_size=10)), np.int64)
    batch = toy(30, seed).batch.take(rows)
    compact = batch.compact()
    for name in batch.names:
        one, other = batch.column(name), compact.column(name)
        np.testing.assert_array_equal(one.values, other.values)
        if one.is_sequence:
            np.testing.assert_array_equal(one.offsets, other.offsets)


def test_select_keeps_columns_by_pattern() -> None:
    batch = batch_of_three()
    assert batch.select(["e*", "overlap"]).names == ("events", "overlap")
    assert batch.select(["*"]).names == batch.names
    assert "spend" in batch
    assert "spend" not in batch.select(["e*"])


def test_a_block_can_be_added() -> None:
    batch = batch_of_three().with_block("members", {"gru": Column(np.array([0.1, 0.2, 0.3]))})
    assert batch.column("gru").values.tolist() == [0.1, 0.2, 0.3]
    shared = batch.with_block("item", {"price": Column(np.array([5.0]))}, np.zeros(3, np.int32))
    assert shared.column("price").values.tolist() == [5.0, 5.0, 5.0]


def test_two_blocks_cannot_hold_one_name() -> None:
    with pytest.raises(FeatureError, match="feature 'spend' comes from both 'user' and 'item'"):
        batch_of_three().with_block("item", {"spend": Column(np.zeros(3))})


def test_a_missing_column_is_named_with_the_choices() -> None:
    with pytest.raises(FeatureError, match="no column 'spent' in this batch; it has: events, spend, overlap"):
        batch_of_three().column("spent")


def test_a_catalogue_knows_the_size_of_a_dictionary() -> None:
    catalogue = Catalogue({"item_id": np.array(["", "?", "milk"], object)})
    assert catalogue.size("item_id") == 3
    with pytest.raises(FeatureError, match="no dictionary 'brand' in the catalogue; it has: item_id"):
        catalogue.size("brand")


def test_training_rows_are_taken_whole() -> None:
    data = TrainingData(batch_of_three(), np.array([1.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0]), np.array([10, 20, 30]))
    taken = data.take(np.array([2, 0]))
    assert (taken.target.tolist(), taken.weight.tolist(), taken.time.tolist()) == ([1.0, 1.0], [3.0, 1.0], [30, 10])
    assert len(taken) == len(taken.batch) == 2


def test_examples_are_taken_whole() -> None:
    examples = Examples({"user_id": np.array(["a", "b"], object)}, np.array([1, 2]), np.array([0.0, 1.0]), np.array([5, 6]))
    taken = examples.take(np.array([1]))
    assert len(taken) == 1
    assert (taken.keys["user_id"].tolist(), taken.time.tolist(), taken.known_at.tolist()) == (["b"], [2], [6])


@pytest.mark.parametrize(
    ("target", "width"),
    [
        (Target(), 1),
        (Target("multiclass", classes=("a", "b", "c")), 3),
        (Target("binary", horizons=("7d", "14d")), 2),
        (Target("value"), 1),
    ],
)
def test_a_target_knows_how_many_scores_a_row_has(target: Target, width: int) -> None:
    assert target.width == width


def test_parts_of_an_artefact_come_apart_as_they_went_together() -> None:
    one = Artefact({"weights": np.ones(2)}, {"note": "one"})
    other = Artefact({"weights": np.zeros(2)}, {"note": "other"})
    both = Artefact.merged(one.nested("members/gru"), other.nested("members/gru2"))
    assert both.part("members/gru").texts == {"note": "one"}
    np.testing.assert_array_equal(both.part("members/gru2").arrays["weights"], np.zeros(2))
    with pytest.raises(PluginError, match="would hold 'note' twice"):
        Artefact.merged(one, other)


def test_a_task_reads_the_feature_service_of_its_name_unless_it_says_otherwise() -> None:
    assert Task("churn", ("user_id",), Target(), lambda *a: None).service == "churn"  # type: ignore[arg-type, return-value]
    assert Task("churn", ("user_id",), Target(), lambda *a: None, feature_service="all").service == "all"  # type: ignore[arg-type, return-value]


def test_a_model_plugin_is_recognised_by_its_parts() -> None:
    assert isinstance(Echo(), ModelPlugin)
    assert not isinstance(object(), ModelPlugin)


def test_the_facade_exports_every_name_that_it_lists_and_no_other() -> None:
    tree = ast.parse(Path(facade.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(facade.__all__) == imported
    assert all(hasattr(facade, name) for name in facade.__all__)


def test_a_plugin_pays_for_numpy_and_pluggy_only() -> None:
    heavy = "{'pydantic', 'torch', 'feast', 'pandas', 'sqlalchemy', 'polars', 'pyarrow', 'scipy', 'sklearn', 'lightgbm'}"
    script = f"import sys, zoo.plugin; print(*{heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""
