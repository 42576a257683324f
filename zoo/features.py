"""Features of a Feast repository as FeatureBatches: history for training, online for serving. The only caller of a FeatureStore.

``Features`` is long, being the one door to all of that; ``zoo.stores`` and ``zoo.events`` do the work behind it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.contract import Array, Block, Column, FeatureBatch, Progress
from zoo.errors import FeatureError, UsageError, choices
from zoo.events.given import Given, context_block, distinct, given_columns, moment, table_of, timed
from zoo.traces import FILE as TRACES
from zoo.traces import Traces

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

    from zoo.events.forget import Forgotten
    from zoo.events.ingest import IngestReport
    from zoo.events.view import LogView
    from zoo.stores.reader import LogReader
    from zoo.stores.recent import Recent


@dataclass(frozen=True)
class _View:
    """What is asked of a feature view on every read, taken from it once.

    joins: join key -> the rows' column that holds it.
    """

    feature_view: Any
    block: str
    names: list[str]
    joins: dict[str, str]

    @classmethod
    def of(cls, feature_view: Any) -> _View:
        from zoo.stores.columns import join_columns

        names = [feature.name for feature in feature_view.projection.features]
        return cls(feature_view, feature_view.projection.name_to_use(), names, join_columns(feature_view))

    @cached_property
    def source(self) -> Any:
        """What it is computed from; FeatureError where that is neither events nor an entity table."""
        from zoo.stores.columns import source_of

        return source_of(self.feature_view)


class _Asked(NamedTuple):
    """One view's part of a batch: codes of its distinct rows by join key, their times, and which of them each row is.

    each: whether every row is one of its own, in order.
    """

    view: _View
    keys: dict[str, Array]
    times: Array
    row_of: Array
    each: bool


def _fresh(
    view: LogView, asked: _Asked, columns: dict[str, Column], newest: Array | None
) -> tuple[dict[str, Column], Array | None]:
    """What a view says of its distinct rows, where an entity past the view's ``ttl`` is one without events."""
    if newest is None or not asked.view.feature_view.ttl:
        return columns, newest
    from zoo.stores.columns import blank, expired

    past = expired(asked.view.feature_view, newest, asked.times)
    if not past.any():
        return columns, newest
    return blank(view, asked.view.source, columns, asked.keys, past), np.where(past, -1, newest)


