"""Registering a repository's definitions, as ``feast apply`` does, from within a process that may hold other repositories."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.errors import FeatureError, ZooError


def register(config: Any, path: Path) -> None:
    """Read the definitions in a folder and write them to the registry of ``config`` (its RepoConfig)."""
    from feast.repo_operations import apply_total

    with _own_modules(path), contextlib.chdir(path), contextlib.redirect_stdout(io.StringIO()):
        try:
            apply_total(config, path, skip_source_validation=True)
        except ZooError:
            raise
        except (Exception, SystemExit) as error:
            raise FeatureError(_broken(path, error)) from error


def _broken(path: Path, error: BaseException) -> str:
    """What a person's own definitions raised, and where: they are Python, and may raise anything."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if path in Path(f.filename).parents]
    said = f"{type(error).__name__}: {error}"
    if frames:
        said = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: {said}"
    elif type(error).__name__.startswith("Conflicting"):
        said = f"{said.rstrip('.')}. Two definitions have one name"
    elif not isinstance(error, SyntaxError):  # Feast could not write what they say
        return f"the feature definitions cannot be registered: {said}. Check the stores that feature_store.yaml names and their disks"
    return f"the feature definitions cannot be applied: {said}. Mend them and apply again"


@contextlib.contextmanager
def _own_modules(path: Path) -> Iterator[None]:
    """Feast imports a repository's files as top-level modules: let it find them, and let no other repository's be taken for them."""
    names = {".".join(f.relative_to(path).with_suffix("").parts) for f in path.rglob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(path))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(path))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
