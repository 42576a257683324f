"""RecTools' and implicit's models on the same rows as ours, in an environment of their own (no zoo in it).

``python recommend_library.py FOLDER MODEL SETTINGS``: FOLDER holds what ``recommend_peers.py`` writes: train.parquet (user, item, time: the
events trained on, oldest first), and for each part rows (user, items: the history) that are ranked. SETTINGS is JSON, a list of parameters.
Of each, the first ``DEPTH`` items of every row go to FOLDER/MODEL-PART-NUMBER.parquet, and one JSON line says seconds and peak memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from measured import peak_mb
from scipy.sparse import csr_matrix

DEPTH = 20
DENSE = 4_000
"""Items of EASE, the most frequent ones: it solves a dense matrix of them; as many as ours."""
BLOCK = 1_000
"""Rows ranked at once."""
FIRST = 2
"""The least code of an item."""

Rank = Callable[[Any, Any], Any]
"""(users int64 (n,), histories as lists of items) -> int64 (n, DEPTH), items, best first, 0 for none."""


def lists(parts: Any) -> tuple[Any, Any]:
    """Lists of items as (row of each, items)."""
    row = np.repeat(np.arange(len(parts)), [len(each) for each in parts])
    return row, np.concatenate(parts).astype(np.int64) if len(row) else np.zeros(0, np.int64)


def matrix(row: Any, item: Any, shape: tuple[int, int]) -> Any:
    """Counts of events by row and item, float32, as implicit takes them."""
    counts = csr_matrix((np.ones(len(item), np.float32), (row, item)), shape=shape)
    counts.sum_duplicates()
    return counts


def implicit(name: str, params: Mapping[str, Any], train: pd.DataFrame) -> Rank:
    """A model of implicit. als: rows are folded in by their histories; bpr: by the user's own factors, and nothing for other users."""
    from implicit.cpu.als import AlternatingLeastSquares
    from implicit.cpu.bpr import BayesianPersonalizedRanking
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender

    models = {
        "als": AlternatingLeastSquares,
        "bpr": BayesianPersonalizedRanking,
        "bm25": BM25Recommender,
        "cosine": CosineRecommender,
    }
    trained = {"random_state": 0} if name in ("als", "bpr") else {}
    model = models[name](**params, **trained, num_threads=1)
    users, row = np.unique(train["user"].to_numpy(), return_inverse=True)
    size = int(train["item"].max()) + 1 - FIRST
    model.fit(matrix(row, train["item"].to_numpy() - FIRST, (len(users), size)), show_progress=False)

    def rank(asked: Any, histories: Any) -> Any:
        out = np.zeros((len(asked), DEPTH), np.int64)
        at = np.arange(len(asked))
        more: dict[str, Any] = {"filter_already_liked_items": False, "N": DEPTH}
        if name == "bpr":
            place = np.minimum(np.searchsorted(users, asked), len(users) - 1)
            at = np.flatnonzero(users[place] == asked)
            found, scores = model.recommend(place[at], csr_matrix((len(at), size), dtype=np.float32), **more)
        else:
            again = {"recalculate_user": True} if name == "als" else {}
            row, item = lists(histories)
            found, scores = model.recommend(at, matrix(row, item - FIRST, (len(asked), size)), **more, **again)
        known = (found >= 0) & (np.abs(scores) < 1e30) & ((scores > 0) if name in ("bm25", "cosine") else True)
        out[at, : found.shape[1]] = np.where(known, found + FIRST, 0)
        return out

    return rank


def rectools(name: str, params: Mapping[str, Any], train: pd.DataFrame) -> Rank:
    """A model of RecTools. Rows are users of a dataset of their own, whose interactions are their histories."""
    from datetime import timedelta

    from pytorch_lightning import Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset, IdMap, Interactions
    from rectools.models import BERT4RecModel, EASEModel, PopularModel, SASRecModel

    chosen = dict(params)
    if "period" in chosen:
        chosen["period"] = timedelta(days=chosen["period"])
    seed_everything(0)
    items = train["item"].value_counts(sort=True)
    if name == "ease":
        items = items.sort_index().sort_values(ascending=False, kind="stable").head(DENSE)
        train = train[train["item"].isin(items.index)]
    item_map = IdMap.from_values(np.sort(items.index.to_numpy()))

    def dataset(user: Any, item: Any, when: Any) -> Any:
        frame = pd.DataFrame({Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: when})
        user_map = IdMap.from_values(np.unique(user))
        return Dataset(user_map, item_map, Interactions.from_raw(frame, user_map, item_map))

    if name in ("sasrec", "bert4rec"):
        epochs = chosen.get("epochs", 3)

        def trainer() -> Any:
            return Trainer(
                max_epochs=epochs, min_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip

        chosen["get_trainer_func"] = trainer
    models = {"sasrec": SASRecModel, "bert4rec": BERT4RecModel, "ease": EASEModel, "popular": PopularModel}
    model = models[name](**chosen)
    model.fit(dataset(train["user"].to_numpy(), train["item"].to_numpy(), train["time"].to_numpy()))
    newest = chosen.get("session_max_len", 100) if name in ("sasrec", "bert4rec") else None

    def rank(asked: Any, histories: Any) -> Any:
        out = np.zeros((len(asked), DEPTH), np.int64)
        known = [each[np.isin(each, item_map.external_ids)] for each in histories]
        row, item = lists([each if newest is None else each[-newest:] for each in known])
        if name == "popular":
            row, item = np.arange(len(asked)), np.full(len(asked), item_map.external_ids[0])
        if not len(row):
            return out
        users = np.unique(row)
        # one more user, who is not asked for: the matrix of users by items ends with the last item that somebody has
        row, item = np.append(row, len(asked)), np.append(item, item_map.external_ids[-1])
        when = pd.Timestamp("2030-01-01") + pd.to_timedelta(np.arange(len(row)), unit="s")
        found = model.recommend(users, dataset(row, item, when), k=DEPTH, filter_viewed=False, on_unsupported_targets="warn")
        out[found[Columns.User].to_numpy(), found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
        return out

    return rank


def main(folder: Path, model: str, settings: list[dict[str, Any]], numbers: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    train = pd.read_parquet(folder / "train.parquet")
    library, _, name = model.partition("_")
    for number, params in zip(numbers, settings, strict=True):
        started = time.perf_counter()
        rank = (implicit if library == "implicit" else rectools)(name, params, train)
        fitted, told = time.perf_counter() - started, {}
        for path in sorted(folder.glob("rows-*.parquet")):
            started = time.perf_counter()
            rows = pd.read_parquet(path)
            parts = [np.zeros((0, DEPTH), np.int64)]
            for begin in range(0, len(rows), BLOCK):
                some = rows.iloc[begin : begin + BLOCK]
                parts.append(rank(some["user"].to_numpy(), [np.asarray(each, np.int64) for each in some["items"]]))
            part = path.stem.removeprefix("rows-")
            flat = pa.array(np.concatenate(parts).reshape(-1))
            pq.write_table(
                pa.table({"items": pa.FixedSizeListArray.from_arrays(flat, DEPTH)}), folder / f"{model}-{part}-{number}.parquet"
            )
            told[part] = time.perf_counter() - started
        print(json.dumps({"number": number, "fit_seconds": fitted, "rank_seconds": told, "peak_mb": peak_mb()}), flush=True)


if __name__ == "__main__":
    asked = json.loads(sys.argv[3])
    main(Path(sys.argv[1]), sys.argv[2], [each["params"] for each in asked], [each["number"] for each in asked])
