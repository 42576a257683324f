"""What next-item networks share, on a network small enough to reason about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from zoo.nextitem.dropout import dropout
from zoo.nextitem.loss import calibrated_binary_cross_entropy, linear_cross_entropy, sampled_cross_entropy
from zoo.nextitem.model import FittedNextItem, device_of, fit_next_item, load_next_item
from zoo.nextitem.network import Network
from zoo.nextitem.params import NextItemParams
from zoo.nextitem.sequences import Sequences, buckets
from zoo.nextitem.training import Trainer, batches
from zoo.plugin import (
    NO_CHECKPOINT,
    PADDING,
    UNKNOWN,
    Artefact,
    Catalogue,
    Checkpoint,
    Column,
    FeatureBatch,
    PluginError,
    Target,
    TrainingData,
)

TINY = NextItemParams(width=8, max_length=6, epochs=4, tokens=60, learning_rate=0.05, dropout=0.0, embedding_dropout=0.1)


class Decay(Network):
    """States are linear in decayed sums of the events so far."""

    def __init__(self, params: NextItemParams, items: int, types: int) -> None:
        super().__init__(params, items, types)
        self.mix = torch.nn.Linear(params.width, params.width)

    def states(self, vectors: Tensor, length: Tensor) -> Tensor:
        steps = torch.arange(vectors.shape[1])
        apart = steps[:, None] - steps
        return self.mix(torch.where(apart >= 0, 0.5 ** apart.clamp(min=0), 0.0) @ vectors)


def batch_of(histories: list[list[int]], items: int, types: list[list[int]] | None = None) -> FeatureBatch:
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)

    def column(lists: list[list[int]], name: str) -> Column:
        return Column(np.array([c for row in lists for c in row], np.int32), offsets, name)

    block = {"items": column(histories, "item_id")} | ({} if types is None else {"event_types": column(types, "event_type")})
    names = {"item_id": np.array([""] * (items + 2), object), "event_type": np.array(["", "", "view", "purchase"], object)}
    n = len(histories)
    return FeatureBatch(
        {"user": block}, {"user": np.arange(n, dtype=np.int32)}, np.zeros(n, np.int64), np.zeros(n, np.int64), Catalogue(names)
    )


def cycle(rows: int, items: int = 7, longest: int = 30, seed: int = 0) -> TrainingData:
    """Histories that walk round the catalogue, each from a place of its own."""
    order = np.random.default_rng(seed)
    starts, sizes = order.integers(items, size=rows), order.integers(0, longest, size=rows)
    histories = [[2 + (start + k) % items for k in range(size)] for start, size in zip(starts, sizes, strict=True)]
    target = (2 + (starts + sizes) % items).astype(np.float64)
    return TrainingData(batch_of(histories, items), target, np.ones(rows), np.zeros(rows, np.int64), Target("ranking"))


def fit(
    data: TrainingData, params: NextItemParams = TINY, checkpoint: Checkpoint = NO_CHECKPOINT, seed: int = 3
) -> FittedNextItem:
    return fit_next_item(Decay, data, params, seed, lambda done, text: None, checkpoint)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("rows", [0, 1, 700])
@pytest.mark.parametrize("size", [0.5, 30.0])  # of logits: exponentials as they are, or less the largest of their row
def test_loss_and_gradients_are_those_of_torch(rows: int, smoothing: float, size: float) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(rows, 5), size * torch.randn(11, 5), torch.randn(11)
    target, share = torch.randint(11, (rows,)), torch.rand(rows)
    ours, theirs = ([t.clone().requires_grad_() for t in (hidden, weight, bias)] for _ in range(2))
    loss = linear_cross_entropy(*ours, target, share, smoothing)
    logits = theirs[0] @ theirs[1].T + theirs[2]
    expected = (functional.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing) * share).sum()
    torch.testing.assert_close(loss, expected)
    for own, other in zip(torch.autograd.grad(2 * loss, ours), torch.autograd.grad(2 * expected, theirs), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_loss_is_finite_where_logits_are_huge() -> None:
    hidden = torch.full((3, 2), 1e4, requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.zeros(2), torch.tensor([0, 0, 0]))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_sample_of_every_item_gives_the_whole_softmax(smoothing: float) -> None:
    torch.manual_seed(0)
    hidden, weight, bias, target = torch.randn(9, 4), torch.randn(6, 4), torch.randn(6), torch.randint(6, (9,))
    share = torch.full((9,), 1 / 9)
    uniform = torch.full((6,), -np.log(6.0))
    sampled = sampled_cross_entropy(hidden, weight, bias, target, share, torch.arange(6), uniform, smoothing)
    torch.testing.assert_close(sampled, functional.cross_entropy(hidden @ weight.T + bias, target, label_smoothing=smoothing))


def test_frequent_negatives_are_corrected_for() -> None:
    torch.manual_seed(0)
    hidden, weight, bias, target = torch.randn(5, 4), torch.randn(50, 4), torch.zeros(50), torch.randint(50, (5,))
    share, chance = torch.full((5,), 0.2), torch.softmax(torch.randn(50), 0)
    drawn = torch.multinomial(chance, 20_000, replacement=True)
    # the mean of exp(logit - log q) over draws from q is the sum over the catalogue
    sampled = sampled_cross_entropy(hidden, weight, bias, target, share, drawn, chance.log())
    torch.testing.assert_close(sampled, functional.cross_entropy(hidden @ weight.T, target), atol=0.1, rtol=0.02)


def test_uncalibrated_gbce_is_binary_cross_entropy() -> None:
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(4, 3), torch.randn(8, 3), torch.tensor([0, 1, 2, 3])
    drawn = torch.tensor([4, 5])
    logits = hidden @ weight.T
    loss = calibrated_binary_cross_entropy(hidden, weight, torch.zeros(8), target, torch.full((4,), 0.25), drawn, 0.0)
    own, others = logits[torch.arange(4), target], logits[:, drawn]
    expected = (functional.softplus(-own) + functional.softplus(others).sum(1)).mean()
    torch.testing.assert_close(loss, expected)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 99))
def test_windows_tell_every_event_once(sizes: list[int], length: int, seed: int) -> None:
    histories = [list(range(2, 2 + size)) for size in sizes]
    sequences = Sequences.of(batch_of(histories, 42), np.array([50] * len(sizes)))
    first, size = sequences.windows(length, np.zeros(len(sizes), bool), np.random.default_rng(seed))
    assert (size <= length + 1).all()
    assert (size >= 2).all()
    told = np.concatenate([np.arange(a + 1, a + n) for a, n in zip(first, size, strict=True)])
    starts = sequences.offsets[:-1]
    assert np.array_equal(np.sort(told), np.setdiff1d(np.arange(len(sequences.items)), starts))
    row = np.searchsorted(sequences.offsets, first, side="right")
    assert (first + size <= sequences.offsets[row]).all()


def test_a_held_out_target_is_in_no_window() -> None:
    sequences = Sequences.of(batch_of([[2, 3], [4, 5]], 8), np.array([6, 7]))
    first, size = sequences.windows(9, np.array([True, False]), np.random.default_rng(0))
    seen = [sequences.items[a : a + n].tolist() for a, n in zip(first, size, strict=True)]
    assert seen == [[PADDING, 2, 3], [PADDING, 4, 5, 7]]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 100), st.booleans())
def test_batches_hold_every_row_once_and_no_more_than_asked(sizes: list[int], tokens: int, shuffled: bool) -> None:
    size = np.array(sizes, np.int64)
    parts = batches(size, tokens, np.random.default_rng(0) if shuffled else None)
    assert np.array_equal(np.sort(np.concatenate([*parts, np.zeros(0, np.int64)])), np.arange(len(size)))
    assert all(len(part) == 1 or size[part].max() * len(part) <= tokens for part in parts)


def test_what_an_event_weighs_as_a_target() -> None:
    sequences = Sequences.of(batch_of([[2, 3, UNKNOWN]], 4, [[2, 3, 2]]), np.array([5]))
    counts = np.array([0, 0, 1, 16, 1, 1.0])
    weight = sequences.weights({"view": 1.0, "purchase": 3.0}, ["", "", "view", "purchase"], counts, 0.5)
    assert weight.tolist() == pytest.approx(np.array([0, 1, 3 / 4, 0, 3]) / (4.75 / 3))
    with pytest.raises(PluginError, match="event_weights names 'cart'; the event types are: , , view, purchase"):
        sequences.weights({"cart": 1.0}, ["", "", "view", "purchase"], counts, 0.0)


def test_gaps_have_a_bucket_each_doubling() -> None:
    assert buckets(np.array([0.0, 0.5, 1, 3, 1e30, np.nan, -5])).tolist() == [1, 1, 2, 3, 33, 1, 1]


def test_it_learns_what_follows_what() -> None:
    model, fresh = fit(cycle(80), TINY.model_copy(update={"epochs": 12})), cycle(40, seed=9)
    told = model.score_items(fresh.batch)[:, 2:].argmax(1) + 2
    begun = fresh.batch.column("items").lengths > 0
    assert (told == fresh.target)[begun].mean() > 0.9


def test_rounded_products_learn_as_much_and_are_set_back_whatever_happens() -> None:
    rounded = TINY.model_copy(update={"epochs": 12, "precision": "bfloat16"})
    model, fresh = fit(cycle(80), rounded), cycle(40, seed=9)
    told = model.score_items(fresh.batch)[:, 2:].argmax(1) + 2
    assert (told == fresh.target)[fresh.batch.column("items").lengths > 0].mean() > 0.9
    with pytest.raises(PluginError, match="lower learning_rate"):
        fit(cycle(60), rounded.model_copy(update={"learning_rate": 1e30, "weight_decay": 1.0}))
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"  # type: ignore[attr-defined]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("loss", ["sampled", "gbce"])
def test_it_learns_from_samples(loss: str) -> None:
    chosen = TINY.model_copy(update={"epochs": 12, "loss": loss, "negatives": 5})
    fresh = cycle(40, seed=9)
    told = fit(cycle(80), chosen).score_items(fresh.batch)[:, 2:].argmax(1) + 2
    begun = fresh.batch.column("items").lengths > 0
    assert (told == fresh.target)[begun].mean() > 0.9


def test_a_row_scores_the_same_alone_and_saved() -> None:
    model, data = fit(cycle(60)), cycle(20, seed=5)
    scores = model.score_items(data.batch)
    alone = np.concatenate([model.score_items(data.batch.take(np.array([i]))) for i in range(20)])
    np.testing.assert_allclose(alone, scores, atol=1e-5)
    np.testing.assert_allclose(
        model.score_items(data.batch, np.array([4, 2])), scores[:, [4, 2]], atol=1e-5
    )  # products of another shape
    again = load_next_item(Decay, NextItemParams, model.save())
    assert np.array_equal(again.score_items(data.batch), scores)


def test_items_that_came_after_training_are_read_as_unknown_and_come_last() -> None:
    model = fit(cycle(60))
    late, known = batch_of([[2, 3, 11]], 10), batch_of([[2, 3, UNKNOWN]], 7)
    scores = model.score_items(late)
    assert scores.shape == (1, 12)
    np.testing.assert_array_equal(scores[:, :9], model.score_items(known))
    assert (scores[:, 9:] < scores[:, 2:9].min()).all()
    assert np.isfinite(scores).all()


def test_popularity_is_taken_out_of_scores() -> None:
    rows = [[2] * 30, [2] * 30, [3] * 3]
    data = TrainingData(batch_of(rows, 2), np.array([2.0, 2, 3]), np.ones(3), np.zeros(3, np.int64), Target("ranking"))
    plain, fair = (fit(data, TINY.model_copy(update={"popularity_prior": p, "epochs": 8})) for p in (0.0, 1.0))
    empty = batch_of([[]], 2)
    lead = [float(np.diff(m.score_items(empty)[0, 2:])[0]) for m in (plain, fair)]
    assert lead[1] > lead[0]


@dataclass
class Kept:
    """A checkpoint in memory. after: how many saves it takes before the run is stopped."""

    after: int = 99
    held: Artefact | None = None
    saves: int = 0

    def load(self) -> Artefact | None:
        return self.held

    def save(self, make: Callable[[], Artefact]) -> None:
        self.held = make()
        self.saves += 1
        if self.saves == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("after", "precision"), [(1, "float32"), (3, "bfloat16"), (4, "float32")])
def test_a_stopped_run_goes_on_to_the_same_bits(after: int, precision: str) -> None:
    data, params = cycle(300), TINY.model_copy(update={"precision": precision})
    whole = fit(data, params)
    kept = Kept(after)
    with pytest.raises(KeyboardInterrupt):
        fit(data, params, checkpoint=kept)
    rest = Kept(held=kept.held)
    gone_on = fit(data, params, checkpoint=rest)
    assert rest.saves == TINY.epochs - after
    assert gone_on.training["passes"] == whole.training["passes"]
    assert gone_on.training["best"] == whole.training["best"]
    assert all(torch.equal(a, b) for a, b in zip(gone_on.network.parameters(), whole.network.parameters(), strict=True))


def test_training_stops_where_held_out_items_are_told_no_better() -> None:
    told = fit(cycle(400), TINY.model_copy(update={"epochs": 40, "patience": 2})).training
    assert 3 <= len(told["passes"]) < 40
    assert told["best"] == len(told["passes"]) - 2


def trainer(data: TrainingData, **change: Any) -> Trainer:
    """Of a network that is the same whatever is changed."""
    params = TINY.model_copy(update=change)
    sequences = Sequences.of(data.batch, data.target.astype(np.int64))
    torch.manual_seed(0)
    size = data.batch.catalogue.size("item_id")
    network, counts = Decay(params, size, 4), np.bincount(sequences.items, minlength=size).astype(np.float64)
    weight = sequences.weights(params.event_weights, [], counts, params.item_weight)
    return Trainer(network, params, sequences, counts, weight, 0)


@pytest.mark.parametrize("score", [0.0, float("nan"), float("inf")])
def test_items_that_score_alike_or_nothing_are_no_success(score: float) -> None:
    own = trainer(cycle(400, items=20))
    with torch.no_grad():
        for weight in own.network.parameters():
            weight.fill_(score)
    assert own.judges.sum() >= 20
    assert own.quality() == 0.0


def test_the_best_weights_are_kept_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([0.1, 0.9, 0.3, 0.2])
    seen: list[Tensor] = []

    def quality(own: Trainer) -> float:
        seen.append(own.network.items.weight.detach().clone())
        return next(told)

    monkeypatch.setattr(Trainer, "quality", quality)
    model = fit(cycle(400))
    assert model.training["best"] == 2
    assert torch.equal(model.network.items.weight, seen[1])
    assert not torch.equal(seen[1], seen[-1])


@pytest.mark.parametrize(
    "change",
    [
        {"label_smoothing": 0.3},
        {"item_weight": 0.9},
        {"popularity_prior": 0.9},
        {"embedding_dropout": 0.5},
        {"loss": "sampled", "negatives": 4},
        {"loss": "gbce", "negatives": 4},
    ],
)
def test_an_option_changes_the_loss(change: dict[str, Any]) -> None:
    assert abs(trainer(uneven(), **change).epoch(1) - trainer(uneven()).epoch(1)) > 1e-3


def test_smoothing_is_of_sampled_losses_too_and_refused_where_it_means_nothing() -> None:
    smooth, plain = (trainer(uneven(), loss="sampled", negatives=4, label_smoothing=each).epoch(1) for each in (0.3, 0.0))
    assert abs(smooth - plain) > 1e-3
    with pytest.raises(PluginError, match=r"label_smoothing=0.3 .* 'gbce' .* use loss = 'sampled'"):
        trainer(uneven(), loss="gbce", label_smoothing=0.3)


def uneven() -> TrainingData:
    """``cycle``, of whose items one is taken in the place of two others."""
    data = cycle(60)
    column = data.batch.column("items")
    items = replace(column, values=np.where(column.values < 5, 2, column.values).astype(np.int32))
    return replace(data, batch=replace(data.batch, blocks={"user": {"items": items}}))


def test_the_sampled_loss_is_told_how_often_each_item_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Tensor] = []

    def loss(*given: Any) -> Tensor:
        told.append(given[6])
        return sampled_cross_entropy(*given)

    monkeypatch.setattr("zoo.nextitem.training.sampled_cross_entropy", loss)
    own = trainer(uneven(), loss="sampled", negatives=4)
    own.epoch(1)
    often = (own.counts[2:] + 1) ** 0.75
    assert often.max() > 2 * often.min()
    np.testing.assert_allclose(told[0].exp().numpy(), often / often.sum(), rtol=1e-5)


def test_gbce_is_calibrated_as_asked() -> None:
    first, other = (trainer(uneven(), loss="gbce", negatives=2, calibration=c).epoch(1) for c in (0.0, 1.0))
    assert abs(first - other) > 1e-3


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def noted(own: torch.optim.AdamW, *given: Any) -> Any:
        norms.append(
            float(torch.stack([p.grad.norm() for g in own.param_groups for p in g["params"] if p.grad is not None]).norm())
        )
        return step(own, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    own = trainer(cycle(60))
    with torch.no_grad():
        own.network.items.weight.mul_(100)
    own.epoch(1)
    assert max(norms) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("device", ["gpu", "cuda:77", ""])
def test_a_device_that_is_not_there_is_said(device: str) -> None:
    with pytest.raises(PluginError, match=f"device {device!r} cannot be used: .*; expected auto, cpu, or a device"):
        device_of(device)


@pytest.mark.parametrize(("there", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_is_a_gpu_where_torch_sees_one(monkeypatch: pytest.MonkeyPatch, there: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # this machine need not have it
    assert device_of("auto").type == expected


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_odd_weights_and_rates_are_refused(value: float) -> None:
    for change in ({"event_weights": {"view": value}}, {"learning_rate": value}, {"weight_decay": value}):
        with pytest.raises(ValidationError):
            NextItemParams.model_validate(change)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fit(cycle(30))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 1e30, "weight_decay": 1.0}, "the loss became (nan|inf) in pass 1 .*lower learning_rate"),
        # one step: its loss is of the weights before it
        (
            {"learning_rate": float("inf"), "epochs": 1, "tokens": 10**6},
            "weights became infinite or NaN in pass 1 .*lower learning_rate",
        ),
    ],
)
def test_what_diverges_is_said(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        fit(cycle(60), TINY.model_copy(update=change))


def test_nothing_to_learn_is_said() -> None:
    data = cycle(5)
    with pytest.raises(PluginError, match="learns ranking targets; this one is binary"):
        fit(replace(data, kind=Target("binary")))
    blind = replace(data, batch=batch_of([[UNKNOWN]] * 5, 7), target=np.full(5, float(PADDING)))
    with pytest.raises(PluginError, match="there is no item to learn"):
        fit(blind)
    with pytest.raises(PluginError, match="a sequence column 'items', which this batch lacks; it has: \\(none\\)"):
        fit(replace(data, batch=replace(data.batch, blocks={"user": {}})))


def test_one_item_and_one_long_history_are_learnt() -> None:
    data = TrainingData(batch_of([[2] * 20_000], 1), np.array([2.0]), np.ones(1), np.zeros(1, np.int64), Target("ranking"))
    model = fit(data, TINY.model_copy(update={"epochs": 1, "max_length": 200, "tokens": 4_000}))
    assert np.isfinite(model.score_items(data.batch)).all()


def test_dropout_leaves_the_mean_and_no_pattern() -> None:
    torch.manual_seed(0)
    values = torch.ones(1_001, 64, requires_grad=True)
    dropped = dropout(values, 0.25, training=True)
    kept = dropped > 0
    assert dropped[kept].unique().tolist() == pytest.approx([4 / 3])
    # of bytes of one drawn number none is more often 0 than the others, and each place is drawn by itself
    assert kept.view(-1, 8).double().mean(0).tolist() == pytest.approx([0.75] * 8, abs=0.02)
    assert torch.corrcoef(kept.view(-1, 8).double().T).fill_diagonal_(0).abs().max() < 0.05
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())
    assert dropout(values, 0.25, training=False) is values
    assert dropout(values, 0.0, training=True) is values
