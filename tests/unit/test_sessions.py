"""Calls of users' sessions, passed on by the guest's agent."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.unit.sessionpair import Played, session_links
from virtagent_guest.methods.sessions import _forwarder
from virtagent_guest.sessions.load import CALLS_OF_ONE, CALLS_SHARED
from virtagent_guest.sessions.table import (
    SESSIONS,
)
from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import (
    CallTimeout,
    FailureKind,
    FaultCode,
    RemoteFault,
)
from virtagent_protocol.values import Struct, Value


async def until_idle() -> None:
    """Wait until nothing is under way for sessions."""
    while len(_forwarder.load):
        await trio.sleep(0.01)


async def test_a_call_reaches_the_session_of_that_id_or_uid(autojump_clock: trio.testing.MockClock) -> None:
    async with session_links() as lab:
        session, _ = await lab.add(1000, Played().methods)
        value: Value = {"n": [1, b"\xff", None, 2.5], "s": "Grüße"}
        assert await lab.at(1000).call("t.echo", value) == value
        assert await lab.at("1000").call("t.echo", 7) == 7
        assert await lab.at(session.id).call("va.ping") is None
        described = await lab.machine.call("va.sessions")
        assert isinstance(described, list)
        assert [one["id"] for one in described if isinstance(one, dict)] == [session.id]
        await until_idle()
    assert len(SESSIONS) == 0


async def test_streams_that_a_call_names_are_joined_with_the_sessions(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_links() as lab:
        await lab.add(1000, Played().methods)
        # The numbers on the two links differ, and one of ours is the same as another parameter.
        extra = lab.machine.open_stream()
        vm = lab.at(1000)
        for _ in range(3):
            stream = vm.open_stream()
            assert await vm.call("t.upper", {"stream": stream.id, "id": int(stream.id)}) == "begun"
            sent = b"abc" * 100_000
            received = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, stream, sent)
                async for data in stream:
                    received += data
            assert received == sent.upper()
            await stream.aclose()
        extra.reset("cancelled")
        await until_idle()


async def _send(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def test_what_a_session_says_is_marked_as_its_own(autojump_clock: trio.testing.MockClock) -> None:
    async with session_links() as lab:
        session, _ = await lab.add(1000, Played().methods)
        vm = lab.at(1000)
        stream = vm.open_stream()
        with pytest.raises(RemoteFault) as caught:
            await vm.call("t.fail", stream.id)
        assert caught.value.message == f"session {session.id}: the guest's agent has lost its mind"
        # The stream is broken with the call.
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(RemoteFault, match=rf"^session {session.id}: method 't.none' not found"):
            await vm.call("t.none")


async def test_a_session_that_is_not_there_is_told_with_those_that_are(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_links() as lab:
        with pytest.raises(RemoteFault, match=r"no session '1000'; there is none: .*-session") as caught:
            await lab.at(1000).call("va.ping")
        assert caught.value.kind is FailureKind.NOT_THERE
        session, _ = await lab.add(1000, Played().methods)
        with pytest.raises(RemoteFault, match=rf"no session 'x-9'; it has {session.id} \(uid 1000\)"):
            await lab.at("x-9").call("va.ping")
        other, _ = await lab.add(1000, Played().methods)
        with pytest.raises(
            RemoteFault, match=rf"uid 1000 has 2 sessions \({session.id}, {other.id}\): name one by its id"
        ):
            await lab.at(1000).call("va.ping")
        assert await lab.at(other.id).call("t.echo", 1) == 1


async def test_a_session_that_ends_in_a_call_breaks_that_call(autojump_clock: trio.testing.MockClock) -> None:
    async with session_links() as lab:
        played = Played()
        session, scope = await lab.add(1000, played.methods)

        async def end() -> None:
            await played.begun.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with pytest.raises(
                RemoteFault, match=rf"^session {session.id} \(user1000, uid 1000\) has ended"
            ) as caught:
                await lab.at(1000).call("t.stuck")
        assert caught.value.kind is FailureKind.BROKEN
        with pytest.raises(RemoteFault, match="the guest has no session"):
            await lab.at(1000).call("va.ping")
        await until_idle()


async def test_a_deadline_cancels_the_call_in_the_session(autojump_clock: trio.testing.MockClock) -> None:
    async with session_links() as lab:
        played = Played()
        await lab.add(1000, played.methods)
        with pytest.raises(CallTimeout), call_deadline(2, "t.stuck"):
            await lab.at(1000).call("t.stuck")
        with trio.fail_after(1):
            await played.cancelled.wait()
            await until_idle()


async def test_the_agent_gives_up_by_itself_when_the_host_has_not_said_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_links() as lab:
        played = Played()
        await lab.add(1000, played.methods)
        answer = lab.machine.open_stream()
        request: Struct = {"session": "1000", "method": "t.stuck", "answer": answer.id, "deadline": 3.0}
        await lab.machine.call("va.session", request)
        begin = trio.current_time()
        said = b"".join([bytes(part) async for part in answer])
        assert trio.current_time() - begin == pytest.approx(3)
        assert said.startswith(b"\1")
        assert b"has not answered t.stuck within 3 s" in said
        assert str(int(FaultCode.TIMED_OUT)).encode() in said
        assert played.cancelled.is_set()


async def test_stuck_sessions_hold_no_place_of_anybody_elses(autojump_clock: trio.testing.MockClock) -> None:
    async with session_links() as lab:
        stuck = range(1, 21)
        for uid in (*stuck, 1000):
            await lab.add(uid, Played().methods)
        refused: list[int] = []

        async def call(uid: int) -> None:
            with trio.move_on_after(10):
                try:
                    await lab.at(uid).call("t.stuck")
                except RemoteFault as fault:
                    refused.append(fault.code)

        async with trio.open_nursery() as nursery:
            for uid in stuck:
                for _ in range(CALLS_OF_ONE + 1):
                    nursery.start_soon(call, uid)
            await trio.sleep(1)
            # What all may share is used up, and then some: every session has its first.
            assert CALLS_SHARED <= len(_forwarder.load) <= CALLS_SHARED + len(stuck)
            left_out = len(stuck) * (CALLS_OF_ONE + 1) - len(_forwarder.load)
            assert refused == [FaultCode.QUEUE_FULL] * left_out
            begin = trio.current_time()
            assert await lab.at(1000).call("t.echo", "still here") == "still here"
            assert await lab.machine.call("va.ping") is None
            assert trio.current_time() == begin
        await until_idle()
