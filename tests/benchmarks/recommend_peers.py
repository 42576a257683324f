"""Models of RecTools and implicit beside ours in ``bench_recommend.py``: the same training events, rows, catalogue and metrics.

Peers get the training rows' events and each asked row's history as Parquet files of codes, items that training did not hold left out,
and give each row's first 20 items; the target's place there is its rank. Where they name fewer, the most popular items of training
follow, so that no peer loses rows that it does not answer. Each is asked as it comes (``untuned``) and at the settings that are best
on the validation rows (``tuned``). The first settings of every grid are the library's own, but for the sampled loss of large
catalogues. They name lists of the test rows together with those of the validation rows, as fitting is dear; only those of the two
settings that are reported are looked at.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_training import peer_environment

PEERS: dict[str, list[dict[str, list[Any]]]] = {
    "rectools_popular": [{}, {"popularity": ["n_interactions"]}, {"period": [7, 28]}],
    "rectools_ease": [{}, {"regularization": [30.0, 100.0, 300.0]}],
    "implicit_cosine": [{}, {"K": [50, 100, 200, 500]}],
    "implicit_bm25": [{}, {"K": [100, 500], "K1": [0.3, 1.2], "B": [0.25]}],
    "implicit_als": [{}, {"factors": [64, 128], "regularization": [0.01, 1.0], "alpha": [20.0]}],
    "implicit_bpr": [{}, {"factors": [64], "learning_rate": [0.01, 0.05]}],
    "rectools_sasrec": [{}, {"n_factors": [64], "n_heads": [2], "session_max_len": [50], "epochs": [12], "lr": [0.002]}],
    "rectools_bert4rec": [{}, {"n_factors": [64], "n_heads": [2], "session_max_len": [50], "epochs": [12], "lr": [0.002]}],
}
"""By peer, grids of parameters; every combination is tried: together as many as ours."""
SEQUENTIAL = ("rectools_sasrec", "rectools_bert4rec")
SAMPLED = {"loss": "sampled_softmax", "n_negatives": 128}
"""Of sequential peers where the softmax over all items is too dear: they hold (rows, positions, items) at once. Ours sample there too."""
DEAR = 10_000
"""Items above which it is, as for ours."""


def settings(peer: str, sampled: bool) -> Iterator[dict[str, Any]]:
    """The library's own first. sampled: whether the catalogue is too large for the softmax over it."""
    more = SAMPLED if sampled and peer in SEQUENTIAL else {}
    for grid in PEERS[peer]:
        for values in itertools.product(*grid.values()):
            yield {**more, **dict(zip(grid, values, strict=True))}


def number(peer: str, params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([peer, dict(params)], sort_keys=True).encode()).hexdigest()[:12]


def export(prepared: Any, folder: Path) -> None:
    """The files that ``recommend_library.py`` reads."""
    import polars as pl

    from zoo.evaluation.ranking import FIRST
    from zoo.vocabulary import Vocabulary

    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.of(prepared.rows("train"))
    for part in ("train", "validation", "test"):
        rows = prepared.rows(part)
        batch = vocabulary.apply(rows.batch)
        history, users = batch.column("items"), prepared.users(part)
        row, item = np.repeat(np.arange(len(batch)), history.lengths), history.values.astype(np.int64)
        if part == "train":
            target = vocabulary.target(rows).astype(np.int64)
            age = np.concatenate([batch.column("ages").values if "ages" in batch else np.zeros(len(item)), np.zeros(len(batch))])
            row, item = np.concatenate([row, np.arange(len(batch))]), np.concatenate([item, target])
            order = np.argsort(row, kind="stable")
            order = order[item[order] >= FIRST]
            row, item = row[order], item[order]
            time = (batch.as_of[row] - age[order] * 1e6).astype(np.int64)
            table = pl.DataFrame({"user": users[row], "item": item, "time": time}).with_columns(
                pl.col("time").cast(pl.Datetime("us"))
            )
            table.write_parquet(folder / "train.parquet")
            continue
        known = item >= FIRST
        lengths = np.bincount(row[known], minlength=len(batch))
        lists = np.split(item[known].astype(np.int32), np.cumsum(lengths)[:-1])
        frame = pl.DataFrame({"user": users, "items": pl.Series(lists, dtype=pl.List(pl.Int32))})
        frame.write_parquet(folder / f"rows-{part}.parquet")
    (folder / "complete").touch()


