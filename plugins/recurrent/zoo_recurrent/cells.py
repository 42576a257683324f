"""States of recurrent cells over time. Gradients of gated recurrent units (Cho et al. 2014, as torch has them) are written out here:
torch records some twenty small operations a step, and these are nine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 512
"""Steps of rows whose gradients are in memory at once: few enough for a processor's cache."""


class _GRU(torch.autograd.Function):
    """Forward, a step is one product and what its gates need. Backward, what does not wait for a later step is done for many at once: the
    factors that carry a state's gradient to its gates, and the products that give the weights' gradients.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, of_input: Tensor, of_state: Tensor, input_bias: Tensor, state_bias: Tensor) -> Tensor:
        steps, rows, _ = values.shape
        hidden = of_state.shape[1]
        gates = torch.addmm(input_bias, values.flatten(0, 1), of_input.t()).view(steps, rows, 3 * hidden)
        told = values.new_empty(steps, rows, 3 * hidden)
        states = values.new_zeros(steps + 1, rows, hidden)
        turned = of_state.t()
        for state, after, told_now, of_both, of_new, told_both, told_new in zip(
            states[:-1].unbind(),
            states[1:].unbind(),
            told.unbind(),
            gates[..., : 2 * hidden].unbind(),
            gates[..., 2 * hidden :].unbind(),
            told[..., : 2 * hidden].unbind(),
            told[..., 2 * hidden :].unbind(),
            strict=True,
        ):
            torch.addmm(state_bias, state, turned, out=told_now)
            of_both.add_(told_both).sigmoid_()
            of_new.addcmul_(of_both[:, :hidden], told_new).tanh_()
            torch.lerp(of_new, state, of_both[:, hidden:], out=after)
        ctx.save_for_backward(values, of_input, of_state, gates, told[..., 2 * hidden :], states)
        return states[1:]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, ...]:
        values, of_input, of_state, gates, told_new, states = ctx.saved_tensors
        steps, rows, hidden = told_new.shape
        of_values, of_weights = torch.empty_like(values), torch.zeros_like(of_input)
        state_weights = torch.zeros_like(of_state)
        of_bias, state_bias = gates.new_zeros(3 * hidden), gates.new_zeros(3 * hidden)
        pull = gates.new_zeros(rows, hidden)  # the gradient of a state that comes from the steps after it
        size = max(1, CHUNK // rows)
        for begin in reversed(range(0, steps, size)):
            some = slice(begin, min(begin + size, steps))
            before = states[some]  # the states that these steps start from
            reset, update, new = gates[some].split(hidden, 2)
            of_new = torch.addcmul(torch.ones_like(new), new, new, value=-1).mul_(1 - update)
            factors = torch.empty_like(gates[some])
            back = torch.mul(of_new, reset, out=factors[..., 2 * hidden :])
            torch.mul(told_new[some], 1 - reset, out=factors[..., :hidden]).mul_(back)
            torch.sub(before, new, out=factors[..., hidden : 2 * hidden]).mul_(update).mul_(1 - update)
            of_states = outer[0][some].clone()
            for now, kept, of_gates, flat in zip(
                reversed(of_states.unbind()),
                reversed(update.unbind()),
                reversed(factors.view(-1, rows, 3, hidden).unbind()),
                reversed(factors.unbind()),
                strict=True,
            ):
                now.add_(pull)
                of_gates.mul_(now[:, None])
                pull = torch.mul(now, kept, out=pull).addmm_(flat, of_state)
            flat = factors.flatten(0, 1)
            state_weights.addmm_(flat.t(), before.flatten(0, 1))
            state_bias += flat.sum(0)
            torch.mul(of_states, of_new, out=factors[..., 2 * hidden :])
            read = values[some].flatten(0, 1)
            torch.mm(flat, of_input, out=of_values[some].view_as(read))
            of_weights.addmm_(flat.t(), read)
            of_bias += flat.sum(0)
        return of_values, of_weights, state_weights, of_bias, state_bias


def states(cell: nn.RNNBase, values: Tensor) -> Tensor:
    """What ``cell(values)`` gives as its states: (t, b, hidden) over values (t, b, width) from a state of zeros.

    Those of a GRU of one layer in one direction, in training on a processor, have our own gradients, which cannot be differentiated again;
    all others are torch's, from which ours differ by rounding.
    """
    plain = isinstance(cell, nn.GRU) and cell.num_layers == 1 and cell.bias and not (cell.bidirectional or cell.batch_first)
    if plain and torch.is_grad_enabled() and values.device.type == "cpu" and values.numel():
        weights = (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0)
        told: Tensor = _GRU.apply(values.contiguous(), *weights)  # type: ignore[no-untyped-call]
        return told
    told = cell(values)[0]
    return told
