"""A few clean rows as lists of Python values: a push of them needs no column format, whose making would cost more than the rows do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from zoo.errors import ZooError


@dataclass(frozen=True, slots=True)
class Few:
    """Rows of the log: values by column, exactly as the log's schema types them. A column that holds nothing may be left out."""

    columns: Mapping[str, list[Any]]
    rows: int

    def __len__(self) -> int:
        return self.rows

    def kept(self, keep: Sequence[bool]) -> Few:
        """The rows that are marked."""
        columns = {name: [value for value, good in zip(values, keep) if good] for name, values in self.columns.items()}
        return Few(columns, sum(keep))

    def packed(self) -> bytes:
        """As bytes; ``unpacked`` is the inverse. Floats are finite, so JSON holds every value exactly."""
        held = {name: values for name, values in self.columns.items() if values.count(None) < self.rows}
        return json.dumps([self.rows, held], ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def unpacked(cls, body: bytes) -> Few:
        """Raises ZooError where the bytes are something else."""
        try:
            rows, columns = json.loads(body)
            if any(len(values) != rows for values in columns.values()):
                raise ValueError("columns of several lengths")
            return cls(columns, rows)
        except (ValueError, TypeError, AttributeError) as error:
            raise ZooError(f"a push in the log's tail cannot be read: {error}; restore tail.db from a copy") from error

    @staticmethod
    def is_packed(body: bytes) -> bool:
        """Whether bytes are of ``packed`` (Arrow's begin with another)."""
        return body[:1] == b"["

    def table(self, schema: pa.Schema, first: int | None = None) -> pa.Table:
        """Every column of a schema, ``seq`` from ``first`` on where it is given."""
        arrays = []
        for field in schema:
            if field.name == "seq" and first is not None:
                values: Any = range(first, first + self.rows)
            else:
                values = self.columns.get(field.name)
            arrays.append(pa.nulls(self.rows, field.type) if values is None else pa.array(values, field.type))
        return pa.table(arrays, schema=schema)


class Growing:
    """Consecutive rows of several ``Few``, one after another."""

    def __init__(self, names: Sequence[str]) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in names}
        self.rows = 0

    def __len__(self) -> int:
        return self.rows

    def add(self, few: Few) -> None:
        nothing = [None] * few.rows
        for name, values in self._columns.items():
            values.extend(few.columns.get(name, nothing))
        self.rows += few.rows

    def between(self, low: int, high: int, names: Sequence[str] | None = None) -> Few:
        """Rows ``low`` to ``high`` (of these columns)."""
        return Few({name: self._columns[name][low:high] for name in names or self._columns}, high - low)
