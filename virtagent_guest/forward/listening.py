"""Listeners in the guest whose connections are passed on to the host.

The rules:

1. Each connection has a stream of its own. One that the host does not take is reset; what is stuck is stuck
by
   itself.
2. At most `CONNECTIONS_MAX` connections of a listener are served at a time. More wait where the kernel keeps
   them; and then their peers, as with any busy server.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.relay import abort, splice
from virtagent_protocol.sockets import keep_alive
from virtagent_protocol.stream import CANCELLED, LinkStream

from .host import HOST

log = logging.getLogger("virtagent.forward")

#: Connections of a listener at a time. There are 256 streams for everything.
CONNECTIONS_MAX = 64
#: Seconds to wait when there are no file descriptors left: an accept that fails leaves its cause in place.
_ACCEPT_AGAIN = 0.1
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

#: Tells the host of a connection: ``await f(stream, peer)``; returns when it has taken it. Raises
#: VirtagentError.
Announce = Callable[[LinkStream, str], Awaitable[None]]


async def serve_listeners(listeners: Sequence[trio.SocketListener], what: str, announce: Announce) -> None:
    """Pass on all connections, until cancelled; then end them and close the listeners.

    Args:
        listeners: bound already.
        what: what the log calls them.
        announce: see `Announce`.
    """
    slots = trio.Semaphore(CONNECTIONS_MAX)
    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(_accept, listener, slots, what, announce, nursery)
    finally:
        for listener in listeners:
            listener.socket.close()


async def _accept(
    listener: trio.SocketListener, slots: trio.Semaphore, what: str, announce: Announce, nursery: trio.Nursery
) -> None:
    while True:
        await slots.acquire()
        try:
            connection = await listener.accept()
        except OSError as error:
            slots.release()
            if error.errno not in _SHORTAGES:
                raise
            log.warning("%s: cannot take a connection: %s", what, error.strerror)
            await trio.sleep(_ACCEPT_AGAIN)
        else:
            nursery.start_soon(_pass_on, connection, slots, what, announce)


async def _pass_on(
    connection: trio.SocketStream, slots: trio.Semaphore, what: str, announce: Announce
) -> None:
    stream: LinkStream | None = None
    try:
        peer = describe_peer(connection)
        if connection.socket.family != trio.socket.AF_UNIX:
            keep_alive(connection.socket)
        stream = HOST.open_stream()
        await announce(stream, peer)
        await splice(stream, connection)
    except VirtagentError as error:
        log.warning("%s: a connection is refused: %s: %s", what, error.kind.value, error)
    finally:
        # What was joined is closed already, and that may be repeated.
        if stream is not None:
            stream.reset(CANCELLED)
        abort(connection)
        slots.release()


def describe_peer(connection: trio.SocketStream) -> str:
    """Return where a connection comes from, as an address; "" if that is not known."""
    try:
        peer = connection.socket.getpeername()
    except OSError:
        return ""
    if not isinstance(peer, tuple):
        return ""
    host = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
    return f"tcp:{host}:{peer[1]}"
