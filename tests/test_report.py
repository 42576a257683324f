"""A report is one file that loads nothing, escapes everything, and draws what the run has."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from sample_run import EVERY, HOSTILE, against, apart, line, record, rows, trial
from shop import Shop

from zoo.artefacts import ArtefactStore
from zoo.cli import app as application
from zoo.contract import Array, Block, Column, FeatureBatch, Target
from zoo.errors import ArtefactError
from zoo.evaluation.drift import drift
from zoo.evaluation.kept import TestScores
from zoo.report import Run, moved, render
from zoo.report.charts import Axis, Series, bars, curves, intervals
from zoo.report.markup import Markup, joined, said, table, tag
from zoo.report.quality import gain, leaning, verdict


class Page(HTMLParser):
    """Elements with their attributes, and whether every one that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def plots(self) -> list[str]:
        return [str(svg["data-plot"]) for svg in self.of("svg")]


def test_a_page_has_every_plot_and_loads_nothing() -> None:
    text = render(Run("churn@3", record(), {"log": {"events": 7}, "plugins": {}}, rows(), {"alias": "champion"}))
    page = Page(text)
    assert page.open == []
    assert page.plots == EVERY
    assert [tag for tag, _ in page.found if tag in ("script", "img", "iframe", "object", "embed")] == []
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert [a for _, each in page.found for a in each if a.startswith("on")] == []
    assert not re.findall(r"(?:https?:)?//[\w.]", text.replace("<!DOCTYPE html>", ""))
    assert {link["href"] for link in page.of("link")} == {"data:,"}
    assert "prefers-color-scheme:dark" in text
    ids = {each.get("id") for each in page.of("h2")}
    assert all(str(link["href"])[1:] in ids for link in page.of("a"))


def test_every_drawing_is_well_formed_and_inside_its_frame() -> None:
    text = render(Run("churn@3", record(), {}, rows()))
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == len(EVERY)
    for drawing in drawings:
        svg = ElementTree.fromstring(drawing)
        width, height = (float(each) for each in svg.attrib["viewBox"].split()[2:])
        assert svg.find("title") is not None
        places = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in svg.iter("circle")]
        for element in svg.iter("polyline"):
            places += [tuple(map(float, point.split(","))) for point in element.attrib["points"].split()]  # type: ignore[misc]
        places += [(float(e.attrib["x"]) + float(e.attrib["width"]), float(e.attrib["y"])) for e in svg.iter("rect")]
        assert places
        assert all(0 <= x <= width and 0 <= y <= height for x, y in places), svg.attrib["data-plot"]


def test_bars_below_nothing_go_to_the_left() -> None:
    drawing = bars("moved", "what moved", [("up", 2.0), ("down", -1.0), ("nothing", 0.0)], "log-odds")
    up, down, nothing = (e.attrib for e in ElementTree.fromstring(re.findall(r"<svg.*?</svg>", drawing)[0]).iter("rect"))
    assert float(down["x"]) + float(down["width"]) == pytest.approx(float(up["x"]), abs=0.2)
    assert float(up["width"]) == pytest.approx(2 * float(down["width"]), abs=0.3)
    assert (up["class"], down["class"], nothing["x"]) == ("f0", "f1", up["x"])


def test_a_page_of_single_scores_escapes_what_it_says() -> None:
    row = {"output": HOSTILE, "score": 0.7, "raw": 0.8, "base": -0.1, "units": "log-odds", "source": "last_known", "known": False}
    row |= {"members": {HOSTILE: 0.9}, "features": {HOSTILE: [{"column": HOSTILE, "moved": -0.2}]}, "how": {HOSTILE: HOSTILE}}
    event = {"sequence": "items", "back": 0, "event": {"items": HOSTILE, "value": 2.5, "colour": None}, "moved": {"stack": 0.3}}
    page = Page(moved.render(HOSTILE, [(HOSTILE, {**row, "events": [event]})], lambda event: str(event["items"])))
    assert page.of("script") == []
    assert page.plots == ["moved-members", "moved-columns", "moved-events"]
    said = "".join(page.text)
    for each in ("an answer of last known features", "answer to somebody new", "1. <script>alert", HOSTILE):
        assert each in said


