"""The mounted file systems that lie on block devices, from /proc/self/mountinfo (proc(5)).

The rules:

1. What has no block device is left out, as qemu-ga does: proc, tmpfs, overlay, network file systems. btrfs
   shows an anonymous device number, so its device is looked up by name.
2. The order is that of the mount table: what was mounted later comes later, and lies on what came before. A
   file system in a file (loop) is mounted after the one that holds the file; by the depth of the mount points
   alone one could not tell.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_DEVICE = re.compile(rb"(\d+):(\d+)")


@dataclass(frozen=True)
class Mount:
    """One mount of a file system that lies on a block device.

    Attributes:
        path: the mount point.
        kind: the file system's type, such as ``ext4``.
        source: what was mounted, such as ``/dev/vda1``.
        device: major and minor number of the block device.
        anonymous: whether `stat` shows another device number for what is on it (btrfs).
    """

    path: str
    kind: str
    source: str
    device: tuple[int, int]
    anonymous: bool = False


@dataclass(frozen=True)
class Entry:
    """One line of the table: mount point, type, what was mounted, and the device number that is shown."""

    path: str
    kind: str
    source: str
    number: tuple[int, int]


def entries(table: bytes) -> Iterator[Entry]:
    """Yield the lines of the table that make sense, in their order."""
    for line in table.splitlines():
        # 36 35 98:0 /root /mnt/point rw,noatime master:1 - ext4 /dev/sda1 rw
        front, separator, back = line.partition(b" - ")
        fields, rest = front.split(b" "), back.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            continue
        number = _DEVICE.fullmatch(fields[2])
        if number is not None:
            path, source = os.fsdecode(_unescape(fields[4])), os.fsdecode(_unescape(rest[1]))
            yield Entry(path, os.fsdecode(rest[0]), source, (int(number[1]), int(number[2])))


def mounts(table: Path = MOUNTINFO) -> list[Mount]:
    """Return the mounts of this process's mount namespace that lie on block devices, in mount order.

    Raises:
        OSError: the table cannot be read.
    """
    return [mount for entry in entries(table.read_bytes()) if (mount := _on_block_device(entry)) is not None]


def _on_block_device(entry: Entry) -> Mount | None:
    device: tuple[int, int] | None = entry.number
    anonymous = entry.number[0] == 0
    if anonymous:
        device = _block_device(entry.source) if entry.kind == "btrfs" else None
    if device is None:
        return None
    return Mount(entry.path, entry.kind, entry.source, device, anonymous)


def _unescape(field: bytes) -> bytes:
    """Undo the kernel's octal escapes of blank, tab, newline and backslash."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)


def _block_device(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return os.major(status.st_rdev), os.minor(status.st_rdev)
