"""Which version of each model answers: alias moves are noticed, the version is loaded and warmed aside, and then takes over at once.

Beside the version that answers a canary may take a share of the requests, and a shadow copies of a share: the versions that the aliases
``canary`` and ``shadow`` name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from zoo.errors import PluginError, UnknownReferenceError, UsageError, ZooError, choices
from zoo.features import Features
from zoo.predictor import Predictor
from zoo.project import Project
from zoo.recommender import Recommender
from zoo.registry import CANARY, SHADOW, Registry, Version, parse
from zoo.service.problems import UnknownModelError

RETRY = 60.0
"""Seconds after which a version that could not be loaded is tried again, if the alias still names it."""
PATIENCE = 5.0
"""Seconds that the end of a watch waits for a look that has begun: a registry may not answer, and a version takes long to load."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where versions come from. ``registered`` opens the registry for one look, so that nothing is held between looks."""

    project: Project
    features: Features
    without: tuple[str, ...] = ()

    def registered(
        self, references: Mapping[str, str], aside: Iterable[str] = ()
    ) -> tuple[dict[str, Version], dict[str, Version], dict[str, UnknownReferenceError]]:
        """Model -> the version that its reference means at this moment; those of ``aside`` (``churn@canary``) that there are; and model ->
        why its reference means none.

        Raises RegistryError.
        """
        found: dict[str, Version] = {}
        beside: dict[str, Version] = {}
        gone: dict[str, UnknownReferenceError] = {}
        with Registry.of(self.project, create=False) as registry:
            for model, reference in references.items():
                try:
                    found[model] = registry.get(reference)
                except UnknownReferenceError as error:
                    gone[model] = error
            for reference in aside:
                with suppress(UnknownReferenceError):
                    beside[reference] = registry.get(reference)
        return found, beside, gone

    def load(self, reference: str) -> Predictor:
        """The version, loaded and warm. Raises as ``Predictor.load``, and where it cannot answer at present: its members have to score,
        and its features to be read, or its policy to have an answer without them."""
        predictor = Predictor.load(reference, self.project.root, self.without, features=self.features)
        state = predictor.warm()
        if state.missing:
            raise PluginError(
                f"{predictor.version.reference} was loaded, but {', '.join(state.missing)} gave no score; expected one of every member "
                "to begin with. The log says what failed; train it again, or serve another version"
            )
        return predictor


@dataclass(frozen=True)
class Trouble:
    """A version that an alias names and that cannot answer, or an alias that names none any more.

    version: or the reference, as in ``churn@live``. kind: the error's type. again: the monotonic time from which a version is tried once
    more.
    """

    version: str
    kind: str
    again: float = 0.0


