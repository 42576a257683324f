"""A project: a Feast repository with a ``zoo.toml`` that says its tasks, timezone and registry; stores are feature_store.yaml's."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.address import LOCAL, shown
from zoo.errors import UsageError, choices
from zoo.policy import Policy

FILE = "zoo.toml"
_ZOO = {"timezone", "registry", "artefacts"}
_LOG = {"user_id": str, "item_id": str, "clock": str, "timezone": str, "event_types": list, "session": bool, "extra": dict}
_STACK = {"refit": bool, "calibration": str, "price": float, "cost_ratio": float, "capacity": float, "gap": str}
_TASK = {"members", "folds", "final", "params", "seed", "task", "seeds", "bagging", "serving", "tune", *_STACK}
"""Keys of a task's table that training reads; the rest belongs to the task."""


@dataclass(frozen=True)
class TaskSettings:
    """``[tasks.NAME]``: members of the stack, how they are trained, and the task's own settings.

    task: the task's kind where the table has another name (two churn horizons in one project). params: model name -> its parameters.
    final: the final model's name; None: chosen on later rows, or the default of the target's kind. seeds, bagging: by member, how many
    seeds are averaged, and the share of the rows that each is fitted on. refit: whether members are fitted again on all training rows;
    None for the default of the task's kind. calibration: its kind; None: chosen on later rows. price: what a millisecond a row is worth in
    log-loss. cost_ratio: how many needless acts a missed positive costs. capacity: rows, or a share of them, that can be acted on.
    gap: a duration between the last label of training and the first test row; None: one label window. serving: what an answer may lack.
    tune: member -> parameter -> what ``zoo tune`` tries of it.
    """

    name: str
    task: str
    members: tuple[str, ...]
    folds: int = 4
    final: str | None = None
    seed: int = 0
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    bagging: Mapping[str, float] = field(default_factory=dict)
    refit: bool | None = None
    calibration: str | None = None
    price: float = 0.0
    cost_ratio: float | None = None
    capacity: float | None = None
    gap: str | None = None
    serving: Policy = field(default_factory=Policy)
    tune: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class IngestSettings:
    """``[ingest]``: how files become events. columns: a file's name -> the log's. time_unit: of whole-number times (s, ms, us, ns)."""

    columns: Mapping[str, str] = field(default_factory=dict)
    time_unit: str | None = None


@dataclass(frozen=True)
class Project:
    """What ``zoo.toml`` says, checked.

    root: the repository's folder. timezone: for calendar features and naive input. registry: SQLAlchemy URL. artefacts_url: where artefacts
    are kept, an address of fsspec's, absolute; None for the folder ``artefacts``, which has copies of them otherwise.
    log: ``[log]``, the schema of an event log that has to be made (fields of ``LogSchema``); empty where the file does not say.
    service: ``[service]`` as it stands; ``zoo.service`` checks it. traces: answers whose traces are kept (``[traces] keep``), 0 for none.
    """

    root: Path
    timezone: str
    registry: str
    tasks: Mapping[str, TaskSettings]
    ingest: IngestSettings = field(default_factory=IngestSettings)
    log: Mapping[str, Any] = field(default_factory=dict)
    service: Mapping[str, Any] = field(default_factory=dict)
    traces: int = 0
    artefacts_url: str | None = None

    @classmethod
    def open(cls, root: Path | str = ".") -> Project:
        """Read ``zoo.toml`` in a folder. Raises UsageError where it is missing, is not TOML or has unknown keys."""
        folder = Path(root).resolve()
        path = folder / FILE
        if not path.is_file():
            raise UsageError(
                f"no {FILE} in {folder}; name a project with --repo DIR, or make one with: zoo init DIR --events FILE"
            )
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not TOML: {error}") from error
        top = raw.get("zoo", {})
        for key in raw:
            if key not in ("zoo", "tasks", "ingest", "log", "service", "traces"):
                raise UsageError(f"{path}: {choices('table', key, ('zoo', 'log', 'ingest', 'service', 'traces', 'tasks.NAME'))}")
        for key in top:
            if key not in _ZOO:
                raise UsageError(f"{path}: {choices('key in [zoo]', key, _ZOO)}")
        tasks = {name: _task(path, name, table) for name, table in raw.get("tasks", {}).items()}
        registry = top.get("registry", "sqlite:///data/registry.db")
        return cls(
            folder,
            top.get("timezone", "UTC"),
            registry,
            tasks,
            _ingest(path, raw.get("ingest", {})),
            _log(path, raw.get("log", {})),
            _service(path, raw.get("service", {})),
            _traces(path, raw.get("traces", {})),
            _address(path, top.get("artefacts")),
        )

    def task(self, name: str) -> TaskSettings:
        """Settings of a task. Raises UsageError with the choices."""
        if name not in self.tasks:
            raise UsageError(f"{choices('task', name, self.tasks)}. Tasks are tables [tasks.NAME] in {self.root / FILE}")
        return self.tasks[name]

    @property
    def data(self) -> Path:
        """Where everything made lies."""
        return self.root / "data"

    @property
    def artefacts(self) -> Path:
        return self.data / "artefacts"

    @property
    def cache(self) -> Path:
        return self.data / "cache"

    @property
    def registry_url(self) -> str:
        """The registry's URL, a relative SQLite path taken from the project's folder."""
        prefix = "sqlite:///"
        if self.registry.startswith(prefix) and not self.registry.startswith(prefix + "/"):
            return f"{prefix}{self.root / self.registry[len(prefix) :]}"
        return self.registry


