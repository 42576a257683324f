"""The process beside one that pushes, which copies the tail into the log's Delta tables while pushes go on.

It is asked by a line and answers by one. It ends when its pipe is closed, by whoever started it or by the kernel once that is dead, so that
none is left behind; killed at any moment, it leaves what any writer of the log leaves that is killed.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from zoo.errors import ZooError
from zoo.events.lock import BusyError

NICE = 10
"""How much it lets others go first: it shares the processors with those who push and with the online store."""
_LOOK = 5.0
"""Seconds between two looks at whether its starter lives: a fork of that would hold the pipe open."""
_PROGRAM = "import sys; sys.path[:] = sys.argv[3:]; from zoo.events.beside import main; main(sys.argv[1], int(sys.argv[2]))"
_BUSY = "busy"


class DiedError(ZooError):
    """The process ended without an answer."""


class Beside:
    """The process for one log; started when it is first asked, and again after it died."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def copy(self) -> None:
        """Have it do ``EventLog.copy_tail``, and wait. Raises BusyError where another writer is at work, DiedError where it ends."""
        if self._process is None:
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("copy\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):  # none, or what it had written when it was killed
            code = self.close()
            raise DiedError(f"the process that moves the tail of {self._root} into the log ended by itself (exit code {code})")
        said = json.loads(answer)
        if said == _BUSY:
            raise BusyError("another writer holds the log")
        if said:
            raise ZooError(said)

    def close(self) -> int | None:
        """Let it end what it is at, and wait for that; returns its exit code."""
        process = self._process
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what it was not told any more
                pipe.close()
        code = process.wait()
        self._process = None
        return code

    def kill(self) -> None:
        """End it wherever it is, from another thread; who waits for it goes on."""
        process = self._process
        if process is not None:
            process.kill()

    def _start(self) -> subprocess.Popen[str]:
        # Not multiprocessing, which runs the starter's own main module again. Its group is its own: Ctrl-C is for the starter.
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self._root.absolute()), str(os.getpid()), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            process_group=0,
            text=True,
        )


def main(root: str, starter: int) -> None:
    """The process: a line in, a line out, until the pipe is closed or the starter has another number."""
    os.nice(NICE)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from zoo.events.log import EventLog

    log: EventLog | None = None
    while os.getppid() == starter:
        if not select.select([0], [], [], _LOOK)[0]:
            continue
        if not os.read(0, 64):
            return
        try:
            log = EventLog.open(root) if log is None else log
            log.copy_tail()
            said = ""
        except BusyError:
            said = _BUSY
        except Exception as error:  # noqa: BLE001 - the starter says it
            said = str(error) or repr(error)
        try:
            print(json.dumps(said), file=answers, flush=True)
        except BrokenPipeError:
            return
