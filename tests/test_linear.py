"""The linear models of features: the contract, and what they are by other means."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.contract import Column, FeatureBatch, Target, TrainingData
from zoo.errors import PluginError
from zoo.linear import Linear
from zoo.testing import contract

test_contract = contract(Linear())


def rows(n: int = 500, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {"a": rng.normal(size=n), "b": rng.exponential(20, n), "kind": rng.integers(2, 5, n).astype(np.int32)}
    return columns, rng.random(n)


def data(columns: dict[str, np.ndarray], target: np.ndarray, kind: str) -> TrainingData:
    n = len(target)
    block = {name: Column(v, dictionary="kind" if name == "kind" else None) for name, v in columns.items()}
    batch = FeatureBatch({"user": block}, {"user": np.arange(n, dtype=np.int32)}, np.zeros(n, np.int64), np.full(n, -1))
    return TrainingData(batch, target, np.ones(n), np.zeros(n, np.int64), Target(kind))


def fitted(given: TrainingData, **params: float):
    return Linear().fit(given, params=Linear().spec.params()(**params), seed=0, progress=lambda *_: None)


def standardised(columns: dict[str, np.ndarray]) -> np.ndarray:
    numbers = [np.arcsinh(columns[name] / np.median(np.abs(columns[name]))) for name in ("a", "b")]
    table = np.stack([*numbers, *(columns["kind"] == k for k in (2, 3, 4))], axis=1).astype(float)
    return (table - table.mean(axis=0)) / table.std(axis=0)


def test_binary_targets_are_fitted_as_scikit_learn_fits_them():
    from sklearn.linear_model import LogisticRegression

    columns, noise = rows()
    target = (noise < 1 / (1 + np.exp(-columns["a"] - (columns["kind"] == 3)))).astype(float)
    table = standardised(columns)
    oracle = LogisticRegression(C=1 / 5, tol=1e-10, max_iter=1000).fit(table, target)
    given = data(columns, target, "binary")
    found = fitted(given, penalty=5.0).predict(given.batch)[:, 0]
    np.testing.assert_allclose(found, oracle.predict_proba(table)[:, 1], atol=2e-5)


def test_amounts_are_fitted_as_scikit_learn_fits_them():
    from sklearn.linear_model import Ridge

    columns, noise = rows(seed=1)
    target = 3 * columns["a"] + noise
    table = standardised(columns)
    given = data(columns, target, "value")
    found = fitted(given, penalty=7.0).predict(given.batch)[:, 0]
    np.testing.assert_allclose(found, Ridge(alpha=7.0).fit(table, target).predict(table), rtol=1e-4)


def test_a_missing_number_is_a_column_of_its_own():
    columns, noise = rows(seed=2)
    absent = noise < 0.5
    columns["a"] = np.where(absent, np.nan, columns["a"])
    given = data(columns, absent.astype(float), "binary")
    found = fitted(given).predict(given.batch)[:, 0]
    assert found[absent].min() > 0.9
    assert found[~absent].max() < 0.1


def test_a_batch_without_its_columns_is_refused():
    columns, noise = rows(seed=3)
    given = data(columns, (noise < 0.5).astype(float), "binary")
    with pytest.raises(PluginError, match="trained with b, which this batch lacks; it has: a"):
        fitted(given).predict(given.batch.select(["a"]))
