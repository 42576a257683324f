"""One writer at a time: a lock that the kernel frees when its holder dies, and the removal of what such a holder left."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import ZooError
from zoo.events.delta import failing_as


class BusyError(ZooError):
    """Another writer holds the lock, and the caller did not want to wait."""


@contextmanager
def writer_lock(root: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the log's only write lock; another writer waits. The kernel frees it when a writer dies.

    The lock file holds a mark while a write is under way: a mark that is found there was left by a writer that died, and
    its unreferenced files are removed first.
    """
    with failing_as(f"lock {root} for writing"):
        handle = os.open(root / "writer.lock", os.O_RDWR | os.O_CREAT, 0o644)
    tidy = True
    try:
        with failing_as(f"lock {root} for writing"):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                # polars takes SIGINT over, with system calls resumed after it: Ctrl-C would not end the wait
                signal.siginterrupt(signal.SIGINT, True)
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_size:
                remove_orphans(root)
            os.pwrite(handle, b"writing\n", 0)
        tidy = False
        yield
        tidy = True
    except Exception:
        tidy = True
        raise
    finally:
        # A killed or interrupted writer leaves the mark.
        if tidy:
            os.ftruncate(handle, 0)
        os.close(handle)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a file's exclusive lock; waits for another holder, of this process or another."""
    with failing_as(f"lock {path}"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with failing_as(f"lock {path}"):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                signal.siginterrupt(signal.SIGINT, True)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_orphans(root: Path) -> None:
    """Remove data files that no commit of any version names."""
    for folder in sorted({log.parent for log in root.rglob("_delta_log")}):
        named: set[str] = set()
        for commit in (folder / "_delta_log").glob("*.json"):
            for line in commit.read_text().splitlines():
                action = json.loads(line)
                named.update(action[kind]["path"] for kind in ("add", "remove") if kind in action)
        for file in folder.glob("*.parquet"):
            if file.name not in named:
                file.unlink()
