"""Declarations of features over an event log: what to compute, over which events, for which entity. Values with a JSON form.

Long because every aggregation is declared here once, with its options checked; the page docs/reference/features.md follows its order.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from zoo.errors import FeatureError

Kind = Literal[
    "last_n",
    "first_n",
    "last_distinct_n",
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "std",
    "distinct",
    "ratio",
    "decay",
    "recency",
    "tenure",
    "quiet",
    "survival",
    "last",
]
Step = Literal["event", "visit"]
Of = Literal["first", "last", "count", "sum", "mean", "max", "distinct", "length"]
Op = Literal["==", "!=", "<", "<=", ">", ">=", "in"]

SEQUENCES = ("last_n", "first_n", "last_distinct_n")
REDUCTIONS = ("sum", "mean", "min", "max", "std")
_NUMBERS = (*REDUCTIONS, "ratio", "decay")
OF_STEPS = ("gap", "wait", "age")
"""Columns that tell when a step was, seconds; of a visit, when it began."""
CALENDAR = ("day", "weekday", "hour")
_DIRECT = ("last_n", "count", "quiet", "survival", "recency", "tenure", "distinct")
_NAMELESS = ("count", "length")
"""What a visit holds that needs no column."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds(duration: str | int | None) -> int | None:
    """``"28d"`` -> 2419200; numbers are seconds; None means all history.

    Raises FeatureError for anything else; units are s, m, h, d, w.
    """
    if duration is None or isinstance(duration, int):
        return duration
    match = re.fullmatch(r"(\d+)([smhdw])", duration)
    if not match or int(match[1]) == 0:
        raise FeatureError(
            f"cannot read the duration {duration!r}; expected a positive number with a unit, such as 30m, 12h, 28d or 8w"
        )
    return int(match[1]) * _UNITS[match[2]]


Scalar = str | int | float


@dataclass(frozen=True)
class Condition:
    """What a column of an event must satisfy, for instance ``Condition("value", ">=", 5)``. A missing value satisfies nothing.

    column: an event column, ``items.COLUMN`` (as it was then), ``day``, ``weekday`` or ``hour``. op: ``==``, ``!=``, ``<``,
    ``<=``, ``>``, ``>=`` or ``in``. value: a number or a text (identifiers in the log's type); several for ``in``.
    """

    column: str
    op: Op
    value: Scalar | tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if self.op not in get_args(Op):
            raise FeatureError(
                f"a condition on {self.column!r} has the operator {self.op!r}; choose one of {', '.join(get_args(Op))}"
            )
        if self.column in (*OF_STEPS, ""):
            raise FeatureError(
                f"a condition cannot be on {self.column!r}, which depends on the other events; name a column of the event"
            )
        if (self.op == "in") != isinstance(self.value, tuple | list):
            raise FeatureError(f"a condition {self.column} {self.op} {self.value!r}; expected several values for 'in', else one")
        values = tuple(_plain(v) for v in self.values)
        if any(not isinstance(v, str | int | float) or (isinstance(v, float) and math.isnan(v)) for v in values):
            raise FeatureError(f"a condition on {self.column!r} compares with {self.value!r}; expected numbers or texts")
        if self.op in ("<", "<=", ">", ">=") and isinstance(values[0], str):
            raise FeatureError(f"a condition {self.column} {self.op} {self.value!r}; texts are compared by ==, != and in only")
        object.__setattr__(self, "value", values if self.op == "in" else values[0])

    @property
    def values(self) -> tuple[Any, ...]:
        return tuple(self.value) if isinstance(self.value, tuple | list) else (self.value,)


def _plain(value: Any) -> Any:
    """1, 1.0 and True as one and the same, so that equal conditions have equal text."""
    return (
        int(value) if isinstance(value, bool | float) and value == value and abs(value) < 2**53 and value == int(value) else value
    )


Where = tuple[str | Condition, ...]
"""Which events count: those of one of the event types named, that satisfy all of the conditions. Empty: all."""


