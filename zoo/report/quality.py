"""Sections on how good the scores are: leaderboard, calibration, lift and gain, uplift, slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.evaluation.calibration import reliability
from zoo.plugin import Array
from zoo.report.charts import Series, curves, intervals
from zoo.report.markup import Markup, joined, table, tag
from zoo.report.run import LOWER, Run, interval, words

SHOWN = ("auc", "average_precision", "log_loss", "brier", "ece", "accuracy", "hr@10", "ndcg@10", "mrr@10", "coverage@10")
POINTS = 101
RESAMPLES = 500
CLASSES = 4
"""Classes whose curves are drawn, the rarest first."""


def leaderboard(run: Run) -> Markup | None:
    if not run.lines or run.metric is None:
        return None
    metric = run.metric
    shown = [name for name in SHOWN if any(line.get(name) is not None for line in run.lines.values())]
    tested = list(dict.fromkeys(m for name in run.lines for m in run.tests(name)))
    rows = []
    for name, line in run.lines.items():
        tests = [each for m in tested for each in run.tests(name).get(m, (None, None, None))]
        rows.append([name, *(line.get(each) for each in shown), interval(line, metric), *tests, line.get("seconds")])
    apart = [head for m in tested for head in (f"{words(m)} less {run.answer}", "95 %", "p")]
    heads = ["model", *map(words, shown), f"95 % of {words(metric)}", *apart, "seconds to fit"]
    plot = intervals(
        "leaderboard",
        f"{words(metric)} on {run.record.get('test_rows', 0):,} test rows with 95 % intervals over users; {run.better}",
        [(name, line.get(metric), *(interval(line, metric) or (None, None))) for name, line in run.lines.items()],
        words(metric),
    )
    parts = [
        (part, name, *(line.get(each) for each in shown)) for part, lines in run.parts.items() for name, line in lines.items()
    ]
    told = table(["rows", "model", *map(words, shown)], parts) if parts else None
    return joined([tag("p", verdict(run)), plot, table(heads, rows), told])


def verdict(run: Run) -> str:
    """Whether the stack is worth having here: by the task's main metric, then what the others say."""
    members = {name: line for name, line in run.lines.items() if name not in ("mean", "stack")}
    metric = run.metric
    if run.answer is None or metric is None or len(members) < 2:
        return "One model only: there is no stack to compare it with."
    members = {name: line for name, line in members.items() if line.get(metric) is not None}
    if not members:
        return f"The test rows do not tell which model is best: {words(metric)} is not defined on them."
    best = max(members, key=lambda name: (-1.0 if metric in LOWER else 1.0) * float(members[name][metric]))
    said = [_said(run, best, each, found) for each, found in run.tests(best).items()]
    if metric not in run.tests(best):
        said.insert(
            0, f"The best single model on the test rows is {best}, by {words(metric)}, of which nothing tells the interval."
        )
    return " ".join(said)


def _said(run: Run, best: str, metric: str, found: tuple[float, tuple[float, float], float]) -> str:
    """A sentence on one paired difference, of its subject less the other; short where the metric is not the main one."""
    value, between, p = found  # of the best less the answer
    sign = -1.0 if metric in LOWER else 1.0
    low, high = sorted(sign * each for each in between)

    def what(way: float) -> str:
        first, last = sorted(way * each for each in between)
        return f"({words(metric)} {way * value:+.4f}, 95 % {first:+.4f} to {last:+.4f}, p {p:.3g})"

    best_first, answer_first = what(1.0), what(-1.0)
    if metric != run.metric:
        if low > 0:
            return f"By {words(metric)} {best} is better beyond the interval {best_first}."
        return (
            f"By {words(metric)} {f'the {run.answer}' if high < 0 else 'neither'} is better beyond the interval {answer_first}."
        )
    if low > 0:
        return f"{best} alone is better than the {run.answer} {best_first}: the simple model wins here."
    if high < 0:
        return f"The {run.answer} is better than {best}, the best of the others, beyond the interval {answer_first}."
    return f"The {run.answer} and {best}, the best of the others, do not differ beyond the interval {answer_first}."


