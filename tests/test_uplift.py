"""Learners on trials whose effect is known, the choice among them, the check of the treatment, tables and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import shop
from scipy.stats import multivariate_normal
from typer.testing import CliRunner

from zoo.errors import UsageError
from zoo.evaluation.uplift import best_arms, qini
from zoo.features import Features, apply
from zoo.fitting import Member, PluginSource
from zoo.manager import plugins
from zoo.project import Project
from zoo.uplift.averaged import SIZES, averaged
from zoo.uplift.choice import candidates, choose, cross_fitted, dealt, fit
from zoo.uplift.learners import LEARNERS, Base
from zoo.uplift.of_log import trial_of_log
from zoo.uplift.rules import one_variable
from zoo.uplift.study import Randomised, randomised, study
from zoo.uplift.trial import Layout, read_table, trial_of

LINEAR = Member("linear", "linear")


def table(n=3000, seed=0, arms=("none", "mail"), effect=0.3, biased=False, amounts=False):
    """Mail helps customers of kind b only; the outcome without it depends on x."""
    rng = np.random.default_rng(seed)
    x, kind = rng.normal(size=n), rng.choice(["a", "b"], n)
    chance = 1 / (1 + np.exp(-2 * x)) if biased else np.full(n, 1 / len(arms))
    arm = (rng.random(n) < chance).astype(int) if biased else rng.integers(0, len(arms), n)
    p = 0.2 + 0.15 * (x > 0) + effect * (arm > 0) * (kind == "b")
    outcome = (rng.random(n) < p) * (10.0 + x if amounts else 1.0)
    return pl.DataFrame({"id": [f"c{i}" for i in range(n)], "x": x, "kind": kind, "sent": np.array(arms)[arm], "visit": outcome})


def trial(**given):
    return trial_of(table(**given), "sent", "visit", "none", ["id"])[0]


@pytest.fixture(scope="module")
def found():
    return plugins()


@pytest.mark.parametrize("amounts", [False, True])
@pytest.mark.parametrize("model", ["linear", "gbdt"])
@pytest.mark.parametrize("learner", [name for name in LEARNERS if name != "response"])
def test_learners_find_whom_the_treatment_changes(found, learner, model, amounts):
    if (learner, model, amounts) == ("dr", "gbdt", True):
        return  # as with outcomes of 0 and 1, at twice the time
    rows, other = trial(amounts=amounts), trial(seed=1, amounts=amounts)
    params = {"num_trees": 40, "learning_rate": 0.1, "num_threads": 1, "feature_fraction": 1.0} if model == "gbdt" else {}
    score = LEARNERS[learner](rows, Base(Member(model, model, params), found))(other.batch)
    helped = other.batch.column("kind").values == 3  # "b"
    effect = 3.0 if amounts else 0.3
    assert score[helped].mean() - score[~helped].mean() == pytest.approx(effect, rel=0.5)
    assert qini(other.outcome, score, other.arm) > 0.1


def test_the_doubly_robust_learner_with_linear_models_is_the_formula(found):
    rows = trial(n=1000)
    base = Base(LINEAR, found)
    score = LEARNERS["dr"](rows, base)(rows.batch)
    part = np.random.default_rng(0).permutation(1000) % 5
    pseudo = np.zeros(1000)
    for number in range(5):
        inside, held = np.flatnonzero(part != number), np.flatnonzero(part == number)
        means = []
        for arm in (1, 0):
            of_arm = inside[rows.arm[inside] == arm]
            means.append(base.fit(rows.batch.take(of_arm), rows.outcome[of_arm])(rows.batch.take(held)))
        for at, row in enumerate(held):
            arm, share = rows.arm[row], rows.arm.mean()
            wrong = (rows.outcome[row] - means[1 - arm][at]) / (share if arm else 1 - share)
            pseudo[row] = means[0][at] - means[1][at] + (wrong if arm else -wrong)
    np.testing.assert_allclose(score, base.fit(rows.batch, pseudo, binary=False)(rows.batch), rtol=1e-6)


def test_the_transformed_class_allows_for_arms_of_unlike_size(found):
    rows = trial(n=6000, effect=0.0)
    rows = rows.take(np.flatnonzero((rows.arm == 1) | (np.arange(len(rows)) % 4 == 0)))
    score = LEARNERS["class"](rows, Base(LINEAR, found))(rows.batch)
    assert abs(score.mean()) < 0.05


def test_the_rule_is_the_variable_whose_effects_differ_most(found):
    rows = trial()
    rule = one_variable(rows)
    assert rule.name == "kind"
    assert rule.words(rows.batch).startswith("kind: a ")
    of_b = rows.batch.column("kind").values == 3
    by_hand = rows.outcome[of_b & (rows.arm == 1)].mean() - rows.outcome[of_b & (rows.arm == 0)].mean()
    np.testing.assert_allclose(rule(rows.batch)[of_b], by_hand)
    numbers = one_variable(
        trial_of(table().with_columns(pl.col("visit") * pl.col("x").abs()), "sent", "visit", "none", ["id", "kind"])[0]
    )
    assert numbers.name == "x"
    assert len(numbers.effect) == 5


def test_parts_hold_alike_many_of_each_arm_and_outcome():
    rows = trial()
    part = dealt(rows, 5, np.random.default_rng(0))
    for arm in (0, 1):
        for outcome in (0, 1):
            counts = np.bincount(part[(rows.arm == arm) & (rows.outcome == outcome)], minlength=5)
            assert counts.max() - counts.min() <= 1


def several(times: int = 6):
    """A trial in which each user has as many rows, all alike."""
    rows = trial(n=600)
    return replace(rows.take(np.repeat(np.arange(600), times)), users=np.repeat(np.arange(600) * 7, times))


def test_a_users_rows_are_in_one_part():
    rows = several()
    for parts in (2, 5):
        part = dealt(rows, parts, np.random.default_rng(0))
        assert (part.reshape(600, 6) == part[::6, None]).all()
        assert np.bincount(part).min() > 0.9 * len(rows) / parts


def test_rows_that_repeat_their_users_tell_no_more(found):
    once, often = (study(rows, [LINEAR], source=PluginSource(), resamples=200).record for rows in (trial(n=600), several()))
    [one], [many] = (
        [each["uplift"]["mail"]["lines"]["everyone"]["qini"]["interval"] for each in [which]] for which in (once, often)
    )
    assert one == many == [0.0, 0.0]
    widths = [np.diff(which["policy"]["values"]["mail to all"]["value"]["interval"])[0] for which in (once, often)]
    assert widths[1] == pytest.approx(widths[0], rel=0.3)  # rows drawn by themselves would make it 6 ** 0.5 times narrower
    assert often["warning"] == ""  # a model knows rows again that it was fitted on


def test_cross_fitting_scores_rows_that_took_no_part(found):
    rows, of = trial(n=600), candidates([LINEAR], ["t"])
    values = cross_fitted(of, rows, folds=3, repeats=1)
    part = dealt(rows, 3, np.random.default_rng([0, 0]))
    inside, outside = rows.take(np.flatnonzero(part != 1)), rows.take(np.flatnonzero(part == 1))
    score = fit(of, inside, found)["t:linear"](outside.batch)[:, 0]
    assert values["t:linear"][1, 0] == pytest.approx(qini(outside.outcome, score, outside.arm))
    assert values["everyone"][:, 0] == pytest.approx(0.0)


def test_the_default_stays_where_nothing_is_better_beyond_noise():
    noisy = {"everyone": np.zeros(10), "t": np.array([0.1, -0.1] * 5) + 0.03, "x": np.full(10, -0.1)}
    assert choose(noisy, "everyone").chosen == "everyone"
    assert choose(noisy, "x").chosen == "t"
    clear = {**noisy, "dr": np.linspace(0.1, 0.12, 10)}
    choice = choose(clear, "everyone")
    assert choice.chosen == "dr"
    mean, error = choice.better["everyone"]
    assert mean == pytest.approx(-0.11)
    apart = -clear["dr"]
    assert error == pytest.approx(apart.std(ddof=1) * np.sqrt(1 / 10 + 1 / 4))


def test_coefficients_are_averaged_by_the_density_of_what_was_seen():
    """Against the definition: every set and size by the normal density of the slope, variables 0 (of two columns) and 1."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 5)) * 20
    bend, slope, unit = root @ root.T, np.array([30.0, -10.0, 60.0]), 0.2
    total, found = 0.0, np.zeros(3)
    for of, prior in (([], 1 / 3), ([0, 1], 1 / 6), ([2], 1 / 6), ([0, 1, 2], 1 / 3)):
        for size in SIZES:
            spread = np.diag([size**2 / unit if at in of else 0.0 for at in range(3)])
            density = prior * multivariate_normal(np.zeros(3), bend + bend @ spread @ bend).pdf(slope)
            total += density
            found += density * spread @ bend @ np.linalg.solve(bend + bend @ spread @ bend, slope)
    np.testing.assert_allclose(averaged(slope, bend, np.array([0, 0, 1]), unit), found / total)


