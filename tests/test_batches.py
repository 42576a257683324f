"""Requests that wait at the same time are predicted together: by whom, in which order, and what one of them cannot do to the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from shop import START, Shop

from zoo.errors import FeatureError, LateError, UnknownIdError, UsageError
from zoo.predictor import Predictor
from zoo.service.batches import Batches


@pytest.fixture(scope="module")
def churn(trained_shop: Shop) -> Predictor:
    return Predictor.load("churn", trained_shop.root)


@dataclass
class Gate:
    """Holds the first call of ``Predictor.answer`` until it is opened; rows: of every call, in order."""

    rows: list[int] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    before: Callable[[int], None] = lambda number: None


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, real = Gate(), Predictor.answer

    def held(self: Predictor, rows: Any = None, **more: Any) -> Any:
        gate.rows.append(len(rows))
        gate.deadlines.append(more["deadline"])
        gate.begun.set()
        if len(gate.rows) == 1:
            assert gate.opened.wait(60)
        gate.before(len(gate.rows))
        return real(self, rows, **more)

    monkeypatch.setattr(Predictor, "answer", held)
    yield gate
    gate.opened.set()


def asked(gate: Gate, *requests: Coroutine[Any, Any, Any]) -> list[Any]:
    """What each request is answered: the first is held until all others wait. Exceptions are answers, too."""

    async def ask() -> list[Any]:
        first = asyncio.ensure_future(requests[0])
        await asyncio.to_thread(gate.begun.wait, 60)
        others = [asyncio.ensure_future(each) for each in requests[1:]]
        await asyncio.sleep(0.01)  # each runs up to where it waits
        gate.opened.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    return asyncio.run(ask())


def scores(rows: Sequence[Any], at: int | None = None) -> list[float]:
    return [row["score"] for row in rows]


def test_what_waits_is_computed_together_and_each_is_answered_as_if_alone(churn: Predictor, gate: Gate) -> None:
    batches = Batches(patience=(60, 60))
    wanted: list[list[Any]] = [[1], [2], [3, 4, 4], [], [99_999], [1]]
    found = asked(gate, *(batches.predict(churn, None, scores, users=users) for users in wanted))
    assert gate.rows == [1, 3 + 1 + 1 + 1, 0]  # without users there is no type of theirs, so none to stand beside
    assert [len(each) for each in found] == [1, 1, 3, 0, 1, 1]
    for users, own in zip(wanted, found, strict=True):
        alone = churn.predict(churn.rows(users=users), deadline=None)["score"]
        np.testing.assert_allclose(own, alone, atol=1e-5)
    assert found[0] == pytest.approx(found[5])
    assert found[1] != pytest.approx(found[0])


def test_an_idle_server_waits_for_no_company(churn: Predictor, gate: Gate) -> None:
    gate.opened.set()
    assert len(asyncio.run(Batches(patience=(60, 60)).predict(churn, None, scores, users=[1]))) == 1
    assert gate.rows == [1]


def test_a_batch_ends_where_it_is_full_and_the_rest_keeps_its_order(churn: Predictor, gate: Gate) -> None:
    batches = Batches(rows=3, patience=(60, 60))
    asked(gate, *(batches.predict(churn, None, scores, users=users) for users in ([1], [1, 2], [1, 2], [3], [4])))
    assert gate.rows == [1, 3, 3]  # the fourth stands where the third does not fit; nobody is passed over twice


def test_a_request_with_many_rows_keeps_nobody_waiting(churn: Predictor, gate: Gate) -> None:
    batches = Batches(rows=3, patience=(60, 60))

    async def ask() -> Any:
        large = asyncio.ensure_future(batches.predict(churn, None, scores, users=[1, 2, 3, 4]))
        await asyncio.to_thread(gate.begun.wait, 60)
        short = await batches.predict(churn, None, scores, users=[1])  # while the large one is still held
        gate.opened.set()
        return await large, short

    large, short = asyncio.run(ask())
    assert large[0] == pytest.approx(short[0], abs=1e-5)
    assert gate.rows == [4, 1]


def test_versions_times_and_columns_are_not_mixed(churn: Predictor, gate: Gate) -> None:
    batches, other = Batches(patience=(60, 60)), replace(churn)
    early, late = START + 40 * 86_400_000_000, START + 80 * 86_400_000_000
    requests = [
        batches.predict(churn, None, scores, users=[1]),
        batches.predict(churn, None, scores, users=[2]),
        batches.predict(other, None, scores, users=[2]),
        batches.predict(churn, None, scores, users=[2], at=early),
        batches.predict(churn, None, scores, users=[2], at=late),
        batches.predict(churn, None, scores, users=[3], at=early),
        batches.predict(other, None, scores, users=[3]),
    ]
    found = asked(gate, *requests)
    assert gate.rows == [1, 1, 2, 2, 1]
    assert found[3] != found[4]
    assert found[1] == found[2]


def test_one_that_cannot_be_meant_fails_alone(churn: Predictor, gate: Gate) -> None:
    batches = Batches(patience=(60, 60))
    requests = [batches.predict(churn, None, scores, users=users) for users in ([1], [2], [2**63 - 1], [3])]
    requests += [
        batches.predict(churn, None, scores, users=[2], at="yesterday"),
        batches.predict(churn, None, scores, users=["2"]),
    ]
    requests += [
        batches.predict(churn, [{"user_id": 1, "colour": "red"}], scores),
        batches.predict(churn, None, _broken, users=[4]),
    ]
    found = asked(gate, *requests)
    assert [len(each) for each in found[:4]] == [1, 1, 1, 1]
    assert isinstance(found[4], UsageError)
    assert "yesterday" in str(found[4])
    assert isinstance(found[5], UnknownIdError)
    assert len(found[6]) == 1  # further columns are nobody's; the routes refuse them before
    assert isinstance(found[7], ZeroDivisionError)


def test_an_error_of_one_row_does_not_reach_the_others_of_its_batch(churn: Predictor, gate: Gate) -> None:
    """Whatever fails a batch may be one request's doing, so each is computed alone then."""

    def fail(number: int) -> None:
        if gate.rows[-1] > 1 or number == 4:
            raise UnknownIdError("one of these is no identifier")

    gate.before = fail
    batches = Batches(patience=(60, 60))
    found = asked(gate, *(batches.predict(churn, None, scores, users=[user]) for user in (1, 2, 3, 4)))
    assert gate.rows == [1, 3, 1, 1, 1]
    assert [isinstance(each, UnknownIdError) for each in found] == [False, False, True, False]


