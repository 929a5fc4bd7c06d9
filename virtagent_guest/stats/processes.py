"""Section processes: those that use the processors most, from /proc/PID.

The rules:

1. To look at a process costs some 15 µs natively, and twenty times that in an emulated guest. So one sample
   looks at `LOOK_MAX` of them: the ones that were on top the last time, and of the others each in its turn.
   Each process's share is that of the time since it was looked at last.
2. A process that was not looked at before has the share of its whole life.
3. A user's name is that in /etc/passwd, else the number: the name service may ask a server that is dead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from virtagent_protocol.text import visible_line
from virtagent_protocol.values import Struct, Value

from . import procfs
from .rates import grown

PROC = "/proc"
PASSWD = "/etc/passwd"

#: Processes that one sample looks at.
LOOK_MAX = 1000
#: Processes of which it is remembered when they were looked at; beyond, they have rule 2's share.
REMEMBERED_MAX = 16 * 1024
#: Bytes of the files of a process: one line, or some fifty.
_FILE_MAX = 4096
#: Characters of a name; those of kernel threads have up to 63.
_NAME_MAX = 64

_HERTZ = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat tells (proc(5)): times in clock ticks, since boot; rss in pages."""

    name: str
    state: str
    ticks: int
    started: int
    rss: int


@dataclass(frozen=True)
class Seen:
    """A process when it was looked at: *at* in seconds since boot."""

    stat: Stat
    at: float
    cpu: float = 0.0


def parse_stat(text: str) -> Stat | None:
    """Read /proc/PID/stat; None if it makes no sense."""
    # The name may have blanks and parentheses, and is all between the first and the last of those.
    front, _, back = text.rpartition(")")
    name = front.partition("(")[2]
    fields = back.split()
    try:
        return Stat(name, fields[0], int(fields[11]) + int(fields[12]), int(fields[19]), int(fields[21]))
    except (IndexError, ValueError):
        return None


def since_boot() -> float:
    """Return the seconds since boot, which is what the kernel tells the beginning of processes in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Processes:
    """The processes, as one reader looks at them again and again.

    Args:
        clock: returns the seconds since boot.
    """

    def __init__(self, clock: Callable[[], float] = since_boot) -> None:
        self._clock = clock
        self._seen: dict[int, Seen] = {}
        self._top: list[int] = []
        self._next = 0
        self._count = 0
        self._looked_at = 0

    def look(self) -> None:
        """Look at processes; it may take some 20 ms."""
        pids = sorted(int(entry) for entry in os.listdir(PROC) if entry.isdecimal())
        self._count = len(pids)
        turn = self._turn(pids)
        now = self._clock()
        there = set(pids)
        for pid in [pid for pid in self._seen if pid not in there]:
            del self._seen[pid]
        looked_at = 0
        for pid in turn:
            stat = self._read(pid)
            if stat is not None:
                looked_at += 1
                before = self._seen.get(pid)
                if before is not None or len(self._seen) < REMEMBERED_MAX:
                    self._seen[pid] = Seen(stat, now, cpu_share(before, stat, now))
        self._looked_at = looked_at

    def describe(self, top: int) -> Struct:
        """Return the section, with so many processes."""
        order = sorted(
            self._seen, key=lambda pid: (self._seen[pid].cpu, self._seen[pid].stat.rss), reverse=True
        )
        self._top = order[:top]
        users = _Users()
        told: list[Value] = []
        for pid in self._top:
            uid = _uid(pid)
            seen = self._seen[pid]
            if uid is None:
                continue  # it has ended
            told.append(
                {
                    "pid": pid,
                    "name": visible_line(seen.stat.name)[:_NAME_MAX],
                    "state": visible_line(seen.stat.state)[:1],
                    "uid": uid,
                    "user": users.name(uid),
                    "cpu": seen.cpu,
                    "rss": seen.stat.rss * _PAGE,
                }
            )
        return {"count": self._count, "looked_at": self._looked_at, "top": told}

    def _turn(self, pids: list[int]) -> list[int]:
        """Return those whose turn it is."""
        if len(pids) <= LOOK_MAX:
            return pids
        there = set(pids)
        first = [pid for pid in self._top if pid in there]
        others = [pid for pid in pids if pid not in set(first)]
        at = next((index for index, pid in enumerate(others) if pid >= self._next), 0)
        turn = (others[at:] + others[:at])[: LOOK_MAX - len(first)]
        self._next = turn[-1] + 1
        return first + turn

    def _read(self, pid: int) -> Stat | None:
        try:
            return parse_stat(procfs.read(f"{PROC}/{pid}/stat", _FILE_MAX))
        except OSError:
            return None  # it has ended


def cpu_share(before: Seen | None, stat: Stat, now: float) -> float:
    """Return how many processors a process has used, on average.

    Args:
        before: what was seen of it, if it was looked at before.
        stat: what it is.
        now: seconds since boot.
    """
    if before is not None and before.stat.started == stat.started:
        seconds, ticks = now - before.at, grown(before.stat.ticks, stat.ticks)
    else:
        seconds, ticks = now - stat.started / _HERTZ, stat.ticks
    # Of less than a tick nothing can be said.
    return ticks / _HERTZ / seconds if seconds >= 1 / _HERTZ else 0.0


class _Users:
    """Names of users, read once."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        try:
            lines = procfs.read(PASSWD).splitlines()
        except OSError:
            return
        for line in lines:
            name, *fields = line.split(":")
            if len(fields) >= 2 and fields[1].isdecimal():
                self._names.setdefault(int(fields[1]), visible_line(name)[:_NAME_MAX])

    def name(self, uid: int) -> str:
        return self._names.get(uid, str(uid))


def _uid(pid: int) -> int | None:
    """Return the effective uid of a process."""
    try:
        for line in procfs.read(f"{PROC}/{pid}/status", _FILE_MAX).splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])
    except (OSError, IndexError, ValueError):
        pass
    return None
