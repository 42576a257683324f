"""What requests and answers look like: the types that check a body and that OpenAPI documents, each with an example.

Long because it is the whole contract of ``/v1`` on one page: most lines are descriptions and examples that the OpenAPI document shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from zoo.errors import choices

MAX_ROWS = 10_000
"""Rows of one request, and events of one push."""
DEADLINE = {
    "parameters": [
        {
            "name": "X-Deadline-Ms",
            "in": "header",
            "description": "Milliseconds that the caller waits; then the answer is 504, or 503 at once where it could not be in time.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
        }
    ]
}
"""What the OpenAPI document says of routes that take a deadline; ``Guard`` keeps it."""
MAX_KEY = 200
"""Characters of an idempotency key; the log's own limit."""

Id = StrictInt | StrictStr
Value = StrictInt | StrictFloat | StrictBool | StrictStr | None
Score = float | dict[str, float]


def example(value: Mapping[str, Any], extra: Literal["forbid", "ignore"] = "ignore") -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [dict(value)]}, extra=extra)


class Request(BaseModel):
    """A JSON object without other fields than those declared."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        # pydantic's own refusal (extra="forbid") does not say which fields there are
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(choices("field", name, cls.model_fields))
        return value


AT = Field(
    None,
    description="ISO 8601 instant with an offset; features are built from events before it. Default: the repository's clock.",
    json_schema_extra={"format": "date-time"},
)


def read_instant(text: str | None) -> datetime | None:
    """An aware datetime. Raises ValueError where the text is none."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"cannot read at {text!r}; expected ISO 8601 such as 2017-12-01T00:00:00Z") from None
    if found.tzinfo is None:
        raise ValueError(f"at {text!r} has no offset; expected an instant such as 2017-12-01T00:00:00Z")
    return found


class PredictRequest(Request):
    """Whom to predict for: ``rows`` of key and context columns, or ``users`` for tasks whose only key is ``user_id``."""

    model_config = example({"model": "churn", "rows": [{"user_id": 1}, {"user_id": 42}], "at": None}, extra="forbid")

    model: StrictStr = Field(description="A model's name, as in GET /v1/models.")
    rows: list[dict[str, Value]] | None = Field(
        None,
        max_length=MAX_ROWS,
        description="One object a row: the model's key columns, and its context columns where it has some.",
    )
    users: list[Id] | None = Field(None, max_length=MAX_ROWS, description='Short for rows of {"user_id": ...}.')
    at: StrictStr | None = AT

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.rows is None) == (self.users is None):
            raise ValueError("give either rows or users, one of them")
        self.instant()
        return self

    def instant(self) -> datetime | None:
        """``at`` as an aware datetime. Raises ValueError where it is none."""
        return read_instant(self.at)


class Answer(BaseModel):
    """The prediction for one row. Scores are numbers, or an object of one number a class where the model has several."""

    keys: dict[str, Id]
    score: Score = Field(description="The ensemble's answer.")
    members: dict[str, Score | None] = Field(description="What each of its members said; null for one that is missing.")
    newest_event_age: float | None = Field(
        description="Seconds from the user's newest event to the prediction's time; null for none."
    )
    known: bool | None = Field(
        description="False: no event of this user before that time; the score is that of an empty history. Null: the store did not say."
    )
    version: str = Field(description="The model version that answered.")
    missing: list[str] = Field(description="Members that failed, were late or gave no number; the answer is that of the others.")
    calibrated: bool | None = Field(
        description="Whether answers that lack these members were off by no more than the policy's bound on test rows; null: not known, "
        "as of features that are not fresh."
    )
    features: Literal["fresh", "last_known", "cold"] = Field(
        description="Where the features are from: the store, or, while it does not answer, what the task's policy has instead."
    )
    id: str = Field(description="Of this answer; `zoo trace ID` shows what it was made of, where the project keeps traces.")


class Predictions(BaseModel):
    """One answer a row, in the order of the rows."""

    model_config = example(
        {
            "answers": [
                {
                    "keys": {"user_id": 42},
                    "score": 0.31,
                    "members": {"gbdt": 0.28, "gru": 0.35},
                    "newest_event_age": 86400.5,
                    "known": True,
                    "version": "churn@3",
                    "missing": [],
                    "calibrated": True,
                    "features": "fresh",
                    "id": "5f0c7d2a91be44d3-0",
                }
            ]
        }
    )

    answers: list[Answer]


