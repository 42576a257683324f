"""What each feature is, as a loop over events: slow, and plain enough to be seen right. ``zoo.events.evaluate`` is held against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from zoo.events.specs import Condition, Feature, Where

SECOND = 1_000_000
Event = dict[str, Any]
"""``time`` (microseconds), ``seq``, ``event_type``, ``session`` (None: none) and columns; None where a value is missing."""


@dataclass(frozen=True)
class Step:
    """An event, or the events of a visit."""

    events: Sequence[Event]
    time: int


def visits(events: Sequence[Event], gap: int) -> list[int]:
    """The number of the visit that each event of an entity, in order, belongs to."""
    numbers: list[int] = []
    for at, event in enumerate(events):
        before = events[at - 1]
        if at == 0:
            numbers.append(0)
        elif event["session"] is None and before["session"] is None:
            numbers.append(numbers[-1] + (event["time"] - before["time"] > gap * SECOND))
        else:
            numbers.append(numbers[-1] + (event["session"] != before["session"]))
    return numbers


def passes(event: Event, where: Where) -> bool:
    types = [part for part in where if isinstance(part, str)]
    if types and event["event_type"] not in types:
        return False
    return all(satisfies(event[part.column], part) for part in where if isinstance(part, Condition))


def satisfies(value: Any, condition: Condition) -> bool:
    if value is None:
        return False
    wanted: Any = condition.value
    if condition.op == "==":
        return bool(value == wanted)
    if condition.op == "!=":
        return bool(value != wanted)
    if condition.op == "in":
        return value in wanted
    if condition.op == "<":
        return bool(value < wanted)
    if condition.op == "<=":
        return bool(value <= wanted)
    return bool(value > wanted if condition.op == ">" else value >= wanted)


class Oracle:
    """Features of one entity at t, given its events in any order."""

    def __init__(self, events: Sequence[Event], t: int, *, equal: bool = False, lag: int = 0, gap: int = 1800) -> None:
        seen = t - lag * SECOND
        ordered = sorted(events, key=lambda e: (e["time"], e["seq"]))
        self.past = [e for e in ordered if e["time"] < seen or (equal and e["time"] == seen)]
        self.visit = visits(self.past, gap)
        self.t = t

    def steps(self, where: Where, step: str) -> list[Step]:
        kept = [(e, visit) for e, visit in zip(self.past, self.visit) if passes(e, where)]
        if step == "event":
            return [Step([e], e["time"]) for e, _ in kept]
        out: list[Step] = []
        for number in sorted({visit for _, visit in kept}):
            inside = [e for e, visit in kept if visit == number]
            out.append(Step(inside, inside[0]["time"]))
        return out

    def __call__(self, f: Feature) -> Any:
        steps = self.steps(f.where, f.step)
        begin = -math.inf if f.window is None or f.kind == "decay" else self.t - f.window * SECOND
        window = [at for at, step in enumerate(steps) if step.time >= begin]
        value: Callable[[int], Any] = lambda at: self.value(steps, at, f)  # noqa: E731
        if f.kind == "last_n":
            return [value(at) for at in window[-f.n :]]
        if f.kind == "first_n":
            return [value(at) for at in window[: f.n]]
        if f.kind == "last_distinct_n":
            found: dict[Any, int] = {}
            for at in window:
                key = steps[at].events[0][f.by]
                if key is not None:
                    found[key] = at  # the newest stays
            return [value(at) for at in sorted(found.values())[-f.n :]]
        if f.kind == "count":
            return len(window)
        if f.kind == "recency":
            return (self.t - steps[-1].time) / SECOND if steps else None
        if f.kind == "tenure":
            return (self.t - steps[0].time) / SECOND if steps else None
        if f.kind == "last":
            return value(len(steps) - 1) if steps else None
        if f.kind in ("quiet", "survival"):
            return self.waiting(steps, window, f)
        if f.kind == "decay":
            weights = [0.5 ** ((self.t - steps[at].time) / SECOND / (f.window or 1)) for at in window]
            amounts = [value(at) if f.column or f.of != "first" else 1 for at in window]
            return math.fsum(w * a for w, a in zip(weights, amounts) if a is not None)
        if f.kind == "ratio":
            over = self.steps(f.over, f.step)
            above = self.amount(steps, f, begin) + f.smoothing * f.prior
            below = self.amount(over, f, begin) + f.smoothing
            return f.otherwise if below == 0 else above / below
        return self.reduced(f, [v for v in map(value, window) if v is not None])

    def reduced(self, f: Feature, values: list[Any]) -> Any:
        if f.kind == "distinct":
            return len(set(values))
        if f.kind == "sum":
            return summed(values)
        if not values:
            return None
        if f.kind == "mean":
            return summed(values) / len(values)
        if f.kind in ("min", "max"):
            return min(values) if f.kind == "min" else max(values)
        exact = [Fraction(v) for v in values]
        middle = sum(exact) / len(exact)
        return math.sqrt(sum((v - middle) ** 2 for v in exact) / len(exact))

    def amount(self, steps: list[Step], f: Feature, begin: float) -> float:
        inside = [at for at, step in enumerate(steps) if step.time >= begin]
        if not f.column and f.of == "first":
            return len(inside)
        return summed([v for v in (self.value(steps, at, f) for at in inside) if v is not None])

    def waiting(self, steps: list[Step], window: list[int], f: Feature) -> Any:
        assert f.horizon is not None
        waits = [self.wait(steps, at) for at in window]
        if f.kind == "quiet":
            return math.fsum(max(0.0, w - f.horizon) for w in waits) / math.fsum(waits) if math.fsum(waits) else None
        if not waits:
            return None
        longer = sum(w >= waits[-1] for w in waits[:-1])
        return (1 + sum(w >= waits[-1] + f.horizon for w in waits[:-1])) / (4 + longer)

    def wait(self, steps: list[Step], at: int) -> float:
        return ((steps[at + 1].time if at + 1 < len(steps) else self.t) - steps[at].time) / SECOND

    def value(self, steps: list[Step], at: int, f: Feature) -> Any:
        step = steps[at]
        if f.column == "age":
            return (self.t - step.time) / SECOND
        if f.column == "wait":
            return self.wait(steps, at)
        if f.column == "gap":
            return (step.time - steps[at - 1].time) / SECOND if at else None
        if f.of == "first":
            return step.events[0][f.column]
        if f.of == "last":
            return step.events[-1][f.column]
        if f.of == "count":
            return len(step.events)
        if f.of == "length":
            return (step.events[-1]["time"] - step.events[0]["time"]) / SECOND
        known = [e[f.column] for e in step.events if e[f.column] is not None]
        if f.of == "distinct":
            return len(set(known))
        if f.of == "sum":
            return summed(known)
        if not known:
            return None
        return max(known) if f.of == "max" else summed(known) / len(known)


def summed(values: Sequence[Any]) -> float:
    """Correctly rounded; of money in units of 1/10,000, as it is kept."""
    units = [round(v * 10_000) for v in values]
    if all(unit / 10_000 == v for unit, v in zip(units, values)):
        return sum(units) / 10_000
    return math.fsum(values)
