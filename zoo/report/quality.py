"""Sections on how good the scores are: leaderboard, calibration, lift and gain, slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.evaluation.calibration import reliability
from zoo.evaluation.kept import TestScores
from zoo.plugin import Array
from zoo.report.charts import Series, curves, intervals
from zoo.report.markup import Markup, joined, table, tag
from zoo.report.run import LOWER, Run, interval, words

SHOWN = ("auc", "average_precision", "log_loss", "brier", "ece", "accuracy", "hr@10", "ndcg@10", "mrr@10", "coverage@10")
TRUE = {"ece": 0.0, "slope": 1.0, "intercept": 0.0}
"""What probabilities that are true have."""
POINTS = 101
RESAMPLES = 500
CLASSES = 4
"""Classes whose curves are drawn, the rarest first."""
FEW = 5
"""Instants of test rows up to which a page says that there are no more."""


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
    between = [[name, *(interval(line, each) for each in shown)] for name, line in run.lines.items()]
    every = tag("details", tag("summary", "95 % intervals of all"), table(["model", *map(words, shown)], between))
    return joined([tag("p", verdict(run)), plot, table(heads, rows), every, tag("p", _sure(run), class_="faint"), told])


def _sure(run: Run) -> str:
    """What intervals and tests of the leaderboard allow for, and what not."""
    tests = "p values allow for how many there are (Holm)" if run.record.get("comparisons") else "each test is at 95 % by itself"
    said = [
        "Intervals and tests are of 1,000 resamples that draw users as wholes, so that no p value is below 0.002; "
        f"{tests}. The best of the others is picked on these rows, which favours it."
    ]
    instants = 0 if run.scores is None else len(np.unique(run.scores.time))
    if 0 < instants <= FEW:
        many = "one instant" if instants == 1 else f"{instants} instants"
        said.append(f"All test rows stand at {many}: intervals do not tell how other instants differ.")
    return " ".join(said)


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
    series = [Series("as predicted", [0.0, 1.0], [0.0, 1.0], rule=True)]
    rows = []
    for name, scores in _drawn(run, kept, run.answer, run.record.get("best_member")).items():
        found = reliability(kept.target, scores, groups=kept.groups, resamples=RESAMPLES)
        x, rates = [each.score for each in found], [each.rate for each in found]
        y, low, high = ([float(getattr(rate, key)) for rate in rates] for key in ("value", "low", "high"))
        series.append(Series(name, x, y, low, high, line=False))
        rows += [(name, each.rows, each.score, each.rate.value, (each.rate.low, each.rate.high)) for each in found]
    what = "share of positives" if kept.kind.kind == "binary" else "share of rows where the likeliest class is right"
    caption = f"Reliability: {what} in ten bins of equal mass, with 95 % intervals over users; on the dashed line scores are true"
    line = run.lines.get(str(run.answer), {})
    facts = [(words(n), line.get(n), interval(line, n), best) for n, best in TRUE.items() if line.get(n) is not None]
    return joined(
        [
            tag("p", leaning(run)),
            curves("calibration", caption, series, "mean score", what, x_from=0.0, y_from=0.0),
            table(["", str(run.answer), "95 %", "of true scores"], facts) if facts else None,
            tag("p", _mapped(run), class_="faint"),
            tag("details", tag("summary", "Bins"), table(["model", "rows", "mean score", "observed", "95 %"], rows)),
        ]
    )


def _drawn(run: Run, kept: TestScores, *names: Any) -> dict[str, Array]:
    """Scores by what a legend calls them: the best member is the one before the test, perhaps not the one that is best on it."""
    best = run.record.get("best_member")
    return {
        f"{name} (the best member before the test)" if name == best else str(name): kept.scores[str(name)]
        for name in dict.fromkeys(names)
        if name in kept.scores
    }


def leaning(run: Run) -> str:
    """Which way scores are off on the test rows, beyond the intervals of intercept and slope; empty where a record has none."""
    line, kept = run.lines.get(str(run.answer), {}), run.scores
    level, slope, said = interval(line, "intercept"), interval(line, "slope"), []
    if level is not None:
        way = "too low" if level[0] > 0 else "too high" if level[1] < 0 else "neither too low nor too high"
        said.append(f"On the whole scores are {way}, beyond the interval of the intercept")
        if kept is not None and kept.kind.kind == "binary" and str(run.answer) in kept.scores:
            said[0] += f": they expect {kept.scores[str(run.answer)].sum():,.0f} positives, {kept.target.sum():,.0f} were seen"
    if slope is not None and not slope[0] <= 1 <= slope[1]:
        said.append(
            "They are " + ("too bold: the extreme ones too extreme" if slope[1] < 1 else "too timid: too near to each other")
        )
    error = interval(line, "ece")
    if error is not None and line["ece"] < error[0]:
        said.append(
            "The calibration error lies below its interval, as the noise of resamples adds to it: see intercept and slope"
        )
    return "".join(f"{each}. " for each in said).strip()


def _mapped(run: Run) -> str:
    """What maps the final model's scores to probabilities, and what it was chosen among."""
    found: Mapping[str, Any] = (run.record.get("final") or {}).get("calibration") or {}
    tried = ", ".join(f"{name} {loss:.4f}" for name, loss in (found.get("log_loss") or {}).items())
    return f"Calibration: {found['chosen']}{f', by log-loss on later training rows: {tried}' if tried else ''}." if found else ""


def gains(run: Run) -> Markup | None:
    """How many positives the highest scores hold, and the rate in each tenth."""
    kept = run.scores
    if kept is None or kept.kind.kind not in ("binary", "multiclass"):
        return None
    questions: list[tuple[str, Array, dict[str, Array]]] = []
    if kept.kind.width == 1:
        of_lines = _drawn(run, kept, run.answer, run.record.get("best_member"), "mean")
        questions = [("", kept.target, {name: each.reshape(len(kept.target)) for name, each in of_lines.items()})]
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
        plots.append(curves("lift", caption, dots, "tenth, highest scores first", "lift", y_from=0.0, whole=True))
        parts.append(tag("div", *plots, class_="plots"))
    return joined(parts) if parts else None


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
