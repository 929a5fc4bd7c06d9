"""va.getdmesg: the end of the kernel's log.

It comes from /dev/kmsg: there every record has its time, and reading neither blocks nor consumes.
dmesg(1) may be missing on a small guest, and syslog(2) needs ctypes and drops the times where
printk.time is off. A record there is (kernel: Documentation/ABI/testing/dev-kmsg)::

    priority,sequence,microseconds,flags[,…];text\n
     KEY=value\n ...

one per read(2), with everything but printable ASCII in *text* written as ``\\xNN``.
"""

from __future__ import annotations

import os
import re
from collections import deque

import trio

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Call, Registry

registry = Registry()

KMSG = "/dev/kmsg"
#: Bytes of log in the answer (the original's number).
RESULT_MAX = 16 * 1024
#: Bytes of one record, at most: the kernel's CONSOLE_EXT_LOG_MAX. A shorter read fails with EINVAL.
RECORD_MAX = 8 * 1024

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


@registry.method("va.getdmesg")
async def getdmesg(call: Call) -> bytes:
    """Return the last 16 KiB of the kernel's log, whole lines such as "[    1.234567] text"."""
    return await trio.to_thread.run_sync(_read_log, abandon_on_cancel=True)


def _read_log() -> bytes:
    try:
        fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Fault(FaultCode.OPEN_FAILED, f"open failed: {KMSG}: {error.strerror}") from error
    try:
        return _last_lines(fd)
    except OSError as error:
        raise Fault(FaultCode.READ_FAILED, f"read failed: {KMSG}: {error.strerror}") from error
    finally:
        os.close(fd)


def _last_lines(fd: int) -> bytes:
    lines: deque[bytes] = deque()
    size = 0
    while True:
        trio.from_thread.check_cancelled()
        try:
            record = os.read(fd, RECORD_MAX)
        except BlockingIOError:
            return b"".join(lines)
        except BrokenPipeError:
            continue  # the kernel overwrote the record we were at; the next read is at the oldest one
        if not record:
            return b"".join(lines)
        for line in format_record(record):
            lines.append(line)
            size += len(line)
        while size > RESULT_MAX and lines:
            size -= len(lines.popleft())


def format_record(record: bytes) -> list[bytes]:
    """Return a record of /dev/kmsg as lines for people; its text may hold several, or none at all."""
    prefix, _, rest = record.partition(b";")
    microseconds = int(prefix.split(b",")[2])
    stamp = b"[%5d.%06d] " % divmod(microseconds, 1_000_000)
    text = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), rest.partition(b"\n")[0])
    return [stamp + line + b"\n" for line in text.split(b"\n")]
