"""The file descriptors of one client of the bridge.

1. A descriptor belongs to the first ``getfd`` or ``add-fd`` that comes with it or after it; one that is not
   claimed until the next arrives is closed, as QEMU does. Of several that come at once, the first counts.
2. QEMU's named descriptors belong to its monitor. A name that begins with ``va_`` is ours: it stays with the
   client that gave it, and a `va_*` command takes it.
3. Whatever was not taken is closed with the session.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

from ..commands import InvalidArguments

#: File descriptors taken with one piece of input (QEMU's TCP_MAX_FDS); the kernel closes further ones.
FDS_MAX = 16
#: Names of ours that a client may have at a time.
NAMED_MAX = 16
#: How they begin.
PREFIX = "va_"

#: What `socket.recvmsg` needs for FDS_MAX descriptors.
ANCILLARY_SIZE = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)


class FdStore:
    """Descriptors that came and were not taken yet."""

    def __init__(self) -> None:
        self._unclaimed: int | None = None
        self._claimed: set[int] = set()
        self._named: dict[str, int] = {}

    def receive(self, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Take what `socket.recvmsg` returned as ancillary data."""
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
        if fds:
            if self._unclaimed is not None:
                os.close(self._unclaimed)
            self._unclaimed, *others = fds
            for fd in others:
                os.close(fd)

    def claim(self) -> int | None:
        """Return the descriptor for a ``getfd`` or ``add-fd``; `release` or `name` must follow."""
        fd, self._unclaimed = self._unclaimed, None
        if fd is not None:
            self._claimed.add(fd)
        return fd

    def release(self, fd: int) -> None:
        """Close a claimed descriptor, unless it was named meanwhile."""
        if fd in self._claimed:
            self._claimed.remove(fd)
            os.close(fd)

    def name(self, name: str, fd: int | None) -> None:
        """Keep a claimed descriptor under a name of ours; one of the same name is closed, as QEMU does.

        Raises:
            InvalidArguments: there is none, or there are too many.
        """
        if fd is None:
            raise InvalidArguments("No file descriptor supplied via SCM_RIGHTS")
        if name not in self._named and len(self._named) >= NAMED_MAX:
            raise InvalidArguments(f"{NAMED_MAX} file descriptors wait to be used: close some with closefd")
        self._claimed.remove(fd)
        if name in self._named:
            os.close(self._named[name])
        self._named[name] = fd

    def take(self, name: str) -> int:
        """Return the descriptor of a name of ours, which is forgotten; closing it is the caller's.

        Raises:
            InvalidArguments: there is none.
        """
        try:
            return self._named.pop(name)
        except KeyError:
            raise InvalidArguments(
                f"File descriptor named '{name}' has not been found: hand it over with getfd, under a name "
                f"that begins with {PREFIX}"
            ) from None

    def close(self) -> None:
        """Close all that is left."""
        rest = [*self._claimed, *self._named.values()]
        if self._unclaimed is not None:
            rest.append(self._unclaimed)
        self._claimed.clear()
        self._named.clear()
        self._unclaimed = None
        for fd in rest:
            os.close(fd)
