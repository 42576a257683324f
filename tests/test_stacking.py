from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from zoo.artefacts import ArtefactStore
from zoo.cache import Cache, data_digest
from zoo.errors import ArtefactError, UsageError
from zoo.evaluation import class_leaderboard, evaluate
from zoo.fitting import Averaged, checked, load_fitted
from zoo.folds import forward_chaining
from zoo.jobs import JobError, Processes
from zoo.logistic import Logistic
from zoo.manager import installed
from zoo.plugin import Artefact, Catalogue, Column, FeatureBatch, PluginError, Target, TrainingData, hookimpl
from zoo.project import Project
from zoo.stacking import Ensemble, Member, PluginSource, fit_members, out_of_fold, plain_mean, stack
from zoo.testing import Echo
from zoo.training import members_of
from zoo.vocabulary import Vocabulary

DAY = 86_400_000_000
OTHERS = tuple(found.name for found in installed() if found.distribution != "feature-zoo")


def with_plugin(*extra: object) -> PluginSource:
    """zoo's own plugins and these, whatever else is installed."""
    return PluginSource(OTHERS, extra)


ECHO = with_plugin("zoo.testing.echo:Echo")
MEMBERS = (Member("signal", "echo", {"column": "signal"}), Member("noise", "echo", {"column": "noise"}))


