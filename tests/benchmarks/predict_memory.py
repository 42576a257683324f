"""Row P18: memory of two workers that answer with one model: each on its own, and forked from a process that has loaded it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from figures import QUICK, Figure
from predict_service import project

WORKERS = 2
KINDS = ("Rss", "Pss", "Private_Dirty")


def p18() -> list[Figure]:
    """Proportional memory (a page that n processes share counts 1/n in each) of both ways, after predictions."""
    with project() as root:
        alone, forked = (_workers(root, how) for how in ("alone", "forked"))
    ours, peer = (sum(each["Pss"] for each in workers) for workers in (forked, alone))
    beside = {
        f"{name} {kind.lower()}": sum(each[kind] for each in workers)
        for name, workers in (("forked", forked), ("alone", alone))
        for kind in ("Rss", "Private_Dirty")
    }
    return [
        Figure(
            id="P18",
            what=f"memory of {WORKERS} workers forked after loading and warming churn, proportional (PSS), after predictions; each has "
            f"{max(each['Rss'] for each in forked):.0f} MiB resident, of which {max(each['Private_Dirty'] for each in forked):.0f} its own",
            ours=ours,
            unit="MiB",
            peer=peer,
            peer_name="workers that loaded it on their own",
            beside=beside,
        )
    ]


def _workers(root: Path, how: str) -> list[dict[str, float]]:
    """MiB of each worker by kind, while all of them are there."""
    command = [sys.executable, __file__, str(root), how]
    begun = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(WORKERS if how == "alone" else 1)
    ]
    found = []
    for process in begun:
        assert process.stdout is not None
        pids = process.stdout.readline().split()
        assert pids, "a worker did not answer"
        found += pids
    sizes = [_memory(int(pid)) for pid in found]
    for process in begun:
        process.communicate("\n")
    return sizes


def _memory(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.partition(":")[0]: float(line.split()[1]) / 1024 for line in lines}
    return {kind: sizes[kind] for kind in KINDS}


def _worker(root: str, how: str) -> None:
    """Print the process ids of workers that have answered, and stay until a line comes."""
    os.environ["OMP_NUM_THREADS"] = "1"  # its threads do not survive a fork
    from zoo.predictor import Predictor

    predictor = Predictor.load("churn", root)
    predictor.warm()
    gc.collect()
    gc.freeze()  # or the first full collection would write to every object, and so copy its page
    if how == "alone":
        _answer(predictor)
        print(os.getpid(), flush=True)
        sys.stdin.readline()
        return
    children: list[tuple[int, int]] = []
    for _ in range(WORKERS):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            _answer(predictor)
            os.write(write, b".")
            _stay()
        children.append((pid, read))
    for _, read in children:
        os.read(read, 1)
    print(*(pid for pid, _ in children), flush=True)
    sys.stdin.readline()
    for pid, _ in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _stay() -> None:
    """Wait to be ended."""
    import time

    while True:
        time.sleep(60)


def _answer(predictor: object) -> None:
    users: Sequence[int] = range(1, 21 if QUICK else 501)
    for user in users:
        predictor.predict(users=[user])  # type: ignore[attr-defined]


if __name__ == "__main__":
    _worker(*sys.argv[1:])
