"""Every dictionary of one log as they are kept: a small Delta table, and the codes that pushes in the tail brought."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.contract import UNKNOWN, Array
from zoo.events import delta
from zoo.events.dictionary import FEW, FIRST, Dictionary, Grown
from zoo.events.schema import ID_TYPES, IdType
from zoo.events.tail import Tail

SCHEMA = pa.schema([("dictionary", pa.string()), ("code", pa.int32()), ("text", pa.string()), ("number", pa.int64())])


class DictionaryStore:
    """Every dictionary of one log: a small Delta table, of which only files are read that were not read yet, and codes in the tail."""

    def __init__(self, folder: Path, tail: Tail | None = None) -> None:
        self.folder, self._tail = folder, tail
        self._table = delta.open_table(folder)
        self._mutex = threading.RLock()
        self._reset()

    def _reset(self) -> None:
        self._read: set[str] = set()
        self._held: dict[str, Dictionary] = {}
        self._kept: dict[str, int] = {}
        self._loaded = -1
        self._epoch = delta.transaction(self._table, delta.EPOCH)
        self._segment = 0

    @staticmethod
    def create(folder: Path) -> None:
        delta.create(folder, SCHEMA)

    def version(self) -> int:
        with self._mutex:
            self._refresh()
            return int(self._table.version())

    def names(self) -> list[str]:
        """Dictionaries that hold at least one identifier."""
        with self._mutex:
            self._refresh()
            return sorted(self._held)

    def get(self, name: str, kind: IdType) -> Dictionary:
        """The dictionary as it is at the moment; empty where nothing entered it yet."""
        return self.several({name: kind})[name]

    def several(self, kinds: Mapping[str, IdType]) -> dict[str, Dictionary]:
        """``get`` of several, by name, at one moment."""
        with self._mutex:
            self._refresh()
            return {name: self._get(name, kind) for name, kind in kinds.items()}

    def _get(self, name: str, kind: IdType) -> Dictionary:
        found = self._held.get(name)
        if found is None:
            return Dictionary(name, kind, Grown(pa.array([], ID_TYPES[kind])), FIRST)
        if found.kind != kind and found.values.null_count == len(found.values):  # every identifier was forgotten
            found = self._held[name] = Dictionary(name, kind, Grown(pa.nulls(len(found.values), ID_TYPES[kind])), found.size)
        return found

    def _refresh(self) -> None:
        # The tail first: codes that leave it meanwhile are in Delta then.
        given = []
        if self._tail is not None and self._tail.refresh():
            given = self._tail.given(self._segment)
        delta.refresh(self.folder, self._table)
        if self._loaded != self._table.version():
            self._load()
        for segment, name, code, value in given:
            held = self._held.get(name)
            if code == (held.size if held else FIRST):
                self._grow(name, [value])
            self._segment = segment

    def _load(self) -> None:
        if self._epoch != delta.transaction(self._table, delta.EPOCH):
            self._reset()
        files = [f for f in delta.data_files(self._table) if f.name not in self._read]
        found = delta.read(self.folder, files, SCHEMA, SCHEMA.names, packed=["dictionary"]).combine_chunks()
        names = found["dictionary"].combine_chunks()
        for index, name in enumerate(names.dictionary.to_pylist()):
            rows = found.filter(pc.equal(names.indices, index))
            if not len(rows):
                continue
            held = self._held.get(name)
            self._kept[name] = max(self._kept.get(name, FIRST), pc.max(rows["code"]).as_py() + 1)
            rows = rows.filter(pc.greater_equal(rows["code"], held.size if held else FIRST)).sort_by("code")
            column = "number" if rows["text"].null_count == len(rows) else "text"
            if len(rows):
                self._put(name, rows[column].combine_chunks())
        # Last, so that an interrupt half way is made good by the next call.
        self._read.update(f.name for f in files)
        self._loaded = int(self._table.version())

    def _put(self, name: str, values: pa.Array) -> None:
        """Add identifiers after those that are held."""
        held = self._held.get(name)
        if held is not None:
            self._grow(name, values.to_pylist())
            return
        kind: IdType = "int" if pa.types.is_integer(values.type) else "string"
        self._held[name] = Dictionary(name, kind, Grown(values), len(values) + FIRST)

    def _grow(self, name: str, values: list[Any]) -> None:
        held = self._held.get(name)
        if held is None:
            kind: IdType = "int" if isinstance(values[0], int) else "string"
            self._put(name, pa.array(values, ID_TYPES[kind]))
            return
        grown = held._grown
        if held.size - FIRST != len(grown.base) + len(grown.more) or len(values) > FEW:
            grown = Grown(held.values)
        if len(values) > FEW:
            grown = Grown(pa.concat_arrays([held.values, pa.array(values, ID_TYPES[held.kind])]))
        else:
            grown.more.extend(values)
        self._held[name] = Dictionary(name, held.kind, grown, held.size + len(values))

    def new(
        self, brought: Mapping[str, tuple[IdType, pa.Array | list[Any]]], given: dict[tuple[str, Any], int]
    ) -> list[tuple[str, int, Any]]:
        """(dictionary, code, identifier) of identifiers that have no code yet.

        brought: by dictionary their type and the identifiers, each once. given: codes that were given in the same step, by dictionary
        and identifier; those of this call are noted there.
        """
        out = []
        with self._mutex:
            self._refresh()
            for name, (kind, values) in brought.items():
                held = self._held.get(name)
                if held is None or held.kind != kind:
                    held = self.get(name, kind)
                codes = held.encode(values).tolist()
                if UNKNOWN not in codes:
                    continue
                size = held.size + sum(1 for other, _ in given if other == name)
                for code, value in zip(codes, values if isinstance(values, list) else values.to_pylist()):
                    if code == UNKNOWN and (name, value) not in given:
                        given[name, value] = size
                        out.append((name, size, value))
                        size += 1
        return out

    def settle(self, given: Sequence[tuple[str, int, Any]]) -> None:
        """Put codes from the tail into Delta, those that are not there, in one commit. The caller holds the writer lock."""
        if not given:  # who only copies need not know what there is
            return
        with self._mutex:
            self._refresh()
            parts = []
            for name in dict.fromkeys(name for name, _, _ in given):
                kept = self._kept.get(name, FIRST)
                rows = [(code, value) for other, code, value in given if other == name and code >= kept]
                if rows:
                    parts.append(_rows(name, [c for c, _ in rows], pa.array([v for _, v in rows])))
        self._commit(parts)

    def extend(self, new: Mapping[str, pa.Array]) -> int:
        """Give codes to identifiers that have none, in order of first appearance, in one commit; returns the version.

        new: identifiers by dictionary, nulls and repeats welcome. The caller holds the write lock, and the tail is empty.
        """
        with self._mutex:
            self._refresh()
            parts = []
            for name, values in new.items():
                held = self._held.get(name)
                values = pc.drop_null(values.unique())
                if held is not None:
                    values = values.filter(pa.array(held.encode(values) == UNKNOWN))
                if not len(values):
                    continue
                start = held.size if held else FIRST
                parts.append(_rows(name, range(start, start + len(values)), values))
            self._commit(parts)
            return int(self._table.version())

    def _commit(self, parts: list[pa.Table]) -> None:
        if not parts:
            return
        with delta.Writing(self.folder, SCHEMA) as writing:
            for part in parts:
                writing.add(part)
            # whoever reads goes on with a table of its own meanwhile
            table = delta.open_table(self.folder)
            writing.commit(table)
        self._merge(table)
        with self._mutex:
            self._refresh()

    def _merge(self, changed: Any) -> None:
        """Make one file of many small ones, so that opening the log stays quick after many pushes."""
        small = [f for f in delta.data_files(changed) if f.rows < delta.SMALL]
        if len(small) >= delta.MANY:
            table = delta.read(self.folder, small, SCHEMA, SCHEMA.names)
            with delta.Writing(self.folder, SCHEMA) as merged:
                merged.add(table.sort_by([("dictionary", "ascending"), ("code", "ascending")]))
                merged.commit(changed, removed=small)

    def forget(self, codes: Mapping[str, Array]) -> None:
        """Blank the identifiers of codes, by dictionary; the codes stay. One commit, and no older file stays.

        The caller holds the write lock.
        """
        with self._mutex:
            self._refresh()
            files = delta.data_files(self._table)
            table = delta.read(self.folder, files, SCHEMA, SCHEMA.names)
            hit = np.zeros(len(table), bool)
            for name, gone in codes.items():
                hit |= np.asarray(pc.equal(table["dictionary"], name)) & np.isin(np.asarray(table["code"]), gone)
            hit &= np.asarray(table["text"].is_valid()) | np.asarray(table["number"].is_valid())
            if hit.any():
                mask = pa.array(hit)
                blank = {n: pc.if_else(mask, pa.scalar(None, table[n].type), table[n]) for n in ("text", "number")}
                table = pa.table({"dictionary": table["dictionary"], "code": table["code"], **blank}, schema=SCHEMA)
                delta.rewrite(
                    self.folder, self._table, files, [table.sort_by([("dictionary", "ascending"), ("code", "ascending")])]
                )
            delta.vacuum(self.folder, self._table)
            self._reset()


def _rows(name: str, codes: Sequence[int], values: pa.Array) -> pa.Table:
    count = len(values)
    nothing = {"text": pa.nulls(count, pa.string()), "number": pa.nulls(count, pa.int64())}
    filled = {"number" if pa.types.is_integer(values.type) else "text": values}
    return pa.table(
        {"dictionary": pa.repeat(name, count), "code": pa.array(codes, pa.int32()), **nothing, **filled}, schema=SCHEMA
    )
