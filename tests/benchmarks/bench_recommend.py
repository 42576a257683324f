"""Next items on public data, by full ranking, against published figures: ``make bench-recommend``.

The data go our way: ``zoo init``, ``zoo ingest``, a Feast service of sequences. Of each model some settings are tried on the validation
rows; the best one is asked for the test rows once. Every run is kept in ``docs/benchmarks/recommend/DATASET``, and is not run again: a
benchmark that was stopped goes on where it was. ``--again`` runs it anew, ``--dataset`` and ``--model`` choose some.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from figures import FOLDER, QUICK, Figure, machine, report
from measured import peak_mb
from recommend_cold import cold_figures, cold_run
from recommend_page import write as write_page
from recommend_peers import PEERS, peer_runs

ROOT = Path(__file__).parents[2]
DATA = next((folder for up in ROOT.parents if (folder := up / "shared/data").is_dir()), ROOT / "shared/data")
WORK = ROOT / ".bench" / "recommend"
RUNS = FOLDER / "recommend"
METRIC = "ndcg@10"
BY_ITEMS = "stack by items"
"""The stack whose second stage is chosen by the average over items (``average = "items"``)."""
PUBLISHED = {
    "gru": ("R1", 0.300, 0.175, 0.1648, "GRU4Rec, full cross-entropy"),
    "rnn": ("R2", 0.24, 0.13, None, ""),
    "gpt": ("R3", 0.312, 0.182, 0.1857, "SASRec, sampled softmax"),
    "bert": ("R4", 0.285, 0.155, 0.1537, "BERT4Rec"),
    "stack": ("R5", 0.328, 0.193, 0.1726, "gSASRec"),
}
"""MovieLens 1M, by model: the row, the least HR@10 and NDCG@10, and the best NDCG@10 published for the same protocol."""

WHOLE = ("HISTORY = 20_000 ", "HISTORY = 100_000 ")
"""In the definitions that ``zoo init`` writes: histories as long as they are."""


@dataclass(frozen=True)
class Dataset:
    """events: writes the files for ``zoo init`` into a folder, and returns its options. settings: of [tasks.recommendation].

    titles: whether the words of most items are their own, so that held out ones can be told by them. peers: whether RecTools' and
    implicit's models are run beside ours; else published figures stand there. most: rows of validation, drawn where there are more; 0 for
    all. The test has all of its rows: where users have many, only their number bounds what a paired test over users can tell. passes: of
    networks, where the dataset is a shop. tail: whether ``repeat`` is among the members and the stack is chosen by the average over items,
    too, which its bound is then told of.
    """

    name: str
    events: Callable[[Path], list[str]]
    settings: Mapping[str, Any]
    timed: bool
    exclude_seen: bool = True
    titles: bool = False
    peers: bool = False
    most: int = 0
    passes: int = 12
    tail: bool = False

    @property
    def models(self) -> list[str]:
        return [name for name in (SHOP_GRIDS if self.timed else GRIDS) if name != "repeat" or self.tail]


def movielens(folder: Path) -> list[str]:
    """MovieLens 1M in the published order; ratings do not count, as in the published figures."""
    import polars as pl

    events = pl.read_parquet(DATA / "movielens_1m/events.parquet")
    events.select("user_id", "item_id", "event_type", "position").write_parquet(folder / "events.parquet")
    items = pl.read_parquet(DATA / "movielens_1m/items.parquet").filter(
        pl.col("item_id").is_in(events["item_id"].unique().implode())
    )
    items.write_parquet(folder / "items.parquet")
    return ["--events", str(folder / "events.parquet"), "--items", str(folder / "items.parquet")]


def retailrocket(folder: Path) -> list[str]:
    """Views, carts and purchases of a shop; the held-out purchases of its own protocol have no time, and are left out."""
    import polars as pl

    pl.read_parquet(DATA / "retailrocket_mb/events.parquet").write_parquet(folder / "events.parquet")
    return ["--events", str(folder / "events.parquet")]


def grocery(folder: Path) -> list[str]:
    """The demo's purchases: lines of baskets, in which a household buys the same things again."""
    import polars as pl

    from zoo.cli.completejourney import load

    shop = load()
    kept = ("user_id", "item_id", "event_type", "timestamp")
    events = shop.events.filter(pl.col("event_type") == "purchase")
    events.select(kept).write_parquet(folder / "events.parquet")
    shop.items.write_parquet(folder / "items.parquet")
    return ["--events", str(folder / "events.parquet"), "--items", str(folder / "items.parquet")]


