"""va.shutdown: halt, power down or reboot the guest, as its own administrator would."""

from __future__ import annotations

import logging
import os
import subprocess
import threading

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Call, Registry

from ..events.sources.asked import ASKED, HOST

registry = Registry()
log = logging.getLogger("virtagent.power")

SHUTDOWN = "/sbin/shutdown"
#: What users who are logged in get to read (the original's words).
MESSAGE = "hypervisor initiated shutdown"
#: Mode → option of shutdown(8).
MODES = {"halt": "-H", "powerdown": "-P", "reboot": "-r"}


@registry.method("va.shutdown")
async def shutdown(call: Call, mode: str = "powerdown") -> None:
    """Shut the guest down: mode is "halt", "powerdown" or "reboot".

    The reply comes before the shutdown begins; that it ends well is not promised by it.
    """
    if mode not in MODES:
        raise Fault(FaultCode.INVALID_PARAMS, f"no such mode: {mode!r}; the modes are {', '.join(MODES)}")
    # Now, not after the reply: then nobody would hear of it.
    if not os.access(SHUTDOWN, os.X_OK):
        raise Fault(FaultCode.FAILED, f"{SHUTDOWN} is missing in this guest: install it, or use ACPI")
    command = [SHUTDOWN, MODES[mode], "+0", MESSAGE]

    async def after_reply() -> None:
        log.info("the host asked for it: %s", " ".join(command))
        ASKED.note(HOST, mode)
        # A thread, and nothing awaited: a host that closes the channel after the reply cancels this task.
        threading.Thread(target=_run, args=[command], name="shutdown", daemon=True).start()

    call.after_reply.append(after_reply)


def _run(command: list[str]) -> None:
    try:
        # Detached: it must outlive this agent, and nobody may be left to read its output.
        status = subprocess.call(
            command,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        ASKED.take_back()
        log.error("%s did not start: %s", command[0], error)
    else:
        if status:
            ASKED.take_back()
            log.error("%s failed with status %d", " ".join(command), status)
