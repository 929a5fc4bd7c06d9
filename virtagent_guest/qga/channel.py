"""The channels on which the QGA wire is served, where they differ from those of the agent's own link.

A unix socket goes on listening while a client is served, and the next one waits, as with qemu-ga: scripts
connect, ask and leave, one after the other, and none of them expects to be refused.
"""

from __future__ import annotations

import trio

from virtagent_protocol.unixsocket import bind_unix

from ..config import Channel
from ..transports import Report, Transport, make_transport
from ..transports.unix import UnixListen, socket_error

#: Clients that wait for their turn; one more is refused by the kernel, or waits in its connect().
BACKLOG = 16


class QueueingListen(UnixListen):
    """Listens on a socket of its own, mode 0600; serves one client at a time, and lets others wait."""

    _listener: trio.SocketListener | None = None

    async def open(self, report: Report) -> trio.SocketStream:
        if self._listener is None:
            try:
                bound = bind_unix(self.path)
            except OSError as error:
                raise socket_error(self.path, error) from error
            self._bound = True
            bound.listen(BACKLOG)
            self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        report(False, f"listening on {self.path} for clients of QEMU's guest agent")
        stream = await self._listener.accept()
        report(True, f"a client is connected on {self.path}")
        return stream

    def close(self) -> None:
        if self._listener is not None:
            self._listener.socket.close()
        super().close()


def make_qga_transport(channel: Channel) -> Transport:
    """Return the transport for a configured channel; nothing is opened yet."""
    if channel.kind == "unix-listen":
        return QueueingListen(channel.path)
    return make_transport(channel)
