"""Row P7: alias moves under a steady load, between two stacks that give other scores, and candidates that are damaged.

The server notices each move by itself. What each stack says of each user is known beforehand, in process, so an answer by another stack
than the one it names is seen, and one made by both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import load
from figures import QUICK, Figure
from predict_service import USERS, project, serving

SWAPS, CORRUPT = (10, 8) if QUICK else (500, 100)
LOOK = 0.05
"""Seconds between the server's looks at the registry."""
WAIT = 60.0
"""Seconds after which a move that the server did not follow has failed."""
APART, SAME = 1e-3, 1e-5
"""Of two scores of a user: at least between the stacks, and at most between a stack's answer and what it is known to say."""
TOGETHER = 3
"""Users of one request."""

Scores = dict[str, dict[int, float]]
"""Version -> user -> score."""


def _two(root: Path) -> list[str]:
    """The champion, and a version trained on its rows with all but the last of its members."""
    from zoo.project import Project
    from zoo.registry import Registry

    with Registry.of(Project.open(root)) as registry:
        champion = registry.get("churn")
    members = [part for member in [*champion.lineage["plugins"]][:-1] for part in ("--member", member)]
    command = [sys.executable, "-m", "zoo", "--repo", str(root), "train", "churn", "--json", *members]
    command += ["--test-start", champion.metrics["test"][0]]
    trained = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return [champion.reference, f"churn@{trained['version']}"]


def _known(root: Path, versions: list[str]) -> Scores:
    """What each version says of the users of whom they say different things."""
    from zoo.predictor import Predictor

    said = [Predictor.load(version, root).predict(users=USERS).column("score").to_pylist() for version in versions]
    differ = [number for number, (one, other) in enumerate(zip(*said, strict=True)) if abs(one - other) > APART]
    if len(differ) < 10 * TOGETHER:
        raise SystemExit(
            f"{' and '.join(versions)} differ by {APART} for {len(differ)} of {len(USERS)} users: no mixture would show"
        )
    return {version: {USERS[n]: scores[n] for n in differ} for version, scores in zip(versions, said, strict=True)}


