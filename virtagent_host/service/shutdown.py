"""Graded shutdown: by the gentlest means that works, within one deadline.

The agent powers the guest down. If there is none, or the guest takes too long, ACPI's power button does; if
that does not help either, QEMU is told to quit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import VirtagentError

from ..commands import CALL_TIMEOUT
from ..qemu.qmp import QmpConnection
from .vm import Vm

log = logging.getLogger("virtagent.host")

#: Seconds until ACPI is tried, QEMU is told to quit, and all hope is given up.
#: A guest with systemd under TCG powers down in about 10 s.
AGENT_UNTIL, ACPI_UNTIL, QUIT_UNTIL = 45.0, 80.0, 90.0
#: Seconds between two presses of the power button: one that comes before the guest listens for it is lost.
PRESS_EVERY = 5.0


@dataclass(frozen=True)
class _Means:
    """One way to end a VM: what to do, until when to wait, and how often to do it again (seconds)."""

    name: str
    act: Callable[[Vm, QmpConnection], Awaitable[object]]
    until: float
    again: float = math.inf


async def shut_down(vm: Vm, qmp: QmpConnection) -> str:
    """Shut a VM down and return when QEMU is gone, or will not go within QUIT_UNTIL seconds.

    Returns:
        ``"agent"``, ``"acpi"``, ``"quit"``, or ``"nothing"`` if QEMU still runs.
    """
    start = trio.current_time()
    for means in _MEANS:
        try:
            ended = await _try(means, vm, qmp, start)
        except VirtagentError as error:
            log.info("%s: shutdown by %s: %s: %s", vm.name, means.name, error.kind.value, error)
            continue
        if ended:
            log.info("%s: shut down by %s in %.1f s", vm.name, means.name, trio.current_time() - start)
            return means.name
        log.warning("%s: shutdown by %s did not end QEMU within %g s", vm.name, means.name, means.until)
    return "nothing"


async def _try(means: _Means, vm: Vm, qmp: QmpConnection, start: float) -> bool:
    """Return whether QEMU has ended by these means. Raises VirtagentError if they are not to be had."""
    with trio.move_on_at(start + means.until):
        while True:
            await means.act(vm, qmp)
            with trio.move_on_after(means.again):
                await qmp.wait_closed()
                return True
    return False


async def _by_agent(vm: Vm, qmp: QmpConnection) -> None:
    with call_deadline(CALL_TIMEOUT, "va.shutdown"):
        await vm.call("va.shutdown", "powerdown")


async def _by_acpi(vm: Vm, qmp: QmpConnection) -> None:
    await qmp.execute("system_powerdown")


async def _by_quit(vm: Vm, qmp: QmpConnection) -> None:
    await qmp.execute("quit")


_MEANS = (
    _Means("agent", _by_agent, AGENT_UNTIL),
    _Means("acpi", _by_acpi, ACPI_UNTIL, again=PRESS_EVERY),
    _Means("quit", _by_quit, QUIT_UNTIL),
)
