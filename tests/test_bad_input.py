"""Bad input, tried: what it answers, and that afterwards nothing is lost and the next command works.

``python tests/test_bad_input.py`` writes docs/reference/bad-input.md from what was seen.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import shop
import test_bad_pushes
import tiny_shop
from shop import Shop

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "bad-input.md"
HEAD = """# Bad input

What happens with input that cannot be meant. Each row is a case of `tests/test_bad_input.py`, which tries it and then checks that
a prediction made before comes out the same after; `python tests/test_bad_input.py` writes this page from what it saw.
Exit codes: 0 fine, 1 could not, 2 misused, 130 interrupted.

| tried | command or entrance | seen | afterwards |
|---|---|---|---|
"""
PUSHED = """
## Bad events, by every entrance

Two events, one or both of them bad. What is refused is refused whole, and nothing of it is taken; rows that are kept apart are counted in
the report and stand in the quarantine with their reason. Each row is a case of `tests/test_bad_pushes.py`, which then pushes a good
event and finds it online. `store.push` is refused by Feast itself, in its words, before our code sees the frame. A push of a million
events of one user is taken (not over HTTP, where a body has at most 4 MiB); online answers then come from the newest `max_events`.

| tried | entrance | seen |
|---|---|---|
"""
GOOD = ["predict", "churn", "--user", "1", "--user", "2", "--json"]


@dataclass(frozen=True)
class Case:
    """prepare: makes the bad thing in a project and returns the command. after: what is done before the good command, in words and deed."""

    tried: str
    command: str
    prepare: Callable[[Path], list[str]]
    code: int
    says: str
    after: str = "the same answers as before"
    mend: Callable[[Path], None] = lambda root: None


@dataclass(frozen=True)
class Seen:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        return " ".join((self.err.strip() or self.out.strip()).split())


def zoo(root: Path, *arguments: str) -> Seen:
    """Run a command in this process."""
    from zoo.cli.app import app

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(["--repo", str(root), *arguments], prog_name="zoo")
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Seen(code, out.getvalue(), err.getvalue())


def file(content: Any, name: str = "bad.parquet") -> Callable[[Path], list[str]]:
    """A case that ingests a file of this content: bytes, text or columns."""

    def prepare(root: Path) -> list[str]:
        path = root / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            content().write_parquet(path)
        return ["ingest", str(path)]

    return prepare


def row(**changes: Any) -> Callable[[], pl.DataFrame]:
    """One good purchase with something else in place of a column; ``None`` as a type leaves the column out."""

    def make() -> pl.DataFrame:
        good: dict[str, Any] = {
            "user_id": 1,
            "item_id": 3,
            "event_type": "purchase",
            "timestamp": "2024-05-01T00:00:00Z",
            "value": 2.5,
        }
        frame = pl.DataFrame({k: [v] for k, v in good.items()}).with_columns(
            pl.col("timestamp").str.to_datetime(time_unit="us", time_zone="UTC")
        )
        for name, value in changes.items():
            frame = frame.drop(name) if value is None else frame.with_columns(value.alias(name))
        return frame

    return make


def settings(whole: str, broken: str, command: list[str]) -> Callable[[Path], list[str]]:
    def prepare(root: Path) -> list[str]:
        path = root / "zoo.toml"
        text = path.read_text(encoding="utf-8")
        shutil.copy(path, root / "zoo.toml.kept")
        assert whole in text
        path.write_text(text.replace(whole, broken, 1), encoding="utf-8")
        return command

    return prepare


def settings_back(root: Path) -> None:
    shutil.move(root / "zoo.toml.kept", root / "zoo.toml")


def damage(pattern: str, how: Callable[[bytes], bytes | None], command: list[str]) -> Callable[[Path], list[str]]:
    """Change every file of a pattern, keeping the whole ones beside the project."""

    def prepare(root: Path) -> list[str]:
        for path in sorted(root.glob(pattern)):
            kept = root.parent / "kept" / path.relative_to(root)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept)
            changed = how(path.read_bytes())
            path.chmod(0o644)
            path.unlink() if changed is None else path.write_bytes(changed)
        assert (root.parent / "kept").exists()
        return command

    return prepare


def _settled(root: Path) -> None:
    """Move what SQLite keeps beside the online store into it: a process that ends without closing leaves that to the next."""
    from contextlib import closing
    from sqlite3 import connect

    with closing(connect(root / "data/online.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def restore(root: Path) -> None:
    kept = root.parent / "kept"
    for path in kept.rglob("*"):
        if path.is_file():
            shutil.copy(path, root / path.relative_to(kept))
    shutil.rmtree(kept)
    for leftover in (root / "data").glob("registry.db-*"):
        leftover.unlink()


def plugin(source: str, command: list[str]) -> Callable[[Path], list[str]]:
    """A distribution with one plugin, as pip would leave it."""

    def prepare(root: Path) -> list[str]:
        site = root.parent / "site"
        info = site / "zoo_bad-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "zoo_bad_plugin.py").write_text(source, encoding="utf-8")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-bad\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text("[zoo]\nbad = zoo_bad_plugin\n", encoding="utf-8")
        sys.path.insert(0, str(site))
        return command

    return prepare


def uninstall(root: Path) -> None:
    sys.path.remove(str(root.parent / "site"))
    sys.modules.pop("zoo_bad_plugin", None)
    shutil.rmtree(root.parent / "site")


def definitions(change: Callable[[str], str], command: list[str]) -> Callable[[Path], list[str]]:
    return damage("definitions.py", lambda text: change(text.decode()).encode(), command)


def definitions_back(root: Path) -> None:
    restore(root)
    assert zoo(root, "apply").code == 0


def keep_none(_: bytes) -> None:
    return None


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


FUTURE = pl.lit("2999-01-01T00:00:00Z").str.to_datetime(time_unit="us", time_zone="UTC")
MEND_SETTINGS = {"mend": settings_back, "after": "with the old text: the same answers as before"}
MEND_FILE = {"mend": restore, "after": "with the file back: the same answers as before"}
MEND_PLUGIN = {"mend": uninstall, "after": "uninstalled: the same answers as before"}
PREDICT = GOOD[:4]
CASES = [
    Case("a file that is not what its name says", "zoo ingest bad.parquet", file(b"not parquet at all"), 1, "bad.parquet"),
    Case("an empty file", "zoo ingest bad.csv", file("", "bad.csv"), 1, "bad.csv"),
    Case(
        "a file that is not there",
        "zoo ingest missing.parquet",
        lambda root: ["ingest", str(root / "missing.parquet")],
        2,
        "missing.parquet",
    ),
    Case("a directory in place of a file", "zoo ingest data", lambda root: ["ingest", str(root / "data")], 2, "data"),
    Case("a missing column", "zoo ingest bad.parquet", file(row(event_type=None)), 1, "event_type"),
    Case("a column of another type", "zoo ingest bad.parquet", file(row(value=pl.lit("cheap"))), 1, "value"),
    Case("text for whole-number ids", "zoo ingest bad.parquet", file(row(user_id=pl.lit("1"))), 1, "user_id"),
    Case(
        "two columns of one name",
        "zoo ingest bad.csv",
        file("user_id,user_id,item_id,event_type,timestamp\n1,1,3,purchase,2024-05-01T00:00:00Z\n", "bad.csv"),
        1,
        "user_id",
    ),
    Case(
        "times without a timezone",
        "zoo ingest bad.parquet",
        file(row(timestamp=pl.col("timestamp").dt.replace_time_zone(None))),
        1,
        "timezone",
    ),
    Case(
        "a time in the future",
        "zoo ingest bad.parquet",
        file(row(timestamp=FUTURE)),
        1,
        "timestamp_after_now|after",
        "kept apart with its reason; the same answers as before",
    ),
    Case(
        "a time that cannot be read",
        "zoo ingest bad.csv",
        file("user_id,item_id,event_type,timestamp\n1,3,purchase,soon\n", "bad.csv"),
        1,
        "unreadable",
        "kept apart with its reason; the same answers as before",
    ),
    Case(
        "an event without a user",
        "zoo ingest bad.parquet",
        file(row(user_id=pl.lit(None, pl.Int64))),
        1,
        "user",
        "kept apart with its reason; the same answers as before",
    ),
    Case(
        "an infinite value",
        "zoo ingest bad.parquet",
        file(row(value=pl.lit(float("inf")))),
        1,
        "finite",
        "kept apart with its reason; the same answers as before",
    ),
    Case("an unknown task", "zoo train chrun", lambda root: ["train", "chrun"], 2, "chrun.*choose one of"),
    Case(
        "a model that is not registered",
        "zoo predict behaviour --user 1",
        lambda root: ["predict", "behaviour", "--user", "1"],
        2,
        "behaviour",
    ),
    Case("a version that is not registered", "zoo promote churn@99", lambda root: ["promote", "churn@99"], 2, "99"),
    Case(
        "an alias that is not there",
        "zoo predict churn@best --user 1",
        lambda root: ["predict", "churn@best", "--user", "1"],
        2,
        "best",
    ),
    Case(
        "a user whom the log does not know",
        "zoo predict churn --user 999999",
        lambda root: ["predict", "churn", "--user", "999999", "--json"],
        0,
        '"known": false',
        "a marked answer; the same answers as before",
    ),
    Case(
        "an id of the wrong type", "zoo predict churn --user anna", lambda root: ["predict", "churn", "--user", "anna"], 2, "anna"
    ),
    Case(
        "a time that cannot be read", "zoo predict churn --user 1 --at soon", lambda root: [*PREDICT, "--at", "soon"], 2, "soon"
    ),
    Case(
        "an option that does not exist", "zoo predict churn --usr 1", lambda root: ["predict", "churn", "--usr", "1"], 2, "--usr"
    ),
    Case(
        "a project without zoo.toml",
        "zoo predict churn --user 1",
        damage("zoo.toml", keep_none, PREDICT),
        2,
        "zoo.toml",
        **MEND_FILE,
    ),
    Case(
        "a zoo.toml that is not TOML",
        "zoo predict churn --user 1",
        settings("[zoo]", "[zoo", PREDICT),
        2,
        "not TOML",
        **MEND_SETTINGS,
    ),
    Case(
        "an unknown key in zoo.toml",
        "zoo predict churn --user 1",
        settings("timezone", "timezon", PREDICT),
        2,
        "timezon",
        **MEND_SETTINGS,
    ),
    Case(
        "a member that does not exist",
        "zoo train churn",
        settings('["gbdt", "gru"]', '["gbdt", "gru", "gru2"]', ["train", "churn"]),
        2,
        "gru2.*choose one of",
        **MEND_SETTINGS,
    ),
    Case(
        "a parameter that does not exist",
        "zoo train churn",
        settings("num_leaves = 4", "num_leafs = 4", ["train", "churn"]),
        2,
        "num_leafs",
        **MEND_SETTINGS,
    ),
    Case(
        "no feature_store.yaml",
        "zoo predict churn --user 1",
        damage("feature_store.yaml", keep_none, PREDICT),
        1,
        "feature_store.yaml",
        **MEND_FILE,
    ),
    Case(
        "a feature definition that is no Python",
        "zoo apply",
        definitions(lambda t: t + "\nthis is no python at all\n", ["apply"]),
        1,
        "definitions",
        mend=definitions_back,
        after="with the old definitions: the same answers as before",
    ),
    Case(
        "a feature of a column that the log does not have",
        "zoo train churn",
        lambda root: [*_applied(root, lambda t: t.replace('"value"', '"valeu"')), "train", "churn"],
        1,
        "no event column .valeu.",
        mend=definitions_back,
        after="with the old definitions: the same answers as before",
    ),
    Case(
        "features changed since training",
        "zoo predict churn --user 1",
        lambda root: [
            zoo(root, *definitions(lambda t: t.replace('"28d"', '"21d"'), ["apply"])(root)) and "predict",
            *PREDICT[1:],
        ],
        1,
        "not the one that churn@1 was trained on",
        mend=definitions_back,
        after="with the old definitions: the same answers as before",
    ),
    Case(
        "a plugin that does not import",
        "zoo plugins",
        plugin("import no_such_module_at_all\n", ["plugins"]),
        1,
        "zoo-bad.*no_such_module_at_all|no_such_module_at_all",
        **MEND_PLUGIN,
    ),
    Case(
        "a hook name misspelt",
        "zoo plugins",
        plugin("from zoo.plugin import hookimpl\n\n@hookimpl\ndef zoo_modls():\n    return []\n", ["plugins"]),
        1,
        "zoo_modls.*zoo_models",
        **MEND_PLUGIN,
    ),
    Case(
        "a model name that is taken",
        "zoo plugins",
        plugin(
            "from zoo.plugin import hookimpl\nfrom zoo_gbdt import GBDT\n\n@hookimpl\ndef zoo_models():\n    return [GBDT()]\n",
            ["plugins"],
        ),
        1,
        "gbdt.*zoo-bad",
        **MEND_PLUGIN,
    ),
    Case(
        "a model whose plugin is not there",
        "zoo --without gbdt predict churn --user 1",
        lambda root: ["--without", "gbdt", *PREDICT],
        1,
        "pip install feature-zoo-gbdt==",
    ),
    Case(
        "one flipped byte in an artefact",
        "zoo predict churn --user 1",
        damage("data/artefacts/*/arrays.safetensors", flipped, PREDICT),
        1,
        "sha256|digest|expected",
        **MEND_FILE,
    ),
    Case(
        "an artefact cut in half",
        "zoo predict churn --user 1",
        damage("data/artefacts/*/arrays.safetensors", half, PREDICT),
        1,
        "bytes|expected",
        **MEND_FILE,
    ),
    Case(
        "an artefact deleted",
        "zoo predict churn --user 1",
        damage("data/artefacts/*/*.safetensors", keep_none, PREDICT),
        1,
        "artefact",
        **MEND_FILE,
    ),
    Case(
        "a registry database cut in half",
        "zoo predict churn --user 1",
        damage("data/registry.db", half, PREDICT),
        1,
        "registry|database",
        **MEND_FILE,
    ),
    Case(
        "a registry that is no database",
        "zoo models",
        damage("data/registry.db", lambda _: b"hello" * 500, ["models"]),
        1,
        "registry|database",
        **MEND_FILE,
    ),
    Case(
        "an online store cut in half",
        "zoo predict churn --user 1",
        lambda root: _settled(root) or damage("data/online.db", half, PREDICT)(root),
        1,
        "online store",
        **MEND_FILE,
    ),
    Case(
        "a file that is in the log already",
        "zoo ingest again.parquet",
        lambda root: _twice(root),
        0,
        r"known already\s+1",
        "it adds nothing; the same answers as before",
    ),
]


def _applied(root: Path, change: Callable[[str], str]) -> list[str]:
    """Change the definitions and apply them; no arguments of the command that follows."""
    assert zoo(root, *definitions(change, ["apply"])(root)).code == 0
    return []


def _twice(root: Path) -> list[str]:
    path = root / "again.parquet"
    row(user_id=pl.lit(777))().write_parquet(path)
    assert zoo(root, "ingest", str(path)).code == 0
    return ["ingest", str(path)]


@contextlib.contextmanager
def project(source: Path) -> Iterator[tuple[Path, str]]:
    """A copy of a trained shop in a folder of its own, and what the good command answers."""
    with tempfile.TemporaryDirectory(prefix="bad-input-") as folder:
        root = Path(folder) / "shop"
        shutil.copytree(source, root)
        yield root, answer(root)


def events(root: Path) -> int:
    """How many the log holds, as whoever opens it sees."""
    from zoo.events.log import EventLog

    return EventLog.open(root / "data" / "log").count()


def answer(root: Path) -> str:
    """What the good command answers, less the identifiers by which answers are traced."""
    good = zoo(root, *GOOD)
    assert good.code == 0, good
    return re.sub(r'"id": "[0-9a-f]+-\d+"', "", good.out)


def tried(case: Case, root: Path, good: str) -> Seen:
    """Try a case; fails where the answer is another than stated, or where something was lost by it."""
    command = case.prepare(root)
    held = events(root)
    seen = zoo(root, *command)
    try:
        assert seen.code == case.code, seen
        assert re.search(case.says, seen.out + seen.err, re.DOTALL), seen
        assert "Traceback" not in seen.out + seen.err
    finally:
        case.mend(root)
    assert events(root) == held, "the log has other events than before"
    assert answer(root) == good
    return seen


@pytest.fixture(scope="module")
def ready(trained_shop: Shop) -> Iterator[tuple[Path, str]]:
    with project(trained_shop.root) as found:
        yield found


@pytest.mark.parametrize("case", CASES, ids=[f"{i + 1}-{c.tried.replace(' ', '-')}" for i, c in enumerate(CASES)])
def test_bad_input_is_named_and_loses_nothing(case: Case, ready: tuple[Path, str]) -> None:
    tried(case, *ready)


def test_a_push_without_ids_is_refused_and_adds_nothing(ready: tuple[Path, str]) -> None:
    from zoo.errors import UsageError
    from zoo.features import Features

    root, good = ready
    features = Features.open(root)
    before = features.reader.view().log.count()
    with pytest.raises(UsageError, match="no event_id"):
        features.append([{"user_id": 1, "item_id": 2, "event_type": "purchase", "timestamp": "2024-05-29T00:00:00Z"}])
    assert features.reader.view().log.count() == before
    assert answer(root) == good


def _run(root: Path, *arguments: str, limit: int | None = None) -> subprocess.Popen[str]:
    import resource

    def small() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "zoo", "--repo", str(root), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=small,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def big_file(root: Path, rows: int) -> Path:
    columns = shop.events(seed=9)
    table = pl.from_arrow(shop.table_of(columns))
    assert isinstance(table, pl.DataFrame)
    path = root / "big.csv"
    pl.concat([table] * (rows // len(table) + 1)).with_columns(
        pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    ).write_csv(path)
    return path


def full_disk(root: Path) -> Seen:
    """Ingest where no file may grow beyond 20 kB."""
    process = _run(root, "ingest", str(big_file(root, 20_000)), limit=20_000)
    out, err = process.communicate(timeout=120)
    return Seen(process.returncode, out, err)


def _group(leader: int) -> list[str]:
    """Processes of a group that still run."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [pid for pid, group, state in rows if group == str(leader) and not state.startswith("Z")]


