"""Taking events into a log: files and pushes, each whole in one commit, each once, every row added or accounted for."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import Progress
from zoo.errors import ReusedKeyError, SchemaError, UsageError
from zoo.events import delta
from zoo.events.clock import long_before
from zoo.events.dictionary import FIRST
from zoo.events.few import Few
from zoo.events.push import Push, unseen
from zoo.events.quick import FEW, quick
from zoo.events.readers import digest, open_source
from zoo.events.rows import Plan, Rejected, canonical, clean, none_rejected, plan, sift
from zoo.events.segments import oldest
from zoo.events.sources import Chunk, ListSource, ObjectSource, Source, TableSource
from zoo.events.tables import as_table
from zoo.events.times import ColumnError

if TYPE_CHECKING:
    from zoo.events.identity import EventIds
    from zoo.events.log import EventLog


LARGE = 50_000
"""Rows of a push from which it goes into Delta at once, as a file does."""

BODY = 1 << 62
"""A number from here on that is recorded with a key is of a push's body; one below it, as for files, is of rows."""

NOTHING = "no rows were given, so nothing was appended"


@dataclass(frozen=True)
class IngestReport:
    """What became of the rows: ``rows == added + repeated + sum(quarantined.values())``.

    repeated: rows whose event id, file or idempotency key the log knows already. quarantined: reason -> rows.
    ignored: columns that the log has no place for. version: the log's after it. warnings: what whoever pushed should know.
    unusable: files that have rows, all of them quarantined.
    """

    rows: int = 0
    added: int = 0
    repeated: int = 0
    quarantined: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    version: int = 0
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    def plus(self, other: IngestReport) -> IngestReport:
        """Both together; the version is the later one's."""
        return IngestReport(
            self.rows + other.rows,
            self.added + other.added,
            self.repeated + other.repeated,
            dict(sorted((Counter(self.quarantined) + Counter(other.quarantined)).items())),
            self.seconds + other.seconds,
            max(self.version, other.version),
            tuple(dict.fromkeys([*self.ignored, *other.ignored])),
            (*self.warnings, *other.warnings),
            (*self.unusable, *other.unusable),
        )


def wall_clock() -> int:
    """Microseconds UTC; read where a caller gave no ``now``."""
    return time.time_ns() // 1_000


