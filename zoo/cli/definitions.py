"""The text of a new project's files: Feast definitions, feature_store.yaml and zoo.toml. It decides nothing.

Long because it is mostly the text of those files, which is read best in one piece.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from zoo.cli.shape import SEQUENCES, Shape

if TYPE_CHECKING:
    from zoo.project import IngestSettings

FEAST = {"int": "Int64", "string": "String", "int64": "Int64", "float64": "Float64", "bool": "Bool"}
"""A log's types by their names in Feast."""
STEPS = 60
"""Newest events, and visits, of a user that sequences hold."""


def files(shape: Shape, project: str, ingest: IngestSettings) -> dict[str, str]:
    """Name -> content of every file, ``zoo.toml`` last: a folder with it is a project."""
    out = {
        ".gitignore": "data/\n",
        "feature_store.yaml": _store(project),
        "entities.py": _entities(shape),
        "events.py": _events(shape),
        "sequences.py": _sequences(shape),
        "activity.py": _activity(shape),
    }
    if shape.item_columns or shape.user_columns:
        out["profiles.py"] = _profiles(shape)
    out["services.py"] = _services(shape)
    out["zoo.toml"] = _toml(shape, ingest)
    return out


def _store(project: str) -> str:
    return f"""project: {project}
provider: local
registry: data/feast_registry.db
entity_key_serialization_version: 3
coerce_tz_aware: false # the store takes naive times as UTC itself; Feast's own pass over the rows takes as long as the search
offline_store:
  type: zoo.stores.EventLogOfflineStore
  log: data/log
  # What "now" is. log_end: just after the newest event, for a log that has ended; a push then moves it for every user.
  # For a shop that is running, set wall before the first push.
  clock: log_end
online_store:
  type: zoo.stores.SqliteEventOnlineStore
  path: data/online.db
"""


def _entities(shape: Shape) -> str:
    lines = [
        '"""Who and what features are about."""',
        "",
        "from feast import Entity, ValueType",
        "",
    ]
    for name, what in (("user", "Someone who does things in the shop"), ("item", "Something that the shop offers")):
        kind = FEAST[shape.schema.id_type(f"{name}_id")].upper()
        lines.append(
            f'{name} = Entity(name="{name}", join_keys=["{name}_id"], value_type=ValueType.{kind}, description="{what}")'
        )
    return _joined(lines)


def _events(shape: Shape) -> str:
    schema = shape.schema
    kinds = {"item_id": FEAST[schema.item_id], "event_type": "String", "event_id": "String"}
    if not shape.timed:
        kinds["position"] = "Int64"
    if schema.session:
        kinds["session"] = "String"
    kinds |= dict.fromkeys(shape.money, "Float64") | {name: FEAST[kind] for name, kind in schema.extra.items()}
    return _joined(
        [
            '"""The raw events, and the one door through which new ones are pushed: ``store.push("events", frame)``."""',
            "",
            "from datetime import timedelta",
            "",
            "from entities import user",
            "from feast import FeatureView, Field, PushSource",
            f"from feast.types import {', '.join(sorted(set(kinds.values())))}",
            "",
            "from zoo.stores import EventSource",
            "",
            'raw = EventSource(name="event_log", description="Every event as it was logged")',
            "",
            'push = PushSource(name="events", batch_source=raw)',
            "",
            "events = FeatureView(",
            '    name="events",',
            "    entities=[user],",
            "    ttl=timedelta(0),",
            "    source=push,",
            "    schema=[",
            *(f'        Field(name="{name}", dtype={kind}),' for name, kind in kinds.items()),
            "    ],",
            ")",
        ]
    )


