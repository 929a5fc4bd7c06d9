"""Calling a service of the host, from a program of the guest.

`call_service` is for programs without trio; `run_call` for those with it, on a link of
`local.client.connect`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from virtagent_protocol.errors import CallTimeout, FailureKind, LinkBroken, SessionReset, VirtagentError
from virtagent_protocol.limits import MIB
from virtagent_protocol.values import Struct, Value, as_struct

from ..local.client import connect

if TYPE_CHECKING:
    from virtagent_protocol.link import Link
    from virtagent_protocol.stream import LinkStream

# What is refused is told by exceptions, also where nobody has set up a log.
logging.getLogger("virtagent").addHandler(logging.NullHandler())

#: Returns what comes next, nothing at the end; it may wait.
Source = Callable[[], Awaitable[bytes]]
#: Takes what was written; it may wait.
Sink = Callable[[bytes], Awaitable[None]]

#: Bytes of output that are collected where there is no file for it.
COLLECTED_MAX = 16 * MIB
#: Bytes read at a time.
PIECE = 256 * 1024


class StandardFileFailed(VirtagentError):
    """What was given as standard input or output cannot be used; *errno* says why, if the system did."""

    kind = FailureKind.REFUSED

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


@dataclass(frozen=True)
class Ended:
    """How a service ended.

    Attributes:
        kind: ``program`` or ``function``.
        code: the exit status; None: a signal ended it.
        signal: the number of that.
        deadline: whether its time was over.
        value: what a function has returned.
        output: what it wrote, where nothing else was said to take it.
    """

    kind: str
    code: int | None = None
    signal: int | None = None
    deadline: bool = False
    value: Value = None
    output: bytes = b""

    @property
    def status(self) -> int:
        """The exit status, as a shell tells it: 128 + N for signal N, and timeout(1)'s 124."""
        if self.deadline:
            return 124
        return self.code if self.code is not None else 128 + (self.signal or 0)


def call_service(
    service: str,
    *arguments: Value,
    stdin: BinaryIO | bytes | None = None,
    stdout: BinaryIO | Callable[[bytes], object] | None = None,
    timeout: float | None = None,
    path: str | None = None,
) -> Ended:
    """Call a service of the host and wait for its end.

    Args:
        service: its name.
        arguments: for a program, strings or bytes; for a function, any values.
        stdin: what it reads; an open file must have a descriptor.
        stdout: where its output goes: a file with a descriptor, or a function, called in a thread; None: it
        is collected, up to `COLLECTED_MAX`. timeout: seconds for all of it; then the host ends it. path: of
        the agent's socket.

    Raises:
        Forbidden, RemoteFault: the host refuses it.
        NotThere, NotReady: there is no agent.
        CallTimeout: its time was over.
        SessionReset, LinkBroken: the connection was lost while it ran, and the host has ended it.
        StandardFileFailed: *stdin* cannot be read, or *stdout* not be written.
    """
    import trio

    collected = bytearray()
    given = stdin if isinstance(stdin, bytes) else b""

    async def read() -> bytes:
        nonlocal given
        if stdin is None or isinstance(stdin, bytes):
            data, given = given, b""
            return data
        data = await _in_thread(os.read, stdin.fileno(), PIECE)
        return bytes(data)

    async def write(data: bytes) -> None:
        if stdout is not None:
            take = stdout if callable(stdout) else partial(write_all, stdout.fileno())
            await _in_thread(take, data)
        elif len(collected) + len(data) > COLLECTED_MAX:
            raise StandardFileFailed(f"the output has more than {COLLECTED_MAX} bytes: give it a file")
        else:
            collected.extend(data)

    async def run() -> Ended:
        ended = await run_service(service, arguments, read if stdin is not None else None, write, path=path)
        return Ended(ended.kind, ended.code, ended.signal, ended.deadline, ended.value, bytes(collected))

    async def run_in_time() -> Ended:
        try:
            with trio.fail_after(float("inf") if timeout is None else timeout):
                return await run()
        except trio.TooSlowError:
            raise CallTimeout(f"service '{service}': it has not ended within {timeout:g} s") from None

    return trio.run(run_in_time)


async def run_service(
    service: str,
    arguments: tuple[Value, ...],
    source: Source | None,
    sink: Sink,
    *,
    path: str | None = None,
) -> Ended:
    """As `run_call`, on a connection of its own."""
    begun = False

    def on_begin() -> None:
        nonlocal begun
        begun = True

    ended: Ended | None = None
    try:
        async with connect(path) as link:
            ended = await run_call(link, service, arguments, source, sink, on_begin)
    except LinkBroken as error:
        # That the connection is lost may be noticed on it and on its streams, in any order.
        if ended is None and begun:
            raise SessionReset(f"service '{service}' was lost, and the host has ended it: {error}") from error
        if ended is None:
            raise
    assert ended is not None
    return ended


async def run_call(
    link: Link,
    service: str,
    arguments: tuple[Value, ...],
    source: Source | None,
    sink: Sink,
    on_begin: Callable[[], None] = lambda: None,
) -> Ended:
    """Call a service of the host and pass on what it reads and writes until it has ended.

    Args:
        link: to the agent.
        service: its name.
        arguments: see `call_service`.
        source: of its input; None: it has none.
        sink: for its output. What it raises ends the call.
        on_begin: called when the service runs.

    Raises:
        RemoteFault: the host refuses it, or has ended it for a reason.
        LinkBroken: it was lost.
        VirtagentError: see `Link.call`.
    """
    import trio

    from virtagent_protocol.nursery import plain_nursery
    from virtagent_protocol.outcome import read_outcome, read_status
    from virtagent_protocol.stream import CANCELLED

    streams: list[LinkStream] = []
    what = f"service '{service}'"
    try:
        streams += [link.open_stream(), link.open_stream()]
        io, status = streams
        request: Struct = {"service": service, "arguments": list(arguments), "io": io.id, "status": status.id}
        answer = as_struct(await link.call("va.call_service", request), "the answer to va.call_service")
        on_begin()
        whole = False
        async with plain_nursery() as nursery:
            nursery.start_soon(_feed, io, source)
            try:
                async for data in io:
                    await sink(bytes(data))
                whole = True
            except trio.BrokenResourceError:
                pass  # why, the status says
            document = await read_status(status, what)
            nursery.cancel_scope.cancel()
        ended: dict[str, Any] = read_outcome(document)
        if not whole and not ended.get("deadline"):
            raise LinkBroken(f"{what}: the end of its output was lost")
        return Ended(
            str(answer.get("kind")),
            ended.get("code"),
            ended.get("signal"),
            bool(ended.get("deadline")),
            document.get("value"),
        )
    finally:
        # What has ended is not touched by this; of all else the host is to know at once.
        for stream in streams:
            stream.reset(CANCELLED)


async def _feed(io: LinkStream, source: Source | None) -> None:
    import trio

    try:
        while source is not None and (data := await source()):
            await io.send_all(data)
        await io.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # it reads no more; the status will say why


def write_all(fd: int, data: bytes) -> None:
    """Write all of *data* to a descriptor, however long that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


async def _in_thread(function: Callable[..., Any], *args: object) -> Any:
    import trio

    try:
        # A read of a terminal may never return: it is left behind, and ends with this process.
        return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
    except OSError as error:
        what = "the input cannot be read" if function is os.read else "the output cannot be written"
        raise StandardFileFailed(f"{what}: {error.strerror}", error.errno) from error
