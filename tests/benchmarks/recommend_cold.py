"""Items that training never saw, ranked by their texts: the part of ``make bench-recommend`` that holds out items."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from figures import QUICK, Figure, machine

SHARE = 0.1
K = 50
TRIED: tuple[Mapping[str, Any], ...] = (
    {"ranking": {"mode": "text"}},
    {"ranking": {"mode": "text", "trained_layers": 1}},
)
"""Parameters of ``bert`` that are tried on the validation rows."""
SEED = 0
PARTS = ("validation", "test")


def held_out(parts: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """int64: the log's codes of a tenth of all items that some event names, drawn by ``SEED``."""
    codes = [part.batch.column("items").values for part in parts.values()] + [part.target for part in parts.values()]
    items = np.unique(np.concatenate(codes).astype(np.int64))
    items = items[items > 1]
    return np.sort(np.random.default_rng(SEED).permutation(items)[: round(SHARE * len(items))])


def without(data: Any, cold: np.ndarray[Any, Any]) -> Any:
    """Training rows that never name these items: in histories they are unknown, and rows that lead to one have no target."""
    entity, column = data.batch.stored("items")
    items = replace(column, values=np.where(np.isin(column.values, cold), 1, column.values).astype(np.int32))
    blocks = {**data.batch.blocks, entity: {**data.batch.blocks[entity], "items": items}}
    target = np.where(np.isin(data.target, cold), 0.0, data.target)
    return replace(data, batch=replace(data.batch, blocks=blocks), target=target)


@dataclass
class Cold:
    """A dataset without a tenth of its items. kept: a folder of runs. fits: what was fitted here, and its seconds."""

    prepared: Any
    kept: Path
    again: bool = False
    fits: dict[str, tuple[Any, float]] = field(default_factory=dict)

    @cached_property
    def parts(self) -> dict[str, Any]:
        return {name: self.prepared.rows(name) for name in ("train", *PARTS)}

    @cached_property
    def items(self) -> np.ndarray[Any, Any]:
        return held_out(self.parts)

    def fit(self, params: Mapping[str, Any]) -> tuple[Any, float]:
        from zoo.fitting import Member
        from zoo.recommender import fit_recommender

        key = json.dumps(params, sort_keys=True)
        if key not in self.fits:
            started = time.perf_counter()
            given = {**params, "ranking": {**params["ranking"], "epochs": 1}} if QUICK else params
            members = [Member("bert", "bert", given, SEED), Member("popularity", "popularity")]
            recommender = fit_recommender(members, without(self.parts["train"], self.items))
            self.fits[key] = recommender, time.perf_counter() - started
        return self.fits[key]

    def run(self, params: Mapping[str, Any], part: str) -> dict[str, Any]:
        """HR@50 of a part's rows whose item was held out; the run that is kept where there is one."""
        what = {"dataset": self.prepared.dataset.name, "model": "cold", "params": dict(params), "seed": SEED}
        key = hashlib.sha256(json.dumps({**what, "part": part}, sort_keys=True).encode()).hexdigest()[:12]
        path = self.kept / f"cold-{part}-{key}.json"
        if path.exists() and not self.again:
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        recommender, fitted = self.fit(params)
        rows = self.parts[part].take(np.flatnonzero(np.isin(self.parts[part].target, self.items)))
        metrics, items = hits(recommender, rows, self.items, self.prepared.dataset.exclude_seen)
        record = {
            **what,
            "part": part,
            "rows": len(rows),
            "items": items,
            "held_out": len(self.items),
            "hr@50": metrics,
            "fit_seconds": fitted,
            "machine": machine(),
            "command": "make bench-recommend",
        }
        if not QUICK:
            self.kept.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shown = ", ".join(f"{name} {each['value']:.4f}" for name, each in metrics.items())
        print(
            f"{what['dataset']} {part} {dict(params)}, {len(rows)} rows of {len(self.items)} items held out: HR@50 {shown}; ",
            end="",
        )
        print(f"fitted in {fitted:.0f} s", flush=True)
        return record


def cold_run(prepared: Any, kept: Path, again: bool = False) -> dict[str, Any]:
    """The test run of those parameters that are best on the validation rows. kept: a folder of runs."""
    cold = Cold(prepared, kept, again)
    tried = {json.dumps(params): cold.run(params, "validation")["hr@50"]["bert among all"]["value"] for params in TRIED}
    return cold.run(json.loads(max(tried, key=lambda each: tried[each])), "test")


def hits(recommender: Any, rows: Any, cold: np.ndarray[Any, Any], exclude_seen: bool) -> tuple[dict[str, Any], int]:
    """HR@50 by member and by what is ranked (all items, or those held out), and how many items there are."""
    from zoo.evaluation.bootstrap import estimates_of_means
    from zoo.evaluation.ranking import rank

    batch, vocabulary = recommender.seen(rows.batch), recommender.known(rows.batch.catalogue)
    target, seen = vocabulary.target(rows), batch.column("items") if exclude_seen else None
    items = len(vocabulary.kept["item_id"])
    metrics: dict[str, Any] = {}
    for member in recommender.members:
        for place, among in (("all", None), ("held out", vocabulary.codes("item_id", cold))):
            ranking = rank(lambda batch, m=member: recommender.scores_of(m, batch), batch, target, seen=seen, among=among)
            hit = ((ranking.rank > 0) & (ranking.rank <= K)).astype(np.float64)
            metrics[f"{member.name} among {place}"] = vars(estimates_of_means({"hr": hit})["hr"])
    metrics["chance among all"], metrics["chance among held out"] = {"value": K / items}, {"value": K / len(cold)}
    return metrics, items


def cold_figures(record: Mapping[str, Any]) -> list[Figure]:
    """One line for each set of items ranked. Among all items the bound holds; few held out items leave chance itself too high for it."""
    out = []
    for place in ("all", "held out"):
        ours, chance, popular = (record["hr@50"][f"{name} among {place}"] for name in ("bert", "chance", "popularity"))
        best = max(chance["value"], popular["value"])
        reached = ours["value"] >= 5 * best
        bound: dict[str, Any] = {}
        if place == "all":
            bound = {"must": "5 times chance and popularity", "reached": reached}
            bound |= {} if reached else {"why": "titles say less about who takes an item"}
        out.append(
            Figure(
                what=f"{record['dataset']}: items held out of training, by text, among {place} items (HR@50)",
                ours=ours["value"],
                peer=best,
                peer_name="the better of chance and popularity",
                unit="HR@50",
                lower_is_better=False,
                interval=(ours["low"], ours["high"]),
                seeds=(record["seed"],),
                **bound,
            )
        )
    return out
