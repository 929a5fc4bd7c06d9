"""oom-kill: the kernel killed a process because memory ran out, in the guest or in one control group.

It says so in its log. Of the lines about it, two matter (mm/oom_kill.c); the first is missing where a whole
group is killed, after the first process, and in kernels before 5.0::

    oom-kill:constraint=CONSTRAINT_MEMCG,…,task_memcg=/system.slice/x.service,task=python3,pid=123,uid=0
    Memory cgroup out of memory: Killed process 123 (python3) total-vm:…kB, …, UID:0 pgtables:…

A program may write to the kernel's log as well, but not as the kernel: such a record has another facility. A
process chooses its name, 15 bytes, which stands behind its pid: too little, and too late, to forge one of
these lines.
"""

from __future__ import annotations

import os
import re

import trio

from virtagent_protocol.values import Struct

from .source import Emit, log, plain

KMSG = "/dev/kmsg"
#: Bytes of one record, at most: the kernel's CONSOLE_EXT_LOG_MAX. A shorter read fails with EINVAL.
RECORD_MAX = 8 * 1024
#: Records that are read before others have their turn: the log may be flooded.
AT_ONCE = 64

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_CHOSEN = re.compile(rb"oom-kill:.*,task_memcg=(.*),task=.{0,15},pid=([0-9]+),uid=[0-9]+$", re.DOTALL)
_KILLED = re.compile(rb"([^:]*): Killed process ([0-9]+) \((.{0,15})\)[, ] ?(.*)", re.DOTALL)
_UID = re.compile(rb"UID[: ]([0-9]+)")


class OomParser:
    """Finds the kills in the records of the kernel's log."""

    def __init__(self) -> None:
        self._cgroups: tuple[int, str] | None = None

    def parse(self, record: bytes) -> Struct | None:
        """Return the data of an event if this record tells of a kill.

        Args:
            record: one of /dev/kmsg (kernel: Documentation/ABI/testing/dev-kmsg).
        """
        # Nearly all records end here: this costs less than taking them apart.
        if b"illed process" not in record and b"oom-kill:" not in record:
            return None
        prefix, _, rest = record.partition(b";")
        priority = prefix.partition(b",")[0]
        if not priority.isdigit() or int(priority) >> 3:
            return None  # not the kernel's
        text = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), rest.partition(b"\n")[0])
        if (chosen := _CHOSEN.match(text)) is not None:
            self._cgroups = int(chosen[2]), plain(os.fsdecode(chosen[1]))
            return None
        killed = _KILLED.match(text)
        if killed is None:
            return None
        pid = int(killed[2])
        uid = _UID.search(killed[4])
        return {
            "process": plain(os.fsdecode(killed[3])),
            "pid": pid,
            "uid": int(uid[1]) if uid else None,
            "scope": "cgroup" if killed[1].startswith(b"Memory cgroup") else "guest",
            "cgroup": self._cgroups[1] if self._cgroups and self._cgroups[0] == pid else None,
        }


async def watch_oom(emit: Emit) -> None:
    """Tell of kills until cancelled.

    Raises:
        OSError: there is no kernel log to be read here.
    """
    fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.lseek(fd, 0, os.SEEK_END)
        parser = OomParser()
        while True:
            await trio.lowlevel.wait_readable(fd)
            for record in _records(fd):
                data = parser.parse(record)
                if data is not None:
                    emit("oom-kill", data)
    finally:
        os.close(fd)


def _records(fd: int) -> list[bytes]:
    records: list[bytes] = []
    while len(records) < AT_ONCE:
        try:
            record = os.read(fd, RECORD_MAX)
        except BlockingIOError:
            break
        except BrokenPipeError:
            # The next read is at the oldest record that is left.
            log.warning("the kernel's log was overwritten before it was read: an oom-kill may be missing")
            continue
        if not record:
            raise OSError(f"{KMSG} has ended")
        records.append(record)
    return records
