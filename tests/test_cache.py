"""Checkpoints: what a killed fit left is gone on from, and damage counts as none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from zoo.cache import Cache, FileCheckpoint
from zoo.contract import silent
from zoo.fitting import Fit, Member, PluginSource, run_fits
from zoo.jobs import Serial
from zoo.plugin import NO_CHECKPOINT, Artefact, Checkpoint, FeatureBatch, ModelSpec, Progress, TrainingData, hookimpl
from zoo.testing import toy

STATE = Artefact({"a/b": np.arange(3.0), "n": np.array(2)}, {"text.json": '{"ü": 1}'})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    kept = FileCheckpoint(tmp_path / "deep" / "one", every=0)
    assert kept.load() is None
    kept.save(lambda: Artefact({"a": np.zeros(1)}))
    kept.save(lambda: STATE)
    found = FileCheckpoint(kept.path).load()
    assert found is not None
    assert found.texts == STATE.texts
    assert {name: array.tolist() for name, array in found.arrays.items()} == {"a/b": [0, 1, 2], "n": 2}
    assert [path.name for path in kept.path.parent.iterdir()] == ["one"]


def test_a_young_checkpoint_is_not_made_again(tmp_path: Path) -> None:
    kept = FileCheckpoint(tmp_path / "one", every=1000)
    made = []
    for _ in range(3):
        kept.save(lambda: made.append(1) or STATE)  # type: ignore[func-returns-value]
    assert made == [1]


@pytest.mark.parametrize("left", [b"", b"not safetensors", b"\xff" * 99])
def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "one").write_bytes(left)
    assert FileCheckpoint(tmp_path / "one").load() is None
    assert "cannot be used, the fit begins anew" in caplog.text


class Params(BaseModel):
    folder: str = ""


@dataclass(frozen=True)
class Counted:
    """passes: numbers of the passes that made it."""

    passes: list[int]

    def predict(self, batch: FeatureBatch) -> Any:
        return np.full((len(batch), 1), 0.5, np.float32)

    def save(self) -> Artefact:
        return Artefact({"passes": np.array(self.passes)})


class Counting:
    """Four passes, each saved; dies by SIGKILL after a pass where its folder says so."""

    spec = ModelSpec("counting", lambda: Params, resumes=True)

    def fit(
        self, data: TrainingData, *, params: Params, seed: int, progress: Progress, checkpoint: Checkpoint = NO_CHECKPOINT
    ) -> Counted:
        kept = checkpoint.load()
        passes = [] if kept is None else kept.arrays["passes"].tolist()
        folder = Path(params.folder)
        with (folder / "runs").open("a") as runs:
            runs.write(f"{len(passes)}\n")
        while len(passes) < 4:
            passes.append(len(passes) + 1)
            checkpoint.save(Counted(passes).save)
            if (folder / f"die-after-{len(passes)}").exists():
                os.kill(os.getpid(), signal.SIGKILL)
        return Counted(passes)

    def load(self, artefact: Artefact) -> Counted:
        return Counted(artefact.arrays["passes"].tolist())

    def tiny(self) -> Params:
        return Params()


class Plugin:
    @hookimpl
    def zoo_models(self) -> list[Counting]:
        return [Counting()]


def fit_in(folder: Path) -> list[int]:
    data = toy(20, 0)
    member = Member("counting", "counting", {"folder": str(folder)})
    [result] = run_fits(
        [Fit("all", member, np.arange(20))], data, PluginSource(extra=(Plugin(),)), Serial(), Cache(folder / "cache"), silent
    )
    passes: list[int] = result.artefact.arrays["passes"].tolist()
    return passes


def test_a_killed_fit_goes_on_where_it_was(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from test_cache import fit_in; print(fit_in(Path({str(tmp_path)!r})))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}

    def run() -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", code], check=False, env=environment, stdout=subprocess.PIPE, text=True)
        return done.returncode, done.stdout.strip()

    (tmp_path / "die-after-1").touch()
    assert run() == (-signal.SIGKILL, "")
    assert run() == (0, "[1, 2, 3, 4]")
    assert (tmp_path / "runs").read_text().split() == ["0", "1"]
    assert list((tmp_path / "cache" / "unfinished").iterdir()) == []
    assert run() == (0, "[1, 2, 3, 4]")
    assert (tmp_path / "runs").read_text().split() == ["0", "1"], "the third is reused"


def test_a_process_that_dies_while_saving_leaves_the_last_whole_one(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from zoo.cache import FileCheckpoint; from pathlib import Path; from zoo.plugin import Artefact\n"
        "kept = FileCheckpoint(Path(sys.argv[1]), every=0)\n"
        "i = 0\n"
        "while True:\n"
        "    i += 1\n"
        "    kept.save(lambda: Artefact({'a': np.full(200_000, i)}))\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "one"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(5):
            writer.stdout.readline()
        time.sleep(0.003)
        writer.kill()
    found = FileCheckpoint(path).load()
    assert found is not None
    assert len(set(found.arrays["a"].tolist())) == 1
    assert found.arrays["a"][0] >= 5
