"""The session agent at work: connects to the agent, says that it is one, and serves; again and again.

The rules:

1. It is ready, for systemd, at once: a login must not wait for an agent that has no port, and so does not
   run.
2. Whatever ends the connection, it connects again, after a pause that grows. What is told once is not told
   again.
3. Jobs and all else that its topics keep outlive the connection; they end with the process.
4. It speaks only to root: whoever has put a socket of its own in that place gets nothing out of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import trio

from virtagent_protocol import __version__
from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import Forbidden, VirtagentError
from virtagent_protocol.link import Link
from virtagent_protocol.notify import notify
from virtagent_protocol.nursery import plain_nursery
from virtagent_protocol.text import visible_line
from virtagent_protocol.values import Struct, as_struct, member

from ..ending import end_on_signal
from ..local.client import connect, socket_path
from .methods import run_services, session_methods

log = logging.getLogger("virtagent.session")

#: Seconds before the first and between the last attempts to connect. The agent is back 2 s after a crash.
BACKOFF_MIN, BACKOFF_MAX = 0.1, 10.0
#: Seconds for the agent to let us in.
OPEN_TIME = 10.0


async def serve(path: str | None) -> None:
    """Be the agent of this user's session until a signal ends it.

    Args:
        path: of the agent's socket; None: where it always is.
    """
    async with plain_nursery() as nursery:
        await nursery.start(end_on_signal, nursery.cancel_scope)
        await run_services(nursery)
        notify("READY=1")
        await _serve_forever(path or socket_path())


async def _serve_forever(path: str) -> None:
    pause, told = BACKOFF_MIN, ""
    while True:
        served = False
        try:
            check_owner(path)
            async with connect(path, session_methods(), name=f"va-guest-session {__version__}") as link:
                session = await _open(link)
                served, pause, told = True, BACKOFF_MIN, ""
                log.info("%s: this is session %s", path, session)
                notify("", status=f"session {session}")
                await trio.sleep_forever()
        except VirtagentError as error:
            if str(error) != told:
                told = str(error)
                log.warning("%s; trying again", visible_line(told))
                notify("", status=visible_line(told))
        await trio.sleep(pause)
        if not served:
            pause = min(2 * pause, BACKOFF_MAX)


async def _open(link: Link) -> str:
    with call_deadline(OPEN_TIME, "va.open_session"):
        answer = as_struct(
            await link.call("va.open_session", claims(os.environ)), "the answer to va.open_session"
        )
    return member(answer, "id", str)


def claims(environ: Mapping[str, str]) -> Struct:
    """Return what this process says of its session: nobody relies on it."""
    display = environ.get("WAYLAND_DISPLAY") or environ.get("DISPLAY")
    given = {
        "type": environ.get("XDG_SESSION_TYPE"),
        "display": display,
        "desktop": environ.get("XDG_CURRENT_DESKTOP"),
    }
    return {name: text for name, text in given.items() if text and text.isprintable()}


def check_owner(path: str) -> None:
    """Check that the socket is root's, or our own, who is no danger to us.

    Raises:
        Forbidden: it is another's. A socket that is not there is for `connect` to tell.
    """
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return
    if owner not in (0, os.geteuid()):
        raise Forbidden(f"{path} belongs to uid {owner}, not to root: what answers there is not the agent")
