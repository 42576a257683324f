"""Weights from an artefact into a network: what they are is compared with what the network is before memory is taken for either."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from zoo.plugin import Array, PluginError

Module = TypeVar("Module", bound=nn.Module)


def filled(build: Callable[[], Module], arrays: Mapping[str, Array]) -> Module:
    """The network that ``build`` makes, with these weights.

    Raises PluginError naming the first weight that is missing, too many, or of another shape or type than the stored parameters
    ask for: they may ask for more memory than there is.
    """
    with torch.device("meta"):  # shapes without memory
        outline = build().state_dict()
    for name in sorted(outline.keys() | arrays.keys()):
        expected = (
            _shown(tuple(outline[name].shape), str(outline[name].dtype).removeprefix("torch.")) if name in outline else "nothing"
        )
        seen = _shown(arrays[name].shape, arrays[name].dtype.name) if name in arrays else "nothing"
        if seen != expected:
            raise PluginError(
                f"the weights {name!r} are {seen}, and the stored parameters ask for {expected}; restore the artefact, or train again"
            )
    network = build()
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return network


def _shown(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype} {list(shape)}"