def calibration(run: Run) -> Markup | None:
    """Observed rates by score; of several classes whether the likeliest is right, by its probability."""
    kept = run.scores
    if kept is None or kept.kind.kind not in ("binary", "multiclass"):
        return None
    names = [str(name) for name in dict.fromkeys((run.answer, run.record.get("best_member"))) if name in kept.scores]
    series = [Series("as predicted", [0.0, 1.0], [0.0, 1.0], rule=True)]
    rows = []
    for name in names:
        found = reliability(kept.target, kept.scores[name], groups=kept.groups, resamples=RESAMPLES)
        x, rates = [each.score for each in found], [each.rate for each in found]
        y, low, high = ([float(getattr(rate, key)) for rate in rates] for key in ("value", "low", "high"))
        series.append(Series(name, x, y, low, high, line=False))
        rows += [(name, each.rows, each.score, each.rate.value, (each.rate.low, each.rate.high)) for each in found]
    what = "share of positives" if kept.kind.kind == "binary" else "share of rows where the likeliest class is right"
    caption = f"Reliability: {what} in ten bins of equal mass, with 95 % intervals over users; on the dashed line scores are true"
    line = run.lines.get(str(run.answer), {})
    facts = [(words(n), line.get(n), interval(line, n)) for n in ("ece", "slope", "intercept") if line.get(n) is not None]
    return joined(
        [
            curves("calibration", caption, series, "mean score", what, x_from=0.0, y_from=0.0),
            table(["", str(run.answer), "95 %"], facts) if facts else None,
            tag("details", tag("summary", "Bins"), table(["model", "rows", "mean score", "observed", "95 %"], rows)),
        ]
    )


def gains(run: Run) -> Markup | None:
    """How many positives the highest scores hold, and the rate in each tenth."""
    kept = run.scores
    if kept is None or kept.kind.kind not in ("binary", "multiclass"):
        return None
    questions: list[tuple[str, Array, dict[str, Array]]] = []
    if kept.kind.width == 1:
        names = [name for name in dict.fromkeys((run.answer, run.record.get("best_member"), "mean")) if name in kept.scores]
        questions = [("", kept.target, {str(name): kept.scores[str(name)].reshape(len(kept.target)) for name in names})]
    elif run.answer in kept.scores:
        counts = np.bincount(kept.target.astype(np.int64), minlength=kept.kind.width)
        rare = [k for k in np.argsort(counts, kind="stable").tolist() if counts[k]][:CLASSES]
        questions = [
            (kept.kind.classes[k], (kept.target == k).astype(np.float64), {str(run.answer): kept.scores[str(run.answer)][:, k]})
            for k in rare
        ]
    parts = []
    for name, target, scores in questions:
        of = f" of {name}" if name else ""
        at = name or "positives"
        total = max(1.0, float(target.sum()))
        share = total / max(1, len(target))
        lines = [gain(target, score) for score in scores.values()]
        series = [Series(line, x, y, dots=False) for line, (x, y) in zip(scores, lines, strict=True)]
        series.append(Series("at random", [0.0, 1.0], [0.0, 1.0], rule=True))
        series.append(Series("perfect", [0.0, share, 1.0], [0.0, 1.0, 1.0], rule=True))
        caption = f"Gain{of}: the share of {at} among the rows of the highest scores; dashed: at random, and the perfect order"
        plots = [curves("gain", caption, series, "share of rows, best first", f"share of {at} found", x_from=0.0, y_from=0.0)]
        tenths = reliability(target, next(iter(scores.values())), groups=kept.groups, resamples=RESAMPLES)[::-1]
        lift = [[float(getattr(each.rate, key)) / share for each in tenths] for key in ("value", "low", "high")]
        tops = [float(at) for at in range(1, len(tenths) + 1)]
        caption = (
            f"Lift{of}: the rate in each tenth over the rate of all, for {next(iter(scores))}, with 95 % intervals over users"
        )
        dots = [
            Series("lift", tops, lift[0], lift[1], lift[2], line=False),
            Series("all", [1.0, float(len(tops))], [1.0, 1.0], rule=True),
        ]
        plots.append(curves("lift", caption, dots, "tenth, highest scores first", "lift", y_from=0.0))
        parts.append(tag("div", *plots, class_="plots"))
    return joined(parts) if parts else None


