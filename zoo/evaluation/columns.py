"""Every column of a batch in few numbers a row, to be looked at one at a time."""

from __future__ import annotations

import numpy as np

from zoo.plugin import Array, Column, FeatureBatch


def single(batch: FeatureBatch) -> dict[str, Column]:
    """Name -> a value a row, numbers float64 and codes int: values as they are, text left out; of a sequence its length, its newest entry
    and, of numbers, their mean, NaN or 0 where there is none.
    """
    out: dict[str, Column] = {}
    for name in batch.names:
        column = batch.column(name)
        if column.is_text:
            continue
        if column.offsets is None:
            out[name] = column if column.is_code else Column(column.values.astype(np.float64))
            continue
        lengths = column.lengths
        out[f"{name} (how many)"] = Column(lengths.astype(np.float64))
        newest = np.zeros(len(lengths), column.values.dtype)
        newest[lengths > 0] = column.values[column.offsets[1:][lengths > 0] - 1]
        if column.is_code:
            out[f"{name} (the newest)"] = Column(newest, dictionary=column.dictionary)
            continue
        out[f"{name} (the newest)"] = Column(_or_nothing(newest, lengths))
        sums = np.bincount(np.repeat(np.arange(len(lengths)), lengths), column.values[: lengths.sum()], minlength=len(lengths))
        out[f"{name} (their mean)"] = Column(_or_nothing(sums / np.maximum(lengths, 1), lengths))
    return out


def _or_nothing(values: Array, lengths: Array) -> Array:
    found: Array = np.where(lengths > 0, values, np.nan).astype(np.float64)
    return found