def shop(rows: int = 1200, seed: int = 0, kind: str = "binary", cuts: int = 12) -> TrainingData:
    """Outcomes that depend on ``signal`` and ``other``; items whose codes grow with time, so that late ones are unseen before."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, cuts, rows)) * 14 * DAY
    signal, other, noise = rng.normal(size=(3, rows))
    offsets = np.arange(rows + 1) * 2
    items = (2 + 3 * np.repeat(time // (14 * DAY), 2) + rng.integers(0, 3, 2 * rows)).astype(np.int32)
    block = {
        "signal": Column(signal),
        "other": Column(other),
        "noise": Column(noise),
        "items": Column(items, offsets, "item_id"),
    }
    catalogue = Catalogue({"item_id": np.array(["", "?", *map(str, range(3 * cuts))], object)})
    batch = FeatureBatch({"user": block}, {"user": np.arange(rows, dtype=np.int32)}, time, time - 1, catalogue)
    eta = 2 * signal + other + rng.logistic(size=rows)
    if kind == "multiclass":
        return TrainingData(batch, np.digitize(eta, [-1, 1]).astype(float), np.ones(rows), time, Target(kind, ("a", "b", "c")))
    return TrainingData(batch, (eta > 0).astype(float), np.ones(rows), time)


def folds_of(data: TrainingData, count: int = 4):
    return forward_chaining(data.time, data.time + 14 * DAY, count)


@dataclass(frozen=True)
class Recorder(Echo):
    """An echo that keeps what it is given."""

    name: str = "recorder"
    given: tuple = ()

    @hookimpl
    def zoo_models(self):
        return [self]

    def fit(self, data, *, params, seed, progress):
        self.given[0].append(data)
        return Watched(super().fit(data, params=params, seed=seed, progress=progress), self.given[1])


@dataclass(frozen=True)
class Watched:
    fitted: object
    asked: list

    def predict(self, batch):
        self.asked.append(batch)
        return self.fitted.predict(batch)

    def save(self):
        return self.fitted.save()


class Breaks(Echo):
    """A model that ends its process once it is given more than 700 rows, or raises where its column is called so."""

    @property
    def spec(self):
        return replace(super().spec, name="breaks")

    @hookimpl
    def zoo_models(self):
        return [self]

    def fit(self, data, *, params, seed, progress):
        if params.column == "raise":
            raise ValueError("no such luck")
        if len(data) > 700:
            os._exit(9)
        return super().fit(data, params=params, seed=seed, progress=progress)


def test_a_row_is_scored_by_a_model_of_its_folds_training_rows_and_the_earliest_by_none():
    data = shop()
    folds = folds_of(data)
    oof = out_of_fold(MEMBERS, data, folds, source=ECHO)
    assert oof.scores.shape == (1200, 2, 1)
    assert oof.members == ("signal", "noise")
    echo = Echo()
    for number, (train, scored) in enumerate(folds):
        assert (oof.fold[scored] == number).all()
        params = echo.spec.params()(column="signal")
        fitted = echo.fit(data.take(train), params=params, seed=0, progress=lambda done, text: None)
        assert np.array_equal(oof.scores[scored, 0], fitted.predict(data.batch.take(scored)))
    assert np.array_equal(oof.rows, np.sort(np.concatenate([scored for _, scored in folds])))
    assert np.isnan(oof.scores[oof.fold < 0]).all()
    assert np.isfinite(oof.scores[oof.rows]).all()
    assert all(seconds > 0 for seconds in oof.seconds.values())


def test_what_comes_after_a_fold_begins_does_not_change_its_scores():
    data = shop()
    folds = folds_of(data)
    later = data.time >= data.time[folds[1][1]].min()
    changed = replace(data, target=np.where(later, 1 - data.target, data.target))
    one, other = (out_of_fold(MEMBERS, d, folds, source=ECHO) for d in (data, changed))
    first = folds[0][1]
    assert np.array_equal(one.scores[first], other.scores[first])
    assert not np.array_equal(one.scores[folds[3][1]], other.scores[folds[3][1]])


def test_a_member_sees_its_columns_only_and_items_unseen_in_training_as_unknown():
    data = shop()
    folds = folds_of(data)
    given, asked = [], []
    source = with_plugin(Recorder(inputs=("signal", "items"), given=(given, asked)))
    out_of_fold([Member("r", "recorder", {"column": "signal"})], data, folds, source=source)
    for training, scored, (train, rows) in zip(given, asked, reversed(folds), strict=True):
        assert training.batch.names == scored.names == ("signal", "items")
        known = np.unique(data.batch.take(train).column("items").values)
        assert training.batch.catalogue.size("item_id") == len(known) + 2
        assert training.batch.column("items").values.min() >= 2
        raw = data.batch.take(rows).column("items").values
        assert np.array_equal(scored.column("items").values == 1, ~np.isin(raw, known))
        assert (scored.column("items").values == 1).mean() > 0.4
        assert len(scored.blocks["user"]["signal"]) == len(rows)


def test_processes_give_the_same_bits_as_one_after_the_other():
    data = shop()
    serial = out_of_fold(MEMBERS, data, folds_of(data), source=ECHO)
    parallel = out_of_fold(MEMBERS, data, folds_of(data), source=ECHO, executor=Processes(2))
    assert serial.scores.tobytes() == parallel.scores.tobytes()
    one, other = fit_members(MEMBERS, data, source=ECHO), fit_members(MEMBERS, data, source=ECHO, executor=Processes(2))
    for a, b in zip(one, other, strict=True):
        assert a.name == b.name
        assert a.fitted.predict(data.batch).tobytes() == b.fitted.predict(data.batch).tobytes()


def test_a_member_that_fails_is_named_with_its_fold_and_cause():
    data = shop()
    source = with_plugin(Breaks())
    with pytest.raises(JobError, match=r"^b, fold 4 of 4 failed: ValueError: no such luck"):
        out_of_fold([Member("b", "breaks", {"column": "raise"})], data, folds_of(data), source=source)


def test_a_member_whose_process_dies_is_named_with_its_fold(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "from zoo.plugin import hookimpl\n"
        "from zoo.testing import Echo\n"
        "class Deadly(Echo):\n"
        "    @hookimpl\n"
        "    def zoo_models(self):\n"
        "        return [Deadly('deadly')]\n"
        "    def fit(self, data, *, params, seed, progress):\n"
        "        if len(data) > 700:\n"
        "            os._exit(9)\n"
        "        return super().fit(data, params=params, seed=seed, progress=progress)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data, source = shop(), with_plugin("deadly:Deadly")
    with pytest.raises(JobError, match=r"^d, fold 4 of 4: the process that ran it ended with exit code 9"):
        out_of_fold([Member("d", "deadly", {"column": "signal"})], data, folds_of(data), source=source, executor=Processes(1))


def test_a_member_of_noise_gets_no_weight_and_the_stack_is_no_worse_than_the_best():
    overfitted = Member("noise", "echo", {"column": "noise", "ranges": 400, "smoothing": 0.5})
    members, data, later = (MEMBERS[0], overfitted), shop(6000), shop(3000, seed=1)
    assert out_of_fold(members, data, folds_of(data), source=ECHO).best(data) == "signal"
    ensemble = ensemble_of(members, data)
    signal, noise = ensemble.final.fitted.weights[:, 0]
    assert noise < 0.02
    assert signal == pytest.approx(1, abs=0.15)
    each = ensemble.member_scores(later.batch)
    stacked = ensemble.combine(later.batch, each)[:, 0]
    assert log_loss(later.target, stacked) <= log_loss(later.target, each[:, 0, 0]) + 0.001
    assert log_loss(later.target, stacked) < log_loss(later.target, plain_mean(each)[:, 0]) - 0.02


def ensemble_of(members, data, source=ECHO) -> Ensemble:
    from zoo.vocabulary import Vocabulary

    oof = out_of_fold(members, data, folds_of(data), source=source)
    final = stack(oof, data, source=source)
    fitted = tuple(fit_members(members, data, source=source))
    return Ensemble(fitted, final, Vocabulary.fit(data.batch), data.kind)


def test_two_members_that_know_different_things_are_better_together():
    members = (MEMBERS[0], Member("other", "echo", {"column": "other"}))
    data, later = shop(4000), shop(3000, seed=1)
    ensemble = ensemble_of(members, data)
    each = ensemble.member_scores(later.batch)[:, :, 0]
    stacked = ensemble.predict(later.batch)[:, 0]
    assert log_loss(later.target, stacked) < min(log_loss(later.target, each[:, m]) for m in range(2)) - 0.02
    assert evaluate(later.target, stacked, metrics=["ece"])["ece"].value < 0.05


def test_shuffled_labels_score_one_half_inside_the_interval():
    rng = np.random.default_rng(3)
    data, later = (replace(d, target=rng.permutation(d.target)) for d in (shop(3000), shop(2000, seed=1)))
    oof = out_of_fold(MEMBERS, data, folds_of(data), source=ECHO)
    stacked = ensemble_of(MEMBERS, data).predict(later.batch)
    for target, scores in ((data.target[oof.rows], oof.scores[oof.rows, 0]), (later.target, stacked)):
        estimate = evaluate(target, scores, metrics=["auc"])["auc"]
        assert estimate.low < 0.5 < estimate.high


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_an_ensemble_comes_back_from_the_store_bit_for_bit(kind, tmp_path):
    data, later = shop(kind=kind), shop(300, seed=1, kind=kind)
    ensemble = ensemble_of(MEMBERS, data)
    store = ArtefactStore(tmp_path)
    loaded = Ensemble.load(store.read(store.write(ensemble.save())), ECHO.load())
    width = data.kind.width
    assert loaded.member_scores(later.batch).shape == (300, 2, width)
    assert loaded.predict(later.batch).dtype == np.float32
    assert loaded.predict(later.batch).shape == (300, width)
    assert loaded.predict(later.batch).tobytes() == ensemble.predict(later.batch).tobytes()
    assert loaded.member_scores(later.batch).tobytes() == ensemble.member_scores(later.batch).tobytes()
    assert (loaded.target, [m.name for m in loaded.members], loaded.final.model) == (data.kind, ["signal", "noise"], "logistic")
    assert [(m.distribution, m.version) for m in loaded.members] == [(m.distribution, m.version) for m in ensemble.members]


def test_an_ensemble_answers_a_row_alone_as_in_a_batch():
    data = shop()
    ensemble = ensemble_of(MEMBERS, data)
    whole = ensemble.predict(data.batch)
    alone = ensemble.predict(data.batch.take(np.array([7])))
    assert alone.tolist() == whole[[7]].tolist()


def test_classes_are_stacked_to_probabilities_that_beat_every_member():
    members = (MEMBERS[0], Member("other", "echo", {"column": "other"}), MEMBERS[1])
    data, later = shop(4000, kind="multiclass"), shop(3000, seed=1, kind="multiclass")
    ensemble = ensemble_of(members, data)
    each, stacked = ensemble.member_scores(later.batch), ensemble.predict(later.batch)
    np.testing.assert_allclose(stacked.sum(axis=1), 1, atol=1e-6)
    best = min(log_loss(later.target, each[:, m]) for m in range(3))
    assert log_loss(later.target, stacked) < best - 0.02


def test_one_member_that_is_passed_through_is_that_member_and_no_different():
    """Classes of a probability near 0, which logits would lift: by as much in every row, which looks certain."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(2), 300).astype(np.float32)
    each = np.concatenate([shares * np.float32(1 - 1e-9), np.full((300, 1), 1e-9, np.float32)], axis=1)
    target, time = (rng.random(300) > shares[:, 0]).astype(np.float64), np.arange(300)
    block = {f"score:one:{k}": Column(each[:, k].astype(np.float64)) for k in range(3)}
    batch = FeatureBatch({"members": block}, {"members": time}, time, time)
    fitted = fit_logistic(TrainingData(batch, target, np.ones(300), time, Target("multiclass", ("a", "b", "c"))))
    assert fitted.strength == np.inf
    stacked = fitted.predict(batch)
    np.testing.assert_array_equal(stacked, each)
    lines = class_leaderboard(target, {"one": each, "stack": stacked}, ("a", "b", "c"), against="stack", resamples=100)
    apart = lines[0].differences["log_loss"]
    assert (apart.value, apart.p_value) == (0.0, 1.0)


