"""A seeded log of any size as Parquet files: visits of views, carts and purchases over a year, with a realistic tail of users and items.

``python tests/benchmarks/generate.py EVENTS FOLDER [SEED]``. Files are written in order of time; memory stays at one chunk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = 1_672_531_200_000_000
"""2023-01-01 UTC, microseconds."""
YEAR = 365 * 86_400_000_000
EVENT_TYPES = ("view", "cart", "purchase")
SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("event_type", pa.string()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("session", pa.int64()),
        ("price", pa.float64()),
        ("value", pa.float64()),
    ]
)
_CHUNK = 1_000_000
_FILE = 10_000_000
_VISIT = 5.0
_PAUSE = 45.0
_LARGE_PRIME = 1_000_000_007


def users_of(events: int) -> int:
    """How many users a log of this size draws from."""
    return max(20, events // 50)


def items_of(events: int) -> int:
    """How many items a log of this size draws from."""
    return max(10, min(events // 200, 500_000))


def chunks(events: int, seed: int = 0, size: int = _CHUNK) -> Iterator[pa.Table]:
    """Tables of at most ``size`` events, together ``events`` of them; the same for the same arguments.

    Users and items are drawn by rank from power laws, visits have about five events, nine in ten of them views. Times are whole
    seconds, so some tie, and a visit that runs over the end of its chunk makes late events.
    """
    users, items = users_of(events), items_of(events)
    number = -(-events // size)
    for at in range(number):
        count = min(size, events - at * size)
        yield _chunk(
            np.random.default_rng((seed, at)), count, at * size, START + YEAR * at // number, YEAR // number, users, items
        )


def _chunk(rng: Any, count: int, first: int, start: int, span: int, users: int, items: int) -> pa.Table:
    lengths = rng.geometric(1 / _VISIT, int(count / _VISIT * 1.5) + 10)
    visits = int(np.searchsorted(np.cumsum(lengths), count)) + 1
    visit = np.repeat(np.arange(visits), lengths[:visits])[:count]
    begins = np.flatnonzero(np.diff(visit, prepend=-1))
    pauses = rng.exponential(_PAUSE, count)
    pauses[begins] = 0
    run = np.cumsum(pauses)
    began = np.sort(rng.integers(0, span // 1_000_000, visits))
    seconds = began[visit] + (run - run[begins][visit]).astype(np.int64)
    order = np.argsort(seconds, kind="stable")
    user = _spread(_power_law(rng, users, 0.7, visits), users)[visit]
    rank = _power_law(rng, items, 0.9, count)
    kind = np.searchsorted([0.9, 0.97], rng.random(count), side="right").astype(np.int32)
    price = np.round(np.exp(2.5 + 1.2 * np.sin(rank * 12.9898)), 2)  # an item's price is a function of the item
    value = np.where(kind == 2, price * rng.integers(1, 4, count), np.nan)
    columns = {
        "user_id": user + 1,
        "item_id": _spread(rank, items) + 1,
        "event_type": pa.DictionaryArray.from_arrays(pa.array(kind[order]), pa.array(EVENT_TYPES)).cast(pa.string()),
        "timestamp": pa.array(start + seconds * 1_000_000).cast(pa.timestamp("us", "UTC")).take(pa.array(order)),
        "session": first + visit,  # no two chunks share a number
        "price": price,
        "value": pa.array(value[order], from_pandas=True),
    }
    plain = {name: v[order] if isinstance(v, np.ndarray) else v for name, v in columns.items()}
    return pa.table(plain, schema=SCHEMA)


def _power_law(rng: Any, size: int, exponent: float, count: int) -> np.ndarray:
    """int64 (count,): ranks 0 to size - 1, rank r about (r + 1) ** -exponent times as likely as rank 0."""
    left = 1 - exponent
    drawn = ((size + 1.0) ** left - 1) * rng.random(count) + 1
    ranks: np.ndarray = np.minimum(drawn ** (1 / left) - 1, size - 1).astype(np.int64)
    return ranks


def _spread(ranks: np.ndarray, size: int) -> np.ndarray:
    """Ranks as numbers in no order of popularity, one to one."""
    return ranks * _LARGE_PRIME % size


def write(folder: Path, events: int, seed: int = 0) -> list[Path]:
    """Write the log as Parquet files of up to ten million events, at the memory of one chunk; returns them in order of time."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    writer, held = None, 0
    for table in chunks(events, seed):
        if writer is None:
            files.append(folder / f"events-{len(files):04d}.parquet")
            writer, held = pq.ParquetWriter(files[-1], SCHEMA, compression="zstd", use_dictionary=["event_type"]), 0
        writer.write_table(table)
        held += len(table)
        if held >= _FILE:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    return files


if __name__ == "__main__":
    for path in write(Path(sys.argv[2]), int(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 0):
        print(path)
