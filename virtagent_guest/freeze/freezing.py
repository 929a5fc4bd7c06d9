"""One freeze: which file systems, in which order, and how each of them comes out of it again.

The rules:

1. A device is frozen once, however often it is mounted; and later than every file system that was mounted
   after it *first* was. Freezing writes what is dirty: if a loop device's file lay on a file system that is
   frozen already, that would never end. A bind mount, which is younger than the loop device, must not change
   the order.
2. Everything is opened before anything is frozen. What a mount point shows may be another file system (it was
   mounted over): then another mount of the device is tried.
3. A file system that cannot be frozen, or that somebody else has frozen, is passed over and not counted, as
   qemu-ga does. Any other failure undoes the whole.
4. `run` may block for ever in the kernel, so it is for a thread; `thaw` may be called at any time, and what
   it thaws may be what `run` waits for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence

from . import ioctls
from .mounts import Mount

#: File systems opened at a time. A guest with more has to name those that it wants.
OPEN_MAX = 500
#: Seconds between two attempts to free a thread that hangs in the kernel.
_UNHANG_EVERY = 0.1


class FreezeFailed(Exception):
    """A file system could not be opened or frozen; the text names it."""


class Freezing:
    """The file systems of one freeze. Made and opened at once.

    Args:
        table: all mounts, in mount order.
        wanted: mount points of the file systems to freeze; None: all of them. Others are ignored.

    Attributes:
        skipped: why what was not frozen was not.

    Raises:
        FreezeFailed: one cannot be opened.
    """

    def __init__(self, table: Sequence[Mount], wanted: Collection[str] | None) -> None:
        self.skipped: list[str] = []
        self.error: FreezeFailed | None = None
        self._stop = threading.Event()
        #: In the order of freezing.
        self._opened: list[tuple[Mount, int]] = []
        self._frozen: list[tuple[Mount, int]] = []
        try:
            for candidates in in_order(table, wanted):
                self._open(candidates)
        except BaseException:
            self.close()
            raise

    @property
    def frozen(self) -> list[str]:
        """The mount points of what was frozen so far."""
        return [mount.path for mount, _ in self._frozen]

    def run(self) -> None:
        """Freeze everything, until something fails or `thaw` is called. Look at *error* afterwards."""
        for mount, fd in self._opened:
            if self._stop.is_set():
                return
            try:
                if ioctls.freeze(fd):
                    self._frozen.append((mount, fd))
                else:
                    self.skipped.append(f"{mount.path} ({mount.kind}): cannot be frozen, or is already")
            except OSError as error:
                self.error = FreezeFailed(f"failed to freeze {mount.path}: {error.strerror}")
                return

    def thaw(self, worker: threading.Thread | None = None) -> int:
        """Thaw what was frozen, the last one first, and return how many that were.

        Args:
            worker: the thread of `run`, if it may still be at it: it has ended when this returns.
        """
        self._stop.set()
        count = self._thaw_all()
        while worker is not None and worker.is_alive():
            # What it waits for may be a file system of ours; or it has just frozen another one.
            worker.join(_UNHANG_EVERY)
            count += self._thaw_all()
        return count + self._thaw_all()

    def close(self) -> None:
        """Close what was opened."""
        while self._opened:
            os.close(self._opened.pop()[1])

    def _thaw_all(self) -> int:
        count = 0
        while self._frozen:
            count += ioctls.thaw(self._frozen.pop()[1])
        return count

    def _open(self, candidates: Sequence[Mount]) -> None:
        if len(self._opened) >= OPEN_MAX:
            raise FreezeFailed(f"there are more than {OPEN_MAX} file systems: name those to freeze")
        failure = ""
        for mount in candidates:
            try:
                fd = os.open(mount.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError as error:
                failure = f"failed to open {mount.path}: {error.strerror}"
                continue
            if mount.anonymous or _device(fd) == mount.device:
                self._opened.append((mount, fd))
                return
            os.close(fd)
            self.skipped.append(f"{mount.path} ({mount.kind}): another mount lies over it")
        if failure:
            raise FreezeFailed(failure)


def in_order(table: Sequence[Mount], wanted: Collection[str] | None) -> list[list[Mount]]:
    """Return the wanted mounts of each device, in the order in which the devices are to be frozen (rule
    1)."""
    devices: dict[tuple[int, int], list[Mount]] = {}
    for mount in table:
        of_device = devices.setdefault(mount.device, [])
        if wanted is None or mount.path in wanted:
            of_device.append(mount)
    return [candidates for candidates in reversed(devices.values()) if candidates]


def thaw_everything(table: Sequence[Mount]) -> int:
    """Thaw every mounted file system, whoever froze it, and return how many were frozen."""
    count = 0
    for mount in table:
        try:
            fd = os.open(mount.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            continue
        try:
            count += ioctls.thaw(fd)
        finally:
            os.close(fd)
    return count


def _device(fd: int) -> tuple[int, int]:
    number = os.fstat(fd).st_dev
    return os.major(number), os.minor(number)
