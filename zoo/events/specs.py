"""Declarations of features over an event log: what to compute, over which events, for which entity. Values with a JSON form."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from zoo.errors import FeatureError

Kind = Literal["last_n", "count", "decay", "sum", "mean", "distinct", "recency", "tenure", "quiet", "survival", "last"]
Step = Literal["event", "visit"]
Of = Literal["first", "count", "sum", "distinct"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_KINDS = ("last_n", "count", "decay", "sum", "mean", "distinct", "recency", "tenure", "quiet", "survival", "last")


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


@dataclass(frozen=True)
class Feature:
    """One feature of an entity (or pair) as of an instant t, from its events before t.

    kind: ``decay`` the steps' number, each weighted by half for every ``window`` seconds of its age;
        ``last_n`` the newest n steps as a sequence, oldest first; ``count``, ``sum``, ``mean``, ``distinct`` over the window
        [t - window, t); ``recency`` seconds since the newest event (NaN where none); ``tenure`` since the first;
        ``quiet`` the share of the time since the first step in the window that was followed by ``horizon`` without a step;
        ``survival`` of the waits between steps that lasted as long as the present one, the share that lasted ``horizon`` longer
        ((k + 1) / (m + 4)); ``last`` the newest event's value.
    column: an event column; ``items.COLUMN`` is the item's attribute; ``gap`` seconds since the entity's previous step (NaN for
        its first), ``wait`` seconds until its next step or, for the newest, until t,
        ``age`` seconds before t, ``time``, ``day``, ``weekday`` (Monday 0), ``hour`` in the log's timezone.
    where: event types that count (empty: all). step: ``event``, or ``visit`` (one step a session, or where the log has none, a
        run without a pause over the aggregation's session gap). of: what a visit step holds.
    via: for pairs, the item column whose membership in the partner's set is asked (``item_id`` or ``items.COLUMN``).
    """

    name: str
    kind: Kind
    column: str = ""
    window: int | None = None
    n: int = 0
    where: tuple[str, ...] = ()
    step: Step = "event"
    of: Of = "first"
    horizon: int | None = None
    via: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise FeatureError(f"feature {self.name!r} has kind {self.kind!r}; choose one of {', '.join(_KINDS)}")
        if self.kind == "last_n" and self.n < 1:
            raise FeatureError(f"feature {self.name!r} asks for the last {self.n} steps; expected n of at least 1")
        if self.kind in ("quiet", "survival") and not self.horizon:
            raise FeatureError(f"feature {self.name!r} of kind {self.kind!r} names no horizon")
        if self.kind in ("last_n", "sum", "mean", "distinct", "last") and not self.column and self.of != "count":
            raise FeatureError(f"feature {self.name!r} of kind {self.kind!r} names no column")


def last_n(name: str, column: str, n: int, *, where: tuple[str, ...] = (), step: Step = "event", of: Of = "first") -> Feature:
    """The newest n steps of a column, oldest first. Columns with equal n, where and step are aligned."""
    return Feature(name, "last_n", column, n=n, where=where, step=step, of=of)


def count(name: str, window: str | None = None, *, where: tuple[str, ...] = (), step: Step = "event", via: str = "") -> Feature:
    """int64: events (or visits that began) in the window."""
    return Feature(name, "count", window=seconds(window), where=where, step=step, via=via)


def decayed(name: str, half_life: str, *, where: tuple[str, ...] = (), step: Step = "event") -> Feature:
    """float64: all events (or visits), each counting half as much for every half-life of its age."""
    return Feature(name, "decay", window=seconds(half_life), where=where, step=step)


def total(name: str, column: str, window: str | None = None, *, where: tuple[str, ...] = (), via: str = "") -> Feature:
    """float64: sum of a column over the window, exact where the column is fixed-point; missing values add nothing."""
    return Feature(name, "sum", column, window=seconds(window), where=where, via=via)


def mean(name: str, column: str, window: str | None = None, *, where: tuple[str, ...] = ()) -> Feature:
    """float64: mean of a column over the window's events that have it; NaN where none has."""
    return Feature(name, "mean", column, window=seconds(window), where=where)


def distinct(name: str, column: str, window: str | None = None, *, where: tuple[str, ...] = (), via: str = "") -> Feature:
    """int64: different values of a column in the window."""
    return Feature(name, "distinct", column, window=seconds(window), where=where, via=via)


def recency(name: str, *, where: tuple[str, ...] = (), via: str = "") -> Feature:
    """float64 seconds from the newest event to t; NaN where there is none."""
    return Feature(name, "recency", where=where, via=via)


def tenure(name: str, *, where: tuple[str, ...] = ()) -> Feature:
    """float64 seconds from the first event to t; NaN where there is none."""
    return Feature(name, "tenure", where=where)


def quiet(name: str, horizon: str, window: str | None = None, *, where: tuple[str, ...] = (), step: Step = "event") -> Feature:
    """float64 in 0..1: how often in the past (``window``) the entity was quiet for ``horizon``; NaN where there is no step."""
    return Feature(name, "quiet", window=seconds(window), where=where, step=step, horizon=seconds(horizon))


def survival(name: str, horizon: str, *, where: tuple[str, ...] = (), step: Step = "event") -> Feature:
    """float64 in 0..1: how likely, by the entity's own past, a wait this long is to last ``horizon`` longer; NaN without a step."""
    return Feature(name, "survival", where=where, step=step, horizon=seconds(horizon))


def last(name: str, column: str, *, where: tuple[str, ...] = ()) -> Feature:
    """The newest event's value of a column (code 0 or NaN where there is none)."""
    return Feature(name, "last", column, where=where)


@dataclass(frozen=True)
class Aggregation:
    """Features of one entity, or of a pair of entities.

    entity: ``("user_id",)``, ``("item_id",)`` or a pair such as ``("user_id", "campaign_id")``. A pair's events are the user's
        events whose item is in the partner's set (``members`` names the set table) or, without ``members``, the user's events
        that carry the partner's id.
    include_equal: False (the default) means strictly before t.
    session_gap: seconds of silence that end a visit where the log has no sessions.
    """

    entity: tuple[str, ...]
    features: tuple[Feature, ...]
    include_equal: bool = False
    session_gap: int = 1800
    members: str = ""

    def __post_init__(self) -> None:
        names = [f.name for f in self.features]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise FeatureError(f"feature {sorted(twice)[0]!r} is declared twice on {'/'.join(self.entity)}; names must differ")
        if not 1 <= len(self.entity) <= 2:
            raise FeatureError(f"an aggregation is of one entity or a pair; seen {self.entity!r}")

    def to_json(self) -> str:
        """Canonical text: equal declarations give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Aggregation:
        """The aggregation that ``to_json`` wrote."""
        raw: dict[str, Any] = json.loads(text)
        features = tuple(Feature(**{**f, "where": tuple(f["where"])}) for f in raw.pop("features"))
        return Aggregation(features=features, **{**raw, "entity": tuple(raw["entity"])})
