"""`va-host forward`: what listens here, and what listens in the guest.

The rules:

1. One task, which waits for nothing but all of it at once. A connection is handed over to va-host as it is,
and
   connected by it: one that takes long keeps no other waiting.
2. A target here, for a listener in the guest, is connected to in a thread of its own: it may take long, too.
3. A listener in the guest that is lost with its session is asked for again when the guest is ready.
"""

from __future__ import annotations

import os
import queue
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from virtagent_protocol.address import ANY_HOST, Address, TcpAddress, UnixAddress
from virtagent_protocol.errors import FailureKind, VirtagentError
from virtagent_protocol.unixsocket import bind_unix

from ..forward.spec import Forward
from .client import CONNECT_TIMEOUT, GRACE, BridgeError, VmClient

#: Seconds for a target here to answer: less than va-host waits for us.
TARGET_TIMEOUT = 10.0
#: Seconds for the guest to listen.
LISTEN_TIMEOUT = 10.0
BACKLOG = 64

_HANDED = "va_forward"

#: Is told what happens: the name of an event, and its members.
Report = Callable[[str, dict[str, Any]], None]


class CannotListen(VirtagentError):
    """An address here cannot be listened on."""

    kind = FailureKind.REFUSED


@dataclass
class _Remote:
    """A listener in the guest, or one that is wanted there."""

    forward: Forward
    number: int | None = None


class Forwarder:
    """All forwards of one command.

    Args:
        client: the connection to va-host.
        local: to listen for here.
        remote: to listen for in the guest.
        report: see `Report`.
    """

    def __init__(
        self, client: VmClient, local: Sequence[Forward], remote: Sequence[Forward], report: Report
    ) -> None:
        self._client = client
        self._report = report
        self._selector = selectors.DefaultSelector()
        self._listening: list[tuple[socket.socket, Forward]] = []
        self._remotes = [_Remote(forward) for forward in remote]
        #: Connections to targets here: the number, and the socket or why there is none.
        self._reached: queue.SimpleQueue[tuple[int, socket.socket | OSError]] = queue.SimpleQueue()
        self._woken, self._waker = socket.socketpair()
        self._local = local

    def run(self) -> None:
        """Forward until va-host closes the connection, or an exception (Ctrl-C) ends it.

        Raises:
            CannotListen: an address here cannot be listened on.
            VirtagentError: an address in the guest cannot, at the beginning; or va-host has ended.
        """
        try:
            for forward in self._local:
                sock, address = listen_here(forward.listen)
                self._listening.append((sock, forward))
                self._selector.register(sock, selectors.EVENT_READ, (sock, forward))
                self._tell_forwarding("local", str(address), forward)
            for remote in self._remotes:
                self._listen_there(remote)
            self._selector.register(self._client, selectors.EVENT_READ)
            self._selector.register(self._woken, selectors.EVENT_READ)
            while True:
                self._handle_events()
                for key, _ in self._selector.select():
                    if key.fileobj is self._woken:
                        self._take_reached()
                    elif key.fileobj is not self._client:
                        self._accept(*key.data)
        finally:
            self._close()

    def _close(self) -> None:
        self._selector.close()
        for sock, forward in self._listening:
            sock.close()
            if isinstance(forward.listen, UnixAddress):
                with suppress(OSError):
                    os.unlink(forward.listen.path)

    # --- Listening here ------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, forward: Forward) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it has left already; or there are too many files open, and others will end
        with connection:
            tune(connection)
            try:
                self._client.send_fd(_HANDED, connection.fileno())
                answer = self._client.execute(
                    "va_connect",
                    {"address": str(forward.connect), "fd": _HANDED, "wait": False},
                    timeout=CONNECT_TIMEOUT,
                )
                self._report("accepted", {"connection": answer["connection"], "forward": forward.text})
            except BridgeError as error:
                self._report("failed", {"forward": forward.text, **_told(error)})

    # --- Listening there -----------------------------------------------------------------------------

    def _listen_there(self, remote: _Remote) -> None:
        answer = self._client.execute(
            "va_listen",
            {"address": str(remote.forward.listen), "timeout": LISTEN_TIMEOUT},
            timeout=LISTEN_TIMEOUT + GRACE,
        )
        remote.number = answer["listener"]
        self._tell_forwarding("remote", answer["address"], remote.forward)

    def _listen_again(self) -> None:
        for remote in self._remotes:
            if remote.number is None:
                try:
                    self._listen_there(remote)
                except BridgeError as error:
                    # Not ready is what the loss was, and has been told.
                    if error.kind is not FailureKind.NOT_READY:
                        self._report("failed", {"forward": remote.forward.text, **_told(error)})

    def _reach(self, connection: int, forward: Forward) -> None:
        """In a thread: connect to the target of a connection that came in the guest."""
        try:
            reached: socket.socket | OSError = connect_here(forward.connect)
        except OSError as error:
            reached = error
        self._reached.put((connection, reached))
        with suppress(OSError):
            self._waker.send(b"\0")

    def _take_reached(self) -> None:
        self._woken.recv(4096)
        while not self._reached.empty():
            connection, reached = self._reached.get()
            try:
                if isinstance(reached, OSError):
                    why = f"cannot connect: {reached.strerror or reached}"
                    self._report("failed", {"connection": connection, "kind": "refused", "error": why})
                    self._client.execute("va_refuse", {"connection": connection}, timeout=CONNECT_TIMEOUT)
                    continue
                with reached:
                    self._client.send_fd(_HANDED, reached.fileno())
                    self._client.execute(
                        "va_accept", {"connection": connection, "fd": _HANDED}, timeout=CONNECT_TIMEOUT
                    )
            except BridgeError as error:  # it has waited too long, or has ended
                self._report("failed", {"connection": connection, **_told(error)})

    # --- Events --------------------------------------------------------------------------------------

    def _handle_events(self) -> None:
        # Handling one may run commands, and bring more.
        while events := self._client.pending_events():
            for event in events:
                self._handle(event["event"], event.get("data", {}))

    def _handle(self, name: str, data: dict[str, Any]) -> None:
        if name == "VA_CONNECTION":
            for remote in self._remotes:
                if remote.number == data["listener"]:
                    peer = {"peer": data["peer"], "forward": remote.forward.text}
                    self._report("accepted", {"connection": data["connection"], **peer})
                    target = (data["connection"], remote.forward)
                    threading.Thread(target=self._reach, args=target, daemon=True).start()
        elif name == "VA_DISCONNECTED":
            self._report("failed" if "error" in data else "ended", data)
        elif name == "VA_LISTENER_CLOSED":
            for remote in self._remotes:
                if remote.number == data["listener"]:
                    remote.number = None
                    self._report("lost", {"forward": remote.forward.text, "error": data["reason"]})
            self._listen_again()
        elif name == "VA_STATE_CHANGE" and data.get("state") == "ready":
            self._listen_again()

    def _tell_forwarding(self, direction: str, listen: str, forward: Forward) -> None:
        self._report(
            "forwarding", {"direction": direction, "listen": listen, "connect": str(forward.connect)}
        )


