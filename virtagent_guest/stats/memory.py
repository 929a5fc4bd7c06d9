"""Sections memory and swap, from /proc/meminfo and /proc/vmstat (proc(5))."""

from __future__ import annotations

import os

from virtagent_protocol.values import Struct

from . import procfs
from .rates import per_second

MEMINFO, VMSTAT = "/proc/meminfo", "/proc/vmstat"

_KIB = 1024
_PAGE = os.sysconf("SC_PAGE_SIZE")

#: Member → its name in /proc/meminfo.
_MEMORY = {
    "total": "MemTotal",
    "free": "MemFree",
    "available": "MemAvailable",
    "buffers": "Buffers",
    "cached": "Cached",
    "shared": "Shmem",
    "slab": "Slab",
    "dirty": "Dirty",
}


def numbers(table: str) -> dict[str, int]:
    """Read lines of a name, which may end in a colon, and a number: /proc/meminfo, /proc/vmstat."""
    result = {}
    for line in table.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[1].isdecimal():
            result[fields[0].rstrip(":")] = int(fields[1])
    return result


def take_memory() -> dict[str, int]:
    """Read /proc/meminfo now, in KiB."""
    return numbers(procfs.read(MEMINFO))


def describe_memory(info: dict[str, int]) -> Struct:
    """Return the section memory."""
    found: Struct = {member: info.get(name, 0) * _KIB for member, name in _MEMORY.items()}
    # Before Linux 3.14 the kernel does not tell what it could give away.
    available = info.get("MemAvailable", sum(info.get(name, 0) for name in ("MemFree", "Buffers", "Cached")))
    found["available"] = available * _KIB
    found["used"] = max(info.get("MemTotal", 0) - available, 0) * _KIB
    return found


def take_swap() -> dict[str, int]:
    """Read what tells of swap, now: sizes in KiB, counters in pages."""
    counters = numbers(procfs.read(VMSTAT))
    return {**take_memory(), **{name: counters.get(name, 0) for name in ("pswpin", "pswpout")}}


def describe_swap(before: dict[str, int], after: dict[str, int], seconds: float) -> Struct:
    """Return the section swap."""
    total, free = (after.get(name, 0) * _KIB for name in ("SwapTotal", "SwapFree"))
    return {
        "total": total,
        "free": free,
        "used": max(total - free, 0),
        "in": per_second(before["pswpin"], after["pswpin"], seconds) * _PAGE,
        "out": per_second(before["pswpout"], after["pswpout"], seconds) * _PAGE,
    }
