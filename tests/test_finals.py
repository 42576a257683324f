"""What combines members: final models, members left out, calibration, chosen on later blocks and never on what they were fitted on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss

from zoo.artefacts import ArtefactStore
from zoo.errors import UsageError
from zoo.finals import CANDIDATES, Scores, choose
from zoo.fitting import PluginSource
from zoo.manager import installed
from zoo.plugin import Column, FeatureBatch, Target, TrainingData
from zoo.stacking import Ensemble, Fitted, OutOfFold
from zoo.vocabulary import Vocabulary

DAY = 86_400_000_000
SOURCE = PluginSource(tuple(each.name for each in installed() if each.distribution not in ("feature-zoo", "feature-zoo-gbdt")))
CUTS = 8


def scores_of(*noise: float, bias: float = 0.0, rows: int = 4000, seed: int = 0, bold: float = 1.0, users: int = 0) -> Scores:
    """Members that see the truth through so much noise, at cuts whose labels are known a cut later."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, CUTS, rows)) * 14 * DAY
    truth = rng.normal(size=rows) * 1.5
    seen = np.stack([truth + rng.normal(size=rows) * each for each in noise], axis=1)
    p = 1 / (1 + np.exp(-(bold * seen + bias)))
    target = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(float)
    batch = FeatureBatch({"user": {"x": Column(truth)}}, {"user": np.arange(rows, dtype=np.int32)}, time, time - 1)
    data = TrainingData(batch, target, np.ones(rows), time)
    names = tuple(f"m{i}" for i in range(len(noise)))
    oof = OutOfFold(names, p[:, :, None], np.digitize(time, [28 * DAY, 56 * DAY]).astype(np.int32), dict.fromkeys(names, 0.0), {})
    whose = rng.integers(0, users, rows) if users else None
    return Scores(oof, data, time + 14 * DAY, whose, Vocabulary.of(data), source=SOURCE)


def test_every_candidate_is_compared_on_later_rows_and_the_best_there_is_chosen():
    made = choose(scores_of(0.5, 1.0, 2.0))
    assert set(made.record["log_loss"]) == set(CANDIDATES)
    assert made.record["log_loss"]["logistic"] < made.record["log_loss"]["mean"] - 0.01
    assert made.record["chosen"] == "logistic"
    assert made.record["rows"] < 4000
    assert made.members == ("m0", "m1", "m2")


def test_a_stack_falls_back_to_its_best_member_where_the_others_only_harm():
    """Members of which one is right and two are noise: whatever is chosen, it is not worse than the best member on new rows."""
    given, later = scores_of(0.0, 9.0, 9.0), scores_of(0.0, 9.0, 9.0, seed=1)
    made = choose(given)
    assert made.record["log_loss"][made.record["chosen"]] <= made.record["log_loss"]["best"] + 0.002
    best = log_loss(later.data.target, later.oof.scores[:, 0, 0])
    assert log_loss(later.data.target, answered(made, later)) < best + 0.005


def answered(made, scores: Scores) -> np.ndarray:
    from zoo.finals import answer

    rows = np.arange(len(scores.data))
    p = answer(made.final, scores.data.batch, scores.oof.only(made.members), rows, scores.vocabulary, scores.data.kind)
    return made.calibrator(p)[:, 0]


def test_the_best_member_alone_stays_where_it_is_asked_for_and_the_others_are_dropped():
    made = choose(scores_of(2.0, 0.3, 2.0), "best")
    assert made.members == ("m1",)
    assert made.record["dropped"] == {"m0": "no weight", "m2": "no weight"}
    assert list(made.record["log_loss"]) == ["best"]
    assert choose(scores_of(2.0, 0.3, 2.0), "best", keep=["m2"]).members == ("m1", "m2")


@pytest.mark.parametrize("name", [*CANDIDATES, "average"])
def test_a_final_model_asked_for_is_fitted_whatever_the_others_do(name, tmp_path):
    given = scores_of(0.6, 0.8)
    made = choose(given, name)
    assert made.record["chosen"] == name
    members = tuple(Fitted(m, "x", (), "d", "1", 0.0, made.final.fitted) for m in made.members)
    ensemble = Ensemble(members, made.final, given.vocabulary, given.data.kind, made.calibrator)
    store = ArtefactStore(tmp_path)
    kept = store.read(store.write(replace(ensemble, members=()).save()))
    loaded = Ensemble.load(kept, SOURCE.load())
    p = given.oof.only(made.members).scores.astype(np.float32)
    again, once = (replace(e, members=members).combine(given.data.batch, p) for e in (loaded, ensemble))
    assert again.tobytes() == once.tobytes()
    assert again.dtype == np.float32
    alone = ensemble.combine(given.data.batch.take(np.array([7])), p[[7]])
    assert alone.tobytes() == once[[7]].tobytes()
    assert log_loss(given.data.target, once[:, 0]) < 0.62


def test_greedy_selection_weighs_members_by_how_often_they_help():
    made = choose(scores_of(0.5, 0.5, 6.0, rows=8000), "greedy")
    weights = dict(zip(made.final.fitted.members, made.final.fitted.weights, strict=True))
    assert sum(weights.values()) == pytest.approx(1)
    assert weights.get("m2", 0) < 0.1
    assert abs(weights["m0"] - weights["m1"]) < 0.25


def test_ranks_do_not_mind_how_bold_a_member_is():
    given = scores_of(0.6, 0.6, bold=1.0)
    p = given.oof.scores.copy()
    p[:, 1] = p[:, 1] ** 9  # of the same order, and no probability of anything
    off = replace(given, oof=replace(given.oof, scores=p))
    one, other = (choose(each, "rank_mean", calibration="none") for each in (given, off))
    np.testing.assert_allclose(answered(one, given), answered(other, off), atol=0.01)
    assert choose(off).record["log_loss"]["rank_mean"] < choose(off).record["log_loss"]["mean"] - 0.02


