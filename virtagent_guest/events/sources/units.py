"""unit-failed: systemd calls a unit failed.

A service that systemd starts again by itself has not failed in this sense before systemd gives it up. Units
that had failed before this agent started are no news; how many they are, boot-finished tells.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict

from virtagent_protocol.values import Struct

from .bus import PROPERTIES, Bus, BusRefused, Listener, Object, Signal
from .source import Emit, log, plain
from .systemd import MANAGER, PATH, SYSTEMD, subscribe

UNIT_INTERFACE = "org.freedesktop.systemd1.Unit"
UNITS_PATH = f"{PATH}/unit"
#: Units that are remembered to have failed, to tell each failure once; of more, the oldest are forgotten.
KNOWN_MAX = 1024
#: When a unit came into the state that it failed in; microseconds of the monotonic clock.
_WHEN = "InactiveEnterTimestampMonotonic"

_ESCAPE = re.compile("_([0-9a-f]{2})")


def unit_name(path: str) -> str:
    """Return the name of the unit with this object path: what is no letter or digit is escaped in there."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), path.rpartition("/")[2])


class UnitListener(Listener):
    """Tells of units that fail.

    Args:
        emit: puts the events.
        since: microseconds of the monotonic clock; what failed earlier is no news.
    """

    events = "unit-failed"
    services = (SYSTEMD,)
    # Every change of every unit's state comes, but of the properties that all kinds of units share only.
    rules = (
        f"sender='{SYSTEMD}',interface='{PROPERTIES}',member='PropertiesChanged',"
        f"path_namespace='{UNITS_PATH}',arg0='{UNIT_INTERFACE}'",
    )

    def __init__(self, emit: Emit, since: int | None = None) -> None:
        self._emit = emit
        self._since = time.monotonic_ns() // 1000 if since is None else since
        #: Path of a unit that has failed → when it last did.
        self._failed: OrderedDict[str, int] = OrderedDict()

    async def begin(self, bus: Bus, service: str) -> None:
        await subscribe(bus)
        (units,) = await bus.call(MANAGER, "ListUnitsByPatterns", "asas", (["failed"], []))
        for path in (unit[6] for unit in units):
            try:
                when = await bus.get(Object(SYSTEMD, path, UNIT_INTERFACE), _WHEN)
            except BusRefused:
                continue  # it is gone meanwhile
            await self._note(bus, path, when)

    async def signal(self, bus: Bus, signal: Signal) -> None:
        if (signal.interface, signal.member) != (PROPERTIES, "PropertiesChanged"):
            return
        interface, changed, _ = signal.body
        if interface != UNIT_INTERFACE or "ActiveState" not in changed:
            return
        if changed["ActiveState"][1] == "failed":
            await self._note(bus, signal.path, changed[_WHEN][1])

    async def _note(self, bus: Bus, path: str, when: int) -> None:
        # systemd repeats the state whenever anything else of the unit changes. And a signal may have waited
        # while `begin` asked: then it tells what is known already.
        if when <= self._failed.get(path, -1):
            return
        self._failed[path] = when
        self._failed.move_to_end(path)
        if len(self._failed) > KNOWN_MAX:
            self._failed.popitem(last=False)
        if when >= self._since:
            self._emit("unit-failed", await self._data(bus, path))

    async def _data(self, bus: Bus, path: str) -> Struct:
        name = unit_name(path)
        kind = name.rpartition(".")[2]
        own = Object(SYSTEMD, path, f"{SYSTEMD}.{kind.capitalize()}")
        result: str | None = None
        status: int | None = None
        try:
            result = plain(await bus.get(own, "Result"))
            if kind == "service":
                status = await bus.get(own, "ExecMainStatus")
        except BusRefused as error:
            log.debug("%s: %s", name, error)
        return {"unit": plain(name), "result": result, "status": status}
