"""The channels of va-guest on what the kernel of this machine has: sockets, terminals, and no virtio port.

`VirtioPortStream` runs here on a socket pair, which has the edges of the real device but not its two
peculiarities (an empty read that means nothing, a hang-up that goes away). Those are tests/guest's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from virtagent_guest.config import Channel
from virtagent_guest.transports import Transport, VirtioPortStream, make_transport
from virtagent_protocol import xmlrpc
from virtagent_protocol.channel import AT_ONCE
from virtagent_protocol.errors import LinkBroken, NotReady, NotThere
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent, LinkState
from virtagent_protocol.messages import Request, encode
from virtagent_protocol.registry import Registry
from virtagent_protocol.session import Hello, Role

DEADLINE = 10.0
EVERY_BYTE = bytes(range(256))


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE):
        yield


class Reports:
    """What a transport reported, and a way to wait for it."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[bool, str]](100)

    def __call__(self, peer: bool, state: str) -> None:
        self._send.send_nowait((peer, state))

    async def next(self) -> tuple[bool, str]:
        return await self._receive.receive()


def nobody(peer: bool, state: str) -> None:
    """For tests that do not look at reports."""


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        assert piece, f"the stream ended after {len(data)} of {count} bytes"
        data += piece
    return bytes(data)


# --- virtio-serial -----------------------------------------------------------------------------------


