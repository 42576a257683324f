"""What an online store keeps of each entity: what the applied views reach back to, no further and no other columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zoo.contract import Array
from zoo.events.evaluate import Evaluator
from zoo.events.reach import Reach, oldest, reach_of
from zoo.events.specs import Aggregation
from zoo.stores.frames import ALWAYS
from zoo.stores.source import EventSource


@dataclass(frozen=True)
class Retention:
    """Which events and columns of an entity kind are kept; a kind that no view reads is not kept at all.

    reaches: what the views of each entity kind look at together. max_events: the cap on one entity's events, whatever they ask.
    """

    reaches: Mapping[str, Reach]
    max_events: int
    sources: frozenset[str] = field(default=frozenset(), compare=False)
    """The declarations (JSON) that it was made for."""

    @classmethod
    def of(cls, config: Any) -> Retention:
        """For the views that a Feast RepoConfig's registry holds; kept on the config, as it is asked for on every read."""
        found: Retention | None = config.__dict__.get("_zoo_retention")
        return found or cls.again(config)

    @classmethod
    def again(cls, config: Any) -> Retention:
        """As ``of``, after a look at the registry."""
        from feast import FeatureStore

        store = FeatureStore(config=config)
        store.repo_path = Path(config.repo_path or ".")  # a relative registry is the repository's, wherever we run
        sources = [v.batch_source for v in store.list_feature_views() if isinstance(v.batch_source, EventSource)]
        made = cls.made((s.aggregation for s in sources), config.online_store.max_events)
        config.__dict__["_zoo_retention"] = made
        return made

    @classmethod
    def made(cls, aggregations: Iterable[Aggregation | None], max_events: int) -> Retention:
        """What these aggregations need together."""
        by_entity: dict[str, list[Aggregation]] = {}
        for aggregation in filter(None, aggregations):
            by_entity.setdefault(aggregation.entity[0], []).append(aggregation)
        reaches = {entity: reach_of(by_entity[entity]) for entity in sorted(by_entity)}
        return cls(reaches, max_events, frozenset(a.to_json() for group in by_entity.values() for a in group))

    @cached_property
    def digest(self) -> str:
        """The same for what keeps the same; part of the store's keys, so that what was kept for other views is never mistaken."""
        said: list[Any] = []
        for entity, r in self.reaches.items():
            filters = [sorted(map(repr, part)) for part in (r.newest.items(), r.visits.items(), r.before)]
            said.append([entity, sorted(r.columns), filters, r.window, r.lag, r.session_gap])
        return hashlib.sha256(repr((said, self.max_events)).encode()).hexdigest()[:12]

    def columns(self, entity: str, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Those of an entity's columns that are kept, besides time and seq."""
        kept = self.reaches[entity].columns
        return {name: columns[name] for name in columns if name in kept}  # one is read when it is asked for

    def bounds(self, entity: str, evaluator: Evaluator, low: Array, high: Array, now: int) -> tuple[Array, Array]:
        """(first position to keep of each slice [low, high) of an index, since when answers from there on are exact)."""
        index, times = evaluator.index, np.full(len(low), now, np.int64)
        stop = index.search(low, high, times)
        begin = np.maximum(oldest(evaluator, self.reaches[entity], low, stop, times), high - self.max_events)
        return begin, np.where(begin > low, now, ALWAYS)
