"""How a process ended: waited for, told on a stream of its own, read from there and checked.

The document is the last thing that is sent of a process (SPEC.md section 11): a methodResponse with a struct,
or with a fault if it did not come to an end of its own.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import trio

from . import xmlrpc
from .errors import LinkBroken, RemoteFault, RemoteProtocolError
from .limits import KIB
from .stream import LinkStream
from .values import Struct, as_struct, member

log = logging.getLogger("virtagent.jobs")

#: Bytes of a status document.
STATUS_MAX = 64 * KIB

#: For kernels before 5.3, on which waiting for a process takes a thread.
_waiters = trio.CapacityLimiter(1024)


async def until_ended(pid: int) -> Struct:
    """Wait until a child has ended, and return how: ``{"code": n}`` or ``{"signal": n, "core": bool}``.

    It is not reaped: until that is done, its number is nobody else's.
    """
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        options = os.WEXITED | os.WNOWAIT
        await trio.to_thread.run_sync(
            os.waitid, os.P_PID, pid, options, abandon_on_cancel=True, limiter=_waiters
        )
    else:
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)
    # It has ended, so this does not block.
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    assert result is not None
    if result.si_code == os.CLD_EXITED:
        return {"code": result.si_status}
    return {"signal": result.si_status, "core": result.si_code == os.CLD_DUMPED}


async def send_status(status: LinkStream, document: Struct | tuple[int, str]) -> None:
    """Send a status document; if nobody is there any more, that is all right.

    Args:
        status: closed in the end.
        document: the struct; or the code and the message of a fault.
    """
    try:
        if isinstance(document, tuple):
            await status.send_all(xmlrpc.encode_fault(*document))
        else:
            await status.send_all(xmlrpc.encode_result(document))
        await status.aclose()
    except trio.BrokenResourceError as error:
        log.debug("a status was not sent: %s", error)


async def read_status(stream: LinkStream, what: str, size: int = STATUS_MAX) -> Struct:
    """Read a status document.

    Args:
        stream: is read to its end.
        what: whose, for errors: ``"the job"``.
        size: bytes that it may have.

    Raises:
        RemoteFault: it is a fault.
        RemoteProtocolError: it is too long, or none.
        LinkBroken: the stream broke before its end.
    """
    document = bytearray()
    try:
        async for part in stream:
            document += part
            if len(document) > size:
                raise RemoteProtocolError(f"the status of {what} has more than {size} bytes")
    except trio.BrokenResourceError as error:
        raise LinkBroken(f"{what} was lost: {error}") from error
    value, fault = xmlrpc.decode_response(bytes(document))
    if fault is not None:
        raise RemoteFault(*fault)
    return as_struct(value, f"the status of {what}")


def read_outcome(status: Struct) -> dict[str, Any]:
    """Return how a process ended, of a received struct.

    Raises:
        RemoteProtocolError: it does not say.
    """
    outcome: dict[str, Any] = {}
    if "code" in status:
        outcome["code"] = member(status, "code", int)
    else:
        outcome["signal"] = member(status, "signal", int)
        outcome["core"] = member(status, "core", bool, False)
    if not 0 <= outcome.get("code", 0) <= 255 or not 0 <= outcome.get("signal", 0) <= 127:
        raise RemoteProtocolError("no process ends as this status says")
    if member(status, "deadline", bool, False):
        outcome["deadline"] = True
    if missed := member(status, "missed", int, 0):
        outcome["missed"] = missed
    return outcome
