"""`va.call_service` on the local socket: a program's call of a service of the host, passed on.

The rules:

1. The caller is who the kernel says it is (`local.caller`), whatever the program writes. Whether it may is
   for the host to decide; here is only counted, so that no user takes the places of all.
2. The answer is the host's, and so are the two streams: each is joined with one to the host. A program that
   is gone breaks them, and the host ends the service; so does an agent that is gone, or a host, the other
   way round.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import trio

from virtagent_protocol.crossing import relay_streams
from virtagent_protocol.errors import (
    FAULT_OF_KIND,
    Fault,
    FaultCode,
    RemoteFault,
    RemoteProtocolError,
    VirtagentError,
)
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.stream import CANCELLED, LinkStream
from virtagent_protocol.values import Struct, Value, as_struct, member

from ..forward.host import HOST
from ..local.server import LocalClient

#: Calls at a time: each has two streams of the link to the host, which has 256 for everything.
CALLS_MAX = 32
#: Of them, places that only root can take.
ROOT_PLACES = 8
#: Calls of one user at a time. The host may allow fewer.
CALLS_OF_UID = 8

_running: Counter[int] = Counter()


def topic(client: LocalClient) -> Registry:
    """Return what is offered to a client of the local socket."""
    registry = Registry()

    @registry.method("va.call_service")
    async def call_service(call: Call, request: dict[str, Value]) -> dict[str, Value]:
        """Call a service of the host: service, arguments, io, status.

        arguments is an array, and may be left out. io and status are the ids of new streams: for what the
        service reads and writes, and for how it ended. The result has kind: "program" or "function".
        """
        uid = client.caller.uid
        _check_place(uid)
        try:
            service = member(request, "service", str)
            numbers = [member(request, name, int) for name in ("io", "status")]
            wanted: Struct = {"service": service, "arguments": member(request, "arguments", list, [])}
        except RemoteProtocolError as error:
            raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None
        theirs = [call.accept(number) for number in numbers]
        ours: list[LinkStream] = []
        _running[uid] += 1
        passed_on = False
        try:
            ours += [HOST.open_stream(), HOST.open_stream()]
            wanted.update(caller=client.caller.to_value(), io=ours[0].id, status=ours[1].id)
            answer = cast(Value, await HOST.call("va.call_service", wanted))
            answer = as_struct(answer, "the answer to va.call_service")
            kind = member(answer, "kind", str)
            passed_on = True
        except VirtagentError as error:
            raise _fault(error) from None
        finally:
            if not passed_on:
                _give_back(uid)
                for stream in ours:
                    stream.reset(CANCELLED)
        call.spawn(_relay, uid, theirs, ours)
        return {"kind": kind}

    return registry


async def _relay(uid: int, theirs: list[LinkStream], ours: list[LinkStream]) -> None:
    try:
        async with trio.open_nursery() as nursery:
            for one, other in zip(theirs, ours, strict=True):
                nursery.start_soon(relay_streams, one, other)
    finally:
        _give_back(uid)


def _check_place(uid: int) -> None:
    others = _running.total() - _running[0]
    if uid == 0:
        room = _running.total() < CALLS_MAX
    else:
        room = others < CALLS_MAX - ROOT_PLACES and _running[uid] < CALLS_OF_UID
    if not room:
        raise Fault(
            FaultCode.QUEUE_FULL,
            f"{_running[uid]} calls of this user and {_running.total()} in all are running: try again later",
        )


def _give_back(uid: int) -> None:
    _running[uid] -= 1
    if not _running[uid]:
        del _running[uid]


def _fault(error: VirtagentError) -> Fault:
    """Return what the program is told of an error on the way to the host."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, RemoteFault):
        if error.code == FaultCode.METHOD_NOT_FOUND:
            return Fault(FaultCode.NOT_THERE, "this host offers no services: its va-host is an older one")
        known = error.code in FaultCode.__members__.values()
        return Fault(FaultCode(error.code) if known else FaultCode.FAILED, error.message)
    return Fault(FAULT_OF_KIND[error.kind], f"the host cannot be called: {error}")
