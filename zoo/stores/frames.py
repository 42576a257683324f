"""One entity's recent events as bytes: frames one after another, each a few columns as narrow as their values allow.

Appending a frame is merging: reading takes the union of the frames by ``seq``, in order of (time, seq), column by column as asked. It is
long, as one value, many alike and any others are each read in the way that costs least.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

import numpy as np

from zoo.contract import Array
from zoo.errors import ArtefactError
from zoo.events.index import MISSING, Index
from zoo.events.slices import Slices

_PREFIX = struct.Struct("<4sIIIq8s")
"""Magic, bytes of the frame, events, bytes of the header, ``since``, a mark that tells this frame from any that replaces it."""
IDENTITY = _PREFIX.size
"""First bytes of a value that, with its length, tell whether it is the one that was read."""
MAGIC = b"zoe3"
_KINDS = {"<i4", "<i8", "<f8"}
_STORED = {*_KINDS, "<f4", "|u1", "<u2", "<u4"}
SCALES = (60_000_000, 1_000_000, 10_000, 1_000, 100)
"""Units in which times (minutes, seconds, milliseconds) and fixed-point money (whole, cents) are often whole."""
PREFIXES = np.dtype(
    [("magic", "S4"), ("size", "<u4"), ("count", "<u4"), ("header", "<u4"), ("since", "<i8"), ("mark", "V8")]
)  # as _PREFIX
_ONE_BY_ONE = 8
"""Values up to which looking at each costs less than at all of them together."""
_GROUPS = 8
"""Runs of frames of one layout that are decoded as they lie."""
_REBUILD = "Materialize again to rebuild them from the log"

ALWAYS = int(np.iinfo(np.int64).min)
"""``since`` of a frame from which nothing was dropped: answers are exact at every instant."""
_NO_SEQ = np.zeros(0, np.int64)
NEVER = int(np.iinfo(np.int64).max)
"""``since`` of events that lack some in their midst: the log answers until they are copied anew."""


@dataclass(frozen=True)
class _Column:
    """How a column lies in a frame: ``number`` events of ``width`` bytes from ``before`` bytes an event on.

    stored: dtype in the frame; kind: dtype of the column; scale: 0 as it is, else value = base + scale * stored; missing: whether
    a stored 0 is a missing value; number: which of the frame's bases is its.
    """

    stored: np.dtype[Any]
    kind: np.dtype[Any]
    scale: int
    missing: bool
    before: int
    number: int

    @cached_property
    def based(self) -> bool:
        """Whether values are kept as units above a base."""
        return self.scale > 0 and self.kind.str == "<i8"

    @cached_property
    def complete(self) -> bool:
        """Whether no value can be missing."""
        return self.based and not self.missing

    @cached_property
    def _unit(self) -> Array:
        return np.array(self.scale)  # an array, as numpy takes several times as long over a Python number

    def plain(self, stored: Array, base: Any) -> Array:
        """Values (m,) as they were, aligned. base: int64, one or one an event."""
        if not self.scale:
            return stored
        out = stored.astype(self.kind)
        if self.based:
            if self.scale != 1:
                out *= self._unit
            out += base
            if self.missing and not stored.all():
                out[stored == 0] = MISSING
        return out


@dataclass(frozen=True)
class _Layout:
    header: bytes
    columns: Mapping[str, _Column]
    kinds: Mapping[str, np.dtype[Any]]
    """Of the columns besides time and seq."""
    bases: struct.Struct
    width: int
    """Bytes an event."""


@lru_cache(maxsize=1024)
def layout_of(kinds: tuple[tuple[str, str, str, int, int], ...]) -> _Layout:
    """(name, stored, kind, scale, missing) of each column -> the layout, checked."""
    names = [name for name, *_ in kinds]
    if not {"time", "seq"} <= set(names) or len(set(names)) < len(names):
        raise ArtefactError(f"stored events have the columns {names}; expected time and seq among them. {_REBUILD}")
    columns, before = {}, 0
    for number, (name, stored, kind, scale, missing) in enumerate(kinds):
        if kind not in _KINDS or stored not in _STORED or not isinstance(scale, int) or not 0 <= scale <= SCALES[0]:
            raise ArtefactError(f"stored events hold a column of type {stored!r} as {kind!r}; expected another. {_REBUILD}")
        dtype = np.dtype(stored)
        columns[str(name)] = _Column(dtype, np.dtype(kind), scale, bool(missing), before, number)
        before += dtype.itemsize
    header = json.dumps(kinds, separators=(",", ":")).encode()
    own = {name: column.kind for name, column in columns.items() if name not in ("time", "seq")}
    return _Layout(header, columns, own, struct.Struct(f"<{len(columns)}q"), before)


@lru_cache(maxsize=1024)
def _parsed(header: bytes) -> _Layout:
    try:
        found = layout_of(tuple([tuple(column) for column in json.loads(header)]))
    except (ValueError, TypeError) as error:
        raise ArtefactError(f"stored events cannot be unpacked ({error}). {_REBUILD}") from error
    return replace(found, header=header)


_Frame = tuple[bytes, int, int, _Layout, bytes, int]
"""The value, where the frame's first column begins in it, events, layout, bases as bytes, since."""


