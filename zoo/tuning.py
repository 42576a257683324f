"""``zoo tune``: parameters of one member tried on later rows, every trial kept in the registry's database, so that a search goes on.

Akiba et al. (2019), "Optuna: a next-generation hyperparameter optimization framework". Test rows are never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.cache import Cache, array_digest, data_digest, key_of
from zoo.calibration import losses
from zoo.contract import Array, Progress, TrainingData, silent
from zoo.errors import UsageError, ZooError, choices
from zoo.features import Features
from zoo.fitting import Member, PluginSource
from zoo.jobs import Executor, Serial
from zoo.manager import Plugins
from zoo.project import Project, TaskSettings
from zoo.registry import Registry
from zoo.stacking import out_of_fold
from zoo.tasks.settings import instant
from zoo.training import members_of, split, training_data

if TYPE_CHECKING:
    from optuna import Study, Trial

SPACE: Mapping[str, Any] = MappingProxyType(
    {
        "num_trees": {"low": 50, "high": 1000, "log": True},
        "num_leaves": {"low": 3, "high": 63, "log": True},
        "learning_rate": {"low": 0.005, "high": 0.2, "log": True},
        "min_data_in_leaf": {"low": 5, "high": 300, "log": True},
        "feature_fraction": {"low": 0.05, "high": 1.0},
        "bagging_fraction": {"low": 0.4, "high": 1.0},
        "lambda_l2": {"low": 0.1, "high": 50.0, "log": True},
        "hidden": [16, 32, 64, 128],
        "epochs": {"low": 2, "high": 12},
        "dropout": {"low": 0.0, "high": 0.6},
        "weight_decay": {"low": 1e-4, "high": 0.1, "log": True},
        "max_length": [20, 30, 50, 100],
    }
)
"""What is tried of parameters of these names, where a model has them and zoo.toml's ``tune`` does not say."""
MINUTES = 10.0
GIVEN = "given"
"""Under this name a trial of parameters that zoo.toml had keeps them."""


@dataclass(frozen=True)
class Trials:
    """What a search found. loss: log-loss on later training rows. now: that of the parameters in zoo.toml. best: parameters as they would
    stand there. trials: number, loss, state and parameters of every trial so far; before: how many were there already.
    """

    task: str
    member: str
    study: str
    now: float | None
    loss: float | None
    best: Mapping[str, Any]
    trials: list[dict[str, Any]]
    before: int

    def as_dict(self) -> dict[str, Any]:
        names = ("task", "member", "study", "now", "loss", "best", "before", "trials")
        return {name: getattr(self, name) for name in names}

    def toml(self) -> str:
        """The lines for zoo.toml."""
        return "\n".join([f"[tasks.{self.task}.params.{self.member}]", *(f"{k} = {written(v)}" for k, v in self.best.items())])


def tune(
    project: Project,
    task_name: str,
    member_name: str | None = None,
    *,
    plugins: Plugins,
    minutes: float = MINUTES,
    trials: int | None = None,
    features: Features | None = None,
    source: PluginSource = PluginSource(),  # noqa: B008 - frozen and empty
    executor: Executor | None = None,
    test_start: int | str | None = None,
    progress: Progress | None = None,
) -> Trials:
    """Try parameters of a member until the minutes are over, or there are so many trials in all.

    A trial is fitted on the folds that training has, the newest first, and judged by log-loss on the rows that each scores; one that is
    worse than half of the trials before it at the same fold ends there. The first trial is what zoo.toml says. A search on the same
    rows, features, folds, model version and space goes on where it was. Raises UsageError for settings that cannot be meant.
    """
    settings = project.task(task_name)
    name = member_name or settings.members[0]
    if name not in settings.members:
        raise UsageError(choices(f"member of [tasks.{task_name}]", name, settings.members))
    if not minutes > 0:
        raise UsageError(f"{minutes} minutes; expected a number above 0")
    task = plugins.task(settings.task)
    features = (features or Features.open(project.root)).pinned()
    view = features.reader.view()
    task = task.resolved(view, settings.own)
    if task.target.kind not in ("binary", "multiclass"):
        raise UsageError(f"{task_name} predicts {task.target.kind}; `zoo tune` has a loss for binary and multiclass tasks only")
    (member,) = members_of(settings, [name])
    model, now = member.resolve(plugins, task.target)
    space = space_of(settings, name, now.model_dump())
    rows = split(task, settings, view, None if test_start is None else instant(test_start), None)
    say = progress or silent
    say(0.0, f"features of {len(rows.train):,} rows")
    data = training_data(features, task, rows.train)
    folds = plugins.folds(data, rows.train.known_at, settings.folds, settings.seed)
    say(0.0, f"the first trial, {len(folds)} folds")
    given = {k: v for k, v in now.model_dump(mode="json").items() if k in space}
    held = {k: v for k, v in now.model_dump(mode="json").items() if k not in space}
    of_folds = [[array_digest(part) for part in fold] for fold in folds]
    about = [data_digest(data), of_folds, model.version, space, held, member.seed, member.seeds, member.bagging]
    study_name = f"{task_name}/{name}/{key_of(*about)[:12]}"
    work = {"source": source, "executor": executor or Serial(), "cache": Cache(project.cache)}

    def judge(params: Mapping[str, Any], told: Callable[[int, float], None]) -> float:
        return _loss(replace(member, params={**member.params, **params}), data, folds, work, told)

    study = _study(project, study_name)
    before = len(study.trials)
    _search(study, space, given, judge, monotonic() + 60 * minutes, trials, say)
    return _found(study, task_name, name, given, before)