def test_a_store_that_is_down_is_asked_once_a_batch(churn: Predictor, gate: Gate) -> None:
    def fail(number: int) -> None:
        if number > 1:
            raise FeatureError("the store does not answer")

    gate.before = fail
    batches = Batches(patience=(60, 60))
    found = asked(gate, *(batches.predict(churn, None, scores, users=[user]) for user in (1, 2, 3, 4)))
    assert gate.rows == [1, 3]
    assert [isinstance(each, FeatureError) for each in found] == [False, True, True, True]


def test_the_urgent_are_not_computed_with_the_patient(churn: Predictor, gate: Gate) -> None:
    batches = Batches(patience=(60, 60))
    deadlines = (None, 30.0, None, 31.0, 600.0, 59.0, 900.0, 0.001)
    found = asked(gate, *(batches.predict(churn, None, scores, users=[1], deadline=each) for each in deadlines))
    assert gate.rows == [1, 3, 1, 2]
    first, together, without, patient = gate.deadlines
    assert first is without is None
    assert together is not None
    assert 0 < together < 30
    assert patient is not None
    assert 500 < patient < 600
    assert isinstance(found.pop(), LateError)
    assert found == [pytest.approx(found[0], abs=1e-5)] * 7


def test_what_hangs_does_not_keep_the_others(churn: Predictor, gate: Gate) -> None:
    async def ask() -> None:
        batches = Batches(patience=(0.02, 0.02))
        hangs = asyncio.ensure_future(batches.predict(churn, None, scores, users=[1]))
        await asyncio.to_thread(gate.begun.wait, 60)
        others = await asyncio.gather(*(batches.predict(churn, None, scores, users=[user]) for user in (2, 3)))
        assert [len(each) for each in others] == [1, 1]
        assert not hangs.done()
        gate.opened.set()
        await hangs

    asyncio.run(ask())
    assert gate.rows == [1, 2]


def test_whoever_has_gone_is_not_computed(churn: Predictor, gate: Gate) -> None:
    async def ask() -> None:
        batches = Batches(patience=(60, 60))
        first = asyncio.ensure_future(batches.predict(churn, None, scores, users=[1]))
        await asyncio.to_thread(gate.begun.wait, 60)
        gone, stays = (asyncio.ensure_future(batches.predict(churn, None, scores, users=[user])) for user in (2, 3))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        gate.opened.set()
        await asyncio.gather(first, stays)

    asyncio.run(ask())
    assert gate.rows == [1, 1]


