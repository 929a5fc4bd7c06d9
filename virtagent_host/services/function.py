"""A service that is a Python function: values in, a value out.

The rules:

1. It is called with a `Context` and the guest's arguments. What it returns is the result, if XML-RPC
   carries it.
2. A coroutine function runs in va-host's own loop (trio), and is cancelled when its time is over or whoever
   called is gone. Any other runs in a thread, which nothing can stop: its call counts until it has returned.
3. `virtagent_protocol.errors.Fault` and `Forbidden` that it raises are told to the guest. Of all else the
   guest is told that it failed, and this host's log why.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import Fault, FaultCode, Forbidden, LocalProtocolError
from virtagent_protocol.limits import KIB
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct

from .request import Caller, ServiceCall
from .rules import Settings

log = logging.getLogger("virtagent.services")

#: Bytes of a result. It travels as one document.
RESULT_MAX = 48 * KIB
#: What became of one whose caller was gone, and of one whose time was over: as if SIGTERM had ended it.
_GONE: Struct = {"signal": 15, "core": False}
_TOO_LATE: Struct = {**_GONE, "deadline": True}

#: Threads for functions, apart from those that va-host itself needs. How many calls there may be is the
#: policy's.
_threads = trio.CapacityLimiter(1024)


@dataclass(frozen=True)
class Context:
    """What a function is told besides its arguments.

    Attributes:
        vm: the name of the VM.
        service: the name that it was called by.
        caller: who calls; the guest's word, as all else of it.
    """

    vm: str
    service: str
    caller: Caller


async def run_function(
    what: str, function: Callable[..., Any], vm: str, call: ServiceCall, settings: Settings, io: LinkStream
) -> Struct | tuple[int, str]:
    """Run a function and return its status document.

    Args:
        what: what the log calls it.
        function: it.
        vm: the VM's name.
        call: what is asked for.
        settings: of the rule that has let the call pass.
        io: is closed in the end; when it breaks, whoever called is gone.
    """
    context = Context(vm, call.service, call.caller)
    if inspect.iscoroutinefunction(function):
        outcome = await _run_coroutine(what, function, context, call, settings.run_time, io)
    else:
        begun = trio.current_time()
        # It is left behind only when va-host ends.
        outcome = await _outcome(
            what,
            partial(trio.to_thread.run_sync, abandon_on_cancel=True, limiter=_threads),
            partial(function, context, *call.arguments),
        )
        if trio.current_time() - begun > settings.run_time:
            outcome = _TOO_LATE
    if outcome is _TOO_LATE:
        log.warning("%s: it has reached its run-time of %g s", what, settings.run_time)
    await io.aclose()
    return outcome


async def _run_coroutine(
    what: str,
    function: Callable[..., Any],
    context: Context,
    call: ServiceCall,
    run_time: float,
    io: LinkStream,
) -> Struct | tuple[int, str]:
    outcome: Struct | tuple[int, str] = _GONE
    async with trio.open_nursery() as nursery:

        async def cancel_when_gone() -> None:
            await io.broken.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(cancel_when_gone)
        with trio.move_on_after(run_time) as patience:
            outcome = await _outcome(what, function, context, *call.arguments)
        if patience.cancelled_caught:
            outcome = _TOO_LATE
        nursery.cancel_scope.cancel()
    return outcome


async def _outcome(
    what: str, function: Callable[..., Awaitable[Any]], *args: object
) -> Struct | tuple[int, str]:
    try:
        value = await function(*args)
        size = len(xmlrpc.encode_result(value))
    except Fault as fault:
        return fault.code, fault.message
    except Forbidden as error:
        return FaultCode.FORBIDDEN, str(error)
    except LocalProtocolError as error:
        log.warning("%s: its result cannot be sent: %s", what, error)
        return FaultCode.FAILED, "the service failed: its result cannot be sent"
    except Exception:  # it is the service's, not va-host's
        log.exception("%s: it failed", what)
        return FaultCode.FAILED, "the service failed; the host's log says why"
    if size > RESULT_MAX:
        return FaultCode.TOO_LARGE, f"the result has {size} bytes, {RESULT_MAX} are the most"
    return {"code": 0, "value": value}
