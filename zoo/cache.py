"""Keeps what a fit gave, under a key of everything that it depended on, so that an unchanged fit is not done again.

An entry that cannot be read is computed again: deleting the directory loses time, never an answer.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from hashlib import sha256
from json import dumps
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from zoo.artefacts import ArtefactStore
from zoo.errors import ArtefactError
from zoo.plugin import Array, Artefact, ModelPlugin, TrainingData
from zoo.shared_data import describe, texts

_log = logging.getLogger(__name__)


class Cache:
    """Artefacts by key under one directory."""

    def __init__(self, directory: str | Path) -> None:
        self.keys = Path(directory) / "keys"
        self.store = ArtefactStore(Path(directory) / "artefacts")

    def get(self, key: str) -> Artefact | None:
        """What was put, or None; a damaged entry is logged and counts as none."""
        path = self.keys / key
        try:
            return self.store.read(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ArtefactError, OSError, UnicodeDecodeError) as e:
            _log.warning("cache entry %s cannot be used and is computed again: %s", path, e)
            return None

    def put(self, key: str, artefact: Artefact) -> None:
        """Keep it, in place of what was there; where that fails (a full disk), it is logged and nothing is kept."""
        try:
            digest = self.store.write(artefact)
            self.keys.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self.keys, prefix=".", delete=False) as file:
                file.write(digest)
            Path(file.name).replace(self.keys / key)
        except (ArtefactError, OSError) as e:
            _log.warning("cache entry %s is not kept: %s", self.keys / key, e)


def key_of(*parts: object) -> str:
    """64 hex digits of JSON-ready values."""
    return sha256(dumps(parts, sort_keys=True).encode()).hexdigest()


def array_digest(array: Array) -> str:
    """sha256 of dtype, shape and content."""
    digest = sha256(f"{array.dtype} {array.shape} ".encode())
    if array.dtype == object:
        digest.update(texts(array).encode())
    else:
        digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


def data_digest(data: TrainingData) -> str:
    """sha256 of all that a fit could see: columns, catalogue, targets, weights, times."""
    seen: dict[int, str] = {}

    def put(array: Array) -> str:
        if id(array) not in seen:
            seen[id(array)] = array_digest(array)
        return seen[id(array)]

    return key_of(describe(data, put))


def code_digest(plugin: ModelPlugin) -> str:
    """sha256 of the plugin's Python files, for its version stays the same while it is being written.

    The files of the package that defines its class, or of that one module where it is in no package.
    """
    module = sys.modules[type(plugin).__module__]
    if not module.__file__:
        return ""
    file = Path(module.__file__)
    files: Iterable[Path] = sorted(file.parent.rglob("*.py")) if module.__package__ else [file]
    return key_of(*((str(f.relative_to(file.parent)), sha256(f.read_bytes()).hexdigest()) for f in files))
