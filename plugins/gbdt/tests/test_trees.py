"""The check of LightGBM's text: what LightGBM writes passes, whatever was trained, and an edit of a structural number does not."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
from zoo_gbdt.trees import check

from zoo.plugin import PluginError


def text(objective: str = "binary", classes: int = 1, rows: int = 400, **settings: Any) -> str:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=(rows, 2)), rng.integers(0, 40, rows)])
    x[::7, 0] = np.nan
    y = (x[:, 2] % 3 > 0).astype(float) if classes == 1 else (x[:, 2] % classes)
    data = lightgbm.Dataset(x, y, categorical_feature=[2], params={"verbosity": -1})
    given = {"objective": objective, "num_class": classes, "verbosity": -1, "num_threads": 1, "min_data_per_group": 1, **settings}
    return str(lightgbm.train(given, data, 8).model_to_string())


@pytest.mark.parametrize(
    ("written", "classes", "settings"),
    [
        ("binary sigmoid:1", 1, {"objective": "binary"}),
        ("regression", 1, {"objective": "regression", "num_leaves": 60, "min_data_in_leaf": 1}),
        ("multiclass num_class:3", 3, {"objective": "multiclass", "max_cat_to_onehot": 1}),
        ("binary sigmoid:1", 1, {"objective": "binary", "min_data_in_leaf": 10_000}),  # stumps
        ("binary sigmoid:1", 1, {"objective": "binary", "zero_as_missing": True, "use_missing": True}),
    ],
)
def test_what_lightgbm_writes_passes(written: str, classes: int, settings: dict[str, Any]) -> None:
    check(text(classes=classes, **settings), 3, classes, written)


def test_a_split_on_whether_there_is_a_value_passes() -> None:
    """LightGBM writes its threshold as inf: every value goes left, what is missing right."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    x[rng.random(400) < 0.4, 0] = np.nan
    given = {"objective": "binary", "verbosity": -1, "num_threads": 1, "num_leaves": 2, "min_data_in_leaf": 1}
    data = lightgbm.Dataset(x, np.isnan(x[:, 0]).astype(float), params={"verbosity": -1})
    written = str(lightgbm.train(given, data, 1).model_to_string())
    assert "\nthreshold=inf\n" in written
    check(written, 2, 1, "binary sigmoid:1")


def test_sets_of_categories_are_there_once_and_rise() -> None:
    good = text(max_cat_to_onehot=1)
    assert "\ncat_boundaries=0 " in good
    for key, bad in (("cat_boundaries", "1"), ("cat_boundaries", "-1"), ("cat_threshold", str(2**32)), ("num_cat", "0")):
        head, _, rest = good.partition(f"\n{key}=")
        value, _, rest = rest.partition("\n")
        changed = " ".join([bad, *value.split(" ")[1:]])
        resized = good.partition("tree_sizes=")[2].partition("\n")[0].split(" ")
        number = head.count("\nTree=") - 1
        resized[number] = str(int(resized[number]) + len(changed) - len(value))
        edited = f"{head}\n{key}={changed}\n{rest}".replace(
            good.partition("tree_sizes=")[2].partition("\n")[0], " ".join(resized), 1
        )
        with pytest.raises(PluginError, match=r"cat_boundaries|cat_threshold|sets|expected"):
            check(edited, 3, 1, "binary sigmoid:1")


def test_another_table_or_target_is_refused() -> None:
    good = text()
    check(good, 3, 1, "binary sigmoid:1")
    for columns, width, objective in ((2, 1, "binary sigmoid:1"), (3, 2, "binary sigmoid:1"), (3, 1, "regression"), (3, 1, "")):
        with pytest.raises(PluginError, match="its header"):
            check(good, columns, width, objective)
