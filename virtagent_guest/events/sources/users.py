"""user-logged-in and user-logged-out: a session of a user begins or ends, as logind says.

A session is a login on a console, by ssh, on a desktop. What is none of a person's (cron's, a greeter's, the
service manager's of a user) is not told. Sessions that began before this agent are known to it, and only
their end is told.
"""

from __future__ import annotations

import time
from typing import Any

from virtagent_protocol.values import Struct

from .bus import Bus, BusRefused, Listener, Object, Signal
from .source import Emit, log, plain

LOGIND = "org.freedesktop.login1"
LOGIND_PATH = "/org/freedesktop/login1"
LOGIND_INTERFACE = "org.freedesktop.login1.Manager"
SESSION_INTERFACE = "org.freedesktop.login1.Session"
MANAGER = Object(LOGIND, LOGIND_PATH, LOGIND_INTERFACE)


def session_data(properties: dict[str, Any]) -> Struct | None:
    """Return the data of the events of a session, or None if it is not a user's own.

    Args:
        properties: as `Bus.get_all` gives them.
    """
    # "user", "user-early", "user-light", … are; "manager", "background", "greeter", "lock-screen" are not.
    if not properties["Class"].startswith("user"):
        return None
    return {
        "session": plain(properties["Id"]),
        "user": plain(properties["Name"]),
        "uid": properties["User"][0],
        "type": plain(properties["Type"]),
        "tty": plain(properties["TTY"]),
        "service": plain(properties["Service"]),
        "remote-host": plain(properties["RemoteHost"]),
    }


class UserListener(Listener):
    """Tells of sessions.

    Args:
        emit: puts the events.
        since: microseconds of the monotonic clock; sessions that are older are no news.
    """

    events = "user-logged-in, user-logged-out"
    services = (LOGIND,)
    rules = tuple(
        f"sender='{LOGIND}',interface='{LOGIND_INTERFACE}',member='{member}'"
        for member in ("SessionNew", "SessionRemoved")
    )

    def __init__(self, emit: Emit, since: int | None = None) -> None:
        self._emit = emit
        self._since = time.monotonic_ns() // 1000 if since is None else since
        #: Path of the session → its data; None for those that are not told. logind bounds their number.
        self._known: dict[str, Struct | None] = {}

    async def begin(self, bus: Bus, service: str) -> None:
        (sessions,) = await bus.call(MANAGER, "ListSessions")
        paths = [session[4] for session in sessions]
        for path in set(self._known).difference(paths):
            self._removed(path)
        for path in paths:
            await self._new(bus, path)

    async def signal(self, bus: Bus, signal: Signal) -> None:
        if signal.interface != LOGIND_INTERFACE:
            return
        if signal.member == "SessionNew":
            await self._new(bus, signal.body[1])
        elif signal.member == "SessionRemoved":
            self._removed(signal.body[1])

    async def _new(self, bus: Bus, path: str) -> None:
        if path in self._known:
            return
        try:
            properties = await bus.get_all(Object(LOGIND, path, SESSION_INTERFACE))
        except BusRefused as error:
            # It has ended meanwhile.
            log.debug("%s: %s", path, error)
            return
        data = self._known[path] = session_data(properties)
        if data is not None and properties["TimestampMonotonic"] >= self._since:
            self._emit("user-logged-in", data)

    def _removed(self, path: str) -> None:
        data = self._known.pop(path, None)
        if data is not None:
            self._emit("user-logged-out", data)
