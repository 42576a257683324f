"""Runs named, independent jobs here or in other processes, and hands them training data without a copy for each job.

The one module whose messages are pickled: they go over pipes between this process and the children it started, never to or from
a file. It must not know what a job does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from pickle import PicklingError
from typing import Any, Generic, Protocol, TypeVar

from zoo.errors import UsageError, ZooError
from zoo.plugin import TrainingData
from zoo.shared_data import load_training_data, save_training_data, scratch_folder

A = TypeVar("A")
R = TypeVar("R")
THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)
"""Read by numpy, torch, LightGBM, polars and tokenizers when they are imported."""
UNSENDABLE = (AttributeError, PicklingError, TypeError, ValueError)
"""What sending a lambda, a local function or an open file raises."""


class JobError(ZooError):
    """A job raised, or the process that ran it died. The message names the job; ``__cause__`` holds the traceback."""


class RemoteTraceback(Exception):
    """The traceback of another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class Job(Generic[A]):
    """One argument for the function that is mapped. name: what an error calls it."""

    name: str
    argument: A


class Shared(Protocol):
    """Training data as a job takes it along."""

    def load(self) -> TrainingData: ...


class Executor(Protocol):
    """Where jobs run. Other kinds than the two below only need these two methods."""

    def share(self, data: TrainingData) -> AbstractContextManager[Shared]:
        """Put the data within the jobs' reach for as long as the context lasts."""
        ...

    def map(self, function: Callable[[A], R], jobs: Sequence[Job[A]]) -> Iterator[tuple[Job[A], R]]:
        """Each job with its result, as it completes. Raises JobError at the first failure and stops the others."""
        ...


@dataclass(frozen=True)
class InMemory:
    data: TrainingData

    def load(self) -> TrainingData:
        return self.data


@dataclass(frozen=True)
class Spilled:
    directory: Path

    def load(self) -> TrainingData:
        return load_training_data(self.directory)


class Serial:
    """One job after the other, in this process."""

    @contextmanager
    def share(self, data: TrainingData) -> Iterator[Shared]:
        yield InMemory(data)

    def map(self, function: Callable[[A], R], jobs: Sequence[Job[A]]) -> Iterator[tuple[Job[A], R]]:
        for job in jobs:
            try:
                result = function(job.argument)
            except Exception as e:
                raise JobError(f"{job.name} failed: {type(e).__name__}: {e}") from e
            yield job, result


@dataclass(frozen=True)
class Processes:
    """Jobs in ``workers`` child processes (default: one a core), started afresh (spawn), the cores' threads shared among them.

    The function must be importable, arguments and results picklable. scratch: folder for the shared data, which needs as much
    room as the data (default: the system's temporary folder).
    """

    workers: int | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"{self.workers} worker processes asked for; expected at least 1")

    @contextmanager
    def share(self, data: TrainingData) -> Iterator[Shared]:
        with scratch_folder(self.scratch) as directory:
            save_training_data(directory, data)
            yield Spilled(directory)

    def map(self, function: Callable[[A], R], jobs: Sequence[Job[A]]) -> Iterator[tuple[Job[A], R]]:
        # Our own pool, because ProcessPoolExecutor says neither which job a dead process was at, nor how it died.
        waiting = list(reversed(jobs))
        running: dict[Connection, Job[A]] = {}
        children: dict[Connection, BaseProcess] = {}
        try:
            for _ in range(min(self.workers or cores(), len(jobs))):
                connection, process = _start(function, max(1, cores() // (self.workers or cores())))
                children[connection] = process
                _send(connection, running, waiting.pop())
            while running:
                for connection in [c for c in wait(list(running)) if isinstance(c, Connection)]:
                    job = running.pop(connection)
                    try:
                        done, result = connection.recv()
                    except (EOFError, ConnectionResetError):
                        raise JobError(f"{job.name}: {_death(children[connection])}") from None
                    if not done:
                        summary, text = result
                        raise JobError(f"{job.name} failed: {summary}") from RemoteTraceback(text)
                    if waiting:
                        _send(connection, running, waiting.pop())
                    yield job, result
        finally:
            for connection, process in children.items():
                connection.close()
                process.terminate()
            for process in children.values():
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
                    process.join()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(function: Callable[[A], R], threads: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs), daemon=True)
    with _thread_limits(threads), _interrupts_held_back():
        try:
            process.start()
        except UNSENDABLE as e:
            raise UsageError(f"{function!r} cannot be sent to another process: {e}; expected a function of a module") from e
    theirs.close()
    return ours, process


def _send(connection: Connection, running: dict[Connection, Job[A]], job: Job[A]) -> None:
    running[connection] = job
    try:
        connection.send(job.argument)
    except ConnectionError:
        pass  # it died between two jobs: reading from it says so, with the job's name
    except UNSENDABLE as e:
        raise JobError(f"{job.name} failed: its argument cannot be sent to another process: {e}") from e


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """A child's life: a job in, (done, result or failure) out, until the parent closes the pipe, ends it or is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError):
        while True:
            argument = connection.recv()
            try:
                answer = (True, function(argument))
            except BaseException as e:  # noqa: BLE001 - the parent raises it, with the job's name
                answer = (False, (f"{type(e).__name__}: {e}", traceback.format_exc()))
            try:
                connection.send(answer)
            except UNSENDABLE as e:
                connection.send((False, (f"its result cannot be sent: {e}", traceback.format_exc())))


def _end_with_parent() -> None:
    """A parent that is killed cannot end its children, and a fit may take hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _death(process: BaseProcess) -> str:
    process.join(timeout=10)
    code = process.exitcode
    if code is not None and code < 0:
        hint = "; the system does this when memory runs out" if code == -signal.SIGKILL else ""
        return f"the process that ran it was ended by {signal.Signals(-code).name}{hint}; try fewer workers"
    return (
        f"the process that ran it ended with exit code {code} and no word; its own messages stand above "
        '(a script that starts jobs needs `if __name__ == "__main__":`)'
    )


@contextmanager
def _thread_limits(threads: int) -> Iterator[None]:
    """Set in a child's environment: libraries read it when they are imported, which is before any code of ours runs."""
    before = {name: os.environ.get(name) for name in THREAD_LIMITS}
    os.environ.update(dict.fromkeys(THREAD_LIMITS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A child inherits the mask: Ctrl-C reaches this process only, which then ends its children."""
    # Started beforehand, since starting it resets the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