def test_no_request_is_lost_or_answered_as_another(churn: Predictor) -> None:
    """Many at once, from waves that come while others are computed, at several times and from two versions."""
    users = [1, 2, 3, 4, 5, 6, 7, 8]
    table = churn.predict(users=users)
    own = dict(zip(users, table["score"].to_pylist(), strict=True))
    batches = Batches(rows=5, patience=(60, 60))

    async def one(number: int) -> None:
        await asyncio.sleep(number % 17 / 500)
        user = users[number % 8]
        found = await batches.predict(churn, None, lambda rows, at: rows, users=[user], deadline=60 if number % 3 else None)
        assert [row["user_id"] for row in found] == [user]
        assert found[0]["score"] == pytest.approx(own[user], abs=1e-5)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(400)))

    asyncio.run(all_of_them())


def _broken(rows: Sequence[Any], at: int | None) -> Any:
    raise ZeroDivisionError


def test_how_long_a_request_waits_for_another_thread_follows_what_batches_take() -> None:
    batches = Batches(patience=(0.05, 0.25))
    seen = []
    for usual in (0.0, 0.1, 10.0):
        batches._usual = usual
        seen.append(batches._wait(None))
    assert seen == [0.05, 0.2, 0.25]
    assert 0.01 < batches._wait(time.monotonic() + 0.06) <= 0.03
    assert batches._wait(time.monotonic() - 1) == 0.0


def test_the_event_loop_gives_way_until_a_batch_ends_and_not_where_none_is_computed(churn: Predictor, gate: Gate) -> None:
    batches = Batches(patience=(60, 60), turn=30)

    async def ask() -> tuple[float, float]:
        began = time.monotonic()
        batches.give_way()
        idle = time.monotonic() - began
        first = asyncio.ensure_future(batches.predict(churn, None, scores, users=[1]))
        await asyncio.to_thread(gate.begun.wait, 60)
        threading.Timer(0.2, gate.opened.set).start()
        began = time.monotonic()
        batches.give_way()  # the loop stands
        waited = time.monotonic() - began
        await first
        return idle, waited

    idle, waited = asyncio.run(ask())
    assert idle < 0.1 < waited < 30


def test_a_batch_between_steps_waits_while_the_event_loop_that_gave_way_comes_round_once(churn: Predictor, gate: Gate) -> None:
    batches, said = Batches(patience=(60, 60), turn=30), list[str]()

    async def ask() -> None:
        batches.offer()  # nobody gave way: at once
        first = asyncio.ensure_future(batches.predict(churn, None, scores, users=[1]))
        await asyncio.to_thread(gate.begun.wait, 60)
        step = threading.Timer(0.2, lambda: (batches.offer(), said.append("the next step")))
        step.start()
        asyncio.get_running_loop().call_soon(said.append, "what was read")
        batches.give_way()  # until the step ends
        assert not said
        await asyncio.to_thread(step.join)
        gate.opened.set()
        await first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.service.batches.ROUND", 60)
        asyncio.run(asyncio.wait_for(ask(), 30))
    assert said == ["what was read", "the next step"]


def test_the_event_loop_does_not_give_way_to_what_hangs(churn: Predictor, gate: Gate) -> None:
    batches = Batches(patience=(0.05, 0.05), turn=30)

    async def ask() -> float:
        first = asyncio.ensure_future(batches.predict(churn, None, scores, users=[1]))
        await asyncio.to_thread(gate.begun.wait, 60)
        await asyncio.sleep(0.1)
        began = time.monotonic()
        batches.give_way()
        gone = time.monotonic() - began
        gate.opened.set()
        await first
        return gone

    assert asyncio.run(ask()) < 10


def test_a_thread_that_cannot_be_begun_fails_one_request_and_no_other(churn: Predictor, gate: Gate, no_thread_once: None) -> None:
    gate.opened.set()
    batches = Batches(patience=(60, 60))

    async def ask() -> list[float]:
        with pytest.raises(RuntimeError, match="start new thread"):
            await batches.predict(churn, None, scores, users=[1])
        return await asyncio.wait_for(batches.predict(churn, None, scores, users=[2]), 30)

    assert len(asyncio.run(ask())) == 1
    assert gate.rows == [1]  # nobody waits for the first any more