def test_an_artefact_that_is_no_ensemble_is_refused():
    with pytest.raises(ArtefactError, match=r"not an ensemble.*expected ensemble.json"):
        Ensemble.load(Artefact(), ECHO.load())


def score_data(scores, target, time=None) -> TrainingData:
    """Members' probabilities (n, m) as the final model gets them."""
    n, m = scores.shape
    time = np.zeros(n, np.int64) if time is None else time
    block = {f"score:m{i}": Column(scores[:, i]) for i in range(m)}
    return TrainingData(FeatureBatch({"members": block}, {"members": np.arange(n)}, time, time), target, np.ones(n), time)


def fit_logistic(data: TrainingData, strength=None):
    model = Logistic()
    return model.fit(data, params=model.spec.params()(strength=strength), seed=0, progress=lambda done, text: None)


def test_without_a_prior_the_final_model_is_plain_logistic_regression_on_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 3))
    target = (logits @ [0.5, 1.0, 0.2] - 0.7 + rng.logistic(size=3000) > 0).astype(float)
    fitted = fit_logistic(score_data(1 / (1 + np.exp(-logits)), target), strength=1e-9)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits, target)
    np.testing.assert_allclose(fitted.weights[:, 0], oracle.coef_[0], atol=1e-4)
    np.testing.assert_allclose(fitted.intercept, oracle.intercept_, atol=1e-4)


