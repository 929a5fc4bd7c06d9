"""What a link asks of its transport besides what every `trio.abc.Stream` has.

Reading into memory that is there already, and writing what lies in several places, save a copy each of all
that passes; writing without waiting saves a turn of the event loop. A transport that has none of it works as
well.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, runtime_checkable

import trio

from .unixsocket import SEND_BUFFER

Buffer = bytes | bytearray | memoryview
#: Waits for bytes, reads them into a buffer, and returns how many they are; 0: the other end has closed.
#: Where they are there already, other tasks have their turn only now and then (`Turns`).
ReadInto = Callable[[memoryview], Awaitable[int]]
#: Writes all of several buffers, in order, waiting as long as it takes.
Write = Callable[[Sequence[Buffer]], Awaitable[None]]
#: Writes of them what the transport takes without waiting; returns how many bytes that was, 0 on any error.
WriteNow = Callable[[Sequence[Buffer]], int]

#: Reads in a row for which the other tasks wait, and bytes up to which a read is one of those.
AT_ONCE, SMALL = 8, 4096
#: Bytes from which on so much is awaited that it comes in several parts.
LARGE = 64 * 1024
#: Seconds to wait for more of it, and how often: in all, less than what is done in a turn of a link
#: (`link.TURN`).
NAP, NAPS = 0.0003, 6


@runtime_checkable
class Channel(Protocol):
    """A transport of our own that has all of it. It raises what a `trio.abc.Stream` does."""

    async def read_into(self, buffer: memoryview) -> int:
        """See `ReadInto`."""
        ...

    async def write(self, parts: Sequence[Buffer]) -> None:
        """See `Write`."""
        ...

    def write_now(self, parts: Sequence[Buffer]) -> int:
        """See `WriteNow`."""
        ...


class Turns:
    """Lets the other tasks have their turn where a reader finds something each time.

    A turn of the event loop takes as long as to answer a ping, and who calls again and again has mostly sent
    the next call before it is looked for: so not each read is followed by one.

    Attributes:
        due: whether it is their turn.
    """

    def __init__(self) -> None:
        self.due = False
        self._reads = 0

    def read(self, count: int) -> None:
        """So many bytes were there."""
        self._reads += 1
        self.due = count > SMALL or self._reads >= AT_ONCE

    def given(self) -> None:
        """The reader waits."""
        self.due = False
        self._reads = 0

    async def give(self) -> None:
        """Wait until they have had it."""
        self.given()
        await trio.lowlevel.checkpoint()


def reading(stream: trio.abc.Stream) -> ReadInto:
    """Return how to read from a transport."""
    if isinstance(stream, Channel):
        return stream.read_into
    if isinstance(stream, trio.SocketStream):
        return _SocketReader(stream.socket).read_into
    return lambda buffer: _read_stream(stream, buffer)


def writing(stream: trio.abc.Stream) -> Write:
    """Return how to write to a transport."""
    if isinstance(stream, Channel):
        return stream.write
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):  # it was closed meanwhile: reading tells
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return lambda parts: _write_socket(stream.socket, parts)
    return lambda parts: _write_stream(stream, parts)


def write_now(stream: trio.abc.Stream) -> WriteNow | None:
    """Return how to write to a transport without waiting; None if it does not say how."""
    if isinstance(stream, Channel):
        return stream.write_now
    if isinstance(stream, trio.SocketStream):
        return lambda parts: _write_at_once(stream.socket.fileno(), parts)
    return None


def behind(parts: Sequence[Buffer], count: int) -> list[Buffer]:
    """Return what follows the first *count* bytes of *parts*."""
    rest: list[Buffer] = []
    for part in parts:
        if count < len(part):
            rest.append(memoryview(part)[count:] if count else part)
        count = max(0, count - len(part))
    return rest


def write_some(fd: int, parts: Sequence[Buffer]) -> int:
    """Write by one system call, and return how many bytes that took. Raises OSError."""
    return os.write(fd, parts[0]) if len(parts) == 1 else os.writev(fd, parts)


def _write_at_once(fd: int, parts: Sequence[Buffer]) -> int:
    try:
        return write_some(fd, parts)
    except OSError:
        # It is full, or broken: the writer will find out.
        return 0


def read_on(
    buffer: memoryview, read_now: Callable[[memoryview], int], nap: float = NAP, most: int = NAPS
) -> int:
    """Read what comes next, where much is awaited; return how many bytes that was.

    QEMU hands on 4 or 32 KiB at a time. A turn of the event loop for each would take longer than to wait for
    more: so this does wait, for a moment, and holds up the loop for no longer than what it has read will do
    by itself.

    Args:
        buffer: may be of any size; if it is small, nothing is waited for.
        read_now: reads what there is, and returns how many bytes that was.
        nap: seconds to wait, each time.
        most: times to wait.
    """
    count = naps = 0
    while len(buffer) - count >= LARGE and naps < most:
        time.sleep(nap)
        naps += 1
        if not (got := read_now(buffer[count:])):
            break
        count += got
    return count


class _SocketReader:
    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._turns = Turns()

    async def read_into(self, buffer: memoryview) -> int:
        if self._turns.due:
            await self._turns.give()
        try:
            while (count := self._read(buffer)) is None:
                self._turns.given()
                await trio.lowlevel.wait_readable(self._sock)
        except OSError as error:
            raise _of_socket(error) from error
        self._turns.read(count)
        return count + read_on(buffer[count:], self._read_now) if count else 0

    def _read(self, buffer: memoryview) -> int | None:
        try:
            return os.readv(self._sock.fileno(), [buffer])
        except BlockingIOError:
            return None

    def _read_now(self, buffer: memoryview) -> int:
        try:
            return self._read(buffer) or 0
        except OSError:
            return 0  # the next read tells


async def _write_socket(sock: trio.socket.SocketType, parts: Sequence[Buffer]) -> None:
    try:
        while parts:
            parts = behind(parts, await sock.sendmsg(parts))
    except OSError as error:
        raise _of_socket(error) from error


def _of_socket(error: OSError) -> trio.ClosedResourceError | trio.BrokenResourceError:
    """Return what a `trio.SocketStream` raises."""
    if error.errno == errno.EBADF:
        return trio.ClosedResourceError("this socket was already closed")
    return trio.BrokenResourceError(f"socket connection broken: {error}")


async def _read_stream(stream: trio.abc.Stream, buffer: memoryview) -> int:
    data = await stream.receive_some(len(buffer))
    buffer[: len(data)] = data
    return len(data)


async def _write_stream(stream: trio.abc.Stream, parts: Sequence[Buffer]) -> None:
    for part in parts:
        await stream.send_all(part)
