"""shutdown-begun: the guest shuts down or reboots, now.

The first of these signs counts: logind prepares for a shutdown (it may wait then for those who asked it to, 5
s at most by default), or systemd begins to start a target that ends everything, as it does without logind. A
shutdown that is planned for later has not begun. Nobody is told of one that goes past systemd (``reboot
-f``).
"""

from __future__ import annotations

import math

import trio

from virtagent_protocol.values import Struct

from .asked import ASKED, Asked
from .bus import Bus, Listener, Signal
from .button import watch_buttons
from .source import Emit
from .systemd import MANAGER, MANAGER_INTERFACE, SYSTEMD, subscribe
from .users import LOGIND, LOGIND_INTERFACE
from .users import MANAGER as LOGIND_MANAGER

#: What systemd starts → mode, as in `va.shutdown`.
TARGETS = {
    "poweroff.target": "powerdown",
    "reboot.target": "reboot",
    "halt.target": "halt",
    "kexec.target": "kexec",
    "soft-reboot.target": "soft-reboot",
}
#: What logind calls them, from version 255 on.
_TYPES = {target.removesuffix(".target"): mode for target, mode in TARGETS.items()}
#: Mode if nobody has told it in time.
UNKNOWN = "unknown"
#: Seconds that are waited for systemd's sign, which tells the mode, after logind's, which may not.
MODE_TIME = 1.0
#: Seconds in which all signs are of one shutdown. Without logind, nobody tells that one came to nothing.
ONCE_TIME = 120.0


class ShutdownListener(Listener):
    """Tells of the beginning.

    Args:
        emit: puts the event.
        asked: who was seen to ask for it.
    """

    events = "shutdown-begun"
    services = (LOGIND, SYSTEMD)
    rules = (
        *(
            f"sender='{SYSTEMD}',interface='{MANAGER_INTERFACE}',member='JobNew',arg2='{target}'"
            for target in TARGETS
        ),
        *(
            f"sender='{LOGIND}',interface='{LOGIND_INTERFACE}',member='{member}'"
            for member in ("PrepareForShutdown", "PrepareForShutdownWithMetadata")
        ),
    )

    def __init__(self, emit: Emit, asked: Asked = ASKED) -> None:
        self._emit = emit
        self._asked = asked
        self._told_at = -math.inf
        #: Whether logind's sign was seen, and the mode is waited for.
        self._pending = False
        self._buttons = trio.CancelScope()

    async def begin(self, bus: Bus, service: str) -> None:
        if service == SYSTEMD:
            await subscribe(bus)
            # It may have begun already, with an agent that was just started.
            if await bus.get(MANAGER, "SystemState") == "stopping":
                (jobs,) = await bus.call(MANAGER, "ListJobs")
                self._tell(next((TARGETS[unit] for _, unit, *_ in jobs if unit in TARGETS), UNKNOWN))
        else:
            # logind reads the power button, so it is there now.
            self._buttons.cancel()
            self._buttons = trio.CancelScope()
            bus.nursery.start_soon(self._watch_buttons, self._buttons)
            if await bus.get(LOGIND_MANAGER, "PreparingForShutdown"):
                self._prepared(bus, True, None)

    async def signal(self, bus: Bus, signal: Signal) -> None:
        if signal.member == "JobNew" and signal.body[2] in TARGETS:
            self._tell(TARGETS[signal.body[2]])
        elif signal.member == "PrepareForShutdown":
            self._prepared(bus, signal.body[0], None)
        elif signal.member == "PrepareForShutdownWithMetadata":
            _, kind = signal.body[1].get("type", ("s", None))
            self._prepared(bus, signal.body[0], _TYPES.get(kind))

    async def _watch_buttons(self, scope: trio.CancelScope) -> None:
        with scope:
            await watch_buttons(self._asked)

    def _prepared(self, bus: Bus, begins: bool, mode: str | None) -> None:
        if not begins:
            # It came to nothing; the next one is another.
            self._end_waiting()
            self._told_at = -math.inf
            return
        mode = mode or self._asked.last()[1]
        if mode is not None:
            self._tell(mode)
        elif not self._pending and not self._told():
            self._pending = True
            bus.nursery.start_soon(self._wait)

    async def _wait(self) -> None:
        try:
            await trio.sleep(MODE_TIME)
        finally:
            # Also if the bus, or this agent, ends first.
            self._end_waiting()

    def _end_waiting(self) -> None:
        if self._pending:
            self._tell(UNKNOWN)

    def _told(self) -> bool:
        return trio.current_time() - self._told_at < ONCE_TIME

    def _tell(self, mode: str) -> None:
        self._pending = False
        if self._told():
            return
        self._told_at = trio.current_time()
        data: Struct = {"mode": mode, "by": self._asked.last()[0]}
        self._emit("shutdown-begun", data)
