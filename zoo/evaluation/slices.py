"""Where a stack is good and where it is not: its quality among rows that are alike, and whether one member would do better there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.evaluation.bootstrap import Estimate, difference_of_means, estimates_of_means, evaluate
from zoo.evaluation.classes import class_losses
from zoo.evaluation.ranking import ndcg, thirds
from zoo.plugin import PADDING, Array, Examples, Target

if TYPE_CHECKING:
    from zoo.events.view import LogView

LENGTHS = ((0, "no event"), (1, "1 event"), (5, "2 to 5 events"), (20, "6 to 20 events"), (None, "more than 20 events"))
RECENT = ((1, "within a day"), (7, "1 to 7 days ago"), (28, "7 to 28 days ago"), (None, "longer ago"))
TENURES = ((28, "up to 28 days"), (90, "28 to 90 days"), (365, "90 to 365 days"), (None, "longer"))
DAY = 86_400.0
CATEGORIES = 8
"""The most frequent ones are told apart."""
FEW, RESAMPLES, FEWER = 50_000, 500, 100
"""Resamples up to FEW test rows, and beyond."""
USERS = 10
"""Of fewer users no interval is drawn, and nothing is flagged: resamples of so few say too little."""
PARTS = ("head", "middle", "tail", "unseen")


def of_log(view: LogView, rows: Examples, train: Examples) -> dict[str, Array]:
    """Slice -> bool (n,), the rows in it, by what the log says of their users and items before each row's time; none is empty.

    ``history: ...`` by how many events the user has, ``newest event: ...`` and ``first event: ...`` by how long ago these are,
    ``category: ...`` and ``item: head``, ``middle``, ``tail``, ``unseen`` by the row's item, else the user's newest one (head items,
    the most popular, hold the first third of all events before the newest training row), ``user: new`` where no training row is of
    that user. Logs without times have no slices by time or popularity. train: the training rows.
    """
    from zoo.events.specs import Aggregation, count, last_distinct_n, recency, tenure

    out: dict[str, Array] = {}
    if "user_id" not in rows.keys or not view.count:
        return out
    timed = () if view.ordered_only else (recency("recency"), tenure("tenure"))
    asked = Aggregation(("user_id",), (count("n"), last_distinct_n("items", "item_id", 1), *timed))
    found = view.evaluate(asked, {"user_id": view.codes("user_id", rows.keys["user_id"])}, rows.time)
    lengths = found["n"].values
    out |= _ranges("history", lengths, LENGTHS)
    if timed:
        out["newest event: none"] = out["first event: none"] = lengths == 0
        out |= _ranges("newest event", found["recency"].values / DAY, RECENT)
        out |= _ranges("first event", found["tenure"].values / DAY, TENURES)
    items = found["items"].padded(1)[:, 0]
    if "item_id" in rows.keys:
        items = view.codes("item_id", rows.keys["item_id"])
    out |= _categories(view, items)
    if timed and len(train):
        codes = np.arange(view.size("item_id"), dtype=np.int32)
        times = np.full(len(codes), train.time.max())
        held = view.evaluate(Aggregation(("item_id",), (count("n"),)), {"item_id": codes}, times)["n"].values
        third = thirds(held.astype(np.float64))
        out |= {f"item: {part}": (items > PADDING) & (third[items] == at) for at, part in enumerate(PARTS)}
    new = ~np.isin(rows.keys["user_id"], train.keys["user_id"]) if "user_id" in train.keys else np.ones(len(rows), bool)
    out |= {"user: new": new, "user: known": ~new}
    return {name: chosen for name, chosen in out.items() if chosen.any()}


def _ranges(what: str, values: Array, edges: Sequence[tuple[int | None, str]]) -> dict[str, Array]:
    """Rows whose value is at most each edge and above the one before; missing values are in none."""
    bounds = np.array([np.inf if edge is None else edge for edge, _ in edges])
    which = np.where(np.isnan(values.astype(np.float64)), -1, np.searchsorted(bounds, values, side="left"))
    return {f"{what}: {name}": which == at for at, (_, name) in enumerate(edges)}


def _categories(view: LogView, items: Array) -> dict[str, Array]:
    if "items" not in view.tables():
        return {}
    columns = {name: column for name, column in view.block("items").items() if column.dictionary is not None}
    name = "category" if "category" in columns else next((each for each in columns if each != "title"), None)
    if name is None:
        return {}
    values = columns[name].values
    codes = np.where(items < len(values), values[np.minimum(items, len(values) - 1)], PADDING)
    texts = view.names(columns[name].dictionary or "")
    counts = np.bincount(codes, minlength=len(texts))
    counts[:2] = 0
    top = [code for code in np.argsort(-counts, kind="stable")[:CATEGORIES].tolist() if counts[code]]
    out = {f"{name}: {texts[code]}": codes == code for code in top}
    return out | {f"{name}: another": (codes >= 2) & ~np.isin(codes, top), f"{name}: none": codes < 2}


def by_slice(
    slices: Mapping[str, Array],
    target: Array,
    scores: Mapping[str, Array],
    members: Sequence[str],
    kind: Target,
    *,
    answer: str = "stack",
    groups: Array | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Slice -> what a training record says of it, JSON-ready.

    ``rows``, ``users``, ``metric``, its ``value`` of ``answer`` with ``value_interval``, the member that is best there, the
    ``difference`` between ``answer`` and that member with its interval, and ``worse``: that interval is wholly on the wrong side of 0.
    slices: as of ``of_log``. scores: by line, (n, k), or ranks (n,) of a ranking target. The metric is log-loss (of binary targets there
    are ``base_rate``, ``mean_score`` and ``auc`` besides), squared error of values, NDCG@10 of rankings. The best member is chosen on
    the same rows, which favours it, and of forty slices without any difference one is flagged by chance.
    """
    losses = {name: _quality(kind, target, scores[name]) for name in (*members, answer) if name in scores}
    if answer not in losses or any(each is None for each in losses.values()):
        return {}
    values = {name: each for name, each in losses.items() if each is not None}
    metric, larger = (
        ("ndcg@10", True) if kind.kind == "ranking" else ("squared_error" if kind.kind == "value" else "log_loss", False)
    )
    resamples = RESAMPLES if len(target) <= FEW else FEWER
    own = np.arange(len(target)) if groups is None else groups
    out: dict[str, dict[str, Any]] = {}
    for name, chosen in slices.items():
        at = np.flatnonzero(chosen)
        if not len(at):
            continue
        drawn: dict[str, Any] = {"groups": own[at], "resamples": resamples, "seed": seed}
        line: dict[str, Any] = {"rows": len(at), "users": len(np.unique(own[at])), "metric": metric}
        line |= as_dict(estimates_of_means({"value": values[answer][at]}, **drawn))
        if kind.kind == "binary":
            score = np.asarray(scores[answer], np.float64).reshape(len(target))[at]
            line |= {"base_rate": float(target[at].mean()), "mean_score": float(score.mean())}
            line |= as_dict(evaluate(target[at], score, metrics=["auc"], **drawn))
        if line["users"] < USERS:
            line |= {name: None for name in line if name.endswith("_interval")}
        out[name] = line | against_best({each: values[each][at] for each in members}, values[answer][at], metric, larger, drawn)
    return out


