"""Sections on what was looked at: data, drift, guards against leaks, and how to make the version again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zoo.evaluation.drift import LISTED as KEPT
from zoo.report.charts import bars
from zoo.report.markup import Markup, joined, table, tag
from zoo.report.run import Run

LISTED = 20
MUCH = 0.25
LOG = {
    "log": "version of its table",
    "tail": "events not in the table yet",
    "epoch": "times it was rewritten to forget",
    "dictionaries": "version of its dictionaries",
    "tables": "versions of tables beside it",
}
"""What parts of a log's lineage are."""


def data(run: Run) -> Markup | None:
    record = run.record
    facts: list[tuple[str, Any]] = [("training rows", record.get("rows")), ("test rows", record.get("test_rows"))]
    for name in ("train", "test"):
        if record.get(name):
            facts.append((f"{name} rows stand at", tuple(str(each) for each in record[name])))
    facts += list((record.get("data") or {}).items())
    if record.get("base_rate") is not None:
        facts.append(("share of positives in the test", record["base_rate"]))
    facts += [(f"share of {name} in the test", share) for name, share in (record.get("classes") or {}).items()]
    for name, each in (record.get("facts") or {}).items():
        several = each.items() if isinstance(each, Mapping) else [("", each)]
        facts += [(f"{name}: {part}".rstrip(": ").replace("_", " "), value) for part, value in several]
    log: Mapping[str, Any] = run.lineage.get("log") or {}
    facts += [
        (f"log: {LOG.get(name, name)}", value if not isinstance(value, Mapping) else json.dumps(value))
        for name, value in log.items()
    ]
    return table(["", ""], [each for each in facts if each[1] is not None])


def drift(run: Run) -> Markup | None:
    found: Mapping[str, Any] = run.record.get("drift") or {}
    if not found:
        return None
    listed = list(found.items())
    much = [name for name, each in listed if each["psi"] > MUCH]
    of = f"{len(listed)} columns" if len(listed) < KEPT else f"{KEPT} columns that moved most (others are not kept)"
    told = f"{len(much)} of the {of} moved much (PSI above {MUCH})." if much else f"No column has a PSI above {MUCH}."
    plot = bars(
        "drift",
        "Population stability index of columns between training and test rows; below 0.1 is little, above 0.25 much",
        [(name, each["psi"]) for name, each in listed[:LISTED]],
        "PSI",
    )
    rows = [(name, each["psi"], each["ks"], *each["missing"]) for name, each in listed]
    heads = ["column", "PSI", "KS", "missing in training", "missing in the test"]
    return joined([tag("p", told), plot, tag("details", tag("summary", "Column by column"), table(heads, rows))])


def guards(run: Run) -> Markup | None:
    found = run.record.get("guards") or []
    if not found:
        return None
    rows = [(each["guard"], _said(each), each["seen"], each["advice"] or None) for each in found]
    return table(["guard", "", "saw", "what to do"], rows, [at for at, each in enumerate(found) if not each["fine"]])


def _said(guard: Mapping[str, Any]) -> str:
    if not guard.get("tried", True):
        return "not tried"
    return "nothing found" if guard["fine"] else "look at this"


def made(run: Run) -> Markup | None:
    """The command, versions of plugins, parameters and settings."""
    lineage, parts = run.lineage, []
    if run.record.get("command"):
        parts += [tag("p", "Made by"), tag("pre", run.record["command"])]
    plugins: Mapping[str, Any] = lineage.get("plugins") or {}
    if plugins:
        rows = [(name, each["model"], f"{each['distribution']} {each['version']}") for name, each in plugins.items()]
        parts.append(table(["member", "model", "plugin"], rows))
    rest = {
        name: lineage[name] for name in ("settings", "params", "seed", "final", "folds", "git", "service_hash") if name in lineage
    }
    if rest:
        parts.append(
            tag("details", tag("summary", "Settings and parameters"), tag("pre", json.dumps(rest, indent=1, ensure_ascii=False)))
        )
    return joined(parts) if parts else None