def _frames(value: bytes) -> Iterator[_Frame]:
    """The frames of a value. Raises ArtefactError where it is torn or foreign."""
    at, end = 0, len(value)
    if not end:
        raise ArtefactError(f"stored events are empty; expected a frame that begins with {MAGIC!r}. {_REBUILD}")
    while at < end:
        if end - at < _PREFIX.size or value[at : at + 4] != MAGIC:
            raise ArtefactError(f"stored events begin with {value[at : at + 4]!r}; expected {MAGIC!r}. {_REBUILD}")
        _, size, count, header, since, _ = _PREFIX.unpack_from(value, at)
        bases = at + _PREFIX.size + header
        if at + size > end:
            raise ArtefactError(f"stored events end after {end - at} bytes; expected {size} by their prefix. {_REBUILD}")
        layout = _parsed(value[at + _PREFIX.size : bases])
        begin = bases + layout.bases.size
        if size != begin - at + count * layout.width:
            raise ArtefactError(f"stored events are {size} bytes; expected another number by their header. {_REBUILD}")
        yield value, begin, count, layout, value[bases:begin], since
        at += size


def _only(value: bytes) -> _Frame | None:
    """The frame of a value that is one, as most are; None for any other, torn and foreign ones included."""
    if len(value) < IDENTITY:
        return None
    magic, size, count, header, since, _ = _PREFIX.unpack_from(value)
    if magic != MAGIC or size != len(value):
        return None
    bases = IDENTITY + header
    layout = _parsed(value[IDENTITY:bases])
    begin = bases + layout.bases.size
    return (value, begin, count, layout, value[bases:begin], since) if size == begin + count * layout.width else None


def _nothing(kind: Any, count: int) -> Array:
    """Missing values of a column: code 0, MISSING or NaN."""
    dtype = np.dtype(kind)
    return np.full(count, {"i4": 0, "i8": MISSING}.get(dtype.str[1:], np.nan), dtype)


class _Group:
    """Frames of one layout: of each its value, where its first column begins in that, its events, and the bases of its columns."""

    def __init__(self, layout: _Layout, values: list[bytes], at: list[int], counts: list[int], bases: list[bytes]) -> None:
        self.layout, self.values, self.at, self.counts, self.bases = layout, values, at, counts, bases

    @classmethod
    def of(cls, frames: Sequence[_Frame]) -> _Group:
        """Frames of the first one's layout."""
        values, at, counts, _, bases, _ = zip(*frames)
        return cls(frames[0][3], list(values), list(at), list(counts), list(bases))

    def column(self, name: str, kind: Any) -> Array:
        """(m,): a column of all of them; missing, of the dtype ``kind``, where they lack it."""
        column = self.layout.columns.get(name)
        if column is None:
            return _nothing(kind, sum(self.counts))
        before, width = column.before, column.stored.itemsize
        if len(self.values) == 1:
            count = self.counts[0]
            begin = self.at[0] + count * before
            found = self.values[0][begin : begin + count * width]
        else:
            after = before + width
            each = zip(self.values, self.at, self.counts)
            found = b"".join([value[at + count * before : at + count * after] for value, at, count in each])
        return column.plain(np.frombuffer(found, column.stored), self._base(column) if column.based else 0)

    def _base(self, column: _Column) -> Any:
        """int64, one or one an event."""
        if len(self.bases) == 1 or len({*self.bases}) == 1:  # as those of frames that were packed together
            return np.array(self.layout.bases.unpack(self.bases[0])[column.number])
        table = np.frombuffer(b"".join(self.bases), "<i8").reshape(len(self.bases), -1)
        return np.repeat(table[:, column.number], self.counts)


