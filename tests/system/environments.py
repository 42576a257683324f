"""Environments that hold wheels of ours and no source of ours; heavy packages are those of this environment, linked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("feature_zoo", "__editable__", "zoo")
"""How entries of site-packages begin that come from this project, or lead to its source."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip."""

    root: Path

    @property
    def packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.root), "platbase": str(self.root)}))

    def install(self, *wheels: Path) -> None:
        """What the wheels require has to be linked already."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.root / "bin/python"), "install", "--no-deps", "--no-index"]
        checked([*pip, "--quiet", "--disable-pip-version-check", *map(str, wheels)], self.root)

    def run(self, *command: str, cwd: Path) -> str:
        """The standard output of a command, looked up in this environment first. Nothing of the calling environment leads home."""
        path = f"{self.root / 'bin'}{os.pathsep}{os.defpath}"
        program = shutil.which(command[0], path=path) or command[0]
        kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
        return checked([program, *command[1:]], cwd, {**kept, "PATH": path, "LC_ALL": "C.UTF-8"})


def checked(command: list[str], cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command that has to end well; its output is in the error if it does not."""
    run = subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{' '.join(command)}: {run.returncode}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of one distribution, built with the setuptools of this environment."""
    checked([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds, and nothing that lies about here: no build folder, no file that somebody forgot to add."""
    folder = tmp_path_factory.mktemp("clone")
    for name in checked(["git", "ls-files", "-z"], ROOT).split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def wheels(tracked: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheels of the core (``core``) and of every plugin, by the name of its folder."""
    sources = {"core": tracked, **{path.parent.name: path.parent for path in sorted(tracked.glob("plugins/*/pyproject.toml"))}}
    return {name: build_wheel(source, tmp_path_factory.mktemp(f"wheel-{name}")) for name, source in sources.items()}


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to every package that is installed here but ours: gigabytes that need not be fetched once more."""
    folder = tmp_path_factory.mktemp("dependencies")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if not entry.name.startswith(OURS) and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def environment(dependencies: Path, tmp_path: Path) -> Environment:
    """An empty environment: the dependencies, and nothing of ours."""
    found = Environment(tmp_path / "environment")
    checked([sys.executable, "-m", "venv", "--without-pip", str(found.root)], tmp_path)
    (found.packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return found