def test_a_member_that_is_wrong_is_left_out_and_not_turned_around():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 2))
    target = (logits @ [1.0, -1.0] + rng.logistic(size=3000) > 0).astype(float)
    weights = fit_logistic(score_data(1 / (1 + np.exp(-logits)), target), strength=1.0).weights
    assert weights[1, 0] == 0
    assert weights[0, 0] > 0.5


def test_the_strongest_prior_is_the_plain_mean_of_the_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 4))
    target = (logits[:, 0] + 2 + rng.logistic(size=500) > 0).astype(float)
    fitted = fit_logistic(score_data(1 / (1 + np.exp(-logits)), target), strength=1e9)
    np.testing.assert_allclose(fitted.weights, 0.25, atol=1e-4)
    assert fitted.intercept[0] > 1


def test_with_few_rows_members_weigh_nearly_alike_and_with_many_as_they_deserve():
    def weights_of(rows: int) -> np.ndarray:
        rng = np.random.default_rng(1)
        logits = rng.normal(size=(rows, 1)) + rng.normal(0, [0.4, 0.5], size=(rows, 2))
        target = (logits.mean(axis=1) + rng.logistic(size=rows) > 0).astype(float)
        time = np.arange(rows) * 8 // rows
        return fit_logistic(score_data(1 / (1 + np.exp(-logits)), target, time)).weights[:, 0]

    few = weights_of(60)
    assert abs(few[0] - few[1]) < 0.1

    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 2))
    target = (logits @ [1.0, 0.1] + rng.logistic(size=20_000) > 0).astype(float)
    many = fit_logistic(score_data(1 / (1 + np.exp(-logits)), target, np.arange(20_000) // 2500)).weights[:, 0]
    np.testing.assert_allclose(many, [1.0, 0.1], atol=0.08)


def test_overconfident_members_are_calibrated():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 1))
    target = (logits[:, 0] + rng.logistic(size=4000) > 0).astype(float)
    data = score_data(1 / (1 + np.exp(-(3 * logits + 2))), target, np.arange(4000) // 500)
    fitted = fit_logistic(data)
    assert fitted.weights[0, 0] == pytest.approx(1 / 3, abs=0.05)
    assert evaluate(target, fitted.predict(data.batch), metrics=["ece"])["ece"].value < 0.03
    assert evaluate(target, data.batch.column("score:m0").values, metrics=["ece"])["ece"].value > 0.1


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_only_is_fitted_and_stays_a_probability(label):
    data = score_data(np.random.default_rng(0).random((50, 2)), np.full(50, label), np.arange(50))
    scores = fit_logistic(data).predict(data.batch)
    assert np.isfinite(scores).all()
    assert np.abs(scores - label).max() < 0.05


def test_no_rows_and_no_members_leave_a_base_rate():
    empty = score_data(np.zeros((0, 2)), np.zeros(0))
    np.testing.assert_allclose(fit_logistic(empty).weights, 0.5)
    nobody = score_data(np.zeros((100, 0)), np.r_[np.ones(25), np.zeros(75)])
    assert fit_logistic(nobody).predict(nobody.batch)[0, 0] == pytest.approx(0.25, abs=0.01)


def test_a_score_column_that_is_missing_or_no_probability_is_named():
    data = score_data(np.full((10, 2), 0.5), np.arange(10) % 2.0)
    with pytest.raises(PluginError, match="fitted on 'score:m1'"):
        fit_logistic(data).predict(data.batch.select(["score:m0"]))
    with pytest.raises(PluginError, match=r"outside 0\.\.1"):
        fit_logistic(score_data(np.full((10, 2), 1.5), np.arange(10) % 2.0))


def recorded(members, data, cache, folds=None) -> tuple[int, object]:
    """How many fits were done, and the scores."""
    given = []
    source = with_plugin(Recorder(given=(given, [])))
    oof = out_of_fold(members, data, folds or folds_of(data), source=source, cache=cache)
    return len(given), oof


SIGNAL, NOISE = (Member(name, "recorder", {"column": name}) for name in ("signal", "noise"))


def test_a_further_member_costs_its_own_folds_only(tmp_path):
    data, cache = shop(), Cache(tmp_path)
    fits, first = recorded([SIGNAL], data, cache)
    assert (fits, first.reused) == (4, {"signal": 0})
    fits, both = recorded([SIGNAL, NOISE], data, Cache(tmp_path))
    assert (fits, both.reused) == (4, {"signal": 4, "noise": 0})
    assert both.scores[:, 0].tobytes() == first.scores[:, 0].tobytes()
    assert both.seconds["signal"] == first.seconds["signal"]


def test_final_fits_are_reused_too(tmp_path):
    data, given = shop(), []
    source = with_plugin(Recorder(given=(given, [])))
    one = fit_members([SIGNAL], data, source=source, cache=Cache(tmp_path))
    other = fit_members([SIGNAL, NOISE], data, source=source, cache=Cache(tmp_path))
    assert len(given) == 2
    assert one[0].fitted.predict(data.batch).tobytes() == other[0].fitted.predict(data.batch).tobytes()


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, 0),
        ({"member": Member("renamed", "recorder", {"column": "signal"})}, 0),
        ({"member": Member("signal", "recorder", {"column": "signal", "ranges": 8})}, 0),  # the default, spelt out
        ({"member": Member("signal", "recorder", {"column": "signal", "ranges": 4})}, 4),
        ({"member": Member("signal", "recorder", {"column": "signal"}, seed=1)}, 4),
        ({"data": shop(seed=1)}, 4),
        ({"folds": folds_of(shop())[:2]}, 0),
        ({"folds": folds_of(shop(), 3)}, 1),
    ],
)
def test_only_what_a_fit_depends_on_makes_it_run_again(changes, fits, tmp_path):
    cache = Cache(tmp_path)
    recorded([SIGNAL], shop(), cache)
    found, _ = recorded([changes.get("member", SIGNAL)], changes.get("data", shop()), cache, changes.get("folds"))
    assert found == fits


