"""Sections on what the stack is made of: weights over folds, cost against quality, importance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.report.charts import Series, bars, curves
from zoo.report.markup import Markup, joined, table, tag
from zoo.report.moved import scale_of
from zoo.report.run import Run, interval, words

LISTED = 15


def weights(run: Run) -> Markup | None:
    """How much each member moves the final model, fitted on more and more folds."""
    found: Mapping[str, Any] = run.record.get("weights") or {}
    if not found.get("shares"):
        return None
    x = [float(each) for each in range(1, len(found["rows"]) + 1)]
    series = [Series(name, x, shares) for name, shares in found["shares"].items()]
    caption = (
        "Share of the stack's movement by member, of the final model fitted on the first fold's scores, the first two, and so on"
    )
    plot = curves("weights", caption, series, "folds that the final model is fitted on", "share", y_from=0.0, whole=True)
    final: Mapping[str, Any] = run.record.get("final") or {}
    parts = [plot]
    if final.get("log_loss"):
        losses = sorted(final["log_loss"].items(), key=lambda each: float(each[1]))
        told = f"Final models on {final.get('rows', 0):,} later out-of-fold rows; chosen: {final['chosen']}"
        told += "." if losses[0][0] == final["chosen"] else ", which stays unless another is better beyond chance."
        parts += [tag("p", told), table(["final model", "log-loss"], losses)]
    if final.get("dropped"):
        parts.append(table(["member left out", "why"], list(final["dropped"].items())))
        if final.get("kept_log_loss") is not None:
            parts.append(tag("p", f"Log-loss of {final['chosen']} without them, on the same rows: {final['kept_log_loss']:.4f}."))
    return joined(parts)


def costs(run: Run) -> Markup | None:
    """Quality by what a member costs: milliseconds a row where measured, else seconds of fitting."""
    members: Mapping[str, Any] = run.record.get("members") or {}
    if not members or run.metric is None:
        return None
    by, label = ("ms", "milliseconds a row") if all("ms" in each for each in members.values()) else ("seconds", "seconds to fit")
    known = {name: each for name, each in members.items() if each.get(by) is not None and each.get(run.metric) is not None}
    series = []
    for name, each in known.items():
        low, high = interval(each, run.metric) or (float("nan"), float("nan"))
        series.append(Series(name, [float(each[by])], [float(each[run.metric])], [low], [high], line=False))
    caption = f"Cost against quality: {words(run.metric)} with its 95 % interval by {label}; {run.better}"
    caption += (
        ". A row's milliseconds and the seconds are of the machine that trained it, in calls of 256 rows" if by == "ms" else ""
    )
    rows = [(n, e.get(run.metric), e.get("ms"), e.get("mb"), e.get("seconds"), e.get("fold_seconds")) for n, e in members.items()]
    heads = ["member", words(run.metric), "ms a row", "MB", "seconds to fit", "seconds of all folds"]
    return joined([curves("costs", caption, series, label, words(run.metric), x_from=0.0), table(heads, rows)])


def importance(run: Run) -> Markup | None:
    found: Mapping[str, Any] = run.record.get("importance") or {}
    if not found:
        return None
    units = str(found.get("units", "log-odds or value"))  # records of before units were kept
    plots = [bars("importance-members", "Mean absolute move of the stack by member", list(found["members"].items()), units)]
    for name, each in found["features"].items():
        listed = list(each["columns"].items())[:LISTED]
        if not listed:
            plots.append(tag("p", f"{name}: {each['how']}.", class_="faint"))
            continue
        caption = f"{name}: mean absolute move of its raw score by column, over {each['rows']:,} test rows, by {each['how']}"
        plots.append(bars("importance", caption, listed, scale_of(each["how"], units)))
    return tag("div", *plots, class_="plots")
