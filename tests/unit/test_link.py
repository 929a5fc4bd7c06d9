"""One link to another: sessions, calls, resets, heartbeats."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tests.unit.linkpair import MemoryStream, linked, make_link, ready
from virtagent_protocol import greeting, xmlrpc
from virtagent_protocol.channel import Buffer
from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import (
    CallTimeout,
    FaultCode,
    LocalProtocolError,
    NotReady,
    RemoteFault,
    SessionReset,
)
from virtagent_protocol.limits import Settings
from virtagent_protocol.link import STALL, Link
from virtagent_protocol.linkstate import LinkEvent, LinkState
from virtagent_protocol.messages import Request, Response, StreamData, encode
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.values import Value


def echo_registry() -> Registry:
    registry = Registry()

    @registry.method("t.echo")
    async def echo(call: Call, value: Value) -> Value:
        """Return the parameter."""
        return value

    @registry.method("t.sleep")
    async def sleep(call: Call, seconds: float) -> bool:
        """Sleep, then return true."""
        await trio.sleep(seconds)
        return True

    @registry.method("t.crash")
    async def crash(call: Call) -> None:
        """Raise something unexpected."""
        raise ZeroDivisionError("by design")

    return registry


def links() -> tuple[Link, Link]:
    return make_link(Role.HOST, echo_registry()), make_link(Role.GUEST, echo_registry())


async def test_both_ends_agree_on_the_session() -> None:
    async with linked(*links()) as pair:
        assert pair.host.session is not None
        assert pair.guest.session is not None
        assert pair.host.session.id == pair.guest.session.id
        assert pair.host.session.peer.agent == "test-guest 1.0"
        assert pair.host.session.protocol == "1.0"


async def test_either_end_calls_the_other() -> None:
    async with linked(*links()) as pair:
        assert await pair.host.call("t.echo", [1, "two\r\n", b"\xff", None]) == [1, "two\r\n", b"\xff", None]
        assert await pair.guest.call("t.echo", {"a": 2**40}) == {"a": 2**40}
        assert await pair.guest.call("va.ping") is None


async def test_a_handler_that_raises_becomes_a_fault_and_the_link_lives() -> None:
    async with linked(*links()) as pair:
        with pytest.raises(RemoteFault, match="ZeroDivisionError: by design") as caught:
            await pair.host.call("t.crash")
        assert caught.value.code == FaultCode.INTERNAL_ERROR
        assert await pair.host.call("va.ping") is None


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("t.unknown", [], FaultCode.METHOD_NOT_FOUND),
        ("t.sleep", [], FaultCode.INVALID_PARAMS),
        ("t.sleep", ["x"], FaultCode.INVALID_PARAMS),
        ("t.sleep", [0.0, 1], FaultCode.INVALID_PARAMS),
    ],
)
async def test_a_bad_call_is_a_fault_that_names_the_mistake(
    method: str, params: list[Value], code: FaultCode
) -> None:
    async with linked(*links()) as pair:
        with pytest.raises(RemoteFault) as caught:
            await pair.host.call(method, *params)
        assert caught.value.code == code


async def test_a_value_that_xml_cannot_carry_is_a_local_error_and_nothing_is_sent() -> None:
    async with linked(*links()) as pair:
        before = pair.host.counters.messages_out
        with pytest.raises(LocalProtocolError, match="U\\+0001"):
            await pair.host.call("t.echo", "\x01")
        assert pair.host.counters.messages_out == before


async def test_introspection_describes_every_method() -> None:
    async with linked(*links()) as pair:
        names = await pair.host.call("system.listMethods")
        assert isinstance(names, list)
        assert "t.sleep" in names
        assert await pair.host.call("system.methodSignature", "t.sleep") == [["boolean", "double"]]
        assert await pair.host.call("system.methodHelp", "t.sleep") == "Sleep, then return true."
        capabilities = await pair.host.call("va.capabilities")
        assert isinstance(capabilities, dict)
        assert capabilities["methods"] == names
        assert capabilities["version"] == "1.0"


async def test_multicall_goes_on_after_a_fault() -> None:
    async with linked(*links()) as pair:
        result = await pair.host.call(
            "system.multicall",
            [
                {"methodName": "t.echo", "params": [1]},
                {"methodName": "t.none", "params": []},
                {"methodName": "system.multicall", "params": [[]]},
                {"methodName": "t.echo", "params": ["x"]},
                "nonsense",
            ],
        )
        assert isinstance(result, list)
        assert result[0] == [1]
        assert result[3] == ["x"]
        faults = [r["faultCode"] for r in result if isinstance(r, dict)]
        assert faults == [
            FaultCode.METHOD_NOT_FOUND,
            FaultCode.INVALID_REQUEST,
            FaultCode.INVALID_REQUEST,
        ]


async def test_a_call_without_a_session_says_why(autojump_clock: trio.testing.MockClock) -> None:
    host = make_link(Role.HOST)
    host.hint(LinkEvent.PORT_CLOSED, "no agent has ever opened the port")
    with pytest.raises(NotReady, match="port-closed: no agent has ever opened the port"):
        await host.call("va.ping")


async def test_a_deadline_cancels_the_call_on_both_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with linked(*links()) as pair:
        expected = pytest.raises(CallTimeout, match=r"t\.sleep: no answer within 2 s")
        with expected, call_deadline(2, "t.sleep"):
            await pair.host.call("t.sleep", 100.0)
        await trio.sleep(0.1)
        assert pair.guest.counters.served["cancelled"] == 1
        assert pair.guest.figures()["server-jobs"] == {"executing": 0, "waiting": 0, "slots": 4}


async def test_a_restart_of_the_other_end_fails_all_calls_with_the_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = links()
    host_stream, guest_stream = trio.testing.memory_stream_pair()
    outcomes: list[Exception] = []

    async def call() -> None:
        try:
            await host.call("t.sleep", 1000.0)
        except SessionReset as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run, host_stream)
        async with trio.open_nursery() as first_life:
            first_life.start_soon(guest.run, guest_stream)
            await host.wait_for(ready)
            for _ in range(20):  # more than there are slots: those that wait for one must end, too
                nursery.start_soon(call)
            await trio.sleep(1)
            first_life.cancel_scope.cancel()
        second = make_link(Role.GUEST, echo_registry())
        nursery.start_soon(second.run, guest_stream)
        await second.wait_for(ready)
        await host.wait_for(lambda status: "restarted" in status.reason)
        await trio.testing.wait_all_tasks_blocked()
        assert len(outcomes) == 20
        assert "the guest's agent was restarted" in str(outcomes[0])
        assert await host.call("t.echo", 5) == 5
        nursery.cancel_scope.cancel()


async def test_a_message_of_another_session_is_dropped_and_provokes_a_hello(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked(*links()) as pair:
        body = xmlrpc.encode_call("t.echo", [1])
        stray = Request("stray-1", body, "0" * 16 + "-" + "1" * 16)
        await trio.sleep(1)
        before = pair.guest.counters.messages_out
        pair.guest_stream.receive_stream.put_data(encode(stray))
        await trio.sleep(3)
        assert pair.guest.counters.drops["session"] == 1
        assert pair.guest.counters.served == {}
        assert pair.guest.counters.messages_out == before + 1  # the hello, and no answer to the stray


async def test_ten_thousand_strays_provoke_a_hello_a_second(autojump_clock: trio.testing.MockClock) -> None:
    async with linked(*links()) as pair:
        body = xmlrpc.encode_call("t.echo", [1])
        stray = encode(Request("stray-1", body, "0" * 16 + "-" + "1" * 16))
        before = pair.guest.counters.messages_out
        for _ in range(100):
            pair.guest_stream.receive_stream.put_data(stray * 100)
            await trio.sleep(0.1)
        assert pair.guest.counters.drops["session"] == 10_000
        assert pair.guest.counters.messages_out - before <= 12


async def test_replies_to_tags_never_sent_are_dropped() -> None:
    async with linked(*links()) as pair:
        assert pair.host.session is not None
        reply = Response("made-up", xmlrpc.encode_result("gotcha"), pair.host.session.id)
        pair.host_stream.receive_stream.put_data(encode(reply))
        assert await pair.host.call("t.echo", 1) == 1
        assert pair.host.counters.drops["unknown-reply"] == 1


async def test_stream_data_for_no_stream_is_a_benign_race() -> None:
    async with linked(*links()) as pair:
        assert pair.host.session is not None
        pair.host_stream.receive_stream.put_data(encode(StreamData(1, b"x", pair.host.session.id)))
        assert await pair.host.call("t.echo", 1) == 1
        assert pair.host.counters.drops["stream"] == 1


async def test_two_ends_of_the_same_role_are_told_apart(autojump_clock: trio.testing.MockClock) -> None:
    one, other = make_link(Role.HOST), make_link(Role.HOST)
    left, right = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run, left)
        nursery.start_soon(other.run, right)
        status = await one.wait_for(lambda status: "both ends" in status.reason)
        assert status.state is LinkState.GREETING
        nursery.cancel_scope.cancel()


async def test_no_common_version_is_a_clear_error_on_both_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = links()
    guest._own = guest._own.__class__(**{**guest._own.__dict__, "protocols": ("2.3",)})
    left, right = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run, left)
        nursery.start_soon(guest.run, right)
        for link in (host, guest):
            status = await link.wait_for(lambda status: "no common protocol version" in status.reason)
            assert "speaks 2.3" in status.reason
        with pytest.raises(NotReady, match="no common protocol version"):
            await host.call("va.ping")
        nursery.cancel_scope.cancel()


async def test_an_idle_link_keeps_a_heartbeat_and_its_session(autojump_clock: trio.testing.MockClock) -> None:
    async with linked(*links()) as pair:
        session = pair.host.session
        before = pair.host.counters.messages_in
        await trio.sleep(10 * greeting.HEARTBEAT)
        assert pair.host.session is session
        assert 8 <= pair.host.counters.messages_in - before <= 30


async def test_a_peer_that_falls_silent_is_doubted_but_its_session_stands(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked(*links()) as pair:
        session = pair.host.session
        # Hold back what the guest says, as a stuck VM would.
        held = pair.guest_stream.send_stream.send_all_hook

        async def hold() -> None:
            await trio.sleep(60)

        pair.guest_stream.send_stream.send_all_hook = hold
        status = await pair.host.wait_for(lambda status: status.state is LinkState.GREETING)
        assert "heartbeat" in status.reason
        with pytest.raises(NotReady):
            await pair.host.call("va.ping")
        pair.guest_stream.send_stream.send_all_hook = held
        await pair.host.wait_for(ready)
        assert pair.host.session is session
        assert pair.host.counters.resets == 0


async def test_a_stopped_vm_is_not_declared_dead(autojump_clock: trio.testing.MockClock) -> None:
    async with linked(*links()) as pair:

        async def hold() -> None:
            await trio.sleep_forever()

        pair.guest_stream.send_stream.send_all_hook = hold
        pair.host.pause("stopped by the test")
        assert pair.host.status.state is LinkState.PAUSED
        await trio.sleep(3600)
        assert pair.host.counters.resets == 0
        assert pair.host.status.state is LinkState.PAUSED
        pair.host.resume()
        assert ready(pair.host.status)


async def test_a_body_cut_off_while_greeting_is_abandoned_after_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host, guest = links()
    host_stream, guest_stream = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        dead_sender = encode(Request("old", b"x" * 1000, "0" * 16 + "-" + "1" * 16))[:-500]
        await guest_stream.send_all(dead_sender)
        nursery.start_soon(host.run, host_stream)
        nursery.start_soon(guest.run, guest_stream)
        with trio.fail_after(20):
            await host.wait_for(ready)
        assert host.counters.drops["abandoned"] + host.counters.drops["unterminated"] == 1
        assert await host.call("t.echo", 1) == 1
        nursery.cancel_scope.cancel()


async def test_a_message_that_comes_slowly_is_waited_for_and_one_that_comes_no_more_is_doubted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked(*links()) as pair:
        session = pair.guest.session
        assert session is not None
        data = encode(Request("late", xmlrpc.encode_call("va.ping", []), session.id))
        feed = pair.guest_stream.receive_stream.put_data
        await trio.testing.wait_all_tasks_blocked()
        hellos = pair.guest.counters.messages_out
        for byte in data[:30]:
            feed(bytes([byte]))
            await trio.sleep(STALL / 10)
        assert pair.guest.counters.messages_out == hellos
        await trio.sleep(2 * STALL)
        # It has asked who is there, and the answer has cut the message short.
        assert pair.guest.counters.messages_out > hellos
        assert pair.guest.counters.drops["cut-short"] == 1
        assert pair.guest.session is session
        assert await pair.host.call("t.echo", 1) == 1


class Remembering(trio.abc.Stream):
    """A channel whose cancellations live on, as any exception may until garbage is collected."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream
        self.cancellations: list[trio.Cancelled] = []

    async def read_into(self, buffer: memoryview) -> int:
        try:
            data = await self._stream.receive_some(len(buffer))
        except trio.Cancelled as error:
            self.cancellations.append(error)
            raise
        buffer[: len(data)] = data
        return len(data)

    async def write(self, parts: Sequence[Buffer]) -> None:
        for part in parts:
            await self._stream.send_all(part)

    def write_now(self, parts: Sequence[Buffer]) -> int:
        return 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: Buffer) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_a_large_message_that_comes_slowly_is_whole(autojump_clock: trio.testing.MockClock) -> None:
    channels: list[Remembering] = []

    def channel(stream: MemoryStream) -> Remembering:
        channels.append(Remembering(stream))
        return channels[-1]

    async with linked(*links(), channel) as pair:
        session = pair.guest.session
        assert session is not None
        data = encode(StreamData(2, bytes(100_000), session.id))
        await trio.testing.wait_all_tasks_blocked()
        for at in range(0, len(data), 4000):
            pair.guest_stream.receive_stream.put_data(data[at : at + 4000])
            await trio.sleep(STALL / 10)
        assert channels[0].cancellations, "the timer has not gone off"
        assert pair.guest.counters.drops == {"stream": 1}  # it was read, and there is no such stream
        assert await pair.host.call("t.echo", 1) == 1


