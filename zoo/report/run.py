"""What a report is about: a version's record and lineage, the scores of its test rows, and what is read from them in several places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from zoo.evaluation.kept import TestScores

METRICS = ("ndcg@10", "log_loss", "auc")
"""What tells which line is better: the first that the lines have. Stacks are chosen by the same."""
LOWER = frozenset({"log_loss", "brier", "ece", "squared_error"})
"""Metrics of which less is better."""
WORDS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "log_loss": "log-loss",
    "brier": "Brier score",
    "ece": "calibration error",
    "accuracy": "accuracy",
    "ndcg@10": "NDCG@10",
    "hr@10": "HR@10",
    "mrr@10": "MRR@10",
    "coverage@10": "coverage@10",
    "squared_error": "squared error",
}


@dataclass(frozen=True)
class Run:
    """title: what is reported on. record, lineage: as registered. scores: of the test rows, None where none are kept. about: further
    facts for the head of the page.
    """

    title: str
    record: Mapping[str, Any]
    lineage: Mapping[str, Any] = field(default_factory=dict)
    scores: TestScores | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def lines(self) -> dict[str, Mapping[str, Any]]:
        """Members, then what the task always compares with, then mean and stack."""
        out = {**(self.record.get("members") or {}), **(self.record.get("baselines") or {})}
        return out | {name: self.record[name] for name in ("mean", "stack") if self.record.get(name)}

    @cached_property
    def metric(self) -> str | None:
        """The leaderboard's own."""
        first = next(iter(self.lines.values()), {})
        if "classes" in self.record:
            return "log_loss"
        return next((name for name in METRICS if name in first), None)

    @cached_property
    def parts(self) -> dict[str, Mapping[str, Any]]:
        """Lines of each part of the rows that the record tells apart by a request column, as by how far ahead a row asks."""
        out: dict[str, Mapping[str, Any]] = {}
        for name, found in self.record.items():
            if (
                isinstance(found, Mapping)
                and found
                and all(isinstance(each, Mapping) and "stack" in each for each in found.values())
            ):
                out |= {f"{name} {part}": lines for part, lines in found.items()}
        return out

    def tests(self, name: str) -> dict[str, tuple[float, tuple[float, float], float]]:
        """How a line differs from the one that is served: value, interval and p value by metric, the main one first."""
        line = self.lines[name]
        found: dict[str, Any] = dict(line.get("differences") or {})
        if line.get("difference"):  # records of before lines were compared by more than one metric
            found = {line["difference"]["metric"]: line["difference"]}
        for each in self.record.get("comparisons") or ():
            if each["a"] == name:
                found = {str(self.metric): {**each, "interval": (each["low"], each["high"]), "p_value": each["p_holm"]}}
        known = {m: d for m, d in found.items() if d["value"] is not None and d["interval"][0] is not None}
        order = sorted(known, key=lambda metric: metric != self.metric)
        return {m: (known[m]["value"], tuple(known[m]["interval"]), known[m]["p_value"]) for m in order}

    @property
    def better(self) -> str:
        return "less is better" if self.metric in LOWER else "more is better"

    @cached_property
    def answer(self) -> str | None:
        """The line that is served: the stack where there is one."""
        return next((name for name in ("stack", "mean") if name in self.lines), next(iter(self.lines), None))


def words(metric: str) -> str:
    name, _, part = metric.partition(":")
    return f"{WORDS.get(name, name)}{f' of {part}' if part else ''}"


def interval(line: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """Of a metric, where the line has one."""
    found = line.get(f"{metric}_interval")
    return None if not found or found[0] is None else (float(found[0]), float(found[1]))
