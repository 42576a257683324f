"""Building the indexes of a log out of core, and merging new events into them: partition by partition, at bounded memory.

``<root>/index/<entity>/<epoch>-<count>/<partition>`` holds the events of the entities whose code is ``partition`` modulo the number of
partitions, under the code divided by that number. A folder is complete or not there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.contract import Array
from zoo.events.delta import failing_as, sync
from zoo.events.encode import Encoded
from zoo.events.index import Index, nothing
from zoo.events.merging import merged, sort
from zoo.events.storage import TornError, read_columns, write_columns

PARTITION = 4_000_000
"""Events that one partition holds about."""
KEPT_INDEXES = 2
"""Indexes of an entity kind that stay on disk: the newest, and one that a reader may still be opening."""
SPILL = 256 << 20
"""Bytes of columns that wait in memory before they are written out."""

_log = logging.getLogger(__name__)


def partitions_for(count: int) -> int:
    """How many partitions a log of this many events has."""
    return max(1, -(-count // PARTITION))


@dataclass(frozen=True)
class Stored:
    """One index on disk, of the first ``count`` events."""

    folder: Path
    epoch: int
    count: int

    def open(self, facts: Mapping[str, Any]) -> list[Index]:
        """Its partitions, mapped. Raises FileNotFoundError where it is not there any more."""
        first, said = _opened(self.folder / "0", facts)
        return [first, *(_opened(self.folder / str(number), facts)[0] for number in range(1, said["partitions"]))]

    def partitions(self) -> int:
        return int(read_columns(self.folder / "0")[1]["partitions"])

    def torn(self) -> str:
        """What a crash of the disk left of it that cannot be read; empty where it is whole, or not there any more."""
        try:
            for number in range(self.partitions()):
                read_columns(self.folder / str(number))
        except TornError as error:
            return str(error)
        except FileNotFoundError as error:
            return f"{error.filename} is missing" if self.folder.is_dir() else ""
        return ""


def _opened(path: Path, facts: Mapping[str, Any]) -> tuple[Index, dict[str, Any]]:
    columns, said = read_columns(path)
    return Index(columns.pop("offsets"), columns.pop("time"), columns.pop("seq"), columns, **facts), said


@dataclass(frozen=True)
class IndexStore:
    """The indexes of one log on disk."""

    root: Path

    def newest(self, entity: str, epoch: int, count: int) -> Stored | None:
        """The index of the most events, at most ``count``; None where there is none."""
        return max(
            (s for s in self._stored(entity) if s.epoch == epoch and s.count <= count), key=lambda s: s.count, default=None
        )

    def _stored(self, entity: str) -> Iterator[Stored]:
        for folder in (self.root / entity).glob("[0-9]*-[0-9]*"):
            epoch, _, count = folder.name.partition("-")
            yield Stored(folder, int(epoch), int(count))

    def sound(self, entity: str, epoch: int, count: int) -> Stored | None:
        """As ``newest``, of those that can be read; torn ones are removed and logged. The caller is ``building``."""
        while (found := self.newest(entity, epoch, count)) is not None and (why := found.torn()):
            _log.warning("the index %s is torn and is built again from the log: %s", found.folder, why)
            shutil.rmtree(found.folder)
        return found

    @contextmanager
    def building(self) -> Iterator[None]:
        """Hold the right to build; others wait. What a killed builder left is removed."""
        with failing_as(f"build the index in {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for folder in self.root.glob(".index-*"):
                shutil.rmtree(folder, ignore_errors=True)
            yield
        finally:
            os.close(handle)

    def clear(self) -> None:
        """Remove every index, once whoever builds one is done. Raises ZooError where the disk refuses."""
        if self.root.is_dir():
            with self.building(), failing_as(f"remove the index in {self.root}"):
                for folder in [path for path in self.root.iterdir() if path.is_dir()]:
                    shutil.rmtree(folder)

    def build(self, entities: Iterable[str], epoch: int, base: int | None, count: int, events: Iterable[Encoded]) -> None:
        """Write the indexes of the first ``count`` events; the caller is ``building``.

        events: those since ``base``, in order of seq; all of them where there is no base (None) to be merged with. Raises ZooError
        where the disk refuses.
        """
        with failing_as(f"build the index in {self.root}"):
            temporary = Path(tempfile.mkdtemp(prefix=".index-", dir=self.root))
            try:
                self._build(temporary, list(entities), epoch, base, count, events)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _build(
        self, temporary: Path, entities: list[str], epoch: int, base: int | None, count: int, events: Iterable[Encoded]
    ) -> None:
        olds = {e: None if base is None else Stored(self.root / e / f"{epoch}-{base}", epoch, base) for e in entities}
        spills = {}
        for entity, old in olds.items():
            spills[entity] = Spill(temporary / f"new-{entity}", partitions_for(count) if old is None else old.partitions())
        for encoded in events:
            for entity, spill in spills.items():
                spill.add(encoded.keys(entity), encoded.time, encoded.seq, encoded.others(entity))
        for entity, spill in spills.items():
            written = temporary / entity
            written.mkdir()
            for number in range(spill.partitions):
                index = spill.index(number)
                old = olds[entity]
                if old is not None:
                    index = merged(_opened(old.folder / str(number), {})[0], index)
                columns = {"offsets": index.offsets, "time": index.time, "seq": index.seq, **index.columns}
                write_columns(written / str(number), columns, {"partitions": spill.partitions})
            sync(written)
            folder = self.root / entity / f"{epoch}-{count}"
            folder.parent.mkdir(exist_ok=True)
            written.chmod(0o755)
            written.rename(folder)
            sync(folder.parent)

    def prune(self, entities: Iterable[str], epoch: int, count: int) -> None:
        """Remove the indexes of other epochs and all but the newest of this one; a process that mapped one keeps its data.

        The one of ``count`` events stays: an old view has just built it.
        """
        for entity in entities:
            found = sorted(self._stored(entity), key=lambda s: (s.epoch == epoch, s.count))
            for stored in found:
                if stored.epoch != epoch or (stored not in found[-KEPT_INDEXES:] and stored.count != count):
                    shutil.rmtree(stored.folder, ignore_errors=True)


class Spill:
    """Columns of events by partition: in memory while they are few, else in flat files of one column and partition each."""

    def __init__(self, folder: Path, partitions: int, limit: int = SPILL) -> None:
        self.folder, self.partitions, self.limit = folder, partitions, limit
        self.rows = np.zeros(partitions, np.int64)
        self._kinds: dict[str, np.dtype[Any]] = {}
        self._held: list[dict[str, list[Array]]] = [{} for _ in range(partitions)]
        self._bytes = 0

    def add(self, codes: Array, time: Array, seq: Array, columns: Mapping[str, Array]) -> None:
        """Events in order of seq; those with code 0 (no entity) are left out, and a column that comes late was missing before."""
        order = np.flatnonzero(codes > 0)
        if self.partitions > 1:
            order = order[np.argsort((codes[order] % self.partitions).astype(np.uint16), kind="stable")]
        elif len(order) == len(codes):
            order = np.arange(0)
        arrays = {"code": (codes // self.partitions).astype(np.int32), "time": time, "seq": seq, **columns}
        counts = np.bincount(codes[codes > 0] % self.partitions, minlength=self.partitions)
        stops = np.cumsum(counts)
        for name, values in arrays.items():
            if name not in self._kinds:
                self._kinds[name] = values.dtype
                for number, rows in enumerate(self.rows.tolist()):
                    self._put(number, name, nothing(values.dtype, rows))
            picked = values[order] if len(order) else values
            for number, (start, stop) in enumerate(zip(stops - counts, stops)):
                self._put(number, name, picked[start:stop])
        for name in self._kinds.keys() - arrays.keys():
            for number, rows in enumerate(counts.tolist()):
                self._put(number, name, nothing(self._kinds[name], rows))
        self.rows += counts
        if self._bytes > self.limit:
            self._flush()

    def _put(self, number: int, name: str, values: Array) -> None:
        if len(values):
            self._held[number].setdefault(name, []).append(values)
            self._bytes += values.nbytes

    def _flush(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for number, held in enumerate(self._held):
            for name, parts in held.items():
                with self._path(number, name).open("ab") as file:
                    for values in parts:
                        file.write(np.ascontiguousarray(values).data.cast("B"))
        self._held = [{} for _ in range(self.partitions)]
        self._bytes = 0

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number}.{name}"

    def index(self, number: int) -> Index:
        """The events of one partition, sorted; asked for once, as what was spilled of it is removed."""
        columns = {name: self._take(number, name, kind) for name, kind in self._kinds.items()}
        codes = columns.pop("code", np.zeros(0, np.int32))
        time, seq = (columns.pop(name, np.zeros(0, np.int64)) for name in ("time", "seq"))
        return sort(codes, time, seq, columns, int(codes.max(initial=1)) + 1)

    def _take(self, number: int, name: str, kind: np.dtype[Any]) -> Array:
        parts = self._held[number].pop(name, [])
        path = self._path(number, name)
        if path.exists():
            parts.insert(0, np.fromfile(path, kind))
            path.unlink()
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, kind), *parts])
