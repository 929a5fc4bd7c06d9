"""Records on a stream: to a reader who keeps up, who does not, who lies."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.linkpair import linked, make_link
from virtagent_guest.methods import stats as method
from virtagent_guest.stats.subscription import FIRST, SUBSCRIPTIONS, SUBSCRIPTIONS_MAX
from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import FaultCode, LinkBroken, RemoteFault, RemoteProtocolError
from virtagent_protocol.link import Link
from virtagent_protocol.paced import RECORD_MAX, TAKEN, PacedReader, PacedWriter
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct


def _pair() -> tuple[Link, Link]:
    offered = Registry()
    offered.include(method.registry)
    return make_link(Role.HOST), make_link(Role.GUEST, offered)


async def _subscribe(host: Link, interval: float) -> LinkStream:
    stream = host.open_stream()
    await host.call("va.stats", {"sections": ["load"], "stream": stream.id, "interval": interval})
    return stream


# --- The guest ---------------------------------------------------------------------------------------


async def test_records_come_at_the_interval_to_a_reader_who_keeps_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = _pair()
    async with linked(host, guest):
        began = trio.current_time()
        reader = PacedReader(await _subscribe(host, 5.0))
        times, skipped = [], []
        for _ in range(4):
            record: Any = await reader.get()
            await reader.taken()
            times.append(round(trio.current_time() - began, 3))
            skipped.append(record["skipped"])
        assert times == [FIRST, 5.0, 10.0, 15.0]
        assert skipped == [0, 0, 0, 0]


async def test_a_reader_who_does_not_keep_up_gets_fresh_records_and_the_count_of_those_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = _pair()
    async with linked(host, guest):
        reader = PacedReader(await _subscribe(host, 1.0))
        await reader.get()
        # The first came at 0.5 s; those of 1 to 10 s are skipped, for it was not taken.
        await trio.sleep(10.2)
        await reader.taken()
        began = trio.current_time()
        record: Any = await reader.get()
        assert record["skipped"] == 10
        assert trio.current_time() - began == pytest.approx(0.3)


async def test_a_reader_who_never_takes_a_record_holds_one_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = _pair()
    async with linked(host, guest):
        stream = await _subscribe(host, 0.2)
        sent = 0
        await trio.sleep(1000)
        with trio.move_on_after(100):
            while True:
                sent += len(await stream.receive_some())
        assert 0 < sent < 2000


@pytest.mark.parametrize("leaves", ["closes", "resets", "ends its half"])
async def test_a_subscription_ends_with_its_reader(
    leaves: str, autojump_clock: trio.testing.MockClock
) -> None:
    host, guest = _pair()
    async with linked(host, guest):
        stream = await _subscribe(host, 100.0)
        await trio.testing.wait_all_tasks_blocked()
        assert SUBSCRIPTIONS.count == 1
        began = trio.current_time()
        if leaves == "closes":
            await stream.aclose()
        elif leaves == "resets":
            stream.reset("cancelled")
        else:
            await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert SUBSCRIPTIONS.count == 0
        assert trio.current_time() - began < 1


async def test_a_reader_that_says_more_than_it_was_sent_is_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = _pair()
    async with linked(host, guest):
        stream = await _subscribe(host, 10.0)
        await stream.send_all(TAKEN * 1000)
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await stream.receive_some()
        assert SUBSCRIPTIONS.count == 0


async def test_subscriptions_are_bounded_and_one_that_ends_makes_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = _pair()
    async with linked(host, guest):
        streams = [await _subscribe(host, 100.0) for _ in range(SUBSCRIPTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RemoteFault, match="end one, then try again") as refused:
            await _subscribe(host, 100.0)
        assert refused.value.code == FaultCode.QUEUE_FULL
        await streams[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        await _subscribe(host, 100.0)
    assert SUBSCRIPTIONS.count == 0, "they end with their link"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sections": ["cpu", "gpu"]}, "there is no section 'gpu': the sections are uptime, load"),
        ({"sections": []}, "there must be a section"),
        ({"sections": "cpu"}, "'sections' must be array"),
        ({"sections": [[]]}, "there is no section"),
        ({"top": 0}, "top must be 1 to 100: 0"),
        ({"top": 101}, "top must be"),
        ({"window": 0.01}, "window must be 0.05 to 10 s: 0.01"),
        ({"window": 11.0}, "window must be"),
        ({"window": 1}, "'window' must be double"),
        ({"stream": 1, "interval": 0.1}, "interval must be 0.2 to 3600 s: 0.1"),
        ({"stream": 2}, "2 is not the id of a stream of yours"),
    ],
)
async def test_options_that_make_no_sense_are_refused(options: Struct, complaint: str) -> None:
    host, guest = _pair()
    with trio.fail_after(10):
        async with linked(host, guest):
            with pytest.raises(RemoteFault, match=complaint) as refused:
                await host.call("va.stats", options)
            assert refused.value.code == FaultCode.INVALID_PARAMS


async def test_without_rates_an_answer_comes_at_once(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    record: Any = await method.stats(Call("va.stats", "t"), {"sections": ["memory", "load"]})
    assert trio.current_time() == began
    assert {"memory", "load"} <= set(record)
    record = await method.stats(Call("va.stats", "t"), {"sections": ["network"], "window": 2.0})
    assert trio.current_time() == began + 2.0


# --- The wire ----------------------------------------------------------------------------------------


async def test_a_record_that_is_too_large_or_no_document_is_refused() -> None:
    for data in (
        (RECORD_MAX + 1).to_bytes(4, "big"),
        bytes(4),
        b"\0\0\0\5hello",
        _framed(xmlrpc.encode_fault(8, "no")),
        _framed(xmlrpc.encode_call("va.ping", [])),
    ):
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(data)
        with pytest.raises(RemoteProtocolError):
            await PacedReader(ours).get()


async def test_a_sender_that_does_not_wait_is_refused_in_bounded_memory() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    record = _framed(xmlrpc.encode_result("x" * 1_000_000))
    await theirs.send_all(record * 5)
    with pytest.raises(RemoteProtocolError, match="before the last one was taken"):
        await PacedReader(ours).get()


async def test_a_stream_that_ends_or_breaks_says_so() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(b"\0\0")
    await theirs.aclose()
    with pytest.raises(LinkBroken, match="no more records"):
        await PacedReader(ours).get()
    assert not await PacedWriter(ours).put("x")


def _framed(document: bytes) -> bytes:
    return len(document).to_bytes(4, "big") + document
