"""What a new project should hold, decided from what its files hold: windows, types, columns, a churn task where one makes sense."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from zoo.cli.survey import Survey
    from zoo.events.schema import LogSchema
    from zoo.manager import Plugins

DAY = 86_400
LADDER = {"5m": 300, "15m": 900, "1h": 3600, "6h": 21_600} | {f"{d}d": d * DAY for d in (1, 3, 7, 14, 28, 56, 112)}
"""Windows to choose from, in seconds."""
HORIZONS = (28, 14, 7, 3, 1)
"""Label windows to choose from, in days."""
SPAN = 12
"""Label windows that a log must hold: four to look back, six cuts, one between training and test, one to test."""
PURCHASES = ("purchase", "buy", "order", "transaction", "sale", "purchased", "bought")
CATEGORIES = ("category", "category_code", "category_name", "category_id", "department", "brand")
TYPES = 8
"""Event types with counts of their own, at most."""
SEQUENCES = {"value": "values", "price": "prices", "quantity": "quantities"}
"""Amounts of an event, and the sequences of them."""
VISITS = ("gaps", "waits", "ages", "events", "items", "types", "hours", "weekdays", *SEQUENCES.values())
"""What is said of a user's visits."""
COUNTED = ("events", "visits", "visits_half", "days", "items", "categories", *SEQUENCES)
"""What is counted of a user's events, beside the event types."""


RANKING = ("popularity", "covisit", "itemknn")
"""Members of a recommendation, where they are installed: those that are fitted in seconds."""


OWN = "feature-zoo"
"""The distribution whose models are final models, and a plain one for trials; a stack is made of plugins'."""
BEHAVIOUR = ("gbdt", "gru")
"""Members of a model of what a user does next, where they are installed: its rows are as many as events, so those that are fast."""
BEHAVIOUR_SPAN = 12 * DAY
"""Seconds that a log must hold before it is asked what users do within a day."""


@dataclass(frozen=True)
class Churn:
    """The settings of ``[tasks.churn]``."""

    event_type: str
    horizon: str
    active: str


@dataclass(frozen=True)
class Shape:
    """What the project's files say.

    types: a name for features -> the event type. bought: the event type of a purchase, if there is one. money: amounts that events
    have. item_columns, user_columns: column -> its Feast type. members, ranking: models of churn and of a recommendation.
    next_item: the event type that is recommended for, if any may be. behaviour: models of what a user does next, none where that is
    not asked. horizons: how far behaviour and propensity look ahead. no_churn, no_ranking: why there is none. left_out: what is not used ->
    why.
    """

    schema: LogSchema
    filled: frozenset[str]
    types: Mapping[str, str]
    bought: str | None
    windows: tuple[str, ...]
    churn: Churn | None
    no_churn: str
    money: tuple[str, ...]
    category: str | None
    item_columns: Mapping[str, str]
    user_columns: Mapping[str, str]
    members: tuple[str, ...]
    ranking: tuple[str, ...]
    next_item: str | None
    left_out: Mapping[str, str]
    behaviour: tuple[str, ...] = ()
    horizons: tuple[str, ...] = ()
    no_ranking: str = ""

    @property
    def timed(self) -> bool:
        return self.schema.clock == "time"

    @property
    def service(self) -> str:
        """The feature service of users: the task's name where there is a task."""
        return "churn" if self.churn else "users"


def shape(found: Survey, items: pa.Table | None, users: pa.Table | None, plugins: Plugins) -> Shape:
    """Decide; nothing is read or written."""
    schema = found.inspection.schema
    length = (found.end - found.first) / 1e6 if schema.clock == "time" else 0.0
    left_out: dict[str, str] = {}
    kinds = list(found.event_types)
    types = _named(kinds[:TYPES]) if len(kinds) > 1 else {}
    for kind in kinds[TYPES:]:
        left_out[f"event type {kind}"] = (
            f"in the sequences, but not among the {TYPES} most frequent types, which have counts of their own"
        )
    for name in schema.extra:
        left_out[f"event column {name}"] = "kept in the log; no feature reads it until you declare one"
    bought = next((kind for name in PURCHASES for kind in kinds if kind.lower() == name), None)
    members = tuple(name for name, model in plugins.models.items() if _is_member(model.plugin.spec) and model.distribution != OWN)
    able = [name for name, model in plugins.models.items() if "ranking" in model.plugin.spec.targets]
    ranking = tuple(name for name in RANKING if name in able) or tuple(able[:1])
    windows = tuple(w for w, seconds in LADDER.items() if seconds <= length / 2)[-5:] or ("1d",)
    taken = _feature_names(types, windows)
    churn, no_churn = _churn(schema, length, bought or kinds[0], members)
    horizons = _horizons(schema, length) if len(kinds) > 1 else ()
    no_ranking = _no_ranking(found, bought or kinds[0], ranking)
    return Shape(
        schema=schema,
        filled=found.filled,
        types=types,
        bought=bought,
        windows=windows,
        churn=churn,
        no_churn=no_churn,
        money=tuple(name for name in SEQUENCES if name in found.filled),
        category=_category(items),
        item_columns=_columns("items", items, taken, left_out),
        user_columns=_columns("users", users, taken, left_out),
        members=members,
        ranking=ranking,
        next_item=None if no_ranking else (bought or kinds[0]),
        left_out=left_out,
        behaviour=_able(plugins, BEHAVIOUR, "multiclass") if horizons else (),
        horizons=horizons,
        no_ranking=no_ranking,
    )


