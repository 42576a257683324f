"""The encoder's top layers over stored token states of item texts: a vector a text, the mean over its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.plugin import Array
from zoo_bert.encoder import blocks, padded
from zoo_bert.network import Layer

if TYPE_CHECKING:
    from zoo_bert.encoder import Encoder

TOGETHER = 64
"""Texts of like length that run together where gradients are asked for."""


@dataclass(frozen=True)
class Texts:
    """What the frozen layers made of a catalogue. states: float16 (length, size) of each distinct text.

    of: int64 (items,), the text of each item code, -1 without one. mean, scale: float32 (size,), which standardise vectors.
    """

    states: Sequence[Array]
    of: Array
    mean: Array
    scale: Array


class TextLayers(nn.Module):
    """Layers of BERT's form, to be filled with pretrained or with stored weights. There is no dropout: a text has one vector at a time."""

    def __init__(self, config: Any, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, 0.0) for _ in range(count))

    @staticmethod
    def pretrained(encoder: Encoder) -> TextLayers:
        """The layers that the encoder was cut off at."""
        with torch.random.fork_rng(devices=[]):
            made = TextLayers(encoder.config, len(encoder.top))
        for layer, weights in zip(made.layers, encoder.top, strict=True):
            layer.adopt(weights)  # type: ignore[operator]
        return made

    def forward(self, states: Sequence[Array]) -> Tensor:
        """float32 (n, size) of token states (length, size) of n texts, at least one, in groups of like length."""
        order = np.argsort([len(each) for each in states], kind="stable")
        parts = []
        for i in range(0, len(order), TOGETHER):
            some = [states[at] for at in order[i : i + TOGETHER]]
            out, mask = self._read(some, (len(some), len(some[-1])))
            parts.append((out * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(parts[0].device)]

    def of(self, states: Sequence[Array]) -> Array:
        """As ``forward``, without gradients, in blocks of fixed shape: a vector depends on its text alone, to the bit."""
        made = np.zeros((len(states), self._weight.shape[0]), np.float32)
        with torch.inference_mode():
            for some, shape in blocks([len(each) for each in states]):
                out = self._read([states[row] for row in some], shape)[0].cpu().numpy()
                for j, row in enumerate(some):
                    made[row] = out[j, : len(states[row])].mean(0)
        return made

    @property
    def _weight(self) -> Tensor:
        return next(self.parameters())

    def _read(self, states: Sequence[Array], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(states (rows, tokens, size) after the last layer, bool (rows, tokens))."""
        x, mask = (part.to(self._weight.device) for part in padded(states, shape))
        x = x.float()
        for layer in self.layers:
            x = layer(x, mask, None)
        return x, mask