MAX_EXPLAINED = 100
"""Rows of one request for explanations: each costs what many predictions do."""


class ExplainRequest(PredictRequest):
    """Whom to explain the score of, as in a request for predictions, and in what detail."""

    model_config = example(
        {"model": "churn", "users": [42], "at": None, "output": None, "top": 10, "events": 10},
        extra="forbid",
    )

    rows: list[dict[str, Value]] | None = Field(
        None,
        max_length=MAX_EXPLAINED,
        description="One object a row: the model's key columns, and its context columns where it has some.",
    )
    users: list[Id] | None = Field(None, max_length=MAX_EXPLAINED, description='Short for rows of {"user_id": ...}.')
    output: StrictStr | None = Field(
        None, description="One of the model's outputs (classes, horizons), where it has several. Default: each row's likeliest."
    )
    top: StrictInt = Field(10, ge=1, le=100, description="Columns of each member to list, the strongest first.")
    events: StrictInt = Field(10, ge=0, le=50, description="Newest events of each sequence to leave out, one at a time.")


class MovedColumn(BaseModel):
    column: str
    moved: float = Field(description="How much it moved the member's own raw score.")


class MovedEvent(BaseModel):
    """An event of the row's own, and how much lower scores would be without it."""

    sequence: str = Field(description="The first column of the sequence that it stands in.")
    back: int = Field(description="Places before the newest event of that sequence, which is 0.")
    event: dict[str, float | str | None] = Field(description="What the sequence's columns say of it.")
    moved: dict[str, float] = Field(description='By line: "stack", and each member.')


class Explained(BaseModel):
    """What moved the score of one row: ``members`` sum to ``raw`` less ``base``."""

    keys: dict[str, Id]
    version: str = Field(description="The model version that answered.")
    units: Literal["log-odds", "value"] = Field(description="Of raw, base and all that moved: of probabilities log-odds.")
    output: str | None = Field(description="The class or horizon that is explained; null where the model has one score.")
    score: float = Field(description="The ensemble's answer, as in a prediction.")
    raw: float = Field(description="The score in units.")
    base: float = Field(description="What the ensemble answers where every member says the base rate.")
    members: dict[str, float] = Field(description="How much each member moved the ensemble: Shapley values.")
    features: dict[str, list[MovedColumn]] = Field(description="By member.")
    how: dict[str, str] = Field(description="By member, how its columns were weighed.")
    events: list[MovedEvent] = Field(description="Those that moved anything, the newest first within a sequence.")
    source: Literal["fresh", "last_known", "cold"] = Field(
        description="Where the features are from, as `features` of a prediction."
    )
    known: bool | None = Field(description="As in a prediction.")
    id: str = Field(description="Of this answer, as in a prediction.")


class Explanations(BaseModel):
    """One explanation a row, in the order of the rows: what `zoo explain --json` says of it."""

    model_config = example(
        {
            "answers": [
                {
                    **{"keys": {"user_id": 42}, "version": "churn@3", "units": "log-odds", "output": None},
                    **{"score": 0.31, "raw": -0.8, "base": -0.25, "members": {"gbdt": -0.5, "gru": -0.05}},
                    "features": {
                        "gbdt": [{"column": "purchases_30d", "moved": -0.6}],
                        "gru": [{"column": "items, ages", "moved": -0.1}],
                    },
                    "how": {"gbdt": "TreeSHAP", "gru": "leaving out one column at a time"},
                    "events": [
                        {
                            **{"sequence": "items", "back": 0, "event": {"items": "7", "ages": 1.5}},
                            "moved": {"stack": -0.02, "gbdt": 0.0, "gru": -0.04},
                        }
                    ],
                    **{"source": "fresh", "known": True, "id": "5f0c7d2a91be44d3-0"},
                }
            ]
        }
    )

    answers: list[Explained]


MAX_USERS = 1_000
"""Users of one request for lists."""
MAX_LISTED = 1_000
"""Items that a list may have."""


