"""The command line: thin commands over the other rooms. Importing it is light; each command imports what it needs when it runs."""

from __future__ import annotations

import os
import signal

__all__ = ["main"]

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the signal's number, as shells have it."""


def main() -> None:
    """The entry point of ``zoo`` and ``python -m zoo``. Exits 0 (fine), 1 (could not), 2 (misused) or 130 (Ctrl-C)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, stopped)
    from zoo.cli.app import app  # a tenth of a second, in which Ctrl-C would end Python without a word

    app(prog_name="zoo")


def stopped(*_: object) -> None:
    """Ctrl-C before a command begins: nothing is under way that would have to end in order."""
    os.write(2, b"zoo: interrupted before it began; nothing was done\n")
    os._exit(INTERRUPTED)
