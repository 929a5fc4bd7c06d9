"""Which display the session has: as its environment says, else as the user's manager knows by now.

A session agent that is started at login is there before the display is. What starts a desktop tells the
manager of the user's units (``systemctl --user import-environment``), but cannot tell processes that run.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping

import trio

log = logging.getLogger("virtagent.session")

#: What is taken over.
VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY")
#: Seconds for the manager to answer.
ANSWER_TIME = 5.0


async def display_environ() -> Mapping[str, str]:
    """Return the environment, with the variables of a display in it if they can be found out."""
    if not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        found = parse(await _manager())
        # For libraries that look there themselves.
        os.environ.update(found)
        if found:
            log.info("the user's manager knows of a display: %s", ", ".join(map("=".join, found.items())))
    return os.environ


def parse(output: bytes) -> dict[str, str]:
    """Return what is to be taken over of what ``systemctl --user show-environment`` prints."""
    found = {}
    for line in output.decode(errors="surrogateescape").splitlines():
        name, equals, value = line.partition("=")
        # A value that it has quoted holds something that no display's does.
        if equals and name in VARIABLES and value and not value.startswith(("$'", '"')):
            found[name] = value
    return found


async def _manager() -> bytes:
    try:
        with trio.move_on_after(ANSWER_TIME):
            command = ["systemctl", "--user", "show-environment"]
            done = await trio.run_process(
                command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
            )
            return done.stdout if done.returncode == 0 else b""
    except OSError as error:
        log.debug("systemctl: %s", error)
    return b""
