"""Forgetting: a person's events, or those before an instant, leave the log and all that lies beside it, down to the bytes.

Every step may be repeated, and the identifier itself goes last: killed anywhere, the same call does the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import UNKNOWN, Array, Progress, silent
from zoo.errors import UsageError
from zoo.events import delta
from zoo.events.dictionary import FIRST, as_ids

if TYPE_CHECKING:
    from zoo.events.log import EventLog

NEXT = "next"
"""Application transaction of the log's Delta table: the next ``seq``, for the newest events may be forgotten."""


@dataclass(frozen=True)
class Forgotten:
    """What a call removed. users: of those asked for, how many the log knew. events, quarantined, profiles: rows of the log, of its
    quarantine and of tables. epoch, version: the log's after it; versions before ``version`` cannot be read where events were removed."""

    users: int
    events: int
    quarantined: int
    profiles: int
    epoch: int
    version: int


def forget(
    log: EventLog,
    users: Iterable[Any] = (),
    before: int | None = None,
    also: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Forgotten:
    """Remove users, or (``before``, microseconds UTC) all events before an instant. Pushes and ingests wait meanwhile.

    Identifiers and texts that nothing in the log names any longer leave the dictionaries; their codes stay and mean nobody.
    also: called once the log is rewritten and while it still knows the users: for what was copied elsewhere. progress: called with the
    fraction done and what is looked through. Raises UsageError for neither or both, and for ``before`` on a log without times;
    UnknownIdError for a wrong type.
    """
    ids = as_ids(list(users), log.schema.id_type("user_id"), "user_id").drop_null()
    if (before is None) == (not len(ids)):
        raise UsageError("say whom to forget, or before which instant, and not both")
    if before is not None and log.schema.clock == "order":
        raise UsageError("this log knows the order of events and no times; there is nothing that 'before' could mean")
    from zoo.events.build import IndexStore  # a cycle at import time: it reads logs

    say = progress or silent
    with delta.failing_as("forget"), log.writing(progress):
        codes = log.dictionary("user_id").encode(ids)
        codes = np.unique(codes[codes > UNKNOWN])
        events = _rewrite(log, lambda table: _leaving(table, ids, before), say)
        say(0.6, "look through tables and bad rows")
        profiles = log.forget_profiles(ids)
        named = _naming(ids)
        bad = log.quarantine.forget(lambda table: _bad(table, named, before))
        log.tail_file.scrub()
        IndexStore(log.root / "index").clear()
        say(0.65, "remove what was copied elsewhere")
        if also is not None:
            also()
        log.dictionaries.forget(_unnamed(log, say))
        log.lose_ids()
        state = log.state()
        return Forgotten(len(codes), events, bad, profiles, state.epoch, log.version())


def _leaving(table: pa.Table, ids: pa.Array, before: int | None) -> Array:
    """bool (n,): rows that go."""
    if before is not None:
        return np.asarray(table["time"]) < before
    return np.asarray(pc.is_in(table["user_id"], value_set=ids))


def _rewrite(log: EventLog, leaving: Callable[[pa.Table], Array], say: Progress) -> int:
    """Write the log's files that hold such rows anew without them, in one commit; returns how many rows that were."""
    shot, schema = log.snapshot(), log.schema.arrow()
    folder = log.root / "log"
    hit, gone = [], 0
    for number, file in enumerate(shot.files):
        say(0.3 * number / len(shot.files), f"look through {shot.size:,} events")
        rows = int(leaving(delta.read(folder, [file], schema, ["user_id", "time"])).sum())
        if rows:
            hit.append(file)
            gone += rows

    def kept() -> Iterator[pa.Table]:
        for number, file in enumerate(hit):
            say(0.3 + 0.3 * number / len(hit), f"write {len(hit)} of {len(shot.files)} files anew")
            table = delta.read(folder, [file], schema, schema.names)
            yield table.filter(pa.array(~leaving(table)))

    table = delta.open_table(folder)
    if hit:
        delta.rewrite(folder, table, hit, kept(), bounded=("seq", "time"), transactions={NEXT: shot.count})
    delta.vacuum(folder, table)
    return gone


@dataclass(frozen=True)
class _Named:
    """Tells what names one of some users. ids: their identifiers as text."""

    ids: frozenset[str]
    word: re.Pattern[str]
    """Finds one of them as a word of its own in a text."""

    def by(self, record: str) -> bool:
        """Whether a bad row names one: as its ``user_id`` or as a word of its other texts where it has one, else anywhere in it."""
        try:
            fields = json.loads(record)
        except ValueError:
            return self.word.search(record) is not None
        own = fields.get("user_id") if isinstance(fields, dict) else None
        if not isinstance(own, (int, str)):
            return self.word.search(record) is not None
        others = [value for name, value in fields.items() if name != "user_id" and isinstance(value, str)]
        return str(own) in self.ids or any(self.word.search(text) for text in others)


def _naming(ids: pa.Array) -> _Named:
    texts = frozenset(map(str, ids.to_pylist()))
    words = {form for text in texts for form in (text, json.dumps(text, ensure_ascii=False)[1:-1])}
    return _Named(texts, re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in sorted(words))))


def _bad(table: pa.Table, named: _Named, before: int | None) -> Array:
    """bool (n,): rows of the quarantine that name a user, or that came before an instant."""
    if before is not None:
        return np.asarray(table["ingested_at"]) < before
    return np.array([named.by(record) for record in table["record"].to_pylist()], bool)


def _unnamed(log: EventLog, say: Progress) -> dict[str, Array]:
    """Codes by dictionary of users and of texts that no event and no table names; items and event types are nobody's."""
    texts = [(column, name) for column, name in log.coded if column not in ("item_id", "event_type")]
    used: dict[str, list[pa.Array]] = {name: [] for _, name in texts}
    size, done = max(log.size, 1), 0
    for part in log.chunks([column for column, _ in texts]):
        say(0.7 + 0.25 * min(done / size, 1.0), "look for identifiers that nothing names any longer")
        done += len(part)
        for column, name in texts:
            used[name].append(pc.unique(part[column].combine_chunks()))
            if len(used[name]) == 16:
                used[name] = [pc.unique(pa.concat_arrays(used[name]))]
    say(0.95, "remove identifiers")
    for name, values in log.profile_texts().items():
        used.setdefault(name, []).extend(values)
    return {name: _absent(log, name, parts) for name, parts in used.items()}


def _absent(log: EventLog, name: str, parts: Sequence[pa.Array]) -> Array:
    dictionary = log.dictionary(name)
    there = np.zeros(dictionary.size, bool)
    for part in parts:
        there[dictionary.encode(part)] = True
    there[:FIRST] = True
    return np.flatnonzero(~there)