def mailed_to(effect, seed, n=4000):
    """Ten features, visits by three of them, and the effect on the logit as a function of features: the trial and the true effects."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 10))
    x[:, 9] = x[:, 9] > 0
    logit, sent = -2 + x[:, 0] + 0.5 * x[:, 1] - 0.3 * x[:, 2], rng.integers(0, 2, n)
    without, given = (1 / (1 + np.exp(-each)) for each in (logit, logit + effect(x)))
    visit = (rng.random(n) < np.where(sent, given, without)).astype(float)
    frame = pl.DataFrame({**{f"x{i}": x[:, i] for i in range(10)}, "sent": sent, "visit": visit})
    return trial_of(frame, "sent", "visit")[0], given - without


def gained(effect, score):
    """Mean gain over all numbers of rows contacted by the score, less that at random, as a share of the best order's."""
    by, best = (effect[np.argsort(-each, kind="stable")].cumsum().mean() - effect.sum() / 2 for each in (score, effect))
    return by / best


@pytest.mark.parametrize(
    ("effect", "peer", "least"),
    [
        (lambda x: 0.6 + 0 * x[:, 0], "response:linear", 0.95),
        (lambda x: 0.1 + 0.9 * x[:, 9], "t:linear", 0.85),
        (lambda x: 0.5 + 0.8 * (x[:, 4] - x[:, 5] - x[:, 9]), "t:linear", 0.9),
    ],
    ids=["as the outcome", "one variable", "several"],
)
def test_what_is_chosen_keeps_up_with_the_learner_made_for_the_effect(found, effect, peer, least):
    of, reached = candidates([LINEAR], ["shrunk", "response", "t"]), []
    for seed in range(3):
        (rows, _), (other, true) = mailed_to(effect, seed), mailed_to(effect, seed + 100)
        chosen = choose({name: each[:, 0] for name, each in cross_fitted(of, rows, repeats=1).items()}, "shrunk:linear").chosen
        fitted = fit(of, rows, found)
        reached.append([gained(true, fitted[name](other.batch)[:, 0]) for name in (chosen, peer)])
    ours, theirs = np.mean(reached, axis=0)
    assert ours > least
    assert ours > theirs - 0.02


