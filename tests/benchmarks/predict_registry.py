"""Rows P10, P11 and P13: the registry killed at every step and asked by many at once, and artefacts that no honest writer wrote."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from figures import QUICK, Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the tests' servers and the corpus

KILLS = 20 if QUICK else 1_000
REGISTRANTS, VERSIONS = (8, 10) if QUICK else (64, 100)
FUZZED = 3_000 if QUICK else 1_000_000
CHUNK = 1_500 if QUICK else 25_000
WORKERS = 4
PARTS = 4
"""Operations that are killed at a time, each with a registry of its own."""


def memory() -> str | None:
    """A folder in memory where there is one: what is killed or asked here survives a process, not the machine."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def databases() -> Iterator[dict[str, Callable[[Path], str]]]:
    """Name -> makes the URL of an empty registry, in this folder where it is a file. Threads may share them."""
    from services import empty_database, postgres_service

    def sqlite(folder: Path) -> str:
        return f"sqlite:///{folder / 'registry.db'}"

    with postgres_service() as server, ExitStack() as made:
        yield {"sqlite": sqlite, "postgresql": lambda _: made.enter_context(empty_database(server))}


def _child(script: str, *given: object) -> dict[str, Any]:
    command = [sys.executable, "-c", script, *map(str, given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, start_new_session=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# Forks a writer that does one thing and kills itself at the n-th line it executes of zoo/registry or zoo/artefacts.py, for every n from
# FIRST until the writer lives to its end; then the next thing. After each: versions without a gap, whole artefacts behind every version,
# aliases and their ways back that name whole versions which are ready, and a next write that works.
KILLED = """
import gc, json, os, signal, sys
from pathlib import Path
import numpy as np
import alembic.command
import zoo.artefacts, zoo.registry.registry
from zoo.contract import Artefact
from zoo.errors import ZooError
from zoo.registry import Registry

url, root, begin, stride = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
watched = {zoo.artefacts.__file__, *map(str, Path(zoo.registry.registry.__file__).parent.glob("*.py"))}
counter = 0

def artefact():
    global counter
    counter += 1
    return Artefact({"w": np.arange(counter + 2.0)}, {"a.json": str(counter)})

def settle(registry):
    "Versions that are ready: a, which the champion is, b, which it was before, and c."
    while len(ready := [v.number for v in registry.versions("churn") if v.status == "ready"] if registry.models() else []) < 5:
        registry.register("churn", artefact(), {}, {})
    a, b, c = ready[:3]
    with registry._database.transaction() as session:
        row = session.get(zoo.registry.registry.AliasRow, ("churn", "champion"))
        now = row and (row.number, row.former)
    if now != (a, b):
        registry.promote("churn", b)
        registry.promote("churn", a)
    return a, b, c

OPERATIONS = {
    "register": lambda registry, a, b, c, made: registry.register("churn", made, {"auc": 0.5}, {"seed": 1}),
    "register a new model": lambda registry, a, b, c, made: registry.register(f"model-{counter}", made, {}, {}),
    "promote": lambda registry, a, b, c, made: registry.promote("churn", c),
    "promote to a new alias": lambda registry, a, b, c, made: registry.promote("churn", b, f"alias-{counter}"),
    "rollback": lambda registry, a, b, c, made: registry.rollback("churn"),
    "tag": lambda registry, a, b, c, made: registry.tag("churn", b, {"note": str(counter)}),
    "retire": lambda registry, a, b, c, made: registry.retire("churn", c),
    "keep": lambda registry, a, b, c, made: registry.keep("churn", 1),
}

torn = dangling = gaps = stuck = kills = 0
by, first, whole = {}, [], set()

def note(kind, *what):
    if len(first) < 5:
        first.append(" ".join(map(str, (kind, *what))))
    return 1

def check(registry, operation, step):
    global torn, dangling, gaps
    if operation is not None:
        every = {}
        for version in registry.versions():
            every.setdefault(version.model, []).append(version)
        with registry._database.transaction() as session:
            aliases = list(session.scalars(zoo.registry.registry.select(zoo.registry.registry.AliasRow)))
        for model, versions in every.items():
            if [version.number for version in versions] != list(range(1, len(versions) + 1)):
                gaps += note("gap", operation, step, model)
            ready = {version.number for version in versions if version.status == "ready"}
            for version in versions:
                if version.number in ready and (version.digest not in whole or not registry.artefacts.exists(version.digest)):
                    try:
                        registry.artefacts.verify(version.digest)
                        whole.add(version.digest)
                    except ZooError as error:
                        torn += note("torn", operation, step, version.reference, error)
            for row in aliases:
                if row.model == model and (row.number not in ready or (row.former or 1) > len(versions)):
                    dangling += note("alias", operation, step, model, row.name, row.number, row.former)
        odd = {path.name for path in Path(root).iterdir()} - {".lock", ".unfinished"}
        for digest in odd - whole:
            try:
                registry.artefacts.verify(digest)
                whole.add(digest)
            except ZooError as error:
                torn += note("torn", operation, step, digest, error)

Registry.open(url, root).close()
last = (None, 0)
for operation in sys.argv[5:]:
    act = OPERATIONS[operation]
    step, alive = begin, False
    while not alive:
        with Registry.open(url, root) as registry:
            check(registry, *last)
            try:
                a, b, c = settle(registry)
            except ZooError as error:
                stuck += note("stuck", operation, step, error)
        made = artefact()
        gc.collect()
        child = os.fork()
        if child == 0:
            seen = 0
            def trace(frame, event, argument):
                global seen
                if frame.f_code.co_filename not in watched:
                    return None
                seen += event == "line"
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return trace
            sys.settrace(trace)
            with Registry.open(url, root) as registry:
                act(registry, a, b, c, made)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        alive = os.WIFEXITED(status)
        if alive and os.WEXITSTATUS(status):
            note("failed", operation, step, status)
            sys.exit(f"{operation} fails by itself")
        kills += not alive
        by[operation] = by.get(operation, 0) + (not alive)
        last = (operation, step)
        step += stride
with Registry.open(url, root) as registry:
    check(registry, *last)
print(json.dumps({"kills": kills, "by": by, "torn": torn, "dangling": dangling, "gaps": gaps, "stuck": stuck, "first": first}))
"""


OPERATIONS = ("register", "register a new model", "promote", "promote to a new alias", "rollback", "tag", "retire", "keep")


def killed(url: str, root: Path, begin: int, stride: int, *operations: str) -> dict[str, Any]:
    """What is wrong after writers were killed at line ``begin`` of each operation, ``begin + stride`` and so on: ``KILLED``."""
    return _child(KILLED, url, root, begin, stride, *(operations or OPERATIONS))


def p10() -> list[Figure]:
    stride = 60 if QUICK else 2
    with databases() as urls, ThreadPoolExecutor(PARTS) as pool, tempfile.TemporaryDirectory(dir=memory()) as folder:

        def one(part: tuple[str, str]) -> tuple[str, dict[str, Any]]:
            name, operation = part
            own = Path(tempfile.mkdtemp(dir=folder))
            # every line is one of either's: the odd ones on SQLite, the even ones on PostgreSQL
            began, url = time.monotonic(), urls[name](own)
            said = killed(url, own / "artefacts", 1 + list(urls).index(name), stride, operation)
            print(f"{name}, {operation}: {said}, {time.monotonic() - began:.0f} s", flush=True)
            return name, said

        found = list(pool.map(one, [(name, operation) for operation in OPERATIONS for name in urls]))
    total = {key: sum(each[key] for _, each in found) for key in ("kills", "torn", "dangling", "gaps", "stuck")}
    by = ", ".join(f"{what} {count}" for what, count in sum((Counter(each["by"]) for _, each in found), Counter[str]()).items())
    wrong = total["torn"] + total["dangling"] + total["gaps"] + total["stuck"]
    return [
        Figure(
            id="P10",
            what=f"torn artefacts, aliases to missing versions, gaps and stuck writers after {total['kills']} kills, at every line ({by})",
            ours=wrong,
            unit="faults",
            must="0 of 1,000 kills",
            reached=wrong == 0 and total["kills"] >= KILLS,
            why=str([each["first"] for _, each in found]),
        )
    ]


# Forks registrants that begin at one moment, each with a registry of its own.
REGISTERED = """
import json, os, sys, time
import numpy as np
import alembic.command, psycopg
import zoo.registry.registry
from zoo.contract import Artefact
from zoo.registry import Registry

url, root, registrants, versions = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
Registry.open(url, root).close()
wait, go = os.pipe()
out = []
for number in range(registrants):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        os.read(wait, 1)
        said = {"numbers": [], "errors": [], "longest": 0.0}
        with Registry.open(url, root) as registry:
            for turn in range(versions):
                began = time.monotonic()
                try:
                    made = registry.register("churn", Artefact({"w": np.array([number, turn])}), {"turn": turn}, {"by": number})
                    said["numbers"].append((made.number, turn))
                except BaseException as error:
                    said["errors"].append(f"{type(error).__name__}: {error}"[:200])
                said["longest"] = max(said["longest"], time.monotonic() - began)
        with os.fdopen(write, "w") as file:
            json.dump(said, file)
        os._exit(0)
    os.close(write)
    out.append((number, child, read))
began = time.monotonic()
os.close(go)
numbers, errors, longest, died, given = [], [], 0.0, 0, {}
for number, child, read in out:
    with os.fdopen(read) as file:
        text = file.read()
    status = os.waitpid(child, 0)[1]
    died += status != 0
    said = json.loads(text or '{"numbers": [], "errors": [], "longest": 0}')
    numbers += [each for each, _ in said["numbers"]]
    given |= {each: (number, turn) for each, turn in said["numbers"]}
    errors += said["errors"]
    longest = max(longest, said["longest"])
seconds = time.monotonic() - began
with Registry.open(url, root) as registry:
    kept = registry.versions("churn")
    wrong = sum(given.get(v.number) != (v.lineage["by"], v.metrics["turn"]) for v in kept)
    for version in kept[:: max(1, len(kept) // 200)]:
        _, artefact = registry.load(version.reference)
        wrong += artefact.arrays["w"].tolist() != [version.lineage["by"], version.metrics["turn"]]
print(json.dumps({"answered": len(numbers), "unique": len(set(numbers)), "kept": len(kept), "gaps": sum(
    version.number != place for place, version in enumerate(kept, 1)), "wrong": wrong, "errors": len(errors), "first": errors[:3],
    "died": died, "longest": longest, "seconds": seconds}))
"""


def p11() -> list[Figure]:
    out = []
    asked = REGISTRANTS * VERSIONS
    with databases() as urls:
        for name, url in urls.items():
            with tempfile.TemporaryDirectory(dir=memory()) as folder:
                found = _child(REGISTERED, url(Path(folder)), Path(folder) / "artefacts", REGISTRANTS, VERSIONS)
            print(name, found, flush=True)
            lost = asked - found["unique"]
            faults = lost + found["gaps"] + found["wrong"] + found["errors"] + found["died"] + abs(found["kept"] - asked)
            out.append(
                Figure(
                    id=f"P11{'' if name == 'sqlite' else 'b'}",
                    what=f"of {asked} versions by {REGISTRANTS} processes at once, {name}: lost, twice, with a gap, wrong or with an error "
                    f"({found['unique']} unique numbers; the longest wait was {found['longest']:.1f} s)",
                    ours=faults,
                    unit="versions",
                    must="0 of 6,400",
                    reached=faults == 0,
                    why=f"{found}",
                )
            )
    return out


def p13() -> list[Figure]:
    refused, total, let = corpus()
    fuzz = fuzzed()
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(fuzz["seen"].items()))
    wrong = fuzz["crashes"] + len(fuzz["outside"]) + len(fuzz["escaped"])
    tried = sum(fuzz["seen"].values()) + fuzz["crashes"]
    return [
        Figure(
            id="P13",
            what=f"malicious artefacts refused with an ArtefactError or a PluginError, of {total}",
            ours=refused,
            unit="cases",
            lower_is_better=False,
            must="all of at least 100",
            reached=refused == total >= 100,
            why=str(let[:5]),
        ),
        Figure(
            id="P13b",
            what=f"crashes, reads outside the root (seen by an audit hook) and errors of other kinds, in {tried} mutated inputs ({kinds})",
            ours=wrong,
            unit="faults",
            must="0 of 1,000,000",
            reached=wrong == 0 and tried >= FUZZED,
            why=f"{tried} of {FUZZED} tried; { ({key: fuzz[key] for key in ('crashes', 'died', 'outside', 'escaped')}) }"[:600],
        ),
    ]


def corpus() -> tuple[int, int, list[str]]:
    """(refused, all, what was not): every case of tests/malicious.py, and those of the models in torch."""
    import malicious
    import malicious_torch

    from zoo.errors import ArtefactError, PluginError

    let = []
    for case in malicious.FILES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                malicious.read(case, Path(folder))
                let.append(case)
            except ArtefactError:
                pass
            except Exception as error:
                let.append(f"{case}: {type(error).__name__}")
    for module in (malicious, malicious_torch):
        for case, change in module.CONTENTS.items():
            try:
                module.load(change(module.good()))
                let.append(case)
            except (ArtefactError, PluginError):
                pass
            except Exception as error:
                let.append(f"{case}: {type(error).__name__}")
    total = len(malicious.FILES) + len(malicious.CONTENTS) + len(malicious_torch.CONTENTS)
    if Path("/tmp/zoo-was-here").exists():
        let.append("a pickle or YAML was run: /tmp/zoo-was-here is there")
    return total - len(let), total, let


def fuzzed() -> dict[str, Any]:
    """What children say of FUZZED inputs, a crash counted and passed over."""
    found: dict[str, Any] = {"seen": Counter(), "outside": Counter(), "escaped": {}, "crashes": 0, "died": []}
    began = time.monotonic()

    def chunk(first: int) -> None:
        end = first + CHUNK
        while first < end:
            with tempfile.TemporaryDirectory(dir=memory()) as folder:
                (Path(folder) / "at").write_bytes(struct.pack("<q", first))
                done = subprocess.run(
                    [sys.executable, HERE / "fuzz_loader.py", folder, str(first), str(end - first)],
                    capture_output=True,
                    text=True,
                    check=False,
                    start_new_session=True,
                )
                (at,) = struct.unpack("<q", (Path(folder) / "at").read_bytes())
            if done.returncode == 0:
                said = json.loads(done.stdout.splitlines()[-1])
                found["seen"].update(said["seen"])
                found["outside"].update(said["outside"])
                found["escaped"] |= said["escaped"]
                first = end
            else:
                found["crashes"] += 1
                found["seen"]["before a crash"] += at - first
                found["died"].append((at, done.returncode, done.stderr[-300:]))
                first = at + 1
        print(f"{sum(found['seen'].values())} tried in {time.monotonic() - began:.0f} s, {found['crashes']} crashes", flush=True)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(chunk, range(0, FUZZED, CHUNK)))
    return found
