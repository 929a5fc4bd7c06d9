"""The forwarded connections of one VM: those into the guest, and those that listeners in the guest take.

The rules:

1. What a client of the bridge asks for ends with the client, and is nobody else's: not its listeners, not the
   connections that these bring.
2. A listener lives as long as its stream. The guest names it by that stream's id when it tells of a
connection,
   which it may do before it has answered.
3. A connection that the guest brings waits for its client to take it, for `PENDING_TIME` and no longer. How
many
   wait, and how many there are at all, is bounded, whatever the guest does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

import trio

from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import (
    Fault,
    FaultCode,
    NotReady,
    RemoteProtocolError,
    VirtagentError,
)
from virtagent_protocol.opening import until_connected
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.stream import CANCELLED, REFUSED, LinkStream
from virtagent_protocol.values import Struct, Value, as_struct, member

from ..command import Client, InvalidArguments
from ..streams.fd import HandedFd
from ..streams.pump import splice

log = logging.getLogger("virtagent.forward")

#: Connections of a VM at a time, pending ones included: half of the streams, so that the rest is left for
#: all else.
CONNECTIONS_MAX = 128
#: Listeners in the guest at a time.
LISTENERS_MAX = 16
#: Connections of a listener that may wait for its client: as many as a guest of ours takes at a time.
PENDING_MAX = 64
#: Seconds for a client to take a connection: it has to reach its own target first.
PENDING_TIME = 15.0
#: Characters of what a guest calls an address: any that can be is shorter.
_ADDRESS_MAX = 300


class Guest(Protocol):
    """What is needed of the VM."""

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the guest. Raises `VirtagentError`."""

    def open_stream(self) -> LinkStream:
        """Return a new stream. Raises `VirtagentError`."""


@dataclass
class Fds:
    """Descriptors that a client has handed over for one connection.

    Attributes:
        read: is read from, and closed in the end.
        write: is written to; None: the same as *read*.
    """

    read: int
    write: int | None = None

    def close(self) -> None:
        """Close them unused. A TCP peer sees a reset, for there was nothing behind its connection."""
        for fd in (self.read, self.write):
            if fd is not None:
                handed = HandedFd(fd)
                handed.abort()
                handed.close()


@dataclass(eq=False)
class _Attempt:
    """A connection into the guest that is being made."""

    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    error: VirtagentError | None = None


@dataclass(eq=False)
class _Listener:
    """A listener in the guest."""

    number: int
    client: Client
    stream: LinkStream
    pending: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


@dataclass(eq=False)
class _Pending:
    """A connection that waits for its client."""

    listener: _Listener
    stream: LinkStream