def ingest(
    log: EventLog,
    paths: Path | str | Iterable[Path | str],
    mapping: Mapping[str, str] | None = None,
    timezone: str | None = None,
    progress: Progress | None = None,
    time_unit: str | None = None,
    now: int | None = None,
) -> IngestReport:
    """Take files (Parquet, CSV, NDJSON; the last two also gzipped), one atomic commit a file, at bounded memory.

    mapping: the files' column names -> the log's. timezone: for naive times (default: the log's). time_unit: ``s``, ``ms``,
    ``us`` or ``ns`` for whole-number times. now: microseconds UTC; later events are quarantined (default: the wall clock).
    Raises SchemaError, with nothing taken, where any file's columns cannot be read; UsageError for a missing file or a
    mapping that names no column; ZooError where the disk refuses. Interrupted anywhere, the log is whole and a rerun completes it.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    now = wall_clock() if now is None else now
    plans = []
    for path in files:
        source = open_source(path)
        try:
            plans.append((path, source, plan(source, log.schema, mapping, timezone, time_unit, required=("item_id",))))
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from error
    report = IngestReport(version=log.version())
    for path, source, how in plans:
        try:
            one = _file(log, path, source, how, now, progress)
            report = report.plus(one if one.added or one.repeated or not one.rows else replace(one, unusable=(str(path),)))
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from error
    return report


def _file(log: EventLog, path: Path, source: Source, how: Plan, now: int, progress: Progress | None) -> IngestReport:
    with delta.failing_as(f"ingest {path}"):
        before = path.stat()
        name = digest(path)

        def unchanged() -> None:
            after = path.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise SchemaError("the file changed while it was read; nothing was taken. Ingest it once it is complete")

        say = None if progress is None else lambda done, text: progress(done, text or f"ingest {path.name}")
        return _take(log, source, how, name, name, now, say, unchanged)


def append(log: EventLog, frame: Any, idempotency_key: str | None = None, now: int | None = None) -> IngestReport:
    """Take a push: an Arrow table, a polars or pandas DataFrame, a list of dicts (JSON values) or a ``ListSource``, in one commit.

    Every row has an ``event_id``, or the push has an ``idempotency_key`` (else UsageError): the same id, or the same key, adds
    nothing the second time. ``item_id`` may be left out. A column ``time`` of int64 microseconds UTC may stand for ``timestamp``.
    Raises, with nothing taken, SchemaError where the columns cannot be read, and ReusedKeyError where the key came with other rows.
    """
    started = time.perf_counter()
    now = wall_clock() if now is None else now
    if isinstance(frame, Sequence) and not frame:
        return IngestReport(version=log.version(), warnings=(NOTHING,))
    source: ObjectSource | ListSource | TableSource
    if isinstance(frame, ListSource):
        source = frame
    else:
        source = ObjectSource(frame) if isinstance(frame, Sequence) else TableSource(as_table(frame))
    try:
        return _append(log, source, idempotency_key, now, started)
    except ColumnError as error:
        raise SchemaError(error.pushed) from error


def _append(
    log: EventLog, source: ObjectSource | ListSource | TableSource, idempotency_key: str | None, now: int, started: float
) -> IngestReport:
    aliased = log.schema.clock == "time" and "time" in source.names and "timestamp" not in source.names
    how = plan(source, log.schema, {"time": "timestamp"} if aliased else None, unit="us" if aliased else None, each=True)
    if idempotency_key is not None and not 0 < len(idempotency_key) <= 200:
        raise UsageError(f"an idempotency key of {len(idempotency_key)} characters; expected 1 to 200")
    if idempotency_key is None:
        nameless, rows = _without_id(source, how)
        if nameless:
            raise UsageError(
                f"{nameless} of {rows} rows have no event_id and the push has no idempotency key, so a retry would count twice; "
                "give every row an event_id, or the push an idempotency key"
            )
    # a key may name a person, and is kept for good: its digest tells a retry, and where a row came from, as well
    key = None if idempotency_key is None else f"key:{hashlib.sha256(idempotency_key.encode()).hexdigest()}"
    with delta.failing_as("append to the log"):
        few = _few(source, how)
        if few is None and isinstance(source, ListSource):
            source = TableSource(source.table())
        parts = (canonical(chunk, how) for chunk, _ in source.chunks(how.wanted)) if few is None else [few.columns]
        content = _content(parts, idempotency_key or "")
        name, body = key or f"sha256:{content}", None if key is None else BODY | int(content, 16) >> (256 - 62)
        if len(source) > LARGE:
            return replace(_take(log, source, how, name, key, now, None, None, body), seconds=time.perf_counter() - started)
        good, rejected = _cleaned(log, source, how, name, now, few)
        first = log.state().begin if log.schema.clock == "time" else None
        push = Push(good, rejected, name, key, now, body)
        log.pushes.take(push)
        quarantined = dict(sorted(Counter(rejected.reason).items()))
        rows, repeated = push.rows, push.repeated
        if push.again is not None:
            rows = _rows_before(push.again, body, rows)
            quarantined = log.quarantine.counts(name)
            repeated = rows - sum(quarantined.values())
        seconds = time.perf_counter() - started
        warnings = (*_new(log, push.types), *_new_items(push.items), *(long_before(first, oldest(good)) if push.added else ()))
        return IngestReport(rows, push.added, repeated, quarantined, seconds, push.version, how.ignored, warnings)


def _rows_before(recorded: int, body: int | None, rows: int) -> int:
    """How many rows came under a key before. recorded: with it. body, rows: of the push, or file, that comes under it now."""
    if recorded < BODY:  # a file's; or a push's of before bodies were told from each other
        return recorded
    if recorded != body:
        raise ReusedKeyError(
            "the idempotency key came with other events before, so nothing of this push was taken; send these under a key of their "
            "own, or the former ones as they were"
        )
    return rows


def _new_items(items: Sequence[Any]) -> tuple[str, ...]:
    """One warning of items that neither an event nor the item table named: their identifiers may be wrong."""
    if not items:
        return ()
    many = f" and {len(items) - 1} more are" if len(items) > 1 else " is"
    return (f"item_id {items[0]!r}{many} new to this log: no event before and no row of the item table names such an item",)


def _new(log: EventLog, types: Sequence[str]) -> tuple[str, ...]:
    """Warnings of event types that the log did not have: they may be misspelt."""
    if not types:
        return ()
    held = log.dictionary("event_type")
    known = [name for name in held.decode(np.arange(FIRST, held.size)).to_pylist() if name not in types]
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return tuple(
        f"event_type {name!r} is new to this log, which has: {shown}; features that name event types do not see it"
        for name in types
    )


def _few(source: ObjectSource | ListSource | TableSource, how: Plan) -> Few | None:
    """The rows of a small push that are plainly good, but for the clock; None of any other."""
    if not 0 < len(source) <= FEW:
        return None
    return quick(next(source.chunks(how.wanted))[0], how, None)


def _cleaned(
    log: EventLog, source: ObjectSource | ListSource | TableSource, how: Plan, name: str, now: int, few: Few | None
) -> tuple[pa.Table | Few, Rejected]:
    """The rows that the log can take, ``few`` of them as they are, and the others."""
    if few is not None and (how.schema.clock == "order" or max(few.columns["time"]) <= now):
        return Few({**few.columns, "source": [name] * len(few)}, len(few)), none_rejected()
    if isinstance(source, ListSource):
        source = TableSource(source.table())
    good, rejected = next((sift(chunk, how, now) for chunk, _ in source.chunks(how.wanted)), None) or (
        log.schema.arrow().empty_table().drop_columns(["source"]),
        none_rejected(),
    )
    return good.append_column("source", pa.repeat(name, good.num_rows)), rejected


def _without_id(source: Source, how: Plan) -> tuple[int, int]:
    """Rows without event id, and rows."""
    missing = rows = 0
    column = how.columns.get("event_id")
    for chunk, _ in source.chunks({column or how.columns["user_id"]: "label"}):
        rows += len(chunk.rows)
        values = chunk.columns[column] if column else [None] * len(chunk.rows)
        missing += sum(v is None or v == "" for v in (values if isinstance(values, list) else values.to_pylist()))
    return missing, rows


def _content(parts: Iterable[Mapping[str, list[Any]]], key: str) -> str:
    """The digest of a push: of the values that the log has a place for, as the log types them, whatever they came as (JSON, a table) and
    in whatever order of columns. key: without it, nobody can tell from the digest what a push of somebody who was forgotten held."""
    state = hashlib.sha256(key.encode())
    for columns in parts:
        for name, values in sorted(columns.items()):
            if name != "row" and values.count(None) < len(values):  # a column of nothing says what none says
                state.update(repr((name, values)).encode("utf-8", "replace"))
    return state.hexdigest()


def _take(
    log: EventLog,
    source: Source,
    how: Plan,
    name: str,
    key: str | None,
    now: int,
    progress: Any,
    check: Any,
    body: int | None = None,
) -> IngestReport:
    """Take one source under the write lock. ``key``: adds nothing where the log knows it, and is recorded with ``body``, else the number
    of rows; ``check``: runs before anything is visible."""
    started = time.perf_counter()
    with log.writing(progress):
        before = log.taken(key)
        if before is not None:
            rows = _rows_before(before, body, len(source) if isinstance(source, Sized) else 0)
            quarantined = log.quarantine.counts(name)
            repeated = rows - sum(quarantined.values())
            seconds = time.perf_counter() - started
            return IngestReport(rows, 0, repeated, quarantined, seconds, log.version(), how.ignored)
        first = log.count()
        rows = repeated = 0
        ids: EventIds | None = None
        seen: dict[str, list[pa.Array]] = {}
        with log.start() as files, log.quarantine.pending(name, now) as pending:
            for chunk, done in _whole(source.chunks(how.wanted)):
                good, rejected = clean(chunk, how, now)
                rows += good.num_rows + len(rejected)
                pending.reject(rejected)
                if good["event_id"].null_count < good.num_rows:
                    ids = log.event_ids() if ids is None else ids
                    good, again = unseen(good, ids)
                    repeated += again
                _note(seen, good, log)
                start = first + files.rows
                good = good.append_column("seq", pa.array(np.arange(start, start + good.num_rows, dtype=np.int64)))
                files.add(good.append_column("source", pa.repeat(name, good.num_rows)))
                if progress is not None:
                    progress(done, "")
            if check is not None:
                check()
            # The order matters: what a crash leaves behind before the last step is completed, not doubled, by a rerun.
            pending.settle()
            log.dictionaries.extend({d: pa.concat_arrays(parts) for d, parts in seen.items()})
            version = log.version()
            if files.rows or key is not None:
                version = log.finish(files, {} if key is None else {key: rows if body is None else body})
            added = files.rows
        log.tidy()
        quarantined = dict(sorted(pending.counts.items()))
        return IngestReport(rows, added, repeated, quarantined, time.perf_counter() - started, version, how.ignored)


def _whole(chunks: Iterator[tuple[Chunk, float]]) -> Iterator[tuple[Chunk, float]]:
    """The same chunks; what makes a source unreadable halfway is its fault, not the log's."""
    while True:
        try:
            step = next(chunks, None)
        except (OSError, pa.ArrowException, EOFError, zlib.error) as error:
            raise SchemaError(f"cannot be read to its end: {error}; nothing of it was taken. Is it whole?") from error
        if step is None:
            return
        yield step


def _note(seen: dict[str, list[pa.Array]], good: pa.Table, log: EventLog) -> None:
    """Collect the distinct identifiers of a chunk, in order of first appearance."""
    for column, name in log.coded:
        parts = seen.setdefault(name, [])
        parts.append(pc.unique(good[column].combine_chunks()))
        if len(parts) == 16:
            seen[name] = [pc.unique(pa.concat_arrays(parts))]
