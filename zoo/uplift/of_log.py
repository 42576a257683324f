"""A trial from an event log: campaigns sent, one arm of which is no contact at all, with the features of the task ``campaign``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import Task
from zoo.errors import UsageError, choices
from zoo.tasks import campaign
from zoo.tasks.settings import known
from zoo.uplift.trial import Trial

if TYPE_CHECKING:
    from zoo.features import Features


def trial_of_log(features: Features, task: Task, settings: Mapping[str, Any], treatment: str, control: str) -> Trial:
    """Rows (user, campaign) at the time each was sent, with features before it, and whether the user answered by the campaign's end.

    treatment: the text column of sent events that names the arm; customers held back are events too, of the arm ``control``. Rows
    whose time to answer is not over are left out; a user's rows stay together. Raises UsageError for columns and arms that the log
    does not have.
    """
    own = {name: value for name, value in settings.items() if name != "gap"}
    view = features.reader.view()
    texts = {name for name, kind in view.kinds("user_id").items() if kind == "<i4"} - {"item_id", "event_type"}
    if treatment not in texts:
        raise UsageError(choices("treatment (a text column of the log's events)", treatment, texts))
    end = (view.end or 0) + 1
    rows = campaign.examples(view, own, campaign.first(own, view), end)
    rows = rows.take(np.flatnonzero(rows.known_at <= end))
    sent = view.events(["campaign_id", treatment], [known("campaign", own, campaign.DEFAULTS)["sent"]])
    named = np.asarray(view.log.dictionary(f"events.{treatment}").decode(sent.columns[treatment]), object)
    arm_at = dict(zip(zip(sent.user_id.tolist(), sent.columns["campaign_id"].tolist(), sent.time.tolist()), named.tolist()))
    users = view.log.dictionary("user_id").encode(rows.keys["user_id"].tolist())
    found = [arm_at[key] for key in zip(users.tolist(), rows.keys["campaign_id"].astype(float).tolist(), rows.time.tolist())]
    told = np.flatnonzero([each is not None for each in found])
    arms = sorted({str(found[row]) for row in told})
    if control not in arms:
        raise UsageError(choices(f"value of {treatment}", control, arms))
    arms = [control, *(each for each in arms if each != control)]
    batch = features.history(task.service, {**rows.keys, "time": rows.time}, task.context, labelled=True)
    place = np.array([arms.index(str(found[row])) for row in told], np.int64)
    return Trial(batch.take(told).compact(), rows.target[told], place, tuple(arms), users[told])
