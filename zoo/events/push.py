"""Pushes: small tables of events that the write-ahead tail makes durable, those of many threads in one transaction."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.errors import ZooError
from zoo.events.few import Few
from zoo.events.rows import Rejected
from zoo.events.schema import IdType
from zoo.events.segments import Segment, completed, newest

if TYPE_CHECKING:
    from zoo.events.identity import EventIds
    from zoo.events.log import EventLog


@dataclass
class Push:
    """One push on its way. good: its clean rows, without ``seq``. key: what its idempotency key is recorded as, with ``body``.

    version: Delta's when it was committed. added, repeated: what became of its rows once it is done.
    again: what was recorded with the same key before, None where nothing was. types, items: event types and items that the
    log did not have before.
    """

    good: pa.Table | Few
    rejected: Rejected
    name: str
    key: str | None
    now: int
    body: int | None = None
    version: int = 0
    added: int = 0
    repeated: int = 0
    again: int | None = None
    types: tuple[str, ...] = ()
    items: tuple[Any, ...] = ()
    error: BaseException | None = None
    done: bool = field(default=False)

    @property
    def rows(self) -> int:
        return len(self.good) + len(self.rejected)


class Pushes:
    """Takes the pushes of one process: whoever comes first commits for all who wait."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._waiting: list[Push] = []
        self._queue = threading.Lock()
        self._turn = threading.Lock()

    def take(self, push: Push) -> None:
        """Make a push durable. Raises ZooError where the disk refuses; nothing of the push is in the log then."""
        with self._queue:
            self._waiting.append(push)
        with self._turn:
            if not push.done:
                with self._queue:
                    batch, self._waiting = self._waiting, []
                try:
                    self._commit(batch)
                except Exception as error:  # noqa: BLE001 - each push's own caller is told
                    for each in batch:
                        each.error = error
                except BaseException:  # interrupted: the others' pushes go to whoever is next
                    with self._queue:
                        self._waiting[:0] = [each for each in batch if each is not push]
                    raise
                for each in batch:
                    each.done = True
        if push.error is not None:
            raise ZooError(f"could not append to the log: {push.error}") from push.error

    def _commit(self, batch: list[Push]) -> None:
        log = self._log
        tail = log.tail_file
        given: dict[tuple[str, Any], int] = {}
        written: list[tuple[Segment, pa.Table | Few, list[tuple[str, int, Any]]]] = []
        with tail.exclusive():
            try:
                with tail.transaction() as connection:
                    state = log.state()
                    last, count = state.last, state.count
                    ids: EventIds | None = None
                    keys: dict[str | None, int | None] = {}
                    kept: set[tuple[str, int]] = set()
                    for push in batch:
                        push.version = state.version
                        push.again = keys[push.key] if push.key in keys else log.taken(push.key)
                        if push.again is not None:
                            continue
                        if push.key is not None:
                            keys[push.key] = push.body
                        good = push.good
                        if _named(good):
                            ids = log.live_ids() if ids is None else ids
                            good, push.repeated = _unseen(good, ids) if isinstance(good, Few) else unseen(good, ids)
                        codes = self._codes(good, given)
                        if count:
                            push.types = tuple(str(value) for name, _, value in codes if name == "event_type")
                            push.items = tuple(value for name, _, value in codes if name == "item_id")
                        bad = self._bad(push, kept)
                        if not len(good) and not bad and push.key is None:
                            continue
                        last += 1
                        segment = Segment(last, count, len(good), newest(good), push.now, push.key, push.body)
                        tail.add(connection, segment, good, codes, bad)
                        held = good if isinstance(good, Few) else completed(good, count, log.schema.arrow())
                        written.append((segment, held, codes))
                        count += len(good)
                        push.added = len(good)
                        if ids is not None:
                            ids.seq = count - 1
            except BaseException:
                log.lose_ids()
                raise
            tail.note(written)
        log.flusher.poke(count - state.count + state.pending)

    def _codes(self, good: pa.Table | Few, given: dict[tuple[str, Any], int]) -> list[tuple[str, int, Any]]:
        """Codes for identifiers that have none."""
        log = self._log
        brought: dict[str, tuple[IdType, pa.Array | list[Any]]] = {}
        for column, name in log.coded if len(good) else ():
            if isinstance(good, Few):
                values = [v for v in dict.fromkeys(good.columns.get(column, ())) if v is not None]
            elif column in good.column_names:
                values = pc.unique(good[column].combine_chunks()).drop_null()
            else:
                continue
            if len(values):
                brought[name] = log.schema.id_type(name), values
        return log.dictionaries.new(brought, given)

    def _bad(self, push: Push, kept: set[tuple[str, int]]) -> list[tuple[str, int, str, str, int]]:
        """Rows for the quarantine, but those that an earlier push of the same source brought."""
        if not len(push.rejected):
            return []
        known = self._log.quarantine.known(push.name)
        out = []
        for row, reason, record in zip(push.rejected.row.tolist(), push.rejected.reason, push.rejected.record):
            if row not in known and (push.name, row) not in kept:
                kept.add((push.name, row))
                out.append((push.name, row, reason, record, push.now))
        return out


def _named(good: pa.Table | Few) -> bool:
    """Whether any row has an event id."""
    if isinstance(good, Few):
        return any(v is not None for v in good.columns.get("event_id", ()))
    return "event_id" in good.column_names and good["event_id"].null_count < len(good)


def unseen(good: pa.Table, ids: EventIds) -> tuple[pa.Table, int]:
    """Rows whose event id the log does not hold (or who have none), and how many are left out."""
    named = np.asarray(good["event_id"].is_valid())
    known = np.zeros(good.num_rows, bool)
    known[named] = ids.add(good["event_id"].combine_chunks().drop_null())
    return (good.filter(pa.array(~known)) if known.any() else good), int(known.sum())


def _unseen(good: Few, ids: EventIds) -> tuple[Few, int]:
    """As ``unseen``."""
    names = good.columns["event_id"]
    found = iter(ids.add([name for name in names if name is not None]).tolist())
    keep = [name is None or not next(found) for name in names]
    again = len(keep) - sum(keep)
    return (good.kept(keep) if again else good), again