class _Columns(Mapping[str, Array]):
    """Columns of frames, decoded when they are asked for.

    places: where each event lies in the columns of the groups one after another; None: they are in order.
    """

    def __init__(self, groups: list[_Group], kinds: Mapping[str, Any], places: Array | None = None) -> None:
        self._groups, self._places = groups, places
        self.order: Array | None = None
        """Positions of the events that count, in order; None: all as they lie."""
        self._kinds = kinds
        self._held: dict[str, Array] = {}

    def raw(self, name: str) -> Array:
        """A column as it lies in the frames. Raises KeyError where there is none of that name."""
        groups = self._groups
        if len(groups) == 1 and name in groups[0].layout.columns:
            return groups[0].column(name, None)
        kind = "<i8" if name in ("time", "seq") else self._kind(name)
        if kind is None:
            raise KeyError(name)
        parts = [group.column(name, kind) for group in self._groups]
        whole = np.concatenate(parts) if parts else _nothing(kind, 0)
        return whole if self._places is None else whole[self._places]

    def _kind(self, name: str) -> Any:
        """dtype of a column, None where there is none of that name."""
        return next((group.layout.kinds[name] for group in self._groups if name in group.layout.kinds), self._kinds.get(name))

    def __getitem__(self, name: str) -> Array:
        found = self._held.get(name)
        if found is None:
            found = self.raw(name)
            if self.order is not None:
                found = found[self.order]
            self._held[name] = found
        return found

    def complete(self, name: str) -> bool:
        """Whether the frames say of a column that every event has it."""
        for group in self._groups:
            column = group.layout.columns.get(name)
            if column is None or not column.complete:
                return False
        return True

    def __contains__(self, name: object) -> bool:
        return name in self._kinds or any(name in group.layout.kinds for group in self._groups)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._kinds, *(name for group in self._groups for name in group.layout.kinds)]))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _grouped(frames: Sequence[_Frame]) -> tuple[list[_Group], Array | None]:
    """(runs of frames of one layout, None), or, where those are many, (groups of them wherever they lie, ``_Columns.places``)."""
    if len(frames) == 1:
        return [_Group.of(frames)], None
    runs = [list(run) for _, run in groupby(frames, lambda frame: id(frame[3]))]
    if len(runs) <= _GROUPS:
        return [_Group.of(run) for run in runs], None
    groups: dict[int, list[_Frame]] = {}
    for frame in frames:
        groups.setdefault(id(frame[3]), []).append(frame)
    number = {key: n for n, key in enumerate(groups)}
    counts = np.array([frame[2] for frame in frames], np.int64)
    order = np.argsort([number[id(frame[3])] for frame in frames], kind="stable")
    start = np.zeros(len(frames), np.int64)
    start[order] = counts[order].cumsum() - counts[order]
    return [_Group.of(group) for group in groups.values()], Slices(start, start + counts).positions


def _alike(values: Sequence[bytes]) -> tuple[_Group, Array, Array] | None:
    """(the group of values that are one frame each, all of one layout, int64 (n,) each one's events and ``since``).

    None for any others, torn and foreign ones included: all are looked at together here, which pays where they are many.
    """
    if len(values[0]) < IDENTITY or values[0][:4] != MAGIC:
        return None
    header = _PREFIX.unpack_from(values[0])[3]
    bases = IDENTITY + header
    layout = _parsed(values[0][IDENTITY:bases])
    begin = bases + layout.bases.size
    heads = b"".join([value[:begin] for value in values])
    if len(heads) != begin * len(values):
        return None
    table = np.frombuffer(heads, np.uint8).reshape(len(values), begin)
    prefix = np.ascontiguousarray(table[:, :IDENTITY]).view(PREFIXES)[:, 0]
    counts = prefix["count"].astype(np.int64)
    alike = (prefix["magic"] == MAGIC) & (prefix["size"] == counts * layout.width + begin) & (prefix["header"] == header)
    if not alike.all() or (table[:, IDENTITY:bases] != table[0, IDENTITY:bases]).any():
        return None
    if prefix["size"].tolist() != [*map(len, values)]:
        return None
    own = [value[bases:begin] for value in values]
    return _Group(layout, list(values), [begin] * len(values), counts.tolist(), own), counts, prefix["since"].astype(np.int64)


