"""Services of the host that programs in the guest may connect to: those that were named, and nothing else.

Which address a service has is the host's secret: the guest knows its name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from virtagent_protocol.address import Address
from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.relay import relay_to
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Value, member

log = logging.getLogger("virtagent.forward")

#: Connections of a guest to all services at a time: a quarter of the streams.
CONNECTIONS_MAX = 64


class Services:
    """The services that a guest may use.

    Args:
        offered: their addresses, by name.
    """

    def __init__(self, offered: Mapping[str, Address]) -> None:
        self._offered = offered
        self._connections = 0

    def methods(self) -> Registry:
        """Return what the guest may call."""
        registry = Registry()
        registry.method("va.connect_service")(self._connect)
        return registry

    async def _connect(self, call: Call, connection: dict[str, Value]) -> None:
        """Connect to a service of the host and join it with a stream.

        connection has service (its name) and stream (the id of a new one). What became of it is the first
        thing on the stream: the byte 0, or why not.
        """
        try:
            name = member(connection, "service", str)
            number = member(connection, "stream", int)
        except RemoteProtocolError as error:
            raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None
        address = self._offered.get(name)
        if address is None:
            raise Fault(
                FaultCode.FORBIDDEN,
                f"this host offers its guest no service {name[:64]!r}: name it there with --service",
            )
        if self._connections >= CONNECTIONS_MAX:
            raise Fault(FaultCode.QUEUE_FULL, f"{CONNECTIONS_MAX} connections to services are open already")
        stream = call.accept(number)
        self._connections += 1
        call.spawn(self._serve, name, stream, address)

    async def _serve(self, name: str, stream: LinkStream, address: Address) -> None:
        def explain(why: str) -> str:
            log.warning("service '%s': %s", name, why)
            return f"the host cannot reach its service '{name}'; its log says why"

        try:
            await relay_to(stream, address, explain)
        finally:
            self._connections -= 1
