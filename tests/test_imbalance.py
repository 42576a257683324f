"""Rare classes: what is left out or passed over while learning is put right in the scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from zoo_gbdt.model import GBDT
from zoo_recurrent.models import GRU

from zoo.contract import Column, FeatureBatch, Target, TrainingData
from zoo.errors import PluginError
from zoo.imbalance import balanced, calibrated, thinned
from zoo.nextitem.loss import focal


def rows(number: int, rates: tuple[float, ...], seed: int = 0, kind: str = "") -> TrainingData:
    """Rows of classes with these rates at x = 0, whose odds change with x."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=number)
    odds = np.log(rates)[None] + x[:, None] * np.arange(len(rates))[None] * 0.7
    shares = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    target = (rng.random(number)[:, None] > shares.cumsum(1)).sum(1).clip(max=len(rates) - 1).astype(np.float64)
    time = np.arange(number, dtype=np.int64)
    batch = FeatureBatch({"user": {"x": Column(x)}}, {"user": np.arange(number, dtype=np.int32)}, time, time)
    classes = () if len(rates) == 2 else tuple(f"c{n}" for n in range(len(rates)))
    return TrainingData(batch, target, np.ones(number), time, Target(kind or ("multiclass" if classes else "binary"), classes))  # type: ignore[arg-type]


def test_the_rare_classes_are_kept_whole_and_the_frequent_one_in_part() -> None:
    data = rows(4000, (0.8, 0.15, 0.05))
    found, keep = thinned(data, 0.25, seed=3)
    before, after = (np.bincount(each.target.astype(int)) for each in (data, found))
    assert after[1:].tolist() == before[1:].tolist()
    np.testing.assert_allclose(keep, after / before)
    assert after[0] == round(0.25 * before[0])
    again, _ = thinned(data, 0.25, seed=3)
    np.testing.assert_array_equal(found.time, again.time)
    assert (np.diff(found.time) > 0).all()
    assert thinned(data, 1.0, seed=3)[0] is data
    with pytest.raises(PluginError, match="rows of a value target have no most frequent class; leave 'negatives' at 1"):
        thinned(rows(10, (0.5, 0.5), kind="value"), 0.5, seed=0)


def test_balanced_weights_give_every_class_the_same_total() -> None:
    target, weight = np.array([0, 0, 0, 1, 2]), np.array([1.0, 2, 3, 4, 5])
    found = balanced(target, weight)
    np.testing.assert_allclose(np.bincount(target, found), found.sum() / 3)
    assert found.mean() == pytest.approx(weight.mean())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_its_formula_and_has_its_gradient(gamma: float) -> None:
    logits = torch.linspace(-4, 4, 33, dtype=torch.float64, requires_grad=True)
    losses = torch.nn.functional.softplus(-logits)  # of class 1
    found = focal(losses, gamma)
    p = torch.sigmoid(logits)
    torch.testing.assert_close(found, -((1 - p) ** gamma) * p.log())
    found.sum().backward()
    expected = (1 - p) ** gamma * (gamma * p * p.log() - (1 - p))
    torch.testing.assert_close(logits.grad, expected.detach())
    torch.testing.assert_close(focal(losses, 0.0), losses)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("truth", [(0.9, 0.1), (0.7, 0.2, 0.1), (0.999, 0.001)])
def test_the_scores_that_minimise_the_loss_become_the_probabilities(gamma: float, share: float, truth: tuple[float, ...]) -> None:
    keep = np.array([share, *[1.0] * (len(truth) - 1)])
    seen = torch.tensor(np.array(truth) * keep)
    logits = torch.zeros(len(truth), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def risk() -> Any:
        optimiser.zero_grad()
        loss = (focal(-torch.log_softmax(logits, 0), gamma) * seen).sum()
        loss.backward()
        return loss

    optimiser.step(risk)
    learnt = logits.detach().softmax(0).numpy()
    np.testing.assert_allclose(calibrated(learnt, keep, gamma), truth, rtol=1e-3)
    if len(truth) == 2:
        np.testing.assert_allclose(calibrated(learnt[1:], keep, gamma), truth[1:], rtol=1e-3)


@pytest.mark.parametrize("changes", [{"negatives": 0.2}, {"focal": 2.0}, {"negatives": 0.2, "focal": 1.0}], ids=str)
@pytest.mark.parametrize("rates", [(0.9, 0.1), (0.8, 0.15, 0.05)])
@pytest.mark.parametrize("name", ["gbdt", "gru"])
def test_what_a_model_says_in_the_mean_is_the_rate(name: str, rates: tuple[float, ...], changes: dict[str, float]) -> None:
    plugin: Any = GBDT() if name == "gbdt" else GRU()
    own = {"num_leaves": 4, "num_trees": 60} if name == "gbdt" else {"epochs": 8, "hidden": 8, "dropout": 0.0, "validation": 0.0}
    params = plugin.tiny().model_copy(update={**own, **changes})
    data, fresh = rows(4000, rates), rows(4000, rates, seed=1)
    if name == "gbdt" and len(rates) > 2 and "focal" in changes:
        with pytest.raises(PluginError, match="focal loss for binary targets"):
            plugin.fit(data, params=params, seed=0, progress=lambda *_: None)
        return
    fitted = plugin.fit(data, params=params, seed=0, progress=lambda *_: None)
    scores = fitted.predict(fresh.batch)
    seen = np.bincount(fresh.target.astype(int), minlength=len(rates)) / len(fresh)
    means = scores.mean(0) if len(rates) > 2 else np.array([1 - scores.mean(), scores.mean()])
    np.testing.assert_allclose(means, seen, atol=5 * np.sqrt(seen.max() * (1 - seen.max()) / len(fresh)))
    np.testing.assert_array_equal(plugin.load(fitted.save()).predict(fresh.batch), scores)
