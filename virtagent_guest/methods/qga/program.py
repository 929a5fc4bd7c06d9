"""Running a program of the guest that the agent itself needs, such as chpasswd: never through a shell.

The program is not killed when its caller gives up: what it changes must not be left half done.
"""

from __future__ import annotations

import os
import subprocess

from virtagent_protocol.limits import KIB

from .command import QgaError, in_thread, reason

#: Bytes of what a program says that go into an error. The rest is read, and dropped.
OUTPUT_MAX = 1 * KIB
_PIECE = 64 * KIB
#: Where programs of the system are, whatever the agent's own PATH says.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


async def run_program(command: list[str], action: str, given: bytes = b"") -> None:
    """Run a program to its end.

    Args:
        command: the program, by name or path, and its arguments.
        action: what it does, for errors: ``set user password``.
        given: its stdin; must fit a pipe (64 KiB).

    Raises:
        QgaError: it could not be started, or did not end with status 0. With what it said.
    """
    status, output = await in_thread(_run, command, given)
    said = output.decode(errors="replace").strip()
    if status < 0:
        raise QgaError("child process has terminated abnormally" + (f": {said}" if said else ""))
    if status:
        raise QgaError(f"child process has failed to {action}: {said or f'exit status {status}'}")


async def exit_status(command: list[str]) -> int | None:
    """Run a program and return its exit status (negative: the signal that killed it); None: there is none.

    Raises:
        QgaError: it is there and could not be started.
    """
    try:
        status, _ = await in_thread(_run, command, b"", True)
    except FileNotFoundError:
        return None
    return status


def _run(command: list[str], given: bytes, raise_missing: bool = False) -> tuple[int, bytes]:
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        if raise_missing and isinstance(error, FileNotFoundError):
            raise
        raise QgaError(f"failed to exec '{command[0]}': {reason(error)}") from error
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stdin:
                stdin.write(given)
        except BrokenPipeError:
            pass  # it ended without reading all; its status says why
        output = bytearray()
        while piece := process.stdout.read1(_PIECE):  # type: ignore[attr-defined]
            output += piece[: OUTPUT_MAX - len(output)]
        return process.wait(), bytes(output)
