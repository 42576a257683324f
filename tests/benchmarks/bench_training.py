"""Seconds of one pass over MovieLens 1M and peak memory: ours, RecTools' SASRec, and plain loops in torch, same tokens and machine.

Every model has width 64, two blocks (one layer for recurrent ones) and the softmax over all 3,416 items; every user's newest 201 events.
Each is trained for two passes in a process of its own, of which the first warms up and the quicker counts; ``--turns 2`` does everything
twice, and the best run counts. Seconds of the processor are told beside those of the clock: on a machine that does other work besides,
they say more. One turn takes about ten minutes on two idle cores. ``--row compile`` measures ours alone, as they are and with what torch
offers besides: ``torch.compile`` of the states (its default mode) and autocast to bfloat16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measured import peak_mb

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".bench" / "training"
WIDTH, LENGTH, BATCH = 64, 200, 128
PASSES = 2


def sequences() -> list[Any]:
    """int64 item codes from 1, a user's newest events, oldest first."""
    with np.load(WORK / "sequences.npz") as kept:
        return np.split(kept["items"], kept["offsets"][1:-1])


def passes(one: Callable[[], None]) -> dict[str, float]:
    """What ``said`` says of two passes."""
    seen = []
    for _ in range(PASSES):
        started = now()
        one()
        seen.append(since(started))
    return said(seen)


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - started[0], time.process_time() - started[1]


def said(seen: list[tuple[float, float]]) -> dict[str, float]:
    """Of passes (seconds, seconds of the processor) the quicker, the first one's seconds, and the process's peak memory in MB."""
    best = {"seconds": min(each[0] for each in seen), "cpu_seconds": min(each[1] for each in seen)}
    return {**best, "first_seconds": seen[0][0], "peak_mb": peak_mb()}