def test_nothing_that_a_record_says_becomes_markup() -> None:
    hostile = record(
        command=HOSTILE, members={HOSTILE: line(0.5)}, best_member=HOSTILE, slices={HOSTILE: {"rows": 3, "ndcg@10": 0.5}}
    )
    kept = TestScores.of(np.array([0.0, 1.0]), np.arange(2), np.arange(2), {HOSTILE: np.array([[0.2], [0.7]])}, Target("binary"))
    text = render(Run(HOSTILE, hostile, {"settings": {HOSTILE: HOSTILE}, "log": {HOSTILE: HOSTILE}}, kept, {HOSTILE: HOSTILE}))
    assert "<script" not in text
    assert Page(text).of("script") == []
    assert HOSTILE in "".join(Page(text).text)


def test_what_a_run_does_not_have_is_said_and_not_drawn() -> None:
    text = render(Run("old@1", {"members": {"gbdt": line(0.7)}, "test_rows": 3}))
    page = Page(text)
    assert page.plots == ["leaderboard", "costs"]
    assert (
        "This run keeps nothing for: calibration, lift and gain, decisions, uplift, slices, stack weights, importance, drift"
        in text
    )
    assert "One model only" in text


@pytest.mark.parametrize(
    ("differences", "told"),
    [
        (apart(0.01, -0.01, 0.03), "The stack and good, the best of the others, do not differ beyond the interval"),
        (
            apart(0.05, 0.03, 0.07),
            "The stack is better than good, the best of the others, beyond the interval (log-loss -0.0500, 95 % -0.0700 to -0.0300,",
        ),
        (
            apart(-0.05, -0.07, -0.03),
            "good alone is better than the stack (log-loss -0.0500, 95 % -0.0700 to -0.0300, p 0.01): the simple model wins",
        ),
    ],
)
def test_the_verdict_follows_the_interval_of_the_paired_difference(differences: dict[str, Any], told: str) -> None:
    members = {
        "good": line(0.8, differences={"log_loss": differences}),
        "poor": line(0.5, differences=against((-0.4, -0.5, -0.3))),
    }
    assert verdict(Run("r", record(members=members))).startswith(told)


def test_a_stack_is_not_called_better_for_its_order_alone() -> None:
    """The verdict is that of probabilities; what AUC says stands beside it."""
    good = line(0.8, differences=against((-0.05, -0.07, -0.03), (-0.02, -0.03, -0.01)))
    said = verdict(Run("r", record(members={"good": good, "poor": line(0.5)})))
    assert said.startswith("good alone is better than the stack (log-loss -0.0500")
    assert said.endswith("By AUC the stack is better beyond the interval (AUC +0.0200, 95 % +0.0100 to +0.0300, p 0.01).")
    old = line(0.8, difference={**apart(-0.02, -0.03, -0.01), "metric": "auc"})  # as records had it
    said = verdict(Run("r", record(members={"good": old, "poor": line(0.5)})))
    assert said.startswith(
        "The best single model on the test rows is good, by log-loss, of which nothing tells the interval. By AUC"
    )


def test_paired_tests_of_every_metric_are_shown() -> None:
    said = "".join(Page(render(Run("churn@3", record(), {}, rows()))).text)
    for each in ("log-loss less stack", "AUC less stack", "0.2700 to 0.3500", "-0.3500 to -0.2700"):
        assert each in said


def test_what_intervals_allow_for_and_what_not_stands_beside_them() -> None:
    said = "".join(Page(render(Run("churn@3", record(), {}, rows()))).text)
    for each in ("0.4700 to 0.5100", "each test is at 95 % by itself", "is picked on these rows, which favours it"):
        assert each in said  # of the stack's log-loss, 0.49, whose interval the table of all has; and AUC's
    assert "0.7900 to 0.8300" in said
    assert "All test rows stand at" not in said
    kept = rows()
    at_once = TestScores.of(kept.target, kept.groups, np.zeros(len(kept.time)), kept.scores, kept.kind)
    text = render(Run("churn@3", record(), {}, at_once))
    assert "All test rows stand at one instant: intervals do not tell how other instants differ" in text


