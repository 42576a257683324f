"""The one form of every benchmark's figures: a table on the screen, and ``docs/benchmarks/NAME.json``, which is committed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measured import processor

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
QUICK = os.environ.get("QUICK", "0") not in ("", "0")
"""Whether less data shall do, within five minutes; such figures are shown and never kept."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One comparison. ours, peer: in ``unit``; peer is None where there is none.

    id: the row in the issue that asks for it, or empty. interval: 95 % of ``ours`` or of the ratio, as ``what`` says. must: the bound
    in words, or empty. reached: whether it holds, None without a bound. why: what stands in the way of a bound that is not reached.
    within: the bound says how many times the peer's figure ours may be. beside: other figures of the same run, by name.
    """

    what: str
    ours: float
    unit: str
    id: str = ""
    peer: float | None = None
    peer_name: str = ""
    lower_is_better: bool = True
    within: bool = False
    interval: tuple[float, float] | None = None
    seeds: tuple[int, ...] = ()
    must: str = ""
    reached: bool | None = None
    why: str = ""
    beside: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.must) != (self.reached is not None):
            raise ValueError(f"{self.what!r}: a bound (must) and whether it is reached go together")
        if self.reached is False and not self.why:
            raise ValueError(f"{self.what!r}: the bound {self.must!r} is not reached; say why")

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer, above 1 if better; with ``within``, ours in parts of the peer's."""
        if self.peer is None:
            return None
        if self.within:
            return self.ours / self.peer if self.peer else None
        over, under = (self.peer, self.ours) if self.lower_is_better else (self.ours, self.peer)
        return over / under if under else None


def machine() -> str:
    """Processor, cores, memory and Python, in words."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def rows(name: str, figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The figures as they are kept."""
    where = {"command": f"make bench-{name}", "machine": machine(), "date": datetime.now(UTC).date().isoformat()}
    kept = []
    for figure in figures:
        own = asdict(figure)
        beside = own.pop("beside")
        kept.append({**own, **beside, "ratio": figure.ratio, **where})
    return kept


def asked_rows(parts: Iterable[str], description: str | None) -> list[str] | None:
    """What ``--row`` names on the command line, None where nothing is named."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--row", choices=list(parts), action="append", help="measure only these; the others stay as they are")
    found: list[str] | None = parser.parse_args().row
    return found


def chosen(name: str, parts: Mapping[str, Callable[[], Sequence[Figure]]], description: str | None) -> None:
    """The command line of a benchmark: measure every part, or those named by ``--row``, and report; other rows stay as they were kept.

    Each row tells what its part took, features and peers included: ``minutes`` by the clock and ``cpu_minutes`` of the processor.
    """
    asked, measured = asked_rows(parts, description), list[Figure]()
    for row in asked or parts:
        begun, used = time.monotonic(), processor()
        made = parts[row]()
        took = {"minutes": (time.monotonic() - begun) / 60, "cpu_minutes": (processor() - used) / 60}
        figures = [replace(figure, beside={**figure.beside, **took}) for figure in made]
        report(name, figures, part=True)  # at once: a later row that fails, or is not waited for, loses nothing
        measured += figures
    if asked is None:
        report(name, measured)


def report(name: str, figures: Sequence[Figure], folder: Path = FOLDER, quick: bool = QUICK, *, part: bool = False) -> None:
    """Show the figures and keep them, unless they are quick ones. part: rows that were not measured stay as they were kept."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "what", "ours", "peer", "ratio", "unit", "must", "reached", title=f"bench-{name}{' (quick: less data)' if quick else ''}"
    )
    for figure in figures:
        peer = "" if figure.peer is None else f"{figure.peer:,.4g} ({figure.peer_name})"
        ratio = "" if figure.ratio is None else f"{figure.ratio:,.1f}"
        reached = {None: "", True: "yes", False: f"no: {figure.why}"}[figure.reached]
        table.add_row(figure.what, f"{figure.ours:,.4g}", peer, ratio, figure.unit, figure.must, reached)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if quick:
        print("Quick figures are not kept; without QUICK=1 they are.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    path, measured = folder / f"{name}.json", rows(name, figures)
    if part and path.exists():
        measured = merged(json.loads(path.read_text()), measured)
    path.write_text(json.dumps(measured, indent=1) + "\n")


def merged(kept: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows kept, with those measured in the place of their like: of one id, or where there is none of one text before a bracket."""

    def like(row: dict[str, Any]) -> str:
        return str(row["id"] or row["what"].partition(" (")[0])

    stay = [row for row in kept if like(row) not in {like(each) for each in measured}]
    return sorted([*stay, *measured], key=lambda row: row["id"] or "~")
