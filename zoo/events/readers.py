"""From a file's name to a source of its rows, and from its bytes to its identity."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa

from zoo.errors import SchemaError, UsageError, choices
from zoo.events.sources import ParquetSource, Source
from zoo.events.text_sources import CsvSource, JsonSource

FORMATS = (".parquet", ".pq", ".csv", ".tsv", ".ndjson", ".jsonl")


def open_source(path: Path) -> Source:
    """The file as a source; SchemaError where it is not what its name says, UsageError for a name that says nothing."""
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}; expected a file that ends in {', '.join(FORMATS)}")
    suffixes = [s.lower() for s in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    suffix = (suffixes[:-1] if packed else suffixes)[-1:] or [""]
    if suffix[0] not in FORMATS:
        raise UsageError(choices("kind of file", path.name, [f"NAME{s}" for s in FORMATS]))
    try:
        if suffix[0] in (".parquet", ".pq"):
            return ParquetSource(path)
        if suffix[0] in (".csv", ".tsv"):
            return CsvSource(path, packed)
        return JsonSource(path, packed)
    except (OSError, EOFError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} cannot be read as {suffix[0][1:]}: {error}; is the file whole?") from error


def digest(path: Path) -> str:
    """``sha256:`` and the digest of a file's bytes: the identity of the file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