@dataclass(frozen=True)
class Feature:
    """One feature of an entity (or pair) as of an instant t, from its events before t. ``docs/reference/features.md`` defines each.

    kind: a sequence (``last_n``, ``first_n``, ``last_distinct_n``), or one number or code.
    column: an event column; ``items.COLUMN`` is the item's attribute, as it was at the event; ``gap`` seconds since the entity's
        previous step (NaN for its first), ``wait`` seconds until its next step or, for the newest, until t, ``age`` seconds
        before t, ``time``, ``day``, ``weekday`` (Monday 0), ``hour`` in the log's timezone.
    window: seconds; steps that began in [t - window, t); None: all. For ``decay`` the half-life.
    where: which events count. step: ``event``, or ``visit`` (one step a session, or where the log has none, a run without a pause
        over the aggregation's session gap). of: what a visit step holds.
    by: for ``last_distinct_n``, the column whose different values count (empty: ``column`` itself).
    via: for pairs, the item column whose membership in the partner's set is asked (``item_id`` or ``items.COLUMN``).
    over, smoothing, prior, otherwise: of a ``ratio``, see there.
    """

    name: str
    kind: Kind
    column: str = ""
    window: int | None = None
    n: int = 0
    where: Where = ()
    step: Step = "event"
    of: Of = "first"
    horizon: int | None = None
    via: str = ""
    by: str = ""
    over: Where = ()
    smoothing: float = 0.0
    prior: float = 0.0
    otherwise: float | None = None

    def __post_init__(self) -> None:
        what = f"feature {self.name!r} of kind {self.kind!r}"
        for where in (self.where, self.over):
            if isinstance(where, str) or not all(isinstance(part, str | Condition) for part in where):
                raise FeatureError(
                    f"{what} counts the events {where!r}; expected a tuple of event types and conditions, such as ('view',)"
                )
        if self.kind not in get_args(Kind):
            raise FeatureError(f"feature {self.name!r} has kind {self.kind!r}; choose one of {', '.join(get_args(Kind))}")
        if self.of not in get_args(Of) or self.step not in get_args(Step):
            raise FeatureError(f"{what} has step {self.step!r} of {self.of!r}; choose {get_args(Step)} of {get_args(Of)}")
        if self.kind in SEQUENCES and self.n < 1:
            raise FeatureError(f"feature {self.name!r} asks for the last {self.n} steps; expected n of at least 1")
        if self.kind in ("quiet", "survival") and not self.horizon:
            raise FeatureError(f"{what} names no horizon")
        if self.kind in (*SEQUENCES, *REDUCTIONS, "distinct", "last") and not self.column and self.of not in _NAMELESS:
            raise FeatureError(f"{what} names no column")
        if self.step == "event" and self.of != "first":
            raise FeatureError(f"{what} asks for the {self.of!r} of an event; say step='visit', or leave it out")
        if self.column in OF_STEPS and self.of != "first":
            raise FeatureError(
                f"{what} asks for the {self.of!r} of {self.column!r}, which tells when a visit began; leave it out"
            )
        if self.step == "visit" and self.kind in ("last_distinct_n", "distinct", "recency", "tenure", "last"):
            raise FeatureError(f"{what} looks at events; leave step='visit' out")
        if self.kind in ("distinct", "last") and self.column in OF_STEPS:
            raise FeatureError(f"{what} cannot be of {self.column!r}; take last_n, mean or another number of it")
        if self.kind == "ratio" and (self.smoothing < 0 or not math.isfinite(self.prior)):
            raise FeatureError(f"{what} has smoothing {self.smoothing} and prior {self.prior}; expected at least 0 and a number")


def last_n(
    name: str,
    column: str,
    n: int,
    *,
    where: Where = (),
    step: Step = "event",
    of: Of = "first",
    max_age: str | None = None,
    via: str = "",
) -> Feature:
    """The newest n steps of a column, oldest first. Columns with equal n, where, step and max_age are aligned.

    max_age: steps older than this at t are left out.
    """
    return Feature(name, "last_n", column, seconds(max_age), n, where, step, of, via=via)


def first_n(
    name: str,
    column: str,
    n: int,
    *,
    where: Where = (),
    step: Step = "event",
    of: Of = "first",
    max_age: str | None = None,
    via: str = "",
) -> Feature:
    """The first n steps of a column (of those no older than max_age), oldest first; aligned as ``last_n``."""
    return Feature(name, "first_n", column, seconds(max_age), n, where, step, of, via=via)


def last_distinct_n(
    name: str, column: str, n: int, *, by: str = "", where: Where = (), max_age: str | None = None, via: str = ""
) -> Feature:
    """A column at the newest event of each of the newest n different values of ``by`` (empty: of the column), oldest first.

    Columns with equal n, by, where and max_age are aligned. Events without a value of ``by`` are left out.
    """
    return Feature(name, "last_distinct_n", column, seconds(max_age), n, where, via=via, by=by or column)


def count(name: str, window: str | None = None, *, where: Where = (), step: Step = "event", via: str = "") -> Feature:
    """int64: events (or visits that began) in the window."""
    return Feature(name, "count", window=seconds(window), where=where, step=step, via=via)


