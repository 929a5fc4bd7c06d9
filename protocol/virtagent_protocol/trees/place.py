"""A path taken apart into a directory that is open and a name in it, and opening what is in one safely.

Whoever sends a tree may be hostile, and users of this machine may be, too: so below the path that the user
gave, nothing is opened by a path, only by a name in an open directory, and symbolic links are not followed.
"""

from __future__ import annotations

import os
import stat
from types import TracebackType

from ..errors import FailureKind, VirtagentError
from .entries import SPECIAL

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

#: Directories within directories: each costs a descriptor at both ends.
DEPTH_MAX = 128


def words(error: OSError) -> str:
    """Return what went wrong, without the number and the path."""
    return error.strerror or str(error)


class TreeError(VirtagentError):
    """A file or tree cannot be sent or received at all; the text names the path."""

    kind = FailureKind.REFUSED


def failed(path: bytes, error: OSError | str) -> TreeError:
    """Return the error for a path."""
    return TreeError(f"{os.fsdecode(path)}: {error if isinstance(error, str) else words(error)}")


class Place:
    """Where something is to be received.

    Attributes:
        directory: an open directory; closed with the place.
        name: in it.
        path: both, for messages.
    """

    def __init__(self, directory: int, name: bytes, path: bytes) -> None:
        self.directory, self.name, self.path = directory, name, path

    def close(self) -> None:
        """Close the directory; may be repeated."""
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_place(path: bytes, into: bytes = b"") -> Place:
    """Return the place that a user means by *path*; links on the way, and the last one, are followed.

    Args:
        path: as the user gave it.
        into: if the path is a directory, the name in it that is meant.

    Raises:
        TreeError: there is no such directory, or it is nothing that can be replaced.
    """
    try:
        real = os.path.realpath(path)
        if into and os.path.isdir(real):
            real = os.path.join(real, into)
        elif path.endswith(b"/") and not os.path.isdir(real):
            raise failed(path, "there is no such directory")
        parent, name = os.path.split(real)
        if not name:
            raise failed(path, "this cannot be replaced: name something in it")
        place = Place(os.open(parent, OPEN_DIRECTORY), name, real)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise failed(path, error if isinstance(error, OSError) else str(error)) from None
    try:
        check_replaceable(place.directory, name)
    except OSError as error:
        place.close()
        raise failed(real, error) from None
    return place


def check_replaceable(directory: int, name: bytes) -> None:
    """Raise OSError if what has this name is no file, directory or link: /dev/null must not become a file."""
    status = status_of(directory, name)
    if status is not None and (kind := SPECIAL.get(stat.S_IFMT(status.st_mode))):
        raise OSError(0, f"{kind} is there, which is not replaced")


def status_of(directory: int, name: bytes) -> os.stat_result | None:
    """Return the status of an entry, of a link itself; None: there is none."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def enter(directory: int, name: bytes) -> int:
    """Open a directory in a directory; a symbolic link is not followed."""
    return os.open(name, OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)


def umask() -> int:
    """Return the process's umask, without changing it for a moment as umask(2) would."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022
