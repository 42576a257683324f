"""What an answer may lack: the policy that ``[tasks.NAME.serving]`` declares and that a version keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from zoo.errors import FeatureError, UsageError, choices
from zoo.events.specs import seconds

Store = Literal["refuse", "cold", "last_known"]
"""Where the online store is down or behind the log: an error, the answer for a user without events, or for the events read last."""


@dataclass(frozen=True)
class Policy:
    """required: members without which there is no answer. at_least: how many members an answer needs; 0: none.

    store: what is answered where the online store does not answer, or holds less than the log. last_known_for: seconds that events read
    earlier may stand for newer ones. calibration_error: how far answers may be off on held-out rows (expected calibration error, as a
    probability) to be said to be calibrated.
    """

    required: tuple[str, ...] = ()
    at_least: int = 1
    store: Store = "refuse"
    last_known_for: float = 3600.0
    calibration_error: float = 0.05

    @staticmethod
    def of(table: Any, members: Sequence[str], where: str = "[serving]") -> Policy:
        """What a table of zoo.toml says. Raises UsageError for what it cannot say."""
        if not isinstance(table, Mapping):
            raise UsageError(f"{where} is {table!r}; expected a table")
        names = ("required", "at_least", "store", "last_known_for", "calibration_error")
        for name in table:
            if name not in names:
                raise UsageError(choices(f"key in {where}", name, names))
        required, at_least, store = table.get("required", []), table.get("at_least", 1), table.get("store", "refuse")
        if not isinstance(required, Sequence) or isinstance(required, str):
            raise UsageError(f'{where} required is {required!r}; expected a list of members, as in ["{members[0]}"]')
        for name in required:
            if name not in members:
                raise UsageError(choices(f"member in {where} required", name, members))
        if isinstance(at_least, bool) or not isinstance(at_least, int) or not 0 <= at_least <= len(members):
            raise UsageError(f"{where} at_least is {at_least!r}; expected a number of members, 0 to {len(members)}")
        if store not in get_args(Store):
            raise UsageError(f"{where} {choices('store', store, get_args(Store))}")
        text = table.get("last_known_for", "1h")
        try:
            known_for = seconds(text) if isinstance(text, str) else None
        except FeatureError:
            known_for = None
        if known_for is None:
            raise UsageError(f"{where} last_known_for is {text!r}; expected a duration such as 30m or 1h")
        error = table.get("calibration_error", Policy.calibration_error)
        if isinstance(error, bool) or not isinstance(error, int | float) or not 0 < error <= 1:
            raise UsageError(f"{where} calibration_error is {error!r}; expected a difference of probabilities, as in 0.05")
        return Policy(tuple(required), at_least, store, float(known_for), float(error))

    def facts(self) -> dict[str, Any]:
        """What a version keeps; ``Policy.kept`` reads it."""
        return {
            "required": list(self.required),
            "at_least": self.at_least,
            "store": self.store,
            "last_known_for": self.last_known_for,
            "calibration_error": self.calibration_error,
        }

    def declared(self, now: Policy) -> dict[str, Any]:
        """What is declared now in another way than in this policy, by name."""
        own = self.facts()
        return {name: value for name, value in now.facts().items() if value != own[name]}

    @staticmethod
    def kept(facts: Mapping[str, Any] | None) -> Policy:
        """The policy of a version; versions from before there were any have the usual one."""
        return Policy() if facts is None else Policy(**{**facts, "required": tuple(facts["required"])})