def against_best(
    members: Mapping[str, Array], answer: Array, metric: str, larger: bool, drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """The best member by the mean of its values (n,), and how the answer differs from it; larger: whether larger values are better."""
    if len(members) < 2:
        return {"best_member": next(iter(members), None), "difference": None, "worse": False}
    sign = -1.0 if larger else 1.0
    best = min(members, key=lambda name: sign * float(members[name].mean()))
    found = difference_of_means(metric, answer, members[best], **drawn)
    if len(np.unique(drawn["groups"])) < USERS:
        return {"best_member": best, "difference": found.value, "difference_interval": None, "worse": False}
    return {
        "best_member": best,
        **as_dict({"difference": Estimate(found.value, found.low, found.high)}),
        "worse": bool(min(sign * found.low, sign * found.high) > 0),
    }


def as_dict(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """A metric's value under its name, its interval under ``NAME_interval``; None where there is none."""
    out: dict[str, Any] = {}
    for name, each in estimates.items():
        out[name] = None if np.isnan(each.value) else float(each.value)
        out[f"{name}_interval"] = None if np.isnan(each.low) else [float(each.low), float(each.high)]
    return out


def _quality(kind: Target, target: Array, score: Array) -> Array | None:
    """float64 (n,), what each row adds to the metric; None for kinds that it is not said for."""
    if kind.kind == "ranking":
        return ndcg(score)
    if kind.kind == "value":
        gap: Array = (np.asarray(score, np.float64).reshape(len(target)) - target) ** 2
        return gap
    if kind.kind not in ("binary", "multiclass"):
        return None
    p = np.asarray(score, np.float64).reshape(len(target), -1)
    return class_losses(target, np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p)