def space_of(settings: TaskSettings, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """What is tried of each parameter: a list of values, or ``low``, ``high`` and perhaps ``log``.

    zoo.toml's ``tune`` goes before ``SPACE``. Raises UsageError where a parameter or its space cannot be meant.
    """
    own = settings.tune.get(name)
    space = {k: v for k, v in SPACE.items() if k in params} if own is None else own
    if not space:
        raise UsageError(
            f"nothing of {name!r} is known to be tuned; say what in [tasks.{settings.name}.tune.{name}], for instance "
            f"depth = {{ low = 1, high = 8 }}; its parameters are: {', '.join(params) or '(none)'}"
        )
    for parameter, asked in space.items():
        if parameter not in params:
            raise UsageError(choices(f"parameter of {name} in [tasks.{settings.name}.tune.{name}]", parameter, params))
        if isinstance(asked, Sequence) and not isinstance(asked, str) and len(asked):
            continue
        ranged = isinstance(asked, Mapping) and {"low", "high"} <= asked.keys() <= {"low", "high", "log"}
        if not (ranged and asked["low"] < asked["high"] and (asked["low"] > 0 or not asked.get("log"))):
            raise UsageError(
                f"[tasks.{settings.name}.tune.{name}] {parameter} is {asked!r}; expected a list of values, or "
                "{ low = 1, high = 9 }, with log = true where the low end is above 0"
            )
    return dict(space)


def written(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, Sequence):
        return f"[{', '.join(written(each) for each in value)}]"
    if isinstance(value, float):
        return f"{value:.4g}" if any(c in f"{value:.4g}" for c in ".e") else f"{value:.4g}.0"
    return str(value)


def write(path: Path, found: Trials) -> None:
    """Put the best parameters in zoo.toml: lines of theirs are replaced or added in their table, everything else stays as it is.

    Raises UsageError, and leaves the file alone, where the file's form does not let that be done line by line.
    """
    import tomllib

    text = path.read_text(encoding="utf-8")
    head = f"[tasks.{found.task}.params.{found.member}]"
    lines = text.splitlines()
    places = [at for at, line in enumerate(lines) if line.split("#")[0].strip() == head]
    if places:
        end = next((at for at in range(places[0] + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
        while end > places[0] + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
            end -= 1
        kept = [line for line in lines[places[0] + 1 : end] if line.split("=")[0].strip() not in found.best]
        changed = [*lines[: places[0] + 1], *kept, *found.toml().splitlines()[1:], *lines[end:]]
    else:
        changed = [*lines, "", *found.toml().splitlines()]
    new = "\n".join(changed) + "\n"
    expected = tomllib.loads(text)
    table = expected["tasks"][found.task].setdefault("params", {}).setdefault(found.member, {})
    table |= tomllib.loads("\n".join(found.toml().splitlines()[1:]))
    try:
        same = tomllib.loads(new) == expected
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise UsageError(f"the lines cannot be put in {path} by themselves; put them there:\n{found.toml()}")
    path.write_text(new, encoding="utf-8")


def _loss(
    member: Member,
    data: TrainingData,
    folds: Sequence[tuple[Array, Array]],
    work: Mapping[str, Any],
    told: Callable[[int, float], None],
) -> float:
    """Mean log-loss over the scored rows of all folds; told: the mean so far, after each fold."""
    total, weight = 0.0, 0.0
    for number, fold in enumerate(reversed(folds)):
        scored = fold[1]
        scores = out_of_fold([member], data, [fold], **work).scores[scored, 0]
        total += float(losses(scores, data.target[scored], data.weight[scored]).sum())
        weight += float(data.weight[scored].sum())
        told(number, total / weight)
    return total / weight


def _study(project: Project, name: str) -> Study:
    from sqlalchemy.pool import NullPool

    try:
        import optuna
    except ImportError as e:
        raise UsageError("tuning needs optuna, which is not installed; as in: pip install 'feature-zoo[tune]'") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Registry.of(project).close()  # makes the database, or says in words why it cannot be opened
    url = project.registry_url.replace("postgresql://", "postgresql+psycopg://", 1)
    study = optuna.create_study(
        study_name=name,
        storage=optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool}),  # as the registry opens it
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        load_if_exists=True,
    )
    # another seed where a search goes on, or it would draw the first trials again
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    for trial in study.trials:  # of a run that was killed
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _search(
    study: Study,
    space: Mapping[str, Any],
    given: Mapping[str, Any],
    judge: Callable[[Mapping[str, Any], Callable[[int, float], None]], float],
    end: float,
    most: int | None,
    progress: Progress,
) -> None:
    import optuna

    started = monotonic()

    def share() -> float:
        passed = (monotonic() - started) / max(1e-9, end - started)
        return min(1.0, passed if most is None else max(passed, _done(study) / most))

    def objective(trial: Trial) -> float:
        own = trial.user_attrs.get(GIVEN)
        params = {name: _suggested(trial, name, asked) for name, asked in space.items()} if own is None else own

        def told(step: int, value: float) -> None:
            progress(share(), f"trial {trial.number + 1}, fold {step + 1}: log-loss {value:.5f} so far")
            trial.report(value, step)
            if own is None and trial.should_prune():
                raise optuna.TrialPruned

        return judge(params, told)

    if not any(trial.user_attrs.get(GIVEN) == given for trial in study.trials):
        study.enqueue_trial({}, user_attrs={GIVEN: dict(given)})
    while monotonic() < end and (most is None or _done(study) < most):
        study.optimize(objective, n_trials=1, catch=(ZooError,))
        last = study.trials[-1]
        value = "failed" if last.value is None else f"log-loss {last.value:.5f}"
        progress(share(), f"trial {last.number + 1}: {value}")


def _done(study: Study) -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def _suggested(trial: Trial, name: str, asked: Any) -> Any:
    if not isinstance(asked, Mapping):
        import json

        # optuna keeps numbers, texts and truths as choices; lists go as their JSON
        found = trial.suggest_categorical(name, [json.dumps(each) for each in asked])
        return json.loads(str(found))
    low, high, log = asked["low"], asked["high"], bool(asked.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, float(low), float(high), log=log)


def _found(study: Study, task: str, member: str, given: Mapping[str, Any], before: int) -> Trials:
    import json

    listed: list[dict[str, Any]] = []
    for trial in study.trials:
        own = trial.user_attrs.get(GIVEN)
        drawn = {k: json.loads(v) if isinstance(v, str) else _short(v) for k, v in trial.params.items()}
        state = trial.state.name.lower()
        loss = trial.value if state == "complete" and trial.value is not None and math.isfinite(trial.value) else None
        params = drawn if own is None else own
        listed.append({"number": trial.number + 1, "loss": loss, "state": state, "params": params, "now": own == dict(given)})
    judged = sorted((each for each in listed if each["loss"] is not None), key=lambda each: each["loss"])
    now = next((each["loss"] for each in judged if each["now"]), None)
    best: dict[str, Any] = judged[0] if judged else {"loss": None, "params": {}}
    return Trials(task, member, study.study_name, now, best["loss"], best["params"], listed, before)


def _short(value: Any) -> Any:
    """Four digits are enough to train by, and to read."""
    return float(f"{value:.4g}") if isinstance(value, float) else int(value) if isinstance(value, np.integer) else value