class Forwards:
    """The forwarded connections of one VM.

    Args:
        guest: the VM.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._last = 0
        self._connections = 0
        #: By the ids of their streams.
        self._listeners: dict[int, _Listener] = {}
        self._pending: dict[int, _Pending] = {}

    def methods(self) -> Registry:
        """Return what the guest may call."""
        registry = Registry()
        registry.method("va.forwarded")(self._forwarded)
        return registry

    # --- Into the guest ------------------------------------------------------------------------------

    async def connect(self, client: Client, address: str, fds: Fds, *, timeout: float, wait: bool) -> int:
        """Connect to an address in the guest and join it with what a client has handed over.

        Args:
            client: whose it is; it is told of the connection's end by VA_DISCONNECTED.
            address: as in SPEC.md section 11.
            fds: closed in any case.
            timeout: seconds for the guest to connect.
            wait: return when it is connected. Else the client is told by VA_CONNECTED, or that it is not by
                VA_DISCONNECTED.

        Returns:
            The connection's number.

        Raises:
            VirtagentError: there are too many; or, with *wait*, it cannot be connected.
        """
        try:
            number = self._draw()
        except BaseException:
            fds.close()
            raise
        attempt = _Attempt()
        client.spawn(self._connect, client, number, address, fds, timeout, None if wait else client, attempt)
        if wait:
            try:
                await attempt.done.wait()
            finally:
                if not attempt.done.is_set():
                    attempt.scope.cancel()
            if attempt.error is not None:
                raise attempt.error
        return number

    async def _connect(
        self,
        client: Client,
        number: int,
        address: str,
        fds: Fds,
        timeout: float,
        tell: Client | None,
        attempt: _Attempt,
    ) -> None:
        stream: LinkStream | None = None
        try:
            with attempt.scope:
                stream = await self._reach(address, timeout)
            if stream is not None and attempt.scope.cancel_called:
                # Whoever waited has just been told that it took too long.
                stream.reset(CANCELLED)
                stream = None
        except VirtagentError as error:
            attempt.error = error
        finally:
            attempt.done.set()
            if stream is None:
                self._connections -= 1
                fds.close()
        if stream is not None:
            if tell is not None:
                tell.emit("VA_CONNECTED", {"connection": number})
            await self._join(client, number, stream, fds)
        elif tell is not None and attempt.error is not None:
            tell.emit("VA_DISCONNECTED", {"connection": number, **_told(attempt.error)})

    async def _reach(self, address: str, timeout: float) -> LinkStream:
        stream = self._guest.open_stream()
        try:
            with call_deadline(timeout, f"connecting to {address} in the guest"):
                await self._guest.call("va.connect", {"address": address, "stream": stream.id})
                await until_connected(stream)
        except BaseException:
            stream.reset(CANCELLED)
            raise
        return stream

    async def _join(self, client: Client, number: int, stream: LinkStream, fds: Fds) -> None:
        """Join a connection, which is counted already, until its end; tell the client."""
        outcome: dict[str, object] = {}
        try:
            sent, received = await splice(stream, fds.read, fds.write)
            outcome = {"sent": sent, "received": received}
        except VirtagentError as error:
            outcome = _told(error)
        finally:
            self._connections -= 1
        client.emit("VA_DISCONNECTED", {"connection": number, **outcome})

    # --- Out of the guest ----------------------------------------------------------------------------

    async def listen(self, client: Client, address: str) -> tuple[int, str]:
        """Listen on an address in the guest for a client, which is told of each connection by VA_CONNECTION.

        Returns:
            The listener's number, and the address with the port that the guest has chosen.

        Raises:
            VirtagentError: there are too many; or the guest cannot.
        """
        if len(self._listeners) >= LISTENERS_MAX:
            raise NotReady(f"there are {LISTENERS_MAX} listeners in the guest already: end one of them")
        stream = self._guest.open_stream()
        self._last += 1
        listener = _Listener(self._last, client, stream)
        self._listeners[stream.id] = listener
        try:
            params: Struct = {"address": address, "stream": stream.id}
            answer = as_struct(await self._guest.call("va.listen", params), "the answer to va.listen")
            chosen = member(answer, "address", str)[:_ADDRESS_MAX]
        except BaseException:
            self._end(listener)
            raise
        client.spawn(self._hold, listener)
        return listener.number, chosen

    async def _hold(self, listener: _Listener) -> None:
        reason = ""
        try:
            with listener.scope:
                # Nothing but its end ever comes.
                await listener.stream.receive_some(1)
                reason = "the guest has ended it"
        except trio.BrokenResourceError as error:
            reason = str(error)
        finally:
            self._end(listener)
        if reason:
            listener.client.emit("VA_LISTENER_CLOSED", {"listener": listener.number, "reason": reason})

    def _end(self, listener: _Listener) -> None:
        if self._listeners.get(listener.stream.id) is listener:
            del self._listeners[listener.stream.id]
        listener.stream.reset(CANCELLED)
        for number, pending in list(self._pending.items()):
            if pending.listener is listener:
                self._refuse(number)

    async def unlisten(self, client: Client, number: int) -> None:
        """End a listener; its connections stay.

        Raises:
            InvalidArguments: the client has no such listener.
        """
        for listener in self._listeners.values():
            if listener.number == number and listener.client is client:
                listener.scope.cancel()
                self._end(listener)
                return
        raise InvalidArguments(f"you have no listener {number} in the guest")

    async def _forwarded(self, call: Call, connection: dict[str, Value]) -> None:
        """Take a connection that a listener in the guest has accepted.

        connection has listener (the id of the listener's stream), stream (the id of a new one) and peer
        (where it comes from). It is reset if nobody takes it.
        """
        try:
            listener = self._listeners.get(member(connection, "listener", int))
            number = member(connection, "stream", int)
            peer = member(connection, "peer", str)[:_ADDRESS_MAX]
        except RemoteProtocolError as error:
            raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None
        if listener is None:
            raise Fault(FaultCode.INVALID_PARAMS, "there is no such listener, or none any more")
        if listener.pending >= PENDING_MAX:
            raise Fault(FaultCode.QUEUE_FULL, f"{PENDING_MAX} connections wait to be taken already")
        if self._connections >= CONNECTIONS_MAX:
            raise Fault(FaultCode.QUEUE_FULL, _TOO_MANY)
        stream = call.accept(number)
        connection_number = self._draw()
        listener.pending += 1
        self._pending[connection_number] = _Pending(listener, stream)
        listener.client.spawn(self._expire, connection_number)
        listener.client.emit(
            "VA_CONNECTION", {"listener": listener.number, "connection": connection_number, "peer": peer}
        )

    async def _expire(self, number: int) -> None:
        try:
            await trio.sleep(PENDING_TIME)
        finally:
            if number in self._pending:
                log.warning("connection %d is refused: its client has not taken it", number)
                self._refuse(number)

    async def accept(self, client: Client, number: int, fds: Fds) -> None:
        """Join a connection that VA_CONNECTION told of with what the client hands over.

        Raises:
            InvalidArguments: the client has no such connection, or no more; *fds* are closed.
        """
        try:
            pending = self._take(client, number)
        except BaseException:
            fds.close()
            raise
        client.spawn(self._join, client, number, pending.stream, fds)

    async def refuse(self, client: Client, number: int) -> None:
        """Reset a connection that VA_CONNECTION told of.

        Raises:
            InvalidArguments: the client has no such connection, or no more.
        """
        self._take(client, number).stream.reset(REFUSED)
        self._connections -= 1

    def _take(self, client: Client, number: int) -> _Pending:
        pending = self._pending.get(number)
        if pending is None or pending.listener.client is not client:
            raise InvalidArguments(f"no connection {number} waits for you; it may have waited too long")
        del self._pending[number]
        pending.listener.pending -= 1
        return pending

    def _refuse(self, number: int) -> None:
        pending = self._pending.pop(number)
        pending.listener.pending -= 1
        pending.stream.reset(REFUSED)
        self._connections -= 1

    def _draw(self) -> int:
        """Count one connection more, and return its number."""
        if self._connections >= CONNECTIONS_MAX:
            raise NotReady(_TOO_MANY)
        self._connections += 1
        self._last += 1
        return self._last


_TOO_MANY = f"{CONNECTIONS_MAX} connections are forwarded already: end some, then try again"


def _told(error: VirtagentError) -> dict[str, object]:
    return {"kind": error.kind.value, "error": str(error)}
