"""guest-shutdown and guest-suspend-disk, -ram, -hybrid.

On qemu-ga's wire they are not answered when they succeed: whether they did, QEMU tells.
"""

from __future__ import annotations

import os

from ...events.sources.asked import ASKED, HOST
from .command import CommandRegistry, QgaError, in_thread, reason
from .program import exit_status, run_program

registry = CommandRegistry()

#: Mode → the program that does only that, and the option of shutdown(8) where that one is missing.
_SHUTDOWN = {
    "powerdown": ("/sbin/poweroff", "-P"),
    "halt": ("/sbin/halt", "-H"),
    "reboot": ("/sbin/reboot", "-r"),
}
SHUTDOWN = "/sbin/shutdown"
#: What users who are logged in get to read.
MESSAGE = "hypervisor initiated shutdown"

SYS_STATE = "/sys/power/state"
#: Exit statuses of `systemctl status` for a unit that there is and that does not run (LSB).
_UNIT_EXISTS = range(1, 4)


@registry.command("guest-shutdown", success_response=False)
async def shutdown(mode: str = "powerdown") -> None:
    """Shut the guest down: mode is "powerdown", "halt" or "reboot". That it ends well is not promised."""
    if mode not in _SHUTDOWN:
        # qemu-ga's words: it never closes that bracket.
        raise QgaError("mode is invalid (valid values are: halt|powerdown|reboot")
    program, option = _SHUTDOWN[mode]
    command = [program] if os.access(program, os.X_OK) else [SHUTDOWN, "-h", option, "+0", MESSAGE]
    ASKED.note(HOST, mode)
    try:
        await run_program(command, "shutdown")
    except QgaError:
        ASKED.take_back()
        raise


@registry.command("guest-suspend-disk", success_response=False)
async def suspend_disk() -> None:
    """Save the guest's memory to its disk and power it down: by systemd, pm-utils or the kernel itself."""
    await _suspend("hibernate", "systemd-hibernate", "hibernate", "disk")


@registry.command("guest-suspend-ram", success_response=False)
async def suspend_ram() -> None:
    """Suspend the guest, its memory kept: by systemd, pm-utils or the kernel itself."""
    await _suspend("suspend", "systemd-suspend", "suspend", "mem")


@registry.command("guest-suspend-hybrid", success_response=False)
async def suspend_hybrid() -> None:
    """Save the guest's memory to its disk, then suspend it: by systemd or pm-utils."""
    await _suspend("hybrid-sleep", "systemd-hybrid-sleep", "suspend-hybrid", None)


async def _suspend(verb: str, unit: str, pm_name: str, kernel_word: str | None) -> None:
    """Try each way that this guest has, until one works.

    Args:
        verb: of systemctl.
        unit: that does it.
        pm_name: name of the pm-utils program, without ``pm-``, and of the question whether it works.
        kernel_word: for /sys/power/state; None: the kernel alone cannot do it.

    Raises:
        QgaError: of the last way, or that there is none.
    """
    failure: QgaError | None = None
    if await exit_status(["systemctl", "status", unit]) in _UNIT_EXISTS:
        failure = await _failure_of(["systemctl", verb])
        if failure is None:
            return
    if await exit_status(["pm-is-supported", f"--{pm_name}"]) == 0:
        failure = await _failure_of([f"pm-{pm_name}"])
        if failure is None:
            return
    if kernel_word is not None and await in_thread(_kernel_knows, kernel_word):
        failure = await in_thread(_tell_kernel, kernel_word)
        if failure is None:
            return
    raise failure or QgaError("the requested suspend mode is not supported by the guest")


async def _failure_of(command: list[str]) -> QgaError | None:
    status = await exit_status(command)
    if status == 0:
        return None
    name = " ".join(command)
    if status is None:
        return QgaError(f"the helper program '{name}' was not found")
    return QgaError(f"the helper program '{name}' returned an unexpected exit status code ({status})")


def _kernel_knows(word: str) -> bool:
    try:
        with open(SYS_STATE, encoding="ascii") as file:
            return word in file.read().split()
    except OSError:
        return False


def _tell_kernel(word: str) -> QgaError | None:
    try:
        with open(SYS_STATE, "w", encoding="ascii") as file:
            file.write(word)
    except OSError as error:
        return QgaError(f"suspend: cannot write to '{SYS_STATE}': {reason(error)}")
    return None
