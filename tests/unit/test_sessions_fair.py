"""Fifty sessions that send all they can, over a port that carries a MiB a second: who gets what of it."""

from __future__ import annotations

from contextlib import suppress

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.linkpair import MemoryStream, make_link, ready, run_quietly
from tests.unit.sessionpair import Machine, Sessions
from virtagent_guest.methods import sessions
from virtagent_guest.sessions.forwarder import CHUNK
from virtagent_guest.sessions.turns import Turns
from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.limits import KIB, MIB
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.stream import LinkStream

SESSIONS = 50
#: Some have several streams, and ask for answers besides.
GREEDY = 5
RATE = 1 * MIB
#: Bytes of an answer. It is counted when it is whole.
ANSWER = 700 * KIB
#: Seconds that are watched, after the first second.
WATCHED = 20
#: Seconds for a ping: what is being written, and a chunk more (docs/sessions.md).
PING_MAX = 2 * CHUNK / RATE


class SlowStream(trio.abc.Stream):
    """A stream that takes its time to send, and takes nothing else meanwhile, as a port does."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep(len(data) / RATE)
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


def pouring() -> Registry:
    """Return the methods of an end that writes without end."""
    registry = Registry()

    @registry.method("t.pour")
    async def pour(call: Call, stream: int) -> None:
        """Write without end."""
        accepted = call.accept(stream)

        async def work() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await accepted.send_all(bytes(CHUNK))

        call.spawn(work)

    @registry.method("t.large")
    async def large(call: Call) -> bytes:
        """Answer with a lot."""
        return bytes(ANSWER)

    return registry


class Drain:
    """Reads a stream, and counts."""

    def __init__(self) -> None:
        self.count = 0

    async def read(self, stream: LinkStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                self.count += len(data)


async def test_sessions_share_the_port_as_one_and_leave_pings_their_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offered = pouring()
    offered.include(sessions.registry)
    host, guest = make_link(Role.HOST), make_link(Role.GUEST, offered)
    host_end, guest_end = trio.testing.memory_stream_pair()
    own = Drain()
    of_sessions = [Drain() for _ in range(SESSIONS)]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_quietly, host, host_end)
        nursery.start_soon(run_quietly, guest, SlowStream(guest_end))
        await host.wait_for(ready)
        await guest.wait_for(ready)
        lab = Sessions(Machine(host), guest, nursery)

        async def ask_forever(uid: int) -> None:
            while True:
                with suppress(VirtagentError):
                    of_sessions[uid].count += len(await lab.at(uid).call("t.large"))  # type: ignore[arg-type]

        for uid, drain in enumerate(of_sessions):
            await lab.add(uid, pouring())
            for _ in range(4 if uid < GREEDY else 1):
                stream = lab.at(uid).open_stream()
                await lab.at(uid).call("t.pour", stream.id)
                nursery.start_soon(drain.read, stream)
            if uid < GREEDY:
                nursery.start_soon(ask_forever, uid)
        stream = host.open_stream()
        await host.call("t.pour", stream.id)
        nursery.start_soon(own.read, stream)
        await trio.sleep(1)

        before = [drain.count for drain in of_sessions], own.count
        longest, ending = 0.0, trio.current_time() + WATCHED
        while trio.current_time() < ending:
            begin = trio.current_time()
            await host.call("va.ping")
            longest = max(longest, trio.current_time() - begin)
            await trio.sleep(0.013)
        shares = [drain.count - then for drain, then in zip(of_sessions, before[0], strict=True)]
        own_share = own.count - before[1]
        nursery.cancel_scope.cancel()

    assert longest <= PING_MAX, longest
    total = sum(shares) + own_share
    # The port is in use, and the agent's own stream has most of it: all sessions together count as one.
    # (Answers are base64 on the wire, and not counted while they are not whole.)
    assert total >= 0.75 * RATE * WATCHED
    assert own_share >= 0.5 * total
    # One stream or four and answers besides: a session has one turn in each round.
    modest = shares[GREEDY:]
    assert max(modest) - min(modest) <= 2 * CHUNK
    assert max(shares) <= max(modest) + ANSWER


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_whoever_is_first_of_its_kind_waits_for_one_turn_of_each_other(keys: list[int]) -> None:
    async def main() -> list[int]:
        turns = Turns()
        order: list[int] = []

        async def work(key: int) -> None:
            async with turns.turn(key):
                order.append(key)
                await trio.testing.wait_all_tasks_blocked()

        async with trio.open_nursery() as nursery, turns.turn("first"):
            for key in keys:
                nursery.start_soon(work, key)
                await trio.testing.wait_all_tasks_blocked()
        return order

    order = trio.run(main)
    assert sorted(order) == sorted(keys)
    for round_ in range(1, max(map(keys.count, keys)) + 1):
        # In each round, every key that still waits has its turn once.
        eager = [key for key in set(keys) if keys.count(key) >= round_]
        begin = sum(min(keys.count(key), round_ - 1) for key in set(keys))
        assert sorted(order[begin : begin + len(eager)]) == sorted(eager)
