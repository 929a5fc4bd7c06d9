"""va.exec by guest-exec: programs of a guest that has only qemu-ga.

The rules:

1. qemu-ga takes all input at once, and gives all output at once when the process has ended. So a program
   begins when its input has ended, and what it writes comes with its end, up to `INPUT_MAX` and what one
   answer holds (`conversation.ANSWER_MAX`). What qemu-ga has cut is an error, never passed for the whole.
2. What guest-exec lacks and a shell has (working directory, one output for both, signals) the guest's
   /bin/sh does; its arguments are never part of a script. What neither has is refused by name.
3. Nobody learns the process id before the process begins: `pid` in the answer is 0.
4. A client that leaves hangs its process up, as with virtagent's agent.
"""

from __future__ import annotations

import base64
import math
import signal
from dataclasses import dataclass, field

import trio

from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import FaultCode, RemoteFault, RemoteProtocolError, VirtagentError
from virtagent_protocol.limits import MIB
from virtagent_protocol.qga.messages import QgaError
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct, Value, member

from .methods import CLEAN_UP, Agent, Ended, Handler, begin_program, run_program, wait_for_program

#: Bytes of input. They go as base64 in one command, of which qemu-ga takes 64 MiB.
INPUT_MAX = 4 * MIB
#: Seconds from SIGTERM to SIGKILL at a deadline; and from SIGHUP to SIGKILL when the client is gone.
KILL_AFTER, HUNG_UP = 2.0, 5.0
#: What a process without environment gets for PATH.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_EXEC = frozenset({"guest-exec", "guest-exec-status"})
#: Members of va.exec's struct → what qemu-ga does not have.
_LACKING = {"pty": "terminals for programs", "user": "other users for programs", "limits": "limits"}


@dataclass
class Job:
    """A program that is run, from when it was asked for.

    Attributes:
        pid: once it has begun.
        killed: the signal that it got before that.
        scope: of the wait for its input.
        deadline: whether its time was over.
    """

    pid: int | None = None
    killed: int | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    deadline: bool = False


@dataclass(frozen=True)
class _Streams:
    io: LinkStream
    status: LinkStream
    stderr: LinkStream | None

    @property
    def all(self) -> list[LinkStream]:
        return [stream for stream in (self.io, self.stderr, self.status) if stream is not None]


async def _exec(agent: Agent, request: Struct) -> Value:
    for name, what in _LACKING.items():
        if request.get(name):
            raise agent.cannot(what)
    if "io" not in request:
        raise agent.cannot("detached jobs")
    argv, deadline = command_line(request), member(request, "deadline", float, math.inf)
    numbers = [member(request, name, int) for name in ("io", "status")]
    stderr = agent.accept(member(request, "stderr", int)) if "stderr" in request else None
    streams = _Streams(agent.accept(numbers[0]), agent.accept(numbers[1]), stderr)
    job, number = Job(), max(agent.jobs, default=0) + 1
    agent.jobs[number] = job
    agent.spawn(_attend, agent, number, argv, deadline, streams)
    return {"id": number, "pid": 0}


async def _signal(agent: Agent, number: int, name: str) -> Value:
    try:
        wanted = signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise RemoteFault(FaultCode.INVALID_PARAMS, f"there is no signal {name[:40]!r}") from None
    job = agent.jobs.get(number)
    if job is None:
        raise RemoteFault(FaultCode.INVALID_PARAMS, f"there is no job {number} that runs")
    if job.pid is None:
        job.killed = wanted.value
        job.scope.cancel()
    else:
        await _kill(agent, job.pid, wanted)
    return None


#: See `methods.METHODS`.
METHODS: dict[str, tuple[Handler, frozenset[str]]] = {
    "va.exec": (_exec, _EXEC),
    "va.job_signal": (_signal, _EXEC),
}


def command_line(request: Struct) -> list[str]:
    """Return the program and its arguments for guest-exec, of va.exec's struct.

    Raises:
        RemoteFault: qemu-ga cannot be given this.
    """
    argv = [_text(word, "argv") for word in member(request, "argv", list)]
    if not argv or not argv[0]:
        raise RemoteFault(FaultCode.INVALID_PARAMS, "argv must begin with a program")
    if member(request, "shell", bool, False):
        argv = ["/bin/sh", "-c", *argv]
    env = [f"{name}={_text(value, 'env')}" for name, value in member(request, "env", dict, {}).items()]
    if member(request, "clear_env", bool, False):
        env = ["-i", f"PATH={PATH}", *env]
    if env:
        # guest-exec's own "env" would be all that there is.
        argv = ["env", *env, *argv]
    if member(request, "merge", bool, False):
        argv = ["/bin/sh", "-c", 'exec "$0" "$@" 2>&1', *argv]
    if "cwd" in request:
        cwd = _text(request["cwd"], "cwd")
        if not cwd.startswith("/"):
            raise RemoteFault(FaultCode.INVALID_PARAMS, "cwd must be an absolute path")
        argv = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', cwd, *argv]
    return argv


