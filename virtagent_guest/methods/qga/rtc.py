"""The hardware clock, by the kernel's own calls (rtc(4)), for guests without hwclock(8).

Whether it holds UTC or local time the third line of /etc/adjtime says; without that file it is UTC.
"""

from __future__ import annotations

import calendar
import fcntl
import os
import platform
import struct
import time

from .command import QgaError, reason

DEVICE = "/dev/rtc0"
ADJTIME = "/etc/adjtime"

#: struct rtc_time: sec, min, hour, mday, mon, year, wday, yday, isdst.
_RTC_TIME = struct.Struct("9i")
_RTC_RD_TIME = 0x80247009
_RTC_SET_TIME = 0x4024700A
#: Where the numbers of ioctls are made in another way.
_OTHER_NUMBERS = ("alpha", "mips", "parisc", "ppc", "powerpc", "sparc")
_NS = 10**9


def read() -> int:
    """Return its time in nanoseconds since 1970, UTC.

    Raises:
        QgaError: there is none, or it cannot be read.
    """
    answer = _call(_RTC_RD_TIME, bytes(_RTC_TIME.size), "read")
    second, minute, hour, day, month, year, *_ = _RTC_TIME.unpack(answer)
    fields = (year + 1900, month + 1, day, hour, minute, second, 0, 0, -1)
    seconds = calendar.timegm(fields) if _is_utc() else int(time.mktime(fields))
    return seconds * _NS


def write(nanoseconds: int) -> None:
    """Set it, to the nearest second.

    Raises:
        QgaError: there is none, or it cannot be set.
    """
    seconds = (nanoseconds + _NS // 2) // _NS
    t = time.gmtime(seconds) if _is_utc() else time.localtime(seconds)
    given = _RTC_TIME.pack(t.tm_sec, t.tm_min, t.tm_hour, t.tm_mday, t.tm_mon - 1, t.tm_year - 1900, 0, 0, 0)
    _call(_RTC_SET_TIME, given, "set")


def _call(request: int, argument: bytes, action: str) -> bytes:
    if platform.machine().startswith(_OTHER_NUMBERS):
        raise QgaError(f"the hardware clock cannot be {action} without hwclock, which is missing: install it")
    try:
        fd = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(fd, request, argument)
        finally:
            os.close(fd)
    except OSError as error:
        raise QgaError(f"the hardware clock cannot be {action}: {DEVICE}: {reason(error)}") from error


def _is_utc() -> bool:
    try:
        with open(ADJTIME, encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return True
    return len(lines) < 3 or lines[2].strip() != "LOCAL"
