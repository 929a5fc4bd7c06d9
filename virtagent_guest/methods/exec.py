"""va.exec, va.jobs, va.job_*: run programs, and see to those that run (SPEC.md section 11)."""

from __future__ import annotations

import signal

from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct, Value, member

from ..jobs.request import parse_request, parse_size
from ..jobs.table import JOBS

registry = Registry()


@registry.method("va.exec")
async def exec_(call: Call, job: Struct) -> Struct:
    """Run a program: argv, env, clear_env, cwd, user, shell, pty, merge, deadline, limits, io, stderr,
    status.

    With the streams io and status it is attached to them; without, it is detached and its output is kept. id
    is that of the job, pid that of its process.
    """
    request = parse_request(job)
    streams = [
        None if number is None else call.accept(number)
        for number in (request.io, request.stderr, request.status)
    ]
    started = await JOBS.start(request, *streams)
    return {"id": started.number, "pid": started.process.pid}


@registry.method("va.jobs")
async def jobs(call: Call) -> list[Value]:
    """Return a struct for each job that runs, and each detached one that has ended and is not forgotten."""
    return [job.describe() for job in JOBS]


@registry.method("va.job_attach")
async def job_attach(call: Call, join: Struct) -> Struct:
    """Send the output of a detached job on streams: id, offset, stderr_offset, stdout, stderr, status.

    offset and stderr_offset say from which byte on. The result says from which byte on it really is: the
    oldest ones may not be kept any more.
    """
    try:
        job = JOBS.find(member(join, "id", int))
        offsets = [member(join, "offset", int, 0), member(join, "stderr_offset", int, 0)]
        numbers = [member(join, name, int, 0) for name in ("stdout", "stderr")]
        status = member(join, "status", int)
    except RemoteProtocolError as error:
        raise Fault(FaultCode.INVALID_PARAMS, str(error)) from error
    if min(offsets) < 0:
        raise Fault(FaultCode.INVALID_PARAMS, "an offset must not be negative")
    if not job.tails:
        raise Fault(FaultCode.INVALID_PARAMS, f"job {job.number} is not detached: its output goes elsewhere")
    streams: list[LinkStream | None] = [call.accept(number) if number else None for number in numbers]
    if streams[1] is not None and len(job.tails) < 2:
        # There is nothing apart from stdout.
        await streams[1].aclose()
        streams[1] = None
    first = [tail.ring.first(offset) for tail, offset in zip(job.tails, offsets, strict=False)]
    call.spawn(job.follow, offsets, streams, call.accept(status))
    return dict(zip(("offset", "stderr_offset"), first, strict=False))


@registry.method("va.job_signal")
async def job_signal(call: Call, id: int, name: str) -> None:
    """Send a signal, such as "TERM" or "SIGTERM", to the process group of a job."""
    try:
        number = signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise Fault(FaultCode.INVALID_PARAMS, f"there is no signal {name[:40]!r}") from None
    JOBS.find(id).signal(number)


@registry.method("va.job_resize")
async def job_resize(call: Call, id: int, rows: int, cols: int) -> None:
    """Tell the terminal of a job its size."""
    JOBS.find(id).resize(parse_size({"rows": rows, "cols": cols}))


@registry.method("va.job_forget")
async def job_forget(call: Call, id: int) -> None:
    """Drop a detached job that has ended, with its output."""
    JOBS.forget(id)
