"""What these models keep in an artefact, looked at before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.plugin import Array, Artefact, PluginError

LARGEST = 1 << 28
"""Codes: no log has as many identifiers, and scores of a row are as many numbers."""
_KINDS: Mapping[str, tuple[type, ...]] = {
    "own": (int, float), "half_life": (int, float, type(None)), "fade": (int, float, type(None)), "power": (int, float),
    "rarity": (int, float), "length": (int,), "size": (int,), "window": (int,), "binary": (bool,), "event_weights": (dict,),
}  # fmt: skip


def array(artefact: Artefact, name: str, kind: str, dimensions: int) -> Array:
    """The array, of finite floats (``f``) or of integers (``i``). Raises PluginError."""
    found = artefact.arrays[name]
    if found.dtype.kind != kind or found.ndim != dimensions or len(found) > LARGEST or not np.isfinite(found).all():
        raise PluginError(
            f"{name} is {found.dtype.name} {list(found.shape)}, or not finite; expected {dimensions} dimension(s) of "
            f"{'floats' if kind == 'f' else 'integers'}; restore the artefact, or train again"
        )
    return found


def about(artefact: Artefact, name: str) -> dict[str, Any]:
    """The JSON text's values, of the types and sizes that they are written with. Raises PluginError."""
    found: dict[str, Any] = json.loads(artefact.texts[name])
    for key, value in found.items():
        fits = type(value) in _KINDS.get(key, ()) and (type(value) is not int or 0 <= value <= LARGEST)
        if not fits or (key == "event_weights" and not all(type(each) in (int, float) for each in value.values())):
            raise PluginError(
                f"{name} has {key} = {str(value)[:80]}, which no training writes; restore the artefact, or train again"
            )
    return found