def uplift(run: Run) -> Markup | None:
    """Curves, Qini coefficients and policy values, where the record has them (``zoo uplift --record``)."""
    found: Mapping[str, Any] = run.record.get("uplift") or {}
    if not found:
        return None
    parts = [tag("p", f"Warning: {run.record['warning']}", class_="flag")] if run.record.get("warning") else []
    for arm, board in found.items():
        chosen, curve = board["chosen"], board["curve"]
        series = [
            Series(
                f"{chosen} (chosen)" if name == "chosen" else name,
                each["contacted"],
                each["gain"],
                dots=False,
                rule=name == "perfect",
            )
            for name, each in curve.items()
        ]
        end = curve["chosen"]
        series.append(Series("at random", [0.0, end["contacted"][-1]], [0.0, end["gain"][-1]], rule=True))
        caption = f"Qini curve of {arm}: outcomes more than without contact, by rows contacted in the order of uplift; dashed: at random"
        wanted = [each for each in series if each.name != "perfect"]
        parts += [tag("h3", arm), curves("uplift", caption, wanted, "rows contacted", "outcomes more", x_from=0.0)]
        rows = []
        for name, line in board["lines"].items():
            apart = line.get("difference") or {}
            between = tuple(apart["interval"]) if apart else None
            rows.append(
                (name, line["qini"]["value"], tuple(line["qini"]["interval"]), apart.get("value"), between, apart.get("p_value"))
            )
        parts.append(table(["model", "Qini", "95 %", f"less {chosen}", "95 %", "p"], rows))
    values = (run.record.get("policy") or {}).get("values") or {}
    if values:
        lines = [(name, each["value"]["value"], *each["value"]["interval"]) for name, each in values.items()]
        caption = "Value of policies on the test rows, a row, by inverse propensity with 95 % intervals"
        parts += [tag("h3", "Policies"), intervals("policies", caption, lines, "value a row")]
    return joined(parts)


def decisions(run: Run) -> Markup | None:
    """What acting by stated costs or a stated capacity does, where the task's settings say them."""
    found: Mapping[str, Any] = run.record.get("decisions") or {}
    rows = []
    for name, each in found.items():
        what = f"cost ratio {each['ratio']:g}" if name == "costs" else f"capacity {each.get('capacity')}"
        numbers = [each.get("threshold")]
        for metric in ("acted", "precision", "recall", "cost"):
            numbers += [each.get(metric), interval(each, metric)]
        rows.append([what, *numbers, each.get("nobody"), each.get("everybody")])
    heads = [
        "by",
        "threshold",
        "acted on",
        "95 %",
        "precision",
        "95 %",
        "recall",
        "95 %",
        "cost",
        "95 %",
        "cost of nobody",
        "of everybody",
    ]
    return table(heads, rows) if rows else None


def slices(run: Run) -> Markup | None:
    found: Mapping[str, Any] = run.record.get("slices") or {}
    if not found:
        return None
    flat = [_flat(name, line) for name, line in found.items() if line.get("rows")]
    flagged = [at for at, each in enumerate(flat) if each["worse"]]
    told = (
        "In none of them is one member better beyond the interval."
        if not flagged
        else "One member is better beyond the interval in: "
        + "; ".join(f"{flat[at]['name']} ({flat[at]['best']})" for at in flagged)
        + "."
    )
    metric = next((each["metric"] for each in flat), "")
    plot = intervals(
        "slices",
        f"{words(metric)} of the {run.answer} in each slice with 95 % intervals over users",
        [(each["name"], each["value"], *(each["interval"] or (None, None))) for each in flat if each["metric"] == metric],
        words(metric),
    )
    heads = [
        "slice",
        "rows",
        "metric",
        "value",
        "95 %",
        "base rate",
        "mean score",
        "AUC",
        "best member",
        f"{run.answer} less that",
        "95 %",
    ]
    rows = [
        [
            e["name"],
            e["rows"],
            words(e["metric"]),
            e["value"],
            e["interval"],
            e["base"],
            e["mean"],
            e["auc"],
            e["best"],
            e["apart"],
            e["between"],
        ]
        for e in flat
    ]
    note = "The best member is chosen on the same rows, which favours it; of forty slices without any difference one is flagged by chance."
    return joined([tag("p", told), plot, table(heads, rows, flagged), tag("p", note, class_="faint")])


def _flat(name: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """A slice's line; those of rankings hold their metrics by name."""
    metric = "value" if "value" in line else "ndcg@10"
    return {
        "name": name,
        "rows": line["rows"],
        "metric": line.get("metric", "ndcg@10"),
        "value": line.get(metric),
        "interval": interval(line, metric),
        "base": line.get("base_rate"),
        "mean": line.get("mean_score"),
        "auc": line.get("auc"),
        "best": line.get("best_member"),
        "apart": line.get("difference"),
        "between": interval(line, "difference"),
        "worse": bool(line.get("worse")),
    }


def gain(target: Array, score: Array) -> tuple[list[float], list[float]]:
    """Share of rows and share of positives among them, the highest scores first; rows of equal score come together."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True]) + 1
    found = np.cumsum(target[order])[ends - 1] / max(1.0, float(target.sum()))
    x = np.concatenate([[0.0], ends / max(1, len(target))])
    y = np.concatenate([[0.0], found])
    at = np.linspace(0, 1, POINTS)
    return at.tolist(), np.interp(at, x, y).tolist()
