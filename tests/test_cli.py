"""The command line: light to start, one document or text on stdout, everything else on stderr, and exit codes that mean something."""

from __future__ import annotations

import io
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from shop import START, Shop
from typer.main import get_command

from zoo.cli import render
from zoo.cli.app import app
from zoo.cli.given import instant
from zoo.cli.state import READS, State
from zoo.cli.train import beyond, too_few
from zoo.contract import Artefact, Column, FeatureBatch, TrainingData
from zoo.errors import FeatureError, UsageError
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema
from zoo.features import Features
from zoo.policy import Policy
from zoo.registry import Registry

HEAVY = ("torch", "feast", "transformers", "pydantic", "numpy", "sqlalchemy", "rich", "pyarrow", "polars", "lightgbm", "pandas")
DAY = 86_400_000_000


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Zoo = Callable[..., Answer]
Distribute = Callable[..., None]


@pytest.fixture
def zoo(capfd: pytest.CaptureFixture[str]) -> Zoo:
    """Runs a command in this process."""

    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(a) for a in arguments], prog_name="zoo")
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return Answer(int(ended.value.code or 0), streams.out, streams.err)

    return run


@pytest.fixture
def distribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribute:
    """Installs a distribution with one plugin: a module and the metadata that pip would write."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def make(name: str, source: str) -> None:
        module = f"zoo_{name}_for_cli"
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
        info = folder / f"zoo_{name}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: zoo-{name}\nVersion: 1.2.3\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[zoo]\n{name} = {module}\n", encoding="utf-8")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a log of string users and nothing in it."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "zoo.toml").write_text('[zoo]\ntimezone = "Europe/Berlin"\n\n[tasks.churn]\nmembers = ["gbdt"]\n')
    (root / "feature_store.yaml").write_text(
        "project: p\noffline_store:\n  type: zoo.stores.EventLogOfflineStore\n  log: data/log\n"
    )
    EventLog.create(root / "data" / "log", LogSchema())
    return root


def events(path: Path, rows: int = 3) -> Path:
    """A file of events, one a day."""
    frame = pl.DataFrame(
        {"user_id": range(rows), "item_id": range(rows), "event_type": ["view"] * rows, "timestamp": range(rows)}
    )
    frame.with_columns(pl.from_epoch(pl.col("timestamp") * 86_400).dt.replace_time_zone("UTC").alias("timestamp")).write_parquet(
        path
    )
    return path


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with what it is called."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        below: Mapping[str, Any] = getattr(command, "commands", {})
        yield from [(f"{name} {sub}", found) for sub, found in below.items()] or [(name, command)]


COMMANDS = dict(commands())


# Starting


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from zoo.cli.app import app\n"
        "try:\n    app(['--help'], prog_name='zoo')\n"
        f"except SystemExit as end:\n    sys.exit(end.code or ' '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "train" in ran.stdout


def test_help_takes_at_most_three_tenths_of_a_second_more_than_python_alone() -> None:
    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # what the processor spends, not the clock: it depends less on the neighbours; the quickest of many, alternately
    ours, python = [], []
    while len(ours) < 5 or (min(ours) - min(python) > 0.3 and len(ours) < 30):
        python.append(seconds("-c", "pass"))
        ours.append(seconds("-m", "zoo", "--help"))
    assert min(ours) - min(python) <= 0.3


def test_the_commands_are_those_of_the_documentation() -> None:
    expected = [
        "init",
        "apply",
        "ingest",
        "materialize",
        "check-features",
        "forget",
        "train",
        "tune",
        "models",
        "promote",
        "rollback",
        "demote",
        "tag",
        "retire",
        "export",
        "import",
        "predict",
        "explain",
        "report",
        "recommend",
        "item-vectors",
        "uplift",
        "trace",
        "serve",
        "key",
        "plugins",
        "demo",
    ]
    assert list(COMMANDS) == [*expected, "plugin check"]


def test_commands_that_evaluate_no_definitions_import_feast_without_its_checks_of_them() -> None:
    assert set(COMMANDS) >= READS
    assert "apply" not in READS
    code = (
        "import typeguard; from zoo.cli.state import _feast_unchecked; kept = typeguard.typechecked\n"
        "with _feast_unchecked(): from feast import FeatureView\n"
        "assert typeguard.typechecked is kept; print(FeatureView.__init__.__code__.co_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "check_argument_types" not in done.stdout  # what typeguard writes into it
    assert "entities" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_with_an_example_and_offers_json(name: str, zoo: Zoo) -> None:
    answer = zoo(*name.split(), "--help")
    assert answer.code == 0
    assert f"Example: zoo {name}" in " ".join(answer.out.split())
    assert "--json" in answer.out
    assert len(COMMANDS[name].get_short_help_str(60)) < 60  # a summary that the list of commands need not cut


def test_an_example_in_a_help_is_a_command_that_would_be_understood() -> None:
    for name, command in COMMANDS.items():
        words = shlex.split(str(command.epilog).removeprefix("Example: "))[1 + len(name.split()) :]
        command.make_context(name, words)


def test_running_the_module_and_asking_for_the_version(zoo: Zoo) -> None:
    ran = subprocess.run([sys.executable, "-m", "zoo", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == zoo("--version").out
    assert ran.stdout.startswith("feature-zoo ")


# Errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "churn"], "No such command 'trian'. Did you mean 'train'"),
        (["train"], "Missing argument 'TASK'"),
        (["models", "--frist"], "No such option"),
        (["predict", "churn", "--limit", "0", "--user", "1"], "--limit"),
        (["--repo", "nowhere", "apply"], "no zoo.toml in"),
        (["--repo", "nowhere", "ingest", "x.parquet"], "make one with: zoo init DIR --events FILE"),
        (["--without", "gdbt", "plugins"], "unknown plugin 'gdbt'; choose one of:"),
        (["plugin", "check", "gruu"], "unknown model or plugin 'gruu'; choose one of:"),
        (["--without", "bert", "demo"], "--without does not go with it"),
        (["train", "churn", "--traceback"], "--traceback stands before the command, as in: zoo --traceback train"),
        (["train", "churn", "--repo=x"], "--repo stands before the command, as in: zoo --repo DIR train"),
    ],
)
def test_misuse_ends_with_2_and_says_what_is_expected(arguments: list[str], said: str, zoo: Zoo) -> None:
    answer = zoo(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in " ".join(answer.err.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "chrun"], "unknown task 'chrun'; choose one of: churn"),
        (["train", "churn", "--member", "gru"], "'gru' is no member of [tasks.churn]; its members are: gbdt"),
        (["train", "churn", "--test-start", "yesterday"], "cannot read the time 'yesterday'"),
        (["predict", "churn"], "either --user ID, which may be repeated, or --rows FILE"),
        (["predict", "churn", "--user", "1", "--rows", "x.csv"], "either --user ID"),
        (["predict", "churn", "--user", "one"], "user 'one' is no whole number; this log's user identifiers are int"),
        (["predict", "churn", "--rows", "x.csv"], "no file"),
        (["promote", "churn"], "names no version; expected MODEL@VERSION as in churn@3"),
        (["tag", "churn", "owner=anna"], "names no version; expected MODEL@VERSION as in churn@3"),
        (["tag", "churn@1", "anna"], "'anna' is no tag; expected NAME=VALUE"),
        (["retire", "churn"], "names no version; expected MODEL@NUMBER as in churn@3, or --keep N for a model"),
        (["retire", "churn@1", "--keep", "2"], "--keep asks for a model; expected churn, not churn@1"),
        (["ingest", "x.parquet"], "no file 'x.parquet'"),
        (["ingest", "zoo.toml"], "no file 'zoo.toml'"),
    ],
)
def test_misuse_within_a_project_ends_with_2(arguments: list[str], said: str, project: Path, zoo: Zoo) -> None:
    answer = zoo("--repo", project, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert answer.err.count("\n") == 1  # one paragraph


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote", "churn@3"], "no model is registered yet"),
        (["predict", "churn", "--user", "1"], "no model is registered yet"),
        (["serve", "--port", "0"], "no model is registered yet"),
        (["materialize"], "no feature service yet"),
        (["plugin", "check", "folds"], "plugin 'folds' adds no model"),
    ],
)
def test_what_cannot_be_done_ends_with_1(arguments: list[str], said: str, project: Path, zoo: Zoo) -> None:
    (project / "feature_store.yaml").write_text(
        "project: p\nprovider: local\nregistry: data/registry_of_feast.db\nentity_key_serialization_version: 3\n"
        "offline_store:\n  type: zoo.stores.EventLogOfflineStore\n"
        "online_store:\n  type: zoo.stores.SqliteEventOnlineStore\n  path: data/online.db\n"
    )
    answer = zoo("--repo", project, *arguments)
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.err


@pytest.mark.parametrize("arguments", [["models"], ["promote", "churn@1"], ["predict", "churn", "--user", "1"]])
def test_a_command_that_only_reads_creates_nothing(arguments: list[str], project: Path, zoo: Zoo) -> None:
    before = sorted(project.rglob("*"))
    answer = zoo("--repo", project, *arguments)
    assert answer.code == (0 if arguments == ["models"] else 1)
    assert "no model is registered yet" in answer.out + answer.err
    assert sorted(project.rglob("*")) == before


def test_a_model_version_or_alias_that_the_registry_does_not_have_is_misuse(trained_shop: Shop, zoo: Zoo) -> None:
    for arguments, said in (
        (["predict", "chrun", "--user", "1"], "unknown model 'chrun'; choose one of: campaign, churn"),
        (["predict", "churn@best", "--user", "1"], "no alias 'best'"),
        (["promote", "churn@99"], "no version 99"),
        (["serve", "chrun", "--port", "0"], "unknown model 'chrun'"),
    ):
        answer = zoo("--repo", trained_shop.root, *arguments)
        assert (answer.code, answer.out) == (2, "")
        assert said in answer.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("offline_store: {", "is not YAML"),
        ("project: p\n", "names no event log"),
        ("offline_store:\n  type: file\n", "names no event log"),
        ("offline_store:\n  type: zoo.stores.EventLogOfflineStore\n  log: elsewhere\n", "no event log in"),
    ],
)
def test_a_store_that_names_no_log_is_said(text: str, said: str, project: Path, tmp_path: Path, zoo: Zoo) -> None:
    (project / "feature_store.yaml").write_text(text)
    answer = zoo("--repo", project, "ingest", events(tmp_path / "e.parquet"))
    assert answer.code == 1
    assert said in answer.err


def test_traceback_shows_where_and_keeps_the_exit_code(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        app(["--traceback", "--repo", str(project), "train", "chrun"], prog_name="zoo")
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert "zoo/project.py" in said
    assert said.rstrip().splitlines()[-1].startswith("zoo: unknown task 'chrun'")


def test_an_error_that_nobody_foresaw_says_how_to_find_it(distribute: Distribute, zoo: Zoo) -> None:
    distribute(
        "odd", "from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_commands(cli):\n    cli.command('odd')(lambda: 1 / 0)\n"
    )
    answer = zoo("odd")
    assert (answer.code, answer.out) == (1, "")
    assert "ZeroDivisionError: division by zero" in answer.err
    assert "--traceback" in answer.err


def test_a_reader_that_closes_early_is_no_error(project: Path) -> None:
    zoo = subprocess.Popen(
        [sys.executable, "-m", "zoo", "--repo", project, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert zoo.stdout is not None
    assert zoo.stderr is not None
    zoo.stdout.close()
    with closing(zoo.stderr):
        assert zoo.wait(60) in (0, 1)
        assert zoo.stderr.read() == ""


# Streams


def test_only_the_answer_goes_to_stdout_whoever_else_prints() -> None:
    code = """
