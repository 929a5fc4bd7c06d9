"""``[[forward]]`` of guest.toml: the agent listens, and passes each connection to a service of the host.

Which services there are is the host's choice (``va-host attach --service``); a connection for one that it
does not offer is reset, and the log says why. A listener that cannot listen is tried again: the agent is of
use without.
"""

from __future__ import annotations

import logging

import trio

from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.opening import until_connected
from virtagent_protocol.relay import CONNECT_TIME
from virtagent_protocol.sockets import SocketError, listen, remove_socket
from virtagent_protocol.stream import LinkStream

from .host import ANSWER_TIME, HOST
from .listening import serve_listeners
from .settings import ForwardSettings

log = logging.getLogger("virtagent.forward")

#: Seconds between two attempts to listen.
LISTEN_AGAIN = 5.0


async def serve_forward(settings: ForwardSettings) -> None:
    """Serve one entry until cancelled."""
    what = f"service '{settings.service}' on {settings.listen}"
    told = ""
    while True:
        try:
            listeners, chosen = await listen(settings.listen)
            break
        except SocketError as error:
            if str(error) != told:  # once, not at each attempt
                told = str(error)
                log.warning("%s: %s; trying again", what, told)
        await trio.sleep(LISTEN_AGAIN)
    log.info("passing connections to %s to the host's service '%s'", chosen, settings.service)

    async def announce(stream: LinkStream, peer: str) -> None:
        await HOST.call("va.connect_service", {"service": settings.service, "stream": stream.id})
        with call_deadline(CONNECT_TIME + ANSWER_TIME, what):
            await until_connected(stream)

    try:
        await serve_listeners(listeners, what, announce)
    finally:
        remove_socket(chosen)