class Versions(Mapping[str, Predictor]):
    """Model name -> the predictor that answers for it now. Thread-safe: whoever took a predictor keeps it for the whole answer.

    references: model -> the reference asked for; those that name a number never move. Without a source nothing moves. canary, shadow:
    model -> the share of its requests, 0 to 1, that its canary answers, or that its shadow is asked, too. Raises UsageError for a shadow
    of a model that ranks items.
    """

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        references: Mapping[str, str] | None = None,
        source: Source | None = None,
        canary: Mapping[str, float] | None = None,
        shadow: Mapping[str, float] | None = None,
    ) -> None:
        self._serving = dict(predictors)
        self._aside: dict[str, Predictor] = {}
        self._aliases: dict[str, Version] = {}
        self._source = source
        self._moving = {model: text for model, text in (references or {}).items() if parse(text).number is None}
        self._shares: dict[str, float] = {}
        for model in shadow or {}:
            if model in self._serving and isinstance(self._serving[model].ensemble, Recommender):
                raise UsageError(
                    f"[service.shadow] {model}: {self._serving[model].version.reference} ranks items and has no scores that a shadow's "
                    "could be compared with; take it out, or try a version on a share of the requests: [service.canary]"
                )
        for alias, shares in ((CANARY, canary or {}), (SHADOW, shadow or {})):
            self._shares |= {f"{model}@{alias}": share for model, share in shares.items() if model in self._moving}
            for model in shares.keys() - self._moving.keys():
                _log.warning("%s has no %s here: it is not served, or by a version's number", model, alias)
        self._one_look = threading.Lock()
        self.troubles: Mapping[str, Trouble] = {}
        self.unreachable: str | None = None

    def __getitem__(self, model: str) -> Predictor:
        return self._serving[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._serving)

    def __len__(self) -> int:
        return len(self._serving)

    def aliases(self, model: str) -> tuple[str, ...]:
        """Aliases of the version that answers, as of the newest look; of one that was asked for by its number, as of its load."""
        version = self._serving[model].version
        looked = self._aliases.get(model, version)
        return (looked if looked.reference == version.reference else version).aliases

    def aside(self, alias: str) -> Mapping[str, Predictor]:
        """Model -> the predictor of its version that ``canary`` or ``shadow`` names, of those that have one."""
        held = {**self._aside}
        return {model: held[name] for model in self._serving if (name := f"{model}@{alias}") in held}

    def answering(self, model: str) -> list[Predictor]:
        """The predictor that answers most requests, then the canary where there is one."""
        canary = self._aside.get(f"{model}@{CANARY}")
        return [self._serving[model]] + ([] if canary is None else [canary])

    def everyone(self) -> list[Predictor]:
        """The predictors that answer: those of all models, then the canaries."""
        return [*self._serving.values(), *self.aside(CANARY).values()]

    def meant(self, model: str, whom: Any = None, number: str | None = None) -> Predictor:
        """The predictor of a request, taken once so that the whole answer is one version's. whom: whom it is about first; of nobody, it is
        the version that answers most requests. number: of the version that is asked for. Raises UnknownModelError."""
        if model not in self:
            hint = "" if "@" not in model else ". A version is asked for by its number at /v2/models/NAME/versions/NUMBER/infer"
            raise UnknownModelError(choices("model", model, self) + hint)
        if number is not None:
            answering = {str(each.version.number): each for each in self.answering(model)}
            if number not in answering:
                raise UnknownModelError(choices(f"version of {model}", number, answering))
            return answering[number]
        return self._serving[model] if whom is None else self.of(model, whom)

    def of(self, model: str, whom: Any) -> Predictor:
        """The predictor for one request. whom: whom it is about first; the same one is answered by the same version while shares stay."""
        return self._drawn(model, CANARY, whom) or self._serving[model]

    def shadow(self, model: str, whom: Any) -> Predictor | None:
        """The shadow that is asked the same, where there is one and the request is of its share."""
        return self._drawn(model, SHADOW, whom)

    def _drawn(self, model: str, alias: str, whom: Any) -> Predictor | None:
        aside = self._aside.get(name := f"{model}@{alias}")
        if aside is None:
            return None
        # by version, too: whoever met one canary need not meet the next
        named = f"{aside.version.reference}/{whom}".encode("utf-8", "surrogatepass")  # what no log can hold is refused later
        drawn = int.from_bytes(blake2b(named, digest_size=8).digest())
        return aside if drawn < self._shares[name] * 2**64 else None

    def look(self, *, retry: bool = False) -> dict[str, str]:
        """Ask the registry once, and swap what moved. Returns model -> the version that took over.

        A version that cannot be loaded or does not answer leaves the one before it serving, and is tried again after ``RETRY`` seconds
        or at once with ``retry``. So does a reference that means none any more; other models follow theirs. Raises nothing of zoo's: what
        went wrong is in ``troubles``, ``unreachable`` and the log.
        """
        if self._source is None or not self._moving:
            return {}
        with self._one_look:
            try:
                registered, named, gone = self._source.registered(self._moving, self._shares)
            except ZooError as error:
                if self.unreachable is None:
                    _log.warning("the registry does not answer, versions stay as they are: %s", error)
                self.unreachable = str(error)
                return {}
            self.unreachable = None
            self._aliases = registered
            for model, why in gone.items():
                self._lost(model, why)
            swapped = {m: version.reference for m, version in registered.items() if self._follow(self._source, m, version, retry)}
            for name in self._shares:
                self._follow_aside(self._source, name, named.get(name), retry)
            return swapped

    def _lost(self, model: str, why: UnknownReferenceError) -> None:
        """The alias that a model was asked for by is gone: the version that serves goes on, and other models follow theirs."""
        known, asked = self.troubles.get(model), self._moving[model]
        if known is None or known.version != asked:
            self._settle(model, Trouble(asked, type(why).__name__))
            _log.error("%s names no version, %s goes on: %s", asked, self._serving[model].version.reference, why)

    def _follow_aside(self, source: Source, name: str, version: Version | None, retry: bool) -> None:
        """name: model and alias, as in ``churn@canary``."""
        model, _, alias = name.partition("@")
        now = self._aside.get(name)
        if version is None or version.reference == self._serving[model].version.reference:  # nothing to compare
            self._settle(name, None)
            if self._aside.pop(name, None) is not None:
                _log.info("%s has no %s any more", model, alias)
            return
        if now is not None and now.version.reference == version.reference:
            self._settle(name, None)
            return
        if self._waits(name, version, retry):
            return
        self._aside.pop(name, None)  # whatever comes, the former one is no longer meant
        loaded = self._loaded(source, name, version, self._serving[model].version.reference)
        if loaded is None:
            return
        self._aside[name] = loaded if alias == CANARY else replace(loaded, tracer=None)  # what nobody is told needs no trace
        self._settle(name, None)
        does = "answers" if alias == CANARY else "is asked copies of"
        _log.info("%s %s %.3g of the requests of %s", version.reference, does, self._shares[name], model)

    def _follow(self, source: Source, model: str, version: Version, retry: bool) -> bool:
        """Whether this version took over."""
        serving = self._serving[model].version
        if version.reference == serving.reference:
            self._settle(model, None)
            return False
        if self._waits(model, version, retry):
            return False
        loaded = self._loaded(source, model, version, serving.reference)
        if loaded is None:
            return False
        self._serving[model] = loaded  # one store of one reference: a request sees the former predictor or this one, whole
        self._settle(model, None)
        _log.info("%s took over from %s", version.reference, serving.reference)
        return True

    def _waits(self, name: str, version: Version, retry: bool) -> bool:
        """Whether this version failed a short while ago."""
        trouble = self.troubles.get(name)
        return bool(trouble and trouble.version == version.reference and time.monotonic() < trouble.again and not retry)

    def _loaded(self, source: Source, name: str, version: Version, former: str) -> Predictor | None:
        """The version; None, and noted as trouble, where it cannot answer."""
        try:
            return source.load(version.reference)
        except Exception as error:  # noqa: BLE001 - a candidate may fail in any way, and the version that serves must go on
            self._settle(name, Trouble(version.reference, type(error).__name__, time.monotonic() + RETRY))
            _log.error("%s cannot answer, %s goes on: %s", version.reference, former, error)
            return None

    def _settle(self, model: str, trouble: Trouble | None) -> None:
        others = {name: each for name, each in self.troubles.items() if name != model}
        self.troubles = others if trouble is None else {**others, model: trouble}


class Watch:
    """A thread that looks every ``seconds`` until it is stopped. what: is looked at, for the log where that fails."""

    def __init__(self, look: Callable[[], object], seconds: float, what: str) -> None:
        self._look, self._seconds, self._what, self._stop = look, seconds, what, threading.Event()
        self._thread = threading.Thread(target=self._run, name="zoo-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for a look that has begun, at most ``PATIENCE`` seconds: one that hangs ends with the process."""
        self._stop.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        told = ""
        while not self._stop.wait(self._seconds):
            try:
                self._look()
                told = ""
            except ZooError as error:  # said in full, and once
                if told != str(error):
                    _log.error("looking at %s failed; it is tried again every %g seconds: %s", self._what, self._seconds, error)
                    told = str(error)
            except Exception:  # noqa: BLE001 - whatever it was, the next look may go well
                _log.exception("looking at %s failed; it is tried again in %g seconds", self._what, self._seconds)
