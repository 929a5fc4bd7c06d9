"""systemd's manager on the bus: names that several sources use, and the request for its signals."""

from __future__ import annotations

from contextlib import suppress

from .bus import Bus, BusRefused, Object

SYSTEMD = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER_INTERFACE = "org.freedesktop.systemd1.Manager"
MANAGER = Object(SYSTEMD, PATH, MANAGER_INTERFACE)


async def subscribe(bus: Bus) -> None:
    """Let systemd send signals to this connection; once is enough, and more does no harm."""
    with suppress(BusRefused):  # another source has done it
        await bus.call(MANAGER, "Subscribe")
