"""A process that runs: its output and input as they come, its signals, its end.

The rules:

1. What the process itself wrote is never lost: when it has ended, all that its pipes hold then is still read.
   What others write to them afterwards (children that it left behind) is waited for `LINGER` seconds, no
   longer: a daemon that was started must not keep its starter's caller.
2. Signals go to the whole process group, and only while its leader has not been waited for: after that the
   number may be somebody else's.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import math
import os
import termios
from signal import SIGCONT, SIGKILL, Signals

import trio

from virtagent_protocol.limits import KIB
from virtagent_protocol.outcome import until_ended
from virtagent_protocol.values import Struct

from .launch import Started

#: Bytes read or written at a time: one chunk of a stream.
PIECE = 64 * KIB
#: Seconds for which what children of an ended process write is still read.
LINGER = 1.0


class Output:
    """What a process writes, until it has ended.

    Args:
        fd: of a pipe or a terminal's master, non-blocking; becomes ours.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        #: Of what the process left in the pipe, how much was not read; None: it runs.
        self._left: int | None = None
        self._deadline = math.inf
        self._wait = trio.CancelScope()

    async def read(self) -> bytes:
        """Return the next bytes; none at the end (rule 1), or when it was closed."""
        while self._fd >= 0 and not self._over:
            await trio.lowlevel.checkpoint()
            if self._fd < 0:
                break  # it was closed meanwhile
            try:
                data = os.read(self._fd, PIECE)
            except BlockingIOError:
                with trio.CancelScope(deadline=self._deadline) as self._wait, _until_closed():
                    await trio.lowlevel.wait_readable(self._fd)
                continue
            except OSError as error:
                if error.errno != errno.EIO:  # nobody has the terminal open any more
                    raise
                return b""
            if self._left is not None:
                self._left -= len(data)
            return data
        return b""

    @property
    def _over(self) -> bool:
        return self._left is not None and self._left <= 0 and trio.current_time() >= self._deadline

    def process_ended(self) -> None:
        """The process has ended."""
        if self._fd >= 0:
            held = array.array("i", [0])
            fcntl.ioctl(self._fd, termios.FIONREAD, held)
            self._left = held[0]
            self._deadline = trio.current_time() + LINGER
            self._wait.deadline = self._deadline

    def close(self) -> None:
        """Close it: who still writes gets SIGPIPE, or SIGHUP if it is a terminal. May be repeated."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1


class Input:
    """What a process reads.

    Args:
        fd: of a pipe or a terminal's master; becomes ours.
        terminal: whether it is a terminal's.
    """

    def __init__(self, fd: int, *, terminal: bool) -> None:
        self._fd = fd
        self._terminal = terminal

    async def write(self, data: bytes) -> bool:
        """Write all of *data*; return whether more is of any use."""
        rest = memoryview(data)
        while rest and self._fd >= 0:
            await trio.lowlevel.checkpoint()
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                with _until_closed():
                    await trio.lowlevel.wait_writable(self._fd)
            except OSError:
                return False  # it reads no more
        return self._fd >= 0

    async def end(self) -> None:
        """Tell that nothing more comes: close a pipe, type the terminal's character for that."""
        if self._fd >= 0 and self._terminal:
            attributes = termios.tcgetattr(self._fd)
            if attributes[3] & termios.ICANON:
                await self.write(attributes[6][termios.VEOF])
        else:
            self.close()

    def close(self) -> None:
        """Close it. May be repeated."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1


class Process:
    """A process, with its pipes or terminal.

    Attributes:
        pid: its id, and that of its process group.
        out, err: what it writes; err is None if that is part of out, or discarded.
        into: what it reads, or None.
        ended: set when it has.
        end: how: ``{"code": n}`` or ``{"signal": n, "core": bool}``; empty while it runs.
    """

    def __init__(self, started: Started) -> None:
        self._popen = started.popen
        self.pid = started.popen.pid
        self.out = Output(started.out)
        self.err = None if started.err is None else Output(started.err)
        self.into = None if started.into is None else Input(started.into, terminal=started.terminal)
        self.terminal = started.out if started.terminal else None
        self.end: Struct = {}
        self.ended = trio.Event()

    async def wait(self) -> None:
        """Wait until it has ended, and say so to those who read what it wrote."""
        self.end = await until_ended(self.pid)
        for output in filter(None, (self.out, self.err)):
            output.process_ended()
        self._popen.wait()
        self.ended.set()

    def signal(self, number: int) -> bool:
        """Send a signal to its process group; return whether there was anybody to get it."""
        if self.end:
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
            return True
        return False

    async def kill(self, first: Signals, grace: float) -> None:
        """Send *first*, and SIGKILL if it has not ended after *grace* seconds. Returns when it has ended."""
        self.signal(first)
        self.signal(SIGCONT)  # one that is stopped would not notice
        with trio.move_on_after(grace):
            await self.ended.wait()
        self.signal(SIGKILL)
        await self.ended.wait()

    def hang_up(self) -> None:
        """End its input, or close its terminal. Its output pipes stay: it may have a last word to say."""
        if self.terminal is not None:
            self.close()
        elif self.into is not None:
            self.into.close()

    def close(self) -> None:
        """Close all pipes, or the terminal. May be repeated."""
        self.terminal = None
        for end in (self.out, self.err, self.into):
            if end is not None:
                end.close()


def _until_closed() -> contextlib.AbstractContextManager[None]:
    """Return a block that is left when the descriptor that is waited for is closed."""
    return contextlib.suppress(trio.ClosedResourceError)
