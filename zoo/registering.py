"""A run's ensemble put into the registry, with what it was made of: log, features, plugins, settings, folds, commit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.contract import Array, Artefact, Task
from zoo.fallbacks import Fallbacks
from zoo.features import Features
from zoo.identifiers import Identifiers
from zoo.project import Project, TaskSettings
from zoo.recommender import Recommender
from zoo.registry import Registry, Version
from zoo.stacking import Ensemble
from zoo.vocabulary import PART

if TYPE_CHECKING:
    from zoo.events.view import LogView

STACK = ("seeds", "bagging", "refit", "calibration", "price", "cost_ratio", "capacity")
"""Settings of a stack that a version's lineage keeps."""


def registered(
    project: Project,
    record: dict[str, Any],
    ensemble: Ensemble | Recommender,
    spares: Fallbacks | None,
    features: Features,
    task: Task,
    settings: TaskSettings,
    view: LogView,
    folds: Sequence[tuple[Array, Array]],
    run: str,
) -> Version:
    """The version that a run is: a new one, or the newest where it is the same content from the same everything, and the run tried no
    guard against leaks that the version's record lacks.

    spares: what is answered while members are lost. run: a digest of what the members scored. Raises FeatureError where identifiers that
    the model knows were forgotten since the view was opened.
    """
    lineage = {
        "task": {"name": settings.name, "kind": settings.task, "entities": list(task.entities), "service": task.service},
        "settings": json.loads(json.dumps(dict(settings.own), default=str)),
        "log": view.lineage(),
        "service_hash": features.schema_hash(task.service),
        "plugins": {m.name: {"model": m.model, "distribution": m.distribution, "version": m.version} for m in ensemble.members},
        "final": record["final"]["chosen"] if isinstance(ensemble, Ensemble) else ensemble.reranker.chosen,
        "stack": {name: getattr(settings, name) for name in STACK},
        "params": {name: dict(params) for name, params in settings.params.items()},
        "seed": settings.seed,
        "serving": settings.serving.facts(),
        "folds": [[len(a), len(b)] for a, b in folds],
        "git": _commit(project.root),
        "run": run[:16],
    }
    with Registry.of(project) as registry:
        identifiers = Identifiers.behind(ensemble.vocabulary, view.log).save()
        artefact = Artefact.merged(ensemble.save(), identifiers.nested(PART))
        if spares is not None:
            artefact = Artefact.merged(artefact, spares.save().nested("fallbacks"))
        newest = registry.versions(settings.name)[-1:] if settings.name in registry.models() else []
        # the same content from the same everything is the same version: a rerun that reused everything adds nothing
        plain = json.loads(json.dumps(lineage))
        same = (
            newest
            and newest[0].status == "ready"
            and all(newest[0].lineage.get(name) == plain[name] for name in plain if name != "git")
            and tried(record) <= tried(newest[0].metrics)
        )
        if same and newest[0].digest == registry.artefacts.write(artefact):
            return newest[0]
        return registry.register(settings.name, artefact, record, lineage)


def tried(record: Mapping[str, Any]) -> set[str]:
    """The guards against leaks that a run tried."""
    return {each["guard"] for each in record.get("guards", ()) if each.get("tried", True)}


def _commit(root: Path) -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None  # a repository without commits answers "HEAD"
