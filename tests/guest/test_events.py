"""Events that programs of a real guest tell, while the host comes and goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio

from tests.guest.lab import LOOK_EVERY, READY_TIMEOUT, Attached

COUNT = 1000

#: Tells so many events as one program; the bundle is where its modules are.
TELL = f"""\
from virtagent_guest.local.client import Agent
with Agent() as agent:
    for n in range({COUNT}):
        agent.call("va.notify", "tick", {{"n": n}})
"""


async def told(attached: Attached, name: str) -> list[dict[str, Any]]:
    """Return the events of that name that the journal holds."""
    found: list[dict[str, Any]] = []
    since = 0
    async with attached.lab.client() as client:
        while True:
            held = await client.execute("va_events", since=since, count=1000)
            if not held["events"]:
                return found
            since = held["next"]
            found += [entry for entry in held["events"] if entry.get("event") == name or "lost" in entry]


async def until_told(attached: Attached, name: str, count: int) -> list[dict[str, Any]]:
    with trio.fail_after(READY_TIMEOUT):
        while len(entries := await told(attached, name)) < count:
            await trio.sleep(LOOK_EVERY)
    return entries


async def test_a_thousand_events_come_once_and_in_order_though_the_host_is_away(
    attached: Attached, tmp_path: Path
) -> None:
    lab = attached.lab
    await lab.ready()
    errors, output = tmp_path / "errors", tmp_path / "output"
    words = [
        "events",
        lab.name,
        "--follow",
        "--since",
        "0",
        "--only",
        "tick",
        "--json",
        "--count",
        str(COUNT),
    ]
    with errors.open("w") as stderr, output.open("w") as stdout:
        follower = await trio.lowlevel.open_process(lab.command_line(*words), stdout=stdout, stderr=stderr)
    try:
        await attached.in_guest(f"cat >/run/tell.py <<'END'\n{TELL}END")
        run = "systemd-run --quiet --unit=ev-tick -E PYTHONPATH=/usr/local/bin/va-guest python3 /run/tell.py"
        await attached.in_guest(run)
        await until_told(attached, "tick", 50)
        attached.service.kill()
        # The rest is told while nobody is there.
        await attached.in_guest("while systemctl is-active --quiet ev-tick; do sleep 0.1; done")
        attached.attach()
        await until_told(attached, "tick", 100)
        # Again, in the middle of what has waited.
        attached.service.kill()
        attached.attach()
        entries = await until_told(attached, "tick", COUNT)
        assert not [entry for entry in entries if "lost" in entry]
        assert [entry["data"]["n"] for entry in entries] == list(range(COUNT))
        assert {entry["caller"]["uid"] for entry in entries} == {0}
        with trio.fail_after(READY_TIMEOUT):
            assert await follower.wait() == 0
    finally:
        follower.kill()
    seen = [json.loads(line)["data"]["data"]["n"] for line in output.read_text().splitlines()]
    assert seen == list(range(COUNT)), errors.read_text()
    await lab.ready()


async def test_any_user_may_tell_and_is_named(attached: Attached) -> None:
    await attached.lab.ready()
    await attached.in_guest("runuser -u nobody -- va-guest notify user.says uid=0 user=root")
    (event,) = await until_told(attached, "user.says", 1)
    assert event["caller"]["user"] == "nobody"
    assert event["caller"]["uid"] == int(await attached.in_guest("id -u nobody"))
    assert event["data"] == {"uid": 0, "user": "root"}


async def test_events_outlive_an_agent_that_is_killed(attached: Attached) -> None:
    await attached.lab.ready()
    attached.service.kill()
    try:
        await attached.in_guest("va-guest notify survivor n=1")
        await attached.in_guest("systemctl kill -s KILL va-guest")
        await attached.in_guest("until va-guest notify survivor n=2 2>/dev/null; do sleep 0.2; done")
    finally:
        attached.attach()
    entries = await until_told(attached, "survivor", 2)
    assert [entry["data"]["n"] for entry in entries] == [1, 2]
    assert len({entry["log"] for entry in entries}) == 1
    await attached.lab.ready()
