"""The files that guest-file-open has opened, by their handles.

The rules:

1. Handles belong to the agent, not to the link or the client: they survive both, as qemu-ga's do.
2. At most `HANDLES_MAX` are open; who needs more closes some.
3. A handle is never given twice, not even by two agents one after the other: a client that holds one from
   before a restart must get an error, not somebody else's file. qemu-ga keeps a counter in a file for that.
   Here it starts at a random number: opening needs no place to write to, and leaves nothing behind.
4. A file's operations are done one after the other, in threads; files do not wait for each other. At most
   `WAITING_MAX` of one file have threads, so that one which never answers (a dead file server) cannot take
   them all.
5. Files are opened with O_NONBLOCK: a FIFO or a terminal without data is an error, not a wait.
6. There is no buffer: what was written is the kernel's, and seen by others, when the call is answered.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from typing import TypeVar

import trio

from .command import QgaError, in_thread, reason

_T = TypeVar("_T")

#: Open files. qemu-ga has the limit of its process, which is 1024 with everything else.
HANDLES_MAX = 256
#: Operations of one file at work or waiting for it.
WAITING_MAX = 4
#: Threads for operations on files: four files that never answer leave some for the others.
THREADS_MAX = 4 * WAITING_MAX + 8
#: The range of the first handle: small enough for clients that keep it in 32 bits.
FIRST_MIN, FIRST_RANGE = 1000, 2**30
#: Bytes in one read(2) or write(2): whoever waits for the interpreter lock waits for one of these.
PIECE = 1024 * 1024

#: Who may read and write a file that opening has made.
NEW_MODE = 0o644

#: Modes as of fopen(3), "b" left out.
MODES = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "r+": os.O_RDWR,
    "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "a+": os.O_RDWR | os.O_CREAT | os.O_APPEND,
}
_FORMS = {
    form: flags for mode, flags in MODES.items() for form in {mode, mode[0] + "b" + mode[1:], mode + "b"}
}

_threads = trio.CapacityLimiter(THREADS_MAX)


class OpenFile:
    """One open file. Its methods block: they are for threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._closed = False
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._pending = 0

    def __del__(self) -> None:
        # Whoever opened it was cancelled meanwhile: nobody knows the handle.
        if not self._closed:
            os.close(self._fd)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def run(self, operation: Callable[[OpenFile], _T]) -> _T:
        """Run an operation when those before it have ended.

        Raises:
            QgaError: too many wait already, or the file was closed meanwhile.
        """
        # Here, in the thread, and not where the thread is asked for: a call that is cancelled before it
        # gets a thread would have to be counted out again.
        with self._counting:
            if self._pending >= WAITING_MAX:
                raise QgaError(f"{self._pending} operations on this handle have not ended")
            self._pending += 1
        try:
            with self._lock:
                if self._closed:
                    raise QgaError("the handle was closed meanwhile")
                return operation(self)
        finally:
            with self._counting:
                self._pending -= 1

    def read(self, count: int) -> tuple[bytearray, bool]:
        """Read up to *count* bytes; return them, and whether the file has ended."""
        data = bytearray()
        while len(data) < count:
            try:
                piece = os.read(self._fd, min(count - len(data), PIECE))
            except BlockingIOError:
                if data:
                    break  # a FIFO's or a terminal's: what was taken out of it must not be lost
                raise
            if not piece:
                return data, True
            data += piece
        return data, False

    def write(self, data: bytes) -> int:
        """Write all bytes and return their number, or fewer if the other end of a FIFO takes no more."""
        view = memoryview(data)
        written = 0
        while written < len(view):
            try:
                written += os.write(self._fd, view[written : written + PIECE])
            except BlockingIOError:
                if written:
                    break
                raise
        return written

    def seek(self, offset: int, whence: int) -> int:
        """Move, and return the position from the begin of the file."""
        return os.lseek(self._fd, offset, whence)

    def set_mode(self, mode: int) -> None:
        """Set who may read and write it."""
        os.fchmod(self._fd, mode)

    def flush(self) -> None:
        """Do nothing: nothing is buffered. That it was called tells that the operations before have ended."""

    def close(self) -> None:
        """Close it. It is closed even if that fails, which tells that earlier writes did."""
        self._closed = True
        os.close(self._fd)


class Handles:
    """A table of open files."""

    def __init__(self) -> None:
        self._files: dict[int, OpenFile] = {}
        self._next = FIRST_MIN + secrets.randbelow(FIRST_RANGE)

    async def open(self, path: str, mode: str) -> int:
        """Open a file and return its handle.

        Raises:
            QgaError: no such mode, too many files, or it cannot be opened.
        """
        flags = _FORMS.get(mode)
        if flags is None:
            raise QgaError(f"invalid file open mode '{mode}'")
        self._check_room()
        try:
            file = await in_thread(_open, path, flags, limiter=_threads)
        except OSError as error:
            raise QgaError(f"failed to open file '{path}' (mode: '{mode}'): {reason(error)}") from error
        self._check_room()  # others may have opened files meanwhile
        handle = self._next
        self._next += 1
        self._files[handle] = file
        return handle

    async def use(self, handle: int, what: str, operation: Callable[[OpenFile], _T]) -> _T:
        """Run an operation on an open file.

        Args:
            handle: of the file.
            what: it is, for errors: ``read file``.
            operation: called in a thread.

        Raises:
            QgaError: there is no such handle, it has too many operations already, or this one failed.
        """
        try:
            return await in_thread(self.find(handle).run, operation, limiter=_threads)
        except OSError as error:
            raise QgaError(f"failed to {what}: {reason(error)}") from error

    async def close(self, handle: int) -> None:
        """Close a file.

        Raises:
            QgaError: there is no such handle, it has too many operations, or what was written is lost. In the
                last case, the handle is gone all the same.
        """
        file = self.find(handle)
        try:
            await self.use(handle, "close handle", OpenFile.close)
        finally:
            if file.closed:
                self._files.pop(handle, None)

    def find(self, handle: int) -> OpenFile:
        """Return the file of a handle.

        Raises:
            QgaError: there is none.
        """
        try:
            return self._files[handle]
        except KeyError:
            raise QgaError(f"handle '{handle}' has not been found") from None

    def _check_room(self) -> None:
        if len(self._files) >= HANDLES_MAX:
            raise QgaError(f"{HANDLES_MAX} files are open, which is the limit: close some of them")


def _open(path: str, flags: int) -> OpenFile:
    # UTF-8 whatever the agent's locale, so that a path means the same in every guest.
    encoded = path.encode()
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if not flags & os.O_CREAT:
        return OpenFile(os.open(encoded, flags))
    try:
        new = OpenFile(os.open(encoded, flags | os.O_EXCL, NEW_MODE))
    except FileExistsError:
        # Its mode is somebody else's business.
        return OpenFile(os.open(encoded, flags & ~os.O_CREAT))
    new.set_mode(NEW_MODE)  # open(2) took the umask off it
    return new
