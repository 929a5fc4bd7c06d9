"""The methods of virtagent's agent, done with the commands of qemu-ga.

The rules:

1. A method is there if the agent has all the commands it needs. What has none of them (events, terminals) is
   not in the table, and its callers are told what runs in the guest.
2. What a method returns, and the faults it answers with, are those of virtagent's agent, as far as qemu-ga
   tells enough.
3. What the agent answers is untrusted: its shape is checked.
4. Handles in the guest are closed whatever happens, and for that nobody waits long.

To add one: a function, and its line in `METHODS`. Those with streams have modules and tables of their own:
`processes`, `transfers`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from virtagent_protocol.errors import FaultCode, RemoteFault, RemoteProtocolError, SessionReset
from virtagent_protocol.qga.messages import QgaError
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Value, as_struct, member

#: Bytes of a file that one call returns, as virtagent's agent has it.
FILE_MAX = 1500 * 1024
#: Bytes of a file that are read at a time; qemu-ga would take up to 48 MB, and hold them three times.
PIECE = 512 * 1024
#: Bytes of the kernel's log that `va.getdmesg` returns.
DMESG_MAX = 16 * 1024
#: Seconds between two looks at a process: the first, and the longest.
LOOK_MIN, LOOK_MAX = 0.02, 1.0
#: Seconds that clean-up may take.
CLEAN_UP = 2.0
#: Seconds that the kernel's log may take.
DMESG_TIME = 30.0


class Agent(Protocol):
    """What the methods need of the agent."""

    async def execute(self, name: str, arguments: Mapping[str, object] | None = None) -> object:
        """See `Conversation.execute`."""

    async def execute_unanswered(self, name: str, arguments: Mapping[str, object]) -> None:
        """See `Conversation.execute_unanswered`."""

    @property
    def jobs(self) -> dict[int, Any]:
        """The programs that run, by number (`processes`)."""

    def accept(self, stream: int) -> LinkStream:
        """See `Pipes.accept`."""

    def spawn(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run ``await function(*args)`` as a task, at most as long as the session lasts."""

    def cannot(self, what: str) -> RemoteFault:
        """Return the error for what this agent does not have."""


Handler = Callable[..., Awaitable[Value]]


@dataclass(frozen=True)
class Ended:
    """A process that has ended; *status* is None if a signal ended it."""

    status: int | None
    signal: int | None
    output: bytes
    errors: bytes
    truncated: bool = False


async def run_program(agent: Agent, path: str, arguments: list[str]) -> Ended:
    """Run a program in the guest and wait for its end.

    Raises:
        QgaError: it could not be started.
        RemoteProtocolError: the agent answered what makes no sense.
    """
    return await wait_for_program(agent, await begin_program(agent, path, arguments))


async def begin_program(agent: Agent, path: str, arguments: list[str], **more: object) -> int:
    """Start a program in the guest, and return its process id. Raises as `run_program`."""
    given = {"path": path, "arg": arguments, "capture-output": True, **more}
    started = as_struct(await _execute(agent, "guest-exec", given), "the answer to guest-exec")
    return member(started, "pid", int)


async def wait_for_program(agent: Agent, pid: int) -> Ended:
    """Wait for the end of a program that was started. Raises as `run_program`."""
    pause = LOOK_MIN
    while True:
        found = await _execute(agent, "guest-exec-status", {"pid": pid})
        status = as_struct(found, "the answer to guest-exec-status")
        if member(status, "exited", bool):
            return Ended(
                member(status, "exitcode", int) if "exitcode" in status else None,
                member(status, "signal", int) if "signal" in status else None,
                _bytes(member(status, "out-data", str, ""), "guest-exec-status"),
                _bytes(member(status, "err-data", str, ""), "guest-exec-status"),
                member(status, "out-truncated", bool, False) or member(status, "err-truncated", bool, False),
            )
        await trio.sleep(pause)
        pause = min(2 * pause, LOOK_MAX)


async def _ping(agent: Agent) -> Value:
    await agent.execute("guest-ping")
    return None


async def _shutdown(agent: Agent, mode: str = "powerdown") -> Value:
    await agent.execute_unanswered("guest-shutdown", {"mode": mode})
    return None