@pytest.mark.parametrize(
    ("stack", "told"),
    [
        ({"intercept": -0.5, "intercept_interval": [-0.7, -0.4]}, "On the whole scores are too high, beyond the interval of the"),
        (
            {"intercept": 0.5, "intercept_interval": [0.4, 0.7]},
            "scores are too low, beyond the interval of the intercept: they expect",
        ),
        ({"intercept": 0.1, "intercept_interval": [-0.1, 0.3]}, "scores are neither too low nor too high, beyond the interval"),
        ({"slope": 0.7, "slope_interval": [0.6, 0.9]}, "They are too bold"),
        ({"slope": 1.4, "slope_interval": [1.2, 1.6]}, "They are too timid"),
        ({"ece": 0.01, "ece_interval": [0.02, 0.05]}, "The calibration error lies below its interval, as the noise"),
    ],
)
def test_the_way_in_which_scores_are_off_is_told(stack: dict[str, Any], told: str) -> None:
    kept = rows()
    found = Run("churn@3", record(stack=line(0.81, **stack)), {}, kept)
    assert told in leaning(found)
    assert told in "".join(Page(render(found)).text)
    if "intercept" in stack:
        expected, seen = kept.scores["stack"].sum(), kept.target.sum()
        assert f"they expect {expected:,.0f} positives, {seen:,.0f} were seen" in leaning(found)
    else:
        assert "On the whole" not in leaning(found)


def test_the_best_member_of_curves_is_said_to_be_the_one_before_the_test() -> None:
    said = Page(render(Run("churn@3", record(), {}, rows()))).text
    assert said.count("good (the best member before the test)") >= 2  # reliability and gain


def test_choices_say_what_they_were_made_among() -> None:
    mapped = {"chosen": "platt", "log_loss": {"none": 0.41, "platt": 0.4}}
    final = {"chosen": "logistic", "log_loss": {"best": 0.4, "logistic": 0.41}, "rows": 300, "calibration": mapped}
    said = "".join(Page(render(Run("churn@3", record(final=final), {}, rows()))).text)
    assert "chosen: logistic, which stays unless another is better beyond chance." in said
    assert "Calibration: platt, by log-loss on later training rows: none 0.4100, platt 0.4000." in said
    final = {**final, "chosen": "best"}
    assert "chosen: best." in "".join(Page(render(Run("churn@3", record(final=final), {}, rows()))).text)


def test_amounts_of_importance_have_their_unit() -> None:
    found = record()
    features = {**found["importance"]["features"], "classes": {"how": "TreeSHAP, of scores before the softmax", "rows": 9}}
    features["classes"]["columns"] = {"recency": 0.3}
    found["importance"] |= {"units": "log-odds", "features": features}
    said = Page(render(Run("churn@3", found, {}, rows()))).text
    assert said.count("log-odds") == 2
    assert said.count("score before the softmax") == 1
    assert "log-odds or value" not in said


def test_counts_have_no_halves_between_them() -> None:
    assert Axis.of([1, 4], 0, 100, None, whole=True).ticks == (1, 2, 3, 4)
    assert 1.5 in Axis.of([1, 4], 0, 100, None).ticks


def test_drift_says_that_a_record_keeps_the_columns_that_moved_most() -> None:
    many = {f"c{n}": {"psi": 0.4, "ks": 0.3, "missing": [0.0, 0.0]} for n in range(60)}
    text = render(Run("churn@3", record(drift=many)))
    assert "60 of the 60 columns that moved most (others are not kept) moved much" in text
    assert "1 of the 2 columns moved much" in render(Run("churn@3", record()))


def test_a_baseline_that_beats_the_stack_is_named() -> None:
    baselines = {"bg_nbd": line(0.85, differences=against((-0.04, -0.06, -0.02)))}
    found = Run("churn@1", record(baselines=baselines))
    assert verdict(found).startswith("bg_nbd alone is better than the stack")
    assert list(found.lines) == ["good", "poor", "bg_nbd", "mean", "stack"]


def test_parts_decisions_and_facts_are_shown_where_a_record_has_them() -> None:
    decided = {
        "costs": {"ratio": 5.0, "threshold": 0.2, "acted": 0.3, "acted_interval": [0.25, 0.35], "cost": 0.61, "nobody": 0.9}
    }
    more = {"days": {"14": {"stack": line(0.77)}, "28": {"stack": line(0.66)}}, "decisions": decided}
    text = render(Run("churn@1", record(**more, facts={"value_at_risk": {"worth": 1234.5, "column": "value"}})))
    said = "".join(Page(text).text)
    for each in (
        "days 14",
        "0.7700",
        "days 28",
        "0.6600",
        "cost ratio 5",
        "0.2500 to 0.3500",
        "0.6100",
        "value at risk: worth",
        "1234.5",
    ):
        assert each in said


