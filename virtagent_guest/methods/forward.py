"""va.connect, va.listen: connections into the guest, and out of it to the host (SPEC.md section 11).

The rules:

1. A call is answered as soon as it is checked: connecting goes on beyond it, on the stream, so that addresses
   which do not answer hold none of the places for calls.
2. A listener is a stream: it lives as long as that, and so no longer than the host's interest or the session.
"""

from __future__ import annotations

from contextlib import suppress

import trio

from virtagent_protocol.address import Address, AddressError, parse_address
from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.relay import relay_to
from virtagent_protocol.sockets import SocketError, listen, remove_socket
from virtagent_protocol.stream import CANCELLED, LinkStream
from virtagent_protocol.values import Struct, Value, member

from ..forward.host import HOST
from ..forward.listening import serve_listeners

registry = Registry()

#: Listeners at a time. Each costs a stream.
LISTENERS_MAX = 16

_listeners: set[int] = set()


@registry.method("va.connect")
async def connect(call: Call, connection: dict[str, Value]) -> None:
    """Connect to an address and join it with a stream.

    connection has address (tcp:HOST:PORT or unix:/PATH) and stream (the id of a new one). What became of it
    is the first thing on the stream: the byte 0, or why not.
    """
    address = _address(connection, listening=False)
    stream = call.accept(_stream(connection))
    call.spawn(relay_to, stream, address)


@registry.method("va.listen")
async def listen_(call: Call, listener: dict[str, Value]) -> dict[str, Value]:
    """Listen on an address, and tell the host of each connection by va.forwarded.

    listener has address (tcp:HOST:PORT, HOST may be * and PORT 0; or unix:/PATH) and stream (the id of a new
    one). It listens until that stream ends. The result has address, with the port that was chosen.
    """
    wanted = _address(listener, listening=True)
    if len(_listeners) >= LISTENERS_MAX:
        raise Fault(FaultCode.NOT_READY, f"there are {LISTENERS_MAX} listeners already: end one of them")
    stream = call.accept(_stream(listener))
    held = id(stream)
    _listeners.add(held)
    try:
        try:
            listeners, address = await listen(wanted)
        except SocketError as error:
            raise Fault(FaultCode.FAILED, str(error)) from None
    except BaseException:
        _listeners.discard(held)
        raise
    # The host knows the stream already, so it may hear of a connection before it has this answer.
    call.spawn(_serve, stream, listeners, address, held)
    return {"address": str(address)}


async def _serve(
    stream: LinkStream, listeners: list[trio.SocketListener], address: Address, held: int
) -> None:
    async def announce(connection: LinkStream, peer: str) -> None:
        await HOST.call("va.forwarded", {"listener": stream.id, "stream": connection.id, "peer": peer})

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_listeners, listeners, str(address), announce)
            with suppress(trio.BrokenResourceError):
                await stream.receive_some(1)
            nursery.cancel_scope.cancel()
    finally:
        remove_socket(address)
        _listeners.discard(held)
        stream.reset(CANCELLED)


def _address(struct: Struct, *, listening: bool) -> Address:
    try:
        return parse_address(member(struct, "address", str), listening=listening)
    except (AddressError, RemoteProtocolError) as error:
        raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None


def _stream(struct: Struct) -> int:
    try:
        return member(struct, "stream", int)
    except RemoteProtocolError as error:
        raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None
