"""guest-get-fsinfo, guest-fstrim: the file systems that lie on block devices."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from virtagent_protocol.values import Struct, Value

from ...freeze.mounts import Mount, mounts
from . import blockdev
from .command import CommandRegistry, QgaError, in_thread, reason

registry = CommandRegistry()

#: linux/fs.h: _IOWR('X', 121, struct fstrim_range), which is start, length, least length, in bytes.
_FITRIM = 0xC0185879
_RANGE = struct.Struct("=QQQ")
_ALL = 2**64 - 1


@registry.command("guest-get-fsinfo")
async def get_fsinfo() -> list[Value]:
    """Return each mount of a file system on a block device: its type, how full it is, and its disks."""
    return [*await in_thread(_fsinfo)]


@registry.command("guest-fstrim")
async def fstrim(minimum: int = 0) -> Struct:
    """Discard the blocks that file systems do not use, in ranges of at least *minimum* bytes.

    It may take minutes. Each mount has its own result: trimmed and minimum (bytes), or error.
    """
    if minimum < 0:
        raise QgaError(f"minimum must not be negative: {minimum}")
    return {"paths": [*await in_thread(lambda: [_trim(mount.path, minimum) for mount in _table()])]}


def _table() -> list[Mount]:
    """Return the mounts, the last one first, as qemu-ga does."""
    try:
        return mounts()[::-1]
    except OSError as error:
        raise QgaError(f"failed to open mtab file: {reason(error)}") from error


def _fsinfo() -> list[Struct]:
    return [_describe(mount) for mount in _table()]


def _describe(mount: Mount) -> Struct:
    major, minor = mount.device
    device = blockdev.syspath(blockdev.SYS / f"dev/block/{major}:{minor}")
    info: Struct = {
        # In a container the device may be hidden.
        "name": device.name if device else f"{major}:{minor}",
        "mountpoint": text(mount.path),
        "type": mount.kind,
        "disk": [*blockdev.disk_addresses(device)] if device else [],
    }
    try:
        size = os.statvfs(mount.path)
    except OSError:
        return info
    used = size.f_blocks - size.f_bfree
    info["used-bytes"] = used * size.f_frsize
    info["total-bytes"] = (used + size.f_bavail) * size.f_frsize
    info["total-bytes-privileged"] = size.f_blocks * size.f_frsize
    return info


def _trim(path: str, minimum: int) -> Struct:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        return {"path": text(path), "error": f"failed to open: {reason(error)}"}
    try:
        answer = fcntl.ioctl(fd, _FITRIM, _RANGE.pack(0, _ALL, minimum))
    except OSError as error:
        unsupported = error.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
        return {
            "path": text(path),
            "error": "trim not supported" if unsupported else f"failed to trim: {reason(error)}",
        }
    finally:
        os.close(fd)
    _, trimmed, effective = _RANGE.unpack(answer)
    return {"path": text(path), "trimmed": trimmed, "minimum": effective}


def text(name: str) -> str:
    """Return a file's name as text; it may be any bytes."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