def _is_member(spec: object, kind: str = "binary") -> bool:
    """A model of this kind of target that reads features; a final model reads members' scores."""
    inputs: Sequence[str] = getattr(spec, "inputs", ())
    return kind in getattr(spec, "targets", ()) and not any(pattern.startswith("score:") for pattern in inputs)


def _able(plugins: Plugins, names: Sequence[str], kind: str) -> tuple[str, ...]:
    """Those of the names that are installed and may be members for this kind of target."""
    return tuple(name for name in names if name in plugins.models and _is_member(plugins.models[name].plugin.spec, kind))


def _horizons(schema: LogSchema, length: float) -> tuple[str, ...]:
    """Of behaviour and of propensity; none where the log says neither times nor, in a short one, sessions."""
    if schema.clock == "order":
        return ()
    return ("1d", "7d") if length > BEHAVIOUR_SPAN else ("session", "session") if schema.session else ()


def _churn(schema: LogSchema, length: float, event_type: str, members: tuple[str, ...]) -> tuple[Churn | None, str]:
    if schema.clock == "order":
        return None, "the log knows only the order of events, and churn is about time"
    if not members:
        return None, "no installed plugin offers a binary model; install one, such as feature-zoo-gbdt, and add [tasks.churn]"
    days = next((d for d in HORIZONS if SPAN * d * DAY <= length), None)
    if days is None:
        return (
            None,
            f"the log covers {length / DAY:.1f} days; churn needs {SPAN} label windows, so at least {SPAN * HORIZONS[-1]} days",
        )
    return Churn(event_type, f"{days}d", f"{4 * days}d"), ""


def _no_ranking(found: Survey, event_type: str, ranking: tuple[str, ...]) -> str:
    """Why there is no recommendation; empty where there is one."""
    if not ranking:
        return "no installed plugin ranks items; install one, such as feature-zoo-neighbours, and add [tasks.recommendation]"
    if found.items < 2:
        return f"the events name {found.items} items, and a ranking needs at least 2"
    if event_type not in found.repeated:
        return (
            f"no user has three events, two of them of type {event_type}: the last is the test's, the one before chooses, and what came "
            "earlier is learnt from. Run `zoo init` again once there are more"
        )
    return ""


def _named(kinds: Sequence[str]) -> dict[str, str]:
    """A plain, unique name for each event type."""
    out: dict[str, str] = {}
    for kind in kinds:
        plain = re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_") or "type"
        names = (plain, *(f"{plain}_{number}" for number in range(2, len(kinds) + 2)))
        out[next(name for name in names if name not in out and name not in COUNTED)] = kind
    return out


def _feature_names(types: Mapping[str, str], windows: Sequence[str]) -> set[str]:
    """Names that features of users and items may have, which a column of an entity table then may not."""
    user = [f"{name}{end}" for name in (*COUNTED, *types) for end in ("", "_recency", *(f"_{w}" for w in windows))]
    item = [f"{name}_{w}" for name in ("events", "users", "bought") for w in windows]
    return {
        *("items", "event_types", "categories", "gaps", "waits", "ages", *SEQUENCES.values()),
        *(f"user_{name}" for name in (*user, "quiet", "survival", "recency", "tenure")),
        *(f"visit_{name}" for name in VISITS),
        *(f"item_{name}" for name in (*item, "users", "event_types", "ages", "recency")),
    }


def _category(items: pa.Table | None) -> str | None:
    """The item table's column that says what sort of item it is: a known name, else text whose values repeat."""
    import pyarrow as pa

    if items is None:
        return None
    text = [f.name for f in items.schema if f.name not in ("item_id", "title") and _is_text(f.type)]
    known = [name for name in CATEGORIES if name in text]
    repeated = [name for name in text if len(items[name].unique()) * 5 <= len(items)]
    assert isinstance(items, pa.Table)
    return next(iter([*known, *repeated]), None)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _columns(name: str, table: pa.Table | None, taken: set[str], left_out: dict[str, str]) -> dict[str, str]:
    """Column -> Feast type of what a profile can hold."""
    import pyarrow as pa

    out: dict[str, str] = {}
    for field in [] if table is None else list(table.schema)[1:]:
        if field.name == "title" and name == "items":
            continue
        if field.name in taken:
            left_out[f"{name}.{field.name}"] = "kept in the table; its name is that of a feature, so rename it to use it"
        elif _is_text(field.type):
            out[field.name] = "String"
        elif pa.types.is_temporal(field.type):
            left_out[f"{name}.{field.name}"] = "kept in the table; profiles hold text and numbers, and this is a time"
        else:
            out[field.name] = "Float64"
    return out