def test_the_policy_is_the_best_arm_to_all_where_nobody_needs_another():
    done = study(trial(n=3000, arms=("none", "mail", "call"), effect=0.0), [LINEAR], resamples=20)
    assert done.record["policy"]["chosen"] == "everyone"


def test_the_policy_decides_by_row_where_the_treatment_harms_some():
    harmed = (pl.col("sent") == "mail") & (pl.col("kind") == "a")
    frame = table().with_columns(visit=pl.when(harmed).then(0.0).otherwise(pl.col("visit")))
    done = study(trial_of(frame, "sent", "visit", "none", ["id"])[0], [LINEAR], resamples=20)
    assert done.record["policy"]["chosen"] != "everyone"
    rows = trial_of(frame, "sent", "visit", "none", ["id"])[0]
    sent_to = best_arms(done.policy(rows.batch)) == 1
    assert (sent_to == (frame["kind"] == "b").to_numpy()).mean() > 0.95


def test_treatment_that_features_tell_is_warned_of(found):
    bases = [Base(LINEAR, found)]
    assert randomised(trial(), bases).warning == ""
    warning = randomised(trial(biased=True), bases).warning
    assert "looks not given at random" in warning
    assert "mail: AUC 0.8" in warning
    assert "of linear" in warning
    assert "chance alone shows as much in at most 0.4% of randomised trials" in warning
    assert "ask how rows came by their arm" in warning
    assert randomised(trial(biased=True), bases, resamples=20).warning  # fewer than a small p value needs


def test_what_chance_shows_in_one_of_several_arms_is_not_warned_of(found):
    seen = randomised(trial(n=1500, arms=("none", "mail", "call")), [Base(LINEAR, found)])
    auc, p = seen.auc["mail"]["linear"]
    assert auc.low > 0.5  # what an arm alone would be warned of
    assert 0.025 < p < 0.05
    assert Randomised({"mail": seen.auc["mail"]}).warning
    assert seen.told == {}
    assert seen.warning == ""


