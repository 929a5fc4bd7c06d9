"""unix-connect and unix-listen: a unix socket instead of a device, for containers and for tests."""

from __future__ import annotations

import contextlib
import errno
import os

import trio

from virtagent_protocol.errors import NotReady, NotThere, VirtagentError
from virtagent_protocol.unixsocket import bind_unix, is_socket

from .base import Report, Transport, open_error


class UnixConnect(Transport):
    """Connects to a socket on which the host end listens, as soon as there is one."""

    patient = True

    async def open(self, report: Report) -> trio.SocketStream:
        try:
            stream = await trio.open_unix_socket(self.path)
        except OSError as error:
            raise socket_error(self.path, error) from error
        report(True, f"connected to {self.path}")
        return stream


class UnixListen(Transport):
    """Listens on a socket of its own, mode 0600, for one peer at a time.

    While a peer is connected nothing listens, so that a second one is refused by the kernel at once
    instead of waiting for an answer that will not come.
    """

    _bound = False

    async def open(self, report: Report) -> trio.SocketStream:
        try:
            bound = bind_unix(self.path)
        except OSError as error:
            raise socket_error(self.path, error) from error
        self._bound = True
        with trio.socket.from_stdlib_socket(bound) as listener:
            listener.listen(1)
            report(False, f"listening on {self.path}")
            peer, _ = await listener.accept()
        report(True, f"a peer is connected on {self.path}")
        return trio.SocketStream(peer)

    def close(self) -> None:
        # What stood in the way of our socket is not ours to remove.
        if self._bound:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def socket_error(path: str, error: OSError) -> VirtagentError:
    """Return the error for a socket that was not to be had."""
    if error.errno == errno.EADDRINUSE:
        # Neither is ours to remove.
        if is_socket(path):
            return NotReady(f"{path} is in use: another process listens there, stop it")
        return NotReady(f"{path} is not a socket: remove it, or name another path with -p")
    if error.errno == errno.ECONNREFUSED:
        return NotThere(f"nobody listens on {path}: start the host end, or name another path with -p")
    return open_error(
        path,
        error,
        absent="start the end that makes this socket, or name another path with -p",
        busy="another process holds it, stop it",
    )
