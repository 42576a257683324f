"""One version of an ensemble, loaded and answering: the features it was trained on, read online, through every member to one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, FeatureBatch
from zoo.errors import FeatureError, RegistryError, UsageError, choices
from zoo.events.given import moment, table_of
from zoo.events.items import items_where
from zoo.features import Features
from zoo.manager import Plugins, plugins
from zoo.project import Project
from zoo.recommender import FILE, Lists, Recommender
from zoo.registry import Registry, Version
from zoo.stacking import Ensemble

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from zoo.explaining import Explanation


@dataclass(frozen=True)
class Predictor:
    """Answers for one model version. Thread-safe; ``load`` makes one."""

    version: Version
    ensemble: Ensemble | Recommender
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
        ensemble = (Recommender if FILE in artefact.texts else Ensemble).load(artefact, found)
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
        return task.context_of(self.version.lineage["settings"]) if task else {}

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
        batch = self._read(nobody, None)
        if isinstance(self.ensemble, Recommender):
            self.ensemble.lists(batch, 1)
        else:
            self.ensemble.combine(batch, self.ensemble.member_scores(batch))

    def _read(self, rows: Any, at: int | None) -> FeatureBatch:
        """The features of rows as of ``at``, with what the model is told of items beside them."""
        batch = self.features.online(self.service, rows, at, self.context)
        return self.features.described(batch) if isinstance(self.ensemble, Recommender) else batch

    def predict(self, rows: Any = None, *, users: Sequence[Any] | None = None, at: int | datetime | None = None) -> pa.Table:
        """Scores of n rows as of ``at`` (microseconds UTC or an aware datetime; default: the repository's clock).

        rows: a table, frame, mapping or list of mappings of entity keys and request context; ``users=[...]`` is short for one column
        ``user_id``. Returns n rows in order: the keys, ``score`` (float32), one column a member, ``newest_event_age`` (seconds; null
        where there is no event), ``known`` (False: a user without events before ``at``, answered as cold) and ``version``; where
        there are several ``outputs``, each score is a column an output, ``score:OUTPUT``.
        Raises UsageError for rows or an ``at`` that cannot be meant, UnknownIdError for an identifier of the wrong type, FeatureError
        where the features cannot be read.
        """
        if isinstance(self.ensemble, Recommender):
            raise UsageError(
                f"{self.version.reference} ranks items and has no score a row; ask it for lists: recommend(users), "
                "`zoo recommend --user ID` or /v1/recommend"
            )
        if (rows is None) == (users is None):
            raise UsageError("predict takes either rows or users, one of them")
        if isinstance(users, str):
            raise UsageError(f"users is the text {users!r}; expected a list of identifiers, as in users=[{users!r}]")
        at = None if at is None else moment(at)
        table = self._keyed(table_of({"user_id": list(users)} if users is not None else rows))
        if not len(table):
            none = np.zeros((0, len(self.members), self.ensemble.target.width), np.float32)
            return self._answer(table, None, none, none[:, 0])
        batch = self._read(table, at)
        scores = self.ensemble.member_scores(batch)
        final = self.ensemble.combine(batch, scores)
        self.found.scored(self.version.model, self.version.number, {"rows": len(table), "score": final})
        return self._answer(table, batch, scores, final)

    def explain(
        self,
        users: Sequence[Any],
        *,
        at: int | datetime | None = None,
        output: str | None = None,
        top: int = 10,
        events: int = 10,
    ) -> list[Explanation]:
        """What moved each user's score: members, their columns and single events; an explanation a user, as in ``zoo.explaining``.

        output: one of ``outputs``, default each user's likeliest. top: columns of each member; events: newest ones of each sequence.
        Raises UsageError for a version that ranks items or whose rows have other keys, else as ``predict``.
        """
        from zoo.explaining import explain, rates

        if isinstance(self.ensemble, Recommender) or self.entities != ("user_id",):
            what = "ranks items" if isinstance(self.ensemble, Recommender) else f"has rows of {', '.join(self.entities)}"
            raise UsageError(f"{self.version.reference} {what}; what moved a score can be said of tasks with a score a user")
        if output is not None and output not in self.outputs:
            raise UsageError(choices("output", output, self.outputs))
        batch = self._read(self._keyed(table_of({"user_id": list(users)})), None if at is None else moment(at))
        number = None if output is None else self.outputs.index(output)
        asked: dict[str, Any] = {
            "output": number,
            "top": top,
            "events": events,
            "sequences": self.features.sequences(self.service),
        }
        return explain(self.ensemble, batch, rates(self.version.metrics, self.ensemble.target), **asked)

    def recommend(
        self,
        users: Sequence[Any],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        where: Mapping[str, Any] | None = None,
        at: int | datetime | None = None,
    ) -> pa.Table:
        """The ``k`` items that each user takes next, most likely first: at most k rows a user, users in the order given.

        exclude_seen: whether items of the user's history are left out (default: as the task was trained). where: columns of the item
        table and the value that an item must have, as it stands now. at: as in ``predict``. Returns columns ``user_id``, ``place``
        (from 1), ``item_id``, ``title``, ``score`` (float32, comparable within a user), ``rank:MEMBER`` (the member's own rank of the
        item among those that may be listed), ``cold`` (True: nothing is known of the user that training knew, so this is what is
        popular), ``newest_event_age`` (seconds; null where there is no event) and ``version``.
        Raises UsageError for arguments that cannot be meant, else as ``predict``.
        """
        import pyarrow as pa

        if not isinstance(self.ensemble, Recommender):
            raise UsageError(f"{self.version.reference} ranks no items; ask it for scores: predict(users=[...])")
        if isinstance(users, str):
            raise UsageError(f"users is the text {users!r}; expected a list of identifiers, as in [{users!r}]")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UsageError(f"k is {k!r}; expected how many items to list, at least 1")
        at = None if at is None else moment(at)
        if exclude_seen is None:
            exclude_seen = bool(self.version.lineage["settings"].get("exclude_seen", True))
        view = self.features.reader.view()
        among = None if where is None else items_where(view, where)
        table = self._keyed(table_of({"user_id": list(users)}))
        if len(table):
            batch = self._read(table, at)
            lists = self.ensemble.lists(batch, k, exclude_seen=exclude_seen, among=among)
            ages = pa.array((batch.as_of - batch.newest) / 1e6, mask=batch.newest < 0)
        else:
            lists, ages = Lists.joined([], k, len(self.members)), pa.array([], pa.float64())
        row, place = np.nonzero(lists.items)
        codes = lists.items[row, place]
        columns: dict[str, Any] = {"user_id": table["user_id"].take(pa.array(row)), "place": pa.array(place + 1)}
        columns["item_id"] = view.ids("item_id", codes)
        columns["title"] = pa.array(view.names("item_id")[codes], pa.string())
        columns["score"] = lists.score[row, place]
        columns |= {f"rank:{name}": lists.ranks[at, row, place] for at, name in enumerate(self.members)}
        columns["cold"] = pa.array(lists.cold[row])
        columns["newest_event_age"] = ages.take(pa.array(row))
        columns["version"] = pa.array([self.version.reference] * len(row), pa.string())
        self.found.scored(self.version.model, self.version.number, {"rows": len(table), "items": columns["item_id"]})
        return pa.table(columns)

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
