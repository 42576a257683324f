"""A version opened in a project: its plugins, feature service and identifiers, or what of them the project lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zoo.contract import Artefact
from zoo.errors import FeatureError, RegistryError, ZooError
from zoo.features import Features
from zoo.identifiers import Identifiers
from zoo.manager import Plugins, plugins
from zoo.project import Project
from zoo.recommender import FILE, Recommender
from zoo.registry import Version
from zoo.stacking import Ensemble
from zoo.vocabulary import PART, Vocabulary

if TYPE_CHECKING:
    from zoo.events.log import EventLog


def ensemble_of(artefact: Artefact, found: Plugins) -> Ensemble | Recommender:
    """The model of an artefact, in the codes of the log that it was trained on. Raises ArtefactError, PluginError."""
    return (Recommender if FILE in artefact.texts else Ensemble).load(artefact, found)


def vocabulary_in(log: EventLog, version: Version, artefact: Artefact, own: Vocabulary) -> Vocabulary:
    """A version's vocabulary in a log's codes; that of a version without identifiers as it is. Raises as ``Identifiers.translated``."""
    identifiers = Identifiers.load(artefact.part(PART), own)
    return own if identifiers is None else identifiers.translated(own, log, version.reference)


def check_named(version: Version) -> None:
    """Raise RegistryError where a version does not say what it was trained on."""
    if not {"task", "service_hash"} <= version.lineage.keys():
        raise RegistryError(
            f"{version.reference} does not say which task and features it was trained on, so nothing can be predicted with it; "
            f"train one with: zoo train {version.model}"
        )


def check_service(version: Version, features: Features) -> None:
    """Raise FeatureError unless the repository has the very feature service that a version was trained on."""
    service, applied = str(version.lineage["task"]["service"]), features.services()
    if service not in applied:
        raise FeatureError(
            f"feature service {service!r}, which {version.reference} was trained on, is not in the repository; it has: "
            f"{', '.join(applied) or '(none)'}. Restore its definition and run: zoo apply"
        )
    if features.schema_hash(service) != version.lineage["service_hash"]:
        raise FeatureError(
            f"feature service {service!r} is not the one that {version.reference} was trained on (its views, types or "
            f"aggregations changed since). Restore the definitions and `zoo apply`, or train again: zoo train {version.model}"
        )


def lacking(project: Project, version: Version, artefact: Artefact, without: tuple[str, ...] = ()) -> list[str]:
    """What keeps a project from answering with a version, each as a sentence or two; none where nothing does."""
    told: list[str] = []

    def tried(*steps: Callable[[], object]) -> None:
        """Until the first that fails, whose reason is told."""
        try:
            for step in steps:
                step()
        except ZooError as error:
            told.append(str(error))

    def meant() -> None:
        own = Vocabulary.load(artefact.part(PART))
        if Identifiers.load(artefact.part(PART), own) is None:
            told.append(
                f"{version.reference} keeps codes of the log that it was trained on and not what they stand for (an older feature-zoo "
                "registered it): its answers are right with that log only; train again, there or here"
            )
        else:
            vocabulary_in(features.reader.log, version, artefact, own)

    tried(lambda: ensemble_of(artefact, plugins(without)))
    try:
        features = Features.open(project.root)
    except ZooError as error:
        return [*told, str(error)]
    tried(lambda: check_named(version), lambda: check_service(version, features))
    tried(meant)
    return told