def cut(day: str, protocol: str = "time_cut", **more: Any) -> dict[str, Any]:
    return {"protocol": protocol, "test_start": day, "validation": "14d", **more}


SHOP: dict[str, Any] = {"timed": True, "exclude_seen": False, "peers": True}

DATASETS = {
    each.name: each
    for each in (
        Dataset("movielens_1m", movielens, {"protocol": "leave_one_out"}, timed=False, titles=True),
        Dataset("retailrocket_purchase", retailrocket, cut("2015-08-15", "rolling", event_type="purchase"), **SHOP),
        Dataset("retailrocket_event", retailrocket, cut("2015-08-15", "rolling"), **SHOP, most=1_500),
        Dataset("grocery", grocery, cut("2017-11-01"), **SHOP, passes=4, tail=True),
    )
}
"""exclude_seen: MovieLens as published; what a shop's users saw or bought before is often what they take next. Of Retailrocket's users
only 104 buy after the cut who were there before it, so a row is every purchase, or event, as of just before it.
"""

GRIDS: dict[str, dict[str, list[Any]]] = {
    "popularity": {},
    "itemknn": {"fade": [None, 5.0, 20.0], "shrink": [10.0, 100.0]},
    "covisit": {"window": [5, 20], "lag_power": [0.5, 1.0], "normalise": [0.3, 0.5], "recency_power": [1.0, 2.0]},
    "ease": {"regularisation": [300.0, 1000.0], "fade": [None, 5.0, 20.0]},
    "slit": {"regularisation": [100.0, 300.0, 1000.0], "window": [10, 30], "fade": [2.0, 4.0]},
    "gpt": {},
    "gru": {"ranking": [{"width": 128, "hidden": 256, "dropout": 0.3, "epochs": 30}]},
    "bert": {"ranking": [{"mode": "items", "epochs": 40, "leftward": 0.8, "nearer": 1.0}]},
    "rnn": {"ranking": [{"width": 64, "hidden": 128, "epochs": 30}]},
}
"""Settings tried on the validation rows, by model: every combination."""
EVENTS = {"event_types": True, "gaps": True, "tokens": 3_200}
SHOP_GRIDS: dict[str, dict[str, list[Any]]] = {
    "popularity": {"half_life": [None, 0.1, 1.0, 7.0], "own": [0.0, 1_000.0]},
    "repeat": {"half_life": [None, 60.0, 20.0]},
    "itemknn": {"fade": [None, 5.0], "shrink": [10.0, 100.0]},
    "covisit": {"window": [5, 20], "recency_power": [1.0, 2.0], "half_life": [None, 7.0]},
    "ease": {"regularisation": [30.0, 300.0], "fade": [None, 5.0], "max_items": [4_000]},
    "slit": {"regularisation": [10.0, 100.0], "fade": [2.0, 4.0], "max_items": [4_000]},
    "gpt": {
        "loss": ["sampled"],
        "negatives": [512],
        "learning_rate": [0.002],
        **{k: [v] for k, v in EVENTS.items()},
    },
    "gru": {"ranking": [{"loss": "sampled", "negatives": 512, "hidden": 64, "learning_rate": 0.003, **EVENTS}]},
}
"""Of shops, whose logs have times and too many items for the softmax over all of them in these few passes: networks sample 512 items."""


def configurations(model: str, dataset: Dataset) -> Iterator[dict[str, Any]]:
    grid = (SHOP_GRIDS if dataset.timed else GRIDS)[model]
    for values in itertools.product(*(each[:1] if QUICK else each for each in grid.values())):
        chosen = dict(zip(grid, values, strict=True))
        if dataset.timed and model == "gpt":
            chosen["epochs"] = dataset.passes
        if dataset.timed and model == "gru":
            chosen["ranking"] = {**chosen["ranking"], "epochs": dataset.passes}
        yield chosen