def test_a_clear_case_in_one_of_several_arms_is_warned_of(found):
    frame = table(n=1500, arms=("none", "mail", "call"))
    rng = np.random.default_rng(1)
    called = rng.random(1500) < 1 / (1 + np.exp(2 - 2 * frame["x"].to_numpy()))
    frame = frame.with_columns(sent=pl.when(pl.Series(called)).then(pl.lit("call")).otherwise("sent"))
    seen = randomised(trial_of(frame, "sent", "visit", "none", ["id"])[0], [Base(LINEAR, found)])
    assert list(seen.told) == ["call"]
    assert "call: AUC 0.6" in seen.warning


def test_treatment_that_only_another_member_tells_is_warned_of(found):
    """Mail went to customers of kind a with much and to those of kind b with little: no column alone tells of it."""
    frame = table(n=1500)
    odd = (frame["x"] > 0) == (frame["kind"] == "a")
    sent = pl.Series(np.where(np.random.default_rng(3).random(1500) < 0.3 + 0.4 * odd.to_numpy(), "mail", "none"))
    rows = trial_of(frame.with_columns(sent=sent), "sent", "visit", "none", ["id"])[0]
    trees = Member("gbdt", "gbdt", {"num_trees": 20, "num_threads": 1, "min_data_in_leaf": 50, "feature_fraction": 1.0})
    first, both = [Base(LINEAR, found)], [Base(LINEAR, found), Base(trees, found)]
    assert randomised(rows, first, resamples=200).warning == ""
    assert "of gbdt" in randomised(rows, both, resamples=200).warning
    assert randomised(trial(n=1500), both, resamples=200).warning == ""


def test_three_arms_are_compared_with_the_first_and_a_budget_is_kept():
    rows = trial(n=2000, arms=("none", "mail", "call"))
    done = study(rows, [LINEAR], budget=200, resamples=50)
    record = json.loads(json.dumps(done.record))
    assert list(record["uplift"]) == ["call", "mail"]
    values = record["policy"]["values"]
    drawn = next(name for name in values if "at random" in name)
    to_all = {"none to all", "call to all", "mail to all"}
    assert set(values) == {*to_all, "best arm for each", "best arm within the budget", drawn}
    assert values["best arm within the budget"]["contacted"] == values[drawn]["contacted"] <= 100
    assert values["best arm within the budget"]["against"] == drawn
    assert values["best arm for each"]["against"] in to_all
    assert record["rows"] + record["test_rows"] == 2000
    curve = record["uplift"]["mail"]["curve"]["chosen"]
    assert curve["contacted"][0] == curve["gain"][0] == 0
    assert len(curve["gain"]) == 101
    assert record["warning"] == ""
    assert done.policy(rows.batch).shape == (2000, 2)


def test_a_budget_is_held_against_as_many_contacts_drawn_at_random():
    """To contact everybody gains more than to contact a tenth, whoever chooses these."""
    record = study(trial(n=1000, effect=0.6), [LINEAR], budget=100, resamples=100).record
    values, board = record["policy"]["values"], record["uplift"]["mail"]
    within, drawn = values["best arm within the budget"], values["mail to as many at random"]
    none, mail = values["none to all"]["value"]["value"], values["mail to all"]["value"]["value"]
    assert within["contacted"] == drawn["contacted"] == 50
    share = 50 / record["test_rows"]
    assert drawn["value"]["value"] == pytest.approx((1 - share) * none + share * mail)
    assert "difference" not in drawn
    assert within["value"]["value"] < mail  # what it used to be held against
    assert within["difference"]["interval"][0] > 0
    low, high = board["effect_interval"]
    assert board["effect"] == pytest.approx(mail - none)
    assert low < board["effect"] < high


def test_a_budget_is_of_the_rows_that_are_decided_on():
    """Ten of forty rows to be decided on: choice and test contact a quarter of theirs."""
    policy = study(trial(n=400), [LINEAR], budget=10, of_rows=40, resamples=20).record["policy"]
    assert (policy["budget"], policy["share"]) == (10, 0.25)
    assert 40 <= policy["values"]["best arm within the budget"]["contacted"] <= 50