import os, subprocess, sys
from typing import Annotated
import typer
from zoo.cli.app import app
from zoo.cli.state import ZooCommand, state

def noisy(ctx: typer.Context) -> None:
    print("a library")
    os.write(1, b"C code\\n")
    subprocess.run([sys.executable, "-c", "print('a child')"])
    state(ctx).answer(True, {"answer": float("nan")}, lambda console: None)

app.command("noisy", cls=ZooCommand)(noisy)
app(["noisy"], prog_name="zoo")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == {"answer": None}
    assert {"a library", "C code", "a child"} <= set(ran.stderr.splitlines())


def test_ctrl_c_ends_with_130_and_a_sentence_and_the_next_command_works(project: Path, tmp_path: Path, zoo: Zoo) -> None:
    file = events(tmp_path / "e.parquet")
    log = EventLog.open(project / "data" / "log")
    with log.writing():  # it must wait here, so that it is interrupted in the middle
        child = subprocess.Popen(
            [sys.executable, "-m", "zoo", "--repo", project, "ingest", file],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "xterm"},
        )
        assert child.stderr is not None
        said = b""
        while b"waiting" not in said:
            byte = child.stderr.read(1)
            assert byte, said
            said += byte
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, b"")
    assert b"zoo: interrupted: what was finished before is kept" in err
    assert b"Traceback" not in said + err
    assert zoo("--repo", project, "ingest", file, "--json").json["added"] == 3


