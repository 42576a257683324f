"""BG/NBD and Pareto/NBD on the public CDNOW customers, against the parameters that were published for them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
from figures import Figure

from zoo.tasks.btyd import MODELS, Histories, fit

FOLDER = Path(__file__).parents[2] / ".peers" / "lifetimes"
PUBLISHED = {"bg_nbd": ((0.243, 4.414, 0.793, 2.426), -9582.4), "pareto_nbd": ((0.553, 10.578, 0.606, 11.669), -9595.0)}
"""Table 2 of Fader, Hardie and Lee (2005), "Counting your customers" the easy way; 2,357 customers, 39 weeks."""


def cdnow() -> list[Figure]:
    """The customers come with lifetimes 0.11.3 (MIT), of which nothing else is used."""
    if not FOLDER.exists():
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(FOLDER), "lifetimes==0.11.3"]
        subprocess.run(install, check=True)
    with (FOLDER / "lifetimes/datasets/cdnow_customers_summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    customers = Histories(*(np.array([float(row[name]) for row in rows]) for name in ("frequency", "recency", "T")))
    out = []
    for name, model in MODELS.items():
        told, likelihood = PUBLISHED[name]
        found = fit(model, customers)
        ours = float(model.likelihood(found, customers).sum())
        apart = float(np.abs(found / np.array(told) - 1).max())
        reached = apart < 0.01 and abs(ours - likelihood) < 0.1
        pairs = ", ".join(f"{p} {a:.3f} ({b:.3f})" for p, a, b in zip(model.parameters, found, told))
        out.append(
            Figure(
                id=f"cdnow {name}",
                what=f"CDNOW, {len(customers):,} customers, {name}: log-likelihood; parameters and those published: {pairs}",
                ours=ours,
                peer=likelihood,
                peer_name="published",
                lower_is_better=False,
                unit="nats",
                must="parameters within 1 %",
                reached=reached,
                why="" if reached else f"parameters are up to {apart:.1%} apart",
            )
        )
    return out
