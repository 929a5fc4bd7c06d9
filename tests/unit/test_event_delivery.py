"""Who takes events to the host: when it tries, when it waits, and what it does with each answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from virtagent_guest.events import notify
from virtagent_guest.events.deliver import RETRY, SILENT_RETRY, Delivery
from virtagent_guest.events.log import EventLog
from virtagent_guest.forward.host import Host
from virtagent_protocol.errors import FaultCode, NotReady, RemoteFault, SessionReset
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct

Answer = Callable[[Struct], object]


class PlayedLink:
    """A link whose host does as the test says."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[int]]] = []
        self.answer: Answer = last

    def open_stream(self) -> LinkStream:
        raise NotReady("there are no streams here")

    async def call(self, method: str, *params: Struct) -> object:
        await trio.lowlevel.checkpoint()
        self.calls.append((trio.current_time(), numbers(params[0])))
        return self.answer(params[0])


def numbers(batch: Struct) -> list[int]:
    events = batch["events"]
    assert isinstance(events, list)
    return [event["sequence"] for event in events]  # type: ignore[call-overload,index,misc]


def last(batch: Struct) -> object:
    """Confirm all of it."""
    return {"confirmed": numbers(batch)[-1]}


def fails_with(error: Exception) -> Answer:
    def answer(batch: Struct) -> object:
        raise error

    return answer


class Lab:
    def __init__(self) -> None:
        self.events, self.link, self.host = EventLog(), PlayedLink(), Host()
        self.host.link = self.link
        self.delivery = Delivery(self.events, self.host)


@asynccontextmanager
async def running() -> AsyncIterator[Lab]:
    lab = Lab()
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.delivery.run)
            yield lab
            nursery.cancel_scope.cancel()


async def test_an_event_goes_at_once_and_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as lab:
        await trio.sleep(5)
        lab.events.emit("a", {})
        await trio.sleep(1)
        assert lab.link.calls == [(5, [1])]
        assert len(lab.events) == 0


async def test_nothing_is_tried_without_events(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as lab:
        lab.delivery.session_began()
        await trio.sleep(100)
        assert lab.link.calls == []


async def test_a_lost_answer_is_made_good_in_the_next_session(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as lab:
        lab.link.answer = fails_with(SessionReset("gone"))
        lab.events.emit("a", {})
        await trio.sleep(0.5)
        lab.link.answer = last
        lab.events.emit("b", {})
        await trio.sleep(0.1)
        assert len(lab.link.calls) == 1
        lab.delivery.session_began()
        await trio.sleep(0.1)
        assert [sent for _, sent in lab.link.calls] == [[1], [1, 2]]
        assert len(lab.events) == 0


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (NotReady("port-closed"), SILENT_RETRY),
        (SessionReset("gone"), RETRY),
        (RemoteFault(FaultCode.NOT_READY, "later"), RETRY),
        (RemoteFault(FaultCode.QUEUE_FULL, "later"), RETRY),
        (RemoteFault(FaultCode.FORBIDDEN, "no"), RETRY),
    ],
)
async def test_what_failed_is_tried_again_after_a_while(
    autojump_clock: trio.testing.MockClock, error: Exception, pause: float
) -> None:
    async with running() as lab:
        lab.link.answer = fails_with(error)
        lab.events.emit("a", {})
        await trio.sleep(3 * pause + 0.1)
        assert [at for at, _ in lab.link.calls] == [0, pause, 2 * pause, 3 * pause]
        assert len(lab.events) == 1


async def test_a_host_that_has_no_such_method_is_asked_once_a_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as lab:
        lab.link.answer = fails_with(RemoteFault(FaultCode.METHOD_NOT_FOUND, "no va.events"))
        lab.events.emit("a", {})
        await trio.sleep(500)
        assert len(lab.link.calls) == 1
        lab.link.answer = last
        lab.delivery.session_began()
        await trio.sleep(1)
        assert len(lab.events) == 0


async def test_what_the_host_refuses_does_not_hold_up_what_follows(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as lab:
        lab.link.answer = fails_with(RemoteFault(FaultCode.INVALID_PARAMS, "no batch"))
        lab.events.emit("a", {})
        await trio.sleep(0.1)
        assert "events 1 to 1 are lost" in caplog.text
        lab.link.answer = last
        lab.events.emit("b", {})
        await trio.sleep(0.1)
        assert [sent for _, sent in lab.link.calls] == [[1], [2]]


async def test_what_was_taken_in_part_goes_on_behind_that(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as lab:
        lab.link.answer = lambda batch: {"confirmed": numbers(batch)[0]}
        for _ in range(3):
            lab.events.emit("a", {})
        await trio.sleep(0.1)
        assert [sent for _, sent in lab.link.calls] == [[1, 2, 3], [2, 3], [3]]


@pytest.mark.parametrize("answer", [None, {}, {"confirmed": "1"}, {"confirmed": -5}, {"confirmed": 0}, [1]])
async def test_an_answer_that_makes_no_sense_confirms_nothing(
    autojump_clock: trio.testing.MockClock, answer: object
) -> None:
    async with running() as lab:
        lab.link.answer = lambda batch: answer
        lab.events.emit("a", {})
        await trio.sleep(2 * RETRY + 0.1)
        assert len(lab.link.calls) == 3
        assert len(lab.events) == 1


async def test_an_answer_beyond_what_was_sent_confirms_what_was_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as lab:

        def answer(batch: Struct) -> object:
            lab.link.answer = fails_with(NotReady("away"))
            lab.events.emit("b", {})
            return {"confirmed": 2**60}

        lab.link.answer = answer
        lab.events.emit("a", {})
        await trio.sleep(0.1)
        assert [event.name for event in lab.events.batch().events] == ["b"]


async def test_a_user_who_tells_too_much_is_slowed_down(autojump_clock: trio.testing.MockClock) -> None:
    try:
        began = trio.current_time()
        for _ in range(notify.BURST + 100):
            await notify._until_due(1000)
        assert trio.current_time() - began == pytest.approx(100 / notify.RATE, rel=0.1)
        at = trio.current_time()
        await notify._until_due(1001)
        assert trio.current_time() == at
    finally:
        notify._buckets.clear()
