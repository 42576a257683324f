"""One version of an ensemble, loaded and answering: the features it was trained on, read online, through every member to one score.

``Predictor`` is long, being the one page that says what callers may ask, and what they get and when they do not: rows, batches, lists and
explanations, each awaited as well. What an answer is made of is in the rooms that it calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from zoo.answers import Answered, ids_of, listed
from zoo.contract import Array, FeatureBatch
from zoo.deadline import Threads, from_now, until
from zoo.errors import FeatureError, LateError, PluginError, UsageError, ZooError, choices
from zoo.events.dictionary import FIRST
from zoo.events.given import identifiers, keyed, moment, table_of
from zoo.events.items import items_where
from zoo.fallbacks import Fallbacks
from zoo.features import Features
from zoo.lineage import Tracer
from zoo.manager import Plugins, plugins
from zoo.opening import check_named, check_service, ensemble_of, vocabulary_in
from zoo.policy import Policy
from zoo.project import Project
from zoo.reading import FRESH, Read, Reader
from zoo.recommender import Lists, Recommender
from zoo.registry import Registry, Version
from zoo.scoring import Scorer, Scores
from zoo.spans import span
from zoo.stacking import Ensemble
from zoo.traces import FILE as TRACES
from zoo.traces import Traces

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from zoo.events.view import LogView
    from zoo.explaining import Explanation

_log = logging.getLogger(__name__)
T = TypeVar("T")
RESERVE = 0.005
"""Seconds before a deadline from which on members are late: their scores are combined after that."""
BATCH = 4_096
"""Rows of a batch of ``predict_batches``."""


@dataclass(frozen=True)
class State:
    """How a version answers at this moment. features: ``fresh``, or what the policy has instead. missing: members that are lost."""

    features: str
    missing: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return self.features == FRESH and not self.missing


@dataclass(frozen=True)
class Predictor:
    """Answers for one model version. Thread-safe; ``load`` makes one.

    policy: what an answer may lack. fallbacks: what is answered then; None of versions from before there were any, and of rankings. tracer:
    keeps what answers were made of; None where the project asks for no traces. log: ``EventLog.id`` of the log whose codes it knows.
    declared: what ``zoo.toml`` said of the policy, by name, where that was not ``policy`` when this was loaded: it takes a training.
    """

    version: Version
    ensemble: Ensemble | Recommender
    features: Features
    found: Plugins
    policy: Policy = field(default_factory=Policy)
    fallbacks: Fallbacks | None = None
    tracer: Tracer | None = None
    log: str | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)
    _scorer: Scorer = field(default_factory=Scorer, repr=False)
    # not the scorer's: who waits for a thread must not hold the last one
    _callers: Threads = field(default_factory=Threads, repr=False)

    @classmethod
    def load(
        cls, reference: str, repo: Path | str = ".", without: Sequence[str] = (), *, features: Features | None = None
    ) -> Predictor:
        """The ensemble behind ``churn@champion``, ``churn@3`` or ``churn`` (its champion). The first answer loads more: see ``warm``.

        features: the repository's, where the caller has opened them already (several predictors then share one store).
        Raises UsageError where the project is missing, UnknownReferenceError for an unknown model, version or alias, ArtefactError
        where its files are not what was registered, PluginError where the plugin of one of its models is not installed, FeatureError
        where the feature service is no longer the one it was trained on, or the log lacks identifiers that it was trained on.
        """
        project = Project.open(repo)
        found = plugins(without)
        with Registry.of(project, create=False) as registry:
            version, artefact = registry.load(reference)
        check_named(version)
        ensemble, features = ensemble_of(artefact, found), features or Features.open(project.root)
        check_service(version, features)
        log = features.reader.log
        vocabulary = vocabulary_in(log, version, artefact, ensemble.vocabulary)
        if vocabulary is not ensemble.vocabulary:
            ensemble = replace(ensemble, vocabulary=vocabulary)
        kept, spares = Policy.kept(version.lineage.get("serving")), Fallbacks.load(artefact.part("fallbacks"), found)
        tracer = None
        if project.traces:
            tracer = Tracer.of(Traces(project.data / TRACES, project.traces), version, ensemble.members, artefact)
        declared = kept.declared(project.tasks[version.model].serving) if version.model in project.tasks else {}
        if declared:
            _log.warning(
                "%s answers by the policy that it was trained with, not by [tasks.%s.serving] of zoo.toml, which says by now: %s. What was "
                "measured and prepared for lost members is of that policy; for the new one to count: zoo train %s",
                version.reference,
                version.model,
                "; ".join(f"{name} = {value!r} (the version's: {kept.facts()[name]!r})" for name, value in declared.items()),
                version.model,
            )
        return cls(version, ensemble, features, found, kept, spares, tracer, log.id, declared)

    def _check_log(self, view: LogView) -> None:
        """Raise FeatureError where another log has taken the place of the one whose codes the ensemble is in."""
        if self.log is not None and view.log.id != self.log:
            raise FeatureError(
                f"the log was replaced since {self.version.reference} was loaded, and codes mean something else in it; load it again "
                "(restart `zoo serve`)"
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

    def warm(self, deadline: float | None = None) -> State:
        """Answer for nobody, as the policy has it, so that what is loaded on first use is there, and what cannot answer fails at once.

        deadline: as in ``predict``. Raises FeatureError, PluginError or LateError as ``predict``.
        """
        import pyarrow as pa

        nobody = {name: pa.nulls(1) for name in self.entities} | {n: pa.array([0]) for n in self.context}
        instant = from_now(deadline)
        read = self._read(nobody, None, instant)
        if isinstance(self.ensemble, Recommender):
            work = partial(self.ensemble.lists, read.batch, 1)
            _ = work() if instant is None else self._scorer.threads.within(work, instant, "lists were")
            return State(read.source[0])
        scores = self._scorer.ask(self.ensemble, read.batch, None if instant is None else instant - RESERVE)
        self._enough(scores)
        self._final(read.batch, scores)
        return State(read.source[0], tuple(scores.why))

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.features, self.service, self.context, self.policy)

    def _read(self, rows: Any, at: int | None, instant: float | None = None) -> Read:
        """The features of rows as of ``at``, with what the model is told of items beside them."""
        read = self._reader.read(rows, at, instant)
        if read.recent is not None:
            self._check_log(read.recent.view)
        return replace(read, batch=self.features.described(read.batch)) if isinstance(self.ensemble, Recommender) else read

    def predict(
        self,
        rows: Any = None,
        *,
        users: Sequence[Any] | None = None,
        at: int | datetime | None = None,
        deadline: float | None = None,
    ) -> pa.Table:
        """Scores of n rows as of ``at`` (microseconds UTC or an aware datetime; default: the repository's clock).

        rows: a table, frame, mapping or list of mappings of entity keys and request context; ``users=[...]`` is short for one column
        ``user_id``. deadline: seconds from now by which the store and the members have to answer; a member that is late is given up.
        Returns n rows in order: the keys and context columns, ``score`` (float32), one column a member (null where it is missing),
        ``newest_event_age`` (seconds; null where there is no event), ``known`` (False: a user without events before ``at``,
        answered as cold; null where the store did not say), ``version``, ``missing`` (names of the members that failed, were late or
        gave no number),
        ``calibrated`` (whether answers that lack those were off by no more than the policy's ``calibration_error`` on held-out rows; null
        where that was not measured, as of features that are not fresh) and ``features`` (``fresh`` from the store, or what the policy has
        instead: ``last_known``, ``cold``) and ``id`` (of the row's answer, by which ``zoo trace`` finds what it was made of); where there
        are several ``outputs``, each score is a column an output, ``score:OUTPUT``.
        The schema's metadata has ``as_of``, the instant that was answered for (microseconds UTC).
        Raises as ``answer`` does.
        """
        return self.answer(rows, users=users, at=at, deadline=deadline).table()

    def answer(
        self,
        rows: Any = None,
        *,
        users: Sequence[Any] | None = None,
        at: int | datetime | None = None,
        deadline: float | None = None,
    ) -> Answered:
        """What ``predict`` makes a table of, for who wants a few rows as they are.

        Raises UsageError for rows, an ``at`` or a deadline that cannot be meant, UnknownIdError for an identifier of the wrong type; where
        the policy does without no more, FeatureError for features, PluginError for members, LateError for either of them late.
        """
        instant = from_now(deadline)
        if isinstance(self.ensemble, Recommender):
            raise UsageError(
                f"{self.version.reference} ranks items and has no score a row; ask it for lists: recommend(users), "
                "`zoo recommend --user ID` or /v1/recommend"
            )
        table = self.rows(rows, users)
        at = None if at is None else moment(at)
        if not len(table):
            none = np.zeros((0, len(self.members), self.ensemble.target.width), np.float32)
            return self._answered(table, None, Scores(none, np.zeros(none.shape[:2], bool), {}), none[:, 0])
        return self._scored(table, self._read(table, at, instant), instant)

    def _scored(self, table: pa.Table, read: Read, instant: float | None) -> Answered:
        assert isinstance(self.ensemble, Ensemble)
        scores = self._scorer.ask(self.ensemble, read.batch, None if instant is None else instant - RESERVE)
        self._enough(scores)
        with span("zoo.combine", {"zoo.version": self.version.reference, "zoo.rows": len(table)}):
            final = self._final(read.batch, scores)
        self.found.scored(self.version.model, self.version.number, {"rows": len(table), "score": final})
        return self._answered(table, read, scores, final)

    def _final(self, batch: FeatureBatch, scores: Scores) -> Array:
        """float32 (n, k): what the final model says of the members' scores."""
        assert isinstance(self.ensemble, Ensemble)
        if self.fallbacks is None:
            return self.ensemble.combine(batch, scores.scores)
        return self.fallbacks.combine(self.ensemble, batch, scores.scores, scores.lost)

    def predict_batches(self, rows: Any = None, *, at: int | datetime | None = None, size: int = BATCH) -> Iterator[pa.Table]:
        """``predict`` of a whole population, ``size`` rows at a time, in order: every user whom the log knows, or these rows.

        Features are the log's history at ``at``, of the version of the log at the first batch: the online store is not asked, equals it,
        and may be down. Memory holds one batch. Returns tables as ``predict`` does, without ``id``. Raises as ``predict``.
        """
        if isinstance(self.ensemble, Recommender):
            raise UsageError(f"{self.version.reference} ranks items; ask it for lists: recommend(users)")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"size is {size!r}; expected how many rows a batch has, at least 1")
        features = self.features.pinned()
        self._check_log(features.reader.view())
        now = features.reader.now() if at is None else moment(at)
        table = self._keyed(self.everyone() if rows is None else table_of(rows))
        times = {"time": np.full(len(table), now)}
        batches = features.history_batches(
            self.service, {**dict(zip(table.column_names, table.columns)), **times}, size, self.context
        )
        for begin, batch in zip(range(0, len(table), size), batches, strict=True):
            read = Read(batch, np.full(len(batch), FRESH, object), None)
            yield self._scored(table.slice(begin, size), read, None).table().drop_columns("id")

    def everyone(self) -> pa.Table:
        """Every user whom the log knows, in the order in which they came. Raises UsageError where a row is more than a user."""
        import pyarrow as pa

        if self.entities != ("user_id",) or self.context:
            raise UsageError(self._not_alone)
        view = self.features.reader.view()
        return pa.table({"user_id": view.ids("user_id", np.arange(FIRST, view.size("user_id"))).drop_null()})

    def _enough(self, scores: Scores) -> None:
        """Raise PluginError, or LateError, where the policy has no answer with what the members gave."""
        if not scores.why:
            return
        lost = [self.members[at] for at in np.flatnonzero(scores.lost.any(axis=0))]
        needed = [name for name in lost if self.fallbacks is None or name in self.policy.required]
        if not needed and (~scores.lost).sum(axis=1).min() >= self.policy.at_least:
            return
        told = ", ".join(f"{name} {_WHY[scores.why[name]]}" for name in needed or lost)
        rule = "every member is required" if self.fallbacks is None else f"required = {list(self.policy.required)}"
        error = LateError if set(scores.why.values()) == {"late"} else PluginError
        raise error(
            f"{told}; {self.version.reference} answers with at least {self.policy.at_least} of its members ({rule}). The log says more"
        )

    def explain(
        self,
        rows: Any = None,
        *,
        users: Sequence[Any] | None = None,
        at: int | datetime | None = None,
        output: str | None = None,
        top: int = 10,
        events: int = 10,
        deadline: float | None = None,
    ) -> list[Explanation]:
        """What moved each row's score: members, their columns and single events; an explanation a row, as in ``zoo.explaining``.

        rows, users, at: as in ``predict``. output: one of ``outputs``, default each row's likeliest. top: columns of each member. events:
        newest ones of each sequence. deadline: seconds from now by which it has to be there; a step that has begun (a prediction of one
        member) is not broken off. Raises UsageError for a version that ranks items, else as ``predict``.
        """
        from zoo.explaining import explain, rates

        if isinstance(self.ensemble, Recommender):
            raise UsageError(f"{self.version.reference} ranks items; what moved a score can be said of tasks with a score a row")
        if output is not None and output not in self.outputs:
            raise UsageError(choices("output", output, self.outputs))
        for name, most in (("top", top), ("events", events)):
            if isinstance(most, bool) or not isinstance(most, int) or most < 0:
                raise UsageError(f"{name} is {most!r}; expected how many to tell, 0 or more")
        table, instant = self.rows(rows, users), from_now(deadline)
        if not len(table):
            return []
        read = self._read(table, None if at is None else moment(at), instant)
        number = None if output is None else self.outputs.index(output)
        asked: dict[str, Any] = {
            "output": number,
            "top": top,
            "events": events,
            "sequences": self.features.sequences(self.service),
        }
        try:
            with until(instant):
                found = explain(self.ensemble, read.batch, rates(self.version.metrics, self.ensemble.target), **asked)
        except ZooError:
            raise
        except Exception as error:  # whatever a member's code raises
            raise PluginError(
                f"what moved a score of {self.version.reference} cannot be said while a member fails ({error!r}); predict answers "
                "without it, as far as the policy lets it"
            ) from error
        ids = ids_of(len(table))
        told = [
            replace(each, source=str(source), known=bool(newest >= 0) if source == FRESH else None, id=id)
            for each, source, newest, id in zip(found, read.source, read.batch.newest, ids, strict=True)
        ]
        if self.tracer is not None and self.tracer.keeps(len(table), read):
            answers = [{"explained": each.output or "score", "score": each.score, "moved": each.members} for each in told]
            self.tracer.keep(ids, {name: table[name].to_pylist() for name in (*self.entities, *self.context)}, read, answers)
        return told

    def recommend(
        self,
        users: Sequence[Any],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        where: Mapping[str, Any] | None = None,
        at: int | datetime | None = None,
        deadline: float | None = None,
    ) -> pa.Table:
        """The ``k`` items that each user takes next, most likely first: at most k rows a user, users in the order given.

        exclude_seen: whether items of the user's history are left out (default: as the task was trained). where: columns of the item
        table and the value that an item must have, as it stands now. at, deadline: as in ``predict``. Returns ``user_id``, ``place``
        (from 1), ``item_id``, ``title``, ``score`` (float32, comparable within a user), ``rank:MEMBER`` (the member's own rank of the
        item among those that may be listed), ``cold`` (True: nothing is known of the user that training knew, so this is what is
        popular), ``newest_event_age`` (seconds; null where there is no event), ``version``, ``features`` and ``id`` (of the user's
        list), as in ``predict``.
        Raises UsageError for arguments that cannot be meant, else as ``predict``.
        """
        import pyarrow as pa

        if not isinstance(self.ensemble, Recommender):
            raise UsageError(f"{self.version.reference} ranks no items; ask it for scores: predict(users=[...])")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UsageError(f"k is {k!r}; expected how many items to list, at least 1")
        at, instant = None if at is None else moment(at), from_now(deadline)
        if exclude_seen is not None and not isinstance(exclude_seen, bool):
            raise UsageError(f"exclude_seen is {exclude_seen!r}; expected True, False or None")
        if exclude_seen is None:
            exclude_seen = bool(self.version.lineage["settings"].get("exclude_seen", True))
        view = self.features.reader.view()
        among = None if where is None else items_where(view, where)
        table = self._keyed(table_of({"user_id": identifiers(users)}))
        if len(table):
            read = self._read(table, at, instant)
            batch, source = read.batch, read.source
            work = partial(self.ensemble.lists, batch, k, exclude_seen=exclude_seen, among=among)
            with span("zoo.rank", {"zoo.version": self.version.reference, "zoo.rows": len(table)}):
                lists = work() if instant is None else self._scorer.threads.within(work, instant, "lists were")
            ages = pa.array((batch.as_of - batch.newest) / 1e6, mask=batch.newest < 0)
        else:
            lists, ages, source = Lists.joined([], k, len(self.members)), pa.array([], pa.float64()), np.zeros(0, object)
        ids = ids_of(len(table))
        answer = listed(table["user_id"], lists, ages, source, ids, view, self.members, self.version.reference)
        if self.tracer is not None and len(table) and self.tracer.keeps(len(table), read):
            told = answer.drop_columns(["user_id", "id", "features", "newest_event_age"]).to_pylist()
            parts: dict[str, dict[str, Any]] = {id: {"items": []} for id in ids}
            for id, line in zip(answer["id"].to_pylist(), told, strict=True):
                parts[id]["items"].append(line)
            self.tracer.keep(ids, {"user_id": table["user_id"].to_pylist()}, read, list(parts.values()))
        self.found.scored(self.version.model, self.version.number, {"rows": len(table), "items": answer["item_id"]})
        return answer

    async def predict_async(
        self,
        rows: Any = None,
        *,
        users: Sequence[Any] | None = None,
        at: int | datetime | None = None,
        deadline: float | None = None,
    ) -> pa.Table:
        """As ``predict``, in a thread; the event loop goes on. May be cancelled: what has begun then ends unheard."""
        return await self._asked(partial(self.predict, rows, users=users, at=at, deadline=deadline))

    async def recommend_async(
        self,
        users: Sequence[Any],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        where: Mapping[str, Any] | None = None,
        at: int | datetime | None = None,
        deadline: float | None = None,
    ) -> pa.Table:
        """As ``recommend``, in a thread."""
        ask = partial(self.recommend, users, k, exclude_seen=exclude_seen, where=where, at=at, deadline=deadline)
        return await self._asked(ask)

    async def explain_async(
        self,
        rows: Any = None,
        *,
        users: Sequence[Any] | None = None,
        at: int | datetime | None = None,
        output: str | None = None,
        top: int = 10,
        events: int = 10,
        deadline: float | None = None,
    ) -> list[Explanation]:
        """As ``explain``, in a thread."""
        asked: dict[str, Any] = {"output": output, "top": top, "events": events, "deadline": deadline}
        return await self._asked(partial(self.explain, rows, users=users, at=at, **asked))

    async def _asked(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._callers.submit(work))

    def rows(self, rows: Any = None, users: Sequence[Any] | None = None) -> pa.Table:
        """Rows as ``predict`` takes them, as a table of keys and context columns. Raises as ``predict`` for those that cannot be meant."""
        if (rows is None) == (users is None):
            raise UsageError("predict takes either rows or users, one of them")
        if users is not None and self.context:
            raise UsageError(self._not_alone)
        return self._keyed(table_of({"user_id": identifiers(users)} if users is not None else rows))

    def rows_of(self, users: Sequence[Any]) -> pa.Table:
        """Rows for ``predict`` of users named alone: one each, or one for each value of the context that the version was trained with.

        The horizons of a churn that has several are such values. Raises UsageError where the task lists none.
        """
        given = identifiers(users)
        if not self.context:
            return table_of({"user_id": given})
        if not self._asked_with.keys() >= self.context.keys():
            raise UsageError(self._not_alone)
        each = list(product(given, *(self._asked_with[name] for name in self.context)))
        return table_of({name: [row[at] for row in each] for at, name in enumerate(("user_id", *self.context))})

    @cached_property
    def _asked_with(self) -> Mapping[str, tuple[Any, ...]]:
        """Values of context columns that rows were trained with, where the task lists them."""
        task = self.found.tasks.get(self.version.lineage["task"]["kind"])
        return {} if task is None or task.asked is None else task.asked(self.version.lineage["settings"])

    @property
    def _not_alone(self) -> str:
        """Why users alone are no rows, and what to give."""
        own = "".join(
            f" with a column {name!r} ({self.version.reference} was trained with {', '.join(map(str, values))})"
            for name, values in self._asked_with.items()
        )
        asked = ", ".join((*self.entities, *self.context))
        return f"{self.version.model} is asked about {asked}, not about users alone; give rows{own}"

    def _keyed(self, table: pa.Table) -> pa.Table:
        return keyed(table, (*self.entities, *self.context), self.version.model)

    def _answered(self, table: pa.Table, read: Read | None, scores: Scores, final: Array) -> Answered:
        none, spares, bound = np.zeros(0, np.int64), self.fallbacks, self.policy.calibration_error
        source = np.zeros(0, object) if read is None else read.source
        measured = [None] * len(table) if spares is None else spares.calibrated(self.members, scores.lost, bound)
        answer = Answered(
            keys=table.select((*self.entities, *self.context)),
            ids=ids_of(len(table)),
            final=final,
            scores=scores,
            as_of=none if read is None else read.batch.as_of,
            newest=none if read is None else read.batch.newest,
            source=source,
            calibrated=[
                told if each == FRESH else None for told, each in zip(measured, source, strict=True)
            ],  # it was of fresh ones
            members=self.members,
            outputs=self.outputs,
            version=self.version.reference,
        )
        if self.tracer is not None and read is not None and self.tracer.keeps(len(table), read):
            keys = {name: table[name].to_pylist() for name in (*self.entities, *self.context)}
            left_out = {*keys, "id", "features"}
            told = [{name: value for name, value in row.items() if name not in left_out} for row in answer.rows]
            self.tracer.keep(answer.ids, keys, read, told)
        return answer


_WHY = {"late": "was late", "failed": "failed", "no number": "gave a score that is not finite"}
