"""What moved single scores, drawn: members, columns of each, and events, one page for all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoo.report.charts import bars
from zoo.report.markup import Markup, joined, page, tag


def render(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]], said: Callable[[Mapping[str, Any]], str]) -> str:
    """A self-contained HTML page, as ``zoo.report.render`` makes it. rows: whom each is about, and ``Explanation.as_dict()``.

    said: an event's columns in words.
    """
    parts = [
        tag("section", tag("h2", _head(who, row)), _notes(row), tag("div", *_plots(row, said), class_="plots"))
        for who, row in rows
    ]
    return page(f"{title}: what moved scores", tag("h1", f"{title}: what moved scores"), *parts)


def scale_of(how: str, units: str) -> str:
    """What columns' amounts are in, by how they were weighed."""
    return "score before the softmax" if how.endswith("softmax") else units


def _head(who: str, row: Mapping[str, Any]) -> str:
    output = f", {row['output']}" if row["output"] else ""
    return f"{who}{output}: score {row['score']:.4f}"


def _notes(row: Mapping[str, Any]) -> Markup:
    """What the answer was made of, and where the members' bars begin and end."""
    said = [f"Raw score {row['raw']:+.3f} in {row['units']}; with every member at the base rate {row['base']:+.3f}."]
    if row["source"] != "fresh":
        said.append(f"The online store did not answer: this explains an answer of {row['source'].replace('_', ' ')} features.")
    if row["known"] is False:
        said.append("No event of this user before this time: this explains the answer to somebody new.")
    return joined(tag("p", each) for each in said)


def _plots(row: Mapping[str, Any], said: Callable[[Mapping[str, Any]], str]) -> list[Markup]:
    units = str(row["units"])
    out = [bars("moved-members", "Members: how much each moved the stack", list(row["members"].items()), units)]
    for name, columns in row["features"].items():
        how = row["how"][name]
        listed = [(each["column"], each["moved"]) for each in columns]
        out.append(bars("moved-columns", f"Columns of {name}, by {how}", listed, scale_of(how, units)))
    if row["events"]:
        listed = [(f"{each['back'] + 1}. {said(each['event'])}", each["moved"]["stack"]) for each in row["events"]]
        out.append(bars("moved-events", "Events, the newest first: how much the stack would be without each", listed, units))
    return out
