"""guest-get-time, guest-set-time, guest-get-timezone."""

from __future__ import annotations

import datetime
import os
import time
from zoneinfo import ZoneInfo

from virtagent_protocol.values import Struct

from . import rtc
from .command import CommandRegistry, QgaError, in_thread, reason
from .program import run_program

registry = CommandRegistry()

HWCLOCK = "/sbin/hwclock"
LOCALTIME = "/etc/localtime"
_NS = 10**9
#: What qemu-ga takes for a time that somebody means: 1970 to 2069, in UTC.
_LATEST = int(datetime.datetime(2070, 1, 1, tzinfo=datetime.timezone.utc).timestamp()) * _NS


@registry.command("guest-get-time")
async def get_time() -> int:
    """Return the guest's time in nanoseconds since 1970, UTC."""
    return time.time_ns()


@registry.command("guest-set-time")
async def set_time(time: int | None = None) -> None:
    """Set the guest's time, in nanoseconds since 1970, UTC, and then its hardware clock.

    Without a time, the hardware clock's is taken.
    """
    if time is not None:
        if not 0 <= time < _LATEST:
            raise QgaError("Invalid time")
        _set_system_time(time)
    if os.access(HWCLOCK, os.X_OK):
        await run_program([HWCLOCK, "-w" if time is not None else "-s"], "set hardware clock to system time")
        return
    # Debian has it in a package that small guests do without.
    if time is not None:
        await in_thread(rtc.write, time)
    else:
        _set_system_time(await in_thread(rtc.read))


@registry.command("guest-get-timezone")
async def get_timezone() -> Struct:
    """Return the name of the guest's time zone now, and its offset from UTC in seconds."""
    return await in_thread(_timezone)


def _set_system_time(nanoseconds: int) -> None:
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, nanoseconds)
    except OSError as error:
        raise QgaError(f"Failed to set time to guest: {reason(error)}") from error


def _timezone() -> Struct:
    if "TZ" in os.environ:
        local = time.localtime()
        return {"zone": local.tm_zone, "offset": local.tm_gmtoff}
    try:
        # Read anew each time: the C library would go on with what the zone was when the agent started.
        with open(LOCALTIME, "rb") as file:
            zone: datetime.tzinfo = ZoneInfo.from_file(file)
    except FileNotFoundError:
        zone = datetime.timezone.utc
    except ValueError as error:
        raise QgaError(f"Couldn't retrieve local timezone: {LOCALTIME}: {error}") from error
    now = datetime.datetime.now(zone)
    offset = now.utcoffset() or datetime.timedelta()
    return {"zone": now.tzname() or "UTC", "offset": int(offset.total_seconds())}