@pytest.mark.parametrize("damage", ["key", "bytes"])
def test_a_damaged_cache_entry_is_computed_again_with_a_warning(damage, tmp_path, caplog):
    data = shop()
    _, before = recorded([SIGNAL], data, Cache(tmp_path))
    if damage == "key":
        next((tmp_path / "keys").iterdir()).write_text("nonsense")
    else:
        file = next((tmp_path / "artefacts").glob("*/arrays.safetensors"))
        file.write_bytes(file.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    with caplog.at_level(logging.WARNING):
        fits, after = recorded([SIGNAL], data, Cache(tmp_path))
    assert fits == 1
    assert "cannot be used and is computed again" in caplog.text
    assert after.scores.tobytes() == before.scores.tobytes()
    assert recorded([SIGNAL], data, Cache(tmp_path))[0] == 0


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path, caplog):
    (tmp_path / "keys").write_text("a file where the folder should be")
    fits, oof = recorded([SIGNAL], shop(), Cache(tmp_path))
    assert fits == 4
    assert np.isfinite(oof.scores[oof.rows]).all()
    assert "is not kept" in caplog.text


def test_an_interrupted_run_keeps_the_folds_that_were_done(tmp_path):
    data = shop()

    def interrupt(done: float, text: str) -> None:
        if done >= 0.5:
            raise KeyboardInterrupt

    source = with_plugin(Recorder(given=([], [])))
    with pytest.raises(KeyboardInterrupt):
        out_of_fold([SIGNAL], data, folds_of(data), source=source, cache=Cache(tmp_path), progress=interrupt)
    assert recorded([SIGNAL], data, Cache(tmp_path))[0] == 2


