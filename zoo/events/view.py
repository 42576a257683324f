"""One version of a log, opened for reading features: indexes by entity, dictionaries and entity tables. Knows no Feast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from zoo.contract import PADDING, UNKNOWN, Array, Column
from zoo.errors import FeatureError, ZooError, choices
from zoo.events.build import IndexStore, partitions_for
from zoo.events.dictionary import FIRST
from zoo.events.encode import Encoded, columns_of, concatenated, encode, kinds_of
from zoo.events.evaluate import Evaluator
from zoo.events.index import Index
from zoo.events.log import EventLog, Snapshot
from zoo.events.meanings import Meanings
from zoo.events.merging import merged
from zoo.events.pairs import evaluate_pairs
from zoo.events.partitions import Partitions, Piece
from zoo.events.specs import SEQUENCES, Aggregation
from zoo.events.storage import TornError
from zoo.events.tables import ENTITIES

T = TypeVar("T")

FEW = 50_000
"""Newer events than the index on disk has that are kept beside it in memory; in a large log a hundredth of it."""
_OF_TABLES = ("block", "keys", "members", "names")
_OF_EVENTS = ("stored", "since")


@dataclass(frozen=True)
class Events:
    """Some of a log's events by (user, time, seq). user_id: int32 (m,) codes; time: int64 (m,); columns: name -> (m,)."""

    user_id: Array
    time: Array
    columns: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.time)


@dataclass(frozen=True)
class _Stored:
    """An index on disk, opened, and the evaluators over it."""

    count: int
    partitions: Partitions


@dataclass(frozen=True)
class _Since:
    """Events ``first`` to ``stop`` of the log, those after an index on disk."""

    first: int
    stop: int
    events: Encoded


def _code(log: EventLog, dictionary: str, value: Any) -> int:
    return int(log.dictionary(dictionary).encode([value])[0])


