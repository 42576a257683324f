"""Our gradients of a GRU are those of torch, whichever the shape, and those of finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from zoo_recurrent import cells

SHAPES = ((1, 1, 1, 1), (1, 3, 5, 7), (40, 1, 4, 3), (3, cells.CHUNK + 1, 2, 2), (70, 16, 8, 8), (33, 100, 3, 6))
"""Steps, rows, width and state: one chunk of steps, several, the last one short, a step of more rows than a chunk has."""


def gradients(cell: nn.RNNBase, values: torch.Tensor, pull: torch.Tensor, ours: bool) -> list[torch.Tensor]:
    values = values.clone().requires_grad_()
    told = cells.states(cell, values) if ours else cell(values)[0]
    return [told, *torch.autograd.grad(told, [values, *cell.parameters()], pull)]


@pytest.mark.parametrize(("steps", "rows", "width", "hidden"), SHAPES)
def test_gradients_are_those_of_torch(steps: int, rows: int, width: int, hidden: int) -> None:
    torch.manual_seed(0)
    cell = nn.GRU(width, hidden).double()
    values, pull = torch.randn(steps, rows, width).double(), torch.randn(steps, rows, hidden).double()
    assert "_GRU" in type(cells.states(cell, values).grad_fn).__name__  # it is ours that is compared
    for ours, torchs in zip(gradients(cell, values, pull, True), gradients(cell, values, pull, False), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    cell = nn.GRU(3, 4).double()
    values = torch.randn(5, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda read, *_: cells.states(cell, read), (values, *cell.parameters()))


def test_rows_turned_in_memory_are_read_as_they_stand() -> None:
    torch.manual_seed(2)
    cell, turned = nn.GRU(3, 4), torch.randn(6, 5, 3)
    told = cells.states(cell, turned.transpose(0, 1))
    torch.testing.assert_close(told, cell(turned.transpose(0, 1).contiguous())[0])


def test_without_gradients_states_are_torchs_own() -> None:
    torch.manual_seed(3)
    cell, values = nn.GRU(3, 4), torch.randn(6, 5, 3)
    with torch.inference_mode():
        assert torch.equal(cells.states(cell, values), cell(values)[0])


OTHERS: tuple[tuple[type[nn.RNNBase], dict[str, Any]], ...] = (
    (nn.RNN, {}),
    (nn.LSTM, {}),
    (nn.GRU, {"num_layers": 2}),
    (nn.GRU, {"bidirectional": True}),
    (nn.GRU, {"batch_first": True}),
    (nn.GRU, {"bias": False}),
)


@pytest.mark.parametrize(("kind", "how"), OTHERS)
def test_other_cells_are_torchs_own(kind: type[nn.RNNBase], how: dict[str, Any]) -> None:
    torch.manual_seed(4)
    cell, values = kind(3, 4, **how), torch.randn(6, 5, 3)
    assert torch.equal(cells.states(cell, values), cell(values)[0])


def test_a_second_derivative_is_refused() -> None:
    cell, values = nn.GRU(3, 4), torch.randn(6, 5, 3, requires_grad=True)
    [first] = torch.autograd.grad(cells.states(cell, values).pow(2).sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
