"""Processes of the guest on the descriptors of a client, or with their output collected (SPEC.md section 11).

The rules:

1. A job that a client is attached to lives as long as the client: when that leaves, or this service ends, its
   streams are reset, and the guest hangs it up.
2. How it ended is told when all of its output has been *written*: by the event VA_JOB_ENDED, and by `wait`.
3. What a guest says of the end is checked; what it writes is bounded where it is collected.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import trio

from virtagent_protocol.errors import LinkBroken, RemoteFault, VirtagentError
from virtagent_protocol.limits import MIB
from virtagent_protocol.nursery import plain_nursery
from virtagent_protocol.outcome import read_outcome, read_status
from virtagent_protocol.stream import CANCELLED, REFUSED, LinkStream
from virtagent_protocol.values import Struct, as_struct, member

from ..command import Client, InvalidArguments, VirtualMachine
from .fd import HandedFd
from .pump import StreamBroken, close_all, pump_in, pump_out

#: Tells a client how a job ended that it is attached to: {id, session (if it runs in one)}, and {code or
#: signal…} or {kind, error}.
ENDED_EVENT = "VA_JOB_ENDED"
#: Bytes of each output that are collected; a message carries no more than a few of these.
COLLECTED_MAX = 1 * MIB
#: Ended jobs of a client that it has not waited for.
_ENDED_MAX = 64


@dataclass
class Fds:
    """Descriptors for a process; each is ours."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None

    def take(self, name: str) -> HandedFd | None:
        """Return the one of that name to work with, and forget it."""
        fd = getattr(self, name)
        setattr(self, name, None)
        return None if fd is None else HandedFd(fd)

    def close(self) -> None:
        """Close those that were not taken."""
        close_all(*(getattr(self, field.name) for field in fields(self)))


class Streams:
    """The streams of one job.

    Args:
        vm: whose guest.
        stderr: whether there is one for it.
    """

    def __init__(self, vm: VirtualMachine, *, stderr: bool) -> None:
        self.all: list[LinkStream] = []
        try:
            self.io = self._open(vm)
            self.status = self._open(vm)
            self.stderr = self._open(vm) if stderr else None
        except BaseException:
            self.reset(REFUSED)
            raise

    def _open(self, vm: VirtualMachine) -> LinkStream:
        self.all.append(vm.open_stream())
        return self.all[-1]

    def reset(self, reason: str) -> None:
        """Break them all."""
        for stream in self.all:
            stream.reset(reason)

    async def close(self) -> None:
        """End them all."""
        for stream in self.all:
            await stream.aclose()


#: Whose job: of the guest's agent (None) or of a session's, as the client called it; and its number there.
JobKey = tuple[str | int | None, int]


class AttachedJob:
    """A job that a client is attached to."""

    def __init__(self, key: JobKey, client: Client) -> None:
        self._key = key
        self._client = client
        self._outcome: dict[str, Any] = {}
        self._error: VirtagentError | None = None
        self.ended = trio.Event()

    def outcome(self) -> dict[str, Any]:
        """Return how it ended. Raises what went wrong."""
        if self._error is not None:
            raise self._error
        return self._outcome

    async def pump(self, streams: Streams, source: HandedFd | None, sinks: list[HandedFd | None]) -> None:
        """Move what comes until the job has ended, and tell the client."""
        try:
            self._outcome = await _pump(streams, source, sinks)
        except VirtagentError as error:
            self._error = error
        finally:
            for fd in (source, *sinks):
                if fd is not None:
                    fd.close()
        self.ended.set()
        if self._error is not None:
            told = {"kind": self._error.kind.value, "error": str(self._error)}
        else:
            told = self._outcome
        session, number = self._key
        whose = {} if session is None else {"session": session}
        self._client.emit(ENDED_EVENT, {"id": number, **whose, **told})


#: The jobs that a client is attached to, or was and has not waited for.
_attached: WeakKeyDictionary[Client, dict[JobKey, AttachedJob]] = WeakKeyDictionary()


async def run(
    vm: VirtualMachine, client: Client, request: Struct, fds: Fds, session: str | int | None = None
) -> object:
    """Start a process on descriptors and return its ids; the rest goes on by itself.

    Args:
        request: the struct of va.exec, without streams.
        fds: become ours if this returns.
        session: in which that is, if it is in one.

    Raises:
        VirtagentError: it was not started.
    """
    streams = Streams(vm, stderr=fds.stderr is not None)
    try:
        named: Struct = {"io": streams.io.id, "status": streams.status.id}
        if streams.stderr is not None:
            named["stderr"] = streams.stderr.id
        answer = as_struct(await vm.call("va.exec", {**request, **named}), "the answer to va.exec")
        number, pid = member(answer, "id", int), member(answer, "pid", int)
    except BaseException:
        streams.reset(REFUSED)
        raise
    _begin(client, (session, number), streams, fds)
    return {"id": number, "pid": pid}


