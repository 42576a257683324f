"""Slices of columns: copied whole or value by value, they are the values at their positions."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.events.slices import Picked, Slices, taken

ROWS = 3_000


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
@pytest.mark.parametrize(("shortest", "longest", "cut"), [(0, 3, 3), (0, 60, 60), (0, 400, 50), (50, 50, 50), (0, 0, 0)])
def test_slices_of_a_column_are_the_values_at_their_positions(dtype: type, shortest: int, longest: int, cut: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 30, 5_000).astype(dtype)
    lengths = np.minimum(rng.integers(shortest, longest + 1, ROWS), cut)
    start = rng.integers(0, len(values) - lengths + 1)  # the column's last values among them
    for rows in (
        Slices(start, start + lengths),
        Slices(start[:7], (start + lengths)[:7]),
        Slices(start[:1], (start + lengths)[:1]),
    ):
        wanted = [values[a:b] for a, b in zip(rows.start, rows.stop)]
        found = rows.of(values)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.concatenate(wanted))
        np.testing.assert_array_equal(found, values[rows.positions])
        np.testing.assert_array_equal(found, Picked(rows.positions, rows.offsets).of(values))
    values.flags.writeable = False  # as a mapped index is
    np.testing.assert_array_equal(Slices(start, start + lengths).of(values), values[Slices(start, start + lengths).positions])


def test_many_values_are_taken_block_by_block() -> None:
    positions = np.random.default_rng(0).integers(0, 1_000, 200_000)
    values = np.arange(1_000) * 3
    for kind in (np.int32, np.int64):
        np.testing.assert_array_equal(taken(values, positions.astype(kind)), positions * 3)
