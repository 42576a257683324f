"""Finds, checks and loads plugins: entry points of the group ``zoo`` in, models, tasks and hooks out.

Each call builds its own pluggy manager; nothing is kept between calls. It must not know what a model or a task does.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from zoo import hookspecs
from zoo.errors import PluginError, UsageError, choices

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from zoo.contract import Array, ModelPlugin, Task, TrainingData

GROUP = "zoo"
REGISTRATION = ("zoo_models", "zoo_tasks")
IN_PROCESS = "(in process)"
NAME = re.compile(r"[a-z][a-z0-9_-]*")

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installed:
    """An entry point as its distribution's metadata names it; nothing of it has been imported."""

    name: str
    distribution: str
    version: str
    value: str


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model plugin and the distribution that it came from."""

    plugin: ModelPlugin
    distribution: str
    version: str


@dataclass(frozen=True)
class Plugins:
    """What the loaded plugins offer.

    models, tasks: by name, in order of name. hook: pluggy's relay, for hooks that have no wrapper here (``zoo_commands``).
    """

    models: Mapping[str, RegisteredModel]
    tasks: Mapping[str, Task]
    hook: pluggy.HookRelay

    def model(self, name: str) -> RegisteredModel:
        """The model of that name; UsageError with the choices where there is none."""
        if name not in self.models:
            raise UsageError(choices("model", name, self.models))
        return self.models[name]

    def task(self, name: str) -> Task:
        """The task of that name; UsageError with the choices where there is none."""
        if name not in self.tasks:
            raise UsageError(choices("task", name, self.tasks))
        return self.tasks[name]

    def folds(self, data: TrainingData, known_at: Array, count: int, seed: int) -> Sequence[tuple[Array, Array]]:
        """Pairs (training rows, scored rows) from the first plugin that answers ``zoo_folds``."""
        answer: Sequence[tuple[Array, Array]] | None = self.hook.zoo_folds(data=data, known_at=known_at, count=count, seed=seed)
        if answer is None:
            raise UsageError("no plugin answered zoo_folds; do not leave out the plugin 'folds', or install one that answers")
        return answer

    def trained(self, record: Mapping[str, Any]) -> None:
        """Tell every plugin of a finished training run."""
        self.hook.zoo_trained(record=record)

    def scored(self, model: str, version: int, scores: Mapping[str, Any]) -> None:
        """Show an answer of the predictor to every observer; what fails is logged with the plugin's name and goes no further."""
        arguments = {"model": model, "version": version, "scores": scores}
        for impl in reversed(self.hook.zoo_scored.get_hookimpls()):
            taken = {name: arguments[name] for name in (*impl.argnames, *impl.kwargnames)}
            try:
                impl.function(**taken)
            except Exception:  # noqa: BLE001 - an observer's failure must never reach the caller of a prediction
                _log.exception("plugin %r failed in zoo_scored", impl.plugin_name)


def installed() -> tuple[Installed, ...]:
    """Every entry point of the group, in order of name, read from metadata only."""
    return tuple(_source(point) for point in _entry_points())


def plugins(without: Sequence[str] = (), extra: Sequence[object] = ()) -> Plugins:
    """Load every installed plugin except those named in ``without``, and ``extra`` ones given as objects.

    An entry point, like an extra, is a module, a class (made without arguments) or an instance with ``@hookimpl`` functions.
    Raises UsageError for an unknown name in ``without``; PluginError for a plugin that does not import, implements a hook that
    does not exist or with other arguments, or offers a model or task whose name is taken.
    """
    points = _entry_points()
    known = [point.name for point in points]
    for name in without:
        if name not in known:
            raise UsageError(choices("plugin", name, known))
    for point, following in itertools.pairwise(points):
        if point.name == following.name:
            one, other = _source(point).distribution, _source(following).distribution
            raise PluginError(f"distributions {one} and {other} both name a plugin {point.name!r}; uninstall one of them")

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for name in without:
        manager.set_blocked(name)
    sources: dict[str, Installed] = {}
    for point in points:
        if not manager.is_blocked(point.name):
            sources[point.name] = _source(point)
            _register(manager, _imported(point, sources[point.name]), sources[point.name])
    for number, plugin in enumerate(extra):
        source = Installed(f"extra-{number}", IN_PROCESS, "0", repr(plugin))
        sources[source.name] = source
        _register(manager, _instance(plugin, source), source)
    manager.check_pending()

    models: dict[str, RegisteredModel] = {}
    holders: dict[str, Installed] = {}
    for source, model in _offered(manager, "zoo_models", sources):
        name = _model_name(model, source)
        _refuse_taken("model", name, source, holders)
        models[name] = RegisteredModel(model, source.distribution, source.version)
    tasks: dict[str, Task] = {}
    holders = {}
    for source, task in _offered(manager, "zoo_tasks", sources):
        _check_task(task, source)
        _refuse_taken("task", task.name, source, holders)
        tasks[task.name] = task
    return Plugins(_sorted(models), _sorted(tasks), manager.hook)


