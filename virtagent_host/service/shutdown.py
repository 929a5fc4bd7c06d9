"""Graded shutdown: by the gentlest means that works, within one deadline.

The agent powers the guest down. If there is none, or the guest takes too long, ACPI's power button does; if
that does not help either, QEMU is told to quit. Means that are known not to be there take no time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import trio

from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import CallTimeout, LinkBroken, NotReady, VirtagentError
from virtagent_protocol.linkstate import LinkState

from ..commands import CALL_TIMEOUT
from ..qemu.qmp import QmpConnection
from .vm import Vm

log = logging.getLogger("virtagent.host")

#: Seconds until all hope is given up, unless the user says otherwise. A guest with systemd under TCG powers
#: down in about 10 s.
DEADLINE = 90.0
#: When the next means is tried, in parts of the deadline. QEMU quits within a second.
AGENT_UNTIL, ACPI_UNTIL, QUIT_UNTIL = 1 / 2, 8 / 9, 1.0
#: Seconds between two presses of the power button: one that comes before the guest listens for it is lost.
PRESS_EVERY = 5.0


@dataclass(frozen=True)
class _Means:
    """One way to end a VM: what to do, until when (a part of the deadline), and how often (seconds)."""

    name: str
    act: Callable[[Vm, QmpConnection], Awaitable[object]]
    until: float
    again: float = math.inf


@dataclass(frozen=True)
class Step:
    """What came of one means.

    Attributes:
        means: ``agent``, ``acpi`` or ``quit``.
        result: in words.
        seconds: since the beginning of the shutdown.
    """

    means: str
    result: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What came of a shutdown.

    Attributes:
        by: the means that ended QEMU; None: it still runs.
        seconds: how long it took.
        steps: all that was tried, in order.
    """

    by: str | None
    seconds: float
    steps: tuple[Step, ...]


async def shut_down(vm: Vm, qmp: QmpConnection, deadline: float = DEADLINE) -> Outcome:
    """Shut a VM down and return when QEMU is gone, or will not go within *deadline* seconds."""
    start = trio.current_time()
    steps: list[Step] = []
    for means in _MEANS:
        until = deadline * means.until
        ended = False
        try:
            ended = await _try(means, vm, qmp, start + until)
            result = "QEMU has ended" if ended else f"did not end QEMU within {until:.3g} s"
        except VirtagentError as error:
            result = f"{error.kind.value}: {error}"
        took = trio.current_time() - start
        steps.append(Step(means.name, result, round(took, 1)))
        if ended:
            log.info("%s: shut down by %s in %.1f s", vm.name, means.name, took)
            return Outcome(means.name, round(took, 1), tuple(steps))
        log.warning("%s: shutdown by %s: %s", vm.name, means.name, result)
    return Outcome(None, round(trio.current_time() - start, 1), tuple(steps))


async def end_vm(vm: Vm, qmp: QmpConnection, deadline: float) -> dict[str, Any]:
    """Shut a VM down and return what JSON can carry of the outcome: by, seconds, steps.

    Raises:
        CallTimeout: QEMU still runs.
    """
    outcome = await shut_down(vm, qmp, deadline)
    if outcome.by is None:
        steps = "; ".join(f"{step.means}: {step.result}" for step in outcome.steps)
        raise CallTimeout(f"QEMU still runs after {outcome.seconds:g} s: {steps}")
    return {**asdict(outcome), "steps": [asdict(step) for step in outcome.steps]}


async def _try(means: _Means, vm: Vm, qmp: QmpConnection, until: float) -> bool:
    """Return whether QEMU has ended by these means. Raises VirtagentError if they are not to be had."""
    with trio.move_on_at(until):
        while True:
            await means.act(vm, qmp)
            with trio.move_on_after(means.again):
                await qmp.wait_closed()
                return True
    return False


async def _by_agent(vm: Vm, qmp: QmpConnection) -> None:
    status = vm.link.status
    if status.state is not LinkState.READY:
        # Nobody is waited for who is known not to be there.
        raise NotReady(f"{status.state.value}: {status.reason}")
    with call_deadline(CALL_TIMEOUT, "va.shutdown"):
        await vm.call("va.shutdown", "powerdown")


async def _by_acpi(vm: Vm, qmp: QmpConnection) -> None:
    await qmp.execute("system_powerdown")


async def _by_quit(vm: Vm, qmp: QmpConnection) -> None:
    # QEMU may close its monitor before it has answered.
    with suppress(LinkBroken):
        await qmp.execute("quit")


_MEANS = (
    _Means("agent", _by_agent, AGENT_UNTIL),
    _Means("acpi", _by_acpi, ACPI_UNTIL, again=PRESS_EVERY),
    _Means("quit", _by_quit, QUIT_UNTIL),
)