def index_of(
    values: Sequence[bytes | None], kinds: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None
) -> tuple[Index, Array]:
    """(an index over entities with codes 2, 3, ... whose values these are, int64 (n,) since when each one's answers are exact).

    kinds: dtype by name of the columns that there are at least. facts: as ``LogView.facts``.
    """
    if len(values) == 1 and values[0] is not None and (only := _only(values[0])) is not None:
        value, begin, count, layout, bases, instant = only
        columns = _Columns([_Group(layout, [value], [begin], [count], [bases])], kinds or {})
        return _Recent(np.array([0, 0, 0, count]), columns.raw("time"), _NO_SEQ, columns, **(facts or {})), np.array([instant])
    there = [value for value in values if value is not None]
    alike = _alike(there) if len(there) > _ONE_BY_ONE else None
    if alike is not None:
        group, own, since = alike
        columns = _Columns([group], kinds or {})
        counts, exact = np.zeros(len(values) + 3, np.int64), np.full(len(values), ALWAYS)
        rows: Any = slice(None) if len(there) == len(values) else [n for n, value in enumerate(values) if value is not None]
        counts[3:][rows], exact[rows] = own, since
        return _Recent(counts.cumsum(), columns.raw("time"), _NO_SEQ, columns, **(facts or {})), exact
    return _index_of_any(values, kinds or {}, facts or {})


def _index_of_any(values: Sequence[bytes | None], kinds: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[Index, Array]:
    """``index_of`` of values of any frames, looked at one by one."""
    frames: list[_Frame] = []
    lengths, since, several = [0, 0, 0], [], False
    for value in values:
        if value is None:
            lengths.append(0)
            since.append(ALWAYS)
            continue
        only = _only(value)
        if only is not None:
            frames.append(only)
            lengths.append(only[2])
            since.append(only[5])
            continue
        first, *more = _frames(value)
        frames.append(first)
        if more:
            several = True
            frames += more
            lengths.append(first[2] + sum([frame[2] for frame in more]))
            since.append(max(first[5], *(frame[5] for frame in more)))
        else:
            lengths.append(first[2])
            since.append(first[5])
    groups, places = _grouped(frames)
    columns = _Columns(groups, kinds, places)
    time, counts, exact = columns.raw("time"), np.array(lengths, np.int64), np.array(since, np.int64)
    if several:
        time, counts = _united(columns, frames, time, counts, exact)
    return _Recent(counts.cumsum(), time, _NO_SEQ, columns, **facts), exact


class _Recent(Index):
    """An index whose ``seq``, which no feature reads, is decoded when it is asked for."""

    @property
    def seq(self) -> Array:
        assert isinstance(self.columns, _Columns)
        found = self.columns.raw("seq")
        return found if self.columns.order is None else found[self.columns.order]

    @seq.setter
    def seq(self, values: Array) -> None:
        pass

    def column(self, name: str) -> Array:
        if name == "time":
            return self.time
        try:
            return self.columns[name]
        except KeyError:
            return super().column(name)

    def complete(self, name: str) -> bool:
        return isinstance(self.columns, _Columns) and self.columns.complete(name)


def _united(columns: _Columns, frames: Sequence[_Frame], time: Array, counts: Array, exact: Array) -> tuple[Array, Array]:
    """Put events in order of (entity, time, seq), each once. Returns their time, and the entities' numbers of events.

    exact: set to NEVER where an event is older than those of a frame from which older ones were dropped.
    """
    seq, entity = columns.raw("seq"), np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    later = (time[1:] > time[:-1]) | ((time[1:] == time[:-1]) & (seq[1:] > seq[:-1])) | (entity[1:] != entity[:-1])
    if later.all():
        return time, counts
    order = np.lexsort((seq, time, entity))
    once = np.ones(len(order), bool)
    once[1:] = (np.diff(seq[order]) != 0) | (np.diff(entity[order]) != 0)
    order = order[once]
    columns.order = order
    counts = np.bincount(entity[order], minlength=len(counts))
    sorted_time, first, at = time[order], np.append(0, counts.cumsum()), 0
    for frame in frames:
        if frame[5] != ALWAYS and frame[2] and sorted_time[first[entity[at]]] < time[at]:
            exact[entity[at] - 3] = NEVER
        at += frame[2]
    return sorted_time, counts
