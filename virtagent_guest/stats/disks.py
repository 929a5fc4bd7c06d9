"""Section disks: what whole disks read and write, from /proc/diskstats.

A disk is *virtual* if it has no hardware of its own (LVM, RAID, loop, zram): what goes through it may go
through another one as well, so whoever adds disks up leaves those out.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtagent_protocol.text import visible_line
from virtagent_protocol.values import Struct, Value

from . import procfs
from .rates import grown, per_second, share

DISKSTATS = "/proc/diskstats"
SYS_BLOCK = "/sys/block"

#: Columns behind the name (kernel: Documentation/admin-guide/iostats.rst), for kernels since 2.6.25; discards
#: came with 4.18, flushes with 5.5.
COLUMNS = (
    *("read_ios", "read_merges", "read_sectors", "read_ticks"),
    *("write_ios", "write_merges", "write_sectors", "write_ticks"),
    *("ios_pgr", "total_ticks", "weight_ticks"),
    *("discard_ios", "discard_merges", "discard_sectors", "discard_ticks"),
    *("flush_ios", "flush_ticks"),
)
#: How many of them each of these kernels has.
_GENERATIONS = (11, 15, 17)
#: Bytes of a sector here, whatever the disk's own.
_SECTOR = 512
_MILLISECOND = 1e-3
#: Disks that are told.
DISKS_MAX = 128


@dataclass(frozen=True)
class Disk:
    """One line: a disk or partition and its counters since boot, by the names in `COLUMNS`."""

    name: str
    major: int
    minor: int
    counters: dict[str, int]


def disk_counters(table: str) -> list[Disk]:
    """Read /proc/diskstats."""
    result = []
    for line in table.splitlines():
        major, minor, name, *numbers = line.split()
        known = max((count for count in _GENERATIONS if count <= len(numbers)), default=0)
        counters = {column: int(number) for column, number in zip(COLUMNS[:known], numbers, strict=False)}
        result.append(Disk(name, int(major), int(minor), counters))
    return result


def take() -> dict[str, dict[str, int]]:
    """Read the counters now, of all that did anything since boot."""
    found = disk_counters(procfs.read(DISKSTATS))
    return {disk.name: disk.counters for disk in found if any(disk.counters.values())}


def describe(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], seconds: float
) -> tuple[list[Value], int]:
    """Return the section, and how many disks were left out of it."""
    told: list[Value] = []
    omitted = 0
    for name, counters in after.items():
        # A name may have slashes, which sysfs cannot have. Partitions are not there.
        virtual = procfs.is_virtual(f"{SYS_BLOCK}/{name.replace('/', '!')}")
        if virtual is None or not counters:
            continue
        if len(told) >= DISKS_MAX:
            omitted += 1
            continue
        told.append(_rates(name, virtual, before.get(name, counters), counters, seconds))
    return told, omitted


def _rates(name: str, virtual: bool, before: dict[str, int], after: dict[str, int], seconds: float) -> Struct:
    def rate(column: str) -> float:
        return per_second(before.get(column, 0), after.get(column, 0), seconds)

    busy = grown(before.get("total_ticks", 0), after.get("total_ticks", 0)) * _MILLISECOND
    return {
        "name": visible_line(name),
        "virtual": virtual,
        "read_bytes": rate("read_sectors") * _SECTOR,
        "write_bytes": rate("write_sectors") * _SECTOR,
        "reads": rate("read_ios"),
        "writes": rate("write_ios"),
        "busy": share(busy, seconds),
        "in_flight": after.get("ios_pgr", 0),
    }
