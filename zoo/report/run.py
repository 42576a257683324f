"""What a report is about: a version's record and lineage, the scores of its test rows, and what is read from them in several places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from zoo.evaluation.kept import TestScores

METRICS = ("ndcg@10", "auc", "log_loss")
"""What a leaderboard is ordered by: the first that its lines have."""
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
