"""va.open_session: the one word by which a program on the local socket becomes a session agent.

There is nothing in it that says whose session that is: it is that of whoever has connected.
"""

from __future__ import annotations

import logging

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Value

from ..local.server import LocalClient
from .table import CLAIMS, SESSIONS, UserSession

log = logging.getLogger("virtagent.sessions")


def session_topic(client: LocalClient) -> Registry:
    """Return what a client of the local socket is offered of this (`local.server.Topic`)."""
    registry = Registry()
    opened: list[UserSession] = []

    @registry.method("va.open_session")
    async def open_session(call: Call, about: dict[str, Value]) -> dict[str, Value]:
        """Let the host call the methods of this program, as those of its user's session.

        about may have type, display and desktop, which the host is shown as claims. It lasts as long as the
        connection. The result has the session's id, and uid and user, whose it is.
        """
        caller = client.caller
        for name, truth in (("uid", caller.uid), ("user", caller.user)):
            if about.get(name, truth) != truth:
                raise Fault(
                    FaultCode.FORBIDDEN,
                    f"a session is that of the user who connects: {name} is {truth!r} here, nothing else",
                )
        if opened:
            raise Fault(FaultCode.INVALID_REQUEST, f"this connection is {opened[0]} already")
        claims = {name: about.get(name) for name in CLAIMS}
        claimed = {
            name: text for name, text in claims.items() if isinstance(text, str) and text.isprintable()
        }
        link = client.link
        agent = link.session.peer.agent if link.session is not None else ""
        session = SESSIONS.open(caller, link, agent if agent.isprintable() else "", claimed)
        opened.append(session)
        client.at_end.append(lambda: _close(session))
        log.info("%s: pid %d", session, caller.pid)
        return {"id": session.id, "uid": caller.uid, "user": caller.user}

    return registry


def _close(session: UserSession) -> None:
    SESSIONS.close(session)
    log.info("%s has ended", session)
