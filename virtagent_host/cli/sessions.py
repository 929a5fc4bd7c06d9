"""The command that lists the sessions of a guest's users."""

from __future__ import annotations

import time
from typing import Any

import click

from virtagent_protocol.text import visible_line

from ..frontend.output import put, put_json
from ..sessions import TIMEOUT
from .common import Invocation, examples, json_option, timeout_option, vm_argument


@click.command(
    help="""List the agents of users' sessions in the guest; commands take one with --session.

    Each has its id, the user's uid and name, its pid, and when it came; then what it says of itself, which
    nobody has checked. A session has one if va-guest-session.service runs in it.""",
    epilog=examples("va-host sessions demo", "va-host exec demo --session 1000 -- id -u"),
)
@vm_argument()
@timeout_option(TIMEOUT, "How long to wait for the answer.")
@json_option("one JSON object: sessions, an array")
@click.pass_obj
def sessions(invocation: Invocation, name: str | None, timeout: float) -> None:
    from ..frontend.fetch import call

    with invocation.connect(name) as client:
        result = call(client, "va_sessions", {}, timeout)
    if invocation.json:
        put_json(result)
        return
    for session in result["sessions"]:
        put(_line(session))


def _line(session: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(session["since"]))
    # A line of its own in there would look like another session.
    claimed = visible_line(" ".join(session["claimed"].values()))
    user = visible_line(session["user"])
    whose = f"{visible_line(session['id']):<10}  {session['uid']:>7}  {user:<12}  {session['pid']:>7}"
    return f"{whose}  {since}  {session['state']}  {claimed}"


COMMANDS = (sessions,)
