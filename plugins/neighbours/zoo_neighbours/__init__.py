"""Cheap models of the next item from counts of items, pairs of items, and linear algebra over them."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.plugin import ModelPlugin, hookimpl
from zoo_neighbours.models import Covisit, Ease, ItemKNN, Popularity, Repeat, Slit

__all__ = ["Covisit", "Ease", "ItemKNN", "Popularity", "Repeat", "Slit", "zoo_models"]


@hookimpl
def zoo_models() -> Sequence[ModelPlugin]:
    return [Popularity(), Repeat(), Covisit(), ItemKNN(), Ease(), Slit()]