@pytest.fixture
async def port() -> AsyncIterator[tuple[VirtioPortStream, trio.SocketStream]]:
    """A VirtioPortStream and the host's end of it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    async with (
        VirtioPortStream(ours.detach()) as stream,
        trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as host,
    ):
        yield stream, host


async def test_one_change_wakes_the_task_that_reads_and_the_task_that_writes(
    port: tuple[VirtioPortStream, trio.SocketStream],
) -> None:
    stream, host = port
    data = os.urandom(4_000_000)

    async def echo() -> None:
        left = len(data)
        while left:
            piece = await stream.receive_some()
            left -= len(piece)
            await to_writer.send(piece)

    async def write() -> None:
        async for piece in from_reader:
            await stream.send_all(piece)

    to_writer, from_reader = trio.open_memory_channel[bytes](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(write)
        nursery.start_soon(host.send_all, data)
        assert await receive_exactly(host, len(data)) == data
        nursery.cancel_scope.cancel()


async def test_a_change_between_the_attempt_and_the_wait_is_not_lost(
    port: tuple[VirtioPortStream, trio.SocketStream],
) -> None:
    stream, host = port
    # Ping-pong in single bytes: each of them arrives somewhere between the other end's read and its wait.
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            while True:
                await stream.send_all(await stream.receive_some(1))

        for number in range(2000):
            await host.send_all(bytes([number % 256]))
            assert await receive_exactly(host, 1) == bytes([number % 256])
        nursery.cancel_scope.cancel()


async def test_a_writer_waits_while_the_port_is_full_and_can_be_cancelled(
    port: tuple[VirtioPortStream, trio.SocketStream],
) -> None:
    stream, host = port
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(10_000_000))
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    # The reading side does not care.
    await host.send_all(b"still here")
    assert await receive_exactly(stream, 10) == b"still here"


async def test_a_reader_that_finds_bytes_each_time_gives_the_others_their_turn(
    port: tuple[VirtioPortStream, trio.SocketStream],
) -> None:
    stream, host = port
    await host.send_all(bytes(400))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        buffer = memoryview(bytearray(1))
        for _ in range(400):
            assert await stream.read_into(buffer) == 1
        assert 400 / AT_ONCE - 2 <= turns <= 400 / 2  # and not one for each read
        nursery.cancel_scope.cancel()


async def test_a_hello_that_is_there_before_anybody_reads_is_answered() -> None:
    own = Hello(Role.HOST, "be7c" * 4, "test 0")
    hello = encode(Request("hello", xmlrpc.encode_call("va.hello", [own.to_value()])))
    for _ in range(10):  # which of a link's tasks runs first is trio's to choose, at random
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.sendall(hello)
        async with VirtioPortStream(ours.detach()) as stream, trio.open_nursery() as nursery:
            link = Link(Role.GUEST, "test 1", Registry())
            link.hint(LinkEvent.PORT_OPENED, "by the test")
            nursery.start_soon(link.run, stream)
            await link.wait_for(lambda status: status.state is LinkState.READY)
            nursery.cancel_scope.cancel()
        theirs.close()


async def test_closing_a_port_wakes_those_who_wait_on_it(
    port: tuple[VirtioPortStream, trio.SocketStream],
) -> None:
    stream, _ = port

    async def closed(operation: str) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await (stream.receive_some() if operation == "read" else stream.send_all(bytes(10_000_000)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed, "read")
        nursery.start_soon(closed, "write")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.aclose()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"")


async def test_two_readers_or_two_writers_are_an_error_of_the_caller(
    port: tuple[VirtioPortStream, trio.SocketStream],
) -> None:
    stream, _ = port
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        nursery.start_soon(stream.send_all, bytes(10_000_000))
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(trio.BusyResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BusyResourceError):
            await stream.send_all(b"x")
        nursery.cancel_scope.cancel()


async def test_a_port_that_fails_is_broken() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    async with VirtioPortStream(ours.detach()) as stream:
        theirs.close()
        with pytest.raises(trio.BrokenResourceError, match="the port failed: Broken pipe"):
            await stream.send_all(b"x")


async def test_a_port_that_is_missing_is_not_there_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="va-host attach"):
        await make_transport(Channel("virtio-serial", str(tmp_path / "port"))).open(nobody)


# --- isa-serial --------------------------------------------------------------------------------------


@pytest.fixture
async def terminal() -> AsyncIterator[tuple[trio.lowlevel.FdStream, str]]:
    """The far end of a line, and the path of the near one."""
    far, near = os.openpty()
    async with trio.lowlevel.FdStream(far) as stream:
        # While it is open, the line does not hang up between two openers.
        yield stream, os.ttyname(near)
        os.close(near)


async def test_a_serial_line_carries_every_byte_both_ways_and_echoes_none(
    terminal: tuple[trio.lowlevel.FdStream, str],
) -> None:
    far, path = terminal
    async with await make_transport(Channel("isa-serial", path)).open(nobody) as line:
        data = EVERY_BYTE + b"\r\n\n\r\xff\xff" * 100
        await far.send_all(data)
        assert await receive_exactly(line, len(data)) == data
        await line.send_all(data)
        # An echo of what came first would stand in front of it.
        assert await receive_exactly(far, len(data)) == data


async def test_a_serial_line_is_set_to_its_speed_and_drops_what_came_before(
    terminal: tuple[trio.lowlevel.FdStream, str],
) -> None:
    far, path = terminal
    await far.send_all(b"login: ")
    async with await make_transport(Channel("isa-serial", path, 115200)).open(nobody) as line:
        assert isinstance(line, trio.lowlevel.FdStream)
        attributes = termios.tcgetattr(line.fileno())
        assert attributes[4:6] == [termios.B115200, termios.B115200]
        await far.send_all(b"x")
        assert await line.receive_some() == b"x"


async def test_a_serial_line_has_one_agent(terminal: tuple[trio.lowlevel.FdStream, str]) -> None:
    _, path = terminal
    async with await make_transport(Channel("isa-serial", path)).open(nobody):
        with pytest.raises(NotReady, match="is in use"):
            await make_transport(Channel("isa-serial", path)).open(nobody)


async def test_a_file_is_not_a_serial_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LinkBroken, match="is not a serial line"):
        await make_transport(Channel("isa-serial", str(tmp_path / "file"))).open(nobody)


# --- unix sockets ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def a_pair(
    path: str,
) -> AsyncIterator[tuple[trio.abc.Stream, trio.abc.Stream, Transport]]:
    """A listening transport with a connecting one as its peer; also the former itself."""
    reports = Reports()
    listening = make_transport(Channel("unix-listen", path))
    accepted: list[trio.abc.Stream] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def accept() -> None:
            accepted.append(await listening.open(reports))

        assert await reports.next() == (False, f"listening on {path}")
        connected = await make_transport(Channel("unix-connect", path)).open(nobody)
        assert await reports.next() == (True, f"a peer is connected on {path}")
    async with connected, accepted[0]:
        yield accepted[0], connected, listening
    listening.close()


async def test_the_unix_channels_are_proper_streams(tmp_path: Path) -> None:
    number = iter(range(100))

    async def make_pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        return await stack.enter_async_context(_streams_of_a_pair(str(tmp_path / str(next(number)))))

    async with contextlib.AsyncExitStack() as stack:
        await trio.testing.check_two_way_stream(make_pair, None)


@contextlib.asynccontextmanager
async def _streams_of_a_pair(path: str) -> AsyncIterator[tuple[trio.abc.Stream, trio.abc.Stream]]:
    async with a_pair(path) as (accepted, connected, _):
        yield accepted, connected


async def test_a_second_peer_is_refused_while_the_first_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with a_pair(path):
        with pytest.raises(NotThere, match="nobody listens"):
            await make_transport(Channel("unix-connect", path)).open(nobody)


async def test_a_listening_socket_is_private_and_goes_with_its_transport(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with a_pair(path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(FileNotFoundError):
        os.stat(path)


async def test_a_socket_left_by_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with a_pair(path) as (accepted, connected, _):
        await connected.send_all(b"x")
        assert await accepted.receive_some() == b"x"


async def test_a_socket_of_a_live_process_is_not_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(path)
        live.listen(1)
        with pytest.raises(NotReady, match="another process listens there"):
            await make_transport(Channel("unix-listen", path)).open(nobody)
        assert stat.S_ISSOCK(os.stat(path).st_mode)


async def test_a_file_in_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("precious")
    with pytest.raises(NotReady, match="not a socket"):
        await make_transport(Channel("unix-listen", str(path))).open(nobody)
    assert path.read_text() == "precious"


async def test_a_host_that_is_not_up_yet_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="start the end that makes this socket"):
        await make_transport(Channel("unix-connect", str(tmp_path / "socket"))).open(nobody)