def _spoiled(folder: Path, number: int) -> None:
    """Damage an artefact: another way for each number."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = next(path for path in files if path.name == "manifest.json")
    other = next(path for path in files if path.name != "manifest.json")
    for path in files:
        path.chmod(0o644)
    content = other.read_bytes()
    if number % 4 == 0:
        other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif number % 4 == 1:
        other.write_bytes(content[: len(content) // 2])
    elif number % 4 == 2:
        other.unlink()
    else:
        manifest.write_text("{")


@contextlib.asynccontextmanager
async def _load(port: int, known: Scores) -> AsyncIterator[dict[str, Any]]:
    """A steady load while the block runs; what came back is in the yielded dict after it."""
    users = [*next(iter(known.values()))]
    requests = [
        load.post("/v1/predict", {"model": "churn", "users": users[at : at + TOGETHER]})
        for at in range(0, len(users) - TOGETHER + 1, TOGETHER)
    ]
    peak = (await load.closed(port, requests, 2, 5)).rate()
    rate, stop = peak / 5, asyncio.Event()  # loading takes the same processors: a steady rate that leaves room for it
    steady = asyncio.create_task(load.steady(port, requests, rate, 1e9, keep=True, until=stop))
    told: dict[str, Any] = {"rate": round(rate, 1)}
    try:
        yield told
    finally:
        stop.set()
        seen = await steady
    told |= {
        "answers": len(seen.bodies),
        **_judged(seen.bodies, known),
        "failed": seen.failed + sum(len(times) for status, times in seen.times.items() if status != 200),
        "broken": seen.failed,
        "statuses": {status: len(times) for status, times in seen.times.items()},
        "slowest_ms": max(seen.times[200]) * 1e3,
    }


async def _swapped(port: int, root: Path, known: Scores) -> dict[str, Any]:
    """Moves that the server follows by itself."""
    from zoo.project import Project
    from zoo.registry import Registry, parse

    first, other = known
    swapped = 0
    async with _load(port, known) as told:
        began = time.perf_counter()
        with Registry.of(Project.open(root)) as registry:
            for number in range(SWAPS):
                goal = other if number % 2 == 0 else first
                await asyncio.to_thread(registry.promote, "churn", parse(goal).number)
                swapped += await _followed(port, goal)
        told |= {"swapped": swapped, "seconds": round(time.perf_counter() - began, 1)}
    return told


async def _followed(port: int, version: str) -> bool:
    """Whether the server says in time that this version answers."""
    control, until = load.Connection(port), time.monotonic() + WAIT
    try:
        while time.monotonic() < until:
            _, body = await control.ask(load.get("/health"))
            if json.loads(body)["models"]["churn"]["version"] == version:
                return True
            await asyncio.sleep(LOOK / 2)
    finally:
        control.close()
    return False


async def _corrupted(port: int, root: Path, known: Scores) -> dict[str, Any]:
    """Candidates damaged after the alias moved, which a damaged one does not; so the server looks when it is told to."""
    from zoo.project import Project
    from zoo.registry import Registry

    found, control, left = Project.open(root), load.Connection(port), 0

    async def reload() -> dict[str, str]:
        status, body = await control.ask(load.post("/v1/reload", {}))
        while status == 503:  # under load like everyone else
            await asyncio.sleep(0.05)
            status, body = await control.ask(load.post("/v1/reload", {}))
        assert status == 200, (status, body)
        return dict(json.loads(body)["swapped"])

    async with _load(port, known) as told:
        with Registry.of(found) as registry:
            held, (version, artefact) = registry.get("churn").reference, await asyncio.to_thread(registry.load, "churn")
            for number in range(CORRUPT):
                texts = {**artefact.texts, "candidate.txt": f"{number}"}
                bad = registry.register("churn", replace(artefact, texts=texts), version.metrics, version.lineage)
                await asyncio.to_thread(registry.promote, "churn", bad.number)
                _spoiled(found.artefacts / bad.digest, number)
                swapped = await reload()
                _, body = await control.ask(load.get("/health"))
                now = json.loads(body)["models"]["churn"]
                left += swapped == {} and now["version"] == held and now["candidate"] == bad.reference
        told["left"] = left
    control.close()
    return told


def _judged(bodies: list[bytes], known: Scores) -> dict[str, Any]:
    """Answers by version, and those that are mixed: that name several, or one whose score of a user it is not."""
    by, mixed, away = dict.fromkeys(known, 0), 0, 0.0
    for body in bodies:
        answers = json.loads(body)["answers"]
        named = {answer["version"] for answer in answers}
        if len(named) != 1 or not named <= known.keys():
            mixed += 1
            continue
        (version,) = named
        worst = max(abs(answer["score"] - known[version][answer["keys"]["user_id"]]) for answer in answers)
        by[version], mixed, away = by[version] + 1, mixed + (worst > SAME), max(away, worst)
    return {"by": by, "mixed": mixed, "away": away}


def p7() -> list[Figure]:
    """Swaps and corrupt candidates under a steady load."""
    with project(cache=True, reload=LOOK) as root, serving(root) as server:
        known = _known(root, _two(root))
        seen = asyncio.run(_swapped(server.port, root, known))
    with project() as root, serving(root) as server:
        after = asyncio.run(_corrupted(server.port, root, known))
    whole = seen["swapped"] == SWAPS and not seen["failed"] and not seen["mixed"] and all(seen["by"].values())
    told = f"{seen['answers']} answers at a steady {seen['rate']} a second, slowest {seen['slowest_ms']:.0f} ms; by version "
    told += (
        f"{seen['by']}, scores at most {seen['away']:.1g} from those of the version named; {seen['seconds'] / SWAPS:.2f} s a swap"
    )
    return [
        Figure(
            id="P7",
            what=f"failed or mixed-version answers in {SWAPS} swaps of two stacks, noticed by the server, under load ({told})",
            ours=seen["failed"] + seen["mixed"],
            unit="answers",
            must="0 failed, 0 mixed",
            reached=whole,
            why=str(seen),
        ),
        Figure(
            id="P7b",
            what=f"corrupt candidates of {CORRUPT} that left the former version serving ({after['answers']} answers meanwhile)",
            ours=after["left"],
            unit="candidates",
            lower_is_better=False,
            must=f"{CORRUPT}",
            reached=after["left"] == CORRUPT and not after["failed"] and not after["mixed"],
            why=str(after),
        ),
    ]