def decayed(
    name: str, half_life: str, column: str = "", *, where: Where = (), step: Step = "event", of: Of = "first", via: str = ""
) -> Feature:
    """float64: all events (or visits), or the sum of their column, each counting half as much for every half-life of its age."""
    return Feature(name, "decay", column, seconds(half_life), where=where, step=step, of=of, via=via)


def total(
    name: str, column: str, window: str | None = None, *, where: Where = (), step: Step = "event", of: Of = "first", via: str = ""
) -> Feature:
    """float64: sum of a column over the window, exact where the column is fixed-point; missing values add nothing."""
    return Feature(name, "sum", column, seconds(window), where=where, step=step, of=of, via=via)


def mean(
    name: str, column: str, window: str | None = None, *, where: Where = (), step: Step = "event", of: Of = "first", via: str = ""
) -> Feature:
    """float64: mean of a column over the window's steps that have it; NaN where none has."""
    return Feature(name, "mean", column, seconds(window), where=where, step=step, of=of, via=via)


def minimum(
    name: str, column: str, window: str | None = None, *, where: Where = (), step: Step = "event", of: Of = "first", via: str = ""
) -> Feature:
    """float64: smallest value of a column over the window's steps that have it; NaN where none has."""
    return Feature(name, "min", column, seconds(window), where=where, step=step, of=of, via=via)


def maximum(
    name: str, column: str, window: str | None = None, *, where: Where = (), step: Step = "event", of: Of = "first", via: str = ""
) -> Feature:
    """float64: greatest value of a column over the window's steps that have it; NaN where none has."""
    return Feature(name, "max", column, seconds(window), where=where, step=step, of=of, via=via)


def std(
    name: str, column: str, window: str | None = None, *, where: Where = (), step: Step = "event", of: Of = "first", via: str = ""
) -> Feature:
    """float64: population standard deviation over the window's steps that have the column (0 for one); NaN where none has."""
    return Feature(name, "std", column, seconds(window), where=where, step=step, of=of, via=via)


def distinct(name: str, column: str, window: str | None = None, *, where: Where = (), via: str = "") -> Feature:
    """int64: different values of a column in the window."""
    return Feature(name, "distinct", column, seconds(window), where=where, via=via)


def ratio(
    name: str,
    where: Where,
    over: Where = (),
    window: str | None = None,
    *,
    column: str = "",
    step: Step = "event",
    of: Of = "first",
    smoothing: float = 0.0,
    prior: float = 0.0,
    otherwise: float | None = None,
    via: str = "",
) -> Feature:
    """float64: (a + smoothing * prior) / (b + smoothing); a and b count the window's steps that pass ``where`` and ``over``.

    column: a and b are sums of it instead. otherwise: the answer where the denominator is 0 (None: NaN).
    """
    return Feature(
        name, "ratio", column, seconds(window), 0, where, step, of, None, via, "", over, float(smoothing), float(prior), otherwise
    )


def recency(name: str, *, where: Where = (), via: str = "") -> Feature:
    """float64 seconds from the newest event to t; NaN where there is none."""
    return Feature(name, "recency", where=where, via=via)


def tenure(name: str, *, where: Where = (), via: str = "") -> Feature:
    """float64 seconds from the first event to t; NaN where there is none."""
    return Feature(name, "tenure", where=where, via=via)


def quiet(
    name: str, horizon: str, window: str | None = None, *, where: Where = (), step: Step = "event", via: str = ""
) -> Feature:
    """float64 in 0..1: how often in the past (``window``) the entity was quiet for ``horizon``; NaN where there is no step."""
    return Feature(name, "quiet", window=seconds(window), where=where, step=step, horizon=seconds(horizon), via=via)


def survival(name: str, horizon: str, *, where: Where = (), step: Step = "event", via: str = "") -> Feature:
    """float64 in 0..1: how likely, by the entity's own past, a wait this long is to last ``horizon`` longer; NaN without a step."""
    return Feature(name, "survival", where=where, step=step, horizon=seconds(horizon), via=via)


def last(name: str, column: str, *, where: Where = (), via: str = "") -> Feature:
    """The newest event's value of a column (code 0 or NaN where there is none)."""
    return Feature(name, "last", column, where=where, via=via)


def _direct(f: Feature) -> bool:
    """Whether ``zoo.events.alone`` has a feature."""
    if f.kind == "decay":
        return not f.column and f.of == "first"
    if f.kind in ("sum", "mean"):
        return f.step == "event" and f.column not in (*OF_STEPS, *CALENDAR) and not f.column.startswith("items.")
    return f.kind in _DIRECT