def _sequences(shape: Shape) -> str:
    columns = {"items": "item_id", "event_types": "event_type"}
    if shape.category:
        columns["categories"] = f"items.{shape.category}"
    columns |= {SEQUENCES[name]: name for name in shape.money}
    if shape.timed:
        columns |= {"gaps": "gap", "waits": "wait", "ages": "age"}
    lines = [
        f"EVENTS = {STEPS}  # newest events of a user",
        *_aggregation("user_events", "user_id", [f'last_n("{name}", "{column}", EVENTS),' for name, column in columns.items()]),
        *_view(shape, "user_sequence", "user", "user_events", "A user's newest events, aligned, oldest first"),
    ]
    if shape.next_item:
        names = {"items": "item_id", "event_types": "event_type"} | ({"gaps": "gap", "ages": "age"} if shape.timed else {})
        lines += [
            "",
            "HISTORY = 20_000  # newest events of a user that recommendations are learnt and made from, and that exclude_seen knows",
            *_aggregation("history", "user_id", [f'last_n("{name}", "{column}", HISTORY),' for name, column in names.items()]),
            *_view(shape, "user_history", "user", "history", "A user's events, as long as histories are, aligned, oldest first"),
        ]
    if shape.timed:
        visit = [
            *(
                f'last_n("visit_{name}", "{column}", VISITS, step="visit"),'
                for name, column in (("gaps", "gap"), ("waits", "wait"), ("ages", "age"))
            ),
            'last_n("visit_events", "item_id", VISITS, step="visit", of="count"),',
            'last_n("visit_items", "item_id", VISITS, step="visit", of="distinct"),',
            'last_n("visit_types", "event_type", VISITS, step="visit", of="distinct"),',
            *(
                f'last_n("visit_{SEQUENCES[name]}", "{name}", VISITS, step="visit", of="sum"),'
                for name in shape.money
                if name != "price"
            ),
            'last_n("visit_hours", "hour", VISITS, step="visit"),',
            'last_n("visit_weekdays", "weekday", VISITS, step="visit"),',
        ]
        what = "a session of the log" if shape.schema.session else "a run of events without half an hour of silence"
        users = ['last_n("item_users", "user_id", EVENTS),', 'last_n("item_event_types", "event_type", EVENTS),']
        lines += [
            "",
            f"VISITS = {STEPS}  # newest visits of a user; a visit is {what}",
            *_aggregation("visits", "user_id", visit),
            *_view(shape, "user_visits", "user", "visits", "A user's newest visits, aligned, oldest first"),
            "",
            *_aggregation("item_events", "item_id", [*users, 'last_n("item_ages", "age", EVENTS),']),
            *_view(shape, "item_sequence", "item", "item_events", "Who did something with an item last"),
        ]
    doc = "What a user did, in order, and who did something with an item last." if shape.timed else "What a user did, in order."
    return _module(doc, lines, ["last_n"])


def _activity(shape: Shape) -> str:
    lines, user, item = [], [], []
    if shape.timed:
        lines.append(f"WINDOWS = {_tuple(shape.windows)}")
    if shape.types:
        listed = [f"    {_text(name)}: {_text(kind)}," for name, kind in shape.types.items()]
        lines += ["TYPES = {  # name in a feature: event type in the log", *listed, "}"]
    if shape.bought:
        lines.append(f"BOUGHT = ({_text(shape.bought)},)")
    if shape.churn:
        lines.append(f'HORIZON = "{shape.churn.horizon}"  # of the churn task')
    only = ", where=BOUGHT" if shape.bought else ""
    if not shape.timed:
        user += ['count("user_events"),', 'distinct("user_items", "item_id"),']
        user += [f'distinct("user_categories", "items.{shape.category}"),'] if shape.category else []
        user += ['*(count(f"user_{name}", where=(kind,)) for name, kind in TYPES.items()),'] if shape.types else []
        lines += _aggregation("user_counts", "user_id", user)
        lines += _view(shape, "user_activity", "user", "user_counts", "How much a user did")
        return _module("How much a user did. A log that knows only an order has no windows and no item side.", lines, _used(user))
    user += [
        '*(count(f"user_events_{w}", w) for w in WINDOWS),',
        '*(count(f"user_visits_{w}", w, step="visit") for w in WINDOWS),',
        '*(distinct(f"user_days_{w}", "day", w) for w in WINDOWS),',
        '*(distinct(f"user_items_{w}", "item_id", w) for w in WINDOWS),',
    ]
    if shape.category:
        user.append(f'*(distinct(f"user_categories_{{w}}", "items.{shape.category}", w) for w in WINDOWS),')
    if shape.types:
        user += [
            '*(count(f"user_{name}_{w}", w, where=(kind,)) for name, kind in TYPES.items() for w in WINDOWS),',
            '*(recency(f"user_{name}_recency", where=(kind,)) for name, kind in TYPES.items()),',
        ]
    for name in shape.money:
        make = "mean" if name == "price" else "total"
        user.append(f'*({make}(f"user_{name}_{{w}}", "{name}", w{only}) for w in WINDOWS),')
    user += [f'*(decayed(f"user_visits_half_{{w}}", w{only}, step="visit") for w in WINDOWS),']
    if shape.churn:
        only_churn = only if shape.churn.event_type == shape.bought else f", where=({_text(shape.churn.event_type)},)"
        user.append(f'quiet("user_quiet", HORIZON{only_churn}, step="visit"),')
        user.append(f'survival("user_survival", HORIZON{only_churn}, step="visit"),')
    user += ['count("user_visits", step="visit"),', 'recency("user_recency"),', 'tenure("user_tenure"),']
    item += [
        '*(count(f"item_events_{w}", w) for w in WINDOWS),',
        '*(distinct(f"item_users_{w}", "user_id", w) for w in WINDOWS),',
    ]
    if shape.bought:
        item.append('*(count(f"item_bought_{w}", w, where=BOUGHT) for w in WINDOWS),')
    item.append('recency("item_recency"),')
    lines += [
        *_aggregation("user_windows", "user_id", user),
        *_view(shape, "user_activity", "user", "user_windows", "How much, how often and how long ago a user did something"),
        "",
        *_aggregation("item_windows", "item_id", item),
        *_view(
            shape,
            "item_activity",
            "item",
            "item_windows",
            "How much, how often and how long ago users did something with an item",
        ),
    ]
    return _module(
        "How much, how often and how long ago: windows over the events of users and items.", lines, _used([*user, *item])
    )


