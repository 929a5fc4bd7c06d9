"""A client's subscription to a guest that does what it should, and to one that does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from virtagent_guest.methods import stats as method
from virtagent_guest.stats import subscription as guest_side
from virtagent_host.command import InvalidArguments
from virtagent_host.stats import subscription as host_side
from virtagent_host.stats.commands import COMMANDS
from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import FaultCode, RemoteFault, RemoteProtocolError
from virtagent_protocol.paced import TAKEN
from virtagent_protocol.values import Struct, Value

TABLE = {command.name: command for command in COMMANDS}


def _framed(document: bytes) -> bytes:
    return len(document).to_bytes(4, "big") + document


class Guest:
    """What the commands need of a VM; the test writes the guest's half of the stream."""

    def __init__(self, answer: Value) -> None:
        self.answer = answer
        self.asked: list[Any] = []
        self.streams: list[Any] = []
        self.ends: list[trio.abc.Stream] = []

    async def call(self, name: str, *params: Value) -> Value:
        self.asked.append((name, *params))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def open_stream(self) -> Any:
        ours, theirs = trio.testing.memory_stream_pair()
        stream = Resettable(ours)
        self.streams.append(stream)
        self.ends.append(theirs)
        return stream


class Resettable(trio.abc.Stream):
    """A stream that can be reset, as those of a link."""

    id = 1

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner
        self.was_reset = ""

    async def send_all(self, data: Any) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def reset(self, reason: str, words: str | None = None) -> None:
        self.was_reset = reason


