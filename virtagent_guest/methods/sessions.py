"""va.sessions, va.session: what the host asks of the sessions in the guest (SPEC.md section 11)."""

from __future__ import annotations

from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Struct, Value

from ..sessions.forwarder import Forwarder
from ..sessions.gate import FORWARD
from ..sessions.request import parse_request
from ..sessions.table import SESSIONS

registry = Registry()

_forwarder = Forwarder()


@registry.method("va.sessions")
async def sessions(call: Call) -> list[Value]:
    """Return a struct for each session agent: id, uid, user, pid, since, state; claimed, its own words."""
    return [session.describe() for session in SESSIONS]


@registry.method(FORWARD)
async def session(call: Call, request: Struct) -> Struct:
    """Call a method of a session agent: session (id or uid), method, params, streams, answer, deadline.

    streams says where numbers of streams stand in params. What the session agent answers comes on the stream
    answer. The result says which session that is.
    """
    return _forwarder.begin(call, parse_request(request))
