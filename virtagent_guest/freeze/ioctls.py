"""The kernel's calls for freezing: FIFREEZE and FITHAW (linux/fs.h), and locking a process's memory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

# _IOWR('X', 119, int) and 120: the same number wherever Linux runs.
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878

_MCL_CURRENT, _MCL_FUTURE = 1, 2

#: A file system that was frozen N times must be thawed N times. Somebody who freezes it as fast as we thaw it
#: must not keep us here.
THAWS_MAX = 1000


def freeze(fd: int) -> bool:
    """Freeze the file system of an open file; it may take as long as writing its dirty pages does.

    Returns:
        Whether it was done: False if it cannot be frozen, or is already.

    Raises:
        OSError: anything else.
    """
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EBUSY):
            return False
        raise
    return True


def thaw(fd: int) -> bool:
    """Thaw the file system of an open file, however often it was frozen; return whether it was frozen at
    all."""
    for count in range(THAWS_MAX):
        try:
            fcntl.ioctl(fd, FITHAW, 0)
        except OSError:
            return count > 0
    return True


def lock_memory() -> str | None:
    """Keep all memory of this process where it is, now and later; return why that failed, or None.

    Nothing of it must have to come from a swap file on a file system that is frozen.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE):
        return os.strerror(ctypes.get_errno())
    return None
