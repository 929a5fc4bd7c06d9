"""sd_notify(3): telling systemd how the service is.

Own code, since it is one datagram: a dependency would be larger than this module, and libsystemd
need not exist on a guest. There is no watchdog message: a VM that was paused or starved looks, from
inside, just like an agent that hangs, and killing the agent then is the wrong answer.
"""

from __future__ import annotations

import logging
import os
import socket

from .text import visible_line

log = logging.getLogger("virtagent.notify")


def notify(state: str, *, status: str | None = None) -> None:
    """Tell the service manager, if there is one. Never fails: an agent that cannot tell still serves.

    Args:
        state: assignments such as ``READY=1``, or empty.
        status: one line for ``systemctl status``.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # An abstract socket is written with "@" and begins with NUL.
    if address.startswith("@"):
        address = "\0" + address[1:]
    lines = [line for line in (state, f"STATUS={visible_line(status)}" if status else "") if line]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A service manager that does not read must not stop the agent.
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.warning("cannot tell the service manager: %s", error)
