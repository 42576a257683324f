"""The page of recommendation runs, made from their JSON files by every ``make bench-recommend``, and by running this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from figures import FOLDER

HEAD = """# Runs of `make bench-recommend`

Made from the files in [recommend](recommend) by `python tests/benchmarks/recommend_page.py`; nothing here is written by hand.
NDCG@10 with its 95 % interval (bootstrap over users), HR@10, NDCG@10 of tail items, the share of the catalogue that is among somebody's
first ten; settings that were tried on the validation rows, the seed, minutes of fitting those that were taken (of `stack`, of its second
stage) and seconds of ranking the test rows, on a machine that did other work besides; peak memory of the process in MB, which holds the
benchmark's own rows too. `mean of 7`, `stack of 7`: of so many models, by the rank average and by the second stage. `tuned`, `untuned`: a
peer at its best settings on the validation rows, and as it comes.
"""
COLUMNS = ("model", "NDCG@10", "HR@10", "tail", "coverage", "settings", "seed", "minutes", "seconds", "MB")
COLD = ("rows", "settings", "number", "text", "popularity", "chance", "text, held out", "chance, held out", "minutes")


def page(folder: Path) -> str:
    """folder: holds a folder of JSON files for each dataset."""
    parts = [HEAD]
    for dataset in sorted(path for path in folder.iterdir() if path.is_dir()):
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(dataset.glob("*.json"))]
        told = [run for run in runs if run.get("part") == "test" and "metrics" in run]
        told.sort(key=lambda run: -run["metrics"]["ndcg@10"]["value"])
        if not told:
            continue
        tried: dict[str, int] = {}
        for run in runs:
            if run.get("part") == "validation":
                tried[run["model"]] = tried.get(run["model"], 0) + 1
        parts.append(f"## {dataset.name}\n\n{told[0]['rows']:,} test rows, {told[0]['items']:,} items; {told[0]['machine']}.\n")
        lines = [COLUMNS, ("---",) * len(COLUMNS), *(_row(run, tried) for run in told)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        if cold := [run for run in runs if run["model"] == "cold"]:
            parts.append(_cold(cold))
    return "\n".join(parts)


def _cold(runs: list[dict[str, Any]]) -> str:
    """What is said of items that were held out of training. HR@50 of a text model, of popularity and of chance."""
    runs.sort(key=lambda run: (run["part"] != "test", -run["hr@50"]["bert among all"]["value"]))
    head = (
        f"### Items held out of training\n\n{runs[0]['held_out']:,} of the items, in no training row; rows whose next item is one of them, "
        f"HR@50 by `bert` over item texts, by popularity and by chance, among all {runs[0]['items']:,} items and among those held out.\n"
    )
    lines: list[tuple[str, ...]] = [COLD, ("---",) * len(COLD)]
    for run in runs:
        found = {name: f"{each['value']:.4f}" for name, each in run["hr@50"].items()}
        own = run["hr@50"]["bert among all"]
        settings = ", ".join(f"{k} = {v}" for k, v in run["params"]["ranking"].items() if k != "mode") or "as it comes"
        line = (run["part"], settings, f"{run['rows']:,}", f"{found['bert among all']} ({own['low']:.4f} to {own['high']:.4f})")
        rest = ("popularity among all", "chance among all", "bert among held out", "chance among held out")
        lines.append((*line, *(found[name] for name in rest), f"{run['fit_seconds'] / 60:.1f}"))
    return head + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _row(run: dict[str, Any], tried: dict[str, int]) -> tuple[str, ...]:
    of, gain = run["metrics"], run["metrics"]["ndcg@10"]
    tail = run["slices"]["tail items"]["ndcg@10"]["value"]
    stacked = run["model"] == "mean" or run["model"].startswith("stack")
    return (
        f"{run['model']} of {len(run['params'])}" if stacked else run["model"],
        f"{gain['value']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})",
        f"{of['hr@10']['value']:.4f}",
        "" if tail is None else f"{tail:.4f}",
        f"{of['coverage@10']['value']:.3f}",
        str(len(run.get("tried", ())) or tried.get(run["model"], 0) or ""),
        str(run["seed"]),
        f"{run['fit_seconds'] / 60:.1f}",
        f"{run['rank_seconds']:.1f}",
        f"{run['peak_mb']:,.0f}",
    )


def write(folder: Path = FOLDER) -> None:
    (folder / "recommend.md").write_text(page(folder / "recommend"), encoding="utf-8")


if __name__ == "__main__":
    write()
