"""What is judged of a call that goes on to a session: the call itself, and the one within it.

So a policy that says no to `va.exec` says so to `va.exec` in a session as well. Of what runs in a session,
the session's user is the one for whom it is done, whatever the call says.
"""

from __future__ import annotations

from virtagent_protocol.errors import Fault
from virtagent_protocol.registry import Gate
from virtagent_protocol.values import Value

from .request import ForwardRequest, parse_request
from .table import SESSIONS

#: The method that carries another.
FORWARD = "va.session"


class SessionGate(Gate):
    """Has another gate judge what is carried, too.

    Args:
        inner: that other gate.
    """

    def __init__(self, inner: Gate) -> None:
        self._inner = inner

    async def admit(self, method: str, params: list[Value]) -> None:
        await self._inner.admit(method, params)
        if method != FORWARD or not isinstance(params[0], dict):
            return
        request = parse_request(params[0])
        judged = _judged(request)
        try:
            await self._inner.admit(request.method, judged)
        except Fault as fault:
            raise Fault(fault.code, f"{request.method} in a session: {fault.message}") from None

    def passes(self, method: str) -> bool:
        return method != FORWARD and self._inner.passes(method)

    def forbidden(self, methods: list[str]) -> list[str] | None:
        return self._inner.forbidden(methods)


def _judged(request: ForwardRequest) -> list[Value]:
    # One that is not there is refused here: none that comes meanwhile shall get what was judged for nobody.
    user = SESSIONS.find(request.session).caller.user
    first, rest = request.params[:1], request.params[1:]
    if request.method == "va.exec" and isinstance(first[0] if first else None, dict):
        first = [{**first[0], "user": user}]  # type: ignore[dict-item]
    return [*first, *rest]
