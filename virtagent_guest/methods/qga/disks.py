"""guest-get-disks, guest-get-diskstats: the guest's disks and partitions, and how busy they are."""

from __future__ import annotations

import re
from pathlib import Path

from virtagent_protocol.values import Struct, Value

from ...stats.disks import disk_counters
from . import blockdev, nvme
from .command import CommandRegistry, QgaError, in_thread, reason

registry = CommandRegistry()

DISKSTATS = Path("/proc/diskstats")


@registry.command("guest-get-disks")
async def get_disks() -> list[Value]:
    """Return the disks and partitions: node, what it lies on, and where in the hardware it is."""
    return [*await in_thread(disks)]


@registry.command("guest-get-diskstats")
async def get_diskstats() -> list[Value]:
    """Return the I/O counters of each disk and partition."""
    return [*diskstats(DISKSTATS.read_text("ascii", errors="replace"))]


def diskstats(table: str) -> list[Struct]:
    """Read /proc/diskstats."""
    return [
        {
            "name": disk.name,
            "major": disk.major,
            "minor": disk.minor,
            "stats": {name.replace("_", "-"): count for name, count in disk.counters.items()},
        }
        for disk in disk_counters(table)
    ]


def disks() -> list[Struct]:
    """Return the schema's GuestDiskInfo of each disk and partition.

    Raises:
        QgaError: sysfs cannot be read.
    """
    directory = blockdev.SYS / "block"
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise QgaError(f'Can\'t open directory "{directory}": {reason(error)}') from error
    result: list[Struct] = []
    for name in names:
        device = blockdev.syspath(directory / name)
        dev = None if device is None else blockdev.node(device)
        if device is None or dev is None or _size(device) == 0:
            continue
        result.append(_disk(device, dev))
        result += _partitions(device, dev)
    # qemu-ga tells the last one first.
    return result[::-1]


def _disk(device: Path, dev: str) -> Struct:
    disk: Struct = {"name": dev, "partition": False}
    if (device / "slaves").is_dir():
        disk["dependencies"] = [
            lower_dev
            for lower in blockdev.underlying(device)
            if (lower_dev := blockdev.node(lower)) is not None
        ]
    if (alias := blockdev.udev_property(device, "DM_NAME")) is not None:
        disk["alias"] = alias
    if not blockdev.is_virtual(device) and (addresses := blockdev.disk_addresses(device)):
        disk["address"] = addresses[0]
        if addresses[0]["bus-type"] == "nvme" and (smart := nvme.smart_log(dev)) is not None:
            disk["smart"] = {"type": "nvme", **smart}
    return disk


def _partitions(device: Path, dev: str) -> list[Struct]:
    of_disk = re.compile(re.escape(device.name) + r"p?\d+")
    result: list[Struct] = []
    for entry in sorted(device.iterdir()):
        if of_disk.match(entry.name) and (node := blockdev.node(entry)) is not None:
            result.append({"name": node, "partition": True, "dependencies": [dev]})
    return result


def _size(device: Path) -> int:
    try:
        return int((device / "size").read_text("ascii"))
    except (OSError, ValueError):
        return 0
