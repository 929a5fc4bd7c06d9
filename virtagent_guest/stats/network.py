"""Section network: what goes through each interface, from /proc/net/dev.

An interface is *virtual* if it has no hardware of its own (lo, bridges, tunnels, containers' ends): what goes
through it may go through another one as well, so whoever adds interfaces up leaves those out.
"""

from __future__ import annotations

from virtagent_protocol.text import visible_line
from virtagent_protocol.values import Value

from . import procfs
from .rates import per_second

DEV = "/proc/net/dev"
SYS_NET = "/sys/class/net"

#: Columns → counter; None: not told.
_COLUMNS = (
    *("rx_bytes", "rx_packets", "rx_errors", "rx_dropped", None, None, None, None),
    *("tx_bytes", "tx_packets", "tx_errors", "tx_dropped"),
)
#: Interfaces that are told.
INTERFACES_MAX = 128


def interface_counters(dev: str) -> dict[str, dict[str, int]]:
    """Read /proc/net/dev: interface → counter → number since it came."""
    result = {}
    for line in dev.splitlines():
        # A name may have colons; the numbers have none.
        name, colon, numbers = line.rpartition(":")
        values = numbers.split()
        if colon and len(values) >= len(_COLUMNS):
            result[name.strip()] = {
                column: int(value) for column, value in zip(_COLUMNS, values, strict=False) if column
            }
    return result


def take() -> dict[str, dict[str, int]]:
    """Read the counters now."""
    return interface_counters(procfs.read(DEV))


def describe(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], seconds: float
) -> tuple[list[Value], int]:
    """Return the section, and how many interfaces were left out of it."""
    told: list[Value] = []
    for name in [*after][:INTERFACES_MAX]:
        counters = after[name]
        earlier = before.get(name, counters)
        rates = {column: per_second(earlier[column], count, seconds) for column, count in counters.items()}
        # One that went away meanwhile has no link any more.
        virtual = procfs.is_virtual(f"{SYS_NET}/{name}") is not False
        told.append({"name": visible_line(name), "virtual": virtual, **rates})
    return told, max(len(after) - INTERFACES_MAX, 0)
