"""The event log: one folder with a Delta table of events, its dictionaries, its quarantine and the tables beside it.

Writing goes through ``zoo.events.ingest``; every reader sees whole commits only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import Progress
from zoo.errors import FeatureError, UsageError, ZooError, choices
from zoo.events import delta
from zoo.events.dictionary import Dictionary, DictionaryStore
from zoo.events.identity import EventIds
from zoo.events.lock import writer_lock
from zoo.events.quarantine import Quarantine
from zoo.events.schema import LogSchema
from zoo.events.tables import Tables

if TYPE_CHECKING:
    from zoo.events.ingest import IngestReport

SCHEMA_KEY = "zoo.schema"
PACKED = ("source",)


@dataclass(frozen=True)
class Snapshot:
    """What one version of the log holds. ``end``: newest time, microseconds UTC, None where the log is empty."""

    version: int
    files: tuple[delta.DataFile, ...]
    count: int
    end: int | None


class EventLog:
    """An open log; threads may share it. Make one with ``create`` or ``open``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root / "log"
        self._table = delta.open_table(self._folder)
        self.schema = LogSchema.from_json(delta.stored_text(self._table, SCHEMA_KEY))
        self.dictionaries = DictionaryStore(root / "dictionaries")
        self.quarantine = Quarantine(root / "quarantine")
        self._tables = Tables(root, self.schema)
        self._event_ids = EventIds()
        self._mutex = threading.RLock()
        self._snapshot: Snapshot | None = None

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
        """What a version (default: the newest) holds, from file statistics."""
        with self._mutex:
            delta.refresh(self._folder, self._table)
            if self._snapshot is None or self._snapshot.version != self._table.version():
                self._snapshot = _snapshot(self._table)
            if version is None or version == self._snapshot.version:
                return self._snapshot
        return _snapshot(delta.open_table(self._folder, version))

    def version(self) -> int:
        """Delta version of the newest commit."""
        return self.snapshot().version

    def end(self, version: int | None = None) -> int | None:
        """Time of the newest event, microseconds UTC; None in an empty log."""
        return self.snapshot(version).end

    def count(self, version: int | None = None) -> int:
        """Number of events; also the next ``seq``."""
        return self.snapshot(version).count

    def table(self, version: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Events of a version (default: the newest) in order of ``seq``; ``LogSchema.arrow`` says the columns.

        ``time`` is int64 microseconds UTC; ``source`` is dictionary-encoded.
        """
        return self._read(self.snapshot(version).files, columns, None)

    def tail(self, after_seq: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Events with ``seq > after_seq``, reading only the files that hold some."""
        files = [f for f in self.snapshot().files if f.high["seq"] > after_seq]
        return self._read(files, columns, [("seq", ">", after_seq)])

    def chunks(
        self, columns: Sequence[str], first_seq: int = 0, stop_seq: int | None = None, rows: int = 1_000_000
    ) -> Iterator[pa.Table]:
        """Events with ``first_seq <= seq < stop_seq`` (default: all there are) in order of ``seq``, in tables of about ``rows``.

        Memory holds a few such tables, whatever the log's size. No table is empty. Raises UsageError for an unknown column.
        """
        schema = self._schema_of(columns)
        shot = self.snapshot()
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
        if held:
            yield pa.concat_tables(held)

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        schema = self.schema.arrow()
        unknown = [name for name in columns or () if name not in schema.names]
        if unknown:
            raise UsageError(choices("column of the log", unknown[0], schema.names))
        return pa.schema([schema.field(name) for name in columns or schema.names])

    def _read(self, files: Sequence[delta.DataFile], columns: Sequence[str] | None, filters: Any) -> pa.Table:
        schema = self.schema.arrow()
        wanted = self._schema_of(columns).names
        read = wanted if "seq" in wanted else [*wanted, "seq"]
        table = delta.read(self._folder, files, schema, read, filters, PACKED)
        order = np.asarray(table["seq"])
        if len(order) > 1 and not (np.diff(order) > 0).all():
            table = table.take(pa.array(np.argsort(order, kind="stable")))
        return table.select(wanted)

    def filled(self) -> list[str]:
        """Columns that hold any value, from file statistics."""
        shot = self.snapshot()
        return [n for n in self.schema.arrow().names if any(f.nulls.get(n, 0) < f.rows for f in shot.files)]

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
        own = ["user_id", "item_id", "event_type", *(f"events.{n}" for n, kind in self.schema.extra.items() if kind == "string")]
        found = self.dictionaries.get(name, self.schema.id_type(name))
        if found.size == 2 and name not in own:
            valid = own + [d for table in self._tables.names() for d in self._tables.code_columns(table)]
            if name not in valid:
                raise FeatureError(choices("dictionary", name, valid))
        return found

    def lineage(self) -> dict[str, Any]:
        """Versions of the log, its dictionaries and its tables, as training records them."""
        shot = self.snapshot()
        events = {"log": shot.version, "events": shot.count, "epoch": self.epoch}
        return {**events, "dictionaries": self.dictionaries.version(), "tables": self.tables()}

    @property
    def id(self) -> str:
        """Given when the log was made: another log in the same folder has another."""
        return str(self._table.metadata().id)

    @property
    def epoch(self) -> int:
        """How many times the log was rewritten: what was made from its events is good for one epoch only."""
        return 0

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

    # Writing, for zoo.events.ingest

    def append(self, frame: Any, idempotency_key: str | None = None, now: int | None = None) -> IngestReport:
        """``zoo.events.ingest.append`` to this log."""
        from zoo.events.ingest import append  # a cycle at import time: ingest writes logs

        return append(self, frame, idempotency_key=idempotency_key, now=now)

    @contextmanager
    def writing(self, progress: Progress | None = None) -> Iterator[None]:
        """Hold the log's write lock; waits for another writer, and says so."""
        waiting: Callable[[], None] | None = None
        if progress is not None:
            say = progress
            waiting = lambda: say(0.0, "waiting for another writer")  # noqa: E731
        with writer_lock(self.root, waiting):
            yield

    def taken(self, source: str) -> int | None:
        """Rows of a source that was taken before, None where it was not."""
        with self._mutex:
            self.snapshot()
            rows = self._table.transaction_version(source)
            return None if rows is None else int(rows)

    def start(self) -> delta.Writing:
        """Files for one coming commit of events. The caller holds the write lock."""
        return delta.Writing(self._folder, self.schema.arrow(), bounded=("seq", "time"))

    def finish(self, files: delta.Writing, transactions: Mapping[str, int]) -> int:
        """Commit events and return the version."""
        with self._mutex:
            return files.commit(self._table, transactions)

    def event_ids(self) -> EventIds:
        """Event ids in the log, read up to its end; the caller holds the write lock and may let its copy grow."""
        with self._mutex:
            held = self._event_ids
            for file in self.snapshot().files:
                if file.high["seq"] > held.seq:
                    if file.nulls.get("event_id", 0) < file.rows:
                        part = self._read([file], ["event_id"], [("seq", ">", held.seq)])
                        held.add(part["event_id"].combine_chunks().drop_null())
                    held.seq = file.high["seq"]
            return held.copy()

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
            with self._mutex:
                merged.commit(self._table, removed=run)
        return len(run)


def _snapshot(table: Any) -> Snapshot:
    files = tuple(delta.data_files(table))
    end = max((f.high["time"] for f in files), default=None)
    return Snapshot(int(table.version()), files, sum(f.rows for f in files), end)
