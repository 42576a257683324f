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
benchmark's own rows too. `tuned`, `untuned`: a peer at its best settings on the validation rows, and as it comes.
"""
COLUMNS = ("model", "NDCG@10", "HR@10", "tail", "coverage", "settings", "seed", "minutes", "seconds", "MB")


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
    return "\n".join(parts)


def _row(run: dict[str, Any], tried: dict[str, int]) -> tuple[str, ...]:
    of, gain = run["metrics"], run["metrics"]["ndcg@10"]
    tail = run["slices"]["tail items"]["ndcg@10"]["value"]
    return (
        run["model"],
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
