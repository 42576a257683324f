"""Labelled rows against a loop over events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import shop

from zoo.errors import UsageError
from zoo.events.view import LogView
from zoo.tasks import campaign, churn
from zoo.tasks.settings import duration, instant

DAY = shop.DAY
CHURN = {"event_type": "purchase", "active": "28d", "horizon": "14d", "every": "7d"}


@pytest.fixture(scope="module")
def columns() -> dict[str, Any]:
    return shop.events(seed=3, users=30, days=90)


@pytest.fixture(scope="module")
def view(columns: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> LogView:
    root = tmp_path_factory.mktemp("log")
    shop.make_log(root / "log", columns)
    return LogView.open(root / "log")


def test_churn_rows_are_those_of_a_loop_over_events(columns: dict[str, Any], view: LogView) -> None:
    start, end = shop.START + 30 * DAY, shop.START + 70 * DAY
    rows = churn.examples(view, CHURN, start, end)
    bought = [(int(u), int(t)) for u, t, k in zip(columns["user_id"], columns["time"], columns["event_type"]) if k == "purchase"]
    expected = {}
    for cut in range(start, end, 7 * DAY):
        for user in {u for u, t in bought if cut - 28 * DAY <= t < cut}:
            expected[user, cut] = float(not any(u == user and cut <= t < cut + 14 * DAY for u, t in bought))
    found = {(int(u), int(t)): y for u, t, y in zip(rows.keys["user_id"], rows.time, rows.target)}
    assert found == expected
    assert 0 < sum(expected.values()) < len(expected)
    np.testing.assert_array_equal(rows.known_at, rows.time + 14 * DAY)


@pytest.mark.parametrize("ends", [True, False])
def test_campaign_rows_are_those_of_a_loop_over_events(columns: dict[str, Any], ends: bool, tmp_path: Path) -> None:
    log = shop.make_log(tmp_path / "log", columns)
    numbers = np.arange(1, shop.CAMPAIGNS + 1)
    sent_at = {
        int(c): int(t) for c, t, k in zip(columns["campaign_id"], columns["time"], columns["event_type"]) if k == "campaign_sent"
    }
    until = {c: sent_at[c] + (5 if ends else 3) * DAY for c in sent_at}
    if ends:
        until[1] = sent_at[1] + 3 * DAY  # the table does not say when it ends
        frame = pl.DataFrame({"campaign_id": numbers, "ends": [None if c == 1 else until[int(c)] for c in numbers]})
        log.put_table("campaigns", frame, "campaign_id")
    rows = campaign.examples(LogView.open(tmp_path / "log"), {"within": "3d"}, shop.START, shop.START + 60 * DAY)
    events = [
        (int(u), int(c), int(t), k)
        for u, c, t, k in zip(columns["user_id"], columns["campaign_id"], columns["time"], columns["event_type"])
    ]
    expected = {}
    for user, number, time, kind in events:
        if kind == "campaign_sent" and time < shop.START + 60 * DAY:
            answered = any((u, c, k) == (user, number, "coupon_redeemed") and time < t < until[number] for u, c, t, k in events)
            expected[user, number] = (float(answered), until[number])
    found = {
        (int(u), int(c)): (y, int(known))
        for u, c, y, known in zip(rows.keys["user_id"], rows.keys["campaign_id"], rows.target, rows.known_at)
    }
    assert found == expected
    assert {y for y, _ in expected.values()} == {0.0, 1.0}
    assert (np.diff(rows.time) >= 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizn": "14d"}, "horizn.*choose one of.*horizon"),
        ({"event_type": "buy"}, "'buy' is not in the log; it has: .*purchase"),
        ({"horizon": "fortnight"}, "horizon is 'fortnight'; expected a duration above 0"),
    ],
)
def test_settings_of_churn_that_cannot_be_meant_are_named(view: LogView, settings: dict[str, str], message: str) -> None:
    from zoo.errors import ZooError

    with pytest.raises(ZooError, match=message):
        churn.examples(view, settings, shop.START, shop.START + 40 * DAY)


def test_a_campaign_needs_its_event_types(view: LogView) -> None:
    with pytest.raises(UsageError, match="response 'redeemed' is no event type"):
        campaign.examples(view, {"response": "redeemed"}, shop.START, shop.START + 40 * DAY)


def test_the_first_cut_is_the_setting_or_one_active_window_in(view: LogView) -> None:
    assert churn.first({"start": "2024-02-01"}, view) == instant("2024-02-01")
    assert churn.first(CHURN, view) == int(view.index("user_id").time.min()) + duration("28d")


def test_instants_are_read_and_others_named() -> None:
    assert instant("2017-09-01") == instant("2017-09-01T00:00:00Z") == 1_504_224_000_000_000
    with pytest.raises(UsageError, match="cannot read the date 'soon'"):
        instant("soon")


def log_of(root: Path, *events: tuple[int, str, float, int]) -> LogView:
    """A view of a log of (user, event type, day, campaign) events; 0 for no campaign."""
    users, types, days, numbers = zip(*sorted(events, key=lambda event: event[2]))
    columns = {
        "user_id": np.array(users),
        "item_id": np.ones(len(users), np.int64),
        "event_type": np.array(types, object),
        "time": np.array([shop.START + round(day * DAY) for day in days]),
        "campaign_id": np.array([number or -1 for number in numbers]),
    }
    shop.make_log(root / "log", columns)
    return LogView.open(root / "log")


def test_the_instants_of_churns_windows_belong_to_the_later_side(tmp_path: Path) -> None:
    begins, ends = 30 - 28, 30 + 14
    view = log_of(
        tmp_path,
        *((user, "purchase", 20, 0) for user in (1, 2, 3, 4)),
        (1, "purchase", 30, 0),  # at the cut itself: in the label, not in the past
        (2, "purchase", ends - 1e-9, 0),
        (3, "purchase", ends, 0),  # when the label window is over
        (4, "view", 31, 0),  # of another type
        (5, "purchase", begins, 0),
        (6, "purchase", begins - 1e-9, 0),  # active too long ago
        (7, "purchase", 30, 0),  # not active before the cut
        (8, "view", 29, 0),
    )
    cut = shop.START + 30 * DAY
    rows = churn.examples(view, CHURN, cut, cut + 1)
    assert dict(zip(rows.keys["user_id"].tolist(), rows.target.tolist())) == {1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0, 5: 1.0}
    assert len(churn.examples(view, CHURN, cut, cut)) == 0


def test_a_response_counts_after_the_sending_and_before_the_end_and_for_its_own_campaign(tmp_path: Path) -> None:
    view = log_of(
        tmp_path,
        *((user, "campaign_sent", 10, 7) for user in range(1, 8)),
        (1, "coupon_redeemed", 10, 7),  # at the instant of the sending
        (2, "coupon_redeemed", 10 + 1e-9, 7),
        (3, "coupon_redeemed", 13 - 1e-9, 7),
        (4, "coupon_redeemed", 13, 7),  # at the end
        (5, "coupon_redeemed", 11, 8),  # of another campaign
        (6, "coupon_redeemed", 9, 7),  # before it was sent
        (7, "coupon_redeemed", 11, 0),  # of no campaign
        (8, "coupon_redeemed", 11, 7),  # who was not asked
        (9, "campaign_sent", 11, 0),  # of no campaign
        (3, "campaign_sent", 20, 7),  # a second time, unanswered
    )
    rows = campaign.examples(view, {"within": "3d"}, shop.START, shop.START + 40 * DAY)
    found = list(zip(rows.keys["user_id"].tolist(), rows.keys["campaign_id"].tolist(), rows.target.tolist()))
    answered = {2, 3}
    assert sorted(found[:7]) == [(user, 7, float(user in answered)) for user in range(1, 8)]
    assert found[7:] == [(3, 7, 0.0)]
    np.testing.assert_array_equal(rows.known_at, rows.time + 3 * DAY)


def test_large_numbers_of_campaigns_tell_whose_response_it_is(tmp_path: Path) -> None:
    users, large = range(1, 401), 9_000_000_000_000_000
    sent = [(user, "campaign_sent", 10 + user * 1e-3, large - user % 3) for user in users]
    answers = [(user, "coupon_redeemed", 11 + user * 1e-3, large - user % 3) for user in users if user % 2]
    view = log_of(tmp_path, *sent, *answers)
    rows = campaign.examples(view, {"within": "3d"}, shop.START, shop.START + 40 * DAY)
    assert len(rows) == 400
    np.testing.assert_array_equal(rows.target, rows.keys["user_id"] % 2)


def test_settings_of_campaign_that_cannot_be_meant_are_named(view: LogView) -> None:
    with pytest.raises(
        UsageError, match=r"unknown setting in \[tasks\.campaign\] 'withn'; choose one of: response, sent, start, within"
    ):
        campaign.examples(view, {"withn": "3d"}, shop.START, shop.START + 40 * DAY)


def test_campaign_needs_the_column_that_says_which(tmp_path: Path) -> None:
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema

    log = EventLog.create(tmp_path / "log", LogSchema())
    sent = {
        "user_id": [1, 1],
        "item_id": [1, 1],
        "event_type": ["campaign_sent", "coupon_redeemed"],
        "timestamp": ["2024-01-01T00:00:00Z"] * 2,
    }
    log.append(pl.DataFrame(sent), idempotency_key="sent")
    with pytest.raises(UsageError, match="no event column campaign_id"):
        campaign.examples(LogView.open(tmp_path / "log"), {}, shop.START - DAY, shop.START + DAY)
