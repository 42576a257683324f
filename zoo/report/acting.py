"""Sections on acting by scores: decisions at stated costs or a stated capacity, whom a treatment changes, policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.report.charts import Series, curves, intervals
from zoo.report.markup import Markup, joined, said, table, tag
from zoo.report.run import Run, interval


def decisions(run: Run) -> Markup | None:
    """What acting by stated costs or a stated capacity does, where the task's settings say them."""
    found: Mapping[str, Any] = run.record.get("decisions") or {}
    if not found:
        return None
    rows = []
    for name, each in found.items():
        what = f"cost ratio {each['ratio']:g}" if name == "costs" else f"capacity {each.get('capacity')}"
        numbers = [each.get("threshold")]
        for metric in ("acted", "precision", "recall", "cost"):
            numbers += [each.get(metric), interval(each, metric)]
        rows.append([what, *numbers, each.get("nobody"), each.get("everybody")])
    shares = ["share acted on", "95 %", "precision", "95 %", "recall", "95 %"]
    heads = ["by", "act from", *shares, "cost a row", "95 %", "cost of nobody", "of everybody"]
    note = (
        "Of the test rows. Costs are in needless acts; a cost ratio is how many of them one missed positive costs. A capacity's threshold "
        "comes from held-out training rows, so the share of test rows acted on may be another."
    )
    return joined([table(heads, rows), tag("p", note, class_="faint")])


def uplift(run: Run) -> Markup | None:
    """Curves, Qini coefficients and policy values, where the record has them (``zoo uplift --record``)."""
    record = run.record
    found: Mapping[str, Any] = record.get("uplift") or {}
    if not found:
        return None
    parts = [tag("p", f"Warning: {record['warning']}", class_="flag")] if record.get("warning") else []
    told = (record.get("randomised") or {}).get("auc") or {}
    if told:
        by_arm = [f"{arm}: " + ", ".join(f"{n} {said(tuple(e['interval']))}" for n, e in by.items()) for arm, by in told.items()]
        parts.append(tag("p", f"AUC with which features tell who was treated, 95 % (by chance 0.5): {'; '.join(by_arm)}."))
    for arm, board in found.items():
        parts += _arm(record, arm, board)
    return joined([*parts, *_policies(record)])


def _arm(record: Mapping[str, Any], arm: str, board: Mapping[str, Any]) -> list[Markup]:
    chosen, curve = board["chosen"], board["curve"]
    parts = [tag("h3", arm)]
    if board.get("effect_interval"):
        parts.append(
            tag(
                "p",
                f"{record.get('outcome', 'outcome')} {board['effect']:+.4f} a row more than {next(iter(record['arms']))} (95 % "
                f"{said(tuple(board['effect_interval']))}), on {board['rows']:,} rows that took no part in choosing the order {chosen}.",
            )
        )
    end = curve["chosen"]
    series = [
        Series(f"{chosen} (chosen)", end["contacted"], end["gain"], dots=False),
        Series("at random", [0.0, end["contacted"][-1]], [0.0, end["gain"][-1]], rule=True),
    ]
    caption = (
        f"Qini curve of {arm}: outcomes more than without contact, by rows contacted in the order of uplift; dashed: at random"
    )
    parts.append(curves("uplift", caption, series, "rows contacted", "outcomes more", x_from=0.0))
    rows = [
        (name, line["qini"]["value"], tuple(line["qini"]["interval"]), *_apart(line)) for name, line in board["lines"].items()
    ]
    parts.append(table(["model", "Qini", "95 %", f"less {chosen}", "95 %", "p"], rows))
    return parts


def _policies(record: Mapping[str, Any]) -> list[Markup]:
    policy: Mapping[str, Any] = record.get("policy") or {}
    values: Mapping[str, Any] = policy.get("values") or {}
    if not values:
        return []
    lines = [(name, each["value"]["value"], *each["value"]["interval"]) for name, each in values.items()]
    caption = "Value of policies on the test rows, a row, by inverse propensity with 95 % intervals"
    rows = [
        (
            name,
            each.get("contacted"),
            each["value"]["value"],
            tuple(each["value"]["interval"]),
            *_apart(each),
            each.get("against"),
        )
        for name, each in values.items()
    ]
    note = "What a contact costs is not taken off."
    if policy.get("chosen"):
        note = f"The best arms are those by the effects of {policy['chosen']}. {note}"
    if policy.get("budget") is not None:
        note += f" The budget is {policy['budget']:,} contacts, {policy['share']:.1%} of the rows to decide on; the test's rows likewise."
    heads = ["policy", "rows contacted", "value a row", "95 %", "more", "95 %", "p", "than"]
    plot = intervals("policies", caption, lines, "value a row")
    return [tag("h3", "Policies"), plot, table(heads, rows), tag("p", note, class_="faint")]


def _apart(line: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    found = line.get("difference") or {}
    return found.get("value"), tuple(found["interval"]) if found else None, found.get("p_value")