def listed(path: Path, empty: Any, popularity: Any) -> Any:
    """int32 (n, 20): the peer's lists, the most popular items behind those that it names. empty: bool (n,), rows without a known item."""
    import polars as pl

    from zoo.evaluation.ranking import FIRST

    found = pl.read_parquet(path)["items"].to_numpy().astype(np.int32)
    popular = (np.argsort(-popularity[FIRST:], kind="stable")[: found.shape[1]] + FIRST).astype(np.int32)
    for at in np.flatnonzero(empty | (found == 0).any(axis=1)):
        own = found[at][found[at] > 0] if not empty[at] else found[at][:0]
        found[at] = np.concatenate([own, popular[~np.isin(popular, own)]])[: found.shape[1]]
    return found


def ranking(top: Any, target: Any, items: int) -> Any:
    """The target's place in each list, 0 beyond it, which metrics of the list's depth at most do not tell apart."""
    from zoo.evaluation.ranking import FIRST, Ranking

    hit = (top == target[:, None]) & (target >= FIRST)[:, None]
    return Ranking(np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0).astype(np.int32), top, items)


def answers(peer: str, tried: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """By number of settings, seconds and memory of a run whose lists lie in ``folder``; what is missing is run."""
    kept = folder / f"{peer}.jsonl"
    found = {each["number"]: each for each in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    asked = [{"number": number(peer, params), "params": params} for params in tried]
    missing = [each for each in asked if each["number"] not in found]
    script = Path(__file__).with_name("recommend_library.py")
    if missing:
        command = [str(peer_environment()), str(script), str(folder), peer, json.dumps(missing)]
        with kept.open("a") as out, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"number"'):
                    out.write(line)
                    out.flush()
                    found[json.loads(line)["number"]] = json.loads(line)
                    print(f"{folder.parent.name}: {peer} {len(found)} of {len(asked)}: {line.strip()}", flush=True)
        if process.returncode:
            raise SystemExit(f"{peer} ended with {process.returncode}; the commands were {command[:3]}")
    return found


def peer_runs(prepared: Any, peers: Sequence[str], work: Path, kept: Path, keep: Any) -> list[dict[str, Any]]:
    """The test runs of every peer, untuned and tuned, as ``keep`` of bench_recommend.py writes them into ``kept``."""
    from zoo.candidates import ItemCounts
    from zoo.evaluation.ranking import FIRST, ndcg
    from zoo.recommender import Recommender
    from zoo.vocabulary import Vocabulary

    folder, data = work / "peers", prepared.rows("train")
    export(prepared, folder)
    vocabulary = Vocabulary.of(data)
    recommender = Recommender((), vocabulary, ItemCounts.of(data, vocabulary), data.kind)
    items = vocabulary.size("item_id") - FIRST
    out = []
    for peer in peers:
        tried = list(settings(peer, items > DEAR))
        said = answers(peer, tried, folder)

        def told(part: str, params: Mapping[str, Any], peer: str = peer) -> Any:
            rows = prepared.rows(part)
            history = vocabulary.apply(rows.batch).column("items")
            row = np.repeat(np.arange(len(rows)), history.lengths)
            empty = np.bincount(row, history.values >= FIRST, minlength=len(rows)) == 0
            top = listed(folder / f"{peer}-{part}-{number(peer, params)}.parquet", empty, recommender.popularity)
            return ranking(top, vocabulary.target(rows).astype(np.int64), items)

        gains = [float(ndcg(told("validation", params).rank).mean()) for params in tried]
        seen = [
            {"params": params, "ndcg@10": gain, **{k: v for k, v in said[number(peer, params)].items() if k != "number"}}
            for params, gain in zip(tried, gains, strict=True)
        ]
        for name, at in (("untuned", 0), ("tuned", int(np.argmax(gains)))):
            told_of = said[number(peer, tried[at])]
            what = {
                "dataset": prepared.dataset.name,
                "model": f"{peer} {name}",
                "params": tried[at],
                "part": "test",
                "seed": 0,
                "tried": seen if name == "tuned" else [],
                "fit_seconds": told_of["fit_seconds"],
            }
            path, ranks = kept / f"{peer}-{name}.json", work / f"{peer}-{name}.npz"
            scored, peak = told_of["rank_seconds"]["test"], told_of["peak_mb"]
            out.append(keep(prepared, path, ranks, what, told("test", tried[at]), recommender, scored, peak))
    return out
