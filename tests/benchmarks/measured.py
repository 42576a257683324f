"""Seconds and memory of one call in a process of its own; standard library only, as peers' environments have nothing else in common."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_WATCH = """
import os, select, sys
path, peak = f"/proc/{sys.argv[1]}/status", 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.002)[0]:
    with open(path) as lines:
        peak = max(peak, next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
print(peak)
"""


def _anonymous() -> int:
    """kB of this process's memory that no file backs."""
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def processor() -> float:
    """Seconds of the processor that this process and those that it waited for have taken."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def peak_mb() -> float:
    """Most memory that this process had, files mapped into it included; not its parent's, which ``ru_maxrss`` may be after a fork."""
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@contextlib.contextmanager
def grown() -> Iterator[list[float]]:
    """MB by which the block's anonymous memory exceeded at its peak what there was before; seen from outside every 2 ms.

    Mapped files (an index) do not count, being the system's cache; what is computed from them does.
    """
    found: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-c", _WATCH, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdin is not None
        assert watch.stdout is not None
        watch.stdout.readline()
        before = _anonymous()
        yield found
        after = _anonymous()
        watch.stdin.close()
        found.append((max(int(watch.stdout.readline()), after) - before) / 1000)


LONG, LEAST = 20.0, 3
"""Seconds after which no further run begins, once there were so many."""


def measure(call: Callable[[], Any], runs: int) -> tuple[dict[str, Any], Any]:
    """({seconds of each run, peak_mb of the process, first_mb and grown_mb of the first run and of one more}, the last run's answer).

    runs: at most; runs that take longer than ``LONG`` in all end sooner.
    The first run makes what is made once and kept (what is derived from columns, imports); the last one shows what an answer takes.
    """
    with grown() as first:
        started = time.perf_counter()
        answer = call()
        seconds = [time.perf_counter() - started]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    while len(seconds) < runs and (len(seconds) < LEAST or sum(seconds) < LONG):
        answer = None  # the last run's answer is not held beside this one's
        started = time.perf_counter()
        answer = call()
        seconds.append(time.perf_counter() - started)
    answer = None
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it is seen to be taken again
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    with grown() as again:
        answer = call()
    return {"seconds": seconds, "peak_mb": peak, "first_mb": first[0], "grown_mb": again[0]}, answer


def say(found: dict[str, Any]) -> None:
    """The one line that the parent reads."""
    print(json.dumps(found), flush=True)


def child(command: list[Any], **more: Any) -> dict[str, Any]:
    """Run a child that says one JSON line last; its errors are shown."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True, **more)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