def _profiles(shape: Shape) -> str:
    entities = [name for name, columns in (("item", shape.item_columns), ("user", shape.user_columns)) if columns]
    kinds = sorted({*shape.item_columns.values(), *shape.user_columns.values()})
    lines = [
        '"""What is known of items and users apart from events.',
        "",
        "A table is the same at all times: take out columns that were computed from events (a count of sales, an average",
        'price), or training sees what came later."""',
        "",
        f"from entities import {', '.join(entities)}",
        "from feast import FeatureView, Field",
        f"from feast.types import {', '.join(kinds)}",
        "",
        "from zoo.stores import TableSource",
        "",
    ]
    for name, columns in (("user", shape.user_columns), ("item", shape.item_columns)):
        if columns:
            lines += [
                f"{name.upper()} = {{",
                *(f"    {_text(column)}: {kind}," for column, kind in columns.items()),
                "}",
                f"{name}_profile = FeatureView(",
                f'    name="{name}_profile",',
                f"    entities=[{name}],",
                f'    source=TableSource(name="{name}s", table="{name}s", columns=tuple({name.upper()})),',
                f"    schema=[Field(name=name, dtype=kind) for name, kind in {name.upper()}.items()],",
                f'    description="What is known of {"an item" if name == "item" else "a user"}",',
                ")",
            ]
    return _joined(lines)


def _services(shape: Shape) -> str:
    users = [
        "user_activity",
        *(["user_visits"] if shape.timed else []),
        "user_sequence",
        *(["user_profile"] if shape.user_columns else []),
    ]
    items = [*(["item_activity", "item_sequence"] if shape.timed else []), *(["item_profile"] if shape.item_columns else [])]
    activity = sorted({"user_activity", *items} & {"user_activity", "item_activity"}, reverse=False)
    history = ["user_history"] if shape.next_item else []
    sequences = sorted({*users, *items, *history} & {"user_history", "user_visits", "user_sequence", "item_sequence"})
    profiles = sorted({*users, *items} & {"user_profile", "item_profile"})
    lines = [
        '"""One feature service a task."""',
        "",
        f"from activity import {', '.join(activity)}",
        "from feast import FeatureService",
        *([f"from profiles import {', '.join(profiles)}"] if profiles else []),
        f"from sequences import {', '.join(sequences)}",
        "",
        f'{shape.service} = FeatureService(name="{shape.service}", features=[{", ".join(users)}])',
    ]
    if shape.behaviour:
        lines.append(f'behaviour = FeatureService(name="behaviour", features=[{", ".join(users)}])')
    if history:
        lines.append('recommendation = FeatureService(name="recommendation", features=[user_history])')
    if items:
        lines.append(f'items = FeatureService(name="items", features=[{", ".join(items)}])')
    return _joined(lines)