class RecommendRequest(Request):
    """Whom to list items for, how many, and which."""

    model_config = example(
        {"model": "recommendation", "users": [42, 7], "k": 10, "exclude_seen": None, "where": {"category": "toys"}, "at": None},
        extra="forbid",
    )

    model: StrictStr = Field(description="A model's name, as in GET /v1/models.")
    users: list[Id] = Field(max_length=MAX_USERS, description="Users' identifiers.")
    k: StrictInt = Field(10, ge=1, le=MAX_LISTED, description="Items to list for each user.")
    exclude_seen: StrictBool | None = Field(
        None, description="Leave out what the user has had already. Default: as the model was trained."
    )
    where: dict[str, StrictInt | StrictFloat | StrictStr] | None = Field(
        None, description="Only items with these values in the item table, by column."
    )
    at: StrictStr | None = AT

    @model_validator(mode="after")
    def _readable(self) -> Self:
        self.instant()
        return self

    def instant(self) -> datetime | None:
        """``at`` as an aware datetime. Raises ValueError where it is none."""
        return read_instant(self.at)


class Item(BaseModel):
    """An item of a list."""

    item_id: Id
    title: str
    score: float = Field(description="Comparable within one list only.")
    ranks: dict[str, int] = Field(description="Each member's own rank of the item among those that may be listed.")


class Recommendation(BaseModel):
    """One user's list, most likely first; shorter than asked where no more items may be listed."""

    user_id: Id
    items: list[Item]
    cold: bool | None = Field(
        description="True: nothing is known of the user that training knew, so this is what is popular. Null for an empty list."
    )
    newest_event_age: float | None = Field(
        description="Seconds from the user's newest event to the answer's time; null for none."
    )
    version: str = Field(description="The model version that answered.")
    features: Literal["fresh", "last_known", "cold"] | None = Field(description="As in a prediction. Null for an empty list.")
    id: str | None = Field(description="As in a prediction. Null for an empty list.")


class Recommendations(BaseModel):
    """One list a user, in the order of the users."""

    model_config = example(
        {
            "answers": [
                {
                    "user_id": 42,
                    "items": [{"item_id": 7, "title": "wooden train", "score": 3.1, "ranks": {"covisit": 1, "gru": 4}}],
                    "cold": False,
                    "newest_event_age": 86400.5,
                    "version": "recommendation@1",
                    "features": "fresh",
                    "id": "5f0c7d2a91be44d3-0",
                }
            ]
        }
    )

    answers: list[Recommendation]


class EventsRequest(Request):
    """Events for the log. Each has an ``event_id``, or the push an ``idempotency_key``: the same again adds nothing."""

    model_config = example(
        {
            "events": [
                {
                    "event_id": "order-7-line-1",
                    "user_id": 42,
                    "item_id": 7,
                    "event_type": "purchase",
                    "timestamp": "2018-01-01T12:00:00Z",
                    "value": 3.99,
                }
            ],
            "idempotency_key": None,
        },
        extra="forbid",
    )

    events: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=MAX_ROWS,
        description="One object an event: user_id, event_type and timestamp (ISO 8601), and what else the log keeps.",
    )
    idempotency_key: StrictStr | None = Field(
        None, min_length=1, max_length=MAX_KEY, description="Names this push in all retries of it."
    )


class Report(BaseModel):
    """What became of the events: ``rows`` is the sum of ``added``, ``repeated`` and all ``quarantined``."""

    model_config = example(
        {
            "rows": 3,
            "added": 1,
            "repeated": 1,
            "quarantined": {"timestamp_unreadable": 1},
            "ignored": ["colour"],
            "version": 12,
            "warnings": [],
        }
    )

    rows: int
    added: int = Field(description="Events that are in the log since, and that the next prediction sees.")
    repeated: int = Field(description="Events that the log had already.")
    quarantined: dict[str, int] = Field(description="Events that could not be taken, by reason; they are kept aside.")
    ignored: list[str] = Field(description="Fields that this log has no place for.")
    version: int = Field(
        description="The log's version (of its Delta table) when this was answered. Pushes wait in the log's tail first and many of them "
        "become one version, so it may be the same after a push as before; it never falls. It is no version of a model."
    )
    warnings: list[str] = Field(
        description="What whoever pushed should know: that the clock moved far, or that a type of event or an item is new to the log."
    )


class Lineage(BaseModel):
    """What a version was made from."""

    log: dict[str, Any] = Field(description="Versions of the event log, its dictionaries and tables.")
    service: str = Field(description="The feature service.")
    service_hash: str
    plugins: dict[str, Any] = Field(description="Member -> its model, distribution and version.")
    seed: int | None
    git: str | None = Field(description="Commit of the project.")


