"""`va-host exec`: a process of the guest in place of this one, as far as its user can tell.

The rules:

1. The bytes do not go through this process: its own stdin, stdout and stderr are handed to va-host, which
   pumps. So gigabytes cost no more here than nothing.
2. Signals that would end this process go to that one instead. A third Ctrl-C ends this one; then the other
   is hung up, as it is whenever this one ends.
3. It ends as that one did: with its exit status, 128 + N for signal N (as a shell says it), `EXIT_DEADLINE`
   if its time was over. What goes wrong on the way is an exception, and the caller's business.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

from ..execution import CALL_TIMEOUT
from .client import BridgeError, VmClient
from .fetch import call
from .terminal import Signals, raw_terminal, size_of

#: Exit status of a process that reached its deadline: that of timeout(1).
EXIT_DEADLINE = 124
#: Of what goes wrong with va-host, the guest or the connection: that of ssh(1).
EXIT_FAILED = 255

STDIN, STDOUT, STDERR = 0, 1, 2
#: Argument of va_exec → our descriptor that it stands for.
_OURS = {"stdin-fd": STDIN, "stdout-fd": STDOUT, "stderr-fd": STDERR}
#: Event of va-host (streams.jobs).
_ENDED = "VA_JOB_ENDED"
#: How often Ctrl-C is passed on.
_INTERRUPTS_MAX = 2

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run(
    client: VmClient, arguments: Mapping[str, Any], *, terminal: bool, stdin: bool, timeout: float
) -> int:
    """Run a process on our stdin, stdout and stderr, and return the status to end with.

    Args:
        client: connected, and used for nothing else.
        arguments: of `va_exec`, without descriptors and terminal.
        terminal: whether it gets a terminal, ours as far as we have one.
        stdin: whether it reads ours.
        timeout: seconds for it to start.

    Raises:
        VirtagentError: it was not started, or was lost.
    """
    given = dict(arguments)
    wanted = ["stdin-fd"] if stdin else []
    wanted.append("stdout-fd")
    if terminal:
        rows, columns = size_of(STDOUT, STDIN, STDERR)
        given["pty"] = {"rows": rows, "cols": columns, "term": os.environ.get("TERM") or "dumb"}
    elif not given.get("merge"):
        wanted.append("stderr-fd")
    with ExitStack() as block:
        given.update(_hand_over(client, wanted))
        caught = (*_PASSED_ON, signal.SIGWINCH) if terminal else _PASSED_ON
        if terminal and stdin:
            # Before it starts: what it says first is for a raw terminal.
            block.enter_context(raw_terminal(STDIN))
        job = call(client, "va_exec", given, timeout)["id"]
        signals = block.enter_context(Signals(*caught))
        return _status(_follow(client, job, signals, pass_on=True))


def attach(client: VmClient, job: int, offset: int, stderr_offset: int) -> tuple[int, dict[str, Any]]:
    """Write a detached job's output to our stdout and stderr, and return the status to end with.

    Returns:
        The status; and the offsets of the first bytes that there were, and how many were ``missed`` later.

    Raises:
        VirtagentError: there is no such job, or it was lost.
    """
    given: dict[str, object] = {"id": job, "offset": offset, "stderr-offset": stderr_offset}
    given.update(_hand_over(client, ["stdout-fd", "stderr-fd"]))
    found: dict[str, Any] = call(client, "va_job_attach", given, CALL_TIMEOUT)
    with Signals() as signals:
        outcome = _follow(client, job, signals, pass_on=False)
    return _status(outcome), {**found, "missed": outcome.get("missed", 0)}


def _hand_over(client: VmClient, wanted: list[str]) -> dict[str, str]:
    names = {}
    for argument in wanted:
        fd, opened = _OURS[argument], -1
        try:
            os.fstat(fd)
        except OSError:  # closed by whoever started us
            fd = opened = os.open(os.devnull, os.O_RDWR)
        names[argument] = f"va_{argument}"
        client.send_fd(names[argument], fd)
        if opened >= 0:
            os.close(opened)
    return names


def _follow(client: VmClient, job: int, signals: Signals, *, pass_on: bool) -> dict[str, Any]:
    interrupts = 0
    while True:
        for event in client.pending_events():
            data = event.get("data", {})
            if event["event"] == _ENDED and data.get("id") == job:
                if "error" in data:
                    # The words of the QMP error that it would have been.
                    raise BridgeError("GenericError", f"{data.get('kind')}: {data['error']}")
                return dict(data)
        select.select([client.fileno(), signals.fileno()], [], [])
        for number in signals.take():
            if number is signal.SIGWINCH:
                rows, columns = size_of(STDOUT, STDIN, STDERR)
                _tell(client, "va_job_resize", {"id": job, "rows": rows, "cols": columns})
                continue
            interrupts += number is signal.SIGINT
            if interrupts > _INTERRUPTS_MAX:
                raise KeyboardInterrupt
            if pass_on:
                _tell(client, "va_job_signal", {"id": job, "signal": number.name})


def _tell(client: VmClient, command: str, arguments: dict[str, object]) -> None:
    with suppress(BridgeError):  # it has ended, which the next event tells
        call(client, command, arguments, CALL_TIMEOUT)


def _status(outcome: dict[str, Any]) -> int:
    if outcome.get("deadline"):
        return EXIT_DEADLINE
    status = outcome["code"] if "code" in outcome else 128 + outcome["signal"]
    return int(status)
