"""Row P4: how many predictions of one user a second ``zoo serve`` answers, against BentoML, Ray Serve and MLflow with the same predictor.

Every peer serves ``Predictor.predict`` as plain Python from an environment of its own in ``.peers``, beside which ours is found, so
that zoo and its plugins are the same code there. Each has one process and then two, and the better counts. Load generator, project,
users and number of threads (one a process and library) are the same for all, and so are the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
from figures import QUICK, Figure
from predict_service import USERS, project, quantile

SERVED = Path(__file__).parent / "peers"
"""What each peer's own process runs."""
PEERS = {
    "bentoml": ["bentoml==1.4.40"],
    "ray": ["ray[serve]==2.60.0"],
    # it starts the command uvicorn, which has to be that of its own environment
    "mlflow": ["mlflow==3.17.2", "--ignore-installed --no-deps uvicorn"],
    "granian": ["granian==2.8.9"],  # of row P19
    # of row P12c: no server, clients of the Open Inference Protocol
    "protocol": ["open-inference-openapi==2.0.0.1", "tritonclient[http]==2.73.0"],
}
"""What pip installs, one after the other."""
LIMIT = 0.05
"""Seconds that p99 may take."""
SECONDS, STEPS = (1.5, 3) if QUICK else (3, 5)
START, SETTLE = 300, 4
"""Seconds that a server is given to answer first, and then those of its processes that are not the first."""


class SilentError(Exception):
    """A server that does not answer."""


@dataclass(frozen=True)
class Side:
    """A server. command: its command line for a port, a project's folder and a number of processes. score: of an answer's JSON."""

    name: str
    path: str
    command: Callable[[int, Path, int], list[str]]
    body: Callable[[int], Any]
    score: Callable[[Any], float]
    workers: tuple[int, ...] = (1, 2)


def peer_python(name: str) -> str:
    """The interpreter of a peer's environment, made the first time: what it lacks is looked for in ours."""
    folder = SERVED.parents[2] / ".peers" / name
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        beside = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (Path(own.stdout.strip()) / "zoo_beside.pth").write_text(beside)
        for asked in PEERS[name]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *asked.split()], check=True)
        (folder / "complete").touch()
    return str(python)


def _mlflow(port: int, root: Path, workers: int) -> list[str]:
    python, model = peer_python("mlflow"), root / "mlflow-model"
    if not model.exists():
        subprocess.run([python, SERVED / "serve_mlflow.py", model], check=True, env=_environment(root, workers), cwd=root)
    served = ["models", "serve", "--env-manager", "local", "--model-uri", str(model)]
    return [python, "-m", "mlflow", *served, "--port", str(port), "--workers", str(workers)]


SIDES = (
    Side(
        "zoo serve",
        "/v1/predict",
        lambda port, root, _: [sys.executable, "-m", "zoo", "--repo", str(root), "serve", "churn", "--port", str(port)],
        lambda user: {"model": "churn", "users": [user]},
        lambda answer: float(answer["answers"][0]["score"]),
        (1,),
    ),
    Side(
        "BentoML",
        "/predict",
        lambda port, *_: [
            *(peer_python("bentoml"), "-m", "bentoml", "serve", "serve_bentoml:Churn"),
            *("--working-dir", str(SERVED), "--host", "127.0.0.1", "--port", str(port)),
        ],
        lambda user: {"users": [user]},
        lambda answer: float(answer[0]["score"]),
    ),
    Side(
        "Ray Serve",
        "/predict",
        lambda port, *_: [peer_python("ray"), str(SERVED / "serve_ray.py"), str(port)],
        lambda user: {"users": [user]},
        lambda answer: float(answer[0]["score"]),
    ),
    Side(
        "MLflow",
        "/invocations",
        _mlflow,
        lambda user: {"inputs": [user]},
        lambda answer: float(answer["predictions"][0]["score"]),
    ),
)