def test_the_data_digest_sees_every_part():
    data = shop(50)
    batch = data.batch
    other_text = replace(batch.catalogue, names={"item_id": batch.catalogue.names["item_id"][::-1].copy()})
    renamed = {"user": {("x" if n == "noise" else n): c for n, c in batch.blocks["user"].items()}}
    variants = [
        data,
        replace(data, target=1 - data.target),
        replace(data, weight=data.weight * 2),
        replace(data, time=data.time + 1),
        replace(data, kind=Target("value")),
        replace(data, batch=replace(batch, as_of=batch.as_of + 1)),
        replace(data, batch=replace(batch, catalogue=other_text)),
        replace(data, batch=replace(batch, blocks=renamed)),
        replace(data, batch=replace(batch, row_of={"user": batch.row_of["user"][::-1].copy()})),
    ]
    assert len({data_digest(v) for v in variants}) == len(variants)
    assert data_digest(shop(50)) == data_digest(data)


def test_progress_goes_from_nothing_to_everything():
    data, heard = shop(), []
    out_of_fold(MEMBERS, data, folds_of(data), source=ECHO, progress=lambda done, text: heard.append((done, text)))
    assert [done for done, _ in heard] == [n / 8 for n in range(1, 9)]
    assert heard[0][1].startswith("signal, fold 4 of 4")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], r"\(none\); expected at least one"),
        ([MEMBERS[0], MEMBERS[0]], "signal, signal; expected at least one, each with a name of its own"),
        ([Member("a", "ekho")], "unknown model 'ekho'; choose one of: .*echo"),
        ([Member("a", "echo", {"range": 3})], "member 'a': range: .*; echo has the parameters: column, ranges, smoothing"),
        ([Member("a", "echo", {"ranges": "many"})], "member 'a': ranges: "),
    ],
)
def test_members_that_cannot_be_meant_are_refused_before_any_fit(members, words):
    data = shop()
    with pytest.raises(UsageError, match=words):
        out_of_fold(members, data, folds_of(data), source=ECHO)
    with pytest.raises(UsageError, match=words):
        fit_members(members, data, source=ECHO)


