"""Which version of each model answers: alias moves are noticed, the version is loaded and warmed aside, and then takes over at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from zoo.errors import ZooError
from zoo.features import Features
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.registry import Registry, Version, parse

RETRY = 60.0
"""Seconds after which a version that could not be loaded is tried again, if the alias still names it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where versions come from. ``registered`` opens the registry for one look, so that nothing is held between looks."""

    project: Project
    features: Features
    without: tuple[str, ...] = ()

    def registered(self, references: Mapping[str, str]) -> dict[str, Version]:
        """Model -> the version that its reference means at this moment. Raises RegistryError."""
        with Registry.open(self.project.registry_url, self.project.artefacts, create=False) as registry:
            return {model: registry.get(reference) for model, reference in references.items()}

    def load(self, reference: str) -> Predictor:
        """The version, loaded and warm. Raises as ``Predictor.load``."""
        predictor = Predictor.load(reference, self.project.root, self.without, features=self.features)
        predictor.warm()
        return predictor


@dataclass(frozen=True)
class Trouble:
    """A version that an alias names and that cannot answer.

    kind: the error's type. again: the monotonic time from which it is tried once more.
    """

    version: str
    kind: str
    again: float


class Versions(Mapping[str, Predictor]):
    """Model name -> the predictor that answers for it now. Thread-safe: whoever took a predictor keeps it for the whole answer.

    references: model -> the reference asked for; those that name a number never move. Without a source nothing moves.
    """

    def __init__(
        self, predictors: Mapping[str, Predictor], references: Mapping[str, str] | None = None, source: Source | None = None
    ) -> None:
        self._serving = dict(predictors)
        self._source = source
        self._moving = {model: text for model, text in (references or {}).items() if parse(text).number is None}
        self._one_look = threading.Lock()
        self.troubles: Mapping[str, Trouble] = {}
        self.unreachable: str | None = None

    def __getitem__(self, model: str) -> Predictor:
        return self._serving[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._serving)

    def __len__(self) -> int:
        return len(self._serving)

    def look(self, *, retry: bool = False) -> dict[str, str]:
        """Ask the registry once, and swap what moved. Returns model -> the version that took over.

        A version that cannot be loaded or does not answer leaves the one before it serving, and is tried again after ``RETRY`` seconds
        or at once with ``retry``. Raises nothing of zoo's: what went wrong is in ``troubles``, ``unreachable`` and the log.
        """
        if self._source is None or not self._moving:
            return {}
        with self._one_look:
            try:
                registered = self._source.registered(self._moving)
            except ZooError as error:
                if self.unreachable is None:
                    _log.warning("the registry does not answer, versions stay as they are: %s", error)
                self.unreachable = str(error)
                return {}
            self.unreachable = None
            return {m: version.reference for m, version in registered.items() if self._follow(self._source, m, version, retry)}

    def _follow(self, source: Source, model: str, version: Version, retry: bool) -> bool:
        """Whether this version took over."""
        serving, trouble = self._serving[model].version, self.troubles.get(model)
        if version.reference == serving.reference:
            self._settle(model, None)
            return False
        if trouble and trouble.version == version.reference and time.monotonic() < trouble.again and not retry:
            return False
        try:
            loaded = source.load(version.reference)
        except Exception as error:  # noqa: BLE001 - a candidate may fail in any way, and the version that serves must go on
            self._settle(model, Trouble(version.reference, type(error).__name__, time.monotonic() + RETRY))
            _log.error("%s cannot answer, %s goes on: %s", version.reference, serving.reference, error)
            return False
        self._serving[model] = loaded  # one store of one reference: a request sees the former predictor or this one, whole
        self._settle(model, None)
        _log.info("%s took over from %s", version.reference, serving.reference)
        return True

    def _settle(self, model: str, trouble: Trouble | None) -> None:
        others = {name: each for name, each in self.troubles.items() if name != model}
        self.troubles = others if trouble is None else {**others, model: trouble}


class Watch:
    """A thread that looks every ``seconds`` until it is stopped."""

    def __init__(self, look: Callable[[], object], seconds: float) -> None:
        self._look, self._seconds, self._stop = look, seconds, threading.Event()
        self._thread = threading.Thread(target=self._run, name="zoo-versions", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._look()
            except Exception:  # noqa: BLE001 - whatever it was, the next look may go well
                _log.exception("looking for versions failed; it is tried again")
