"""Columns of one partition in one file that is mapped into memory: nothing is read until it is used."""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.contract import Array
from zoo.errors import ZooError

_PREFIX = struct.Struct("<8sQ")
_MAGIC = b"zooidx1\n"
_ALIGNED = 64


def write_columns(path: Path, columns: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
    """Write columns (each of its own length) and some facts (JSON), and have the disk hold them. Raises OSError."""
    places, at = {}, 0
    for name, values in columns.items():
        if values.dtype.hasobject:
            raise ValueError(f"column {name!r} holds objects; expected numbers")
        places[name] = [values.dtype.str, at, len(values)]
        at += -(-values.nbytes // _ALIGNED) * _ALIGNED
    header = json.dumps({"columns": places, "facts": dict(facts)}).encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNED)
    with path.open("wb") as file:
        file.write(_PREFIX.pack(_MAGIC, len(header)) + header)
        for values in columns.values():
            file.write(np.ascontiguousarray(values).data.cast("B") if len(values) else b"")
            file.write(bytes(-values.nbytes % _ALIGNED))
        file.flush()
        os.fsync(file.fileno())


def read_columns(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """(columns, facts) of a file, read-only and mapped. Raises FileNotFoundError, and TornError where it is torn or foreign."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _PREFIX.size:
            raise _damaged(path)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    magic, length = _PREFIX.unpack_from(mapped)
    try:
        found = json.loads(mapped[_PREFIX.size : _PREFIX.size + length]) if magic == _MAGIC else {}
        start = _PREFIX.size + length
        columns = {n: np.frombuffer(mapped, dtype, count, start + at) for n, (dtype, at, count) in found["columns"].items()}
        return columns, found["facts"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path) from error


class TornError(ZooError):
    """A file of an index is not what was written."""


def _damaged(path: Path) -> TornError:
    return TornError(
        f"{path} is no part of an index, or torn; remove the folder {path.parent}, and it is built again from the log"
    )