@dataclass(frozen=True)
class Prepared:
    """A dataset as a project of ours, made once, and its rows with features, read when first needed."""

    dataset: Dataset
    project: Path
    kept: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(dataset: Dataset) -> Prepared:
        folder = WORK / dataset.name
        project = folder / "project"
        if not (folder / "complete").exists():
            subprocess.run(["rm", "-rf", str(folder)], check=True)
            folder.mkdir(parents=True)
            options = dataset.events(folder)
            zoo("init", str(project), *options)
            definitions = project / "sequences.py"
            definitions.write_text(definitions.read_text(encoding="utf-8").replace(*WHOLE), encoding="utf-8")
            zoo("--repo", str(project), "apply")
            zoo("--repo", str(project), "ingest", options[1])
            (folder / "complete").touch()
        return Prepared(dataset, project)

    @cached_property
    def _features(self) -> Any:
        from zoo.features import Features

        return Features.open(self.project).pinned()

    def users(self, part: str) -> Any:
        """int64 (n,): a number of each row's user, the same in every part."""
        self.rows(part)
        parts = {name: getattr(self.kept["split"], name).keys["user_id"] for name in ("train", "validation", "test")}
        return np.searchsorted(np.unique(np.concatenate(list(parts.values()))), parts[part])

    def _drawn(self, whole: Any) -> Any:
        rows, most = whole.validation, self.dataset.most
        if not most or len(rows) <= most:
            return whole
        return replace(whole, validation=rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:most])))

    def clusters(self, part: str) -> Any:
        """``users`` where some have several rows, else None."""
        users = self.users(part)
        return users if len(np.unique(users)) < len(users) else None

    def rows(self, part: str) -> Any:
        """TrainingData of ``train``, ``validation`` or ``test``."""
        from zoo.tasks.recommendation import TASK, split
        from zoo.training import training_data

        if "split" not in self.kept:
            self.kept["split"] = self._drawn(split(self._features.reader.view(), self.dataset.settings))
        if part not in self.kept:
            started = time.perf_counter()
            self.kept[part] = training_data(self._features, TASK, getattr(self.kept["split"], part))
            print(
                f"{self.dataset.name}: {len(self.kept[part]):,} {part} rows in {time.perf_counter() - started:.1f} s", flush=True
            )
        return self.kept[part]


def zoo(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "zoo", *arguments], check=True, stdout=subprocess.DEVNULL)


def run(
    prepared: Prepared, model: str, params: Mapping[str, Any], part: str, seed: int = 0, again: bool = False
) -> dict[str, Any]:
    """Fit on the training rows, rank ``part``; the run that is kept where there is one. Ranks by row lie beside the project.

    Of validation rows only the figures are asked for, which are kept without them.
    """
    what = {"dataset": prepared.dataset.name, "model": model, "params": dict(params), "part": part, "seed": seed}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    folder = WORK / "quick" if QUICK else RUNS / prepared.dataset.name
    path, ranks = folder / f"{model}-{part}-{key}.json", WORK / prepared.dataset.name / f"{model}-{part}-{key}.npz"
    if path.exists() and (part == "validation" or ranks.exists()) and not again:
        return {**json.loads(path.read_text()), "ranks": str(ranks)}
    rows = prepared.rows(part)
    recommender, fitted = fitted_member(prepared, model, params, seed, again)
    started = time.perf_counter()
    [ranking] = recommender.rankings(rows, exclude_seen=prepared.dataset.exclude_seen).values()
    scored = time.perf_counter() - started
    return keep(prepared, path, ranks, {**what, "fit_seconds": fitted}, ranking, recommender, scored)