def listen_here(address: Address) -> tuple[socket.socket, Address]:
    """Listen on an address of this machine; return the socket, and the address with the port that was chosen.

    Raises:
        CannotListen: it cannot be listened on.
    """
    try:
        if isinstance(address, UnixAddress):
            sock = bind_unix(address.path)
            sock.listen(BACKLOG)
        else:
            if address.host != ANY_HOST:
                found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
                sock = socket.create_server(found[0][4], family=found[0][0], backlog=BACKLOG)
            elif socket.has_dualstack_ipv6():
                any_ = ("", address.port)
                sock = socket.create_server(
                    any_, family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
                )
            else:
                sock = socket.create_server(("", address.port), backlog=BACKLOG)
            address = TcpAddress(address.host, sock.getsockname()[1])
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock, address


def connect_here(address: Address) -> socket.socket:
    """Connect to an address of this machine, or that it reaches. Raises OSError."""
    if isinstance(address, TcpAddress):
        sock = socket.create_connection((address.host, address.port), TARGET_TIMEOUT)
        tune(sock)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(TARGET_TIMEOUT)
        sock.connect(address.path)
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """Let a TCP connection pass on each piece at once, and find out that its peer has vanished."""
    if sock.family != socket.AF_UNIX:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _told(error: VirtagentError) -> dict[str, Any]:
    return {"kind": error.kind.value, "error": str(error)}