def test_a_budget_goes_to_those_who_gain_most_where_everybody_gains():
    helped = table(n=2000).with_columns(
        visit=pl.Series((np.random.default_rng(5).random(2000) < 0.1 + 0.5 * (np.arange(2000) % 2)).astype(float))
    )  # of those who were sent something; of the others nobody comes but a few
    sent, odd = (helped["sent"] == "mail").to_numpy(), np.arange(2000) % 2 == 1
    rare = np.arange(2000) % 10 == 0
    rows = trial_of(
        helped.with_columns(
            x=pl.Series(odd.astype(float)),
            visit=pl.when(pl.Series(sent)).then(pl.col("visit")).otherwise(pl.Series(rare.astype(float))),
        ),
        "sent",
        "visit",
        "none",
        ["id", "kind"],
    )[0]
    done = study(rows, [LINEAR], budget=400, resamples=20)
    best = done.policy(rows.batch)[:, 0]
    assert best[odd].min() > best[~odd].max()


def test_a_bin_without_outcomes_is_not_certain():
    """A treatment that helps everybody alike, seldom: no variable may be said to tell whom it helps."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(30):
        x, sent = rng.choice(3, 3000, p=[0.9, 0.06, 0.04]).astype(float), rng.choice(["none", "mail"], 3000)
        visit = (rng.random(3000) < np.where(sent == "mail", 0.03, 0.01)).astype(float)
        frame = pl.DataFrame({"x": x, "sent": sent, "visit": visit})
        wrong += one_variable(trial_of(frame, "sent", "visit", "none", [])[0]).p_value < 0.001
    assert wrong == 0


def test_arms_without_outcomes_are_refused():
    with pytest.raises(UsageError, match=r"has 0 rows with an outcome; expected at least 10"):
        study(trial_of(table(n=600).with_columns(visit=pl.lit(0.0)), "sent", "visit", "none", ["id"])[0], [LINEAR])


def test_what_the_caller_says_of_the_treatment_is_warned_of():
    assert "the caller says" in study(trial(n=600), [LINEAR], declared=False, resamples=20).record["warning"]


def test_tables_become_features_and_codes_stay():
    rows, layout = trial_of(table(), "sent", "visit", "none", [])
    assert layout.left_out == ("id",)
    assert rows.batch.names == ("x", "kind")
    new = layout.batch(pl.DataFrame({"x": [1, None], "kind": ["b", "c"]}))
    assert new.column("kind").values.tolist() == [3, 1]
    assert np.isnan(new.column("x").values[1])
    with pytest.raises(UsageError, match="lacks the column 'kind'"):
        layout.batch(pl.DataFrame({"x": [1]}))


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({}, {"treatment": "sen"}, "treatment"),
        ({}, {"outcome": "sent"}, "treatment and outcome are both 'sent'"),
        ({}, {"outcome": "kind"}, "outcome 'kind' holds String; expected numbers"),
        ({}, {"control": None}, "name the one to compare with, as in --control 'mail'"),
        ({}, {"control": "nothing"}, "nothing"),
        ({"sent": pl.lit("mail")}, {}, "is 'mail' in every row"),
        ({"visit": pl.lit(None, pl.Float64)}, {}, "is empty in 3,000 rows"),
        ({"visit": pl.lit(np.inf)}, {}, "not finite"),
        ({}, {"without": ["id", "x", "kind"]}, "no column is left as a feature"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(change, given, message):
    asked = {"treatment": "sent", "outcome": "visit", "control": "none", "without": ["id"], **given}
    with pytest.raises(UsageError, match=message):
        trial_of(table().with_columns(**change), **asked)


def test_arms_of_few_rows_are_refused():
    with pytest.raises(UsageError, match=r"arm .* has .* rows; expected at least 50"):
        study(trial(n=60), [LINEAR])


def test_treatments_of_0_and_1_need_no_control():
    numbers = table().with_columns(sent=pl.col("sent") == "mail")
    assert trial_of(numbers, "sent", "visit")[0].arms == ("0", "1")
    assert trial_of(numbers.with_columns(pl.col("sent").cast(pl.Float64)), "sent", "visit")[0].arms == ("0", "1")


def test_files_that_are_no_table_are_refused(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    for name, message in (("x.parquet", "cannot read"), ("y.parquet", "no file")):
        with pytest.raises(UsageError, match=message):
            read_table(tmp_path / name)


def test_the_command_warns_records_and_decides(tmp_path):
    from zoo.cli.app import app

    table(n=800, biased=True).write_csv(tmp_path / "trial.csv")
    table(n=50, seed=3).write_parquet(tmp_path / "new.parquet")
    paths = {name: str(tmp_path / name) for name in ("trial.csv", "new.parquet", "out.csv", "record.json")}
    words = ["uplift", paths["trial.csv"], "--treatment", "sent", "--outcome", "visit", "--control", "none", "--ignore", "id"]
    words += [
        "--member",
        "linear",
        "--budget",
        "10",
        "--workers",
        "1",
        "--score",
        paths["new.parquet"],
        "--out",
        paths["out.csv"],
    ]
    shown = CliRunner().invoke(app, [*words, "--record", paths["record.json"]])
    assert shown.exit_code == 0, shown.output
    assert "WARNING: treatment looks not given at random" in shown.output
    assert "(chosen)" in shown.output
    assert "a row more than without (95 %" in " ".join(shown.output.split())
    assert "10 contacts, 20.0% of the rows to decide on" in shown.output
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["warning"]
    assert record["policy"]["share"] == 10 / 50
    assert record["command"].split()[:5] == ["zoo", *words[:4]]
    assert record["command"].endswith(f"--out {paths['out.csv']} --record {paths['record.json']}")
    decided = pl.read_csv(tmp_path / "out.csv")
    assert decided["id"].to_list() == pl.read_parquet(tmp_path / "new.parquet")["id"].to_list()
    assert (decided["contact"] == "mail").sum() == record["scored"]["contacted"] <= 10
    assert CliRunner().invoke(app, [*words[:-2]]).exit_code == 2


@pytest.fixture(scope="module")
def mailed(tmp_path_factory):
    """A shop's project whose campaigns were held back from some, at random."""
    columns = shop.events(seed=1, users=120, days=120)
    sent = columns["event_type"] == "campaign_sent"
    columns["arm"] = np.where(sent, np.random.default_rng(0).choice(["none", "mail"], len(sent)), None)
    root = shop.make_project(tmp_path_factory.mktemp("mailed") / "shop")
    log = shop.make_log(root / "data" / "log", columns, extra={"arm": "string"})
    numbers = np.arange(1, shop.CAMPAIGNS + 1)
    log.put_table("campaigns", pl.DataFrame({"campaign_id": numbers}), "campaign_id")
    items = pl.DataFrame({"campaign_id": numbers, "item_id": numbers})
    log.put_set("campaign_items", items, ("campaign_id", "item_id"))
    apply(root)
    return root, columns


