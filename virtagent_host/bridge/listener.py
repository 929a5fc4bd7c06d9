"""A listening unix socket that is private from its first moment, and leaves no traces.

1. The socket file has mode 0600 before anybody can connect: it is bound under a temporary name, which refuses
   connections until `listen`, and renamed when ready. No umask is touched: that is of the whole process.
2. A socket file that nobody listens on is a leftover, and replaced. One that answers is never touched, nor is
   a file of another type.
3. At the end the file is removed, unless it is no longer ours.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from virtagent_protocol.errors import FailureKind, Forbidden, NotThere, VirtagentError

SOCKET_MODE = 0o600
BACKLOG = 128


class CannotServe(VirtagentError):
    """The path cannot be served: somebody else does, or it is no path for a socket."""

    kind = FailureKind.REFUSED


@asynccontextmanager
async def private_listener(path: Path) -> AsyncIterator[trio.SocketListener]:
    """Listen on a unix socket at *path* within the block; the file is there, ready, as soon as it is entered.

    Raises:
        CannotServe: somebody serves it already, a file of another type is in the way, the path is too long.
        NotThere: its directory does not exist.
        Forbidden: no permission to write there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            _check_free(path)
            _bind(sock, path)
        except OSError as error:
            raise _error(path, error) from error
        ours = os.stat(path)
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        finally:
            with suppress(FileNotFoundError):
                if os.path.samestat(ours, os.lstat(path)):
                    os.unlink(path)


def _check_free(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotServe(f"{path}: there is a file in the way that is not a socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its listen queue is full: somebody does listen
    raise CannotServe(f"{path}: already served by another process")


def _bind(sock: socket.socket, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    sock.bind(os.fspath(temporary))
    try:
        os.chmod(temporary, SOCKET_MODE)
        sock.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _error(path: Path, error: OSError) -> VirtagentError:
    if isinstance(error, PermissionError):
        return Forbidden(f"{path}: {error.strerror}; choose another runtime directory")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotThere(f"{path}: its directory does not exist")
    # "AF_UNIX path too long" has no errno; the limit is 107 bytes, some of which the temporary name takes.
    return CannotServe(f"{path}: {error.strerror or error}")
