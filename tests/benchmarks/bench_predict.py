"""The predictor, its service and its registry against what they must show: rows P1 to P19 of docs/benchmarks/predict.json."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from figures import Figure, asked_rows, chosen


def _row(module: str, name: str) -> Callable[[], Sequence[Figure]]:
    """The function, imported when the row is measured: rows need different things."""

    def measured() -> Sequence[Figure]:
        from importlib import import_module

        found: Sequence[Figure] = getattr(import_module(module), name)()
        return found

    return measured


ROWS = {
    "P1": _row("predict_speed", "p1"),
    "P2": _row("predict_speed", "p2"),
    "P3": _row("predict_service", "p3"),
    "P4": _row("predict_peers", "p4"),
    "P5": _row("predict_speed", "p5"),
    "P6": _row("predict_service", "p6"),
    "P7": _row("predict_swaps", "p7"),
    "P8": _row("predict_faults", "p8"),
    "P9": _row("predict_faults", "p9"),
    "P10": _row("predict_registry", "p10"),
    "P11": _row("predict_registry", "p11"),
    "P12": _row("predict_access", "p12"),
    "P12c": _row("predict_protocol", "p12c"),
    "P13": _row("predict_registry", "p13"),
    "P14": _row("predict_access", "p14"),
    "P15": _row("predict_service", "p15"),
    "P16": _row("predict_speed", "p16"),
    "P17": _row("predict_compiled", "p17"),
    "P18": _row("predict_memory", "p18"),
    "P19": _row("predict_servers", "p19"),
}

if __name__ == "__main__":
    rows = asked_rows(ROWS, __doc__) or [*ROWS]
    if len(rows) == 1:
        chosen("predict", ROWS, __doc__)
    else:
        for row in rows:  # what a row loaded would slow the next one's client
            subprocess.run([sys.executable, __file__, "--row", row], check=True)
