"""One version of an ensemble, loaded and answering: the features it was trained on, read online, through every member to one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, FeatureBatch
from zoo.errors import FeatureError, UsageError
from zoo.features import Features, table_of
from zoo.manager import Plugins, plugins
from zoo.project import Project
from zoo.registry import Registry, Version
from zoo.stacking import Ensemble

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


@dataclass(frozen=True)
class Predictor:
    """Answers for one model version. Thread-safe; ``load`` makes one."""

    version: Version
    ensemble: Ensemble
    features: Features
    found: Plugins

    @classmethod
    def load(cls, reference: str, repo: Path | str = ".", without: Sequence[str] = ()) -> Predictor:
        """The ensemble behind ``churn@champion``, ``churn@3`` or ``churn`` (its champion).

        Raises UsageError where the project is missing, RegistryError for an unknown model, version or alias, ArtefactError where
        its files are not what was registered, FeatureError where the feature service is no longer the one it was trained on.
        """
        project = Project.open(repo)
        found = plugins(without)
        with Registry.open(project.registry_url, project.artefacts) as registry:
            version, artefact = registry.load(reference)
        ensemble = Ensemble.load(artefact, found)
        features = Features.open(project.root)
        predictor = cls(version, ensemble, features, found)
        predictor._check_service()
        return predictor

    def _check_service(self) -> None:
        trained = self.version.lineage["service_hash"]
        if self.features.schema_hash(self.service) != trained:
            raise FeatureError(
                f"feature service {self.service!r} is not the one that {self.version.reference} was trained on (its views, types or "
                f"aggregations changed since). Restore the definitions and `zoo apply`, or train again: zoo train {self.version.model}"
            )

    @property
    def service(self) -> str:
        return str(self.version.lineage["task"]["service"])

    @property
    def entities(self) -> tuple[str, ...]:
        """Key columns that rows must have."""
        return tuple(self.version.lineage["task"]["entities"])

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.ensemble.members)

    def predict(self, rows: Any = None, *, users: Sequence[Any] | None = None, at: int | datetime | None = None) -> pa.Table:
        """Scores of n rows as of ``at`` (default: the repository's clock).

        rows: a table, frame, mapping or list of mappings of entity keys and request context; ``users=[...]`` is short for one column
        ``user_id``. Returns n rows in order: the keys, ``score`` (float32), one column a member, ``newest_event_age`` (seconds; null
        where there is no event), ``known`` (False: a user without events before ``at``, answered as cold) and ``version``.
        """
        if (rows is None) == (users is None):
            raise UsageError("predict takes either rows or users, one of them")
        table = table_of({"user_id": list(users)} if users is not None else rows)
        missing = [name for name in self.entities if name not in table.column_names]
        if missing:
            raise UsageError(
                f"rows have no column {missing[0]!r}; {self.version.model} needs {', '.join(self.entities)} and the rows have: "
                f"{', '.join(table.column_names) or '(none)'}"
            )
        if not len(table):
            return self._answer(table, None, np.zeros((0, len(self.members), 1), np.float32), np.zeros((0, 1), np.float32))
        batch = self.features.online(self.service, table, at, self._context())
        scores = self.ensemble.member_scores(batch)
        final = self.ensemble.combine(batch, scores)
        self.found.scored(self.version.model, self.version.number, {"rows": len(table), "score": final})
        return self._answer(table, batch, scores, final)

    def _context(self) -> Mapping[str, str]:
        task = self.found.tasks.get(self.version.lineage["task"]["kind"])
        return task.context if task else {}

    def _answer(self, table: pa.Table, batch: FeatureBatch | None, scores: Array, final: Array) -> pa.Table:
        import pyarrow as pa

        columns: dict[str, Any] = {name: table[name] for name in self.entities}
        columns |= _named("score", final, self.ensemble.target.classes)
        for i, name in enumerate(self.members):
            columns |= _named(name, scores[:, i], self.ensemble.target.classes)
        newest = np.full(len(table), -1, np.int64) if batch is None else batch.newest
        as_of = newest if batch is None else batch.as_of
        columns["newest_event_age"] = pa.array((as_of - newest) / 1e6, mask=newest < 0)
        columns["known"] = pa.array(newest >= 0)
        columns["version"] = pa.array([self.version.reference] * len(table), pa.string())
        return pa.table(columns)


def _named(name: str, scores: Array, classes: tuple[str, ...]) -> dict[str, Array]:
    """One column, or one a class: ``score:purchase``."""
    if scores.shape[1] == 1:
        return {name: scores[:, 0]}
    return {f"{name}:{c}": scores[:, k] for k, c in enumerate(classes)}