def test_classes_have_a_gain_curve_each_and_one_reliability_curve() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 300).astype(np.float64)
    p = np.full((300, 3), 0.2)
    p[np.arange(300), target.astype(int)] = 0.6
    lines = {"log_loss": 0.5, "log_loss_interval": [0.4, 0.6], "accuracy": 1.0, "average_precision": 1.0, "seconds": 2.0}
    classes = {"view": 0.3, "cart": 0.3, "nothing": 0.4}
    kept = TestScores.of(target, np.arange(300), np.arange(300), {"gbdt": p, "stack": p}, Target("multiclass", tuple(classes)))
    page = Page(render(Run("behaviour@1", {"members": {"gbdt": lines}, "stack": lines, "classes": classes}, scores=kept)))
    assert page.plots == ["leaderboard", "calibration", "gain", "lift", "gain", "lift", "gain", "lift", "costs"]


def test_uplift_curves_and_policies_are_drawn_where_a_record_has_them() -> None:
    text = render(Run("hillstrom", {**trial(), "warning": "treatment was not random"}))
    assert Page(text).plots == ["uplift", "policies"]
    assert "Warning: treatment was not random" in text


def test_a_trial_on_a_page_has_effects_policies_and_the_check_with_intervals() -> None:
    found = trial()
    found["uplift"]["Womens"] |= {"effect": 0.045, "effect_interval": [0.03, 0.06], "rows": 1200}
    found["policy"]["values"]["best arm for each"] |= {
        "contacted": 77,
        "against": "Mens to all",
        "difference": apart(0.01, -0.02, 0.04),
    }
    found["policy"] |= {"chosen": "T-gbdt", "budget": 500, "share": 0.25}
    found |= {"outcome": "visit", "arms": {"none": 9, "Womens": 9}, "command": "zoo uplift trial.csv --treatment arm"}
    found["randomised"] = {"auc": {"Womens": {"gbdt": {"value": 0.51, "interval": [0.49, 0.53]}}}}
    said = "".join(Page(render(Run("hillstrom", found))).text)
    for each in (
        "visit +0.0450 a row more than none (95 % 0.0300 to 0.0600), on 1,200 rows",
        "Womens: gbdt 0.4900 to 0.5300",
        "-0.0200 to 0.0400",
        "The budget is 500 contacts, 25.0% of the rows",
        "What a contact costs is not taken off.",
        "zoo uplift trial.csv --treatment arm",
    ):
        assert each in said


# The parts


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a<b", tag("b", "&"), None, class_='x"y') == '<p class="x&quot;y">a&lt;b<b>&amp;</b></p>'
    assert joined(["<", Markup("<br>")]) == "&lt;<br>"
    assert isinstance(tag("p"), Markup)
    assert "&lt;i&gt;" in table(["<i>"], [["x"]])


def test_values_are_said_as_people_read_them() -> None:
    assert [said(v) for v in (None, math.nan, True, 1234, 0.25, 0.00001234, (0.1, 0.2), "x")] == [
        "-",
        "-",
        "yes",
        "1,234",
        "0.2500",
        "1.23e-05",
        "0.1000 to 0.2000",
        "x",
    ]


@pytest.mark.parametrize("values", [[0.0, 1.0], [3.0], [-1e-9, 2e-9], [5e8, 6e8], [0.0, 0.0]])
def test_an_axis_holds_its_values_and_has_few_round_ticks(values: list[float]) -> None:
    axis = Axis.of(values, 10.0, 100.0, None)
    assert all(10 <= axis.at(value) <= 100 for value in values)
    assert 2 <= len(axis.ticks) <= 8
    assert all(axis.low - 1e-9 <= tick <= axis.high * (1 + 1e-9) + 1e-12 for tick in axis.ticks)


def test_nothing_to_draw_is_said() -> None:
    nothing = Series("a", [0.0], [math.nan])
    for drawn in (
        curves("c", "c", [nothing], "x", "y"),
        intervals("i", "c", [("a", None, None, None)], "x"),
        bars("b", "c", [], "x"),
    ):
        assert "Nothing to draw" in drawn


