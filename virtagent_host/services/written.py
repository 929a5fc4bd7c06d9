"""What a service writes: read until it has ended, and its stderr logged.

The rules:

1. What the process itself wrote is never lost: when it has ended, all that its pipes hold then is still
   read, also if the guest takes its time. What others write there afterwards, children that it left behind,
   is waited for `LINGER` seconds, no longer.
2. What it writes to stderr is for this host's log: so much of it and no more, control characters made
   visible. It is read to its end in any case, so that it does not stop the service.
"""

from __future__ import annotations

import array
import fcntl
import logging
import math
import os
import termios

import trio

from virtagent_protocol.text import visible_line

log = logging.getLogger("virtagent.services")

#: Seconds for which what children of an ended process write is still read.
LINGER = 1.0
#: Bytes read at a time: one chunk of a stream.
PIECE = 64 * 1024
#: Lines of its stderr that a call has in the log, and characters of each.
STDERR_LINES, STDERR_LENGTH = 100, 500


class Written:
    """Reads the pipes of one process."""

    def __init__(self) -> None:
        self._until = math.inf
        self._reads: set[trio.CancelScope] = set()
        #: By pipe: of what it held when time was over, how much was not read.
        self._left: dict[trio.lowlevel.FdStream, int] = {}

    def process_ended(self) -> None:
        """The process has ended."""
        self._until = trio.current_time() + LINGER
        for scope in self._reads:
            scope.deadline = self._until

    async def read(self, pipe: trio.lowlevel.FdStream) -> bytes:
        """Return what comes next; none at the end (rule 1)."""
        with trio.CancelScope(deadline=self._until) as scope:
            self._reads.add(scope)
            try:
                return bytes(await pipe.receive_some(PIECE))
            finally:
                self._reads.discard(scope)
        if pipe not in self._left:
            held = array.array("i", [0])
            fcntl.ioctl(pipe.fileno(), termios.FIONREAD, held)
            self._left[pipe] = held[0]
        if not self._left[pipe]:
            return b""
        # It does not wait: all of that is there.
        data = os.read(pipe.fileno(), min(self._left[pipe], PIECE))
        self._left[pipe] -= len(data)
        return data


async def log_lines(what: str, written: Written, stderr: trio.lowlevel.FdStream) -> None:
    """Log what a process writes to stderr (rule 2).

    Args:
        what: what the log calls it.
        written: of the process.
        stderr: its pipe.
    """
    rest, count = b"", 0
    while data := await written.read(stderr):
        *lines, rest = (rest + data).split(b"\n")
        # A line without an end is not waited for.
        if len(rest) > STDERR_LENGTH:
            lines, rest = [*lines, rest], b""
        for line in lines:
            count = _log_line(what, line, count)
    if rest:
        count = _log_line(what, rest, count)
    if count > STDERR_LINES:
        log.info("%s: stderr: (%d lines left out)", what, count - STDERR_LINES)


def _log_line(what: str, line: bytes, count: int) -> int:
    if count < STDERR_LINES:
        text = visible_line(line[: STDERR_LENGTH + 1].decode(errors="backslashreplace"))
        log.info("%s: stderr: %s", what, text[:STDERR_LENGTH] + "…" * (len(text) > STDERR_LENGTH))
    return count + 1
