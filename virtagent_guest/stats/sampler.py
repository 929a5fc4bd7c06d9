"""Sections → one record, with the rates since the reading before.

The rules:

1. Only the sections that are asked for are read, so a poll of a few is cheap: some 0.3 ms natively without
   processes and file systems.
2. A section that this guest does not have stands in the record's ``unavailable``, with the reason; what a
   list was cut to is counted in ``omitted``. Neither is an error.
3. Rates are measured over the monotonic clock.
"""

from __future__ import annotations

import time
from typing import Any

import trio

from virtagent_protocol.values import Struct, Value

from . import cpu, disks, load, memory, network, pressure
from .filesystems import FILESYSTEMS
from .processes import Processes
from .procfs import Unavailable

#: Section → what reads it. All of these take microseconds.
_READERS = {
    "cpu": cpu.take,
    "memory": memory.take_memory,
    "swap": memory.take_swap,
    "pressure": pressure.take,
    "load": load.take_load,
    "disks": disks.take,
    "network": network.take,
    "uptime": load.take_uptime,
}
#: All sections, in the order in which they are told.
SECTIONS = (
    *("uptime", "load", "cpu", "memory", "swap", "pressure", "disks", "filesystems", "network", "processes"),
)
#: Those that need two readings.
RATED = frozenset({"cpu", "swap", "disks", "network", "processes"})

#: Threads that look at processes at a time.
_threads = trio.CapacityLimiter(2)


class Sampler:
    """Samples of some sections, for one who asks again and again.

    Args:
        sections: of `SECTIONS`.
        top: how many processes are told.
    """

    def __init__(self, sections: frozenset[str], top: int) -> None:
        self._sections = tuple(name for name in SECTIONS if name in sections)
        self._top = top
        self._processes = Processes()
        self._before: dict[str, Any] = {}
        self._at = 0.0

    @property
    def needs_window(self) -> bool:
        """Whether a first sample needs a reading before it."""
        return any(name in RATED for name in self._sections)

    async def begin(self) -> None:
        """Take the first reading."""
        self._before, _ = self._read([name for name in self._sections if name in RATED])
        self._at = time.monotonic()
        if "processes" in self._sections:
            await self._look()

    async def sample(self) -> Struct:
        """Return a record, with rates since the last one, or since `begin`."""
        readings, unavailable = self._read(self._sections)
        now = time.monotonic()
        seconds = now - self._at if self._at else 0.0
        if "processes" in self._sections:
            await self._look()
        found: Struct = {}
        omitted: Struct = {}
        for name in self._sections:
            try:
                value, left_out = await self._describe(name, readings, seconds)
            except (OSError, ValueError, KeyError, IndexError) as error:
                # A kernel that writes what nobody expects costs one section.
                unavailable.setdefault(name, f"it cannot be read: {error or type(error).__name__}")
                continue
            found[name] = value
            if left_out:
                omitted[name] = left_out
        self._before, self._at = readings, now
        return {
            "time": time.time(),
            "window": seconds if self.needs_window else 0.0,
            **found,
            "unavailable": unavailable,
            "omitted": omitted,
        }

    def _read(self, sections: tuple[str, ...] | list[str]) -> tuple[dict[str, Any], Struct]:
        readings: dict[str, Any] = {}
        unavailable: Struct = {}
        for name in sections:
            if name in _READERS:
                try:
                    readings[name] = _READERS[name]()
                except Unavailable as why:
                    unavailable[name] = str(why)
                except (OSError, ValueError) as error:
                    unavailable[name] = f"it cannot be read: {error}"
        return readings, unavailable

    async def _look(self) -> None:
        await trio.to_thread.run_sync(self._processes.look, limiter=_threads)

    async def _describe(self, name: str, readings: dict[str, Any], seconds: float) -> tuple[Value, int]:
        if name == "processes":
            describe = self._processes.describe
            return await trio.to_thread.run_sync(describe, self._top, limiter=_threads), 0
        if name == "filesystems":
            return await FILESYSTEMS.read()
        after = readings[name]
        before = self._before.get(name, after)
        if name == "cpu":
            return cpu.describe(before, after)
        if name == "swap":
            return memory.describe_swap(before, after, seconds), 0
        if name == "disks":
            return disks.describe(before, after, seconds)
        if name == "network":
            return network.describe(before, after, seconds)
        return _PLAIN[name](after), 0


#: Sections of one reading.
_PLAIN: dict[str, Any] = {
    "memory": memory.describe_memory,
    "pressure": pressure.describe,
    "load": load.describe_load,
    "uptime": load.describe_uptime,
}