def test_calibration_is_chosen_for_the_final_model_and_makes_a_bold_mean_true():
    given, later = (scores_of(0.3, 0.3, bold=3.0, seed=seed) for seed in (0, 1))
    made = choose(given, "mean")
    assert made.record["calibration"]["chosen"] in ("platt", "beta", "isotonic")
    plain = choose(given, "mean", calibration="none")
    assert log_loss(later.data.target, answered(made, later)) < log_loss(later.data.target, answered(plain, later)) - 0.05
    assert plain.record["calibration"]["chosen"] == "none"
    asked = choose(given, "mean", calibration="isotonic")
    assert asked.calibrator.kind == asked.record["calibration"]["chosen"] == "isotonic"
    with pytest.raises(UsageError, match="unknown calibration 'sigmoid'"):
        choose(given, calibration="sigmoid")


def test_nothing_later_reaches_a_held_out_score():
    given = scores_of(0.5, 1.5, bold=2.0)
    blocks = given.blocks()
    begin = given.data.time[blocks[-1][1]].min()
    late = given.data.time >= begin
    changed = replace(given, data=replace(given.data, target=np.where(late, 1 - given.data.target, given.data.target)))
    one, other = (choose(each, "logistic", calibration="platt").held_out for each in (given, changed))
    assert np.array_equal(one[late], other[late])  # fitted before them, mapped by what was learnt before them
    assert np.isfinite(one[late]).all()
    for train, later in blocks:
        assert given.known_at[train].max() <= given.data.time[later].min()


def test_a_member_that_does_not_earn_its_cost_is_left_out():
    given = scores_of(0.5, 0.5, 0.5)
    cost = {"m0": 0.01, "m1": 0.01, "m2": 50.0}
    free = choose(given, "logistic", cost=cost)
    assert free.members == ("m0", "m1", "m2")
    made = choose(given, "logistic", price=0.001, cost=cost)
    assert made.members == ("m0", "m1")
    assert "costs 50 ms a row" in made.record["dropped"]["m2"]
    assert "m2" not in made.final.fitted.members
    alone = replace(given, oof=given.oof.only(["m0", "m1"]))  # the loss of what stays, beside that of all members
    assert made.record["kept_log_loss"] == pytest.approx(choose(alone, "logistic").record["log_loss"]["logistic"], abs=1e-12)
    assert made.record["kept_log_loss"] > made.record["log_loss"]["logistic"]
    assert "kept_log_loss" not in free.record
    needed = choose(given, "logistic", price=0.001, cost=cost, keep=["m2"])
    assert "m2" in needed.members
    dear = choose(given, "logistic", price=1.0, cost=dict.fromkeys(cost, 100.0))
    assert len(dear.members) == 1


def test_rows_of_one_instant_leave_nothing_to_choose_on():
    given = scores_of(0.5, 1.0)
    flat = replace(given, data=replace(given.data, time=np.zeros(4000, np.int64)))
    made = choose(flat)
    assert (made.record["chosen"], made.record["blocks"]) == ("mean", 0)
    assert made.record["calibration"] == {"chosen": "none", "log_loss": {}}
    assert "log_loss" not in made.record
    assert np.isnan(made.held_out).all()


def test_labels_that_are_known_late_leave_the_plain_mean_whatever_they_would_say():
    """All rows' labels are known after the last of them: an intercept fitted on them would be of another season."""
    given = replace(scores_of(0.5, 3.0, bias=2.0), known_at=np.full(4000, 200 * DAY))
    assert choose(given).record["chosen"] == "mean"
    fitted = choose(given, "logistic").final.fitted
    np.testing.assert_allclose(fitted.weights[:, 0], 0.5)
    assert fitted.intercept[0] == 0
    assert choose(replace(given, known_at=given.data.time + DAY), "logistic").final.fitted.intercept[0] < -1


def test_classes_have_the_same_candidates_and_sum_to_1():
    given = scores_of(0.5, 1.0)
    rng = np.random.default_rng(0)
    p = given.oof.scores[:, :, 0]
    third = np.stack([p * 0.8, (1 - p) * 0.8, np.full_like(p, 0.2)], axis=2)
    y = np.where(rng.random(4000) < 0.2, 2.0, 1 - given.data.target)
    data = replace(given.data, target=y, kind=Target("multiclass", ("a", "b", "c")))
    made = choose(replace(given, data=data, oof=replace(given.oof, scores=third)))
    assert set(made.record["log_loss"]) == set(CANDIDATES)
    known = made.held_out[np.isfinite(made.held_out[:, 0])]
    np.testing.assert_allclose(known.sum(axis=1), 1, atol=1e-5)


def test_a_single_member_needs_no_choice():
    made = choose(scores_of(0.5))
    assert list(made.record["log_loss"]) == ["logistic"]


def test_a_members_parameters_are_not_those_of_the_final_model_of_its_name():
    given = scores_of(0.5, 1.0, rows=800)
    named = replace(given, oof=replace(given.oof, members=("gbdt", "m1")), params={"gbdt": {"num_trees": 3}})
    final = replace(given, params={"gbdt": {"num_trees": 3}})
    trees = [each.fit("gbdt").fitted.boosters[0].num_trees() for each in (named, final)]
    assert trees[0] > 3
    assert trees[1] == 3


def test_scores_that_no_earlier_row_calibrates_are_not_among_the_held_out_ones():
    given = scores_of(0.5, 1.0, bold=3.0)
    plain, bent = (choose(given, "logistic", calibration=kind).held_out for kind in ("none", "platt"))
    assert np.isfinite(bent).sum() < np.isfinite(plain).sum()