def ours(model: str, precision: str = "float32", *, compiled: bool = False, autocast: bool = False) -> dict[str, float]:
    """The training loop that ``zoo`` runs, without early stopping's look at held-out rows.

    compiled: torch.compile makes the states of embedded events; the losses, whose gradients are written out, stay. autocast: torch
    chooses the operations of a pass that are made in bfloat16.
    """
    import torch
    from zoo_gpt.network import GPTNetwork
    from zoo_gpt.params import GPTParams
    from zoo_recurrent.items import NETWORKS
    from zoo_recurrent.params import ItemParams

    from zoo.nextitem.sequences import Sequences
    from zoo.nextitem.training import Trainer

    rows = sequences()
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    codes = np.concatenate(rows).astype(np.int32) + 1
    none = np.zeros(len(codes), np.int32)
    data = Sequences(codes, none, none, offsets, np.ones(len(rows), bool))
    items = int(codes.max()) + 1
    chosen: dict[str, Any] = {
        "width": WIDTH,
        "max_length": LENGTH,
        "epochs": PASSES,
        "validation": 0.0,
        "loss": "softmax",
        "precision": precision,
    }
    torch.manual_seed(0)
    network = (
        GPTNetwork(GPTParams(**chosen), items, 2)
        if model == "gpt"
        else NETWORKS[model](ItemParams(**chosen, hidden=WIDTH), items, 2)
    )
    params = GPTParams(**chosen) if model == "gpt" else ItemParams(**chosen, hidden=WIDTH)
    counts = np.bincount(codes, minlength=items).astype(np.float64)
    trainer = Trainer(network, params, data, counts, np.ones(len(codes), np.float32), 0)
    if compiled:
        network.states = torch.compile(network.states)  # type: ignore[method-assign]
    number = iter(range(1, PASSES + 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return passes(lambda: print(f"{model}: loss {trainer.epoch(next(number)):.4f}", file=sys.stderr))


def padded() -> Iterator[tuple[Any, Any]]:
    """Shuffled batches as most tutorials have them: every row padded to the longest that there is."""
    import torch

    rows = sequences()
    order = np.random.default_rng(0).permutation(len(rows))
    for begin in range(0, len(order), BATCH):
        some = order[begin : begin + BATCH]
        table = np.zeros((len(some), LENGTH + 1), np.int64)
        for at, row in enumerate(some):
            table[at, : len(rows[row])] = rows[row]
        whole = torch.from_numpy(table)
        yield whole[:, :-1], whole[:, 1:]


def plain(model: str, lean: bool = True) -> dict[str, float]:
    """A loop of torch's own modules over padded rows. lean: logits at real positions only; else at all, of which padding is ignored."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    items = max(int(row.max()) for row in sequences()) + 1

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.places = nn.Embedding(items, WIDTH, padding_idx=0), nn.Embedding(LENGTH, WIDTH)
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, 0.2, functional.gelu, batch_first=True, norm_first=True)
            self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) if model == "transformer" else None
            self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True)

        def forward(self, read: Any) -> Any:
            vectors = functional.dropout(self.items(read), 0.2, self.training)
            if self.blocks is None:
                return self.cell(vectors)[0]
            mask = nn.Transformer.generate_square_subsequent_mask(read.shape[1])
            return self.blocks(vectors + self.places.weight, mask=mask, is_causal=True)

    network = Plain()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)

    def one() -> None:
        for read, told in padded():
            real = told > 0
            states = network(read)
            if lean:
                loss = functional.cross_entropy(states[real] @ network.items.weight.T, told[real])
            else:
                logits = states @ network.items.weight.T
                loss = functional.cross_entropy(logits.flatten(0, 1), told.flatten(), ignore_index=0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"plain {model}: loss {loss.item():.4f}", file=sys.stderr)

    return passes(one)


def rectools() -> dict[str, float]:
    """RecTools' SASRec as its documentation has it, with the same shape; in ``.peers/rectools``."""
    import pandas as pd
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    rows = sequences()
    user = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    frame = pd.DataFrame({Columns.User: user, Columns.Item: np.concatenate(rows), Columns.Weight: 1.0})
    frame[Columns.Datetime] = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(frame)), unit="s")
    seen: list[tuple[float, float]] = []

    class Clock(Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, *_: Any) -> None:
            self.started = now()

        def on_train_epoch_end(self, *_: Any) -> None:
            seen.append(since(self.started))

    def trainer() -> Any:
        return Trainer(
            max_epochs=PASSES, min_epochs=PASSES, accelerator="cpu", callbacks=[Clock()], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    SASRecModel(
        n_factors=WIDTH, n_blocks=2, n_heads=2, session_max_len=LENGTH, loss="softmax", batch_size=BATCH, epochs=PASSES,
        get_trainer_func=trainer,
    ).fit(Dataset.construct(frame))  # fmt: skip
    return said(seen)


RUNS: dict[str, Callable[[], dict[str, float]]] = {
    "gpt": lambda: ours("gpt"),
    "gru": lambda: ours("gru"),
    "gpt_bfloat16": lambda: ours("gpt", "bfloat16"),
    "gru_bfloat16": lambda: ours("gru", "bfloat16"),
    "rectools": rectools,
    "transformer": lambda: plain("transformer"),
    "padded_gru": lambda: plain("gru", lean=False),
    "lean_gru": lambda: plain("gru"),
}
OFFERED: dict[str, Callable[[], dict[str, float]]] = {
    "gpt_compiled": lambda: ours("gpt", compiled=True),
    "gpt_autocast": lambda: ours("gpt", autocast=True),
    "gru_compiled": lambda: ours("gru", compiled=True),
}
"""What torch offers to train quicker. Autocast is none for ``gru``, whose written-out gradients are float32 throughout."""
LIMIT = 1_800
"""Seconds that two passes may take with what torch offers; torch.compile may take longer than training does."""


def prepare() -> None:
    import polars as pl
    from bench_recommend import DATA
    from figures import QUICK

    events = pl.read_parquet(DATA / "movielens_1m/events.parquet").sort("user_id", "position")
    code = events["item_id"].rank("dense").cast(pl.Int64)
    kept = events.with_columns(code=code).group_by("user_id", maintain_order=True).agg(pl.col("code").tail(LENGTH + 1))
    lists = kept["code"].head(600 if QUICK else len(kept))
    WORK.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(lists.list.len().to_numpy())]).astype(np.int64)
    np.savez(WORK / "sequences.npz", items=lists.explode().to_numpy(), offsets=offsets)