def _works(pid: str) -> bool:
    """Whether a process is a worker that trains: a child that has used a second of the processor."""
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        used = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
        return b"spawn_main" in line and used > 1
    return False


def _reads(pid: int) -> bool:
    """Whether the process has the big file open."""
    with contextlib.suppress(OSError):
        return any(f.readlink().name == "big.csv" for f in Path(f"/proc/{pid}/fd").iterdir())
    return False


def interrupted(root: Path, *arguments: str, when: Callable[[int], bool]) -> Seen:
    """Ctrl-C, to the whole process group as a terminal sends it, once ``when`` holds of the process."""
    process = _run(root, *arguments)
    deadline = time.monotonic() + 100
    while not when(process.pid):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    deadline = time.monotonic() + 20
    while _group(process.pid) and time.monotonic() < deadline:  # a helper of multiprocessing ends a moment after its parent
        time.sleep(0.1)
    assert _group(process.pid) == [], "processes were left behind"
    return Seen(process.returncode, out, err)


ROUGH: list[tuple[str, str, Callable[[Path], Seen], int, str]] = [
    ("a full disk (no file may grow beyond 20 kB)", "zoo ingest big.csv", full_disk, 1, "space|large|disk"),
    (
        "Ctrl-C in the middle of ingest",
        "zoo ingest big.csv",
        lambda root: interrupted(root, "ingest", str(big_file(root, 3_000_000)), when=_reads),
        130,
        "interrupted",
    ),
    ("Ctrl-C in the middle of training", "zoo train churn", lambda root: _training_interrupted(root), 130, "interrupted"),
]


