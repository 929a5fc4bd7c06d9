"""guest-exec and guest-exec-status: run a program, and ask what became of it."""

from __future__ import annotations

from typing import Annotated

from virtagent_protocol.values import Struct

from . import base64text
from .command import Caller, CommandRegistry, in_thread
from .processes import CAPTURES, Processes, Program
from .schema import BOOL, Alternate, Enum

registry = CommandRegistry()

CaptureOutput = Annotated[
    bool | str,
    Alternate("GuestExecCaptureOutput", BOOL, Enum("GuestExecCaptureOutputMode", tuple(CAPTURES))),
]

#: The processes of this agent.
_processes = Processes()


@registry.command("guest-exec")
async def guest_exec(
    path: str,
    arg: list[str] | None = None,
    env: list[str] | None = None,
    input_data: str | None = None,
    capture_output: CaptureOutput = False,
) -> Struct:
    """Start a program and return its pid. It is not waited for; guest-exec-status tells how it ended."""
    if isinstance(capture_output, bool):
        capture_output = "separated" if capture_output else "none"
    given = None if input_data is None else base64text.decode(input_data)
    program = Program([path, *(arg or [])], env, given, capture_output)
    return {"pid": await in_thread(_processes.start, program)}


@registry.command("guest-exec-status")
async def guest_exec_status(pid: int, *, caller: Caller) -> Struct:
    """Tell whether a process has ended, and if so how, and what it wrote. Then it is forgotten.

    What does not fit the reply is left out, and the output marked as truncated.
    """
    process = _processes.find(pid)
    status = process.status
    if status is None:
        return {"exited": False}
    out, err = _processes.reap(process)
    result: Struct = {"exited": True}
    if status < 0:
        result["signal"] = -status
    else:
        result["exitcode"] = status
    room = None if caller.reply_max is None else base64text.fitting(caller.reply_max)
    out_max, err_max = _shares(len(out), len(err), room)
    for name, data, fitting, truncated in (
        ("out", out, out_max, process.out.truncated),
        ("err", err, err_max, process.err.truncated),
    ):
        if data:
            result[f"{name}-data"] = base64text.encode(data[:fitting])
            result[f"{name}-truncated"] = truncated or fitting < len(data)
    return result


def _shares(out: int, err: int, room: int | None) -> tuple[int, int]:
    """Return how many bytes of stdout and of stderr fit: each has half, and what the other leaves."""
    if room is None:
        return out, err
    half = room // 2
    return min(out, room - min(err, half)), min(err, room - min(out, half))
