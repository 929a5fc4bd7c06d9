"""Unix sockets: bound with their mode at once, whatever was left behind; with room for bulk data."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

#: Bytes that a socket should hold for its peer: a chunk of a stream, as the kernel counts. By default it
#: holds less, and each chunk would wake both ends twice. The kernel has a limit of its own, and may give
#: less.
SEND_BUFFER = 1024 * 1024


def widen(sock: socket.socket) -> None:
    """Let a socket hold so much that bulk data takes few turns."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def bind_unix(path: str, mode: int = 0o600) -> socket.socket:
    """Return a socket bound to *path*, in place of one that nobody listens on.

    Args:
        path: where to.
        mode: of the file, from its first moment on.

    Raises:
        OSError: EADDRINUSE if somebody does, or it is no socket.
    """
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # bind() makes the file, and chmod() would come too late: only the umask keeps others out from the start.
    umask = os.umask(0o777 & ~mode)
    try:
        bound.bind(path)
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(umask)
    return bound


def is_socket(path: str) -> bool:
    """Whether there is a socket with this name, listened on or not."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _remove_stale(path: str) -> None:
    if not is_socket(path):
        return  # if something else is there, bind() will say that it is taken
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        with suppress(BlockingIOError):  # its queue is full: somebody listens
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
