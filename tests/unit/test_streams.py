"""Streams over two links: conformance, windows, turns, ends; and what a stuck or hostile end can do."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.linkpair import Pair, linked, make_link
from virtagent_protocol.errors import Fault, FaultCode, NotReady, RemoteFault
from virtagent_protocol.limits import LINK_WINDOW, STREAM_BODY_MAX, STREAM_WINDOW, STREAMS_MAX
from virtagent_protocol.messages import StreamCredit, StreamData, StreamEnd, encode
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.streams import SHORT, SHORT_CHUNKS, WIDE_MAX
from virtagent_protocol.windows import ReceiveWindow, SendWindow

PATTERN = bytes(range(256)) * 1024


class Far:
    """A guest whose method ``t.open`` takes up streams and hands them to the test."""

    def __init__(self) -> None:
        self.registry = Registry()
        self._send, self._receive = trio.open_memory_channel[LinkStream](STREAMS_MAX)

        @self.registry.method("t.open")
        async def open_(call: Call, stream: int) -> None:
            self._send.send_nowait(call.accept(stream))

        @self.registry.method("t.open_and_fail")
        async def open_and_fail(call: Call, stream: int) -> None:
            call.accept(stream)
            raise Fault(FaultCode.FAILED, "by design")

        @self.registry.method("t.open_and_wait")
        async def open_and_wait(call: Call, stream: int) -> None:
            call.accept(stream)
            await trio.sleep_forever()

    async def taken(self) -> LinkStream:
        return await self._receive.receive()


@asynccontextmanager
async def far() -> AsyncIterator[tuple[Pair, Callable[[], Awaitable[tuple[LinkStream, LinkStream]]]]]:
    """Two links, and what makes a stream between them: the host's end and the guest's."""
    end = Far()
    async with linked(make_link(Role.HOST), make_link(Role.GUEST, end.registry)) as pair:

        async def make() -> tuple[LinkStream, LinkStream]:
            near = pair.host.open_stream()
            await pair.host.call("t.open", near.id)
            return near, await end.taken()

        yield pair, make


async def test_a_stream_passes_trios_conformance_checks(autojump_clock: trio.abc.Clock) -> None:
    async with far() as (_, make):

        async def clogged() -> tuple[LinkStream, LinkStream]:
            near, other = await make()
            for stream in (near, other):
                with trio.move_on_after(1):
                    while True:
                        await stream.send_all(bytes(65536))
            return near, other

        with trio.fail_after(3600):
            await trio.testing.check_half_closeable_stream(make, clogged)


async def test_bytes_come_out_as_they_went_in_both_ways_at_once() -> None:
    async with far() as (_, make), trio.open_nursery() as nursery:
        near, other = await make()

        async def send(stream: LinkStream) -> None:
            await stream.send_all(PATTERN * 8)
            await stream.send_eof()

        async def receive(stream: LinkStream) -> None:
            assert b"".join([part async for part in stream]) == PATTERN * 8

        for stream in (near, other):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)


async def fill(stream: LinkStream) -> int:
    """Send until nothing moves any more, and return how much that was."""
    sent = 0
    with suppress(trio.WouldBlock), trio.move_on_after(1):
        while True:
            await stream.send_all(bytes(4096))
            sent += 4096
    return sent


async def test_a_stuck_consumer_stalls_nothing_but_its_own_stream(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with far() as (pair, make):
        stuck = [await make() for _ in range(20)]
        for near, other in stuck:
            assert await fill(near) == STREAM_WINDOW
            assert await fill(other) == STREAM_WINDOW
        near, other = await make()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await near.send_all(PATTERN * 8)
                await near.aclose()

            nursery.start_soon(send)
            with trio.fail_after(1):
                assert b"".join([part async for part in other]) == PATTERN * 8
                await pair.host.call("va.ping")
                await pair.guest.call("va.ping")


async def test_a_window_grows_when_its_consumer_works_and_only_so_many_do(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with far() as (_, make):
        streams = [await make() for _ in range(WIDE_MAX + 1)]
        for near, other in streams:
            assert await fill(near) == STREAM_WINDOW
            await take(other, STREAM_WINDOW)
        # Of the two windows a quarter was consumed since, which is not granted back by itself.
        wide = STREAM_WINDOW * 3 // 2
        assert [await fill(near) for near, _ in streams] == [wide] * WIDE_MAX + [STREAM_WINDOW]
        # One that has ended makes room for another.
        for end in streams[0]:
            await end.aclose()
        near, other = streams[-1]
        await take(other, STREAM_WINDOW)
        assert await fill(near) == wide


async def chunks(near: LinkStream, other: LinkStream, count: int) -> list[int]:
    """Send so many bytes, and return the sizes in which they come."""
    sizes: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(count))
        while sum(sizes) < count:
            sizes.append(len(await other.receive_some()))
    return sizes


async def test_chunks_are_short_behind_a_call_and_large_again_where_nobody_calls() -> None:
    async with far() as (pair, make):
        near, other = await make()
        behind = SHORT * SHORT_CHUNKS
        for _ in range(2):
            sizes = await chunks(near, other, behind + 4 * STREAM_BODY_MAX)
            assert max(sizes[:SHORT_CHUNKS]) == SHORT
            assert max(sizes) == STREAM_BODY_MAX
            assert max(await chunks(other, near, behind)) <= SHORT
            assert max(await chunks(near, other, 4 * STREAM_BODY_MAX)) == STREAM_BODY_MAX
            # Who is called is as quiet afterwards as who calls.
            await pair.host.call("va.ping")


async def test_the_credit_of_the_link_goes_with_that_of_a_stream() -> None:
    async with far() as (pair, make):
        near, other = await make()
        before = pair.guest.counters.messages_out
        await chunks(near, other, 16 * STREAM_WINDOW)
        # The stream's window is 2 MiB from the first half on, so a message for each MiB, and one with it.
        assert pair.guest.counters.messages_out - before <= 2 * 17


async def test_two_ends_that_flood_each_other_do_not_deadlock(autojump_clock: trio.abc.Clock) -> None:
    async with far() as (pair, make):
        streams = [await make() for _ in range(30)]
        async with trio.open_nursery() as nursery:
            for near, other in streams:
                nursery.start_soon(fill, near)
                nursery.start_soon(fill, other)
        with trio.fail_after(1):
            await pair.host.call("va.ping")
            await pair.guest.call("va.ping")
        for pairs in streams:
            for stream in pairs:
                assert await stream.receive_some()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_set_of_consumers_is_stuck_the_others_get_all(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    stuck = data.draw(st.sets(st.integers(0, 2 * count - 1), max_size=2 * count - 1))
    sizes = data.draw(st.lists(st.integers(1, 2 * STREAM_WINDOW), min_size=2 * count, max_size=2 * count))

    async def main() -> None:
        async with far() as (pair, make):
            ends: list[tuple[LinkStream, LinkStream]] = []
            for _ in range(count):
                near, other = await make()
                ends += [(near, other), (other, near)]
            with trio.fail_after(60):
                async with trio.open_nursery() as senders:
                    async with trio.open_nursery() as others:
                        for number, (sender, receiver) in enumerate(ends):
                            senders.start_soon(send, sender, sizes[number])
                            if number not in stuck:
                                others.start_soon(receive, receiver, sizes[number])
                        others.start_soon(pair.host.call, "va.ping")
                        others.start_soon(pair.guest.call, "va.ping")
                    senders.cancel_scope.cancel()

    async def send(stream: LinkStream, size: int) -> None:
        await stream.send_all(bytes(size))
        await stream.send_eof()

    async def receive(stream: LinkStream, size: int) -> None:
        assert sum([len(part) async for part in stream]) == size

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_streams_take_turns() -> None:
    order: list[int] = []
    async with far() as (_, make), trio.open_nursery() as nursery:
        pairs = [await make() for _ in range(4)]

        async def receive(number: int, stream: LinkStream) -> None:
            async for part in stream:
                order.append(number)
                assert len(part) <= STREAM_BODY_MAX

        async def send(stream: LinkStream) -> None:
            await stream.send_all(PATTERN * 32)
            await stream.aclose()

        for number, (near, other) in enumerate(pairs):
            nursery.start_soon(send, near)
            nursery.start_soon(receive, number, other)
    # No stream waits for more than two turns of each other one.
    for number in range(4):
        turns = [at for at, of in enumerate(order) if of == number]
        assert max(b - a for a, b in itertools.pairwise(turns)) <= 2 * 4, order


async def test_what_was_sent_before_the_close_arrives_and_then_the_end() -> None:
    async with far() as (pair, make):
        near, other = await make()
        await near.send_all(PATTERN[:100_000])
        await near.aclose()
        assert b"".join([part async for part in other]) == PATTERN[:100_000]
        with pytest.raises(trio.BrokenResourceError, match="the other end has closed stream 1"):
            await other.send_all(b"x")
        await other.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert open_streams(pair) == (0, 0)


async def test_a_stream_is_gone_when_both_halves_have_ended() -> None:
    async with far() as (pair, make):
        near, other = await make()
        await near.send_eof()
        assert await other.receive_some() == b""
        await other.send_all(b"still open")
        await other.send_eof()
        assert b"".join([part async for part in near]) == b"still open"
        await trio.testing.wait_all_tasks_blocked()
        assert open_streams(pair) == (0, 0)


async def test_a_reset_is_felt_at_both_ends_and_frees_what_was_held(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with far() as (pair, make), trio.open_nursery() as nursery:
        near, other = await make()
        await fill(near)
        nursery.start_soon(broken, other.send_all, bytes(2 * STREAM_WINDOW), "reset stream 1: enough")
        await trio.testing.wait_all_tasks_blocked()
        near.reset("enough", "we had enough")
        await broken(near.receive_some, None, "we had enough")
        await trio.testing.wait_all_tasks_blocked()
        await broken(other.receive_some, None, "reset stream 1: enough")
        assert open_streams(pair) == (0, 0)
        # The link's credit is whole again.
        for _ in range(3):
            near, other = await make()
            nursery.start_soon(near.send_all, bytes(LINK_WINDOW))
            assert len(await take(other, LINK_WINDOW)) == LINK_WINDOW


async def take(stream: LinkStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some(count - len(data))
    return data


async def broken(function: Callable[..., Awaitable[object]], argument: object, words: str) -> None:
    with pytest.raises(trio.BrokenResourceError, match=words):
        await function(argument)


def open_streams(pair: Pair) -> tuple[object, object]:
    figures = [link.figures()["streams"] for link in (pair.host, pair.guest)]
    assert all(isinstance(figure, dict) for figure in figures)
    return tuple(figure["open"] for figure in figures)  # type: ignore[return-value,index,call-overload]


async def test_a_call_that_fails_resets_the_streams_it_has_accepted() -> None:
    async with far() as (pair, _):
        near = pair.host.open_stream()
        with pytest.raises(RemoteFault, match="by design"):
            await pair.host.call("t.open_and_fail", near.id)
        await broken(near.receive_some, None, "refused")
        assert open_streams(pair) == (0, 0)


async def test_a_call_that_is_cancelled_resets_its_streams(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with far() as (pair, _):
        near = pair.host.open_stream()
        with trio.move_on_after(1):
            await pair.host.call("t.open_and_wait", near.id)
        await broken(near.receive_some, None, "cancelled")
        assert open_streams(pair) == (0, 0)


async def test_with_its_session_a_stream_is_broken() -> None:
    async with far() as (pair, make), trio.open_nursery() as nursery:
        near, _ = await make()
        _, other = await make()
        nursery.start_soon(broken, near.receive_some, None, "session has ended")
        nursery.start_soon(broken, other.send_all, bytes(4 * STREAM_WINDOW), "session has ended")
        await trio.testing.wait_all_tasks_blocked()
        await pair.guest_stream.aclose()


async def test_without_a_session_there_are_no_streams() -> None:
    with pytest.raises(NotReady, match="no session"):
        make_link(Role.HOST).open_stream()


async def test_more_streams_than_there_may_be_are_refused() -> None:
    async with far() as (pair, make):
        for _ in range(STREAMS_MAX):
            await make()
        with pytest.raises(NotReady, match=f"{STREAMS_MAX} streams are open"):
            pair.host.open_stream()


@pytest.mark.parametrize("number", [0, -1, 2, 2**31])
async def test_an_id_that_is_not_of_the_peers_is_refused(number: int) -> None:
    async with far() as (pair, _):
        with pytest.raises(RemoteFault, match="not the id of a stream of yours"):
            await pair.host.call("t.open", number)


async def test_a_peer_that_sends_more_than_a_stream_was_granted_loses_that_stream_only() -> None:
    async with far() as (pair, make):
        near, other = await make()
        _, intact = await make()
        session = pair.guest.session
        assert session is not None
        for _ in range(STREAM_WINDOW // 65536 + 1):
            data = encode(StreamData(near.id, bytes(65536), session.id))
            pair.guest_stream.receive_stream.put_data(data)
        await trio.testing.wait_all_tasks_blocked()
        await broken(other.receive_some, None, "more on stream 1 than it was granted")
        await broken(near.receive_some, None, "overrun")
        await intact.send_all(b"x")
        await pair.guest.call("va.ping")


async def test_a_peer_that_sends_more_than_the_link_was_granted_loses_the_stream() -> None:
    async with far() as (pair, make):
        pairs = [await make() for _ in range(4)]
        session = pair.guest.session
        assert session is not None
        # What is for no stream at all counts as well; it is granted back as it is read.
        for _ in range(2 * LINK_WINDOW // 65536):
            pair.guest_stream.receive_stream.put_data(encode(StreamData(99, bytes(65536), session.id)))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.guest.counters.drops["stream"] == 2 * LINK_WINDOW // 65536
        await pairs[0][0].send_all(b"x")
        assert await pairs[0][1].receive_some() == b"x"


async def test_credit_that_no_window_can_have_resets_the_stream() -> None:
    async with far() as (pair, make):
        near, other = await make()
        session = pair.host.session
        assert session is not None
        pair.host_stream.receive_stream.put_data(encode(StreamCredit(near.id, 2**31 - 1, session.id)))
        await trio.testing.wait_all_tasks_blocked()
        await broken(near.send_all, b"x", "credit")
        await broken(other.receive_some, None, "overrun")


async def test_what_is_for_no_stream_is_dropped_and_counted() -> None:
    async with far() as (pair, _):
        session = pair.guest.session
        assert session is not None
        for message in (StreamData(7, b"x", session.id), StreamEnd(7, "eof", session.id)):
            pair.guest_stream.receive_stream.put_data(encode(message))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.guest.counters.drops["stream"] == 1
        await pair.guest.call("va.ping")


@given(st.integers(8192, 10**6), st.lists(st.integers(0, 10**5)))
def test_outstanding_and_unread_never_exceed_the_window(size: int, wishes: list[int]) -> None:
    sender, receiver, unread = SendWindow(size), ReceiveWindow(size), 0
    for wish in wishes:
        count = min(wish, sender.credit)
        sender.spend(count)
        assert receiver.receive(count)
        unread += count
        assert sender.credit + unread <= size
        eaten = min(unread, wish)
        unread -= eaten
        sender.grant(receiver.consume(eaten))
    assert not receiver.receive(sender.credit + 1)
    # Whoever has read everything has granted at least half.
    sender.grant(receiver.consume(unread))
    assert 2 * sender.credit >= size