def _training_interrupted(root: Path) -> Seen:
    text = (root / "zoo.toml").read_text(encoding="utf-8")
    (root / "zoo.toml").write_text(text.replace("num_trees = 30", "num_trees = 20000"), encoding="utf-8")
    try:
        return interrupted(root, "train", "churn", when=lambda pid: sum(map(_works, _group(pid))) > 1)
    finally:
        (root / "zoo.toml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("rough", ROUGH, ids=[r[0].replace(" ", "-") for r in ROUGH])
def test_what_is_cut_off_loses_nothing(rough: tuple[str, str, Callable[[Path], Seen], int, str], ready: tuple[Path, str]) -> None:
    _, _, do, code, says = rough
    root, good = ready
    held = events(root)
    seen = do(root)
    assert seen.code == code, seen
    assert events(root) == held, "half a file is in the log"
    assert re.search(says, seen.err), seen
    assert "Traceback" not in seen.err
    assert answer(root) == good


def test_the_page_holds_every_case() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, command in [(c.tried, c.command) for c in CASES] + [(r[0], r[1]) for r in ROUGH]:
        assert f"| {name} | `{command}` |" in page, f"run: python {Path(__file__).name}"
    for pushed in test_bad_pushes.CASES:
        assert f"| {pushed.tried} |" in page, f"run: python {Path(__file__).name}"


def shown(seen: Seen, root: Path) -> str:
    """Exit code and the message, without folders of this run."""
    text = seen.message
    if seen.code == 0 and seen.out.strip().startswith("["):
        text = json.dumps(json.loads(seen.out)[0])
    for folder in (str(root.resolve()), str(root), str(root.parent)):
        text = text.replace(folder + "/", "").replace(folder, ".")
    text = re.sub(r"[─│┌┐└┘|]+", " ", text)
    text = " ".join(text.split())
    return f"{seen.code}: {text if len(text) <= 260 else text[:257] + '...'}"


def write_page() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = shop.make_shop(Path(folder) / "shop")
        lines = []
        with project(made.root) as (root, good):
            for case in CASES:
                lines.append(f"| {case.tried} | `{case.command}` | {shown(tried(case, root, good), root)} | {case.after} |")
            for name, command, do, code, _ in ROUGH:
                seen = do(root)
                assert (seen.code, answer(root)) == (code, good), seen
                lines.append(f"| {name} | `{command}` | {shown(seen, root)} | the same answers as before |")
        pushed = pushes_tried(Path(folder))
    PAGE.write_text(HEAD + "\n".join(lines) + "\n" + PUSHED + "\n".join(pushed) + "\n", encoding="utf-8")


def pushes_tried(folder: Path) -> list[str]:
    """A line for each bad push and answer, with the entrances that gave it."""
    from zoo.features import apply

    (folder / "tiny" / "data").mkdir(parents=True)
    (folder / "tiny" / "definitions.py").write_text(tiny_shop.DEFINITIONS)
    (folder / "tiny" / "feature_store.yaml").write_text(tiny_shop.settings())
    apply(folder / "tiny")
    lines = []
    for number, case in enumerate(test_bad_pushes.CASES):
        seen: dict[str, list[str]] = {}
        for name, door in test_bad_pushes.DOORS.items():
            root = Path(shutil.copytree(folder / "tiny", folder / f"{name}-{number}"))
            tiny_shop.make_log(root)
            said = " ".join(test_bad_pushes.tried(case, name, root).replace(f"{root}/", "").replace("|", " ").split())
            seen.setdefault(said if len(said) <= 260 else f"{said[:257]}...", []).append(door.name)
        lines += [f"| {case.tried} | {', '.join(doors)} | {said} |" for said, doors in seen.items()]
    return lines


if __name__ == "__main__":
    write_page()
