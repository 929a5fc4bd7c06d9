"""A stream of the link and a socket, joined as one connection.

The rules:

1. The end of one half is passed on as the end of that half. What breaks breaks both ways, and a TCP peer then
   sees a reset, as it would of a program that was killed: it must not take what it got for the whole.
2. Neither is read faster than the other takes it, so a stuck peer is felt as such at the far end, and
nowhere else.
3. Whoever waits for bytes to pass on also hears when nobody wants them any more.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from .address import Address
from .nursery import plain_nursery
from .opening import tell_connected, tell_failed, until_given_up
from .sockets import SocketError, connect
from .stream import CANCELLED, LinkStream

#: Bytes moved at a time: a chunk of a stream.
PIECE = 64 * 1024
#: Seconds for an address to answer. The kernel itself would try for two minutes.
CONNECT_TIME = 30.0

_NO_LINGER = struct.pack("ii", 1, 0)


def _as_it_is(why: str) -> str:
    return why


async def relay_to(stream: LinkStream, address: Address, explain: Callable[[str], str] = _as_it_is) -> None:
    """Connect to an address for the other end of *stream*, tell it what became of that, and join the two.

    It ends with the connection, or as soon as the other end gives up. It raises nothing of its own.

    Args:
        stream: closed in the end.
        address: to connect to.
        explain: is given why that failed, and returns what the other end is told.
    """
    connection, why = await _connect_unless_given_up(stream, address)
    try:
        if connection is not None:
            await tell_connected(stream)
        elif why:
            await tell_failed(stream, explain(why))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        if connection is not None:
            abort(connection)
    except BaseException:
        stream.reset(CANCELLED)
        if connection is not None:
            abort(connection)
        raise
    else:
        if connection is not None:
            await splice(stream, connection)
    stream.reset(CANCELLED)


async def _connect_unless_given_up(
    stream: LinkStream, address: Address
) -> tuple[trio.SocketStream | None, str]:
    """Return the connection; or None, and why there is none: "" if it is no longer wanted."""
    connection: trio.SocketStream | None = None
    why = ""
    async with trio.open_nursery() as nursery:

        async def attempt() -> None:
            nonlocal connection, why
            try:
                with trio.move_on_after(CONNECT_TIME) as patience:
                    connection = await connect(address)
                if connection is None and patience.cancelled_caught:
                    why = f"cannot connect to {address}: no answer within {CONNECT_TIME:g} s"
            except SocketError as error:
                why = str(error)
            nursery.cancel_scope.cancel()

        nursery.start_soon(attempt)
        await until_given_up(stream)
        nursery.cancel_scope.cancel()
    return connection, why


async def splice(stream: LinkStream, connection: trio.SocketStream) -> None:
    """Join a stream and a connection until both halves have ended, and close both (rule 1)."""
    whole = all_sent = False

    async def pass_in() -> None:
        nonlocal all_sent
        all_sent = await _pass_in(connection, stream, give_up)

    try:
        async with trio.open_nursery() as nursery:
            give_up = nursery.cancel_scope.cancel
            nursery.start_soon(pass_in)
            await _pass_out(stream, connection, give_up)
        whole = all_sent and not nursery.cancel_scope.cancel_called
    finally:
        if not whole:
            stream.reset(CANCELLED)
            abort(connection)
    await stream.aclose()
    await connection.aclose()


def abort(connection: trio.SocketStream) -> None:
    """Close a connection so that a TCP peer sees a reset."""
    reset_on_close(connection.socket)
    connection.socket.close()


def reset_on_close(sock: trio.socket.SocketType | socket.socket) -> None:
    """Let a TCP peer see a reset when the socket is closed."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


async def while_wanted(stream: LinkStream, passing: Callable[[], Awaitable[object]]) -> bool:
    """Run ``await passing()``, which sends on the stream; cancel it when the other end takes no more.

    Returns:
        Whether it was wanted to its end.

    Raises:
        VirtagentError: *passing* did.
    """
    wanted = False
    async with plain_nursery() as nursery:

        async def watch() -> None:
            await stream.wait_unwanted()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await passing()
        wanted = not stream.unwanted
        nursery.cancel_scope.cancel()
    return wanted


async def _pass_in(connection: trio.SocketStream, stream: LinkStream, give_up: Callable[[], None]) -> bool:
    async def passing() -> None:
        while True:
            try:
                data = await connection.receive_some(PIECE)
            except trio.BrokenResourceError:
                stream.reset("reset")
                give_up()
                return
            try:
                await (stream.send_all(data) if data else stream.send_eof())
            except trio.BrokenResourceError:
                return  # the watch will have told as much
            if not data:
                return

    # If the stream is broken altogether, the other direction meets that, too.
    return await while_wanted(stream, passing)


async def _pass_out(stream: LinkStream, connection: trio.SocketStream, give_up: Callable[[], None]) -> None:
    try:
        async for data in stream:
            try:
                await connection.send_all(data)
            except trio.BrokenResourceError:
                stream.reset("unread")
                give_up()
                return
    except trio.BrokenResourceError:
        give_up()
        return
    # The peer may be gone by now, which the other direction tells.
    with suppress(trio.BrokenResourceError, OSError):
        await connection.send_eof()