def _text(value: Value, name: str) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise RemoteFault(
            FaultCode.INVALID_PARAMS, f"{name} is not UTF-8, and qemu-ga takes nothing else"
        ) from None
    if not isinstance(text, str) or "\0" in text:
        raise RemoteFault(FaultCode.INVALID_PARAMS, f"{name} holds what no process can be given")
    return text


async def _attend(agent: Agent, number: int, argv: list[str], deadline: float, streams: _Streams) -> None:
    """See to one process from its input to its end."""
    job = agent.jobs[number]
    try:
        given: bytes | None = None
        with job.scope:
            given = await _input(streams.io)
        if given is None:
            assert job.killed is not None
            document = xmlrpc.encode_result({"signal": job.killed, "core": False})
        else:
            document = await _run(agent, job, argv, given, deadline, streams)
    except QgaError as error:
        document = xmlrpc.encode_fault(FaultCode.FAILED, error.desc)
    except VirtagentError as error:
        document = xmlrpc.encode_fault(FaultCode.FAILED, str(error))
    except trio.BrokenResourceError:
        return  # the client is gone, or wants no more
    except BaseException:
        for stream in streams.all:
            stream.reset("cancelled")
        raise
    finally:
        del agent.jobs[number]
    await streams.status.send_all(document)
    for stream in streams.all:
        await stream.aclose()


async def _input(io: LinkStream) -> bytes:
    given = bytearray()
    async for part in io:
        given += part
        if len(given) > INPUT_MAX:
            raise RemoteFault(
                FaultCode.TOO_LARGE,
                f"the input has more than {INPUT_MAX} bytes, which is what qemu-ga is given at a time",
            )
    return bytes(given)


async def _run(
    agent: Agent, job: Job, argv: list[str], given: bytes, deadline: float, streams: _Streams
) -> bytes:
    more: dict[str, object] = {"input-data": base64.b64encode(given).decode("ascii")} if given else {}
    job.pid = await begin_program(agent, argv[0], argv[1:], **more)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_in_time, agent, job, deadline)
        nursery.start_soon(_end_with_client, agent, job.pid, streams.io)
        try:
            ended = await wait_for_program(agent, job.pid)
        except (QgaError, VirtagentError) as error:
            failure: Exception | None = error
        else:
            failure = None
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if ended.truncated:
        raise RemoteFault(FaultCode.TOO_LARGE, "it wrote more than qemu-ga keeps: have it write to a file")
    await streams.io.send_all(ended.output)
    if streams.stderr is not None:
        await streams.stderr.send_all(ended.errors)
    return xmlrpc.encode_result(_outcome(ended, deadline=job.deadline))


def _outcome(ended: Ended, *, deadline: bool) -> Struct:
    outcome: Struct = {"deadline": True} if deadline else {}
    if ended.status is not None:
        return {"code": ended.status & 0xFF, **outcome}
    if ended.signal is None:
        raise RemoteProtocolError("guest-exec-status tells neither exit code nor signal")
    return {"signal": ended.signal, "core": False, **outcome}


async def _end_in_time(agent: Agent, job: Job, seconds: float) -> None:
    await trio.sleep(seconds)
    assert job.pid is not None
    job.deadline = True
    await _kill(agent, job.pid, signal.SIGTERM)
    await trio.sleep(KILL_AFTER)
    await _kill(agent, job.pid, signal.SIGKILL)


async def _end_with_client(agent: Agent, pid: int, io: LinkStream) -> None:
    await io.broken.wait()
    await _kill(agent, pid, signal.SIGHUP)
    await trio.sleep(HUNG_UP)
    await _kill(agent, pid, signal.SIGKILL)


async def _kill(agent: Agent, pid: int, number: signal.Signals) -> None:
    script = ["-c", 'kill -s "$0" "$1"', number.name.removeprefix("SIG"), str(pid)]
    with trio.move_on_after(CLEAN_UP):
        try:
            as_it_went = await run_program(agent, "/bin/sh", script)
        except QgaError as error:
            raise RemoteFault(FaultCode.FAILED, f"no signal was sent: {error.desc}") from error
        if as_it_went.status != 0:
            return  # it has ended meanwhile
