"""Choosing by loss on later rows: what stands as the default stays unless another is better beyond chance.

It must not know what is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from zoo.plugin import Array

SURE = 0.95
"""How sure it must be that another is better: the best of several noisy losses is mostly a lucky one (the winner's curse)."""


def better(gain: Array, entities: Array | None = None) -> bool:
    """Whether the sum of what each row gains (n,) is above 0 beyond chance: a one-sided t-test of level ``SURE`` over whole entities.

    entities: (n,), whose each row is, for rows of one user at several instants are not independent; None: every row on its own. Where a
    few entities have most of the rows, the degrees of freedom are those of a few (Satterthwaite, 1946). No where there is one entity only.
    """
    from scipy.special import stdtrit  # 0.1 s that nobody pays who only predicts

    of = np.arange(len(gain)) if entities is None else np.unique(entities, return_inverse=True)[1]
    sums = np.bincount(of, gain)
    if len(sums) < 2:
        return False
    square = (sums - sums.mean()) ** 2
    spread = float(square.sum())
    if spread <= 0:
        return bool(sums.sum() > 0)
    freedom = max(1.0, spread**2 / float((square**2).sum()) - 1)
    error = math.sqrt(spread * len(sums) / (len(sums) - 1))
    return bool(sums.sum() > stdtrit(freedom, SURE) * error)


def least(losses: Mapping[str, Array], default: str, entities: Array | None = None) -> str:
    """The name of least total loss among those that are ``better`` than ``default``.

    losses: by name, of the same rows (n,). entities: as in ``better``.
    """
    best, least_loss = default, math.inf
    for name, loss in losses.items():
        if name != default and loss.sum() < least_loss and better(losses[default] - loss, entities):
            best, least_loss = name, float(loss.sum())
    return best
