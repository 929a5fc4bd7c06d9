"""`va.notify` on the local socket: a program of the guest tells the host of something.

The rules:

1. Anybody may. Who it was travels with the event, as the kernel says it (`local.caller`).
2. A user who tells too much is slowed down: a call that comes too early is answered late. None is refused for
   it.
3. What a user has told and the host does not have yet has a bound, see `log`: it is that user's own that is
   lost.
"""

from __future__ import annotations

import trio

from virtagent_protocol.bucket import TokenBucket
from virtagent_protocol.errors import Fault, FaultCode, LocalProtocolError
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Value

from ..local.server import LocalClient
from .log import EVENTS

#: Events of one user: so many at once, then so many a second.
BURST, RATE = 2000, 100.0
#: Users whose rate is remembered.
_USERS_KEPT = 256

_buckets: dict[int, TokenBucket] = {}


def topic(client: LocalClient) -> Registry:
    """Return what is offered to a client of the local socket."""
    registry = Registry()

    @registry.method("va.notify")
    async def notify(call: Call, name: str, data: Value = None) -> int:
        """Tell the host of an event.

        name: lower-case letters and digits, with '.', '_' or '-' between them, such as backup.done
        data: a struct of what JSON carries, or the text of a JSON object; up to 8192 characters of JSON

        Returns the event's number. It is delivered once, in order, when the host is there.
        """
        if not isinstance(data, (dict, str)) and data is not None:
            raise Fault(FaultCode.INVALID_PARAMS, "data must be a struct or the text of a JSON object")
        await _until_due(client.caller.uid)
        try:
            return EVENTS.emit(name, {} if data is None else data, client.caller)
        except LocalProtocolError as error:
            raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None

    return registry


async def _until_due(uid: int) -> None:
    bucket = _buckets.pop(uid, None) or TokenBucket(BURST, RATE)
    _buckets[uid] = bucket  # the last one, now: those that are forgotten were here longest ago
    if len(_buckets) > _USERS_KEPT:
        del _buckets[next(iter(_buckets))]
    while not bucket.take(trio.current_time()):
        await trio.sleep(1 / RATE)
