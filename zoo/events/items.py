"""Items by what the item table says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Array
from zoo.errors import UsageError, choices

if TYPE_CHECKING:
    from zoo.events.view import LogView


def items_where(view: LogView, where: Mapping[str, Any]) -> Array:
    """int32: the log's codes of the items whose columns in the item table have these values. Raises UsageError with the choices."""
    block = view.block("items") if "items" in view.tables() else {}
    kept = np.ones(len(view.names("item_id")), bool)
    for name, value in where.items():
        if name not in block:
            raise UsageError(choices("column of the item table", name, block))
        column, codes = block[name], np.arange(len(kept))
        values = column.values[np.minimum(codes, len(column) - 1)]
        inside = codes < len(column)
        if column.dictionary is not None:
            found = np.flatnonzero(view.names(column.dictionary) == str(value))
            if not len(found):
                raise UsageError(f"no item has {name} {value!r}; expected a value of that column of the item table")
            kept &= inside & np.isin(values, found)
        else:
            try:
                kept &= inside & (values == float(value))
            except (TypeError, ValueError, OverflowError):
                seen = repr(value)
                raise UsageError(
                    f"{name} of items is a number of 64 bits; seen {seen if len(seen) <= 40 else f'{seen[:40]}...'}; expected such a one"
                ) from None
    return np.flatnonzero(kept).astype(np.int32)
