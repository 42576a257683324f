"""Gradient-boosted trees: one model, ``gbdt``."""

from __future__ import annotations

from zoo.plugin import ModelPlugin, hookimpl
from zoo_gbdt.model import GBDT

__all__ = ["GBDT"]


@hookimpl
def zoo_models() -> list[ModelPlugin]:
    return [GBDT()]
