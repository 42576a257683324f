"""Churn: will a recently active user stay away for the whole label window, for several windows, or until when?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array, Examples, Target, Task
from zoo.errors import UsageError, choices
from zoo.events.index import FIXED, from_fixed
from zoo.tasks import btyd
from zoo.tasks.settings import MICROSECONDS, duration, instant, known, lasting, not_in_log

if TYPE_CHECKING:
    from zoo.events.view import LogView

NAME = "churn"
DAY = 86_400 * MICROSECONDS
DAYS = "days"
"""The context column of rows where there are several horizons: how far ahead a row asks, in days."""
DEFAULTS: Mapping[str, Any] = {
    "event_type": "purchase",
    "active": "56d",
    "horizon": "14d",
    "every": "14d",
    "start": None,
    "horizons": None,
    "hazard": False,
    "origins": 1,
    "value": None,
}
"""horizons: several in place of ``horizon``, a row each. hazard: a row asks of the time between its horizon and the one before, of users
who stayed away until then. origins: cuts tested on. value: the event column whose sum is what a user is worth."""


def examples(view: LogView, settings: Mapping[str, Any], start: int, end: int) -> Examples:
    """Rows (user, cut) at cuts ``start``, ``start + every``, ... before ``end``; (user, cut, days) where there are several horizons.

    A user is in where an event of ``event_type`` lies in [cut - active, cut); the target is 1 where none lies in
    [cut, cut + horizon). With ``hazard`` a row is left out where one lies before the horizon before its own: the product of a user's
    scores up to a horizon is then that of staying away so long. Times are microseconds UTC. Raises UsageError where the log has no
    such event type.
    """
    chosen, ahead = _chosen(settings), horizons(settings)
    users, times = _events(view, chosen)
    active, every = duration(chosen["active"]), duration(chosen["every"])
    size = int(users.max(initial=0)) + 1
    who, cuts, windows, targets = [], [], [], []
    for cut in range(start, end, every):
        here = np.flatnonzero(np.bincount(users[(times >= cut - active) & (times < cut)], minlength=size))
        later = (times >= cut) & (times < cut + ahead[-1])
        next_at = np.full(size, np.iinfo(np.int64).max)
        np.minimum.at(next_at, users[later], times[later])
        for before, until in zip((0, *ahead), ahead):
            asked = here[next_at[here] >= cut + before] if chosen["hazard"] else here
            who.append(asked)
            cuts.append(np.full(len(asked), cut, np.int64))
            windows.append(np.full(len(asked), until, np.int64))
            targets.append(next_at[asked] >= cut + until)
    codes = np.concatenate([*who, np.zeros(0, np.int64)]).astype(np.int32)
    time, far = (np.concatenate([*each, np.zeros(0, np.int64)]) for each in (cuts, windows))
    keys = {"user_id": np.asarray(view.log.dictionary("user_id").decode(codes))}
    if chosen["horizons"] is not None:
        keys[DAYS] = far / DAY
    return Examples(keys, time, np.concatenate([*targets, np.zeros(0, bool)]).astype(np.float64), time + far)


def horizons(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """How far rows look ahead, microseconds, ascending."""
    chosen = _chosen(settings)
    if chosen["horizons"] is None:
        return (duration(chosen["horizon"]),)
    return tuple(sorted({duration(each) for each in chosen["horizons"]}))


def window(settings: Mapping[str, Any]) -> int:
    """The longest label window, microseconds: so long before the test the last label of training is known."""
    return horizons(settings)[-1]


def span(settings: Mapping[str, Any]) -> int:
    """From the first test cut to just after the last, microseconds."""
    chosen = _chosen(settings)
    return (int(chosen["origins"]) - 1) * duration(chosen["every"]) + 1


def first(settings: Mapping[str, Any], view: LogView) -> int:
    """The first cut: ``start``, or where it is not set, one active window after the log's first event."""
    chosen = _chosen(settings)
    if chosen["start"] is not None:
        return instant(chosen["start"])
    begin = view.start()
    return 0 if begin is None else begin + duration(chosen["active"])


def contexts(settings: Mapping[str, Any]) -> Mapping[str, str]:
    # also of registered versions, whose settings are what they are
    return {} if known(NAME, settings, DEFAULTS)["horizons"] is None else {DAYS: "float64"}


def asked(settings: Mapping[str, Any]) -> Mapping[str, tuple[float, ...]]:
    """Every horizon in days, where there are several."""
    return {name: tuple(each / DAY for each in horizons(settings)) for name in contexts(settings)}


def baselines(view: LogView, settings: Mapping[str, Any], train: Examples, test: Examples) -> dict[str, Array]:  # noqa: ARG001
    """Buy-till-you-die models' probabilities of staying away, float64 (test rows,) each.

    Their parameters are fitted on every buyer before the first test cut, which needs no labels; the histories are those at each row's
    own cut. With ``hazard`` a probability is of the row's own stretch, as for any member.
    """
    users, times = _events(view, _chosen(settings))
    code = view.log.dictionary("user_id").encode(test.keys["user_id"].tolist())
    steps = np.array([0, *horizons(settings)])
    at = np.searchsorted(steps, _windows(settings, test))
    out = {name: np.zeros(len(test)) for name in btyd.MODELS}
    _, customers = btyd.histories(users, times, int(test.time.min()), DAY)
    fitted = {name: btyd.fit(model, customers) for name, model in btyd.MODELS.items()}
    for cut in np.unique(test.time).tolist():
        buyers, found = btyd.histories(users, times, cut, DAY)
        for step in np.unique(at[test.time == cut]).tolist():
            rows = np.flatnonzero((test.time == cut) & (at == step))
            own = found.take(np.searchsorted(buyers, code[rows]))
            for name, model in btyd.MODELS.items():
                until, before = (model.silent(fitted[name], own, steps[k] / DAY) for k in (step, step - 1))
                silent = until / np.maximum(before, 1e-12) if _chosen(settings)["hazard"] else until
                out[name][rows] = np.clip(silent, 0.0, 1.0)
    return out


