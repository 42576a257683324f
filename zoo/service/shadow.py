"""Shadows: versions that are asked what others answer, and whose answers nobody gets; what the two said is compared."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
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

    rows: that both answered. dropped: requests that were not copied. errors: requests that the shadow failed.
    sums: of the answers a, the shadow's b, and a a, b b, a b. apart, most: sum of and largest difference. seconds: the shadow's.
    """

    rows: int = 0
    requests: int = 0
    dropped: int = 0
    errors: int = 0
    sums: Array = field(default_factory=lambda: np.zeros(5))
    apart: float = 0.0
    most: float = 0.0
    seconds: float = 0.0

    def add(self, answered: Array, shadow: Array, rows: int, seconds: float) -> None:
        """answered, shadow: float64 (n,), scores of the same rows and outputs."""
        self.rows, self.requests, self.seconds = self.rows + rows, self.requests + 1, self.seconds + seconds
        a, b, apart = answered, shadow, np.abs(answered - shadow)
        self.sums += [a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()]
        self.apart += float(apart.sum())
        self.most = max(self.most, float(apart.max(initial=0.0)))

    def told(self, outputs: int) -> dict[str, Any]:
        """JSON-ready. outputs: scores that a row has."""
        n = self.rows * outputs
        out = {name: getattr(self, name) for name in ("rows", "requests", "dropped", "errors")}
        if not n:
            return {**out, **dict.fromkeys(("mean", "shadow_mean", "apart", "most", "correlation", "shadow_ms"))}
        a, b, aa, bb, ab = (self.sums / n).tolist()
        spread = sqrt(max(aa - a * a, 0) * max(bb - b * b, 0))
        correlation = (ab - a * b) / spread if spread > 1e-12 else None
        means = {"mean": a, "shadow_mean": b, "apart": self.apart / n, "most": self.most}
        return {**out, **means, "correlation": correlation, "shadow_ms": 1e3 * self.seconds / max(self.requests, 1)}


class Shadows:
    """Copies of requests, and what came of them. Thread-safe; one thread computes, one request after the other."""

    def __init__(self, waiting: int = WAITING) -> None:
        self._most, self._count = waiting, 0
        self._pairs: dict[tuple[str, str], tuple[Compared, int]] = {}
        self._lock, self._threads = threading.Lock(), Threads(most=1)

    def copy(
        self, answered: Predictor, shadow: Predictor, rows: Sequence[Mapping[str, Any]], ask: Callable[[Predictor], pa.Table]
    ) -> None:
        """Ask a shadow what was just answered, soon, in a thread, and compare. rows: of the answer. ask: asks a predictor the same."""
        names = [f"score:{output}" for output in answered.outputs] or ["score"]
        if answered.outputs != shadow.outputs:
            return  # of another task; the two say different things
        scores = np.array([[row[name] for name in names] for row in rows], np.float64).reshape(len(rows), len(names))
        with self._lock:
            compared = self._of(answered, shadow, len(names))
            if self._count >= self._most:
                compared.dropped += 1
                return
            self._count += 1
        self._threads.submit(lambda: self._compare(compared, scores, shadow, ask, names))

    def told(self) -> list[dict[str, Any]]:
        """A line a pair of versions, JSON-ready."""
        with self._lock:
            return [{"answered": a, "shadow": b, **found.told(outputs)} for (a, b), (found, outputs) in self._pairs.items()]

    def _of(self, answered: Predictor, shadow: Predictor, outputs: int) -> Compared:
        key = answered.version.reference, shadow.version.reference
        if key not in self._pairs:
            self._pairs[key] = Compared(), outputs
            while len(self._pairs) > PAIRS:
                del self._pairs[next(iter(self._pairs))]
        return self._pairs[key][0]

    def _compare(
        self, compared: Compared, scores: Array, shadow: Predictor, ask: Callable[[Predictor], pa.Table], names: Sequence[str]
    ) -> None:
        began = time.perf_counter()
        try:
            table = ask(shadow)
            found = np.array([np.asarray(table[name], np.float64) for name in names]).T.reshape(scores.shape)
        except Exception as error:  # noqa: BLE001 - a shadow may fail in any way, and nobody waits for it
            _log.warning("%s, a shadow, failed: %s", shadow.version.reference, type(error).__name__)
            with self._lock:
                compared.errors += 1
                self._count -= 1
            return
        seconds = time.perf_counter() - began
        with self._lock:
            compared.add(scores.ravel(), found.ravel(), len(scores), seconds)
            self._count -= 1
