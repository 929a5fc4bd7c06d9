"""What the service asks of a channel, and what a failed open means to the user."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from virtagent_protocol.errors import Forbidden, LinkBroken, NotReady, NotThere, VirtagentError

#: Is told whether there is, or may be, somebody at the other end of an open channel; and the same in words.
Report = Callable[[bool, str], None]


class Transport(ABC):
    """A channel that can be opened again and again; each open gives one stream.

    Attributes:
        path: the device or socket.
        patient: whether a channel that cannot be opened is worth waiting for. A socket's other end may come
            later; a device that is missing or taken is an error to report.
    """

    patient = False
    #: Whether the channel may change bytes, so that messages need a checksum.
    lossy = False

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    async def open(self, report: Report) -> trio.abc.Stream:
        """Open the channel, or wait for a peer to do so.

        Args:
            report: is told as soon as a peer could reach the channel, and whenever the peer comes or goes.

        Raises:
            NotThere, NotReady, Forbidden, LinkBroken: the message names the path and the remedy.
        """

    def close(self) -> None:  # noqa: B027 (most make nothing)
        """Remove what the transport itself made (a socket's file). The streams have been closed before."""


def open_error(path: str, error: OSError, *, absent: str, busy: str) -> VirtagentError:
    """Return the error that tells a user why *path* could not be opened.

    Args:
        path: the device or socket.
        error: what the system said.
        absent: the remedy when it does not exist.
        busy: the remedy when another process holds it.
    """
    match error.errno:
        # ENXIO, ENODEV: a device file without a device behind it.
        case errno.ENOENT | errno.ENOTDIR | errno.ENXIO | errno.ENODEV:
            return NotThere(f"{path} is not there: {absent}")
        case errno.EBUSY | errno.EWOULDBLOCK:
            return NotReady(f"{path} is in use: {busy}")
        case errno.EACCES | errno.EPERM:
            return Forbidden(f"{path} must not be opened by user id {os.geteuid()}: run va-guest as root")
        case _:
            return LinkBroken(f"{path} cannot be opened: {error.strerror or error}")
