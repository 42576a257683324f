"""How far back an aggregation looks, and at which columns: what a store of recent events has to keep so that answers stay exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from typing import TYPE_CHECKING

import numpy as np

from zoo.contract import Array
from zoo.events.slices import MICROSECONDS
from zoo.events.specs import CALENDAR, OF_STEPS, Aggregation, Condition, Feature, Where

if TYPE_CHECKING:
    from zoo.events.evaluate import Evaluator

_NEWEST = ("last_n", "last", "recency")
"""Kinds that look at the newest few steps, whatever their window."""
_EVERYTHING = ("decay", "tenure", "survival")
"""Kinds that look at everything; the others look at their window."""


@dataclass(frozen=True)
class Reach:
    """Which of an entity's events decide its features at t. All of these together:

    window: seconds; every event with time >= t - window. 0: no window. None: all events, and nothing below matters.
    lag: seconds; ``newest`` and ``visits`` count among the events with time < t - lag (the younger ones are within the window).
    newest: filter -> n; the newest n events that pass it.
    visits: filter -> n; the newest n visits that hold an event that passes it, from their first event (of any type) on.
    before: filters of which one event (visit) more is needed, older than the window: a gap reaches back to it.
    session_gap: seconds; where some feature looks at visits, what is kept must begin where a visit begins. None: no visits.
    columns: the log's columns that are looked at, besides time and seq; one that the log lacks is to be passed over.

    ``|`` joins what two aggregations reach. As t grows the events that are needed move forward only.
    """

    columns: frozenset[str] = frozenset()
    newest: Mapping[Where, int] = field(default_factory=dict)
    visits: Mapping[Where, int] = field(default_factory=dict)
    before: frozenset[Where] = frozenset()
    window: int | None = 0
    lag: int = 0
    session_gap: int | None = None

    def __or__(self, other: Reach) -> Reach:
        gaps = [gap for gap in (self.session_gap, other.session_gap) if gap is not None]
        return Reach(
            self.columns | other.columns,
            _most(self.newest, other.newest),
            _most(self.visits, other.visits),
            self.before | other.before,
            None if self.window is None or other.window is None else max(self.window, other.window),
            max(self.lag, other.lag),
            max(gaps, default=None),  # what begins a visit by a longer pause begins one by a shorter pause, too
        )


def _most(first: Mapping[Where, int], second: Mapping[Where, int]) -> dict[Where, int]:
    return {where: max(first.get(where, 0), second.get(where, 0)) for where in {**first, **second}}


@lru_cache(maxsize=256)
def reach(aggregation: Aggregation) -> Reach:
    """What an aggregation looks at."""
    return reach_of([aggregation])


def reach_of(aggregations: Iterable[Aggregation]) -> Reach:
    """What several aggregations look at together."""
    known = list(aggregations)
    newest = Reach(newest={(): 1}) if known else Reach()  # every answer carries the time of the entity's newest event
    return reduce(Reach.__or__, (_one(a, f) for a in known for f in a.features), newest)


def _one(aggregation: Aggregation, f: Feature) -> Reach:
    pair = len(aggregation.entity) == 2
    visits, gaps = f.step == "visit", f.column == "gap"
    common = Reach(
        _columns(aggregation, f),
        window=aggregation.lag,
        lag=aggregation.lag,
        session_gap=aggregation.session_gap if visits else None,
    )
    if pair:  # a pair's newest event may lie anywhere among the entity's, and so may the one before its window
        window = None if f.kind in _EVERYTHING or visits or f.column in OF_STEPS else f.window
    elif f.kind in _NEWEST:
        number = max(f.n, 1) + gaps
        return replace(common, **{"visits" if visits else "newest": {f.where: number}})  # type: ignore[arg-type]
    else:
        window = None if f.kind in _EVERYTHING else f.window
    before = frozenset({f.where, f.over} if f.kind == "ratio" else {f.where}) if gaps else frozenset()
    return replace(common, window=None if window is None else max(window, aggregation.lag), before=before)


def _columns(aggregation: Aggregation, f: Feature) -> frozenset[str]:
    names = {f.column, f.by, f.via, "session" if f.step == "visit" else ""}
    for part in (*f.where, *f.over):
        names.add(part.column if isinstance(part, Condition) else "event_type")
    if len(aggregation.entity) == 2:  # a partner is named by a column or by an attribute of the item
        names |= {"item_id"} if aggregation.members else {"item_id", aggregation.entity[1]}
    return frozenset({"item_id" if name.startswith("items.") else name for name in names} - {*OF_STEPS, *CALENDAR, "", "time"})


def oldest(evaluator: Evaluator, reach: Reach, low: Array, stop: Array, times: Array, codes: Array | None = None) -> Array:
    """int64 (n,): first position of each row's events [low, stop) such that it and what follows suffice at t, and ever after.

    What lies before may be dropped, as long as no event older than those kept arrives later. codes: as for ``Index.search``.
    """
    if reach.window is None:
        return low
    begin = evaluator.index.search(low, stop, times - reach.window * MICROSECONDS, codes=codes) if reach.window else stop
    seen = evaluator.index.search(low, stop, times - reach.lag * MICROSECONDS, codes=codes) if reach.lag else stop
    out = begin
    for where, number in reach.newest.items():
        out = np.minimum(out, _newest(evaluator, where, number, low, seen))
    for where in reach.before:
        out = np.minimum(out, _newest(evaluator, where, 1, low, begin))
    if reach.session_gap is None:
        return out
    wanted = [*((where, number, seen) for where, number in reach.visits.items()), *((w, 1, begin) for w in reach.before)]
    for where, number, until in wanted:
        events = evaluator.events(where)
        starts = events.visit_starts(reach.session_gap)
        first, last = (np.searchsorted(starts, events.rank(at)) for at in (low, until))
        at = np.maximum(last - number, first)
        some = at < last
        out = out.copy()
        out[some] = np.minimum(out[some], events.position(starts[at[some]]))
    starts, some = evaluator.events(()).visit_starts(reach.session_gap), out < stop
    out = out.copy()
    out[some] = starts[np.searchsorted(starts, out[some], side="right") - 1]
    return out


def _newest(evaluator: Evaluator, where: Where, number: int, low: Array, stop: Array) -> Array:
    """Position of the number-th newest event that passes, or of the oldest that does; ``stop`` where none does."""
    events = evaluator.events(where)
    first, last = events.rank(low), events.rank(stop)
    at, out = np.maximum(last - number, first), stop.copy()
    some = at < last
    out[some] = events.position(at[some])
    return out