async def _getfile(agent: Agent, path: str, offset: int = 0, count: int = -1) -> Value:
    if not -1 <= count <= FILE_MAX:
        raise RemoteFault(FaultCode.INVALID_PARAMS, f"count must be -1, or 0 to {FILE_MAX} (bytes): {count}")
    handle = await open_file(agent, path, "r")
    try:
        if offset:
            seek = {"handle": handle, "offset": offset, "whence": "set"}
            await agent.execute("guest-file-seek", seek)
        # One byte more than may be sent tells "exactly the limit" from "more".
        content = await _read_up_to(agent, handle, FILE_MAX + 1 if count == -1 else count)
    except QgaError as error:
        raise RemoteFault(FaultCode.READ_FAILED, f"read failed: {path}: {error.desc}") from error
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_UP):
            await close_file(agent, handle)
    if len(content) > FILE_MAX:
        raise RemoteFault(
            FaultCode.TOO_LARGE,
            f"max file size ({FILE_MAX} bytes) exceeded: {path}: read it in parts with offset and count",
        )
    return content


async def _read_up_to(agent: Agent, handle: int, limit: int) -> bytes:
    content = bytearray()
    while len(content) < limit:
        piece, is_last = await read_piece(agent, handle, min(PIECE, limit - len(content)))
        content += piece
        if is_last:
            break
    return bytes(content)


async def open_file(agent: Agent, path: str, mode: str) -> int:
    """Open a file in the guest, and return its handle.

    Raises:
        RemoteFault: OPEN_FAILED.
    """
    try:
        handle = await agent.execute("guest-file-open", {"path": path, "mode": mode})
    except QgaError as error:
        raise RemoteFault(FaultCode.OPEN_FAILED, f"open failed: {error.desc}") from error
    if type(handle) is not int:
        raise RemoteProtocolError("the answer to guest-file-open must be a number")
    return handle


async def read_piece(agent: Agent, handle: int, wanted: int) -> tuple[bytes, bool]:
    """Read up to so many bytes, and return them and whether they are the last. Raises QgaError."""
    found = await _execute(agent, "guest-file-read", {"handle": handle, "count": wanted})
    answer = as_struct(found, "the answer to guest-file-read")
    piece = _bytes(member(answer, "buf-b64", str), "guest-file-read")
    if len(piece) > wanted:
        raise RemoteProtocolError("guest-file-read returned more than was asked for")
    return piece, member(answer, "eof", bool) or not piece


async def close_file(agent: Agent, handle: int) -> None:
    """Close a file in the guest, if it is there."""
    # It may have forgotten the handle by itself, or be gone.
    with suppress(QgaError, SessionReset):
        await agent.execute("guest-file-close", {"handle": handle})


async def _getdmesg(agent: Agent) -> Value:
    try:
        with trio.fail_after(DMESG_TIME):
            ended = await run_program(agent, "dmesg", [])
    except trio.TooSlowError:
        raise RemoteFault(FaultCode.FAILED, "dmesg did not end in the guest") from None
    if ended.status != 0:
        words = ended.errors.decode(errors="replace").strip()
        raise RemoteFault(FaultCode.READ_FAILED, f"dmesg failed in the guest: {words or ended.status}")
    log = ended.output
    if len(log) <= DMESG_MAX:
        return log
    # From the begin of a line on.
    return log[-DMESG_MAX:].partition(b"\n")[2]


#: Method → its function, and the commands without which it is not there.
METHODS: dict[str, tuple[Handler, frozenset[str]]] = {
    "va.ping": (_ping, frozenset({"guest-ping"})),
    "va.shutdown": (_shutdown, frozenset({"guest-shutdown"})),
    "va.getfile": (
        _getfile,
        frozenset({"guest-file-open", "guest-file-seek", "guest-file-read", "guest-file-close"}),
    ),
    "va.getdmesg": (_getdmesg, frozenset({"guest-exec", "guest-exec-status"})),
}


async def _execute(agent: Agent, name: str, arguments: Mapping[str, object]) -> Any:
    return await agent.execute(name, arguments)


def _bytes(text: str, command: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RemoteProtocolError(f"the answer to {command} holds what is no base64") from None
