"""A fresh interpreter that imports a plugin's module, says which heavy modules came with it, loads artefacts and predicts.

This file is both sides: ``in_child`` starts it by its path. Nothing but the standard library is imported before the plugin's
module, so that what that pulls in can be told.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.contract import ModelPlugin

SECONDS = 120


def in_child(plugin: ModelPlugin, digests: Mapping[str, str], heavy: Sequence[str], folder: Path) -> list[str]:
    """Which of the ``heavy`` modules importing the plugin's module brings.

    digests: kind of target -> artefact stored in ``folder``; its scores on the held-out toy rows are written there as KIND.npy.
    """
    from zoo.testing.case import CheckFailed

    kind: type[Any] = type(plugin)
    job = {
        "path": [entry or str(Path.cwd()) for entry in sys.path],
        "module": kind.__module__,
        "file": getattr(sys.modules.get(kind.__module__), "__file__", None),
        "qualname": kind.__qualname__,
        "name": plugin.spec.name,
        "heavy": list(heavy),
        "digests": dict(digests),
        "folder": str(folder),
    }
    try:
        done = subprocess.run(
            [sys.executable, __file__], input=json.dumps(job), capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"a fresh process did not finish within {SECONDS} seconds") from error
    if done.returncode:
        raise CheckFailed(
            f"a fresh process could not import {kind.__module__}, or load and predict:\n{done.stderr[-2000:].strip()}"
        )
    brought: list[str] = json.loads((folder / "heavy.json").read_text(encoding="utf-8"))
    return brought


def main() -> None:
    job: dict[str, Any] = json.load(sys.stdin)
    sys.path[:] = job["path"]
    module = _module(job["module"], job["file"])
    heavy = [name for name in job["heavy"] if name in sys.modules]
    folder = Path(job["folder"])
    for kind, digest in job["digests"].items():
        _score(_plugin(module, job["qualname"], job["name"]), kind, digest, folder)
    (folder / "heavy.json").write_text(json.dumps(heavy), encoding="utf-8")


def _module(name: str, file: str | None) -> ModuleType:
    """By name; by file where the name leads nowhere, as for a plugin defined in a test module."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if file is None or error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
    spec = importlib.util.spec_from_file_location(name.rpartition(".")[2], file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _plugin(module: ModuleType, qualname: str, name: str) -> ModelPlugin:
    """An instance made without arguments; where that is another model or not possible, the installed model of that name."""
    from zoo.manager import plugins

    made: Any = module
    for part in qualname.split("."):
        made = getattr(made, part, None)
    try:
        plugin: ModelPlugin = made()
        if plugin.spec.name == name:
            return plugin
    except TypeError:
        pass  # it takes arguments, or is defined inside a function
    return plugins().model(name).plugin


def _score(plugin: ModelPlugin, kind: Any, digest: str, folder: Path) -> None:
    import numpy as np

    from zoo.artefacts import ArtefactStore
    from zoo.testing.case import Case

    model = plugin.load(ArtefactStore(folder).read(digest))
    np.save(folder / f"{kind}.npy", model.predict(Case(plugin, kind).held_out().batch), allow_pickle=False)


if __name__ == "__main__":
    main()
