"""One call of an extension: a process that gets the arguments and says the result.

The rules:

1. The arguments come as JSON on its stdin, and each as a variable ``ARG_NAME`` too: a string as it is, all
   else as JSON; what is null is not set. The result is JSON on its stdout; none is nil.
2. It has failed if its exit status is not 0, and the last line of its stderr says why. The end of stderr
   goes to the log.
3. At its deadline, or when the caller wants it no more, its process group gets SIGTERM, and SIGKILL when its
   leader has ended or `GRACE` seconds have passed. The group cannot be anybody else's by then: its leader is
   waited for only after that.
4. Arguments, result, stderr and the number of processes are bounded.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGCONT, SIGKILL, SIGTERM
from typing import Any

import trio

from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import Fault, FaultCode, LocalProtocolError
from virtagent_protocol.limits import EXECUTE_MAX, KIB, MIB
from virtagent_protocol.nursery import plain_nursery
from virtagent_protocol.outcome import until_ended
from virtagent_protocol.signature import ANY
from virtagent_protocol.text import visible, visible_line
from virtagent_protocol.values import Struct, Value, type_name

from ..jobs.launch import start
from ..jobs.process import Input, Output, Process
from ..jobs.request import Request
from ..jobs.ring import Ring
from .extension import Extension, Kind
from .python import command

log = logging.getLogger("virtagent.extensions")

#: Calls at a time: fewer than a link executes, so that extensions that are slow hold up no other method.
RUNNING_MAX = EXECUTE_MAX - 1
#: Bytes of arguments: so much always fits a process's environment.
ARGUMENTS_MAX = 64 * KIB
#: Bytes of a result: in a message it may have twice the size.
RESULT_MAX = 1 * MIB
#: Bytes of stderr's end that are kept, lines of it that are logged, and characters of the last in a fault.
STDERR_MAX, STDERR_LINES, REASON_MAX = 4 * KIB, 20, 500
#: Seconds between SIGTERM and SIGKILL; and after that, for a process that the kernel holds.
GRACE = 2.0

_threads = trio.CapacityLimiter(RUNNING_MAX)
_running: list[str] = []


async def run(extension: Extension, arguments: Struct) -> Value:
    """Call an extension, and return its result. Cancelled: it is ended.

    Args:
        extension: which.
        arguments: by name, of the right types, complete.

    Raises:
        Fault: INVALID_PARAMS: the arguments are too large; QUEUE_FULL: too many run; TOO_LARGE: the result
            is; FAILED: it failed, took too long, or its result is none; else see `launch.start`.
    """
    try:
        text = json.dumps(arguments)
    except TypeError:
        raise Fault(
            FaultCode.INVALID_PARAMS, f"{extension.name} takes no base64: arguments are JSON"
        ) from None
    if len(text) > ARGUMENTS_MAX:
        raise Fault(FaultCode.INVALID_PARAMS, f"the arguments have more than {ARGUMENTS_MAX} bytes as JSON")
    with _slot(extension):
        output = await _run(extension, _request(extension, arguments), text.encode())
    return _result(extension, output)


@contextmanager
def _slot(extension: Extension) -> Iterator[None]:
    if len(_running) >= RUNNING_MAX:
        names = ", ".join(_running)
        raise Fault(FaultCode.QUEUE_FULL, f"{RUNNING_MAX} extensions run already ({names}): try again later")
    _running.append(extension.name)
    try:
        yield
    finally:
        _running.remove(extension.name)


def _request(extension: Extension, arguments: Struct) -> Request:
    argv = command(extension) if extension.kind is Kind.PYTHON else [extension.path]
    env = {b"VIRTAGENT_METHOD": extension.name.encode()}
    for name, value in arguments.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            # XML-RPC carries no NUL, and no lone surrogates.
            env[b"ARG_" + name.encode()] = text.encode()
    # The streams are nobody's: they say that there are to be pipes.
    return Request(tuple(map(os.fsencode, argv)), env, cwd=b"/", io=0, stderr=0, status=0)


async def _run(extension: Extension, request: Request, data: bytes) -> bytes:
    """Return what it wrote on stdout."""
    process = Process(await trio.to_thread.run_sync(start, request, limiter=_threads))
    assert process.err is not None
    assert process.into is not None
    said = Ring(STDERR_MAX)
    output = bytearray()
    seconds = extension.signature.timeout
    try:
        with trio.move_on_after(seconds) as scope:
            async with plain_nursery() as nursery:
                nursery.start_soon(process.wait)
                nursery.start_soon(_feed, process.into, data)
                nursery.start_soon(_listen, process.err, said)
                nursery.start_soon(_collect, process.out, output, extension)
    finally:
        if not process.end:
            await _end(process)
        process.close()
        _log(extension, said)
    if scope.cancelled_caught:
        raise Fault(FaultCode.FAILED, f"{extension.name} was not done within {seconds} s, and was ended")
    if process.end != {"code": 0}:
        raise Fault(FaultCode.FAILED, f"{extension.name} failed: {_reason(process.end, said)}")
    return bytes(output)


async def _feed(into: Input, data: bytes) -> None:
    await into.write(data)
    into.close()


async def _listen(err: Output, said: Ring) -> None:
    while data := await err.read():
        said.append(data)


async def _collect(out: Output, output: bytearray, extension: Extension) -> None:
    while data := await out.read():
        output += data
        if len(output) > RESULT_MAX:
            raise Fault(FaultCode.TOO_LARGE, f"the result of {extension.name} exceeds {RESULT_MAX} bytes")


async def _end(process: Process) -> None:
    with trio.move_on_after(2 * GRACE) as scope:
        scope.shield = True
        process.signal(SIGTERM)
        process.signal(SIGCONT)
        with trio.move_on_after(GRACE):
            await until_ended(process.pid)
        process.signal(SIGKILL)
        await process.wait()
    if not process.end:
        log.warning("process %d hangs in the kernel, and ends when that lets it", process.pid)
        threading.Thread(target=os.waitpid, args=(process.pid, 0), daemon=True).start()


def _log(extension: Extension, said: Ring) -> None:
    lines = _lines(said)
    if said.begin or len(lines) > STDERR_LINES:
        log.info("%s: of %d bytes on stderr, the end is:", extension.name, said.end)
    for line in lines[-STDERR_LINES:]:
        log.info("%s: %s", extension.name, line)


def _lines(said: Ring) -> list[str]:
    text = said.read(said.begin, STDERR_MAX).decode(errors="replace")
    return [visible_line(line.rstrip()) for line in text.split("\n") if line.strip()]


def _reason(end: Struct, said: Ring) -> str:
    how = f"exit status {end['code']!r}" if "code" in end else f"it was killed by signal {end['signal']!r}"
    lines = _lines(said)
    return f"{lines[-1][:REASON_MAX]} ({how})" if lines else how


def _result(extension: Extension, output: bytes) -> Value:
    if extension.plain:
        return visible(output.decode(errors="backslashreplace").removesuffix("\n"))
    value = _parse(extension, output)
    expected = extension.signature.returns
    if expected == "double" and type(value) is int:
        value = float(value)
    if expected not in (ANY, type_name(value)):
        raise _bad(extension, f"it is {type_name(value)}, and is declared as {expected}")
    try:
        xmlrpc.encode_result(value)
    except LocalProtocolError as error:
        raise _bad(extension, str(error)) from None
    return value


def _parse(extension: Extension, output: bytes) -> Value:
    if not output.strip():
        return None
    try:
        value: Value = json.loads(output, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        hint = "; for text that is none, declare 'returns: text'" if extension.kind is Kind.EXECUTABLE else ""
        raise _bad(extension, f"it is not JSON: {error}{hint}") from None
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"it holds {text}")


def _bad(extension: Extension, why: str) -> Fault:
    return Fault(FaultCode.FAILED, f"{extension.name} has run; its result cannot be sent: {why[:REASON_MAX]}")