class Client:
    """A client of the bridge; `reads` says whether it takes its events."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.reads = trio.Event()
        self.reads.set()

    def take_fd(self, name: str) -> int:
        raise AssertionError("no descriptor is asked for")

    def emit(self, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, data))

    async def events_sent(self) -> None:
        await self.reads.wait()

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        self._nursery.start_soon(function, *args)


RECORD: Struct = {"time": 1.0, "window": 0.0, "unavailable": {}, "omitted": {}, "skipped": 0, "uptime": 5.0}


async def _run(guest: Guest, client: Client, name: str, **given: Any) -> Any:
    command = TABLE[name]
    vm: Any = guest
    return await command.handler(vm, command.complete(given), client)


async def test_a_client_that_does_not_read_is_sent_one_record_and_the_next_is_not_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    guest = Guest({"interval": 1.0, "sections": ["uptime"]})
    async with trio.open_nursery() as nursery:
        client = Client(nursery)
        client.reads = trio.Event()
        begun = await _run(guest, client, "va_stats", interval=1)
        assert guest.asked == [("va.stats", {"stream": 1, "interval": 1.0})]
        await guest.ends[0].send_all(_framed(xmlrpc.encode_result(RECORD)))
        await trio.sleep(100)
        assert client.events == [("VA_GUEST_STATS", {"id": begun["id"], **RECORD})]
        with trio.move_on_after(10) as unasked:
            await guest.ends[0].receive_some()
        assert unasked.cancelled_caught, "it is not said to be taken"
        client.reads.set()
        assert await guest.ends[0].receive_some() == TAKEN
        nursery.cancel_scope.cancel()
    assert guest.streams[0].was_reset == "cancelled"


async def test_a_guest_that_sends_too_soon_is_slowed_down(autojump_clock: trio.testing.MockClock) -> None:
    guest = Guest({"interval": 10.0, "sections": ["uptime"]})
    async with trio.open_nursery() as nursery:
        client = Client(nursery)
        await _run(guest, client, "va_stats", interval=10)
        began = trio.current_time()
        for _ in range(3):
            await guest.ends[0].send_all(_framed(xmlrpc.encode_result(RECORD)))
            await guest.ends[0].receive_some()
        assert trio.current_time() - began == 10.0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (_framed(xmlrpc.encode_result({**RECORD, "uptime": "long"})), "broken", "'uptime'"),
        (_framed(xmlrpc.encode_result({"time": 1.0})), "broken", "is missing"),
        (b"\xff\xff\xff\xff", "broken", "a record of 4294967295 bytes"),
        (None, "broken", "no more records"),
    ],
)
async def test_a_hostile_guest_ends_its_subscription_and_the_client_is_told(
    said: bytes | None, kind: str, words: str, autojump_clock: trio.testing.MockClock
) -> None:
    guest = Guest({"interval": 1.0, "sections": ["uptime"]})
    async with trio.open_nursery() as nursery:
        client = Client(nursery)
        begun = await _run(guest, client, "va_stats", interval=1)
        if said is None:
            await guest.ends[0].aclose()
        else:
            await guest.ends[0].send_all(said)
        # The nursery ends with the subscription.
    ((name, data),) = client.events
    assert (name, data["id"], data["kind"]) == ("VA_GUEST_STATS_ENDED", begun["id"], kind)
    assert words in data["error"]
    with pytest.raises(InvalidArguments, match="no subscription"):
        await _run(guest, client, "va_stats_stop", id=begun["id"])


async def test_a_subscription_that_is_stopped_says_no_more(autojump_clock: trio.testing.MockClock) -> None:
    guest = Guest({"interval": 1.0, "sections": ["uptime"]})
    async with trio.open_nursery() as nursery:
        client, other = Client(nursery), Client(nursery)
        begun = await _run(guest, client, "va_stats", interval=1)
        with pytest.raises(InvalidArguments, match="no subscription"):
            await _run(guest, other, "va_stats_stop", id=begun["id"])
        assert await _run(guest, client, "va_stats_stop", id=begun["id"]) == {}
    assert client.events == []
    assert guest.streams[0].was_reset


async def test_a_clients_subscriptions_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    guest = Guest({"interval": 1.0, "sections": ["uptime"]})
    async with trio.open_nursery() as nursery:
        client = Client(nursery)
        for _ in range(host_side.PER_CLIENT_MAX):
            await _run(guest, client, "va_stats", interval=1)
        with pytest.raises(InvalidArguments, match="end one with va_stats_stop"):
            await _run(guest, client, "va_stats", interval=1)
        nursery.cancel_scope.cancel()


async def test_a_guest_that_refuses_or_answers_nonsense_leaves_no_stream_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    no_method = RemoteFault(FaultCode.METHOD_NOT_FOUND, "va-guest 0.1 has no method 'va.stats'")
    answers: list[Any] = [no_method, [], {"interval": 1.0}, {"sections": ["gpu"]}, {"sections": [[]]}]
    for answer in answers:
        guest = Guest(answer)
        async with trio.open_nursery() as nursery:
            with pytest.raises((RemoteFault, RemoteProtocolError)):
                await _run(guest, Client(nursery), "va_stats", interval=1)
        assert guest.streams[0].was_reset


async def test_once_a_record_is_checked_and_a_window_does_not_go_with_an_interval() -> None:
    async with trio.open_nursery() as nursery:
        client = Client(nursery)
        guest = Guest(RECORD)
        record = await _run(guest, client, "va_stats", sections=["uptime"], window=2, top=3)
        assert record["uptime"] == 5.0
        assert guest.asked == [("va.stats", {"sections": ["uptime"], "window": 2.0, "top": 3})]
        with pytest.raises(InvalidArguments, match="'window' does not go with 'interval'"):
            await _run(guest, client, "va_stats", interval=1, window=2)
        with pytest.raises(InvalidArguments, match=r"'interval' must be at least 0\.2"):
            await _run(guest, client, "va_stats", interval=0.1)
        with pytest.raises(RemoteProtocolError):
            await _run(Guest({**RECORD, "uptime": -1.0}), client, "va_stats")


def test_the_least_interval_is_the_same_at_both_ends() -> None:
    assert TABLE["va_stats"].argument("interval").minimum == method.INTERVAL_MIN
    assert guest_side.FIRST >= method.INTERVAL_MIN
