"""What an online store keeps of entities, as it is read: where a log's events are, and evaluators over those of one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.contract import Array, Column
from zoo.events.evaluate import Evaluator
from zoo.events.specs import Aggregation
from zoo.events.view import LogView
from zoo.stores.frames import index_of

Key = tuple[str, int]
"""Entity kind and code."""


@dataclass(frozen=True)
class Space:
    """Where one store keeps the events of one epoch of a log, for one retention. ``name`` begins every key."""

    project: str
    log: str
    name: str


class Recent:
    """The kept events of one call's entities. By kind, codes: int32 (n,) the entities; values: a packed value of each, or None."""

    def __init__(self, view: LogView, codes: Mapping[str, Array], values: Mapping[str, Sequence[bytes | None]]) -> None:
        self.view, self.codes, self.values = view, codes, values
        self._opened: dict[str, tuple[Evaluator, Array]] = {}

    def opened(self, entity: str) -> tuple[Evaluator, Array]:
        """(an evaluator over a kind's events, the i-th of ``codes`` being its entity i + 2; int64 (n,) since when each one is exact)."""
        found = self._opened.get(entity)
        if found is None:
            index, since = index_of(self.values[entity], self.view.kinds(entity), self.view.facts())
            found = self._opened[entity] = self.view.evaluator_of(index), since
        return found

    def features(
        self, aggregation: Aggregation, keys: Mapping[str, Array], times: Array
    ) -> tuple[dict[str, Column], Array] | None:
        """(columns by name, int64 (n,) newest event's time) for n rows; None where what is kept is not exact at all of the times.

        keys: codes int32 (n,) by join key.
        """
        entity = aggregation.entity[0]
        evaluator, since = self.opened(entity)
        if len(times) == 1 and len(since) == 1 and len(aggregation.entity) == 1:
            return evaluator.alone(aggregation, times) if since.item(0) <= times.item(0) else None
        own = self._own(entity, keys[entity], since, times)
        if own is None:
            return None
        columns = self.view.evaluate(aggregation, {**keys, entity: own}, times, evaluator)
        return columns, evaluator.newest(aggregation, own, times)

    def _own(self, entity: str, codes: Array, since: Array, times: Array) -> Array | None:
        """int32 (n,): codes as the entity's evaluator has them; None where it is not exact at all of the times."""
        known = self.codes[entity]
        if codes is known or (len(codes) == len(known) and (codes == known).all()):
            exact = since.item(0) <= times.item(0) if len(codes) == 1 else (since <= times).all()
            return np.arange(2, len(codes) + 2, dtype=np.int32) if exact else None
        order = known.argsort()
        rows = order[known.searchsorted(codes, sorter=order)]
        return (rows + 2).astype(np.int32) if (since[rows] <= times).all() else None


def holds(view: LogView, held: int) -> bool:
    """Whether a store with the log's first ``held`` events has what the view has, and no more than the log.

    A view of a log that was rewritten since has other events: what the log has is enough then.
    """
    if held == view.count:
        return True
    state = view.log.state()
    return (view.count if state.epoch == view.epoch else state.count) <= held <= state.count
