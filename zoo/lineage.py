"""From an answer back to what it was made of: feature values, event times, the log's version, members' scores, model hashes, code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.cache import folder_digest
from zoo.contract import Array, Artefact, Column
from zoo.events.dictionary import as_ids
from zoo.reading import Read
from zoo.traces import Trace, Traces

if TYPE_CHECKING:
    from zoo.events.view import LogView
    from zoo.registry import Version
    from zoo.stacking import Fitted
    from zoo.stores.recent import Recent

EVENTS = 50
"""Newest events of the user whose times a trace says."""
ROWS = 1_000
"""Rows of one answer up to which each is traced; more are a batch."""


@dataclass(frozen=True)
class Tracer:
    """Keeps a trace of every answer of one version. about: what is the same for all of them."""

    traces: Traces
    about: Mapping[str, Any]

    @staticmethod
    def of(traces: Traces, of: Version, members: Sequence[Fitted], artefact: Artefact) -> Tracer:
        """artefact: that of the version, of which each member's part is hashed."""
        models = {
            member.name: {**_made_by(member), "sha256": digest(artefact.part(f"members/{member.name}"))} for member in members
        }
        final = artefact.part("final")
        own = folder_digest(Path(__file__).parent)
        code = {"feature-zoo": _installed("feature-zoo"), "sha256": own, "trained_at_commit": of.lineage.get("git")}
        about = {
            "model": of.reference,
            "artefact": of.digest,
            "members": models,
            "final": {"model": of.lineage.get("final"), "sha256": digest(final)},
            "service": of.lineage["task"]["service"],
            "service_hash": of.lineage["service_hash"],
            "code": code,
        }
        traces.begin()
        return Tracer(traces, about)

    def keeps(self, rows: int, read: Read) -> bool:
        """Whether an answer of so many rows is traced: of a batch, and of what no store told, nothing is."""
        return rows <= ROWS and read.recent is not None

    def keep(
        self, ids: Sequence[str], keys: Mapping[str, Sequence[Any]], read: Read, answers: Sequence[Mapping[str, Any]]
    ) -> None:
        """Trace the rows of an answer that is to be traced (``keeps``). keys: entity columns, (n,) each. answers: what each row was told,
        JSON-ready."""
        assert read.recent is not None
        view, now = read.recent.view, datetime.now(UTC).isoformat()
        log, epoch = view.lineage(), view.epoch
        users: list[Any] = []
        if "user_id" in keys:  # 42.0 is asked about, 42 is forgotten
            users = as_ids(keys["user_id"], view.log.schema.id_type("user_id"), "user_id").to_pylist()
        made = []
        for row, id in enumerate(ids):
            own = {name: values[row] for name, values in keys.items()}
            values, people = _values(view, read, row)
            as_of, newest = int(read.batch.as_of[row]), int(read.batch.newest[row])
            body = {
                "id": id,
                "answered": now,
                "as_of": _said(as_of),
                "keys": own,
                "answer": answers[row],
                "features": values,
                "features_from": read.source[row],
                "newest_event": _said(newest) if newest >= 0 else None,
                "events": [_said(t) for t in event_times(read.recent, own.get("user_id"), as_of)],
                "log": log,
                **self.about,
            }
            if users:
                people.add(users[row])
            made.append(Trace(id, as_of, tuple(people), body, epoch))
        self.traces.add(made)


def event_times(recent: Recent, user: Any, as_of: int) -> list[int]:
    """Microseconds UTC of the user's newest events strictly before an instant, newest first, as the store gave them."""
    if user is None or "user_id" not in recent.values:
        return []
    (code,) = recent.view.codes("user_id", [user]).tolist()
    found = np.flatnonzero(recent.codes["user_id"] == code)
    if not len(found):
        return []
    index = recent.opened("user_id")[0].index
    begin, end = index.offsets[found[0] + 2], index.offsets[found[0] + 3]
    times = index.time[begin:end]
    seen: list[int] = times[times < as_of][-EVENTS:][::-1].tolist()
    return seen


def digest(artefact: Artefact) -> str:
    """sha256 of an artefact's names and contents."""
    found = sha256()
    for name, text in sorted(artefact.texts.items()):
        found.update(f"{name}\0{len(text)}\0{text}".encode())
    for name, array in sorted(artefact.arrays.items()):
        found.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON has it: no NaN and no infinity."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _values(view: LogView, read: Read, row: int) -> tuple[dict[str, Any], set[Any]]:
    """(a row's feature values by name, identifiers for codes; the users among them)."""
    values: dict[str, Any] = {}
    people: set[Any] = set()
    for entity, block in read.batch.blocks.items():
        at = int(read.batch.row_of[entity][row])
        for name, column in block.items():
            found = _decoded(view, column, at)
            values[name] = found if column.is_sequence else found[0]
            if column.dictionary == "user_id":
                people.update(each for each in found if each is not None)
    return values, people


def _decoded(view: LogView, column: Column, at: int) -> list[Any]:
    own: Array = column.values[at : at + 1]
    if column.offsets is not None:
        own = column.values[column.offsets[at] : column.offsets[at + 1]]
    decoded: list[Any] = (
        plain(own) if column.dictionary is None else view.log.dictionary(column.dictionary).decode(own).to_pylist()
    )
    return decoded


def _made_by(member: Fitted) -> dict[str, Any]:
    return {"model": member.model, "distribution": member.distribution, "version": member.version}


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _said(instant: int) -> str:
    return datetime.fromtimestamp(instant // 1_000_000, UTC).replace(microsecond=instant % 1_000_000).isoformat()
