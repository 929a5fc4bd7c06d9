"""Stream sockets at an `Address`: connecting and listening.

The rules:

1. Names are looked up in threads of their own number, so that a resolver which does not answer holds up
nobody
   who needs a thread for something else.
2. Errors of the system come out as `SocketError`, with the address.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio

from .address import ANY_HOST, Address, TcpAddress, UnixAddress
from .errors import FailureKind, VirtagentError
from .nursery import leaves
from .unixsocket import bind_unix

#: Connections that the kernel holds for a listener that is busy.
BACKLOG = 64
#: Names looked up at a time.
LOOKUPS_MAX = 8


class SocketError(VirtagentError):
    """An address cannot be reached, or not listened on."""

    kind = FailureKind.REFUSED


# --- Connecting ------------------------------------------------------------------------------------------


async def connect(address: Address) -> trio.SocketStream:
    """Connect to an address; of a name's several, the first that answers (RFC 8305).

    Raises:
        SocketError: it cannot be reached.
    """
    trio.socket.set_custom_hostname_resolver(_RESOLVER)
    with _told(f"cannot connect to {address}"):
        if isinstance(address, UnixAddress):
            return await trio.open_unix_socket(address.path)
        connected = await trio.open_tcp_stream(address.host, address.port)
        keep_alive(connected.socket)
        return connected


def keep_alive(sock: trio.socket.SocketType | socket.socket) -> None:
    """Let the kernel find out whether a TCP peer has vanished without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class _Resolver(trio.abc.HostnameResolver):
    """The system's, by rule 1."""

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        try:
            limiter = _LOOKUPS.get()
        except LookupError:
            limiter = trio.CapacityLimiter(LOOKUPS_MAX)
            _LOOKUPS.set(limiter)
        return await trio.to_thread.run_sync(
            socket.getaddrinfo,
            host,
            port,
            family,
            type,
            proto,
            flags,
            abandon_on_cancel=True,
            limiter=limiter,
        )

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True)


_RESOLVER = _Resolver()
_LOOKUPS: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("lookups")


# --- Listening -------------------------------------------------------------------------------------------


async def listen(address: Address) -> tuple[list[trio.SocketListener], Address]:
    """Listen on an address; return the listeners, and the address with the port that was chosen for port 0.

    A unix socket is made with mode 0600, in place of one that an earlier process has left behind; who closes
    the listener removes it (`remove_socket`).

    Raises:
        SocketError: it cannot be listened on.
    """
    with _told(f"cannot listen on {address}"):
        if isinstance(address, UnixAddress):
            return [_started(bind_unix(address.path))], address
        host = None if address.host == ANY_HOST else address.host
        trio.socket.set_custom_hostname_resolver(_RESOLVER)
        if host is not None or address.port:
            listeners = await trio.open_tcp_listeners(address.port, host=host, backlog=BACKLOG)
            if address.port:
                return listeners, address
            # A name may have several addresses, and each would have another port.
            for superfluous in listeners[1:]:
                await superfluous.aclose()
            listeners = listeners[:1]
        else:
            listeners = [(await trio.open_tcp_listeners(0, backlog=BACKLOG))[0]]
        port = listeners[0].socket.getsockname()[1]
        return listeners, TcpAddress(address.host, port)


def remove_socket(address: Address) -> None:
    """Remove the file of a unix socket that was listened on."""
    if isinstance(address, UnixAddress):
        with suppress(OSError):
            os.unlink(address.path)


def _started(bound: socket.socket) -> trio.SocketListener:
    bound.listen(BACKLOG)
    return trio.SocketListener(trio.socket.from_stdlib_socket(bound))


# --- Errors ----------------------------------------------------------------------------------------------

_REMEDY = {
    errno.EADDRINUSE: "something is there already",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an OSError into a `SocketError` that begins with *what*."""
    try:
        yield
    except OSError as error:
        # trio tells "all attempts to connect failed", and holds the errors of the attempts in a group.
        causes = leaves(error.__cause__) if error.__cause__ is not None else [error]
        raise SocketError(f"{what}: {_reason(causes[0])}") from None
    except (ValueError, UnicodeError) as error:  # what a resolver does not take
        raise SocketError(f"{what}: {error}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        # A resolver's errors have numbers of their own; and trio's text repeats the address.
        looked_up = isinstance(error, socket.gaierror)
        return (
            _REMEDY.get(error.errno)
            or (error.strerror if looked_up else os.strerror(error.errno))
            or str(error)
        )
    return str(error)
