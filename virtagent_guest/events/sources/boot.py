"""boot-finished: systemd has started everything that it had to; once per boot.

If it had before this agent started, that is told at once, unless an agent before it has: it leaves a note in
/run.
"""

from __future__ import annotations

from pathlib import Path

from virtagent_protocol.machine import boot_id
from virtagent_protocol.values import Struct

from .bus import Bus, Listener, Signal
from .source import Emit, log, plain
from .systemd import MANAGER, MANAGER_INTERFACE, SYSTEMD, subscribe

#: Holds the id of the boot that was told of.
NOTE = Path("/run/virtagent/boot-finished")

_MICROSECONDS = 1e6


class BootListener(Listener):
    """Tells of the end of the boot.

    Args:
        emit: puts the event.
        note: as `NOTE`.
    """

    events = "boot-finished"
    services = (SYSTEMD,)
    rules = (f"sender='{SYSTEMD}',interface='{MANAGER_INTERFACE}',member='StartupFinished'",)

    def __init__(self, emit: Emit, note: Path = NOTE) -> None:
        self._emit = emit
        self._note = note
        self._told = False

    async def begin(self, bus: Bus, service: str) -> None:
        await subscribe(bus)
        await self._look(bus)

    async def signal(self, bus: Bus, signal: Signal) -> None:
        if (signal.interface, signal.member) == (MANAGER_INTERFACE, "StartupFinished"):
            await self._look(bus)

    async def _look(self, bus: Bus) -> None:
        # The signal's own figures would do for it alone; these are the same whenever one asks.
        if self._told:
            return
        finished = await bus.get(MANAGER, "FinishTimestampMonotonic")
        if not finished:
            return
        self._told = True
        if self._note_is_there():
            return
        userspace = await bus.get(MANAGER, "UserspaceTimestampMonotonic")
        data: Struct = {
            "seconds": finished / _MICROSECONDS,
            "userspace-seconds": (finished - userspace) / _MICROSECONDS,
            "state": plain(await bus.get(MANAGER, "SystemState")),
            "failed-units": await bus.get(MANAGER, "NFailedUnits"),
        }
        self._emit("boot-finished", data)
        self._leave_note()

    def _note_is_there(self) -> bool:
        try:
            return self._note.read_text() == boot_id()
        except (OSError, UnicodeDecodeError):
            return False

    def _leave_note(self) -> None:
        try:
            self._note.parent.mkdir(mode=0o755, exist_ok=True)
            self._note.write_text(boot_id())
        except OSError as error:
            log.warning("%s: %s: an agent that starts later tells again", self._note, error.strerror)