@dataclass(frozen=True)
class Features:
    """The feature services of one repository, opened. Thread-safe for reading."""

    store: FeatureStore
    reader: LogReader
    _views: dict[str, list[_View]] = field(default_factory=dict, repr=False)

    def pinned(self) -> Features:
        """The same services, with history from the log's version of now, whatever is committed later."""
        return replace(self, reader=self.reader.pinned())

    @classmethod
    def open(cls, repo: Path | str = ".") -> Features:
        """Open a folder with a feature_store.yaml. Raises FeatureError where it is missing or unreadable."""
        # feast imports torch and pandas: six seconds that `zoo --help` and a plugin listing must not pay
        import yaml
        from feast import FeatureStore
        from feast.errors import FeastError
        from feast.repo_config import FeastConfigError

        from zoo.stores.reader import LogReader

        path = Path(repo).resolve()
        if not (path / "feature_store.yaml").is_file():
            raise FeatureError(f"no feature_store.yaml in {path}; name a repository with --repo, or make one with: zoo init DIR")
        try:
            store = FeatureStore(repo_path=str(path))
        except (FeastError, FeastConfigError, yaml.YAMLError, ValueError) as error:
            raise FeatureError(f"{path / 'feature_store.yaml'} cannot be used: {error}") from error
        return cls(store, LogReader.of(store.config))

    def services(self) -> tuple[str, ...]:
        """Names of the feature services applied."""
        return tuple(sorted(s.name for s in self.store.list_feature_services()))

    def views(self, service: str) -> list[tuple[Any, list[str]]]:
        """(feature view, feature names) of a service. Raises UsageError for an unknown one."""
        return [(view.feature_view, view.names) for view in self._read_views(service)]

    def _read_views(self, service: str) -> list[_View]:
        if service in self._views:  # parsing Feast's registry takes longer than a prediction
            return self._views[service]
        if service not in self.services():
            raise UsageError(f"{choices('feature service', service, self.services())}. A new one is there after: zoo apply")
        found = self.store.get_feature_service(service)
        self._views[service] = [
            _View.of(self.store.registry.get_any_feature_view(p.name, self.store.project).with_projection(p))
            for p in found.feature_view_projections
        ]
        return self._views[service]

    def schema_hash(self, service: str) -> str:
        """sha256 of what a service's features are: views, names, types and how they are computed."""
        digest = hashlib.sha256()
        for view, names in self.views(service):
            types = {f.name: str(f.dtype) for f in view.features}
            renamed = sorted(view.projection.join_key_map.items())
            parts = [view.name, *view.join_keys, *renamed, getattr(view.batch_source, "body", str(view.batch_source.name))]
            digest.update(repr((parts, [(n, types[n]) for n in names])).encode())
        return digest.hexdigest()

    def sequences(self, service: str) -> list[tuple[str, ...]]:
        """Sequence columns of a service, those together whose entries are of the same events."""
        from zoo.events.specs import SEQUENCES
        from zoo.stores.source import EventSource

        out: dict[Any, list[str]] = {}
        for each in self._read_views(service):
            source = each.feature_view.batch_source
            specs = source.aggregation.features if isinstance(source, EventSource) and source.aggregation else ()
            for spec in specs:
                if spec.kind in SEQUENCES and spec.name in each.names:
                    own = {name: value for name, value in vars(spec).items() if name not in ("name", "column", "of")}
                    out.setdefault((each.block, repr(own)), []).append(spec.name)
        return [tuple(names) for names in out.values()]

    def durations(self, service: str) -> frozenset[str]:
        """Sequence columns of a service whose entries are seconds: gaps, waits and ages."""
        from zoo.events.specs import OF_STEPS, SEQUENCES
        from zoo.stores.source import EventSource

        sources = [(each.feature_view.batch_source, each.names) for each in self._read_views(service)]
        return frozenset(
            spec.name
            for source, names in sources
            if isinstance(source, EventSource) and source.aggregation is not None
            for spec in source.aggregation.features
            if spec.kind in SEQUENCES and spec.column in OF_STEPS and spec.name in names
        )

    def history(
        self, service: str, rows: Any, context: Mapping[str, str] | None = None, *, labelled: bool = False
    ) -> FeatureBatch:
        """Features of n rows, each from events strictly before its ``time``.

        rows: entity keys, ``time`` (int64 microseconds UTC or timestamps with a timezone) and context columns. Returns n rows in order.
        labelled: the rows have labels, so an event at or after a row's own time, of any view's entity, is a UsageError: views that are
        declared with ``include_equal`` see such events.
        """
        table, times = timed(rows)
        return self._history(service, table, times, context, labelled)

    def _history(
        self, service: str, table: pa.Table, times: Array, context: Mapping[str, str] | None, labelled: bool = False
    ) -> FeatureBatch:
        view = self.reader.view()
        given = dict(zip(table.column_names, table.columns))
        asked = self._asked(service, view, given, times)
        return self._batch(view, given, times, context or {}, asked, [self._from_log(view, each) for each in asked], labelled)

    def history_batches(
        self, service: str, rows: Any, size: int, context: Mapping[str, str] | None = None
    ) -> Iterator[FeatureBatch]:
        """``history`` of ``size`` rows at a time, in order, for answers larger than memory; each is computed when it is asked for.

        All are of one version of the log, that of the call.
        """
        if size < 1:
            raise UsageError(f"batches of {size} rows; expected at least 1")
        table, times = timed(rows)
        reading = self.pinned()
        return (
            reading._history(service, table.slice(at, size), times[at : at + size], context) for at in range(0, len(table), size)
        )

    def described(self, batch: FeatureBatch) -> FeatureBatch:
        """The batch with every column of the item table in its catalogue, which otherwise has those whose codes some feature holds."""
        view = self.reader.view()
        return replace(batch, catalogue=view.catalogue(frozenset(batch.catalogue.names) | view.item_dictionaries()))

    def online(
        self,
        service: str,
        rows: Any,
        at: int | datetime | None = None,
        context: Mapping[str, str] | None = None,
        *,
        seen: Callable[[Recent], None] | None = None,
    ) -> FeatureBatch:
        """Features of n rows as of ``at`` (microseconds UTC or an aware datetime; default: the repository's clock), from the online store.

        ``newest`` of the batch says how fresh each row is: the time of its user's newest event, -1 where there is none. seen: called
        with what the store gave. Raises UsageError for rows or an ``at`` that cannot be meant, FeatureError where the store does not
        answer (under ``zoo.deadline.until``: not in time).
        """
        given, store = given_columns(rows), self._online_store

        def of(view: LogView) -> tuple[tuple[Array, list[_Asked]], dict[str, Array]]:
            times, asked = self._asked_online(service, view, given, at)
            return (times, asked), self._wanted(store, asked)

        view, (times, asked), recent = store.read(self.store.config, self.reader, of)
        if seen is not None:
            seen(recent)
        return self._online_batch(store, view, given, times, asked, recent, context)

    def remembered(
        self,
        service: str,
        rows: Any,
        at: int | datetime | None = None,
        context: Mapping[str, str] | None = None,
        *,
        values: Callable[[LogView, str, Array], Sequence[bytes | None]],
        seen: Callable[[Recent], None] | None = None,
    ) -> FeatureBatch:
        """As ``online``, without asking the store: of events that it gave earlier.

        values: (view, entity kind, codes) -> the packed events of each, as in ``Recent``, None for an entity without events. seen: called
        with what is made of them.
        """
        from zoo.stores.recent import Recent

        given, view = given_columns(rows), self.reader.view()
        times, asked = self._asked_online(service, view, given, at)
        store = self._online_store
        wanted = self._wanted(store, asked)
        recent = Recent(view, wanted, {kind: values(view, kind, codes) for kind, codes in wanted.items()})
        if seen is not None:
            seen(recent)
        return self._online_batch(store, view, given, times, asked, recent, context)

    async def online_async(
        self, service: str, rows: Any, at: int | datetime | None = None, context: Mapping[str, str] | None = None
    ) -> FeatureBatch:
        """As ``online``; the event loop goes on while the store is asked. May be cancelled at any point."""
        given, view = given_columns(rows), self.reader.view()
        times, asked = self._asked_online(service, view, given, at)
        store = self._online_store
        recent = await store.recent_async(self.store.config, view, self._wanted(store, asked))
        return self._online_batch(store, view, given, times, asked, recent, context)

    def close(self) -> None:
        """Wait for what pushes of this process left to do in the log's folder; see ``EventLog.close``."""
        self.reader.close()

    async def aclose(self) -> None:
        """Close the connections that ``online_async`` opened in this event loop; the next read opens its own."""
        await self._online_store.close()

    def _asked_online(self, service: str, view: LogView, given: Given, at: int | datetime | None) -> tuple[Array, list[_Asked]]:
        now = self.reader.now(view) if at is None else moment(at)
        number = len(next(iter(given.values()), ()))
        times = np.array([now]) if number == 1 else np.full(number, now, np.int64)
        return times, self._asked(service, view, given, times, alike=True)

    def _wanted(self, store: Any, asked: list[_Asked]) -> dict[str, Array]:
        """Codes by entity kind whose kept events a batch is made of."""
        found: dict[str, Array] = store.wanted(self.store.config, [(each.view.source, each.keys) for each in asked])
        return found

    def _online_batch(
        self,
        store: Any,
        view: LogView,
        given: Given,
        times: Array,
        asked: list[_Asked],
        recent: Any,
        context: Mapping[str, str] | None,
    ) -> FeatureBatch:
        found = [_fresh(view, each, *store.features(view, each.view.source, each.keys, each.times, recent)) for each in asked]
        return self._batch(view, given, times, context or {}, asked, found)

    def _asked(self, service: str, view: LogView, given: Given, times: Array, *, alike: bool = False) -> list[_Asked]:
        """alike: whether all times are the same."""
        codes: dict[str, Array] = {}
        shared: dict[tuple[str, ...], tuple[dict[str, Array], Array, Array, bool]] = {}
        out = []
        for each in self._read_views(service):
            for key, column in each.joins.items():
                if column not in given:
                    raise UsageError(f"rows have no column {column!r}, the key of {each.block!r}; they have: {', '.join(given)}")
                if column not in codes:
                    codes[column] = view.codes(key, given[column])
            columns = tuple(each.joins.values())
            found = shared.get(columns)
            if found is None:  # views of the same keys share them, and so what is made of them
                own = {column: codes[column] for column in columns}
                first, row_of = distinct([*own.values()] if alike else [*own.values(), times])
                if first is not None:
                    own = {column: values[first] for column, values in own.items()}
                found = shared[columns] = own, times if first is None else times[first], row_of, first is None
            own, seen, row_of, every = found
            out.append(_Asked(each, {key: own[column] for key, column in each.joins.items()}, seen, row_of, every))
        return out

    def _batch(
        self,
        view: LogView,
        given: Given,
        times: Array,
        context: Mapping[str, str],
        asked: list[_Asked],
        found: list[tuple[dict[str, Column], Array | None]],
        labelled: bool = False,
    ) -> FeatureBatch:
        """found: (columns, newest event's time or None for a table) of each view asked, for its distinct rows."""
        from zoo.stores.columns import chosen

        blocks: dict[str, Block] = {}
        row_of: dict[str, Array] = {}
        newest: Array | None = None
        for each, (columns, seen) in zip(asked, found):
            blocks[each.view.block] = chosen(each.view.feature_view, columns, each.view.names)
            row_of[each.view.block] = each.row_of
            if labelled and seen is not None:
                _no_future(each.view.block, seen, each.times)
            if "user_id" in each.keys and seen is not None:
                own = seen if each.each else seen[each.row_of]
                newest = own if newest is None else np.maximum(newest, own)
        if context:
            blocks["context"], row_of["context"] = context_block(given, context), np.arange(len(times), dtype=np.int32)
        dictionaries = {c.dictionary for b in blocks.values() for c in b.values() if c.dictionary}
        newest = np.full(len(times), -1, np.int64) if newest is None else newest
        return FeatureBatch(blocks, row_of, times, newest, view.catalogue(frozenset(dictionaries)))

    def _from_log(self, view: LogView, asked: _Asked) -> tuple[dict[str, Column], Array | None]:
        from zoo.stores.columns import features_of
        from zoo.stores.source import EventSource

        source, newest = asked.view.source, None
        aggregation = source.aggregation if isinstance(source, EventSource) else None
        if aggregation is not None:
            entity = aggregation.entity[0]
            newest = view.newest_events(entity, asked.keys[entity], aggregation.until(asked.times))
        return _fresh(view, asked, features_of(view, source, asked.keys, asked.times), newest)

    @property
    def _online_store(self) -> Any:
        return self.store._get_provider().online_store

    def append(self, rows: Any, idempotency_key: str | None = None) -> IngestReport:
        """Push raw events: durable in the log, then visible to the next online read. Needs event ids or an idempotency key.

        rows: as for ``table_of``; a list of mappings holds JSON values, each row taken or quarantined for itself.
        """
        from zoo.events.quick import FEW
        from zoo.events.sources import ListSource

        few = ListSource.of(rows, FEW) if isinstance(rows, Mapping) else None
        events = rows if isinstance(rows, list) else few or table_of(rows)
        report: IngestReport = self._online_store.push(self.store.config, events, idempotency_key)
        return report

    def materialize(self, progress: Progress | None = None) -> dict[str, int]:
        """Copy every entity's recent events from the log to the online store; returns entities with events by key column.

        Reading and pushing bring the store up to date by themselves; this does it beforehand, and repairs a store that lost entities.
        It may be killed and run again: it goes on where it was. progress: called with the fraction done and what is copied.
        """
        self.reader.log.flush()
        copied: dict[str, int] = self._online_store.materialize(self.store.config, progress)
        return copied

    def forget(
        self, users: Iterable[Any] = (), before: int | datetime | None = None, progress: Progress | None = None
    ) -> Forgotten:
        """Remove people, or all events before an instant, from the log, the online store, answers' traces and what training has cached.

        See ``zoo.events.forget``. Models trained before stay as they are, and so do files that were ingested. progress: called with the
        fraction done and what is looked through.
        """
        from zoo.events.delta import failing_as
        from zoo.events.given import microseconds

        config, log, store = self.store.config, self.reader.log, self._online_store
        instant = microseconds(before) if isinstance(before, datetime) else before

        from zoo.events.dictionary import as_ids

        people = as_ids(list(users), log.schema.id_type("user_id"), "user_id").drop_null().to_pylist()
        traces = Traces(Path(self.store.repo_path) / "data" / TRACES, 0)

        def elsewhere() -> None:
            store.forget(config, log)
            # traces, as the store's content, hold events of any age
            traces.forget(people if instant is None else None, log.epoch)

        done: Forgotten = log.forget(people, instant, elsewhere, progress)
        # out-of-fold scores and encoders' states are of rows that are gone, and cost time only to make again
        cache = Path(self.store.repo_path) / "data" / "cache"
        with failing_as(f"remove {cache}"):
            if cache.is_dir():
                shutil.rmtree(cache)
        return done


