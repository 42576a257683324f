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
        frame = pl.DataFrame({"campaign_id": numbers, "ends": [until[int(c)] for c in numbers]})
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
        ({"horizon": "fortnight"}, "cannot read the duration 'fortnight'"),
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