def facts(view: LogView, settings: Mapping[str, Any], test: Examples, scores: Array) -> dict[str, Any]:
    """Value at risk, of the longest horizon's test rows, where the setting ``value`` names an event column.

    worth: what users spent a horizon on average in the active window before the cut, all of a cut together. expected, lost: of that, what
    scores expect and what those had who did stay away. Of several cuts it is the mean, as the same users stand at each.
    in_top_tenth: the share of what was lost that the tenth of greatest score times worth had.
    """
    chosen = _chosen(settings)
    if chosen["value"] is None:
        return {}
    ahead = window(settings)
    rows = np.flatnonzero(_windows(settings, test) == ahead)
    worth = _worth(view, chosen, test.take(rows)) * ahead / duration(chosen["active"])
    lost, risk = worth * test.target[rows], worth * scores[rows]
    top = np.argsort(-risk, kind="stable")[: max(1, len(rows) // 10)]
    total, cuts = float(lost.sum()), max(1, len(np.unique(test.time[rows])))
    return {
        "value_at_risk": {
            "column": chosen["value"],
            "horizon_days": ahead / DAY,
            "worth": float(worth.sum()) / cuts,
            "expected": float(risk.sum()) / cuts,
            "lost": total / cuts,
            "in_top_tenth": float(lost[top].sum()) / total if total else None,
        }
    }


def survival(hazards: Array) -> Array:
    """Probability (n, horizons) of staying away until each horizon, of scores (n, horizons) of a task with ``hazard``."""
    kept: Array = np.cumprod(hazards, axis=1)
    return kept


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings over the defaults. Raises UsageError for those that cannot be meant; ``first`` asks for them before any row is drawn."""
    chosen = known(NAME, settings, DEFAULTS)
    several, origins, hazard = chosen["horizons"], chosen["origins"], chosen["hazard"]
    if several is not None and (not isinstance(several, (list, tuple)) or not several):
        raise UsageError(f'[tasks.{NAME}] horizons is {several!r}; expected a list such as ["14d", "28d"]')
    for name in ("active", "horizon", "every"):
        lasting(NAME, name, chosen[name])
    for each in several or ():
        lasting(NAME, "a duration in horizons", each)
    if type(origins) is not int or origins < 1:
        raise UsageError(f"[tasks.{NAME}] origins is {origins!r}; expected a whole number of at least 1, of cuts tested on")
    if not isinstance(hazard, bool):
        raise UsageError(f"[tasks.{NAME}] hazard is {hazard!r}; expected true or false")
    if hazard and chosen["value"] is not None:
        raise UsageError(
            f"[tasks.{NAME}] value is {chosen['value']!r} with hazard = true; value at risk is of scores up to a horizon, and those of "
            "hazards are of stretches: leave out one of the two"
        )
    return chosen


def _windows(settings: Mapping[str, Any], rows: Examples) -> Array:
    """int64 (n,): how far each row looks ahead."""
    if DAYS not in rows.keys:
        return np.full(len(rows), window(settings))
    windows: Array = np.round(rows.keys[DAYS] * DAY).astype(np.int64)
    return windows


def _events(view: LogView, chosen: Mapping[str, Any], columns: tuple[str, ...] = ()) -> Any:
    types = view.event_types()
    if chosen["event_type"] not in types:
        raise not_in_log(NAME, chosen["event_type"], types)
    events = view.events(list(columns), [chosen["event_type"]])
    return (events.user_id, events.time, *(events.columns[name] for name in columns))


def _worth(view: LogView, chosen: Mapping[str, Any], rows: Examples) -> Array:
    """float64 (n,): the sum of the value column over each row's active window."""
    names = {*FIXED, *(name for name, kind in view.kinds("user_id").items() if kind == "<f8")}
    if chosen["value"] not in names:
        raise UsageError(choices("value in [tasks.churn]", chosen["value"], names))
    users, times, values = _events(view, chosen, (chosen["value"],))
    values = from_fixed(values) if chosen["value"] in FIXED else values
    code = view.log.dictionary("user_id").encode(rows.keys["user_id"].tolist())
    out = np.zeros(len(rows))
    for cut in np.unique(rows.time).tolist():
        inside = (times >= cut - duration(chosen["active"])) & (times < cut) & np.isfinite(values)
        spent = np.bincount(users[inside], values[inside], minlength=int(code.max(initial=0)) + 1)
        here = rows.time == cut
        out[here] = spent[code[here]]
    return out


TASK = Task(
    name=NAME,
    entities=("user_id",),
    target=Target("binary"),
    examples=examples,
    contexts=contexts,
    asked=asked,
    baselines=baselines,
    facts=facts,
    summary="will a recently active user have no purchase in the next days",
)
