"""Training data as files that several processes map into memory: .npy for arrays, JSON for texts and structure."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import FeatureError
from zoo.plugin import Array, Catalogue, Column, FeatureBatch, Target, TrainingData

MANIFEST = "training_data.json"
FOLDER = "zoo-jobs-"
"""How the names of folders with shared data begin."""
OWNED = "owned"
"""A file in such a folder that its process holds locked: the kernel frees the lock of one that is killed."""


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder for shared data (default: under the system's temporary one), gone afterwards; those of killed processes go first."""
    for found in Path(parent or tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with suppress(OSError), (found / OWNED).open("r+") as lock:  # none there yet, another user's, or a living process's
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(found, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=FOLDER, dir=parent) as name:
        folder = Path(name)
        with (folder / f".{OWNED}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / f".{OWNED}").rename(folder / OWNED)  # never to be seen without its lock
            yield folder


def describe(data: TrainingData, put: Callable[[Array], Any]) -> dict[str, Any]:
    """The data's structure as JSON-ready values, with ``put(array)`` in place of each array."""

    def column(c: Column) -> dict[str, Any]:
        return {"values": put(c.values), "offsets": None if c.offsets is None else put(c.offsets), "dictionary": c.dictionary}

    def block(columns: Mapping[str, Column]) -> dict[str, Any]:
        return {name: column(c) for name, c in columns.items()}

    batch = data.batch
    return {
        "blocks": {entity: block(columns) for entity, columns in batch.blocks.items()},
        "row_of": {entity: put(rows) for entity, rows in batch.row_of.items()},
        "as_of": put(batch.as_of),
        "newest": put(batch.newest),
        "group": None if batch.group is None else put(batch.group),
        "names": {name: put(texts) for name, texts in batch.catalogue.names.items()},
        "items": block(batch.catalogue.items),
        "target": put(data.target),
        "weight": put(data.weight),
        "time": put(data.time),
        "kind": [data.kind.kind, list(data.kind.classes), list(data.kind.horizons)],
    }


def save_training_data(directory: Path, data: TrainingData) -> None:
    """Write the data as .npy files, texts as JSON; arrays that columns share are written once."""
    written: dict[int, str] = {}

    def put(array: Array) -> str:
        if id(array) in written:
            return written[id(array)]
        name = f"{len(written)}.{'json' if array.dtype == object else 'npy'}"
        if array.dtype == object:
            (directory / name).write_text(texts(array), "utf-8")
        else:
            np.save(directory / name, array, allow_pickle=False)
        written[id(array)] = name
        return name

    (directory / MANIFEST).write_text(json.dumps(describe(data, put)), "utf-8")


def load_training_data(directory: Path) -> TrainingData:
    """What ``save_training_data`` wrote, the arrays mapped into memory and not writable."""
    opened: dict[str, Array] = {}

    def get(name: str) -> Array:
        if name not in opened:
            if name.endswith(".json"):
                opened[name] = np.array(json.loads((directory / name).read_text("utf-8")), object)
            else:
                opened[name] = np.asarray(np.load(directory / name, mmap_mode="r", allow_pickle=False))
        return opened[name]

    def block(columns: Mapping[str, Any]) -> dict[str, Column]:
        return {
            name: Column(get(c["values"]), None if c["offsets"] is None else get(c["offsets"]), c["dictionary"])
            for name, c in columns.items()
        }

    found = json.loads((directory / MANIFEST).read_text("utf-8"))
    batch = FeatureBatch(
        blocks={entity: block(columns) for entity, columns in found["blocks"].items()},
        row_of={entity: get(name) for entity, name in found["row_of"].items()},
        as_of=get(found["as_of"]),
        newest=get(found["newest"]),
        catalogue=Catalogue({name: get(file) for name, file in found["names"].items()}, block(found["items"])),
        group=None if found["group"] is None else get(found["group"]),
    )
    kind, classes, horizons = found["kind"]
    target = Target(kind, tuple(classes), tuple(horizons))
    return TrainingData(batch, get(found["target"]), get(found["weight"]), get(found["time"]), target)


def texts(array: Array) -> str:
    """An object array of texts and None as a JSON list."""
    values = array.tolist()
    for value in values:
        if value is not None and not isinstance(value, str):
            raise FeatureError(f"a text column holds {value!r} ({type(value).__name__}); expected str or None")
    return json.dumps(values)
