"""Forgetting: a person's events, or those before an instant, leave the log and all that lies beside it, down to the bytes.

Every step may be repeated, and the identifier itself goes last: killed anywhere, the same call does the rest.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import UNKNOWN, Array
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
    log: EventLog, users: Iterable[Any] = (), before: int | None = None, also: Callable[[Array], None] | None = None
) -> Forgotten:
    """Remove users, or (``before``, microseconds UTC) all events before an instant. Pushes and ingests wait meanwhile.

    Identifiers and texts that nothing in the log names any longer leave the dictionaries; their codes stay and mean nobody.
    also: called with the users' codes (none for ``before``) once the log is rewritten and while it still knows them: for what was copied
    elsewhere. Raises UsageError for neither or both, and for ``before`` on a log without times; UnknownIdError for a wrong type.
    """
    ids = as_ids(list(users), log.schema.id_type("user_id"), "user_id").drop_null()
    if (before is None) == (not len(ids)):
        raise UsageError("say whom to forget, or before which instant, and not both")
    if before is not None and log.schema.clock == "order":
        raise UsageError("this log knows the order of events and no times; there is nothing that 'before' could mean")
    with delta.failing_as("forget"), log.writing():
        codes = log.dictionary("user_id").encode(ids)
        codes = np.unique(codes[codes > UNKNOWN])
        events = _rewrite(log, lambda table: _leaving(table, ids, before))
        profiles = log.forget_profiles(ids)
        named = _naming(ids)
        bad = log.quarantine.forget(lambda table: _bad(table, named, before))
        log.tail_file.scrub()
        shutil.rmtree(log.root / "index", ignore_errors=True)
        if also is not None:
            also(codes)
        log.dictionaries.forget(_unnamed(log))
        log.lose_ids()
        state = log.state()
        return Forgotten(len(codes), events, bad, profiles, state.epoch, log.version())


def _leaving(table: pa.Table, ids: pa.Array, before: int | None) -> Array:
    """bool (n,): rows that go."""
    if before is not None:
        return np.asarray(table["time"]) < before
    return np.asarray(pc.is_in(table["user_id"], value_set=ids))


def _rewrite(log: EventLog, leaving: Callable[[pa.Table], Array]) -> int:
    """Write the log's files that hold such rows anew without them, in one commit; returns how many rows that were."""
    shot, schema = log.snapshot(), log.schema.arrow()
    folder = log.root / "log"
    hit, gone = [], 0
    for file in shot.files:
        rows = int(leaving(delta.read(folder, [file], schema, ["user_id", "time"])).sum())
        if rows:
            hit.append(file)
            gone += rows

    def kept() -> Iterator[pa.Table]:
        for file in hit:
            table = delta.read(folder, [file], schema, schema.names)
            yield table.filter(pa.array(~leaving(table)))

    table = delta.open_table(folder)
    if hit:
        delta.rewrite(folder, table, hit, kept(), bounded=("seq", "time"), transactions={NEXT: shot.count})
    delta.vacuum(folder, table)
    return gone


def _naming(ids: pa.Array) -> re.Pattern[str] | None:
    """What finds one of the identifiers as a word of its own in a text."""
    if not len(ids):
        return None
    words = {form for each in ids.to_pylist() for form in (str(each), json.dumps(str(each), ensure_ascii=False)[1:-1])}
    return re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in sorted(words)))


def _bad(table: pa.Table, named: re.Pattern[str] | None, before: int | None) -> Array:
    """bool (n,): rows of the quarantine that name a user, or that came before an instant."""
    if before is not None:
        return np.asarray(table["ingested_at"]) < before
    assert named is not None
    return np.array([_names(record, named) for record in table["record"].to_pylist()], bool)


def _names(record: str, named: re.Pattern[str]) -> bool:
    """Whether a record names a user: by its field ``user_id`` where it has one, else anywhere in it."""
    try:
        fields = json.loads(record)
    except ValueError:
        return bool(named.search(record))
    if isinstance(fields, dict) and isinstance(fields.get("user_id"), (int, str)):
        texts = [str(value) for name, value in fields.items() if name == "user_id" or isinstance(value, str)]
        return any(named.search(text) for text in texts)
    return bool(named.search(record))


def _unnamed(log: EventLog) -> dict[str, Array]:
    """Codes by dictionary of users and of texts that no event and no table names; items and event types are nobody's."""
    texts = [(column, name) for column, name in log.coded if column not in ("item_id", "event_type")]
    used: dict[str, list[pa.Array]] = {name: [] for _, name in texts}
    for part in log.chunks([column for column, _ in texts]):
        for column, name in texts:
            used[name].append(pc.unique(part[column].combine_chunks()))
            if len(used[name]) == 16:
                used[name] = [pc.unique(pa.concat_arrays(used[name]))]
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
