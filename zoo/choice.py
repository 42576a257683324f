"""Choosing by loss on later rows: what stands as the default stays unless another is better by more than chance would have it.

It must not know what is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from zoo.plugin import Array


def standard_error(gain: Array, entities: Array | None = None) -> float:
    """Of the sum of what each row gains (n,), whole entities drawn: rows of one user at several instants are not independent.

    entities: (n,), whose each row is; None: every row on its own. Infinite where there is one entity only.
    """
    of = np.arange(len(gain)) if entities is None else np.unique(entities, return_inverse=True)[1]
    sums = np.bincount(of, gain)
    return math.sqrt(len(sums)) * float(sums.std(ddof=1)) if len(sums) > 1 else math.inf


def least(losses: Mapping[str, Array], default: str, entities: Array | None = None) -> str:
    """The name of least total loss among those that beat ``default`` by more than a standard error of the paired difference.

    losses: by name, of the same rows (n,). entities: as in ``standard_error``.
    """
    best, least_loss = default, math.inf
    for name, loss in losses.items():
        gain = losses[default] - loss
        if name != default and loss.sum() < least_loss and gain.sum() > standard_error(gain, entities):
            best, least_loss = name, float(loss.sum())
    return best