def _sorted(named: dict[str, T]) -> Mapping[str, T]:
    return MappingProxyType(dict(sorted(named.items())))


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points  # 20 ms that `import zoo.manager` need not pay

    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def _source(point: EntryPoint) -> Installed:
    assert point.dist is not None  # importlib sets it on every entry point that it finds in metadata
    return Installed(point.name, point.dist.name, point.dist.version, point.value)


def _remedy(source: Installed) -> str:
    if source.distribution == IN_PROCESS:
        return "mend it, or do not pass it as an extra"
    return f"mend it, run `pip uninstall {source.distribution}`, or leave it out with `zoo --without {source.name}`"


def _broken(source: Installed, what: str) -> PluginError:
    return PluginError(
        f"plugin {source.name!r} of distribution {source.distribution!r} ({source.value}) {what}; {_remedy(source)}"
    )


def _imported(point: EntryPoint, source: Installed) -> object:
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:
        raise _broken(source, f"does not import: {type(error).__name__}: {error}") from error
    return _instance(loaded, source)


def _instance(plugin: object, source: Installed) -> object:
    if not inspect.isclass(plugin):
        return plugin
    try:
        return plugin()
    except Exception as error:
        raise _broken(source, f"cannot be made without arguments: {type(error).__name__}: {error}") from error


def _register(manager: pluggy.PluginManager, plugin: object, source: Installed) -> None:
    """Check every hook implementation against its specification, then register the plugin."""
    valid = {name: list(caller.spec.argnames) for name, caller in vars(manager.hook).items() if caller.spec is not None}
    implemented = 0
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        implemented += 1
        hook = options.get("specname") or attribute
        if hook not in valid:
            closest = next(iter(difflib.get_close_matches(hook, valid, n=1, cutoff=0.0)))
            raise _broken(
                source,
                f"implements a hook {hook!r} that does not exist; the closest is {closest}({', '.join(valid[closest])}), "
                f"the others are {', '.join(sorted(valid.keys() - {closest}))}",
            )
        if hook in REGISTRATION and (options.get("wrapper") or options.get("hookwrapper")):
            raise _broken(source, f"wraps {hook}, which is asked plugin by plugin; return what the plugin itself offers")
        seen = list(inspect.signature(getattr(plugin, attribute)).parameters)
        if not set(seen) <= set(valid[hook]):
            expected = ", ".join(valid[hook])
            raise _broken(
                source,
                f"implements {hook}({', '.join(seen)}); valid arguments are ({expected}), each of which may be left out",
            )
    if not implemented:
        raise _broken(source, f"implements no hook; mark one of {', '.join(sorted(valid))} with @zoo.plugin.hookimpl")
    try:
        manager.register(plugin, name=source.name)
    except (pluggy.PluginValidationError, ValueError) as error:
        raise _broken(source, f"was refused: {error}") from error


def _offered(manager: pluggy.PluginManager, hook: str, sources: Mapping[str, Installed]) -> Iterator[tuple[Installed, Any]]:
    """What each plugin returned from a registration hook; asked one by one, so that a failure has a name."""
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    for impl in sorted(caller.get_hookimpls(), key=lambda impl: impl.plugin_name):
        source = sources[impl.plugin_name]
        try:
            offered = impl.function()
        except Exception as error:
            raise _broken(source, f"failed in {hook}: {type(error).__name__}: {error}") from error
        if not isinstance(offered, Sequence):
            raise _broken(source, f"returned {offered!r} from {hook}; expected a list")
        for thing in offered:
            yield source, thing


def _model_name(model: object, source: Installed) -> str:
    from zoo.contract import ModelPlugin, ModelSpec  # numpy, which a command that loads no plugin need not import

    if inspect.isclass(model):
        raise _broken(source, f"returned the class {model.__name__} from zoo_models; expected an instance, {model.__name__}()")
    if not isinstance(model, ModelPlugin):
        lacking = [name for name in ("spec", "fit", "load", "tiny") if not hasattr(model, name)]
        raise _broken(source, f"returned a {type(model).__name__} from zoo_models that lacks {', '.join(lacking)}")
    if not isinstance(model.spec, ModelSpec) or not NAME.fullmatch(model.spec.name):
        raise _broken(
            source,
            f"offers a model with spec {model.spec!r}; expected a ModelSpec with a name of lower-case letters, digits, - and _",
        )
    return model.spec.name


def _check_task(task: object, source: Installed) -> None:
    from zoo.contract import Task  # as above

    if not isinstance(task, Task):
        raise _broken(source, f"returned a {type(task).__name__} from zoo_tasks; expected a Task")


def _refuse_taken(what: str, name: str, source: Installed, holders: dict[str, Installed]) -> None:
    holder = holders.setdefault(name, source)
    if holder is not source:
        raise PluginError(
            f"two plugins offer a {what} {name!r}: {holder.name!r} of distribution {holder.distribution!r} and {source.name!r} "
            f"of distribution {source.distribution!r}; leave one out, for instance `zoo --without {source.name}`"
        )