def test_a_model_that_does_not_predict_such_targets_is_refused():
    data = replace(shop(), kind=Target("value"))
    oof = out_of_fold(MEMBERS, data, folds_of(data), source=ECHO)
    with pytest.raises(UsageError, match="member 'final': logistic predicts binary, multiclass; the task is value"):
        stack(oof, data, source=ECHO)
    with pytest.raises(UsageError, match="member name 'a/b'"):
        Member("a/b", "echo")


@pytest.mark.parametrize("broken", ["peek", "twice", "empty"])
def test_folds_that_are_not_honest_are_refused(broken):
    data = shop()
    folds = folds_of(data)
    train, scored = folds[1]
    folds[1] = {
        "peek": (np.append(train, scored[:1]), scored),
        "twice": (train, np.append(scored, folds[0][1][:1])),
        "empty": (train[:0], scored),
    }[broken]
    if broken == "twice":
        folds[1] = (np.setdiff1d(train, folds[0][1]), folds[1][1])
    with pytest.raises(UsageError, match="fold 2 of 4 has no training rows"):
        out_of_fold(MEMBERS, data, folds, source=ECHO)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (np.zeros(3), r"shape \(3,\); expected \(3, 1\)"),
        (np.array([[0.1], [np.nan], [0.2]]), "1 of 3 rows a score that is not finite"),
        (np.array([[0.1], [1.5], [0.2]]), "from 0.1 to 1.5; expected probabilities"),
    ],
)
def test_scores_that_break_the_contract_are_named(scores, words):
    with pytest.raises(PluginError, match=f"gru gave .*{words}"):
        checked(scores, 3, Target(), "gru")


def test_seeds_and_bagging_of_zoo_toml_average_models_of_their_own_rows(tmp_path):
    (tmp_path / "zoo.toml").write_text(
        '[tasks.churn]\nmembers = ["gbdt", "linear"]\nseeds = { gbdt = 3 }\nbagging = 0.5\n[tasks.churn.params.gbdt]\nnum_trees = 5\n'
    )
    members = members_of(Project.open(tmp_path).task("churn"))
    assert [(m.name, m.seeds, m.bagging) for m in members] == [("gbdt", 3, 0.5), ("linear", 1, 0.5)]
    data = shop(300)
    several, single = fit_members(members, data, source=PluginSource())
    found, vocabulary = PluginSource().load(), Vocabulary.of(data)
    batch = vocabulary.apply(data.batch)

    def alone(member, number):
        """The model fitted on half of the rows, drawn by its number."""
        rows = np.sort(np.random.default_rng([member.seed, number]).permutation(300)[:150])
        model, params = member.resolve(found, data.kind)
        part = replace(data.take(rows), batch=batch.take(rows))
        return model.plugin.fit(part, params=params, seed=member.seed + number, progress=lambda *_: None).predict(batch)

    assert isinstance(several.fitted, Averaged)
    each = [alone(members[0], number) for number in range(3)]
    assert not np.array_equal(each[0], each[1])
    np.testing.assert_allclose(several.fitted.predict(batch), np.mean(each, axis=0), atol=1e-6)
    np.testing.assert_allclose(single.fitted.predict(batch), alone(members[1], 0), atol=1e-6)
    again = load_fitted(found.models["gbdt"].plugin, several.fitted.save())
    np.testing.assert_array_equal(again.predict(batch), several.fitted.predict(batch))
