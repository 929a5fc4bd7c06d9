"""Reading and writing a file descriptor that a client has handed over, whatever it is.

The rules:

1. The descriptor's flags are not ours: O_NONBLOCK would be seen by everybody who shares the open file, the
   user's shell among them. What there is instead depends on what it is:

   * a socket takes MSG_DONTWAIT with each call;
   * a pipe or terminal is opened once more by way of /proc, and that open file is ours alone;
   * of all else, poll tells nothing (a regular file is always "ready", and its disk may sleep; /dev/null
     cannot be asked): it is read and written in a thread.

2. A pipe or terminal that cannot be opened again, being another user's, is read when poll says so, and
   written in a thread.
3. What can be read or written at once does not wait for another turn of the event loop: the stream at the
   other end of every pump does.
4. A thread works on a copy of the descriptor: one that is left behind by a cancellation can never come upon
   another file under the same number.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import trio

from virtagent_protocol.buffers import BufferPool
from virtagent_protocol.relay import reset_on_close

T = TypeVar("T")

#: Bytes moved at a time. More would hold up everything else in the process; less costs more turns.
PIECE = 512 * 1024

#: Buffers for them, which are used again: one that is filled, and those that are being sent.
_BUFFERS = 4

_NEVER_WAITS = (BlockingIOError, InterruptedError)


class HandedFd:
    """A descriptor that is read or written; made by `open_fd`, closed by `close`.

    Args:
        fd: the descriptor, which becomes ours.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffers = BufferPool(_BUFFERS)
        status = os.fstat(fd)
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(status.st_mode) else None
        # Opening /dev/ptmx again would make another terminal.
        is_terminal = os.isatty(fd) and status.st_rdev != os.makedev(5, 2)
        pollable = stat.S_ISFIFO(status.st_mode) or is_terminal
        self._threaded = not pollable and self._socket is None
        #: An open file of our own on the same pipe or terminal.
        self._own = _open_again(fd) if pollable else None

    async def read(self) -> memoryview:
        """Return what there is, at most `PIECE` bytes; nothing at the end.

        It stays as it is for as long as somebody refers to it.

        Raises:
            OSError: it cannot be read.
        """
        buffer = memoryview(self._buffers.take(PIECE))
        return buffer[: await self._read_into(buffer)]

    async def _read_into(self, buffer: memoryview) -> int:
        if self._threaded:
            return await _in_thread(self._fd, lambda fd: os.readv(fd, [buffer]))
        fd = self._fd if self._own is None else self._own
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            # Without an open file of our own, somebody else may take what poll has told of, and read would
            # wait: so ask again right before.
            if self._own is not None or self._socket is not None or _is_readable(fd):
                with suppress(*_NEVER_WAITS):
                    return _fill(self._socket, buffer) if self._socket else os.readv(fd, [buffer])
            await trio.lowlevel.wait_readable(fd)

    async def write(self, data: bytes | bytearray) -> None:
        """Write all of *data*.

        Raises:
            OSError: it cannot be written; BrokenPipeError: nobody reads it any more.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        while view:
            view = view[await self._write_some(view) :]

    async def _write_some(self, view: memoryview) -> int:
        if self._socket is not None:
            sock = self._socket
            return await _when_writable(
                self._fd, lambda: sock.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            )
        if self._own is not None:
            own = self._own
            return await _when_writable(own, lambda: os.write(own, view))
        return await _in_thread(self._fd, lambda fd: os.write(fd, view))

    def end_writing(self) -> None:
        """Tell the other end of a socket that nothing more comes; of anything else, only closing tells."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Let the peer of a TCP socket see a reset when it is closed."""
        if self._socket is not None:
            reset_on_close(self._socket)

    def close(self) -> None:
        """Close it; this may be repeated."""
        for fd in {self._fd, self._own} - {None, -1}:
            assert fd is not None
            os.close(fd)
        self._fd = -1
        self._own = None
        if self._socket is not None:
            self._socket.close()


def _fill(sock: socket.socket, buffer: memoryview) -> int:
    """Read what a socket has: one call returns no more than what was written into it at a time."""
    count = sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
    with suppress(*_NEVER_WAITS):
        while count < len(buffer) and (more := sock.recv_into(buffer[count:], 0, socket.MSG_DONTWAIT)):
            count += more
    return count


async def _when_writable(fd: int, attempt: Callable[[], int]) -> int:
    while True:
        with suppress(*_NEVER_WAITS):
            return attempt()
        await trio.lowlevel.wait_writable(fd)


async def _in_thread(fd: int, work: Callable[[int], T]) -> T:
    copy = os.dup(fd)
    begun = False

    def run() -> T:
        nonlocal begun
        begun = True
        try:
            return work(copy)
        finally:
            os.close(copy)

    try:
        return await trio.to_thread.run_sync(run, abandon_on_cancel=True)
    finally:
        if not begun:
            os.close(copy)


def _open_again(fd: int) -> int | None:
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    try:
        return os.open(f"/proc/self/fd/{fd}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
