"""Shadows: versions that are asked what others answer, and whose answers nobody gets; what the two said is compared."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array
from zoo.deadline import Threads
from zoo.predictor import Predictor

if TYPE_CHECKING:
    import pyarrow as pa

WAITING = 256
"""Requests that wait for a shadow, beyond which further ones are not copied: it must not cost the answers more."""
PAIRS = 20
"""Pairs of versions that are compared; the one first met goes when there are more."""

_log = logging.getLogger(__name__)


@dataclass
class Compared:
    """What one version answered and a shadow would have, row by row. Sums only: a request is not kept.

    rows, requests: that both answered. dropped, skipped: requests that were not copied, for too many waited, or for the shadow's outputs
    are others or a score of the answer is not finite. errors: requests that the shadow failed. origin: (2, k), the first scores of each
    output, a of the answer and b of the shadow. sums: (5, k), of a, b, a a, b b and a b, all less their origin, so that a small spread
    is not lost to rounding. apart, most: sum of and largest difference. seconds: the shadow's. waiting: copies that wait or are asked
    now. threads: of this pair alone, so that a shadow that hangs keeps no other.
    """

    rows: int = 0
    requests: int = 0
    dropped: int = 0
    skipped: int = 0
    errors: int = 0
    origin: Array | None = None
    sums: Array = field(default_factory=lambda: np.zeros((5, 1)))
    apart: float = 0.0
    most: float = 0.0
    seconds: float = 0.0
    waiting: int = 0
    threads: Threads = field(default_factory=lambda: Threads(most=1))

    def add(self, answered: Array, shadow: Array, seconds: float) -> None:
        """answered, shadow: float64 (n, k), finite scores of the same rows and outputs."""
        self.rows, self.requests, self.seconds = self.rows + len(answered), self.requests + 1, self.seconds + seconds
        if not len(answered):
            return
        if self.origin is None:
            self.origin = np.stack([answered[0], shadow[0]])
        a, b, apart = answered - self.origin[0], shadow - self.origin[1], np.abs(answered - shadow)
        self.sums = self.sums + np.stack([each.sum(axis=0) for each in (a, b, a * a, b * b, a * b)])
        self.apart += float(apart.sum())
        self.most = max(self.most, float(apart.max()))

    def told(self) -> dict[str, Any]:
        """JSON-ready."""
        out = {name: getattr(self, name) for name in ("rows", "requests", "dropped", "skipped", "errors")}
        if self.origin is None:
            return {**out, **dict.fromkeys(("mean", "shadow_mean", "apart", "most", "correlation", "shadow_ms"))}
        a, b, aa, bb, ab = self.sums / self.rows
        spread = np.sqrt(np.maximum(aa - a * a, 0) * np.maximum(bb - b * b, 0))
        varying = spread > 0
        found = (ab - a * b)[varying] / spread[varying]
        mean, shadow_mean = (self.origin + np.stack([a, b])).mean(axis=1).tolist()
        means = {"mean": mean, "shadow_mean": shadow_mean, "apart": self.apart / (self.rows * len(a)), "most": self.most}
        correlation = float(np.clip(found.min(), -1, 1)) if len(found) else None
        return {**out, **means, "correlation": correlation, "shadow_ms": 1e3 * self.seconds / self.requests}


class Shadows:
    """Copies of requests, and what came of them. Thread-safe; a thread a pair of versions computes, one request after the other."""

    def __init__(self, waiting: int = WAITING) -> None:
        self._most, self._lock = waiting, threading.Lock()
        self._pairs: dict[tuple[str, str], Compared] = {}

    def copy(
        self, answered: Predictor, shadow: Predictor, rows: Sequence[Mapping[str, Any]], ask: Callable[[Predictor], pa.Table]
    ) -> None:
        """Ask a shadow what was just answered, soon, in a thread, and compare. rows: of the answer. ask: asks a predictor the same."""
        names = [f"score:{output}" for output in answered.outputs] or ["score"]
        scores = np.array([[row[name] for name in names] for row in rows], np.float64).reshape(len(rows), len(names))
        with self._lock:
            compared = self._of(answered, shadow)
            if answered.outputs != shadow.outputs or not np.isfinite(scores).all():  # there is nothing to compare
                compared.skipped += 1
                return
            if compared.waiting >= self._most:
                compared.dropped += 1
                return
            compared.waiting += 1
        try:
            compared.threads.submit(lambda: self._compare(compared, scores, shadow, ask, names))
        except RuntimeError as error:  # no thread can be begun: the answer is there all the same
            _log.warning("%s, a shadow, is not asked: %s", shadow.version.reference, error)
            with self._lock:
                compared.waiting -= 1
                compared.dropped += 1

    def told(self) -> list[dict[str, Any]]:
        """A line a pair of versions, JSON-ready."""
        with self._lock:
            return [{"answered": a, "shadow": b, **found.told()} for (a, b), found in self._pairs.items()]

    def _of(self, answered: Predictor, shadow: Predictor) -> Compared:
        key = answered.version.reference, shadow.version.reference
        if key not in self._pairs:
            self._pairs[key] = Compared()
            while len(self._pairs) > PAIRS:
                del self._pairs[next(iter(self._pairs))]
        return self._pairs[key]

    def _compare(
        self, compared: Compared, scores: Array, shadow: Predictor, ask: Callable[[Predictor], pa.Table], names: Sequence[str]
    ) -> None:
        began, why = time.perf_counter(), ""
        try:
            table = ask(shadow)
            found = np.array([np.asarray(table[name], np.float64) for name in names]).T.reshape(scores.shape)
            if not np.isfinite(found).all():
                why = "a score is not finite"
        except Exception as error:  # noqa: BLE001 - a shadow may fail in any way, and nobody waits for it
            why = type(error).__name__
        seconds = time.perf_counter() - began
        if why:
            _log.warning("%s, a shadow, failed: %s", shadow.version.reference, why)
        with self._lock:
            compared.waiting -= 1
            if why:
                compared.errors += 1
            else:
                compared.add(scores, found, seconds)