def _environment(root: Path, workers: int) -> dict[str, str]:
    """Alike for all servers; nobody is told of their use, and none writes a line a request."""
    quiet = {
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "UVICORN_ACCESS_LOG": "0",
    }
    own = {"BENTOML_HOME": str(root / "bentoml"), "BENCH_ROOT": str(root), "BENCH_WORKERS": str(workers)}
    # their own 5 seconds are few for a server that loads on a machine that is not idle
    patient = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(START), "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": str(START)}
    return {**os.environ, **quiet, **patient, **own, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def serving(side: Side, root: Path, workers: int) -> Iterator[int]:
    """The port of a server that answers, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command, log = side.command(port, root, workers), root / f"{side.name}-{workers}.log".replace(" ", "-")
    environment = _environment(root, workers)
    environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment['PATH']}"
    given: dict[str, Any] = {"env": environment, "cwd": root, "start_new_session": True}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, **given) as process:
        try:
            until = time.monotonic() + START
            while _ask(side, port, USERS[0]) is None:
                if process.poll() is not None or time.monotonic() > until:
                    raise SilentError(f"{side.name} does not answer: {log.read_text()[-4_000:]}")
                time.sleep(0.2)
            time.sleep(SETTLE)
            yield port
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _ask(side: Side, port: int, user: int) -> float | None:
    """The score of a user, None where nobody answers yet."""
    content = json.dumps(side.body(user)).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{side.path}", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return side.score(json.load(answer))
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


async def highest(port: int, requests: list[bytes]) -> tuple[float, float]:
    """(answers a second, p99) at the highest steady rate without an error and with p99 in time; (0, p99 of the least) if none is.

    Bisected below what connections that ask as soon as they are answered reach; a rate that fails is tried once more.
    """
    await load.closed(port, requests, 4, SECONDS)  # warm
    peak = max([(await load.closed(port, requests, number, SECONDS / 2)).rate() for number in (1, 2, 4, 8)])
    low, high, found = 0.0, 1.1 * peak, (0.0, float("inf"))
    for _ in range(STEPS):
        rate = (low + high) / 2
        for _ in range(2):
            seen = await load.steady(port, requests, rate, SECONDS)
            late = quantile(seen.times.get(200, [float("inf")]), 0.99)
            whole = set(seen.times) == {200} and not seen.failed
            if whole and late < LIMIT:
                low, found = rate, (seen.rate(), late)
                break
        else:
            high = rate
            if not found[0]:
                found = (0.0, late)
    return found


def p4() -> list[Figure]:
    """The highest rate of each, the better of one and two processes."""
    best: dict[str, tuple[float, float, int]] = {}
    told, scores = [], []
    with project() as root:
        for side in SIDES:
            requests = [load.post(side.path, side.body(user)) for user in USERS[:1_000]]
            for workers in side.workers:
                which = f"{side.name} {workers} process{'es' * (workers > 1)}"
                try:
                    with serving(side, root, workers) as port:
                        scores.append([_ask(side, port, user) for user in USERS[:20]])
                        rate, late = asyncio.run(highest(port, requests))
                except SilentError as error:
                    print(error, file=sys.stderr, flush=True)
                    told.append(f"{which} did not start")
                    continue
                told.append(f"{which} {rate:.0f} a second, p99 {late * 1e3:.0f} ms")
                print(told[-1], flush=True)
                best[side.name] = max(best.get(side.name, (-1.0, 0.0, 0)), (rate, late, workers))
    apart = max(abs(float(a or 0) - float(b or 0)) for each in scores for a, b in zip(each, scores[0], strict=True))
    if apart > 1e-5:
        raise SystemExit(f"the servers' scores differ by {apart}: they do not serve the same model")
    silent = [side.name for side in SIDES if side.name not in best]
    if silent:
        raise SystemExit(f"nothing is compared without {', '.join(silent)}")
    ours, _, _ = best.pop(SIDES[0].name)
    name, (peer, _, workers) = max(best.items(), key=lambda each: each[1])
    reached = 0 < ours >= 2 * peer
    return [
        Figure(
            id="P4",
            what=f"predictions of one user, highest rate without an error and p99 under 50 ms, two cores ({'; '.join(told)})",
            ours=ours,
            unit="a second",
            peer=peer,
            peer_name=f"{name}, {workers} process{'es' * (workers > 1)}, same predictor as plain Python",
            lower_is_better=False,
            must="2 times the best",
            reached=reached,
            why="" if reached else "; ".join(told),
        )
    ]