async def test_limits_of_the_other_end_are_kept() -> None:
    host = make_link(Role.HOST, echo_registry())
    guest = make_link(Role.GUEST, echo_registry(), Settings(execute_max=1, queue_max=1))
    async with linked(host, guest) as pair:
        jobs = pair.host.figures()["client-jobs"]
        assert isinstance(jobs, dict)
        assert jobs["slots"] == 2
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(pair.host.call, "t.echo", 1)
        assert pair.guest.counters.served == {"ok": 50}


async def test_checksums_are_on_everything_if_one_end_asks_for_them() -> None:
    host = make_link(Role.HOST, echo_registry())
    guest = Link(Role.GUEST, "serial 1.0", echo_registry(), crc=True)
    guest.hint(LinkEvent.PORT_OPENED, "test")
    async with linked(host, guest) as pair:
        assert await pair.host.call("t.echo", b"\xff\x00") == b"\xff\x00"
        assert await pair.guest.call("t.echo", [1]) == [1]
        assert pair.host.counters.drops == pair.guest.counters.drops == {}
        assert pair.host.session is not None
        bare = encode(Request("t", xmlrpc.encode_call("va.ping", []), pair.host.session.id))
        pair.host_stream.receive_stream.put_data(bare)
        assert await pair.host.call("t.echo", 2) == 2
        assert pair.host.counters.drops == {"crc": 1}
