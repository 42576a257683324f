"""How many requests are worked on at once: as many as are answered soon, and the rest is refused at once instead of waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

LEAST = 16
SOON = 0.5
"""Seconds that a request may take, waiting for the batches before it included, before the limit comes down."""
PAUSE = 0.1
"""Seconds between two cuts: one moment of congestion counts once."""


@dataclass
class Limiter:
    """An adaptive limit (additive increase, multiplicative decrease). Used by one event loop; not thread-safe.

    most: bound of the limit. running: requests that are worked on. mean: seconds between two answers under load, smoothed.
    """

    most: int = 128
    limit: float = 128.0
    running: int = 0
    mean: float = 0.0
    _cut: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.limit = min(self.limit, self.most)

    def full(self) -> bool:
        return self.running >= int(self.limit)

    def enter(self, within: float | None = None) -> bool:
        """Whether a request may begin. within: seconds that its caller waits; what would be answered later is refused now."""
        if self.full() or (within is not None and self.running and self.mean > within):
            return False
        self.running += 1
        return True

    def leave(self, seconds: float, *, work: bool = True) -> None:
        """A request has ended after so long. work: whether it was of a usual size; a large one says nothing about congestion."""
        full = self.running >= int(self.limit) - 1
        self.running -= 1
        if not work:
            return
        self.mean += (seconds - self.mean) / 16
        if seconds > SOON:
            now = time.monotonic()
            if self.running and now - self._cut > PAUSE:
                self.limit, self._cut = max(float(min(LEAST, self.most)), self.limit * 0.9), now
        elif full:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
