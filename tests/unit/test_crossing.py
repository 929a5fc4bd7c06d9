"""Two streams of two links joined as one (virtagent_protocol.crossing)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from tests.unit.linkpair import Pair, linked, make_link
from virtagent_protocol.crossing import LOST, relay_streams
from virtagent_protocol.limits import STREAM_WINDOW
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.stream import LinkStream

BIG = bytes(range(256)) * 8192  # more than all windows between the ends


@dataclass
class Crossing:
    """A program's stream, and that of the host, joined by an agent in between."""

    program: LinkStream
    host: LinkStream
    local: Pair
    port: Pair
    over: trio.Event


@asynccontextmanager
async def crossing() -> AsyncIterator[Crossing]:
    taken: list[LinkStream] = []

    def accepting() -> Registry:
        registry = Registry()

        @registry.method("take")
        async def take(call: Call, number: int) -> None:
            taken.append(call.accept(number))

        return registry

    async with (
        linked(make_link(Role.HOST, accepting()), make_link(Role.GUEST)) as local,
        linked(make_link(Role.HOST, accepting()), make_link(Role.GUEST)) as port,
        trio.open_nursery() as nursery,
    ):
        program, onward = local.guest.open_stream(), port.guest.open_stream()
        await local.guest.call("take", program.id)
        await port.guest.call("take", onward.id)
        over = trio.Event()

        async def relay() -> None:
            await relay_streams(taken[0], onward)
            over.set()

        nursery.start_soon(relay)
        yield Crossing(program, taken[1], local, port, over)
        nursery.cancel_scope.cancel()


async def read_all(stream: LinkStream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


async def test_both_halves_are_passed_on_whole_and_end_apart(autojump_clock: trio.testing.MockClock) -> None:
    async with crossing() as c:

        async def send() -> None:
            await c.program.send_all(BIG)
            await c.program.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await read_all(c.host) == BIG
        await c.host.send_all(BIG[::-1][:100_000])
        await c.host.send_eof()
        assert await read_all(c.program) == BIG[::-1][:100_000]
        await c.over.wait()


async def test_one_that_reads_nothing_is_sent_no_more_than_windows_hold(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with crossing() as c:
        sent = 0
        with trio.move_on_after(60):
            while True:
                await c.program.send_all(BIG[:65536])
                sent += 65536
        assert sent < 6 * STREAM_WINDOW
        assert len(await c.host.receive_some()) > 0


async def test_closed_is_passed_on_behind_the_data(autojump_clock: trio.testing.MockClock) -> None:
    async with crossing() as c:
        await c.host.send_all(b"last words")
        await c.host.aclose()
        assert await read_all(c.program) == b"last words"
        await c.program.wait_unwanted()
        await c.over.wait()
        assert c.program.reset_by_peer is None


@pytest.mark.parametrize("from_program", [True, False])
async def test_a_reset_is_passed_on_with_its_reason(
    from_program: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with crossing() as c:
        one, other = (c.program, c.host) if from_program else (c.host, c.program)
        await one.send_all(b"half of it")
        one.reset("unread")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(other)
        assert other.reset_by_peer == "unread"
        await c.over.wait()


async def test_a_session_that_ends_breaks_the_other_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with crossing() as c:
        await c.port.host_stream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await read_all(c.program)
        assert c.program.reset_by_peer == LOST
        await c.over.wait()
