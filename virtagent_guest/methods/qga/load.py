"""guest-get-load, guest-get-cpustats: how busy the guest is."""

from __future__ import annotations

import os
from pathlib import Path

from virtagent_protocol.values import Struct, Value

from .command import CommandRegistry

registry = CommandRegistry()

STAT = Path("/proc/stat")

#: The times of a cpu line in /proc/stat (proc(5)), in their order. Kernels before 2.6.33 have fewer.
_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guestnice")
_TIMES_MIN = 4


@registry.command("guest-get-load")
async def get_load() -> Struct:
    """Return the load averages of the last 1, 5 and 15 minutes."""
    one, five, fifteen = os.getloadavg()
    return {"load1m": one, "load5m": five, "load15m": fifteen}


@registry.command("guest-get-cpustats")
async def get_cpustats() -> list[Value]:
    """Return for each CPU that is online how long it did what since boot, in milliseconds."""
    return [*cpustats(STAT.read_text("ascii"), os.sysconf("SC_CLK_TCK"))]


def cpustats(stat: str, ticks: int) -> list[Struct]:
    """Read /proc/stat.

    Args:
        stat: its content.
        ticks: the kernel's clock ticks in a second.
    """
    result = []
    for line in stat.splitlines():
        name, *numbers = line.split()
        if not name.startswith("cpu") or not name[3:].isdecimal() or len(numbers) < _TIMES_MIN:
            continue
        entry: Struct = {"type": "linux", "cpu": int(name[3:])}
        # A kernel that is newer than this list has more.
        named = zip(_TIMES, numbers, strict=False)
        entry.update((time, int(number) * 1000 // ticks) for time, number in named)
        result.append(entry)
    return result
