"""guest-get-load, guest-get-cpustats: how busy the guest is."""

from __future__ import annotations

import os
from pathlib import Path

from virtagent_protocol.values import Struct, Value

from ...stats.cpu import cpu_times
from .command import CommandRegistry

registry = CommandRegistry()

STAT = Path("/proc/stat")


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
    return [
        {
            "type": "linux",
            "cpu": number,
            **{name.replace("_", ""): spent * 1000 // ticks for name, spent in times.items()},
        }
        for number, times in cpu_times(stat).items()
    ]
