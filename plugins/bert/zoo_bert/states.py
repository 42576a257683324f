"""States of the frozen layers by content: in memory, and, where ``ZOO_CACHE`` names a folder, on disk for other jobs to find.

The disk cache may be deleted at any time. Shards are written to a temporary name and renamed; what cannot be read is computed again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Literal
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zoo.plugin import Array
from zoo_bert.encoder import BLOCK, LENGTHS, Encoder

Kind = Literal["pooled", "tokens"]
"""One state a text, the mean over its tokens, or one a token; special tokens included."""

SHARD = 512
"""Texts computed and written at a time: what an interrupted job leaves behind for the next."""

FEWEST = 32
"""Fewest texts that are worth a shard: what a service meets now and then stays in memory."""

Tell = Callable[[int, int], None]
"""``(texts done, texts in all)``."""

_log = logging.getLogger(__name__)


class States:
    """float16 (tokens, size) for each text. Safe to use from several threads."""

    def __init__(self, encoder: Encoder, kind: Kind, frozen_layers: int, megabytes: int) -> None:
        self.encoder, self.kind = encoder, kind
        self._limit, self._held = megabytes << 20, 0
        self._memory: OrderedDict[bytes, Array] = OrderedDict()
        self._lock = Lock()
        # Other threads, kernels or shapes round differently: such states are never mixed.
        told = (encoder.digest, frozen_layers, kind, torch.__version__, torch.get_num_threads(), _kernels(), BLOCK, LENGTHS)
        self._identity = hashlib.sha256(repr(told).encode()).digest()
        place = os.environ.get("ZOO_CACHE")
        self._shelf = Shelf(Path(place) / "bert" / self._identity.hex()[:16], self._limit) if place else None

    def of(self, tokens: Sequence[Array], tell: Tell | None = None) -> list[Array]:
        """The states of each tokenised text; texts that repeat are computed once."""
        keys = [hashlib.sha256(self._identity + one.tobytes()).digest() for one in tokens]
        wanted = dict(zip(keys, tokens, strict=True))
        found = {key: states for key in wanted if (states := self._recall(key)) is not None}
        missing = [key for key in wanted if key not in found]
        if missing and self._shelf:
            shelved = self._shelf.get(missing)
            found |= shelved
            self._remember(shelved)
            missing = [key for key in missing if key not in shelved]
        missing.sort(key=lambda key: len(wanted[key]))
        for i in range(0, len(missing), SHARD):
            some = missing[i : i + SHARD]
            made = self._compute(some, [wanted[key] for key in some])
            found |= made
            self._remember(made)
            if self._shelf and len(some) >= FEWEST:
                self._shelf.put(made)
            if tell:
                tell(i + len(some), len(missing))
        return [found[key] for key in keys]

    def _compute(self, keys: Sequence[bytes], tokens: Sequence[Array]) -> dict[bytes, Array]:
        made = {}
        for rows, states in self.encoder.states(tokens):
            for row, state in zip(rows, states, strict=True):
                kept = state.mean(0, keepdims=True) if self.kind == "pooled" else state
                made[keys[row]] = kept.astype(np.float16)
        return made

    def _recall(self, key: bytes) -> Array | None:
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
            return self._memory.get(key)

    def _remember(self, made: dict[bytes, Array]) -> None:
        with self._lock:
            for key, states in made.items():
                if key not in self._memory:
                    self._memory[key] = states
                    self._held += states.nbytes
            while self._held > self._limit and self._memory:
                self._held -= self._memory.popitem(last=False)[1].nbytes


class Shelf:
    """Shards of states in one folder, filled up to ``limit`` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._read: set[Path] = set()
        self._where: dict[bytes, tuple[Path, int, int]] = {}
        self._lock = Lock()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Array]:
        """Those of the states that can be read."""
        with self._lock:
            self._look()
            wanted: dict[Path, list[bytes]] = {}
            for key in keys:
                if key in self._where:
                    wanted.setdefault(self._where[key][0], []).append(key)
        found: dict[bytes, Array] = {}
        for path, some in wanted.items():
            try:
                with safe_open(path, "np") as shard:
                    states = shard.get_tensor("states")
                found |= {key: states[self._where[key][1] : self._where[key][2]].copy() for key in some}
            except (OSError, SafetensorError) as error:
                self._forget(path, error)
        return found

    def put(self, made: dict[bytes, Array]) -> None:
        """Write a shard whole or not at all; a full or read-only disk is logged and costs only time."""
        lengths = [len(states) for states in made.values()]
        content: dict[str, Array] = {
            "keys": np.frombuffer(b"".join(made), np.uint8).reshape(-1, 32),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "states": np.concatenate(list(made.values())),
        }
        temporary = self._folder / f"{uuid4().hex}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if sum(path.stat().st_size for path in self._folder.iterdir()) + content["states"].nbytes > self._limit:
                return
            save_file(content, temporary)
            temporary.replace(temporary.with_suffix(".safetensors"))
        except (OSError, SafetensorError) as error:
            _log.warning("states of the encoder are not kept in %s: %s", self._folder, error)
            with suppress(OSError):
                temporary.unlink()

    def _look(self) -> None:
        """Index shards that have come since the last look."""
        for path in sorted(self._folder.glob("*.safetensors")):
            if path in self._read:
                continue
            self._read.add(path)
            try:
                with safe_open(path, "np") as shard:
                    keys, offsets = shard.get_tensor("keys"), shard.get_tensor("offsets").tolist()
            except (OSError, SafetensorError) as error:
                self._forget(path, error)
                continue
            for i, key in enumerate(keys):
                self._where[key.tobytes()] = path, offsets[i], offsets[i + 1]

    def _forget(self, path: Path, error: Exception) -> None:
        _log.warning("%s cannot be read and is computed again: %s", path, error)
        with suppress(OSError):
            path.unlink()


def _kernels() -> str:
    return torch.backends.cpu.get_cpu_capability()
