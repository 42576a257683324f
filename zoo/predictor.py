"""One version of an ensemble, loaded and answering: the features it was trained on, read online, through every member to one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, FeatureBatch
from zoo.errors import FeatureError, RegistryError, UsageError
from zoo.features import Features, moment, table_of
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
    def load(
        cls, reference: str, repo: Path | str = ".", without: Sequence[str] = (), *, features: Features | None = None
    ) -> Predictor:
        """The ensemble behind ``churn@champion``, ``churn@3`` or ``churn`` (its champion).

        features: the repository's, where the caller has opened them already (several predictors then share one store).
        Raises UsageError where the project is missing, UnknownReferenceError for an unknown model, version or alias, ArtefactError
        where its files are not what was registered, PluginError where the plugin of one of its models is not installed, FeatureError
        where the feature service is no longer the one it was trained on.
        """
        project = Project.open(repo)
        found = plugins(without)
        with Registry.open(project.registry_url, project.artefacts, create=False) as registry:
            version, artefact = registry.load(reference)
        if not {"task", "service_hash"} <= version.lineage.keys():
            raise RegistryError(
                f"{version.reference} does not say which task and features it was trained on, so nothing can be predicted with it; "
                f"train one with: zoo train {version.model}"
            )
        ensemble = Ensemble.load(artefact, found)
        predictor = cls(version, ensemble, features or Features.open(project.root), found)
        predictor._check_service()
        return predictor

    def _check_service(self) -> None:
        applied = self.features.services()
        if self.service not in applied:
            raise FeatureError(
                f"feature service {self.service!r}, which {self.version.reference} was trained on, is not in the repository; it has: "
                f"{', '.join(applied) or '(none)'}. Restore its definition and run: zoo apply"
            )
        if self.features.schema_hash(self.service) != self.version.lineage["service_hash"]:
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
    def context(self) -> Mapping[str, str]:
        """Further columns that rows must have, with their numpy dtype."""
        task = self.found.tasks.get(self.version.lineage["task"]["kind"])
        return task.context if task else {}

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.ensemble.members)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the classes or horizons, where an answer has a score for each; empty where it has one score."""
        target = self.ensemble.target
        return (target.classes or target.horizons) if target.width > 1 else ()

    def warm(self) -> None:
        """Answer for nobody, so that what is loaded on first use is there, and what cannot answer fails at once."""
        import pyarrow as pa

        nobody = {name: pa.nulls(1) for name in self.entities} | {n: pa.array([0]) for n in self.context}
        batch = self.features.online(self.service, nobody, context=self.context)
        self.ensemble.combine(batch, self.ensemble.member_scores(batch))

    def predict(self, rows: Any = None, *, users: Sequence[Any] | None = None, at: int | datetime | None = None) -> pa.Table:
        """Scores of n rows as of ``at`` (microseconds UTC or an aware datetime; default: the repository's clock).

        rows: a table, frame, mapping or list of mappings of entity keys and request context; ``users=[...]`` is short for one column
        ``user_id``. Returns n rows in order: the keys, ``score`` (float32), one column a member, ``newest_event_age`` (seconds; null
        where there is no event), ``known`` (False: a user without events before ``at``, answered as cold) and ``version``; where
        there are several ``outputs``, each score is a column an output, ``score:OUTPUT``.
        Raises UsageError for rows or an ``at`` that cannot be meant, UnknownIdError for an identifier of the wrong type, FeatureError
        where the features cannot be read.
        """
        if (rows is None) == (users is None):
            raise UsageError("predict takes either rows or users, one of them")
        if isinstance(users, str):
            raise UsageError(f"users is the text {users!r}; expected a list of identifiers, as in users=[{users!r}]")
        at = None if at is None else moment(at)
        table = self._keyed(table_of({"user_id": list(users)} if users is not None else rows))
        if not len(table):
            none = np.zeros((0, len(self.members), self.ensemble.target.width), np.float32)
            return self._answer(table, None, none, none[:, 0])
        batch = self.features.online(self.service, table, at, self.context)
        scores = self.ensemble.member_scores(batch)
        final = self.ensemble.combine(batch, scores)
        self.found.scored(self.version.model, self.version.number, {"rows": len(table), "score": final})
        return self._answer(table, batch, scores, final)

    def _keyed(self, table: pa.Table) -> pa.Table:
        """The table, if every row has every column that is needed; without rows and columns it is an empty one."""
        needed = (*self.entities, *self.context)
        if not table.num_columns and not len(table):
            return table_of({name: [] for name in needed})
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise UsageError(
                f"rows have no column {missing[0]!r}; {self.version.model} needs {', '.join(needed)} and the rows have: "
                f"{', '.join(table.column_names) or '(none)'}"
            )
        for name in needed:
            if table[name].null_count:
                row = table[name].is_null().index(True).as_py()
                raise UsageError(f"row {row} of {len(table)} has no {name}; {self.version.model} needs it in every row")
        return table

    def _answer(self, table: pa.Table, batch: FeatureBatch | None, scores: Array, final: Array) -> pa.Table:
        import pyarrow as pa

        columns: dict[str, Any] = {name: table[name] for name in self.entities}
        columns |= _named("score", final, self.outputs)
        for i, name in enumerate(self.members):
            columns |= _named(name, scores[:, i], self.outputs)
        newest = np.full(len(table), -1, np.int64) if batch is None else batch.newest
        as_of = newest if batch is None else batch.as_of
        columns["newest_event_age"] = pa.array((as_of - newest) / 1e6, mask=newest < 0)
        columns["known"] = pa.array(newest >= 0)
        columns["version"] = pa.array([self.version.reference] * len(table), pa.string())
        return pa.table(columns)


def _named(name: str, scores: Array, outputs: tuple[str, ...]) -> dict[str, Array]:
    """One column, or one an output: ``score:purchase``."""
    if not outputs:
        return {name: scores[:, 0]}
    return {f"{name}:{output}": scores[:, k] for k, output in enumerate(outputs)}
