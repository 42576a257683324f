"""Keeps what a fit gave, or how far it came, under a key of everything that it depended on, so that no work is done again.

An entry that cannot be read is computed again: deleting the directory loses time, never an answer.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import monotonic

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from zoo.artefacts import ArtefactStore
from zoo.errors import ArtefactError
from zoo.plugin import Array, Artefact, ModelPlugin, TrainingData
from zoo.shared_data import describe, texts

_log = logging.getLogger(__name__)


class Cache:
    """Artefacts by key under one directory."""

    def __init__(self, directory: str | Path) -> None:
        self.unfinished = Path(directory) / "unfinished"
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
            _replace(self.keys / key, digest.encode())
        except (ArtefactError, OSError) as e:
            _log.warning("cache entry %s is not kept: %s", self.keys / key, e)


@dataclass
class FileCheckpoint:
    """``zoo.plugin.Checkpoint`` as one safetensors file, replaced whole at most once in ``every`` seconds.

    A file that cannot be read is logged and counts as none; one that cannot be written is logged.
    """

    path: Path
    every: float = 30.0
    saved: float = -math.inf

    def load(self) -> Artefact | None:
        try:
            with safe_open(self.path, "numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                return Artefact(arrays, file.metadata() or {})
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as e:
            _log.warning("checkpoint %s cannot be used, the fit begins anew: %s", self.path, e)
            return None

    def save(self, make: Callable[[], Artefact]) -> None:
        if monotonic() - self.saved < self.every:
            return
        artefact = make()
        try:
            _replace(self.path, save(dict(artefact.arrays), dict(artefact.texts)))
        except OSError as e:
            _log.warning("checkpoint %s is not kept: %s", self.path, e)
        self.saved = monotonic()


def _replace(path: Path, content: bytes) -> None:
    """Put the content in the file's place whole; where that fails nothing is left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("wb", dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


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
    return folder_digest(file.parent) if module.__package__ else key_of((file.name, sha256(file.read_bytes()).hexdigest()))


def folder_digest(folder: Path) -> str:
    """sha256 of the Python files below a folder."""
    return key_of(*((str(f.relative_to(folder)), sha256(f.read_bytes()).hexdigest()) for f in sorted(folder.rglob("*.py"))))