class ModelCard(BaseModel):
    """A model that this server answers for."""

    model: str
    version: str
    aliases: list[str]
    entities: list[str] = Field(description="Key columns that every row must have.")
    context: dict[str, str] = Field(description="Further columns that every row must have, with their numpy dtype.")
    members: list[str]
    outputs: list[str] = Field(description="Classes or horizons, where an answer has a score for each.")
    created: datetime
    metrics: dict[str, Any] = Field(description="The stack's scores on its test rows.")
    policy: dict[str, Any] = Field(description="What its answers may lack, as declared when it was trained.")
    declared: dict[str, Any] = Field(
        description="What `zoo.toml` said of that in another way when it was loaded, by name: it counts from the next training."
    )
    lineage: Lineage


class Models(BaseModel):
    models: list[ModelCard]


class Swapped(BaseModel):
    """What the registry's aliases changed."""

    model_config = example({"swapped": {"churn": "churn@4"}})

    swapped: dict[str, str] = Field(description="Model -> the version that took over.")


class Status(BaseModel):
    model_config = example({"status": "ready"})

    status: str


class ReadyStatus(Status):
    model_config = example({"status": "ready", "versions": {"churn@3": "ready"}})

    versions: dict[str, str] = Field(
        description='Version that answers -> "ready", or "degraded" where its policy has an answer only.'
    )


class Serving(BaseModel):
    """The version of a model that answers, and what its alias names if that cannot."""

    version: str
    candidate: str | None = Field(
        description="The version that the alias names and that could not be loaded, or the alias, where it is gone; null where all is well."
    )
    trouble: str | None = Field(description="What kind of error that was; the server's log says all of it.")
    canary: str | None = Field(description="The version that answers a share of the requests; null where there is none.")
    canary_trouble: str | None = Field(description="What kind of error keeps the version named canary from answering.")
    shadow: str | None = Field(description="The version that is asked copies of requests; null where there is none.")
    shadow_trouble: str | None = Field(description="What kind of error keeps the version named shadow from being asked.")


class Health(BaseModel):
    model_config = example(
        {
            "status": "ok",
            "registry": True,
            "models": {
                "churn": {
                    **{"version": "churn@3", "candidate": None, "trouble": None, "canary": "churn@4", "canary_trouble": None},
                    **{"shadow": None, "shadow_trouble": None},
                }
            },
        }
    )

    status: str = Field(description='"ok", or "degraded" where a candidate failed or the registry does not answer.')
    registry: bool = Field(description="Whether the registry answered when it was last asked for versions.")
    models: dict[str, Serving]


class Comparison(BaseModel):
    """What a version answered beside what a shadow would have, over all rows and outputs of the requests that both answered."""

    answered: str = Field(description="The version whose answers were given.")
    shadow: str
    requests: int
    rows: int
    dropped: int = Field(description="Requests that were not copied, because too many waited for the shadow.")
    skipped: int = Field(description="Requests that were not copied, because the shadow has other outputs (classes, horizons).")
    errors: int = Field(
        description="Requests that the shadow failed, or gave a score that is not finite; the server's log says what kind of error."
    )
    mean: float | None = Field(description="Mean score that was answered; null, as all that follow, before there is a row.")
    shadow_mean: float | None
    apart: float | None = Field(description="Mean absolute difference.")
    most: float | None = Field(description="Largest difference.")
    correlation: float | None = Field(
        description="Pearson's, of several outputs the least; null where one of them always says the same."
    )
    shadow_ms: float | None = Field(description="Milliseconds that the shadow takes for a request, in its own thread.")


class Comparisons(BaseModel):
    model_config = example(
        {
            "shadows": [
                {
                    **{"answered": "churn@3", "shadow": "churn@4", "requests": 500, "rows": 812, "dropped": 0},
                    **{"skipped": 0, "errors": 0},
                    **{"mean": 0.41, "shadow_mean": 0.43, "apart": 0.02, "most": 0.2, "correlation": 0.97, "shadow_ms": 6.2},
                }
            ]
        }
    )

    shadows: list[Comparison]


class Problem(BaseModel):
    type: str = Field(description="For programs; docs/reference/http.md lists them.")
    message: str = Field(description="For people: what was seen, what was expected and what to do.")


class ErrorBody(BaseModel):
    """The body of every answer of 4xx and 5xx."""

    model_config = example(
        {"error": {"type": "unknown_model", "message": "unknown model 'chrun'; choose one of: campaign, churn"}}
    )

    error: Problem
