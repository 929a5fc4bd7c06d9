"""A user of the real guest, with a service manager and a session agent under it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.guest.lab import LOOK_EVERY, READY_TIMEOUT, Attached

PAGE = (Path(__file__).parents[2] / "docs/sessions.md").read_text()
USER = "walter"


async def sessions(attached: Attached) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await attached.lab.succeed("sessions", "--json"))["sessions"]
    return found


async def wait_for_sessions(attached: Attached, count: int) -> list[dict[str, Any]]:
    with trio.fail_after(READY_TIMEOUT):
        while len(found := await sessions(attached)) != count:
            await trio.sleep(LOOK_EVERY)
    return found


@asynccontextmanager
async def logged_in(attached: Attached) -> AsyncIterator[int]:
    """Have a user, with the unit enabled for all, logged in; give the uid."""
    await attached.in_guest(f"id {USER} || useradd --create-home --shell /bin/bash {USER}")
    uid = int(await attached.in_guest(f"id -u {USER}"))
    await attached.in_guest("systemctl --global enable va-guest-session")
    await attached.in_guest(f"loginctl enable-linger {USER}")
    try:
        yield uid
    finally:
        await attached.in_guest(f"loginctl disable-linger {USER}; loginctl terminate-user {USER} || true")
        await attached.in_guest("systemctl --global disable va-guest-session")
        await wait_for_sessions(attached, 0)


async def test_the_unit_makes_a_session_of_a_user_s_login(attached: Attached) -> None:
    async with logged_in(attached) as uid:
        (session,) = await wait_for_sessions(attached, 1)
        assert (session["uid"], session["user"], session["state"]) == (uid, USER, "ready")
        # Where the unit runs, as the kernel says.
        assert session["id"].startswith("user-")
        run = attached.lab.run
        assert (await run("exec", "demo", "--session", str(uid), "--", "id", "-u")).stdout == b"%d\n" % uid
        script = "echo $XDG_RUNTIME_DIR; systemctl --user is-active va-guest-session"
        result = await run("exec", "demo", "--session", session["id"], "--shell", "--", script)
        assert result.stdout == b"/run/user/%d\nactive\n" % uid
        result = await run("viewfile", "demo", "--session", str(uid), "/etc/shadow")
        assert result.status == 1
        assert f"refused: session {session['id']}: open failed" in result.stderr

        # Its manager starts it again, and the agent knows it as another.
        await attached.in_guest(f"kill -9 {session['pid']}")
        with trio.fail_after(READY_TIMEOUT):
            while not (again := await sessions(attached)) or again[0]["pid"] == session["pid"]:
                await trio.sleep(LOOK_EVERY)
        assert again[0]["uid"] == uid
        assert again[0]["id"] != session["id"]

        # The agent itself may be restarted; then it is the session's agent that comes back.
        await attached.in_guest("systemctl restart va-guest")
        await attached.lab.ready()
        await wait_for_sessions(attached, 1)
        assert (await attached.lab.succeed("ping", "--session", str(uid))).startswith("success")


async def test_the_page_s_example_does_what_it_says(attached: Attached) -> None:
    (block,) = re.findall(r"(?ms)^```console\n(.*?)^```$", PAGE)
    commands = re.findall(r"(?m)^\$ (.*)\n((?:(?!\$ ).*\n)*)", block)
    assert len(commands) == 6
    va_host = shlex.join(attached.lab.command_line())
    # The session's number is the first of a new agent's.
    await attached.in_guest("systemctl restart va-guest")
    await attached.lab.ready()
    async with logged_in(attached) as uid:
        await wait_for_sessions(attached, 1)
        await attached.in_guest(f"rm -f /home/{USER}/notes")
        for command, answer in commands:
            here = command.replace("va-host", va_host).replace("--session 1000", f"--session {uid}")
            result = await trio.run_process(
                ["bash", "-c", here], capture_stdout=True, capture_stderr=True, check=False
            )
            printed = (result.stdout + result.stderr).decode()
            expected = re.escape(answer.replace("1000", str(uid))).replace("…", ".*")
            assert re.fullmatch(expected, printed), f"{command}: {printed}"
