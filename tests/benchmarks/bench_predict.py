"""The predictor, its service and its registry against what they must show: rows P1 to P16 of docs/benchmarks/predict.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from figures import Figure, chosen


def _row(module: str, name: str) -> Callable[[], Sequence[Figure]]:
    """The function, imported when the row is measured: rows need different things."""

    def measured() -> Sequence[Figure]:
        from importlib import import_module

        found: Sequence[Figure] = getattr(import_module(module), name)()
        return found

    return measured


ROWS = {
    "P3": _row("predict_service", "p3"),
    "P6": _row("predict_service", "p6"),
    "P7": _row("predict_service", "p7"),
    "P12": _row("predict_access", "p12"),
    "P14": _row("predict_access", "p14"),
    "P15": _row("predict_service", "p15"),
}

if __name__ == "__main__":
    chosen("predict", ROWS, __doc__)