def test_ctrl_c_before_a_command_begins_ends_with_130_too() -> None:
    code = """
import os, signal, sys
import zoo.cli

class Finder:
    def find_spec(self, name, *_):
        if name == "typer":  # what zoo imports first
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
zoo.cli.main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr == "zoo: interrupted before it began; nothing was done\n"


# The project


def test_without_repo_the_folder_or_feature_repo_in_it_is_the_project(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: Zoo
) -> None:
    file = events(tmp_path / "e.parquet")
    monkeypatch.chdir(project)
    assert zoo("ingest", file, "--json").json["events"] == 3
    project.rename(tmp_path / "feature_repo")
    monkeypatch.chdir(tmp_path)
    assert zoo("ingest", file, "--json").json["repeated"] == 3


def test_ingest_says_when_a_file_moves_the_clock_far(project: Path, tmp_path: Path, zoo: Zoo) -> None:
    store = project / "feature_store.yaml"
    wall = store.read_text()
    store.write_text(wall + "  clock: log_end\n")

    def ingest(name: str, at: str, *more: str) -> Answer:
        file = tmp_path / name
        file.write_text(f"user_id,item_id,event_type,timestamp\n1,2,view,{at}\n")
        return zoo("--repo", project, "ingest", file, *more)

    assert ingest("a.csv", "2024-01-01T00:00:00Z", "--json").json["warnings"] == []
    assert len(ingest("b.csv", "2024-02-01T00:00:00Z", "--json").json["warnings"]) == 1
    said = " ".join(ingest("c.csv", "2024-03-01T00:00:00Z").out.split())
    assert 'Note: "now" moved by 29.0 days, from 2024-02-01 00:00 UTC to 2024-03-01 00:00 UTC, for every user' in said
    store.write_text(wall)  # the wall clock does not follow the log
    assert ingest("d.csv", "2024-04-01T00:00:00Z", "--json").json["warnings"] == []


def test_ingest_reports_every_row_and_the_mapping_of_zoo_toml(project: Path, tmp_path: Path, zoo: Zoo) -> None:
    with (project / "zoo.toml").open("a") as settings:
        settings.write('[ingest.columns]\nbuyer = "user_id"\nbasket = "session"\n')
    rows = "buyer,item_id,event_type,timestamp,shelf\n1,2,view,2024-01-01T00:00:00Z,a\n,2,view,2024-01-01T00:00:00Z,b\n"
    (tmp_path / "e.csv").write_text(rows)
    answer = zoo("--repo", project, "ingest", tmp_path / "e.csv", "--json").json
    assert {name: answer[name] for name in ("rows", "added", "repeated", "quarantined", "ignored", "absent")} == {
        "rows": 2,
        "added": 1,
        "repeated": 0,
        "quarantined": {"user_id_null": 1},
        "ignored": ["shelf"],
        "absent": ["basket"],
    }
    assert answer["end"] == 1_704_067_200_000_000
    text = zoo("--repo", project, "ingest", tmp_path / "e.csv").out
    assert "user_id_null" in text
    assert "2024-01-01 00:00:00 UTC" in text


def test_files_with_different_columns_are_not_taken_together(project: Path, tmp_path: Path, zoo: Zoo) -> None:
    with (project / "zoo.toml").open("a") as settings:
        settings.write('[ingest.columns]\nbasket = "session"\n')
    one, other = events(tmp_path / "one.parquet"), tmp_path / "other.parquet"
    pl.read_parquet(one).with_columns(basket=pl.lit("b")).write_parquet(other)
    answer = zoo("--repo", project, "ingest", one, other)
    assert answer.code == 2
    assert "ingest them with one command for each kind" in answer.err
    assert zoo("--repo", project, "ingest", one, "--json").json["events"] == 3


def test_a_fixed_clock_says_what_the_future_is(project: Path, tmp_path: Path, zoo: Zoo) -> None:
    with (project / "feature_store.yaml").open("a") as store:
        store.write("  clock: 1970-01-02T12:00:00Z\n")
    answer = zoo("--repo", project, "ingest", events(tmp_path / "e.parquet"), "--json").json
    assert (answer["added"], answer["quarantined"]) == (2, {"timestamp_after_now": 1})


# The registry


def test_models_and_promote_tell_of_versions_and_aliases(project: Path, zoo: Zoo) -> None:
    assert zoo("--repo", project, "models", "--json").json == {"models": []}
    with Registry.open(f"sqlite:///{project / 'data/registry.db'}", project / "data/artefacts") as registry:
        for auc in (0.7, 0.8):
            registry.register("churn", Artefact(texts={"a": "b"}), {"stack": {"auc": auc}}, {"log": {"log": 4}})
    promoted = zoo("--repo", project, "promote", "churn@2", "--json").json
    assert promoted == {"model": "churn", "version": 2, "alias": "champion", "before": None}
    assert "before, it was churn@2" in zoo("--repo", project, "promote", "churn@1").out
    assert zoo("--repo", project, "promote", "churn@champion", "--alias", "shadow").code == 0
    listed = zoo("--repo", project, "models", "--json").json["models"]
    assert [(m["reference"], m["aliases"], m["metrics"]["stack"]["auc"]) for m in listed] == [
        ("churn@1", ["champion", "shadow"], 0.7),
        ("churn@2", [], 0.8),
    ]
    text = zoo("--repo", project, "models").out
    assert "0.8000" in text
    assert "champion, shadow" in text
    assert "NDCG@10" not in text
    with Registry.open(f"sqlite:///{project / 'data/registry.db'}", project / "data/artefacts") as registry:
        registry.register("recommendation", Artefact(texts={"a": "b"}), {"stack": {"ndcg@10": 0.1185}}, {})
    text = zoo("--repo", project, "models").out
    assert "NDCG@10" in text
    assert "0.1185" in text


def test_tags_are_found_and_old_versions_go_with_their_files(project: Path, zoo: Zoo) -> None:
    with Registry.open(f"sqlite:///{project / 'data/registry.db'}", project / "data/artefacts") as registry:
        for number in range(4):
            registry.register("churn", Artefact(texts={"a": str(number)}), {"stack": {"auc": 0.7}}, {"log": {"log": 4}})
        registry.promote("churn", 1)
    assert zoo("--repo", project, "tag", "churn@2", "owner=Anna", "note=a b").out == "churn@2: note=a b, owner=Anna\n"
    assert zoo("--repo", project, "tag", "churn@2", "note=", "--json").json == {
        "model": "churn", "version": 2, "tags": {"owner": "Anna"},
    }  # fmt: skip
    found = zoo("--repo", project, "models", "--search", "owner=anna", "--json").json["models"]
    assert [each["reference"] for each in found] == ["churn@2"]
    assert "owner=Anna" in zoo("--repo", project, "models").out
    assert "none of 4 versions matches 'owner=bob'" in zoo("--repo", project, "models", "--search", "owner=bob").out
    assert zoo("--repo", project, "retire", "churn@3").out == "retired: churn@3\n"
    gone = zoo("--repo", project, "retire", "churn", "--keep", "1", "--json").json
    assert gone == {
        "model": "churn", "retired": [2], "deleted": [2, 3], "left": {"1": "champion names it"}, "no_way_back": [],
    }  # fmt: skip
    assert len(list((project / "data/artefacts").glob("*/manifest.json"))) == 2


def test_retire_says_whose_way_back_ends_and_why_files_stay(project: Path, zoo: Zoo) -> None:
    with Registry.open(f"sqlite:///{project / 'data/registry.db'}", project / "data/artefacts") as registry:
        for text in ("1", "2", "3", "4", "4"):
            registry.register("churn", Artefact(texts={"a": text}), {}, {})
        registry.promote("churn", 2)
        registry.promote("churn", 1)
        registry.promote("churn", 3, "canary")
    assert zoo("--repo", project, "retire", "churn", "--keep", "1").out == (
        "retired: churn@4\nfiles deleted of: none\nfiles left of churn@1: champion names it\n"
        "files left of churn@2: champion would go back to it\nfiles left of churn@3: canary names it\n"
        "files left of churn@4: another version has the same files\n"
    )
    assert zoo("--repo", project, "retire", "churn", "--keep", "9").out.startswith(
        "retired: none\nfiles deleted of: none\nfiles left"
    )
    refused = zoo("--repo", project, "retire", "churn@3")
    assert (refused.code, "take the alias away first: zoo demote churn@canary" in " ".join(refused.err.split())) == (1, True)
    assert zoo("--repo", project, "retire", "churn@2").out == (
        "retired: churn@2\nchurn@champion has no way back any more: a rollback would have gone to the version retired now\n"
    )
    back = zoo("--repo", project, "rollback", "churn")
    assert back.code == 1
    assert "zoo promote churn@NUMBER" in " ".join(back.err.split())
    with Registry.open(f"sqlite:///{project / 'data/registry.db'}", project / "data/artefacts") as registry:
        registry.register("next", Artefact(texts={"a": "9"}), {}, {})
    assert zoo("--repo", project, "retire", "next", "--keep", "1").out == (
        "retired: none\nfiles deleted of: none, for no version is older than the newest 1\n"
    )


def test_a_tag_that_no_terminal_can_show_is_refused(project: Path, zoo: Zoo) -> None:
    with Registry.open(f"sqlite:///{project / 'data/registry.db'}", project / "data/artefacts") as registry:
        registry.register("churn", Artefact(texts={"a": "1"}), {}, {})
    refused = zoo("--repo", project, "tag", "churn@1", "owner=\udcff")
    assert (refused.code, "no valid Unicode" in refused.err) == (1, True)
    assert zoo("--repo", project, "models").code == 0


def test_models_need_no_address_of_artefacts(project: Path, zoo: Zoo) -> None:
    with Registry.open(f"sqlite:///{project / 'data/registry.db'}", project / "data/artefacts") as registry:
        registry.register("churn", Artefact(texts={"a": "1"}), {}, {})
    path = project / "zoo.toml"
    path.write_text(path.read_text().replace("[zoo]\n", '[zoo]\nartefacts = "ftp://anna:geheim@127.0.0.1:9/x"\n'))
    assert "churn" in zoo("--repo", project, "models").out
    refused = zoo("--repo", project, "promote", "churn@1")
    said = " ".join(refused.err.split())
    assert (refused.code, "geheim" in said, "plugin" in said) == (1, False, False)
    assert "ftp://***@127.0.0.1:9/x" in said


# Predicting


def test_a_task_that_was_never_trained_says_so(trained_shop: Shop, tmp_path: Path, zoo: Zoo) -> None:
    root = trained_shop.copy(tmp_path / "my shop").root
    with (root / "zoo.toml").open("a") as file:
        file.write('\n[tasks.recommendation]\nmembers = ["popularity"]\n')
    asked = [(name, "recommendation", "--user", 1) for name in ("predict", "explain")]
    asked += [("report", "recommendation"), ("promote", "recommendation@1"), ("serve", "recommendation", "--port", 0)]
    for words in (("recommend", "--user", 1), ("item-vectors", "recommendation"), *asked):
        answer = zoo("--repo", root, *words)
        assert answer.code == 2
        said = " ".join(answer.err.split())
        assert f"recommendation was never trained in {root}" in said
        assert f"train it with: zoo --repo '{root}' train recommendation" in said
    for words in (("predict", "chrun", "--user", 1), ("promote", "chrun@1")):
        said = " ".join(zoo("--repo", root, *words).err.split())
        assert "unknown model 'chrun'; choose one of: campaign, churn; did you mean churn?" in said
        assert "train" not in said


def test_the_next_command_names_the_project_that_was_given(trained_shop: Shop, tmp_path: Path, zoo: Zoo) -> None:
    root = trained_shop.copy(tmp_path / "shop").root
    said = zoo("--repo", root, "ingest", events(tmp_path / "more.parquet")).out
    assert f"before it: zoo --repo {root} materialize" in " ".join(said.split())
    assert State().command("promote churn@1") == "zoo promote churn@1"
    assert State(Path("my shop")).command("promote churn@1") == "zoo --repo 'my shop' promote churn@1"
    said = zoo("--repo", root, "train", "campaign").out
    assert f"Make it the one that answers: zoo --repo {root} promote campaign@" in " ".join(said.split())


def test_training_says_which_answers_are_off_by_more_than_the_bound() -> None:
    held_out = {"": {"ece": 0.01}, "gbdt": {"ece": 0.06}, "gru": {"ece": 0.05}, "gbdt+gru": {"ece": 0.2}}
    said = beyond(held_out, 0.05)
    assert said is not None
    assert said.startswith("Answers that lack gbdt (0.060), gbdt+gru (0.200) were off by more than calibration_error = 0.05")
    assert beyond(held_out, 0.2) is beyond({"": {"log_loss": 1.0}}, 0.05) is None


def test_predict_answers_for_users_known_and_unknown(trained_shop: Shop, zoo: Zoo) -> None:
    answer = zoo("--repo", trained_shop.root, "predict", "churn", "--user", 5, "--user", 999_999, "--json")
    assert answer.code == 0
    known, unknown = answer.json["rows"]
    assert list(known) == [
        "user_id",
        "score",
        "gbdt",
        "gru",
        "newest_event_age",
        "known",
        "version",
        "missing",
        "calibrated",
        "features",
        "id",
    ]
    assert (known["user_id"], known["known"], known["version"]) == (5, True, "churn@1")
    assert (unknown["user_id"], unknown["known"], unknown["newest_event_age"]) == (999_999, False, None)
    text = zoo("--repo", trained_shop.root, "predict", "churn@1", "--user", 5, "--user", 999_999).out
    assert f"{known['score']:.4f}" in text
    assert "999999" in text
    assert "no" in text.split()
    said = " ".join(text.split())
    assert "No event of 999999 before this time, so answered as new. The log's user identifiers are int, such as " in said


def test_predict_calls_nobody_new_of_whom_the_store_said_nothing(
    trained_shop: Shop, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any, **__: Any) -> Any:
        raise FeatureError("the store is down")

    monkeypatch.setattr(Features, "online", down)
    monkeypatch.setattr(Policy, "kept", lambda _: Policy(store="cold"))
    answer = zoo("--repo", trained_shop.root, "predict", "churn", "--user", 5)
    assert (answer.code, "cold" in answer.out, "answered as new" in answer.out) == (0, True, False)


def test_predict_reads_rows_from_a_file_and_keeps_the_highest(trained_shop: Shop, tmp_path: Path, zoo: Zoo) -> None:
    (tmp_path / "rows.csv").write_text("user_id,campaign_id\n" + "".join(f"{user},2\n" for user in range(1, 30)))
    every = zoo("--repo", trained_shop.root, "predict", "campaign", "--rows", tmp_path / "rows.csv", "--json").json["rows"]
    assert [row["user_id"] for row in every] == list(range(1, 30))
    highest = zoo("--repo", trained_shop.root, "predict", "campaign", "--rows", tmp_path / "rows.csv", "--limit", 4, "--json")
    assert [row["score"] for row in highest.json["rows"]] == sorted((row["score"] for row in every), reverse=True)[:4]


def test_predict_as_of_a_time_knows_nothing_later(trained_shop: Shop, zoo: Zoo) -> None:
    before = zoo("--repo", trained_shop.root, "predict", "churn", "--user", 5, "--at", "2024-01-01", "--json").json["rows"]
    assert before[0]["known"] is False
    later = zoo("--repo", trained_shop.root, "predict", "churn", "--user", 5, "--at", "2024-03-01T01:00+01:00", "--json").json[
        "rows"
    ]
    ages = pl.Series(trained_shop.log.table(columns=["user_id", "time"]).to_pylist()).struct.unnest()
    newest = ages.filter((pl.col("user_id") == 5) & (pl.col("time") < START + 60 * DAY))["time"].max()
    assert later[0]["newest_event_age"] == pytest.approx((START + 60 * DAY - newest) / 1e6)  # type: ignore[operator]


def test_a_member_that_is_left_out_is_named_when_it_is_needed(trained_shop: Shop, zoo: Zoo) -> None:
    answer = zoo("--repo", trained_shop.root, "--without", "recurrent", "predict", "churn", "--user", 5)
    assert answer.code != 0
    assert "gru" in answer.err


def test_times_without_an_offset_are_the_projects() -> None:
    assert instant("2024-07-01T00:00Z", "UTC") - instant("2024-07-01", "Europe/Berlin") == 2 * 3600 * 1_000_000
    assert instant("2024-07-01T00:00:00.000001+00:00", "Europe/Berlin") % 1_000_000 == 1
    with pytest.raises(UsageError, match="expected an IANA name"):
        instant("2024-07-01", "Middle/Earth")


# Plugins

GREETER = """
import typer
from zoo.plugin import hookimpl
from zoo.cli.state import state