def _toml(shape: Shape, ingest: IngestSettings) -> str:
    lines = [
        "# Tasks of this log. Where things are stored is said in feature_store.yaml.",
        "[zoo]",
        f"timezone = {_text(shape.schema.timezone or 'UTC')}",
        'registry = "sqlite:///data/registry.db"',
    ]
    schema = shape.schema
    lines += [
        "",
        "[log]  # the event log's schema, fixed once there is one: `zoo ingest` makes the log by it where there is none",
        f'user_id = "{schema.user_id}"',
        f'item_id = "{schema.item_id}"',
        f'clock = "{schema.clock}"',
        *([f"timezone = {_text(schema.timezone)}"] if schema.timezone else []),
        f"session = {str(schema.session).lower()}",
    ]
    if schema.extra:
        lines.append(f"extra = {{ {', '.join(f'{name} = {_text(kind)}' for name, kind in schema.extra.items())} }}")
    if ingest.columns or ingest.time_unit:
        lines += ["", "[ingest]  # how `zoo ingest FILE` reads files such as the one that this project was made from"]
        if ingest.time_unit:
            lines.append(f'time_unit = "{ingest.time_unit}"')
        if ingest.columns:
            lines += ["", "[ingest.columns]  # the file's name = the log's"]
            lines += [f"{_text(theirs)} = {_text(ours)}" for theirs, ours in ingest.columns.items()]
    if shape.churn is None:
        lines += ["", f"# No [tasks.churn]: {shape.no_churn}."]
    else:
        lines += [
            "",
            f"# Of the users with a {_text(shape.churn.event_type)} in the last {shape.churn.active},",
            f"# who has none in the next {shape.churn.horizon}?",
            "[tasks.churn]",
            f"members = [{', '.join(map(_text, shape.members))}]",
            f"event_type = {_text(shape.churn.event_type)}",
            f'active = "{shape.churn.active}"',
            f'horizon = "{shape.churn.horizon}"',
            f'every = "{shape.churn.horizon}"  # how far apart the training cuts are',
        ]
    if shape.behaviour:
        members = f"members = [{', '.join(map(_text, shape.behaviour))}]"
        lines += [
            "",
            "# What does a user do next after each event, within the horizon: one of the log's event types, or nothing?",
            "[tasks.behaviour]",
            members,
            f'horizon = "{shape.horizons[0]}"',
        ]
        if shape.bought:
            lines += [
                "",
                f"# Does a {_text(shape.bought)} follow after each event, within the horizon?",
                "[tasks.propensity]",
                members,
                f"event_type = {_text(shape.bought)}",
                f'horizon = "{shape.horizons[1]}"  # a duration, or "session": before the running session ends',
            ]
    if shape.next_item:
        lines += [
            "",
            f"# Which item does a user take next, by a {_text(shape.next_item)}?",
            "[tasks.recommendation]",
            f"members = [{', '.join(map(_text, shape.ranking))}]",
            f"event_type = {_text(shape.next_item)}",
            'protocol = "leave_one_out"  # tested on every user\'s last one; time_cut with a test_start is stricter',
            "exclude_seen = true  # false where people take the same item again"
            if len(shape.types) == 1
            else "exclude_seen = false  # an item that was viewed is often what is taken next; true leaves out all that a history holds",
        ]
    return _joined(lines)


def _module(doc: str, lines: list[str], specs: Iterable[str]) -> str:
    """A definition module: what it imports, then the lines."""
    text = "\n".join(lines)
    kinds = sorted({kind for kind in ("Int64", "String") if f"={kind}" in text})
    entities = [name for name in ("item", "user") if f"entities=[{name}]" in text]
    head = [
        f'"""{doc}"""',
        "",
        f"from entities import {', '.join(entities)}",
        "from feast import FeatureView",
        *([f"from feast.types import {', '.join(kinds)}"] if kinds else []),
        "",
        f"from zoo.events.specs import {', '.join(['Aggregation', *sorted(specs)])}",
        "from zoo.stores import EventSource",
        "from zoo.stores.source import schema_of",
        "",
    ]
    return _joined([*head, *lines])


def _used(features: Iterable[str]) -> list[str]:
    """The spec functions that these lines call."""
    text = "\n".join(features)
    return [
        name
        for name in ("count", "decayed", "distinct", "mean", "quiet", "recency", "survival", "tenure", "total")
        if f"{name}(" in text
    ]


def _aggregation(name: str, entity: str, features: Iterable[str]) -> list[str]:
    return [f"{name} = Aggregation(", f'    ("{entity}",),', "    (", *(f"        {line}" for line in features), "    ),", ")"]


def _view(shape: Shape, name: str, entity: str, aggregation: str, description: str) -> list[str]:
    types = [f"{key}=String" for key in ("item_id", "user_id") if shape.schema.id_type(key) == "string"]
    if shape.category and aggregation == "user_events":
        types.append(f'text=("items.{shape.category}",)')
    return [
        f"{name} = FeatureView(",
        f'    name="{name}",',
        f"    entities=[{entity}],",
        f'    source=EventSource(name="{aggregation}", aggregation={aggregation}),',
        f"    schema=schema_of({', '.join([aggregation, *types])}),",
        f'    description="{description}",',
        ")",
    ]


def _tuple(values: Iterable[str]) -> str:
    listed = [_text(value) for value in values]
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


def _text(value: str) -> str:
    """A string literal that Python and TOML both read."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which TOML does not take as it is


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
