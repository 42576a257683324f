"""Benchmarks run apart (``make bench-NAME``); here each is imported, and their common form is tested."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import bench_imbalance
import bench_recommend
import figures
import generate
import load
import numpy as np
import polars as pl
import predict_peers
import predict_swaps
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import recommend_page
import recommend_peers
import tasks_autogluon
import tasks_best
from figures import Figure, report

from zoo.contract import Examples, Split
from zoo.evaluation import compare
from zoo.manager import plugins

ROOT = Path(__file__).parents[1]
FIGURE = Figure(what="history of 10 rows", ours=0.5, peer=100.0, peer_name="a store", unit="s", must="ratio >= 100", reached=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tests/benchmarks").glob("*.py")))
def test_every_benchmark_imports_without_its_peers(name: str) -> None:
    import_module(name)


@pytest.mark.parametrize(("lower", "ratio"), [(True, 200.0), (False, 0.005)])
def test_the_ratio_is_above_one_where_ours_is_better(lower: bool, ratio: float) -> None:
    assert Figure(what="x", ours=0.5, peer=100.0, unit="s", lower_is_better=lower).ratio == pytest.approx(ratio)


def test_the_ratio_of_a_bound_on_size_is_our_part_of_the_peers() -> None:
    assert Figure(what="x", ours=0.5, peer=2.0, unit="MB", within=True).ratio == 0.25


def test_a_figure_without_a_peer_has_no_ratio() -> None:
    assert Figure(what="x", ours=0.5, unit="s").ratio is None


@pytest.mark.parametrize("bound", [{"must": "ratio >= 100"}, {"reached": True}, {"must": "ratio >= 100", "reached": False}])
def test_a_bound_says_whether_it_is_reached_and_if_not_why(bound: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"go together|say why"):
        Figure(what="x", ours=0.5, unit="s", **bound)  # type: ignore[arg-type]


def test_figures_are_shown_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report("toy", [FIGURE], tmp_path, quick=False)
    shown = capsys.readouterr().out
    assert "history of 10 rows" in shown
    assert "200.0" in shown
    (row,) = json.loads((tmp_path / "toy.json").read_text())
    assert (row["ours"], row["ratio"], row["must"], row["reached"]) == (0.5, 200.0, "ratio >= 100", True)
    assert row["command"] == "make bench-toy"
    assert {"id", "what", "peer", "peer_name", "unit", "interval", "seeds", "machine", "date"} <= row.keys()


def test_a_part_takes_the_place_of_its_like_and_leaves_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [
        Figure(what="a", ours=1.0, unit="s", id="F1"),
        Figure(what="a size", ours=2.0, unit="s"),
        Figure(what="b (3 GB)", ours=3.0, unit="s"),
    ]
    report("toy", first, tmp_path, quick=False)
    again = [Figure(what="a anew", ours=4.0, unit="s", id="F1"), Figure(what="b (4 GB)", ours=5.0, unit="s")]
    report("toy", again, tmp_path, quick=False, part=True)
    kept = json.loads((tmp_path / "toy.json").read_text())
    assert [(row["what"], row["ours"]) for row in kept] == [("a anew", 4.0), ("a size", 2.0), ("b (4 GB)", 5.0)]


def test_quick_figures_say_so_and_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report("toy", [FIGURE], tmp_path, quick=True)
    assert "quick" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_generated_log_has_its_size_is_repeatable_and_has_a_tail(tmp_path: Path) -> None:
    files = generate.write(tmp_path, 30_000, seed=3)
    table = pa.concat_tables([pq.read_table(path) for path in files])
    assert table.equals(pa.concat_tables(list(generate.chunks(30_000, 3))))
    assert table.num_rows == 30_000
    assert not table.equals(pa.concat_tables(list(generate.chunks(30_000, 4))))
    shares = {row["values"]: row["counts"] / 30_000 for row in table["event_type"].value_counts().to_pylist()}
    assert shares["view"] == pytest.approx(0.9, abs=0.02)
    assert shares["purchase"] == pytest.approx(0.03, abs=0.01)
    counts = np.sort(np.bincount(np.asarray(table["item_id"]))[1:])
    assert counts[-1] > 20 * np.median(counts)
    assert pc.count_distinct(table["timestamp"]).as_py() < 30_000


@pytest.mark.parametrize("model", bench_imbalance.RANKERS)
def test_options_against_popular_items_are_each_models_own(model: str) -> None:
    """The first is neutral; each of the others changes what the model takes."""
    params = plugins().models[model].plugin.spec.params()
    taken = [params.model_validate(each) for each in bench_imbalance.RANKERS[model].values()]
    assert len({each.model_dump_json() for each in taken}) == len(taken)


def test_the_page_of_recommendation_runs_has_every_test_run_best_first(tmp_path: Path) -> None:
    def run(model: str, part: str, gain: float, tail: float | None, **more: object) -> None:
        each = {"value": gain, "low": gain - 0.01, "high": gain + 0.01}
        record = {"model": model, "part": part, "rows": 1200, "items": 30, "machine": "a machine", "seed": 0, **more}
        record["metrics"] = {"ndcg@10": each, "hr@10": each, "coverage@10": each}
        record |= {"slices": {"tail items": {"ndcg@10": {"value": tail}}}, "fit_seconds": 90, "rank_seconds": 2, "peak_mb": 1500}
        (tmp_path / "shop").mkdir(exist_ok=True)
        (tmp_path / "shop" / f"{model}-{part}-{gain}.json").write_text(json.dumps(record))

    for gain in (0.1, 0.2):
        run("ease", "validation", gain, None)
    run("ease", "test", 0.15, 0.05)
    run("als tuned", "test", 0.25, None, tried=[{}, {}, {}])
    run("stack by items", "test", 0.3, 0.1, params={"ease": {}, "popularity": {}})
    lines = recommend_page.page(tmp_path).splitlines()
    assert "## shop" in lines
    assert "1,200 test rows, 30 items; a machine." in lines
    assert lines[-3:] == [
        "| stack by items of 2 | 0.3000 (0.2900 to 0.3100) | 0.3000 | 0.1000 | 0.300 |  | 0 | 1.5 | 2.0 | 1,500 |",
        "| als tuned | 0.2500 (0.2400 to 0.2600) | 0.2500 |  | 0.250 | 3 | 0 | 1.5 | 2.0 | 1,500 |",
        "| ease | 0.1500 (0.1400 to 0.1600) | 0.1500 | 0.0500 | 0.150 | 2 | 0 | 1.5 | 2.0 | 1,500 |",
    ]


def test_a_peers_ranks_are_places_in_its_lists_with_the_most_popular_behind_them(tmp_path: Path) -> None:
    lists = pl.DataFrame({"items": [[5, 3, 0], [2, 4, 5], [0, 0, 0]]}, schema={"items": pl.Array(pl.Int64, 3)})
    lists.write_parquet(tmp_path / "lists.parquet")
    popularity = np.array([0.0, 0.0, 1.0, 9.0, 2.0, 3.0])
    top = recommend_peers.listed(tmp_path / "lists.parquet", np.array([False, False, True]), popularity)
    assert top.tolist() == [[5, 3, 4], [2, 4, 5], [3, 5, 4]]
    assert recommend_peers.ranking(top, np.array([4, 3, 3]), 4).rank.tolist() == [3, 0, 1]


def test_categories_are_text_for_a_peer_and_null_where_there_is_none() -> None:
    column = tasks_autogluon._category(np.array([0.0, np.nan, 12.0], np.float32))
    assert column.to_list() == ["c0", None, "c12"]


@pytest.mark.parametrize(("wrong", "least", "most"), [(0, 90, 100), (1, 0, 0)])
def test_the_highest_rate_is_one_without_errors_and_in_time(
    monkeypatch: pytest.MonkeyPatch, wrong: int, least: float, most: float
) -> None:
    async def closed(*_: object) -> load.Seen:
        return load.Seen({200: [0.01] * 110}, seconds=1.0)

    async def steady(port: int, requests: list[bytes], rate: float, seconds: float) -> load.Seen:
        late = 0.01 if rate <= 100 else 1.0
        return load.Seen({200: [late] * round(rate)} | ({503: [0.001]} if wrong else {}), seconds=1.0)

    monkeypatch.setattr(load, "closed", closed)
    monkeypatch.setattr(load, "steady", steady)
    assert least <= asyncio.run(predict_peers.highest(1, []))[0] <= most


def test_validation_rows_are_drawn_and_the_test_has_all_of_its_own(tmp_path: Path) -> None:
    def rows(number: int) -> Examples:
        times = np.arange(number, dtype=np.int64)
        return Examples({"user_id": times}, times, times.astype(np.float64), times)

    prepared = bench_recommend.Prepared(replace(bench_recommend.DATASETS["retailrocket_event"], most=30), tmp_path)
    whole = Split(rows(50), rows(70), rows(40), rows(60))
    drawn = prepared._drawn(whole)
    assert [len(part) for part in (drawn.train, drawn.test, drawn.validation)] == [50, 70, 30]
    assert (np.diff(drawn.validation.time) > 0).all()
    assert prepared._drawn(drawn) is drawn


def test_an_answer_of_another_version_than_it_names_is_mixed() -> None:
    known = {"churn@1": {1: 0.2, 2: 0.4}, "churn@2": {1: 0.3, 2: 0.5}}

    def body(*answers: tuple[str, int, float]) -> bytes:
        told = [{"version": version, "keys": {"user_id": user}, "score": score} for version, user, score in answers]
        return json.dumps({"answers": told}).encode()

    right = [body(("churn@1", 1, 0.2), ("churn@1", 2, 0.4000001)), body(("churn@2", 1, 0.3), ("churn@2", 2, 0.5))]
    for wrong in (
        body(("churn@1", 1, 0.2), ("churn@2", 2, 0.5)),  # names two
        body(("churn@1", 1, 0.2), ("churn@1", 2, 0.5)),  # one score is the other's
        body(("churn@2", 1, 0.2), ("churn@2", 2, 0.4)),  # named after the other
        body(("churn@3", 1, 0.2)),
    ):
        judged = predict_swaps._judged([*right, wrong], known)
        assert judged["mixed"] == 1
        assert min(judged["by"].values()) >= 1
    assert predict_swaps._judged(right, known)["mixed"] == 0


def test_rows_tell_what_their_part_took(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[Figure]] = []
    clock = {"monotonic": 0.0, "cpu": 0.0}

    def part() -> list[Figure]:
        clock["monotonic"] += 120
        clock["cpu"] += 30
        return [FIGURE, replace(FIGURE, beside={"users": 3.0})]

    monkeypatch.setattr("sys.argv", ["bench_toy.py", "--row", "a"])
    monkeypatch.setattr("time.monotonic", lambda: clock["monotonic"])
    monkeypatch.setattr(figures, "processor", lambda: clock["cpu"])
    monkeypatch.setattr(figures, "report", lambda _, of, **__: kept.append(list(of)))
    figures.chosen("toy", {"a": part, "b": part}, None)
    ((first, second),) = kept
    assert first.beside == {"minutes": 2.0, "cpu_minutes": 0.5}
    assert second.beside == {"users": 3.0, "minutes": 2.0, "cpu_minutes": 0.5}


@pytest.mark.parametrize(("worse", "reached"), [(0.0, True), (0.3, False)])
def test_a_stack_stands_beside_the_member_chosen_before_and_the_best_in_hindsight(worse: float, reached: bool) -> None:
    rng = np.random.default_rng(0)
    users, cuts = rng.integers(0, 300, 1500), rng.integers(0, 3, 1500)
    target = (rng.random(1500) < 0.4).astype(np.float64)
    scores = {name: np.clip(0.4 + 0.3 * (target - 0.4) + rng.normal(0, 0.1, 1500), 0.01, 0.99) for name in ("a", "b")}
    scores["stack"] = np.clip((scores["a"] + scores["b"]) / 2 - worse * target, 0.01, 0.99)
    loss = {name: tasks_best.losses(target, each[:, None]) for name, each in scores.items()}
    before = np.array(["a", "b", "a"])[cuts]
    first, second = tasks_best.beside_best("X", "toy", loss, ["a", "b"], before, users, cuts)
    then = np.where(cuts == 1, scores["b"], scores["a"])
    more = {"metric": "log_loss", "groups": users, "cuts": cuts, "resamples": tasks_best.RESAMPLES}
    plain = compare(target, scores["stack"], then, **more)
    assert (first.ours, first.interval) == (pytest.approx(plain.value), pytest.approx((plain.low, plain.high)))
    assert first.reached is reached
    assert "by cut " in first.what
    best = min(("a", "b"), key=lambda name: np.mean([loss[name][cuts == cut].mean() for cut in range(3)]))
    assert f"on these very rows, {best} (" in second.what
    assert second.must == ""
    at_once, alone = second.interval, compare(target, scores["stack"], scores[best], **more)
    assert at_once is not None
    assert at_once[1] - at_once[0] > alone.high - alone.low  # for both members at once