@hookimpl
def zoo_commands(cli):
    @cli.command()
    def greet(ctx: typer.Context, name: str) -> None:
        typer.echo(f"hello {name}, without {state(ctx).without}")
"""


def test_a_plugin_adds_a_command_that_is_loaded_when_it_is_asked_for(distribute: Distribute, zoo: Zoo) -> None:
    distribute("greeter", GREETER)
    assert zoo("--without", "gbdt", "greet", "you").out == "hello you, without ('gbdt',)\n"
    assert zoo("greet").code == 2
    found = {entry["name"]: entry for entry in zoo("plugins", "--json").json["plugins"]}
    assert found["greeter"]["commands"] == ["greet"]
    assert found["greeter"]["distribution"] == "zoo-greeter"
    assert "No such command 'greet'" in zoo("--without", "greeter", "greet", "you").err


def test_a_command_of_zoo_loads_no_plugin(distribute: Distribute, project: Path, tmp_path: Path, zoo: Zoo) -> None:
    distribute("broken", "raise SystemError('loaded')")
    assert zoo("--help").code == 0
    assert zoo("--repo", project, "ingest", events(tmp_path / "e.parquet")).code == 0
    answer = zoo("no-such-command")
    assert answer.code == 1
    assert "'zoo-broken'" in answer.err


def test_a_broken_plugin_is_listed_and_named(distribute: Distribute, zoo: Zoo) -> None:
    distribute("broken", "raise SystemError('loaded')")
    answer = zoo("plugins")
    assert answer.code == 1
    assert "zoo-broken" in answer.out
    assert "SystemError: loaded" in answer.err
    assert "--without broken" in answer.err
    spared = zoo("--without", "broken", "plugins", "--json")
    assert spared.code == 0
    assert {entry["name"] for entry in spared.json["plugins"] if entry["left_out"]} == {"broken"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("cli.command('train')(print)", "plugin 'mine' adds a command 'train', which zoo itself has"),
        ("1 / 0", "plugin 'mine' failed in zoo_commands: ZeroDivisionError"),
    ],
)
def test_a_plugin_with_bad_commands_is_named(body: str, said: str, distribute: Distribute, zoo: Zoo) -> None:
    distribute("mine", f"from zoo.plugin import hookimpl\n@hookimpl\ndef zoo_commands(cli):\n    {body}\n")
    for command in ("plugins", "unheard-of"):
        answer = zoo(command)
        assert answer.code == 1
        assert said in answer.err
        assert "--without mine" in answer.err


def test_plugins_tells_of_models_and_tasks(zoo: Zoo) -> None:
    document = zoo("plugins", "--json").json
    assert {"gbdt", "gru", "bert", "logistic"} <= {model["name"] for model in document["models"]}
    churn = next(task for task in document["tasks"] if task["name"] == "churn")
    assert (churn["entities"], churn["target"]) == (["user_id"], "binary")
    text = zoo("plugins").out
    assert all(name in text for name in ("feature-zoo-gbdt", "Models", "Tasks", "campaign"))


ECHO = """
from zoo.plugin import hookimpl
from zoo.testing import Echo