def _log(path: Path, table: Any) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: log is {type(table).__name__}; expected a table [log]")
    for key in table:
        if key not in _LOG:
            raise UsageError(f"{path}: {choices('key in [log]', key, _LOG)}")
        if not isinstance(table[key], _LOG[key]):
            raise UsageError(f"{path}: [log] {key} is {table[key]!r}; expected {_LOG[key].__name__}")
    return table


def _service(path: Path, table: Any) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: service is {type(table).__name__}; expected a table [service]")
    return table


def _address(path: Path, value: Any) -> str | None:
    """The address, a relative path taken from the project's folder."""
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9+.-]*://.+", value):
        seen = repr(shown(value) if isinstance(value, str) else value)
        raise UsageError(f'{path}: [zoo] artefacts is {seen}; expected an address of fsspec\'s, as in "s3://bucket/zoo"')
    kind, _, place = value.partition("://")
    if kind == "memory":
        raise UsageError(
            f"{path}: [zoo] artefacts is {value!r}, and what is in memory ends with each process; "
            'expected an address that stays, as in "s3://bucket/zoo" or "file:///mnt/zoo"'
        )
    return f"{kind}://{path.parent / place}" if kind in LOCAL and not place.startswith("~") else value


def _traces(path: Path, table: Any) -> int:
    keep = table.get("keep", 0) if isinstance(table, dict) and table.keys() <= {"keep"} else None
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 0:
        raise UsageError(f"{path}: [traces] is {table!r}; expected keep = 100000, how many answers' traces are kept, 0 for none")
    return keep


def _ingest(path: Path, table: Any) -> IngestSettings:
    columns, unit = (table.get("columns", {}), table.get("time_unit")) if isinstance(table, dict) else (None, None)
    if not isinstance(columns, dict) or not all(isinstance(name, str) for name in columns.values()):
        raise UsageError(f'{path}: [ingest] is {table!r}; expected columns = {{ "the file\'s name" = "the log\'s" }}')
    if unit is not None and unit not in ("s", "ms", "us", "ns"):
        raise UsageError(f"{path}: {choices('time_unit in [ingest]', unit, ('s', 'ms', 'us', 'ns'))}")
    for key in table:
        if key not in ("columns", "time_unit"):
            raise UsageError(f"{path}: {choices('key in [ingest]', key, ('columns', 'time_unit'))}")
    return IngestSettings(columns, unit)


def _task(path: Path, name: str, table: Any) -> TaskSettings:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: tasks.{name} is {type(table).__name__}; expected a table [tasks.{name}]")
    members = table.get("members")
    if not isinstance(members, list) or not members or not all(isinstance(m, str) for m in members):
        raise UsageError(f'{path}: [tasks.{name}] members is {members!r}; expected a list of model names such as ["gbdt", "gru"]')
    for key, kind in {"folds": int, "seed": int, "final": str, "params": dict, "task": str, "tune": dict}.items():
        if key in table and not isinstance(table[key], kind):
            raise UsageError(f"{path}: [tasks.{name}] {key} is {table[key]!r}; expected {kind.__name__}")
    params = table.get("params", {})
    for model in params:
        if model not in (*members, table.get("final")):
            raise UsageError(
                f"{path}: [tasks.{name}.params.{model}] names no member and no final model; members are: {', '.join(members)}"
            )
    for key, kind in _STACK.items():
        if key in table and not (isinstance(table[key], kind) or (kind is float and type(table[key]) is int)):
            raise UsageError(f"{path}: [tasks.{name}] {key} is {table[key]!r}; expected {kind.__name__}")
    for key in ("price", "cost_ratio", "capacity"):
        if key in table and not table[key] > 0:
            raise UsageError(f"{path}: [tasks.{name}] {key} is {table[key]!r}; expected a number above 0")
    known = {k: table[k] for k in ("folds", "final", "seed", "tune", *_STACK) if k in table}
    known |= {
        "seeds": _by_member(path, name, table, "seeds", int, 1, 32),
        "bagging": _by_member(path, name, table, "bagging", float, 0.01, 1),
    }
    own = {k: v for k, v in table.items() if k not in _TASK}
    serving = Policy.of(table.get("serving", {}), members, f"{path}: [tasks.{name}.serving]")
    return TaskSettings(name, table.get("task", name), tuple(members), params=params, own=own, serving=serving, **known)


def _by_member(path: Path, name: str, table: Any, key: str, kind: type, low: float, high: float) -> dict[str, Any]:
    """One number for all members, or a table with one for some."""
    members: list[str] = table["members"]
    given = table.get(key, {})
    out = given if isinstance(given, dict) else dict.fromkeys(members, given)
    for member, value in out.items():
        if member not in members:
            raise UsageError(f"{path}: {choices(f'member in {key} of [tasks.{name}]', member, members)}")
        number = isinstance(value, int | float) and not isinstance(value, bool) and (kind is float or isinstance(value, int))
        if not (number and low <= value <= high):
            raise UsageError(f"{path}: [tasks.{name}] {key} is {value!r}; expected {kind.__name__} from {low:g} to {high:g}")
    return dict(out)
