"""Section filesystems: how full they are, by statvfs(3).

The rules:

1. Told are those on block devices, those of a server or of the host, and FUSE's; each once, wherever else it
   is mounted. Those in memory are not: they are in the section memory.
2. statvfs hangs for ever on a server that is gone. So a thread asks one mount after the other, and is left
   where it hangs; the next goes on behind that. What hangs is told without sizes, and asked again only when
   the thread has come back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import trio

from virtagent_protocol.text import visible_line
from virtagent_protocol.values import Struct, Value

from ..freeze.mounts import Entry, entries

MOUNTINFO = "/proc/self/mountinfo"
#: Bytes of the table that are read: some 5000 mounts.
TABLE_MAX = 1024 * 1024
#: File systems that are told.
FILESYSTEMS_MAX = 256
#: Characters of a path or of a source.
PATH_MAX = 512
#: Seconds that a thread may be at it. All of them take some milliseconds, if none hangs.
PATIENCE = 1.0
#: Seconds for all threads of one sample.
TIME_MAX = 3.0
#: Threads at a time, those that hang included.
THREADS_MAX = 16

#: Types with an anonymous device number that lie on disks, and those whose files a server or the host has.
_ON_DISKS = frozenset({"btrfs", "zfs", "bcachefs"})
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "afs", "lustre", "gpfs", "ocfs2"}
)
_FUSE = "fuse."

HANGS = "it does not answer"
NOT_ASKED = "not asked: others did not answer"


class FileSystems:
    """The file systems of this machine; shared by all who ask.

    Args:
        table: returns the mount table.
        statvfs: as `os.statvfs`.
    """

    def __init__(
        self,
        table: Callable[[], bytes] | None = None,
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
    ) -> None:
        self._table = table or _read_table
        self._statvfs = statvfs
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        #: Mount point → what hangs there.
        self._hanging: dict[str, _Walk] = {}

    async def read(self) -> tuple[list[Value], int]:
        """Return the section, and how many file systems were left out of it.

        Raises:
            OSError: the mount table cannot be read.
        """
        # Thousands of mounts take a while, and the agent has other things to do.
        found = await trio.to_thread.run_sync(lambda: wanted(entries(self._table())), abandon_on_cancel=True)
        told, answers = found[:FILESYSTEMS_MAX], dict[str, Struct | None]()
        self._hanging = {path: walk for path, walk in self._hanging.items() if walk.at == path}
        to_ask = [entry.path for entry in told if entry.path not in self._hanging]
        with trio.move_on_after(TIME_MAX):
            while to_ask:
                walk = _Walk(to_ask, self._statvfs)
                try:
                    with trio.move_on_after(PATIENCE):
                        await trio.to_thread.run_sync(walk.run, abandon_on_cancel=True, limiter=self._threads)
                finally:
                    walk.abandoned = True
                    # The thread may still be at it: what it says from now on is not heard.
                    answers.update(walk.answers.copy())
                    if (at := walk.at) is not None:
                        self._hanging[at] = walk
                    to_ask = [path for path in to_ask if path not in answers and path != at]
        return [
            {**_described(entry), **answer}
            for entry in told
            if (answer := self._answer(entry.path, answers)) is not None
        ], len(found) - len(told)

    def _answer(self, path: str, answers: dict[str, Struct | None]) -> Struct | None:
        if path in self._hanging:
            return {"error": HANGS}
        return answers.get(path, {"error": NOT_ASKED})


class _Walk:
    """One thread's way from mount to mount."""

    def __init__(self, paths: list[str], statvfs: Callable[[str], os.statvfs_result]) -> None:
        self._paths = [*paths]
        self._statvfs = statvfs
        self.at: str | None = None
        self.abandoned = False
        self.answers: dict[str, Struct | None] = {}

    def run(self) -> None:
        for path in self._paths:
            self.at = path
            answer = self._ask(path)
            if self.abandoned:
                break
            self.answers[path] = answer
        self.at = None

    def _ask(self, path: str) -> Struct | None:
        try:
            return sizes(self._statvfs(path))
        except OSError as error:
            return {"error": error.strerror or str(error)}


def wanted(table: Iterable[Entry]) -> list[Entry]:
    """Return the entries of rule 1."""
    found: dict[object, Entry] = {}
    for entry in table:
        on_disk = entry.number[0] != 0
        if on_disk or entry.kind in _ON_DISKS or entry.kind in _REMOTE or entry.kind.startswith(_FUSE):
            # What is btrfs has a number for each subvolume, and one size.
            found.setdefault(entry.source if entry.kind in _ON_DISKS else entry.number, entry)
    return [*found.values()]


def sizes(status: os.statvfs_result) -> Struct | None:
    """Return what statvfs tells, in bytes and inodes; None: there is nothing that could be full."""
    if not status.f_blocks:
        return None
    unit = status.f_frsize
    return {
        "size": status.f_blocks * unit,
        "used": max(status.f_blocks - status.f_bfree, 0) * unit,
        "available": status.f_bavail * unit,
        "inodes": status.f_files,
        "inodes_used": max(status.f_files - status.f_ffree, 0),
    }


def _described(entry: Entry) -> Struct:
    return {"path": _text(entry.path), "source": _text(entry.source), "type": _text(entry.kind)}


def _text(name: str) -> str:
    return visible_line(name.encode(errors="surrogateescape").decode(errors="replace"))[:PATH_MAX]


def _read_table() -> bytes:
    with open(MOUNTINFO, "rb") as table:
        return table.read(TABLE_MAX)


#: Those of this machine.
FILESYSTEMS = FileSystems()
