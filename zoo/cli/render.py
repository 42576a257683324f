"""What a person sees: tables, amounts and times in words, and progress on stderr. It knows no command."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from zoo.contract import Progress

PATIENCE = 2.0
"""Seconds before a wait is worth a word."""
PAUSE = 5.0
"""Seconds between two lines of progress where there is no terminal."""
WIDTH = 140
"""Columns of a table where no terminal says how many fit."""


def console(file: TextIO) -> Console:
    """A rich console on a stream; numbers are not coloured and text is not read as markup."""
    from rich.console import Console  # rich costs 0.1 s that `zoo --help` need not pay

    width = None if file.isatty() else WIDTH
    return Console(file=file, width=width, highlight=False, markup=False, soft_wrap=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table; columns whose every value is a number are right-aligned, and ``id`` is never folded: it is there to be copied."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = [list(row) for row in rows]
    out = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(columns):
        numeric = all(isinstance(row[at], (int, float)) and not isinstance(row[at], bool) for row in rows)
        out.add_column(name, justify="right" if numeric and rows else "left", overflow="fold", no_wrap=name == "id")
    for row in rows:
        out.add_row(*map(cell, row))
    return out


def pairs(title: str, facts: Mapping[str, Any]) -> Table:
    """Names and values, one a line."""
    from rich.table import Table

    out = Table(title=title or None, title_justify="left", box=None, show_header=False, pad_edge=False)
    out.add_column(no_wrap=True)
    out.add_column(overflow="fold")
    for name, value in facts.items():
        out.add_row(name, cell(value))
    return out


def cell(value: Any) -> str:
    """A value as a table shows it: thousands apart, four decimals, a dash for nothing."""
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def moment(microseconds: int | None) -> str:
    """``2017-12-31 04:20:09 UTC`` of microseconds since 1970."""
    if microseconds is None:
        return "-"
    whole, part = divmod(int(microseconds), 1_000_000)
    text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{part:06d} UTC" if part else f"{text} UTC"


def duration(seconds: float | None) -> str:
    """Seconds in the largest unit that leaves at least one of it: ``3.2 days``."""
    if seconds is None or seconds != seconds:
        return "-"
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


@contextmanager
def progress_bar(title: str, file: TextIO | None = None) -> Iterator[Progress]:
    """Show how far something is, on stderr: a bar on a terminal (or with FORCE_COLOR set), else a line now and then.

    Yields a function of (fraction done, text). Work that ends within ``PATIENCE`` seconds writes no line.
    """
    from rich.console import Console

    file = file or sys.stderr
    screen = Console(file=file, highlight=False, markup=False)
    with _bar(title, screen) if screen.is_terminal else _lines(title, file) as say:
        yield say


@contextmanager
def _bar(title: str, screen: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        job = bar.add_task(title, total=None, said="")

        def say(fraction: float, text: str) -> None:
            # nothing done yet: the bar pulses, since a wait of unknown length is no zero
            bar.update(job, total=1.0 if fraction > 0 else None, completed=min(1.0, fraction), said=text)

        yield say


@contextmanager
def _lines(title: str, file: TextIO) -> Iterator[Progress]:
    due = time.monotonic() + PATIENCE

    def say(fraction: float, text: str) -> None:
        nonlocal due
        at = time.monotonic()
        if at >= due:
            due = at + PAUSE
            print(f"{title}: {100 * min(1.0, fraction):3.0f} % {text}".rstrip(), file=file, flush=True)

    yield say
