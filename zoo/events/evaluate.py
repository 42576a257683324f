"""Features of many rows at once from a sorted index: slices for sequences, position differences for counts, prefix sums.

Used alike for history (the whole log) and online (the requested entities' events), which is why the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from threading import RLock
from typing import Any

import numpy as np

from zoo.contract import Array, Column
from zoo.errors import FeatureError
from zoo.events.alone import answered
from zoo.events.filtered import Code, FilteredEvents
from zoo.events.index import NO_SESSION, Index
from zoo.events.reach import Reach, oldest, reach
from zoo.events.reductions import decay, quietness, reduced, share
from zoo.events.sequences import picked, sequence
from zoo.events.slices import AT_ONCE, MICROSECONDS, Slices, chunks, joined
from zoo.events.specs import CALENDAR, OF_STEPS, REDUCTIONS, SEQUENCES, Aggregation, Alike, Condition, Feature, Where
from zoo.events.steps import Steps, average, different, total

_NEEDS_TIME = ("recency", "tenure", "quiet", "survival", "decay")
_READS_FEW = ("last_n", "first_n", "count", "recency", "tenure", "last")
"""Kinds that look at a bounded number of a row's events; the memory of the others grows with the length of its slice."""
_LARGE = 1 << 20
"""Events of an index of which rows may ask for a small part only."""
_KEPT = 1 << 12
"""Rows up to which what they see is kept for the question after their features, how new it is."""
_LONG_AGO = np.int64(-1 << 62)
"""Microseconds from any t to an instant before every event."""
_PART = 4
"""That part: a quarter at most."""
_SLICED = 16
"""As ``_PART``, of rows' slices: they are gathered at every call, while what is derived from the whole index is kept for the next."""
_SAMPLE = 1 << 9
"""Rows that say whether all of them may ask for so little, before all are looked at."""