def peer_environment() -> Path:
    """The interpreter of RecTools' environment, made the first time; its pins are not ours, so our constraints do not hold there."""
    folder = ROOT / ".peers" / "rectools"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [folder / "bin/python", "-m", "pip", "install", "--quiet", "torch==2.13.0", "rectools[torch]", "pyarrow<20"],
            check=True,
        )
        (folder / "complete").touch()
    return folder / "bin/python"


def measured(name: str, limit: float | None = None) -> dict[str, float]:
    """What ``--run`` says of a model. Raises TimeoutExpired after ``limit`` seconds."""
    python = peer_environment() if name == "rectools" else Path(sys.executable)
    done = subprocess.run([python, __file__, "--run", name], check=True, stdout=subprocess.PIPE, text=True, timeout=limit)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{name}: {found['seconds']:.1f} s a pass ({found['cpu_seconds']:.1f} of the processor), {found['peak_mb']:,.0f} MB",
        flush=True,
    )
    return found


def offered() -> list[Any]:
    """One pass with each of ``OFFERED`` beside the same model as it is, measured before and after: the slower of the two counts."""
    from figures import Figure

    figures = []
    for model in ("gpt", "gru"):
        seen: dict[str, dict[str, float]] = {}
        own = measured(model)["seconds"]
        for name in (each for each in OFFERED if each.startswith(model)):
            try:
                seen[name] = measured(name, LIMIT)
            except subprocess.TimeoutExpired:
                seen[name] = {}
        own = max(own, measured(model)["seconds"])
        for name, run in seen.items():
            said = "" if run else f" (not through its two passes in {LIMIT} s)"
            more = {"first_pass_seconds": run["first_seconds"], "peak_mb": run["peak_mb"]} if run else {}
            kept = {"ours": run.get("seconds", LIMIT), "peer": own, "peer_name": f"{model} as it is", "unit": "s"}
            figures.append(Figure(what=f"{name}, one pass, beside the same as it is{said}", **kept, beside=more))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices={**RUNS, **OFFERED})
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--row", choices=("compile",), help="measure only this; the others stay as they are")
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps({**RUNS, **OFFERED}[asked.run]()))
        return
    from figures import Figure, report

    prepare()
    if asked.row:
        report("training", offered(), part=True)
        return
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for _ in range(asked.turns):
        for name in (*RUNS, "gpt", "gru"):
            seen[name].append(measured(name))
    worst = {name: max if name in ("gpt", "gru") else min for name in seen}  # ours ran more often: its slower run counts
    best = {
        name: {what: worst[name](run[what] for run in runs) for what in ("seconds", "peak_mb")} for name, runs in seen.items()
    }
    figures = []
    for model, peer, peer_name, least in (
        ("gpt", "rectools", "RecTools SASRec", 3.5),
        ("gpt", "transformer", "torch's TransformerEncoder, padded", None),
        ("gru", "padded_gru", "torch's nn.GRU, logits at padding too", 3.0),
        ("gru", "lean_gru", "torch's nn.GRU, logits at real positions only", None),
        ("gpt_bfloat16", "rectools", "RecTools SASRec", 3.5),
        ("gru_bfloat16", "padded_gru", "torch's nn.GRU, logits at padding too", 3.0),
    ):
        for what, unit in (("seconds", "s"), ("peak_mb", "MB")):
            ratio = best[peer][what] / best[model][what]
            bound = least if what == "seconds" else 1.0 if least else None
            kept: dict[str, Any] = {}
            if bound:
                kept = {"must": f"{bound} times less" if bound > 1 else "less than the peer", "reached": ratio >= bound}
                kept |= (
                    {}
                    if ratio >= bound
                    else {"why": "the three products of the softmax over all items take most of a pass, and both do them"}
                )
            figures.append(
                Figure(
                    what=f"{model}, {'one pass' if what == 'seconds' else 'peak memory'}, beside {peer_name}",
                    ours=best[model][what],
                    peer=best[peer][what],
                    peer_name=peer_name,
                    unit=unit,
                    **kept,
                )
            )
    report("training", figures, part=True)  # those of --row compile stay


if __name__ == "__main__":
    main()
