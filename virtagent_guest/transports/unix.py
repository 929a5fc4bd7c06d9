"""unix-connect and unix-listen: a unix socket instead of a device, for containers and for tests."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

import trio

from virtagent_protocol.errors import NotReady, NotThere, VirtagentError

from .base import Report, Transport, open_error


class UnixConnect(Transport):
    """Connects to a socket on which the host end listens, as soon as there is one."""

    patient = True

    async def open(self, report: Report) -> trio.SocketStream:
        try:
            stream = await trio.open_unix_socket(self.path)
        except OSError as error:
            raise socket_error(self.path, error) from error
        report(True, f"connected to {self.path}")
        return stream


class UnixListen(Transport):
    """Listens on a socket of its own, mode 0600, for one peer at a time.

    While a peer is connected nothing listens, so that a second one is refused by the kernel at once
    instead of waiting for an answer that will not come.
    """

    _bound = False

    async def open(self, report: Report) -> trio.SocketStream:
        try:
            bound = bind_socket(self.path)
        except OSError as error:
            raise socket_error(self.path, error) from error
        self._bound = True
        with trio.socket.from_stdlib_socket(bound) as listener:
            listener.listen(1)
            report(False, f"listening on {self.path}")
            peer, _ = await listener.accept()
        report(True, f"a peer is connected on {self.path}")
        return trio.SocketStream(peer)

    def close(self) -> None:
        # What stood in the way of our socket is not ours to remove.
        if self._bound:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def bind_socket(path: str) -> socket.socket:
    """Return a socket bound to *path*, in place of one that an earlier process left behind."""
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # bind() makes the file, and chmod() would come too late: only the umask keeps others out from the start.
    umask = os.umask(0o177)
    try:
        bound.bind(path)
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(umask)
    return bound


def _remove_stale(path: str) -> None:
    """Remove a socket nobody listens on.

    Raises:
        NotReady: somebody does, or it is no socket: neither is ours to remove.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise NotReady(f"{path} is not a socket: remove it, or name another path with -p")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full: somebody listens
    raise NotReady(f"{path} is in use: another process listens there, stop it")


def socket_error(path: str, error: OSError) -> VirtagentError:
    if error.errno == errno.ECONNREFUSED:
        return NotThere(f"nobody listens on {path}: start the host end, or name another path with -p")
    return open_error(
        path,
        error,
        absent="start the end that makes this socket, or name another path with -p",
        busy="another process holds it, stop it",
    )