class Evaluator:
    """Evaluates aggregations over one index, sharing what features have in common (filtered events, prefixes)."""

    def __init__(self, index: Index, event_types: Mapping[str, int], code: Code | None = None) -> None:
        """event_types: name -> code, for the features' ``where``. code: finds texts and identifiers that conditions name."""
        self.index = index
        self.event_types = event_types
        self.code = code or _no_code
        self._events: dict[Where, FilteredEvents] = {}
        self._lock = RLock()
        self._seen: tuple[tuple[Any, ...], Array] = (None, None, None), np.zeros((2, 0), np.int64)

    def events(self, where: Where) -> FilteredEvents:
        found = self._events.get(where)
        if found is None:
            with self._lock:
                found = self._events.get(where)
                if found is None:
                    found = self._events[where] = FilteredEvents(self.index, where, self.event_types, self.code)
        return found

    def over(self, index: Index) -> Evaluator:
        """The same over other events."""
        return Evaluator(index, self.event_types, self.code)

    def held(self) -> int:
        """Bytes of what was derived from the index so far, and of the index where it is no file."""
        index = self.index
        arrays: list[Array | None] = [index.time, index.seq, *index.columns.values(), *list(index._derived.values())]
        arrays += [cells.begins for cells in index._table or () if cells is not None]
        for events in list(self._events.values()):
            arrays += [events.positions, *list(events._kept.values())]
        return sum(values.nbytes for values in arrays if values is not None and values.base is None)

    def evaluate(self, aggregation: Aggregation, codes: Array, times: Array) -> dict[str, Column]:
        """Columns of the aggregation's features for n rows.

        codes: int32 (n,) entity codes; times: int64 (n,) microseconds UTC. Features are built from events with time < t
        (<= t with ``include_equal``). Raises FeatureError where the log lacks a column or the times that a feature needs.
        """
        self.check(aggregation)
        if len(self.index) > _LARGE:
            slices = self._slices(aggregation, codes, times)
            if slices is not None:
                index = self.index.slices(*slices)
                small = self.over(index)
                return small._answer(aggregation, small._begun(aggregation, index.offsets[2:-1], index.offsets[3:], times), times)
            alone, own = self._few(codes)
            if alone is not None:
                return alone._answer(aggregation, alone._places(aggregation, own, times), times)
        return self._answer(aggregation, self._places(aggregation, codes, times), times)

    def alone(self, aggregation: Aggregation, times: Array) -> tuple[dict[str, Column], Array]:
        """(``evaluate``, ``newest``) of one row where all of the index is its entity's; times: int64 (1,)."""
        self.check(aggregation)
        time = self.index.time
        places = time.searchsorted(_ends_of_one(aggregation.windows, aggregation.lag, aggregation.include_equal) + times)
        stop = places.item(-1)
        newest = np.array([time.item(stop - 1) if stop else -1])
        return self._columns(aggregation, places[:, None], times), newest

    def _answer(self, aggregation: Aggregation, places: Array, times: Array) -> dict[str, Column]:
        if len(self.index) * len(times) <= AT_ONCE:
            return self._columns(aggregation, places, times)
        lengths = places[-1] - places[0]
        if lengths.sum() <= AT_ONCE or all(f.kind in _READS_FEW or self.by_running(f) for f in aggregation.features):
            return self._columns(aggregation, places, times)
        return joined([self._columns(aggregation, places[:, rows], times[rows]) for rows in chunks(lengths)])

    def _slices(self, aggregation: Aggregation, codes: Array, times: Array) -> tuple[Array, Array] | None:
        """int64 (n,) each: the slice of the index that decides each row, where all of them together are a small part of it.

        What features derive from columns then costs as much as the rows' windows do, however long the entities' histories are. None also
        for features whose reach is told by filtered events or visits: finding those looks at the whole index.
        """
        needed = reach(aggregation)
        if needed.window is None or needed.session_gap is not None or needed.before or any(needed.newest):
            return None
        step = max(len(codes) // _SAMPLE, 1)
        if step > 1 and self._wide(self._decisive(aggregation, needed, codes[::step], times[::step]), step):
            return None
        found = self._decisive(aggregation, needed, codes, times)
        return None if self._wide(found) else found

    def _wide(self, slices: tuple[Array, Array], step: int = 1) -> bool:
        """Whether slices, of which these are every ``step``-th, are together more than a small part of the index."""
        begin, stop = slices
        return int((stop - begin).sum()) * step * _SLICED > len(self.index)

    def _decisive(self, aggregation: Aggregation, needed: Reach, codes: Array, times: Array) -> tuple[Array, Array]:
        """int64 (n,) each: each row's first event that decides its features, and past the last that it sees."""
        low, high = self.index.bounds(codes)
        stop = self.index.search(low, high, aggregation.until(times), codes=codes)
        return oldest(self, needed, low, stop, times, codes), stop

    def _few(self, codes: Array) -> tuple[Evaluator | None, Array]:
        """(an evaluator over these entities' events alone, their codes there) where they are a small part of all.

        What features derive from columns then costs as much as the rows do, however large the log is.
        """
        offsets = self.index.offsets
        if len(codes) and codes[0] > 0 and codes[-1] < len(offsets) - 1 and (codes[1:] >= codes[:-1]).all():
            entities = codes[np.append(True, codes[1:] != codes[:-1])]
        else:
            entities = np.unique(codes[(codes > 0) & (codes < len(offsets) - 1)])
        if (offsets[entities + 1] - offsets[entities]).sum() * _PART > len(self.index):
            return None, codes
        own = np.zeros(len(offsets) - 1, np.int32)
        own[entities] = np.arange(2, len(entities) + 2)
        return self.over(self.index.events(entities)), own[np.where((codes > 0) & (codes < len(own)), codes, 0)]

    def _places(self, aggregation: Aggregation, codes: Array, times: Array) -> Array:
        """int64 (w + 1, n): where each of the aggregation's windows begins for each row, and past the last event that it sees."""
        asked, places = self._seen
        if asked[0] is aggregation and asked[1] is codes and asked[2] is times:
            return places
        if len(codes) == 1:
            ends = _ends_of_one(aggregation.windows, aggregation.lag, aggregation.include_equal)
            places = self.index.search_one(codes.item(0), ends + times)[:, None]
            self._seen = (aggregation, codes, times), places
            return places
        low, high = self.index.bounds(codes)
        if len(codes) > _KEPT:  # windows end where what is seen does, which leaves less to search
            stop = self.index.search(low, high, aggregation.until(times), codes=codes)
            return self._begun(aggregation, low, stop, times, codes)
        ends = _ends(aggregation.windows, aggregation.lag, aggregation.include_equal)
        places = np.empty((len(ends) + 1, len(codes)), np.int64)
        places[0], places[1:] = low, self.index.search(low, high, times + ends)
        self._seen = (aggregation, codes, times), places
        return places

    def _begun(self, aggregation: Aggregation, low: Array, stop: Array, times: Array, codes: Array | None = None) -> Array:
        """As ``_places``, for rows that see the events at positions ``low`` to ``stop``."""
        windows = aggregation.windows
        places = np.empty((len(windows) + 1, len(low)), np.int64)
        places[0], places[-1] = low, stop
        if len(windows) > 1:
            ends = _ends(windows, aggregation.lag, aggregation.include_equal)
            places[1:-1] = self.index.search(low, stop, times + ends[:-1], codes=codes)
        return places

    def seen(self, aggregation: Aggregation, codes: Array, times: Array) -> tuple[Array, Array]:
        """int64 (n,) each: the slice of the index that each row sees at its time."""
        asked, places = self._seen
        if asked[0] is aggregation and asked[1] is codes and asked[2] is times:
            return places[0], places[-1]
        low, high = self.index.bounds(codes)
        return low, self.index.search(low, high, aggregation.until(times))

    def newest(self, aggregation: Aggregation, codes: Array, times: Array) -> Array:
        """int64 (n,): time of the newest event that each row sees, -1 where it sees none."""
        return self.index.before(*self.seen(aggregation, codes, times))

    def columns(self, aggregation: Aggregation, low: Array, stop: Array, times: Array) -> dict[str, Column]:
        """Columns for rows that see the events at positions ``low`` to ``stop``."""
        return self._columns(aggregation, self._begun(aggregation, low, stop, times), times)

    def _columns(self, aggregation: Aggregation, places: Array, times: Array) -> dict[str, Column]:
        found: dict[str, Column] = {}
        groups = aggregation.alike
        if len(times) == 1:
            found, groups = answered(aggregation, self.events, places[:, 0], times.item(0)), aggregation.rest
        if groups:
            rows = _Rows(self, aggregation, places, times)
            for alike in groups:
                if self.by_running(alike.features[0]):
                    rows.differences(alike, found)
                else:
                    for f in alike.features:
                        found[f.name] = rows.column(f)
        return {f.name: found[f.name] for f in aggregation.features}

    def by_running(self, f: Feature) -> bool:
        """Whether a feature is a difference of running numbers, whatever its window holds: no event in it is looked at."""
        if f.kind == "count":
            return True
        if f.step == "visit" or f.kind not in ("sum", "mean", "distinct"):
            return False
        if f.kind == "distinct":
            return self.events(f.where).runs(f.column) is not None
        return f.column not in OF_STEPS and self.events(f.where).column(f.column).dtype.kind in "iub"

    def check(self, aggregation: Aggregation) -> None:
        """Refuse what this log cannot answer."""
        for f in aggregation.of_numbers:
            if self.index.dictionary(f.column):
                raise FeatureError(f"feature {f.name!r} is a {f.kind} of {f.column!r}, which holds names; expected numbers")
        if self.index.ordered_only:
            self._check_order(aggregation)

    def _check_order(self, aggregation: Aggregation) -> None:
        bad = [f.name for f in aggregation.features if self._needs_time(f)]
        if bad or aggregation.lag or aggregation.entity[0] != "user_id":
            what = f"features {', '.join(bad)}" if bad else f"the aggregation of {aggregation.entity[0]}"
            what = "an aggregation with a lag" if aggregation.lag else what
            raise FeatureError(
                f"{what} need times, but this log has only an order (clock=order): positions say what came first, not how "
                "long ago or what others did meanwhile; use sequences, counts, sums, means, extremes, ratios and distinct without a "
                "window on user_id, visits where every event has a session"
            )

    def _needs_time(self, f: Feature) -> bool:
        columns = [f.column, *(part.column for part in (*f.where, *f.over) if isinstance(part, Condition))]
        timed = f.window or f.kind in _NEEDS_TIME or f.of == "length" or any(c in (*OF_STEPS, *CALENDAR) for c in columns)
        return bool(timed) or (f.step == "visit" and not self._all_in_sessions())

    def _all_in_sessions(self) -> bool:
        sessions = self.index.columns.get("session")
        if sessions is None:
            return False
        return bool(self.index.keep("all in sessions", lambda: np.array((sessions != NO_SESSION).all())))


@lru_cache(maxsize=1024)
def _ends(windows: tuple[int | None, ...], lag: int, equal: bool) -> Array:
    """int64 (w, 1), ascending: microseconds from t to where all windows but the first, all history, begin, and to what is not seen."""
    return np.array([*(-window * MICROSECONDS for window in windows if window), equal - lag * MICROSECONDS], np.int64)[:, None]


@lru_cache(maxsize=1024)
def _ends_of_one(windows: tuple[int | None, ...], lag: int, equal: bool) -> Array:
    """int64 (w + 1,): the same, and before it an instant that no event is before."""
    return np.append(_LONG_AGO, _ends(windows, lag, equal)[:, 0])


def _no_code(dictionary: str, value: object) -> int:
    raise FeatureError(
        f"a condition names {value!r} of {dictionary}, but nothing here knows its codes; evaluate through a LogView"
    )


class _Rows:
    """One evaluation: where rows' windows begin and end, and what their features share.

    places: int64 (w + 1, n) as ``Evaluator._places`` gives them.
    """

    def __init__(self, evaluator: Evaluator, aggregation: Aggregation, places: Array, times: Array) -> None:
        self.evaluator, self.gap, self.places, self.times = evaluator, aggregation.session_gap, places, times
        self.windows = aggregation.windows
        self._ranked: dict[tuple[Where, str], Array] = {}
        self._steps: dict[tuple[Where, int | None, str], Steps] = {}
        self._picked: dict[Any, Steps] = {}
        self._windowed: dict[tuple[Where, str, int, int], Slices] = {}

    def _ranks(self, where: Where, step: str) -> Array:
        """int64 (w + 1, n): ``places`` among the steps that a filter leaves."""
        found = self._ranked.get((where, step))
        if found is None:
            events = self.evaluator.events(where)
            if step == "event":
                found = events.rank(self.places)
            else:
                found = np.searchsorted(events.visit_starts(self.gap), self._ranks(where, "event"))
            self._ranked[where, step] = found
        return found

    def differences(self, alike: Alike, found: dict[str, Column]) -> None:
        """Add features that differ in their windows only, and are differences of running numbers: all at once."""
        f, span = alike.features[0], alike.span
        events, key = self.evaluator.events(f.where), (f.where, f.step, span.start, span.stop)
        rows = self._windowed.get(key)
        if rows is None:  # counts, sums and means of the same windows share them
            ranks = self._ranks(f.where, f.step)
            self._windowed[key] = rows = Slices(ranks[span], ranks[-1])
        if f.kind == "count":
            values = rows.lengths
        elif f.kind == "distinct":
            values = different(f.column, events, rows)
        else:
            values = (total if f.kind == "sum" else average)(f.column, events, rows)
        for f, row in zip(alike.features, alike.rows):
            found[f.name] = Column(values[row])

    def steps(self, where: Where, window: int | None, step: str) -> Steps:
        key = (where, window, step)
        if key not in self._steps:
            ranks = self._ranks(where, step)
            first = ranks[0] if window is None else ranks[self.windows.index(window)]
            self._steps[key] = Steps(
                self.evaluator.events(where),
                Slices(first, ranks[-1]),
                ranks[0],
                ranks[-1],
                ranks[-1] if step == "event" else self._ranks(where, "event")[-1],
                self.times,
                self.gap if step == "visit" else None,
            )
        return self._steps[key]

    def column(self, f: Feature) -> Column:
        steps = self.steps(f.where, None if f.kind == "decay" else f.window, f.step)
        rows = steps.picked
        assert isinstance(rows, Slices)
        if f.kind in SEQUENCES:
            key = (f.kind, f.n, f.by or (f.column if f.kind == "last_distinct_n" else ""), f.where, f.window, f.step)
            shown = self._picked.get(key)
            if shown is None:  # aligned sequences share their steps
                self._picked[key] = shown = steps.picking(picked(f, steps))
            return sequence(f, shown)
        if f.kind == "distinct":
            return Column(different(f.column, steps.events, rows))
        if f.kind in ("recency", "tenure"):
            return Column(self._age(steps.events, rows, first=f.kind == "tenure"))
        if f.kind == "last":
            return self._last(f, steps.events, rows)
        if f.kind == "ratio":
            return Column(share(f, steps, self.steps(f.over, f.window, f.step)))
        make: Callable[[Feature, Steps], Array] = reduced if f.kind in REDUCTIONS else decay if f.kind == "decay" else quietness
        return Column(make(f, steps))

    def _age(self, events: FilteredEvents, rows: Slices, *, first: bool) -> Array:
        some = rows.lengths > 0
        age = np.full(len(rows), np.nan)
        at = (rows.start if first else rows.stop - 1)[some]
        age[some] = (self.times[some] - events.column("time")[at]) / MICROSECONDS
        return age

    def _last(self, f: Feature, events: FilteredEvents, rows: Slices) -> Column:
        values, dictionary = events.column(f.column), self.evaluator.index.dictionary(f.column)
        out = np.zeros(len(rows), np.int32) if dictionary else np.full(len(rows), np.nan)
        some = rows.lengths > 0
        out[some] = events.plain(f.column, values[rows.stop[some] - 1])
        return Column(out, dictionary=dictionary)
