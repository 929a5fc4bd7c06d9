"""Files of /proc and /sys, read within bounds."""

from __future__ import annotations

import os

#: Bytes of one file. /proc/stat of a machine with 512 processors has 100 KiB, /proc/net/dev 130 an interface.
FILE_MAX = 256 * 1024


class Unavailable(Exception):
    """A section cannot be had in this guest; the text says why."""


def read(path: str, limit: int = FILE_MAX) -> str:
    """Return the first bytes of a file as text; a line that was cut off by the limit is left out.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < limit and (piece := os.read(fd, limit - len(data))):
            data += piece
    finally:
        os.close(fd)
    if len(data) == limit:
        data = data[: data.rfind(b"\n") + 1]
    return data.decode(errors="replace")


def is_virtual(entry: str) -> bool | None:
    """Return whether the device of a link in /sys has no hardware of its own; None: there is no such link."""
    try:
        return "/virtual/" in os.readlink(entry)
    except OSError:
        return None