class Alike(NamedTuple):
    """Features that differ in name and window only.

    span: of the aggregation's ``windows``, those from the first that a feature has to the last. rows: each feature's among them.
    """

    features: tuple[Feature, ...]
    names: tuple[str, ...]
    span: slice
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Aggregation:
    """Features of one entity, or of a pair of entities.

    entity: ``("user_id",)``, ``("item_id",)`` or a pair such as ``("user_id", "campaign_id")`` or ``("user_id", "category")``. A
        pair's events are the user's events whose item is in the partner's set (``members`` names the set table) or, without
        ``members``, the user's events that carry the partner's id, in a column of that name or as an attribute of the item.
    include_equal: False (the default) means strictly before t.
    session_gap: seconds of silence that end a visit where the log has no sessions.
    lag: seconds after its time that an event is known: features at t see events with time < t - lag; ages, windows and
        waits are measured from t all the same.
    """

    entity: tuple[str, ...]
    features: tuple[Feature, ...]
    include_equal: bool = False
    session_gap: int = 1800
    members: str = ""
    lag: int = 0

    def __post_init__(self) -> None:
        names = [f.name for f in self.features]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise FeatureError(f"feature {sorted(twice)[0]!r} is declared twice on {'/'.join(self.entity)}; names must differ")
        if not 1 <= len(self.entity) <= 2:
            raise FeatureError(f"an aggregation is of one entity or a pair; seen {self.entity!r}")
        if self.lag < 0:
            raise FeatureError(f"an aggregation has a lag of {self.lag} seconds; expected 0 or more")
        blind = [f.name for f in self.features if f.window is not None and f.window <= self.lag and f.kind != "decay"]
        if blind:
            raise FeatureError(f"feature {blind[0]!r} has a window within the lag of {self.lag} seconds and would see nothing")

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """The windows that features look back over, each once, longest first; the first is None, all history."""
        spans = {f.window for f in self.features if f.window is not None and f.kind != "decay"}
        return (None, *sorted(spans, reverse=True))

    @cached_property
    def alike(self) -> tuple[Alike, ...]:
        """The features, those together that differ in name and window only."""
        groups: dict[Feature, list[Feature]] = {}
        for f in self.features:
            groups.setdefault(replace(f, name="", window=f.window if f.kind == "decay" else None), []).append(f)
        out = []
        for group in groups.values():
            places = [0 if f.kind == "decay" else self.windows.index(f.window) for f in group]
            first, last = min(places), max(places)
            rows = tuple([place - first for place in places])
            out.append(Alike(tuple(group), tuple([f.name for f in group]), slice(first, last + 1), rows))
        return tuple(out)

    @cached_property
    def direct(self) -> tuple[tuple[Where, tuple[Alike, ...]], ...]:
        """By filter the features, as in ``alike``, that ``zoo.events.alone`` has for one row."""
        out: dict[Where, list[Alike]] = {}
        for each in self.alike if len(self.entity) == 1 else ():
            f = each.features[0]
            if _direct(f):
                out.setdefault(f.where, []).append(each)
        return tuple([(where, tuple(each)) for where, each in out.items()])

    @cached_property
    def rest(self) -> tuple[Alike, ...]:
        """The others of ``alike``."""
        direct = {each.names for _, groups in self.direct for each in groups}
        return tuple([each for each in self.alike if each.names not in direct])

    @cached_property
    def of_numbers(self) -> tuple[Feature, ...]:
        """A feature of each column that has to hold numbers."""
        asked = [f for f in self.features if f.kind in _NUMBERS and f.of not in ("count", "length", "distinct")]
        return tuple({f.column: f for f in reversed(asked)}.values())

    def until(self, times: Any) -> Any:
        """The instant, microseconds, before which events are seen at t (int64, or an array of them)."""
        return times - self.lag * 1_000_000 + int(self.include_equal)

    def to_json(self) -> str:
        """Canonical text: equal declarations give equal text."""
        raw = asdict(self)
        for part in (raw, *raw["features"]):
            for name, default in _LATER.items():
                if name in part and part[name] == default:
                    del part[name]
        return json.dumps(raw, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Aggregation:
        """The aggregation that ``to_json`` wrote."""
        raw: dict[str, Any] = json.loads(text)
        features = tuple(Feature(**{**f, **{k: _where(f[k]) for k in ("where", "over") if k in f}}) for f in raw.pop("features"))
        return Aggregation(features=features, **{**raw, "entity": tuple(raw["entity"])})


# left out of the text where they are not used, so that a declaration's text stays the same as kinds and options are added
_LATER: dict[str, Any] = {"by": "", "over": (), "smoothing": 0.0, "prior": 0.0, "otherwise": None, "lag": 0}


def _where(raw: list[Any]) -> Where:
    return tuple(Condition(**part) if isinstance(part, dict) else part for part in raw)