def keep(
    prepared: Prepared,
    path: Path,
    ranks: Path,
    what: Mapping[str, Any],
    ranking: Any,
    recommender: Any,
    scored: float,
    peak: float | None = None,
) -> dict[str, Any]:
    """What is said of a run, written to ``path``, its ranks to ``ranks``. peak: MB of the process that ran it, default this one."""
    from zoo.evaluation.ranking import slices, summary

    rows, users = prepared.rows(what["part"]), prepared.clusters(what["part"])
    of: dict[str, Any] = {"popularity": recommender.popularity, "users": users}
    record: dict[str, Any] = {
        **what,
        "rows": len(rows),
        "items": ranking.items,
        "metrics": {name: vars(value) for name, value in summary(ranking, **of).items()},
        "rank_seconds": scored,
        "peak_mb": peak or peak_mb(),
        "machine": machine(),
        "command": "make bench-recommend",
    }
    lengths, target = rows.batch.column("items").lengths, recommender.vocabulary.target(rows)
    parts = slices(lengths, target, recommender.popularity)
    if what["part"] == "test":
        record["slices"] = {
            name: {"rows": int(chosen.sum())}
            | {m: vars(v) for m, v in summary(ranking, rows=chosen, users=users, cutoffs=(10,)).items()}
            for name, chosen in parts.items()
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    ranks.parent.mkdir(parents=True, exist_ok=True)
    tail = parts["tail items"]
    of_users = {} if users is None else {"users": users}
    np.savez_compressed(ranks, rank=ranking.rank, top=ranking.top, items=ranking.items, tail=tail, **of_users)
    path.write_text(json.dumps(plain(record), indent=1) + "\n", encoding="utf-8")
    shown = record["metrics"]
    print(
        f"{what['dataset']} {what['part']} {what['model']} {what['params']}: HR@10 {shown['hr@10']['value']:.4f}, NDCG@10 ",
        end="",
    )
    print(f"{shown[METRIC]['value']:.4f}; fitted in {what['fit_seconds']:.1f} s, ranked in {scored:.1f} s", flush=True)
    return {**record, "ranks": str(ranks)}


def fitted_member(prepared: Prepared, model: str, params: Mapping[str, Any], seed: int, again: bool) -> tuple[Any, float]:
    """A recommender of one member fitted on the training rows, and the seconds that took; what is kept of an earlier run where there is."""
    from zoo.artefacts import ArtefactStore
    from zoo.cache import Cache
    from zoo.fitting import Member, PluginSource
    from zoo.recommender import Recommender, fit_recommender

    what = {"model": model, "params": dict(params), "seed": seed, "quick": QUICK}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    kept, store = (
        WORK / prepared.dataset.name / f"{model}-fitted-{key}.json",
        ArtefactStore(WORK / prepared.dataset.name / "fitted"),
    )
    if kept.exists() and not again:
        found = json.loads(kept.read_text())
        return Recommender.load(store.read(found["digest"]), PluginSource().load()), found["seconds"]
    data = prepared.rows("train")
    # in the cache are the checkpoints of a run that was stopped; its seconds are then those of all its parts
    recommender = fit_recommender([Member(model, model, params, seed)], data, cache=Cache(WORK / "cache"))
    member = recommender.members[0]
    seconds = getattr(member.fitted, "training", {}).get("seconds", member.seconds)
    kept.write_text(json.dumps({"digest": store.write(recommender.save()), "seconds": seconds}), encoding="utf-8")
    return recommender, seconds


def plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and value != value else value


def best(prepared: Prepared, model: str, again: bool) -> dict[str, Any]:
    """The test run of the settings with the highest NDCG@10 on the validation rows."""
    tried = [run(prepared, model, params, "validation", again=again) for params in configurations(model, prepared.dataset)]
    chosen = max(tried, key=lambda each: each["metrics"][METRIC]["value"])
    return run(prepared, model, chosen["params"], "test", again=again)


def stack(prepared: Prepared, runs: list[dict[str, Any]], again: bool) -> list[dict[str, Any]]:
    """The test runs of the rank average and of stacks of these models, at their best settings; what is kept where there is.

    The second stage is chosen and fitted on the validation rows; members are those fitted on the training rows, and stay as they are.
    """
    from zoo.fitting import PluginSource
    from zoo.recommender import cold
    from zoo.reranking import DEPTH, MEAN, STACK, choose

    exclude_seen = prepared.dataset.exclude_seen
    what = {
        "dataset": prepared.dataset.name,
        "params": {each["model"]: each["params"] for each in runs},
        "part": "test",
        "seed": 0,
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    folder = WORK / "quick" if QUICK else RUNS / prepared.dataset.name
    averages = {STACK: "rows", **({BY_ITEMS: "items"} if prepared.dataset.tail else {})}
    kept = {
        name: (folder / f"{stem}-test-{key}.json", WORK / prepared.dataset.name / f"{stem}-test-{key}.npz")
        for name in (MEAN, *averages)
        for stem in (name.replace(" ", "_"),)
    }
    if all(path.exists() for pair in kept.values() for path in pair) and not again:
        return [{**json.loads(path.read_text()), "ranks": str(ranks)} for path, ranks in kept.values()]
    fitted = [fitted_member(prepared, each["model"], each["params"], each["seed"], again=False)[0] for each in runs]
    members = replace(fitted[0], members=tuple(each.members[0] for each in fitted))
    started = time.perf_counter()
    validation, users = prepared.rows("validation"), prepared.clusters("validation")
    warm = np.flatnonzero(~cold(members.seen(validation.batch)))  # as second_stage has it, whose survey is made once for all
    survey = members.survey(validation.take(warm), exclude_seen=exclude_seen, depth=DEPTH)[1]
    assert survey is not None
    surveyed = time.perf_counter() - started
    stacked, choices, seconds = {}, {}, {MEAN: 0.0}
    for name, average in averages.items():
        started = time.perf_counter()
        choice = choose(survey, DEPTH, users=None if users is None else users[warm], average=average, source=PluginSource())
        stacked[name], choices[name] = replace(members, reranker=choice.reranker), choice.record
        seconds[name] = surveyed + time.perf_counter() - started
        print(f"{prepared.dataset.name} {name}: {json.dumps(choice.record)}", flush=True)
    started = time.perf_counter()
    found = rankings(stacked, prepared.rows("test"), exclude_seen)
    scored = time.perf_counter() - started
    out = []
    for name, (path, ranks) in kept.items():
        record = {**what, "model": name, "second_stage": dict(choices.get(name, choices[STACK])), "fit_seconds": seconds[name]}
        out.append(keep(prepared, path, ranks, record, found[name], members, scored))
    return out


def rankings(stacked: Mapping[str, Any], data: Any, exclude_seen: bool) -> dict[str, Any]:
    """Of recommenders of the same members and of the members' rank average, each member asked once."""
    from zoo.evaluation.ranking import FIRST, joined, placed
    from zoo.reranking import MEAN, rank_average

    one = next(iter(stacked.values()))
    batch, target = one.seen(data.batch), one.known(data.batch.catalogue).target(data).astype(np.int64)
    parts: dict[str, list[Any]] = {name: [] for name in (MEAN, *stacked)}
    begin, items = 0, batch.catalogue.size("item_id") - FIRST
    for stage in one.stages(batch, exclude_seen):
        own = target[begin : begin + len(stage.batch)]
        begin += len(stage.batch)
        parts[MEAN].append(placed(rank_average(stage.ranks), own, items))
        for name, each in stacked.items():
            parts[name].append(placed(each.combine(stage), own, items))
    return {name: joined(each, items) for name, each in parts.items()}


def compared(runs: list[dict[str, Any]], against: str | None = None, tail: bool = False) -> list[Any]:
    """Paired tests of every model with the best one, or with the one named, over users, Holm-corrected. tail: of tail items only."""
    from zoo.evaluation.ranking import Ranking, comparisons

    rankings, about = {}, {}
    for each in runs:
        with np.load(each["ranks"]) as kept:
            rankings[each["model"]] = Ranking(kept["rank"], kept["top"], int(kept["items"]))
            about = {name: kept[name] for name in ("users", "tail") if name in kept}
    leader = max(runs, key=lambda each: each["metrics"][METRIC]["value"])["model"]
    rows = about["tail"] if tail else None
    return comparisons(rankings, metric=METRIC, against=against or leader, users=about.get("users"), rows=rows)


def figures(runs: list[dict[str, Any]]) -> list[Figure]:
    """NDCG@10 of every model, HR@10 in words beside it; with the bound and the published best of its row where it has one.

    The stack is also measured by its best member on the validation rows, which it must beat with p < 0.01.
    """
    out = []
    for each in sorted(runs, key=lambda r: r["metrics"][METRIC]["value"]):
        hit, value = each["metrics"]["hr@10"], each["metrics"][METRIC]
        bound: dict[str, Any] = {}
        said = ""
        if each["model"] in ("stack", BY_ITEMS):
            before = {n: v for n, v in each["second_stage"]["ndcg@10"].items() if n in each["params"]}
            rival = max(before, key=lambda name: before[name])
            [test] = compared([r for r in runs if r["model"] in (rival, each["model"])], against=rival)
            better = test.value > 0 and test.p_value < 0.01
            said = f", {len(each['params'])} models by {each['second_stage']['chosen']}; "
            said += f"{test.value:+.4f} on {rival}, paired p = {test.p_value:.2g}"
            if DATASETS[each["dataset"]].peers and each["model"] == (BY_ITEMS if DATASETS[each["dataset"]].tail else "stack"):
                bound = leads([r for r in runs if r is each or r["model"] not in ("stack", BY_ITEMS)], each["model"])
        if each["dataset"] == "movielens_1m" and each["model"] in PUBLISHED:
            name, hr10, ndcg10, peer, peer_name = PUBLISHED[each["model"]]
            must = f"HR@10 >= {hr10}, NDCG@10 >= {ndcg10}"
            reached = hit["value"] >= hr10 and value["value"] >= ndcg10
            if each["model"] == "stack":
                must, reached = f"{must}, better than its best member with p < 0.01", reached and better
            bound = {"id": name, "must": must, "reached": reached}
            bound |= {"peer": peer, "peer_name": peer_name} if peer else {}
            bound |= {} if reached else {"why": "none of the settings tried on the validation rows gives more"}
        out.append(
            Figure(
                what=f"{each['dataset']}: {each['model']}, NDCG@10 (HR@10 {hit['value']:.4f}{said})",
                ours=value["value"],
                unit="NDCG@10",
                lower_is_better=False,
                interval=(value["low"], value["high"]),
                seeds=(each["seed"],),
                beside={"hr10": hit["value"]},
                **bound,
            )
        )
    return out


def leads(runs: list[dict[str, Any]], stack: str) -> dict[str, Any]:
    """The bound of a stack beside its members and the peers: it is better than each of them, on tail items too."""
    found = {part: compared(runs, against=stack, tail=part == "tail") for part in ("all", "tail")}
    short = [
        f"{test.a} ({-test.value:+.4f} for the stack, p = {test.p_holm:.2g}{'' if part == 'all' else ', tail items'})"
        for part, tests in found.items()
        for test in tests
        if not (test.value < 0 and test.p_holm < 0.05)
    ]
    must = "better than every member and peer, paired p < 0.05 after Holm's correction, on tail items too"
    why = {"why": f"beyond chance it is not better than {'; '.join(short)}"} if short else {}
    return {"must": must, "reached": not short, **why}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=DATASETS, action="append")
    parser.add_argument(
        "--model", choices=(*GRIDS, "repeat", "stack"), action="append", help="stack: of the others named, or of all"
    )
    parser.add_argument(
        "--peer", choices=PEERS, action="append", help="of RecTools and implicit; with --model, none unless named"
    )
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--cold", action="store_true", help="only items that are held out of training and ranked by their texts")
    asked = parser.parse_args()
    shown = []
    for name in asked.dataset or DATASETS:
        prepared = Prepared.of(DATASETS[name])
        if DATASETS[name].titles and (asked.cold or not asked.model):
            shown += cold_figures(cold_run(prepared, RUNS / name, asked.again))
        if asked.cold:
            continue
        chosen = [model for model in asked.model or DATASETS[name].models if model != "stack"] or DATASETS[name].models
        runs = [best(prepared, model, asked.again) for model in chosen]
        if len(runs) > 1 and (asked.model is None or "stack" in asked.model):
            runs += stack(prepared, runs, asked.again)
        if DATASETS[name].peers and not QUICK:
            peers = asked.peer or ([] if asked.model else list(PEERS))
            runs += peer_runs(prepared, peers, WORK / name, WORK / "quick" if QUICK else RUNS / name, keep)
        shown += figures(runs)
        for each in compared(runs) if len(runs) > 1 else []:
            print(
                f"{name}: {each.a} - {each.b}: NDCG@10 {each.value:+.4f} [{each.low:+.4f}, {each.high:+.4f}], "
                f"p = {each.p_holm:.2g} after Holm's correction"
            )
    report("recommend", shown, part=bool(asked.model or asked.dataset or asked.cold))
    if not QUICK:
        write_page()


if __name__ == "__main__":
    main()
