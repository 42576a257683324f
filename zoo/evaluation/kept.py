"""Scores of the test rows, kept beside a version: what curves are drawn from later. They name nobody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zoo.errors import ArtefactError
from zoo.plugin import Array, Artefact, Target

FILE = "scores.json"
MOST = 200_000
"""Rows that are kept, at most."""


@dataclass(frozen=True)
class TestScores:
    """target: float64 (n,). groups: int64 (n,), whom each row is of, as a number. time: int64 (n,). scores: by line, float32 (n, k), or
    ranks int32 (n,) of a ranking target. kind: the target. rows: how many there were, where not all are kept.
    """

    __test__ = False  # no test of pytest's

    target: Array
    groups: Array
    time: Array
    scores: Mapping[str, Array]
    kind: Target
    rows: int

    @staticmethod
    def of(target: Array, groups: Array, time: Array, scores: Mapping[str, Array], kind: Target) -> TestScores:
        """Of all rows, or a sample of ``MOST``."""
        at = np.arange(len(target))
        if len(at) > MOST:
            at = np.sort(np.random.default_rng(0).permutation(len(at))[:MOST])
        kept = {name: each[at].astype(np.int32 if kind.kind == "ranking" else np.float32) for name, each in scores.items()}
        return TestScores(np.asarray(target, np.float64)[at], groups[at], time[at], kept, kind, len(target))

    def save(self) -> Artefact:
        arrays = {"target": self.target, "groups": self.groups.astype(np.int64), "time": self.time}
        arrays |= {f"scores/{at}": each for at, each in enumerate(self.scores.values())}
        about = {"lines": list(self.scores), "target": asdict(self.kind), "rows": self.rows}
        return Artefact(arrays, {FILE: json.dumps(about)})

    @staticmethod
    def load(artefact: Artefact) -> TestScores:
        """What ``save`` wrote. Raises ArtefactError when it is none."""
        try:
            about: Mapping[str, Any] = json.loads(artefact.texts[FILE])
            kind = about["target"]
            scores = {name: artefact.arrays[f"scores/{at}"] for at, name in enumerate(about["lines"])}
            return TestScores(
                artefact.arrays["target"],
                artefact.arrays["groups"],
                artefact.arrays["time"],
                scores,
                Target(kind["kind"], tuple(kind["classes"]), tuple(kind["horizons"])),
                int(about["rows"]),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise ArtefactError(f"no scores of test rows: {e!r}; expected {FILE} and the arrays that it names") from e
