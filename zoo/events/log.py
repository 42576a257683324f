"""The event log: one folder with a Delta table of events, its dictionaries, its quarantine and the tables beside it.

Writing goes through ``zoo.events.ingest``: files into Delta at once, pushes into the write-ahead tail first. Every reader sees both, and
whole commits only. The class is long, being the one door to all of that; each method is a few lines over the room that does the work.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import Progress
from zoo.errors import FeatureError, UsageError, ZooError, choices
from zoo.events import delta
from zoo.events.dictionaries import DictionaryStore
from zoo.events.dictionary import Dictionary
from zoo.events.few import Few
from zoo.events.flush import Flusher, copy, move, remove
from zoo.events.forget import NEXT, Forgotten, forget
from zoo.events.identity import EventIds
from zoo.events.lock import BusyError, writer_lock
from zoo.events.push import Pushes
from zoo.events.quarantine import Quarantine
from zoo.events.schema import LogSchema
from zoo.events.tables import Tables
from zoo.events.tail import TAKEN, Tail

if TYPE_CHECKING:
    from zoo.events.ingest import IngestReport

SCHEMA_KEY = "zoo.schema"
PACKED = ("source",)


@dataclass(frozen=True)
class Snapshot:
    """What the log holds at one moment: the files of one Delta version, and the tail's events from ``start`` on, before ``count``.

    count: the next ``seq``. end: newest time, microseconds UTC, None where the log is empty. epoch: see ``EventLog.epoch``.
    taken: the newest segment of the tail that Delta holds. begin: oldest time in Delta; None where that is empty.
    """

    version: int
    files: tuple[delta.DataFile, ...]
    count: int
    end: int | None
    epoch: int = 0
    taken: int = 0
    start: int = 0
    begin: int | None = None

    @property
    def pending(self) -> int:
        """Number of events beyond Delta."""
        return self.count - self.start

    @property
    def size(self) -> int:
        """Number of events."""
        return sum(f.rows for f in self.files) + self.pending


@dataclass(frozen=True, slots=True)
class State:
    """How far the log is. last: the newest segment's number. taken: that of the newest one in Delta. pending: events beyond Delta.

    end: newest time, microseconds UTC; None where the log is empty. begin: oldest time in Delta; None where that is empty.
    """

    version: int
    count: int
    epoch: int
    last: int
    taken: int
    pending: int
    end: int | None = None
    begin: int | None = None


class EventLog:
    """An open log; threads may share it. Make one with ``create`` or ``open``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root / "log"
        self._table = delta.open_table(self._folder)
        self._changed: Any = None
        self.schema = LogSchema.from_json(delta.stored_text(self._table, SCHEMA_KEY))
        text = [name for name, kind in self.schema.extra.items() if kind == "string"]
        self.coded = [(n, n) for n in ("user_id", "item_id", "event_type")] + [(n, f"events.{n}") for n in text]
        """(column, dictionary) of the columns whose values have codes."""
        self.tail_file = Tail(root, self.schema.arrow())
        self.dictionaries = DictionaryStore(root / "dictionaries", self.tail_file)
        self.quarantine = Quarantine(root / "quarantine", self.tail_file)
        self.pushes = Pushes(self)
        self.flusher = Flusher(self)
        self._tables = Tables(root, self.schema)
        self._event_ids = EventIds()
        self._mutex = threading.RLock()
        self._snapshot: Snapshot | None = None
        self._state: tuple[int, int, State] = (-1, -1, State(-1, 0, 0, 0, 0, 0))

    @classmethod
    def create(cls, root: Path | str, schema: LogSchema) -> EventLog:
        """Make an empty log in a folder. Raises UsageError where one is there, ZooError where the folder cannot be written."""
        root = Path(root)
        if (root / "log" / "_delta_log").exists():
            raise UsageError(f"{root} holds a log already; open it, or choose another folder")
        with delta.failing_as(f"make a log in {root}"):
            root.mkdir(parents=True, exist_ok=True)
            DictionaryStore.create(root / "dictionaries")
            Quarantine.create(root / "quarantine")
            # Last: a log is there once its table is, however far an earlier attempt came.
            delta.create(root / "log", schema.arrow(), {SCHEMA_KEY: schema.to_json()})
        return cls(root)

    @classmethod
    def open(cls, root: Path | str) -> EventLog:
        """The log in a folder. Raises ZooError where there is none, or where it cannot be read."""
        root = Path(root)
        if not (root / "log" / "_delta_log").is_dir():
            raise ZooError(
                f"no event log in {root}; `zoo ingest FILE` makes that of a project by zoo init, `zoo demo` the demo's. One that lies "
                "elsewhere: name its folder as log in feature_store.yaml"
            )
        return cls(root)

    # Reading

    def snapshot(self, version: int | None = None) -> Snapshot:
        """What the log holds (``version``: what that Delta version alone holds), from statistics."""
        if version is not None:
            return _snapshot(delta.open_table(self._folder, version))
        with self._mutex:
            stored = self._look()
            beyond = self.tail_file.beyond(stored.taken)
            if beyond is None:
                return stored
            ends = [at for at in (stored.end, self.tail_file.end) if at is not None]
            return replace(stored, count=beyond[2], end=max(ends, default=None), start=beyond[1])

    def _moment(self, after: int = -1, stop: int | None = None) -> tuple[Snapshot, list[pa.Table]]:
        """A snapshot, and its tail's events with ``after < seq < stop``, which a flush may let go of at any time."""
        while True:
            shot = self.snapshot()
            first, end = max(after + 1, shot.start), shot.count if stop is None else min(stop, shot.count)
            parts = self.tail_file.between(first, end) if first < end else []
            if sum(len(part) for part in parts) == max(end - first, 0):
                return shot, parts

    def _look(self, refreshed: bool = False) -> Snapshot:
        """What Delta holds, read after the tail: what is in neither does not exist. refreshed: the tail was."""
        if not refreshed:
            self.tail_file.refresh()
        delta.refresh(self._folder, self._table)
        held = self._snapshot
        if held is None or held.version != self._table.version():
            self._snapshot = _snapshot(self._table)
            if held is not None and held.epoch != self._snapshot.epoch:
                self._event_ids = EventIds()
            return self._snapshot
        return held

    def state(self) -> State:
        """How far the log is; a few microseconds while nothing changed."""
        with self._mutex:
            stamp = self.tail_file.stamp()
            seen, version, state = self._state
            if stamp == seen and not os.path.exists(f"{self._folder}/_delta_log/{version + 1:020d}.json"):  # noqa: PTH110
                return state
            stamp = self.tail_file.refresh(stamp)
            stored = self._look(refreshed=True)
            last, _, count = self.tail_file.beyond(stored.taken) or (stored.taken, stored.count, stored.count)
            ends = [at for at in (stored.end, self.tail_file.end if count > stored.count else None) if at is not None]
            pending, end = count - stored.count, max(ends, default=None)
            state = State(stored.version, count, stored.epoch, last, stored.taken, pending, end, stored.begin)
            self._state = stamp, stored.version, state
            return state

    def version(self) -> int:
        """Delta version of the newest commit; the tail may hold events beyond it."""
        with self._mutex:
            return self._look().version

    def end(self, version: int | None = None) -> int | None:
        """Time of the newest event, microseconds UTC; None in an empty log."""
        return self.state().end if version is None else self.snapshot(version).end

    def count(self, version: int | None = None) -> int:
        """The next ``seq``: number of events, forgotten ones included. A few microseconds while nothing changed."""
        return self.state().count if version is None else self.snapshot(version).count

    @property
    def size(self) -> int:
        """Number of events that the log holds."""
        return self.snapshot().size

    def table(self, version: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Events (those of a Delta version, default: all) in order of ``seq``; ``LogSchema.arrow`` says the columns.

        ``time`` is int64 microseconds UTC; ``source`` is dictionary-encoded.
        """
        return self._read(columns, -1) if version is None else self._joined(self.snapshot(version), [], columns, -1)

    def tail(self, after_seq: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Events with ``seq > after_seq``, from memory where they are in the tail, else from the files that hold some."""
        return self._read(columns, after_seq)

    def few(self, first_seq: int, stop_seq: int, columns: Sequence[str]) -> Few | None:
        """Events with ``first_seq <= seq < stop_seq``, without ``seq``, where small pushes brought all of them; None for any others."""
        return self.tail_file.few(first_seq, stop_seq, columns)

    def chunks(
        self, columns: Sequence[str], first_seq: int = 0, stop_seq: int | None = None, rows: int = 1_000_000
    ) -> Iterator[pa.Table]:
        """Events with ``first_seq <= seq < stop_seq`` (default: all there are) in order of ``seq``, in tables of about ``rows``.

        Memory holds a few such tables, whatever the log's size. No table is empty. Raises UsageError for an unknown column.
        """
        schema = self._schema_of(columns)
        shot, beyond = self._moment(first_seq - 1, stop_seq)
        stop = shot.count if stop_seq is None else stop_seq
        held: list[pa.Table] = []
        for file in shot.files:
            if file.high["seq"] < first_seq or file.low["seq"] >= stop:
                continue
            for part in delta.batches(self._folder, file, self.schema.arrow(), schema.names, first_seq, stop, rows):
                held.append(part)
                if sum(len(table) for table in held) >= rows:
                    yield pa.concat_tables(held)
                    held = []
        for part in (table.slice(at, rows) for table in beyond for at in range(0, len(table), rows)):
            held.append(part.select(schema.names))
            if sum(len(table) for table in held) >= rows:
                yield pa.concat_tables(held)
                held = []
        if held:
            yield pa.concat_tables(held)

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        schema = self.schema.arrow()
        unknown = [name for name in columns or () if name not in schema.names]
        if unknown:
            raise UsageError(choices("column of the log", unknown[0], schema.names))
        return pa.schema([schema.field(name) for name in columns or schema.names])

    def _read(self, columns: Sequence[str] | None, after: int) -> pa.Table:
        while True:
            shot, beyond = self._moment(after)
            try:
                return self._joined(shot, beyond, columns, after)
            except ZooError:
                if self.epoch == shot.epoch:  # else it was rewritten meanwhile, and the files are gone
                    raise

    def _joined(self, shot: Snapshot, beyond: list[pa.Table], columns: Sequence[str] | None, after: int) -> pa.Table:
        schema = self.schema.arrow()
        wanted = self._schema_of(columns).names
        files = [f for f in shot.files if f.high["seq"] > after]
        beyond = [table.select(wanted) for table in beyond]
        if beyond and "source" in wanted:
            at = wanted.index("source")
            beyond = [t.set_column(at, "source", t["source"].dictionary_encode()) for t in beyond]
        if beyond and not files:
            return pa.concat_tables(beyond).unify_dictionaries()
        read = wanted if "seq" in wanted else [*wanted, "seq"]
        table = delta.read(self._folder, files, schema, read, None if after < 0 else [("seq", ">", after)], PACKED)
        order = np.asarray(table["seq"])
        if len(order) > 1 and not (np.diff(order) > 0).all():
            table = table.take(pa.array(np.argsort(order, kind="stable")))
        table = table.select(wanted)
        return pa.concat_tables([table, *beyond]).unify_dictionaries() if beyond else table

    def filled(self) -> list[str]:
        """Columns that hold any value."""
        shot, beyond = self._moment()
        return [
            n
            for n in self.schema.arrow().names
            if any(f.nulls.get(n, 0) < f.rows for f in shot.files) or any(t[n].null_count < len(t) for t in beyond)
        ]

    def facts(self) -> dict[str, Any]:
        """What a person wants to know of the log: counts, span, event types, quarantined rows, versions."""
        table = self.table(columns=["user_id", "item_id", "event_type", "time"])
        types = table["event_type"].value_counts().to_pylist()
        return {
            "events": table.num_rows,
            "users": pc.count_distinct(table["user_id"]).as_py(),
            "items": pc.count_distinct(table["item_id"]).as_py(),
            "event_types": {t["values"]: t["counts"] for t in sorted(types, key=lambda t: -t["counts"])},
            "first": pc.min(table["time"]).as_py(),
            "end": pc.max(table["time"]).as_py(),
            "quarantined": self.quarantine.counts(),
            "lineage": self.lineage(),
        }

    def dictionary(self, name: str) -> Dictionary:
        """``user_id``, ``item_id``, ``event_type``, ``events.COLUMN`` or ``TABLE.COLUMN`` (text columns) as it is now."""
        own = [dictionary for _, dictionary in self.coded]
        found = self.dictionaries.get(name, self.schema.id_type(name))
        if found.size == 2 and name not in own:
            valid = own + [d for table in self._tables.names() for d in self._tables.code_columns(table)]
            if name not in valid:
                raise FeatureError(choices("dictionary", name, valid))
        return found

    def own_dictionaries(self) -> dict[str, Dictionary]:
        """The dictionaries of the log's columns, all as they are now, by name."""
        return self.dictionaries.several({name: self.schema.id_type(name) for _, name in self.coded})

    def lineage(self) -> dict[str, Any]:
        """What the log is at this moment, as training records it.

        ``log``, ``dictionaries``, ``tables``: Delta versions. ``events``: the next seq. ``tail``: how many of them are beyond the Delta
        version. ``epoch``: see ``EventLog.epoch``.
        """
        state = self.state()
        own = {"log": self.version(), "tail": state.pending, "events": state.count, "epoch": state.epoch}
        return {**own, "dictionaries": self.dictionaries.version(), "tables": self.tables()}

    def reproducible(self, lineage: Mapping[str, Any]) -> bool:
        """Whether what ``lineage`` said once can still be read: nothing was forgotten since of the log, or of a table that it names."""
        tables = lineage.get("tables", {})
        return int(lineage.get("epoch", 0)) == self.epoch and all(self._tables.rewritten(n) <= v for n, v in tables.items())

    @cached_property
    def id(self) -> str:
        """Given when the log was made: another log in the same folder has another."""
        return str(self._table.metadata().id)

    @property
    def epoch(self) -> int:
        """How many times the log was rewritten (``forget``): what was made from its events is good for one epoch only."""
        return self.state().epoch

    def tables_moved(self, known: Mapping[str, int]) -> bool:
        """Whether a table is newer than these versions, gone, or there and not among them: a few looks at the file system."""
        return self._tables.moved(known)

    # Tables

    def tables(self) -> dict[str, int]:
        """Version of each entity and set table by name."""
        return self._tables.versions()

    def read_table(self, name: str, version: int | None = None) -> pa.Table:
        """A table's rows, key column first; FeatureError where there is none of that name."""
        return self._tables.read(name, version)

    def put_table(self, name: str, frame: Any, key: str = "item_id") -> int:
        """Replace an entity table whole and return its version; the same content again changes nothing.

        One row a key; with a column ``valid_from`` (times) one row a key and time, which holds from then until the key's next.

        Raises SchemaError for a missing, empty or repeated key, an identifier of the wrong type or a column that cannot be kept.
        """
        return self._put(name, self._tables.prepare(name, frame, (key,), unique=True))

    def put_set(self, name: str, frame: Any, keys: Sequence[str]) -> int:
        """Replace a set table whole: the distinct combinations of its keys, in order of first appearance."""
        return self._put(name, self._tables.prepare(name, frame, keys, unique=False))

    def _put(self, name: str, table: pa.Table) -> int:
        with self.writing(), delta.failing_as(f"write the table {name!r}"):
            self.dictionaries.extend(self._tables.feeds(name, table))
            return self._tables.write(name, table)

    def forget_profiles(self, ids: pa.Array) -> int:
        """Remove users' rows from the tables; returns how many. The caller holds the write lock."""
        return self._tables.forget(ids)

    def profile_texts(self) -> dict[str, list[pa.Array]]:
        """Identifiers of users, and texts by dictionary, in the tables that have a ``user_id``."""
        out: dict[str, list[pa.Array]] = {}
        for name in self.tables():
            table = self.read_table(name)
            for dictionary, values in self._tables.feeds(name, table).items() if "user_id" in table.column_names else ():
                if dictionary != "item_id":
                    out.setdefault(dictionary, []).append(values)
        return out

    # Writing, for zoo.events.ingest

    def forget(
        self,
        users: Iterable[Any] = (),
        before: int | None = None,
        also: Callable[[], None] | None = None,
        progress: Progress | None = None,
    ) -> Forgotten:
        """``zoo.events.forget.forget`` in this log."""
        return forget(self, users, before, also, progress)

    def append(self, frame: Any, idempotency_key: str | None = None, now: int | None = None) -> IngestReport:
        """``zoo.events.ingest.append`` to this log."""
        from zoo.events.ingest import append  # a cycle at import time: ingest writes logs

        return append(self, frame, idempotency_key=idempotency_key, now=now)

    @contextmanager
    def writing(self, progress: Progress | None = None) -> Iterator[None]:
        """Be the log's only writer, with an empty tail; waits for another writer, and says so. Pushes wait meanwhile."""
        waiting: Callable[[], None] | None = None
        if progress is not None:
            say = progress
            waiting = lambda: say(0.0, "waiting for another writer")  # noqa: E731
        with writer_lock(self.root, waiting):
            move(self)  # most of it while pushes go on
            with self.tail_file.exclusive():
                move(self)
                yield

    def close(self) -> None:
        """Stop moving the tail in the background, and wait for what is under way: the folder may be copied or removed then.

        Nothing is lost, and a later push begins it again. A log that is let go of, or whose process ends, is closed.
        """
        self.flusher.stop()

    def flush(self, wait: bool = True) -> int:
        """Move what pushes left in the tail into Delta; returns how many events that were. Pushes go on meanwhile.

        Raises BusyError where another writer is at work and ``wait`` is False.
        """
        moved = self.copy_tail(wait)
        with delta.failing_as("move pushed events into the log"):
            remove(self)
        return moved

    def copy_tail(self, wait: bool = False) -> int:
        """The first half of ``flush``: the tail's events are in Delta, and still in the tail, where nobody looks for them any longer."""
        if not self.state().pending:
            return 0

        def busy() -> None:
            if not wait:
                raise BusyError("another writer holds the log")

        with delta.failing_as("move pushed events into the log"), writer_lock(self.root, busy):
            moved = copy(self)
            self.tidy()
            return moved

    def taken(self, key: str | None) -> int | None:
        """What was recorded with this key when it was taken: a file's number of rows, a push's ``body``; None where none was."""
        if key is None:
            return None
        with self._mutex:
            self._look()
            segment = self.tail_file.keys.get(key)
            if segment is not None:
                return segment.taken
            rows = self._table.transaction_version(key)
            return None if rows is None else int(rows)

    def start(self) -> delta.Writing:
        """Files for one coming commit of events. The caller holds the write lock."""
        return delta.Writing(self._folder, self.schema.arrow(), bounded=("seq", "time"))

    def finish(self, files: delta.Writing, transactions: Mapping[str, int]) -> int:
        """Commit events and return the version."""
        return files.commit(self._writable(), transactions)

    def _writable(self) -> Any:
        """The table of events as whoever holds the write lock changes it: who reads goes on with another, and does not wait."""
        if self._changed is None:
            self._changed = delta.open_table(self._folder)
        delta.refresh(self._folder, self._changed)
        return self._changed

    def event_ids(self) -> EventIds:
        """Event ids in the log, as a set that may grow on its own; the caller holds the write lock."""
        return self.live_ids().copy()

    def live_ids(self) -> EventIds:
        """Event ids in the log, read up to its end. Whoever adds to it commits what it adds, or calls ``lose_ids``."""
        with self._mutex:
            state = self.state()
            held = self._event_ids
            if held.seq == state.count - 1:
                return held
            shot, beyond = self._moment(held.seq)
            for file in shot.files:
                if file.high["seq"] > held.seq:
                    if file.nulls.get("event_id", 0) < file.rows:
                        part = self._joined(replace(shot, files=(file,)), [], ["event_id"], held.seq)
                        held.add(part["event_id"].combine_chunks().drop_null())
                    held.seq = file.high["seq"]
            for table in beyond:
                held.add(table["event_id"].combine_chunks().drop_null())
                held.seq += len(table)
            return held

    def lose_ids(self) -> None:
        """Read the event ids anew when they are next asked for."""
        with self._mutex:
            self._event_ids = EventIds()

    def tidy(self) -> None:
        """Merge small files once there are many. The caller holds the write lock."""
        if sum(f.rows < delta.SMALL for f in self.snapshot().files) >= delta.MANY:
            self.compact()

    def compact(self) -> int:
        """Merge the newest run of small files into one; returns how many were merged. The caller holds the write lock."""
        run: list[delta.DataFile] = []
        for file in reversed(self.snapshot().files):
            if file.rows >= delta.SMALL:
                break
            run.insert(0, file)
        if len(run) < 2:
            return 0
        with self.start() as merged:
            merged.add(delta.read(self._folder, run, self.schema.arrow(), self.schema.arrow().names).sort_by("seq"))
            merged.commit(self._writable(), removed=run)
        return len(run)


def _snapshot(table: Any) -> Snapshot:
    files = tuple(delta.data_files(table))
    end = max((f.high["time"] for f in files), default=None)
    begin = min((f.low["time"] for f in files), default=None)
    count = max((f.high["seq"] + 1 for f in files), default=0)
    count = max(count, delta.transaction(table, NEXT))
    epoch, taken = delta.transaction(table, delta.EPOCH), delta.transaction(table, TAKEN)
    return Snapshot(int(table.version()), files, count, end, epoch, taken, count, begin)