async def attach(
    vm: VirtualMachine,
    client: Client,
    number: int,
    offsets: tuple[int, int],
    fds: Fds,
    session: str | int | None = None,
) -> object:
    """Write the output of a detached job to descriptors, and return from which offsets on.

    Raises:
        VirtagentError: there is no such job.
    """
    streams = Streams(vm, stderr=fds.stderr is not None)
    try:
        join: Struct = {"id": number, "offset": offsets[0], "stderr_offset": offsets[1]}
        join.update(stdout=streams.io.id, status=streams.status.id)
        if streams.stderr is not None:
            join["stderr"] = streams.stderr.id
        answer = as_struct(await vm.call("va.job_attach", join), "the answer to va.job_attach")
        found = {"offset": member(answer, "offset", int)}
        if "stderr_offset" in answer:
            found["stderr-offset"] = member(answer, "stderr_offset", int)
    except BaseException:
        streams.reset(REFUSED)
        raise
    _begin(client, (session, number), streams, fds)
    return found


def _begin(client: Client, key: JobKey, streams: Streams, fds: Fds) -> None:
    job = AttachedJob(key, client)
    jobs = _attached.setdefault(client, {})
    jobs[key] = job
    for old in [one for one, other in jobs.items() if other.ended.is_set()][:-_ENDED_MAX]:
        del jobs[old]
    source = fds.take("stdin")
    client.spawn(job.pump, streams, source, [fds.take("stdout"), fds.take("stderr")])


async def wait(client: Client, number: int, session: str | int | None = None) -> dict[str, Any]:
    """Wait for the end of a job that this client is attached to, and return how it ended.

    Raises:
        InvalidArguments: it is attached to no such job.
        VirtagentError: the job was lost, or its output could not be written.
    """
    job = _attached.get(client, {}).get((session, number))
    if job is None:
        raise InvalidArguments(f"this client is attached to no job {number}: va_jobs tells how others ended")
    await job.ended.wait()
    _attached[client].pop((session, number), None)
    return job.outcome()


async def capture(
    vm: VirtualMachine, request: Struct, given: bytes
) -> tuple[dict[str, Any], dict[str, tuple[bytes, bool]]]:
    """Run a process to its end.

    Args:
        request: the struct of va.exec, without streams.
        given: what it reads.

    Returns:
        How it ended; and by ``stdout`` and ``stderr`` (if that is apart) what it wrote and whether that was
        cut.

    Raises:
        VirtagentError: it was not started, or was lost.
    """
    apart = not (request.get("merge") or "pty" in request)
    streams = Streams(vm, stderr=apart)
    outputs = {"stdout": _Collected()}
    try:
        named: Struct = {"io": streams.io.id, "status": streams.status.id}
        if streams.stderr is not None:
            named["stderr"] = streams.stderr.id
            outputs["stderr"] = _Collected()
        await vm.call("va.exec", {**request, **named})
        async with plain_nursery() as nursery:
            nursery.start_soon(_give, streams.io, given)
            async with plain_nursery() as reading:
                reading.start_soon(outputs["stdout"].read, streams.io)
                if streams.stderr is not None:
                    reading.start_soon(outputs["stderr"].read, streams.stderr)
                outcome = await _read_end(streams.status)
            nursery.cancel_scope.cancel()
    except BaseException:
        streams.reset(CANCELLED)
        raise
    await streams.close()
    return outcome, {name: (bytes(output.data), output.cut) for name, output in outputs.items()}


class _Collected:
    """What was written, as far as it fits."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.cut = False

    async def read(self, stream: LinkStream) -> None:
        try:
            async for part in stream:
                room = COLLECTED_MAX - len(self.data)
                self.data += part[:room]
                self.cut = self.cut or len(part) > room
        except trio.BrokenResourceError as error:
            raise StreamBroken(str(error)) from error


async def _give(stream: LinkStream, given: bytes) -> None:
    try:
        await stream.send_all(given)
        await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # it reads no more


async def _pump(streams: Streams, source: HandedFd | None, sinks: list[HandedFd | None]) -> dict[str, Any]:
    try:
        async with plain_nursery() as nursery:
            if source is None:
                nursery.start_soon(_give, streams.io, b"")
            else:
                nursery.start_soon(pump_in, source, streams.io)
            async with plain_nursery() as writing:
                for stream, sink in zip((streams.io, streams.stderr), sinks, strict=True):
                    if stream is not None:
                        writing.start_soon(_write, stream, sink)
                outcome = await _read_end(streams.status)
            # Its terminal, say, still waits for what nobody wants any more.
            nursery.cancel_scope.cancel()
    except BaseException:
        # Cancelled, too.
        streams.reset(CANCELLED)
        raise
    await streams.close()
    return outcome


async def _write(stream: LinkStream, sink: HandedFd | None) -> None:
    if sink is not None:
        await pump_out(stream, sink)
        return
    try:
        async for _ in stream:
            pass
    except trio.BrokenResourceError as error:
        raise StreamBroken(str(error)) from error


async def _read_end(stream: LinkStream) -> dict[str, Any]:
    try:
        return read_outcome(await read_status(stream, "the job"))
    except RemoteFault as fault:
        raise LinkBroken(f"the job was lost: {fault.message}") from fault