def test_gain_is_what_a_loop_finds() -> None:
    kept = rows(200)
    score = kept.scores["good"][:, 0]
    x, y = gain(kept.target, score)
    best = np.argsort(score)[::-1]
    assert y[50] == pytest.approx(kept.target[best[:100]].sum() / kept.target.sum())
    assert (x[0], y[0], x[-1], y[-1]) == (0.0, 0.0, 1.0, 1.0)
    _, flat = gain(kept.target, np.full(200, 0.5))
    np.testing.assert_allclose(flat, np.linspace(0, 1, 101))


def test_kept_scores_survive_the_store_and_name_nobody(tmp_path: Path) -> None:
    kept = rows(50)
    store = ArtefactStore(tmp_path)
    back = TestScores.load(store.read(store.write(kept.save())))
    assert back.kind == kept.kind
    assert list(back.scores) == list(kept.scores)
    for name in kept.scores:
        np.testing.assert_array_equal(back.scores[name], kept.scores[name])
    np.testing.assert_array_equal(back.target, kept.target)
    from zoo.contract import Artefact

    with pytest.raises(ArtefactError, match=r"no scores of test rows"):
        TestScores.load(Artefact())


# Drift


def batch(**columns: Column) -> FeatureBatch:
    n = len(next(iter(columns.values())))
    block: Block = columns
    return FeatureBatch({"user": block}, {"user": np.arange(n, dtype=np.int32)}, np.arange(n), np.full(n, -1))


def test_drift_is_nothing_for_the_same_rows_and_much_for_others() -> None:
    def made(shift: float, missing: float, seed: int) -> FeatureBatch:
        own = np.random.default_rng(seed)
        number = own.normal(shift, 1, 2_000)
        number[own.random(2_000) < missing] = np.nan
        return batch(
            number=Column(number), code=Column((2 + (own.random(2_000) < 0.5 + shift / 4)).astype(np.int32), dictionary="c")
        )

    same = drift(made(0, 0.1, 1), made(0, 0.1, 1))
    assert same["number"] == {"psi": 0.0, "ks": 0.0, "missing": same["number"]["missing"]}
    like = drift(made(0, 0.1, 1), made(0, 0.1, 2))
    assert max(each["psi"] for each in like.values()) < 0.05
    moved = drift(made(0, 0.1, 1), made(1, 0.5, 2))
    assert list(moved) == ["number", "code"]  # the most first
    assert moved["number"]["psi"] > 0.5
    assert moved["number"]["ks"] == pytest.approx(0.38, abs=0.05)  # two normals a deviation apart
    assert moved["number"]["missing"] == pytest.approx([0.1, 0.5], abs=0.03)
    assert moved["code"]["ks"] == pytest.approx(0.25, abs=0.04)


def psi_by_hand(a: Array, b: Array) -> float:
    return float(((a - b) * np.log(a / b)).sum())


def test_psi_of_codes_is_the_textbooks() -> None:
    train = np.repeat(np.array([2, 3], np.int32), [60, 40])
    test = np.repeat(np.array([2, 3], np.int32), [30, 70])
    found = drift(batch(c=Column(train, dictionary="c")), batch(c=Column(test, dictionary="c")))["c"]
    assert found["psi"] == pytest.approx(psi_by_hand(np.array([0.6, 0.4]), np.array([0.3, 0.7])))
    assert found["ks"] == pytest.approx(0.3)


# The command


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        application.app([*words])
    return int(str(ended.value.code or 0))


def test_the_command_writes_one_page_about_a_version(
    trained_shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "churn.html"
    assert run("--repo", str(trained_shop.root), "report", "churn@champion", "--output", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"run": "churn@1", "file": str(path)}
    page = Page(path.read_text(encoding="utf-8"))
    for plot in ("leaderboard", "calibration", "gain", "lift", "slices", "costs", "importance-members", "importance", "drift"):
        assert plot in page.plots
    assert "zoo train churn" in page.text
    assert "champion" in "".join(page.text)


def test_a_record_in_a_file_is_reported_on_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trial.json").write_text(json.dumps(record()))
    assert run("report", str(tmp_path / "trial.json"), "--output", str(tmp_path / "trial.html")) == 0
    assert "leaderboard" in Page((tmp_path / "trial.html").read_text()).plots
    (tmp_path / "bad.json").write_text("[1]")
    assert run("report", str(tmp_path / "bad.json")) == 2
    assert "holds list; expected one JSON object" in capsys.readouterr().err