@dataclass(frozen=True)
class LogView(Meanings):
    """Reads features from exactly the first ``count`` events of a log; thread-safe for reading.

    Indexes are built once and kept under ``<root>/index``; newer events are merged into them.
    """

    log: EventLog
    _shot: Snapshot
    _tables: Mapping[str, int]
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=RLock, repr=False, compare=False)

    @classmethod
    def open(cls, root: Path | str, lineage: Mapping[str, Any] | None = None) -> LogView:
        """The log as it is now, or as it was when a view of it said this ``lineage``.

        Raises ZooError where there is none, and FeatureError where it does not hold (any more) what the lineage names.
        """
        log = EventLog.open(root)
        if lineage is not None:
            state = log.state()
            seen = {"events": state.count, "epoch": state.epoch}
            if seen["epoch"] != lineage["epoch"] or seen["events"] < lineage["events"]:
                asked = {name: lineage[name] for name in seen}
                raise FeatureError(f"the log in {root} has {seen}; expected at least {asked}, of the same epoch")
            count = lineage["events"]
            shot = Snapshot(lineage["log"], (), count, None, lineage["epoch"], start=count - lineage.get("tail", 0))
            return cls(log, shot, lineage["tables"])
        return cls(log, log.snapshot(), log.tables())

    @property
    def version(self) -> int:
        """Delta version of the log when the view was opened; the tail held the events beyond it."""
        return self._shot.version

    @property
    def count(self) -> int:
        """The view holds the log's events with ``seq < count``."""
        return self._shot.count

    @property
    def epoch(self) -> int:
        """How many times the log had been rewritten; after another time the view's events are gone."""
        return self._shot.epoch

    @property
    def end(self) -> int | None:
        """Time of the newest event, microseconds UTC; None where there is none."""
        if self._shot.end is not None or not self.count:
            return self._shot.end
        return self._keep(("end",), lambda: max(int(np.max(part["time"])) for part in self.log.chunks(["time"], 0, self.count)))

    def newest(self) -> LogView:
        """This view while no event or table came since (a few looks at the file system), else a view of the log as it is now.

        What was read of tables and events that did not change goes on in the new view.
        """
        same, state = not self.log.tables_moved(self._tables), self.log.state()
        if same and state.count == self.count and state.epoch == self.epoch:
            return self
        shot = self.log.snapshot()
        tables = self._tables if same else self.log.tables()
        going = _OF_TABLES + _OF_EVENTS if same and shot.epoch == self.epoch else ()
        kept = {key: value for key, value in list(self._kept.items()) if key[0] in going}
        return LogView(self.log, shot, tables, kept)

    def lineage(self) -> dict[str, Any]:
        """Versions that this view reads; dictionaries only grow, so theirs is the newest."""
        return {
            "log": self.version,
            "tail": self._shot.pending,
            "events": self.count,
            "epoch": self.epoch,
            "dictionaries": self.log.dictionaries.version(),
            "tables": dict(self._tables),
        }

    def event_types(self) -> Mapping[str, int]:
        """Code by event type."""
        return self._keep(
            ("event_types",), lambda: {n: c for c, n in enumerate(self.log.dictionary("event_type").ids, start=FIRST)}
        )

    def kinds(self, entity: str) -> Mapping[str, str]:
        """dtype by name of the columns of the entity's events."""
        return self._keep(("kinds", entity), lambda: kinds_of(self.log, entity))

    def partitions(self, entity: str) -> Partitions:
        """The indexes of ``user_id`` or ``item_id``, opened from disk or built and kept there."""
        if entity not in ENTITIES:
            raise FeatureError(choices("indexed entity", entity, ENTITIES))
        return self._keep(("partitions", entity), lambda: self._open_partitions(entity))

    def _open_partitions(self, entity: str) -> Partitions:
        stored = self._stored(entity)
        if stored.count == self.count:
            return stored.partitions
        return Partitions(stored.partitions.stored, self._since(stored.count), entity, self._evaluators(), stored.partitions)

    def _stored(self, entity: str) -> _Stored:
        """The index on disk that this view is read from; where there is none that lacks but few events, it is made."""
        store = IndexStore(Path(self.log.root) / "index")
        held: _Stored | None = self._kept.get(("stored", entity))
        if held is not None and self._near(held.count):
            return held
        while True:
            found = store.newest(entity, self.epoch, self.count)
            if found is None or not self._near(found.count):
                self._build(store, entity)
                continue
            try:
                opened = _Stored(found.count, Partitions(found.open(self.facts()), None, entity, self._evaluators()))
            except (FileNotFoundError, TornError):  # another process has just replaced it, or the disk crashed
                with store.building():
                    store.sound(entity, self.epoch, self.count)
                continue
            self._kept["stored", entity] = opened
            return opened

    def _near(self, count: int) -> bool:
        """Whether an index of so many events lacks none, or so few that they are better kept beside it."""
        return count == self.count or 0 < self.count - count <= max(FEW, count // 100)

    def _build(self, store: IndexStore, entity: str) -> None:
        with store.building():
            found = store.sound(entity, self.epoch, self.count)
            if found is not None and self._near(found.count):
                return  # another process built it meanwhile
            self.unforgotten()
            wanted: dict[int | None, list[str]] = {}
            for kind in ENTITIES:  # both, as reading the log is most of the work
                base = store.sound(kind, self.epoch, self.count)
                if base is not None and base.count == self.count:
                    continue
                many = base is None or partitions_for(self.count) > 2 * base.partitions()
                wanted.setdefault(None if many or base is None else base.count, []).append(kind)
            for start, kinds in wanted.items():
                store.build(kinds, self.epoch, start, self.count, self._encoded(start or 0))
            store.prune(ENTITIES, self.epoch, self.count)

    def _encoded(self, first: int) -> Iterator[Encoded]:
        """The view's events from a seq on, in pieces, the first of which is empty and says which columns there are."""
        import pyarrow as pa

        columns = columns_of(self.log)
        schema = self.log.schema.arrow()
        yield encode(self.log, pa.schema([schema.field(name) for name in columns]).empty_table())
        try:
            for table in self.log.chunks(columns, first, self.count):
                self.unforgotten()
                yield encode(self.log, table)
        except ZooError:
            self.unforgotten()  # its files went away
            raise

    def unforgotten(self) -> None:
        """FeatureError where something was forgotten since the view was opened, which the view would tell of."""
        if self.log.epoch != self.epoch:
            raise FeatureError(
                "a part of the log was forgotten (zoo forget) after this view of it was opened; open it, or ask, again"
            )

    def _since(self, first: int) -> Encoded:
        """The view's events after the first so many; what an older view read of them is not read again."""
        with self._lock:
            held: _Since | None = self._kept.get(("since", first))
            if held is None or held.stop > self.count:
                held = _Since(first, self.count, concatenated(list(self._encoded(first))))
            elif held.stop < self.count:
                held = _Since(first, self.count, concatenated([held.events, *self._encoded(held.stop)]))
            self._kept["since", first] = held
            return held.events

    def index(self, entity: str) -> Index:
        """All events of an entity kind as one index. FeatureError where the log is so large that there are several: see ``events``."""
        return self._keep(("index", entity), lambda: self._whole(entity))

    def _whole(self, entity: str) -> Index:
        parts = self.partitions(entity)
        if len(parts) == 1 and parts.overlay is None:
            return parts.stored[0]
        if len(parts.stored) > 1:
            raise FeatureError(
                f"the log's {self.count:,} events lie in {len(parts.stored)} partitions by {entity}; read them by partitions() or events()"
            )
        since = self._since(self._stored(entity).count)
        size = self.log.dictionary(entity).size
        return merged(parts.stored[0], Index.build(since.keys(entity), since.time, since.seq, since.others(entity), size))

    def start(self) -> int | None:
        """Time of the earliest event, microseconds UTC; None in an empty log."""
        firsts = [int(index.time.min()) for index, _ in self.partitions("user_id").each() if len(index)]
        return min(firsts, default=None)

    def sizes(self, entity: str) -> Array:
        """int64 (codes,): how many events each entity has."""
        return self._keep(("sizes", entity), lambda: self._sizes(entity))

    def _sizes(self, entity: str) -> Array:
        out = np.zeros(self.log.dictionary(entity).size, np.int64)
        for index, codes in self.partitions(entity).each():
            own = np.diff(index.offsets)
            out[codes[own > 0]] = own[own > 0]
        return out

    def evaluator_of(self, index: Index) -> Evaluator:
        """Computes features from an index over some of this log's events, such as an online store's."""
        return Evaluator(index, self.event_types(), partial(_code, self.log))

    def _evaluators(self) -> Callable[[Index], Evaluator]:
        """``evaluator_of`` for indexes that outlive this view."""
        log, types = self.log, self.event_types()
        return lambda index: Evaluator(index, types, partial(_code, log))

    def code(self, dictionary: str, value: Any) -> int:
        """The code of one identifier or text, 1 where the dictionary does not hold it. Raises UnknownIdError on a wrong type."""
        return _code(self.log, dictionary, value)

    def newest_events(self, entity: str, codes: Array, times: Array) -> Array:
        """int64 (n,): time of each entity's newest event strictly before t; -1 where there is none."""
        return self.partitions(entity).newest(codes, times)

    def events(self, columns: Sequence[str], event_types: Sequence[str] | None = None) -> Events:
        """Every event, or those of some types, with these columns (see ``Index.column``); memory holds what is returned."""
        types = self.event_types()
        codes = None if event_types is None else [types[name] for name in event_types if name in types]
        found: list[dict[str, Array]] = []
        for index, own in self.partitions("user_id").each():
            users, picked = own[index.entity_of()], slice(None)
            kept: Any = picked if codes is None else np.flatnonzero(np.isin(index.column("event_type"), codes))
            arrays = {"": users, "time": index.time, **{name: index.column(name) for name in columns}}
            found.append({name: values[kept] for name, values in arrays.items()})
        whole = found[0] if len(found) == 1 else {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        if len(found) > 1:
            order = np.argsort(whole[""], kind="stable")
            whole = {name: values[order] for name, values in whole.items()}
        return Events(whole[""], whole["time"], {name: whole[name] for name in columns})

    def evaluate(
        self, aggregation: Aggregation, keys: Mapping[str, Array], times: Array, evaluator: Evaluator | None = None
    ) -> dict[str, Column]:
        """Columns of an aggregation for n rows, given codes (n,) by entity and times int64 (n,).

        evaluator: over other events than the whole log's (an online store's); its entity codes are then those in ``keys``.
        """
        first = aggregation.entity[0]
        if evaluator is not None:
            return self._evaluate(aggregation, keys, times, evaluator)
        parts = self.partitions(first)
        # lists are better not put in order again
        near = None if any(f.kind in SEQUENCES for f in aggregation.features) else times

        def answer(piece: Piece) -> dict[str, Column]:
            rows: Any = slice(None) if piece.rows is None else piece.rows
            own = {**{key: codes[rows] for key, codes in keys.items()}, first: piece.codes}
            return self._evaluate(aggregation, own, times[rows], parts.evaluator(piece.number))

        pieces = parts.route(keys[first], near)
        if pieces[0].rows is None:
            return answer(pieces[0])
        return parts.answered(pieces, answer)

    def _evaluate(
        self, aggregation: Aggregation, keys: Mapping[str, Array], times: Array, evaluator: Evaluator
    ) -> dict[str, Column]:
        first = aggregation.entity[0]
        if len(aggregation.entity) == 1:
            return evaluator.evaluate(aggregation, keys[first], times)
        second = aggregation.entity[1]
        sets = None
        if aggregation.members:
            vias = {f.via or "item_id" for f in aggregation.features}
            sets = {via: self.members(aggregation.members, second, via) for via in vias}
        carried = None if sets is not None else self._carried(second, evaluator.index)
        return evaluate_pairs(evaluator, aggregation, keys[first], keys[second], times, sets, carried)

    def _carried(self, entity: str, index: Index) -> Array:
        """int32 (m,): the code of the second entity that each event names, in a column of its own or as its item's attribute."""
        name = f"items.{entity}" if f"items.{entity}" in index.attributes and entity not in index.columns else entity
        values, dictionary = index.column(name), index.dictionary(name)
        if entity in ENTITIES or (dictionary is not None and dictionary == self._partner_dictionary(entity)):
            return values
        if dictionary is None:
            import pyarrow as pa

            return index.keep(("carried", entity), lambda: self.codes(entity, pa.array(values, from_pandas=True)))
        ids = self.log.dictionary(dictionary).ids
        return index.keep(("carried", entity), lambda: np.append([PADDING, UNKNOWN], self.codes(entity, ids))[values])
