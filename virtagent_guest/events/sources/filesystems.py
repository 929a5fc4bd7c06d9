"""filesystem-filling and filesystem-ok: a file system is over its threshold, and no longer.

The rules:

1. It is the fuller of two things: the space, in percent as df(1) has it, and the inodes.
2. What is told of is filling until it is `HYSTERESIS` below the threshold: it may move about it for hours.
3. Looked at are file systems of this machine's own disks and memory, if they can be written to; each once,
   however often it is mounted. Of one on the network its server can tell.
4. Nobody tells that a file system fills, so this is a look every `INTERVAL`. A mount point may lie on a file
   system whose server does not answer, and the look hangs: so each is in a thread, which is left alone after
   `LOOK_TIMEOUT`, and that file system is not looked at again before it has come back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import trio

from virtagent_protocol.values import Struct

from ...freeze.mounts import MOUNTINFO, Entry, entries
from .source import Emit, log, plain

#: Seconds between two looks.
INTERVAL = 30.0
#: Seconds for one file system. It takes microseconds.
LOOK_TIMEOUT = 5.0
#: Percent below the threshold at which a file system is well again.
HYSTERESIS = 5
#: Threads that may hang at a time. With so many, nothing is looked at.
HANGING_MAX = 4
#: File systems that show no block device and can fill up all the same.
ALSO = ("tmpfs", "btrfs", "zfs")


@dataclass(frozen=True)
class Usage:
    """How full a file system is.

    Attributes:
        space, inodes: percent in use, rounded up; 0 for inodes where there is no limit.
        size, available: bytes, of which ordinary users may have *available*.
    """

    space: int
    inodes: int
    size: int
    available: int

    @property
    def percent(self) -> int:
        """Of what is scarcer."""
        return max(self.space, self.inodes)


def usage(status: os.statvfs_result) -> Usage | None:
    """Return what statvfs(3) says of a file system; None if nobody can fill it."""
    if status.f_flag & os.ST_RDONLY or not status.f_blocks:
        return None
    return Usage(
        space=_percent(status.f_blocks - status.f_bfree, status.f_bavail),
        inodes=_percent(status.f_files - status.f_ffree, status.f_favail) if status.f_files else 0,
        size=status.f_blocks * status.f_frsize,
        available=status.f_bavail * status.f_frsize,
    )


def _percent(used: int, available: int) -> int:
    whole = used + available
    return -(-100 * used // whole) if whole > 0 else 100


class Levels:
    """Which file systems are filling.

    Args:
        threshold: in percent.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._filling: set[str] = set()

    def look(self, path: str, percent: int) -> str | None:
        """Return the name of the event that is due now that a file system is so full."""
        if path not in self._filling and percent >= self._threshold:
            self._filling.add(path)
            return "filesystem-filling"
        if path in self._filling and percent <= max(self._threshold - HYSTERESIS, 0):
            self._filling.remove(path)
            return "filesystem-ok"
        return None

    def keep(self, paths: set[str]) -> None:
        """Forget all others: they are no longer mounted."""
        self._filling &= paths


class FilesystemSource:
    """Looks at the file systems.

    Args:
        emit: puts the events.
        threshold: in percent.
    """

    def __init__(self, emit: Emit, threshold: int) -> None:
        self._emit = emit
        self._levels = Levels(threshold)
        self._hanging: set[str] = set()
        # Of its own: hanging threads must not take the places of other work.
        self._places = trio.CapacityLimiter(HANGING_MAX)

    async def watch(self) -> None:
        """Tell what changes until cancelled."""
        while True:
            await self.look()
            await trio.sleep(INTERVAL)

    async def look(self) -> None:
        """Look at each once."""
        if len(self._hanging) >= HANGING_MAX:
            return
        there = [mount for mount in distinct(MOUNTINFO.read_bytes()) if mount.path not in self._hanging]
        self._levels.keep({mount.path for mount in there} | self._hanging)
        for mount in there:
            if len(self._hanging) >= HANGING_MAX:
                return
            found = await self._usage(mount.path)
            name = found and self._levels.look(mount.path, found.percent)
            if found and name:
                self._emit(name, _data(mount, found))

    async def _usage(self, path: str) -> Usage | None:
        ended = False

        def look() -> Usage | None:
            nonlocal ended
            try:
                return usage(os.statvfs(path))
            except OSError:
                return None  # it is just being unmounted, or broken: not what this is about
            finally:
                ended = True
                self._hanging.discard(path)

        with trio.move_on_after(LOOK_TIMEOUT):
            return await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._places)
        self._hanging.add(path)
        if ended:
            # In this very moment; its thread has looked there before it was noted.
            self._hanging.discard(path)
        else:
            log.warning("the file system at %s does not answer: not looked at until it does", path)
        return None


def distinct(table: bytes) -> list[Entry]:
    """Return what is to be looked at (rule 3), given /proc/self/mountinfo."""
    # What is mounted over another one hides it. Of several mounts of a device, the first is its own place.
    visible = {mount.path: mount for mount in entries(table)}
    first: dict[object, Entry] = {}
    for mount in visible.values():
        if mount.number[0] or mount.kind in ALSO:
            # Each subvolume of btrfs has a number of its own, and all of them one space.
            first.setdefault(mount.source if mount.kind == "btrfs" else mount.number, mount)
    return list(first.values())


def _data(mount: Entry, found: Usage) -> Struct:
    return {
        "path": plain(mount.path),
        "type": plain(mount.kind),
        "space-percent": found.space,
        "inodes-percent": found.inodes,
        "size": found.size,
        "available": found.available,
    }