def test_a_log_gives_the_rows_of_its_campaigns_with_their_arms(mailed, found):
    root, columns = mailed
    features, settings = Features.open(root), Project.open(root).task("campaign").own
    rows = trial_of_log(features, found.task("campaign"), settings, "arm", "none")
    assert rows.arms == ("none", "mail")
    sent = columns["event_type"] == "campaign_sent"
    late = columns["time"] + 10 * shop.DAY > columns["time"].max() + 1
    kept = sent & ~late
    assert len(rows) == kept.sum()
    assert sorted(zip(rows.batch.as_of, rows.arm)) == sorted(zip(columns["time"][kept], columns["arm"][kept] == "mail"))
    for wrong, message in ((("amr", "none"), "choose one of: arm"), (("arm", "nobody"), "choose one of: mail, none")):
        with pytest.raises(UsageError, match=message):
            trial_of_log(features, found.task("campaign"), settings, *wrong)


def test_the_command_learns_from_a_log(mailed):
    from zoo.cli.app import app

    root, _ = mailed
    words = ["--repo", str(root), "uplift", "campaign", "--treatment", "arm", "--member", "linear", "--workers", "1"]
    shown = CliRunner().invoke(app, [*words, "--control", "none", "--json"])
    assert shown.exit_code == 0, shown.output
    assert list(json.loads(shown.stdout)["uplift"]) == ["mail"]
    for more in ([], ["--control", "none", "--outcome", "visit"]):
        assert CliRunner().invoke(app, [*words, *more]).exit_code == 2


def test_layouts_leave_out_what_is_no_number_and_no_text():
    frame = table().with_columns(when=pl.lit("2024-01-01").str.to_date())
    assert Layout.of(frame, ["id", "sent", "visit"]).left_out == ("when",)
