"""gpt: the conformance kit, causality, positions, and what is said of parameters that cannot be meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from zoo_gpt import GPT
from zoo_gpt.network import GPTNetwork, rotated
from zoo_gpt.params import GPTParams

from zoo.nextitem.network import Tokens
from zoo.plugin import FittedModel, TrainingData
from zoo.testing import contract, toy

test_contract = contract(GPT())

TINY: GPTParams = GPT().tiny()  # type: ignore[assignment]
POSITIONS = ("learned", "rotary", "relative", "none")


def fitted(data: TrainingData, **params: Any) -> FittedModel:
    return GPT().fit(data, params=TINY.model_copy(update=params), seed=0, progress=lambda done, text: None)


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_state_looks_ahead(positions: str) -> None:
    torch.manual_seed(0)
    network = GPTNetwork(TINY.model_copy(update={"positions": positions, "layers": 2}), 9, 2).eval()
    vectors = torch.randn(2, 7, TINY.width)
    changed = vectors.clone()
    changed[:, 4:] = torch.randn(2, 3, TINY.width)
    length = torch.tensor([7, 7])
    with torch.inference_mode():
        before, after = network.states(vectors, length), network.states(changed, length)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4:] - before[:, 4:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_way_of_positions_learns(positions: str) -> None:
    data = toy(300, 0, "ranking")
    fresh = toy(100, 1, "ranking")
    model = fitted(data, positions=positions, epochs=10)
    told = model.predict(fresh.batch)[:, 2:].argmax(1) + 2
    assert (told == fresh.target).mean() > 0.4


def test_a_rotated_product_depends_on_the_distance_only() -> None:
    angle = torch.arange(6)[:, None] * torch.tensor([1.0, 0.3])
    turn = (angle.cos(), angle.sin())
    torch.manual_seed(0)
    q, k = torch.randn(4).expand(1, 1, 6, 4), torch.randn(4).expand(1, 1, 6, 4)
    products = (rotated(q, turn) @ rotated(k, turn).transpose(-1, -2))[0, 0]
    for apart in range(6):
        diagonal = products.diagonal(-apart)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_order_of_earlier_events_is_known_by_positions_alone(positions: str) -> None:
    # with one block, attention is over a set: only positions tell what came first
    torch.manual_seed(0)
    network = GPTNetwork(TINY.model_copy(update={"positions": positions, "layers": 1}), 9, 2).eval()
    for block in network.blocks:
        if block.distance is not None:
            torch.nn.init.normal_(block.distance)
    vectors, length = torch.randn(1, 5, TINY.width), torch.tensor([5])
    turned = vectors[:, [1, 0, 3, 2, 4]]
    with torch.inference_mode():
        apart = (network.states(vectors, length) - network.states(turned, length))[:, -1].abs().max()
    assert (apart < 1e-5) == (positions == "none")


@pytest.mark.parametrize("what", ["types", "gaps"])
def test_types_and_gaps_are_among_what_is_read(what: str) -> None:
    torch.manual_seed(0)
    network = GPTNetwork(TINY.model_copy(update={"event_types": True, "gaps": True}), 9, 4).eval()
    items, length = torch.tensor([[2, 3, 4]]), torch.tensor([3])
    read = {"types": torch.tensor([[2, 2, 2]]), "gaps": torch.tensor([[1, 1, 1]])}
    other = read | {what: torch.tensor([[3, 2, 2]])}
    with torch.inference_mode():
        first, second = (network.encode(Tokens(items, each["types"], each["gaps"], length)) for each in (read, other))
    assert (first - second).abs().amax(-1).min() > 1e-6


def test_types_and_gaps_are_stored_where_asked() -> None:
    data = toy(60, 0, "ranking")
    assert "event_types" in data.batch
    model = fitted(data, event_types=True, gaps="gaps" in data.batch, epochs=2)
    loaded = GPT().load(model.save())
    assert np.array_equal(loaded.predict(data.batch), model.predict(data.batch))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="width 10 does not divide into 4 heads"):
        GPTParams(width=10, heads=4)