class Mine(Echo):
    def tiny(self):
        return {tiny}

@hookimpl
def zoo_models():
    return [Mine("my-echo")]
"""


def test_plugin_check_proves_a_model_that_keeps_the_contract(distribute: Distribute, zoo: Zoo) -> None:
    distribute("echo", ECHO.format(tiny="super().tiny()"))
    for name in ("my-echo", "zoo-echo"):
        answer = zoo("plugin", "check", name, "--json")
        assert answer.code == 0
        assert answer.json["ok"] is True
        assert {check["model"] for check in answer.json["checks"]} == {"my-echo"}
        assert len(answer.json["checks"]) > 15


def test_plugin_check_ends_with_1_and_says_what_is_broken(distribute: Distribute, zoo: Zoo) -> None:
    distribute("echo", ECHO.format(tiny="'no parameters'"))
    answer = zoo("plugin", "check", "echo")
    assert answer.code == 1
    assert "FAILED" in answer.out
    assert "tiny" in answer.out


# Rendering


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_away_from_a_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(render.time, "monotonic", lambda: now)
    out = io.StringIO()
    with render.progress_bar("read", out) as say:
        for second in range(14):
            now = 100.0 + second
            say(second / 10, f"row {second}")
    assert out.getvalue() == "read:  20 % row 2\nread:  70 % row 7\nread: 100 % row 12\n"


def test_progress_on_a_terminal_is_a_bar_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with render.progress_bar("read", out) as say:
        say(0.0, "opening")
        say(0.5, "half of [it]")
    assert "read" in out.getvalue()
    assert not out.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.51239, "0.5124"),
        (["a", "b"], "a, b"),
        ("x", "x"),
    ],
)
def test_cells_show_values_as_people_write_them(value: Any, shown: str) -> None:
    assert render.cell(value) == shown


@pytest.mark.parametrize(
    ("target", "said"), [([0, 1] * 15, None), ([0, 1] * 14, "Only 28 test rows"), ([1] * 40, "All 40 test rows are of one class")]
)
def test_training_says_when_its_test_rows_say_little(target: list[int], said: str | None) -> None:
    rows = np.arange(len(target), dtype=np.int64)
    batch = FeatureBatch({"user": {"x": Column(rows.astype(np.float64))}}, {"user": rows.astype(np.int32)}, rows, rows - 1)
    told = too_few(TrainingData(batch, np.array(target, np.float64), np.ones(len(target)), rows))
    assert told is None if said is None else said in str(told)


def test_times_are_shown_in_their_units() -> None:
    assert render.moment(1_514_690_409_000_000) == "2017-12-31 03:20:09 UTC"
    assert render.moment(1_514_690_409_000_001) == "2017-12-31 03:20:09.000001 UTC"
    assert render.moment(None) == "-"
    assert [render.duration(s) for s in (3.0, 90, 5400, 4 * 86_400, None)] == [
        "3.0 seconds",
        "1.5 minutes",
        "1.5 hours",
        "4.0 days",
        "-",
    ]


def test_a_table_shows_markup_as_it_is() -> None:
    out = io.StringIO()
    render.console(out).print(render.table("[red]", ["a[b]", "n"], [("[bold]x", 1000), ("y", 2)]))
    assert "[red]" in out.getvalue()
    assert "a[b]" in out.getvalue()
    assert "[bold]x" in out.getvalue()