def _no_future(view: str, newest: Array, times: Array) -> None:
    # the guard against a feature source that breaks its promise; cheap, so training always asks for it
    late = int((newest >= times).sum())
    if late:
        raise UsageError(
            f"view {view!r} sees events at or after a row's own time ({late} of its {len(times)} keys): labels would leak. "
            "Declare the views that a task trains on without include_equal"
        )


def apply(repo: Path | str = ".") -> tuple[str, ...]:
    """Register what the repository declares, as ``feast apply`` does. Returns the names of its feature services.

    FeatureError where an entity or a field declares identifiers of another type than the log's.
    """
    features = Features.open(repo)
    from zoo.stores.columns import check_identifiers
    from zoo.stores.repository import register

    register(features.store.config, Path(repo).resolve())
    applied = Features.open(repo)
    if (applied.reader.root / "log" / "_delta_log").is_dir():  # else its identifiers' types are not known yet
        check_identifiers(applied.store.list_feature_views(), applied.reader.log.schema)
    return applied.services()


def history(service: str, rows: Any, repo: Path | str = ".") -> FeatureBatch:
    """``Features.open(repo).history(service, rows)``."""
    return Features.open(repo).history(service, rows)


def online(service: str, rows: Any, at: int | datetime | None = None, repo: Path | str = ".") -> FeatureBatch:
    """``Features.open(repo).online(service, rows, at)``."""
    return Features.open(repo).online(service, rows, at)


def append(rows: Any, idempotency_key: str | None = None, repo: Path | str = ".") -> IngestReport:
    """``Features.open(repo).append(rows, idempotency_key)``."""
    return Features.open(repo).append(rows, idempotency_key)


def forget(
    users: Iterable[Any] = (),
    before: int | datetime | None = None,
    repo: Path | str = ".",
    progress: Progress | None = None,
) -> Forgotten:
    """``Features.open(repo).forget(users, before, progress)``."""
    return Features.open(repo).forget(users, before, progress)


def materialize(repo: Path | str = ".", progress: Progress | None = None) -> dict[str, int]:
    """``Features.open(repo).materialize(progress)``."""
    return Features.open(repo).materialize(progress)
