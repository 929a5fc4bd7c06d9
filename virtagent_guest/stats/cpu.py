"""Section cpu: for what share of the time processors did what, from /proc/stat (proc(5))."""

from __future__ import annotations

from virtagent_protocol.values import Struct, Value

from . import procfs
from .rates import grown, share

STAT = "/proc/stat"

#: The times of a cpu line, in their order. Kernels before 2.6.33 have fewer.
TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_TIMES_MIN = 4
#: Processors that are told one by one; all are in the sums. 512 would be half a record.
CPUS_MAX = 256

#: What a processor waits in.
_IDLE = ("idle", "iowait")
#: The kernel counts a guest's time in that of its user as well: time → where it is counted too.
_CONTAINED = {"guest": "user", "guest_nice": "nice"}

#: Processor → time → clock ticks since boot.
Times = dict[int, dict[str, int]]


def cpu_times(stat: str) -> Times:
    """Read /proc/stat: the processors that are online."""
    result: Times = {}
    for line in stat.splitlines():
        if not line.startswith("cpu"):
            if result:
                break  # what follows may be long: the interrupts
            continue
        name, *numbers = line.split()
        if name[3:].isdecimal() and len(numbers) >= _TIMES_MIN:
            # A kernel that is newer than this list has more.
            result[int(name[3:])] = {time: int(number) for time, number in zip(TIMES, numbers, strict=False)}
    return result


def take() -> Times:
    """Read the times now."""
    return cpu_times(procfs.read(STAT))


def describe(before: Times, after: Times) -> tuple[Struct, int]:
    """Return the section, and how many processors were left out of its list."""
    # One that came or went meanwhile has no share.
    spent = {number: _spent(before[number], times) for number, times in after.items() if number in before}
    total = dict.fromkeys(TIMES, 0)
    for times in spent.values():
        for name, ticks in times.items():
            total[name] += ticks
    told: list[Value] = [{"cpu": number, **_shares(spent[number])} for number in [*spent][:CPUS_MAX]]
    return {"count": len(after), **_shares(total), "cpus": told}, max(len(spent) - CPUS_MAX, 0)


def _spent(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    # The time of waiting for I/O may go back a little (proc(5)): then nothing was spent in it.
    spent = {name: grown(before.get(name, 0), after.get(name, 0)) for name in TIMES}
    for name, container in _CONTAINED.items():
        spent[container] = max(spent[container] - spent[name], 0)
    return spent


def _shares(spent: dict[str, int]) -> Struct:
    whole = sum(spent.values())
    busy = whole - sum(spent[name] for name in _IDLE)
    return {"busy": share(busy, whole), **{name: share(ticks, whole) for name, ticks in spent.items()}}
