"""The bridge with a real guest behind it: several clients at once, while QEMU has its own things to say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import trio
from qemu.qmp import QMPClient

from tests.guest.lab import Attached

#: Seconds for anything here.
DEADLINE = 60.0
#: How often the one client stops and continues the VM.
ROUNDS = 20


async def test_two_clients_get_their_own_replies_while_events_flow(attached: Attached) -> None:
    lab = attached.lab
    others: list[dict[str, Any]] = []

    async with lab.client() as client:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                finished = trio.Event()

                async def stop_and_continue() -> None:
                    others.extend(await trio.to_thread.run_sync(_stop_and_continue, lab.bridge))
                    finished.set()

                nursery.start_soon(stop_and_continue)
                answers = 0
                # BridgeClient checks the id of every reply. Ours and QEMU's in turn; some meet a stopped VM.
                while not finished.is_set():
                    ping = await client.execute("va_ping", timeout=DEADLINE)
                    assert ping["status"] == "success"
                    file = await client.execute("va_viewfile", filepath="/etc/hostname", timeout=DEADLINE)
                    assert file["content"] == "virtagent-guest\n"
                    assert (await client.execute("query-version"))["qemu"]["major"] > 0
                    answers += 1
        assert answers > 0
        # All that happened to the VM was told to the one that did not do it, in order.
        await client.execute("query-status")
        seen = [_short(event) for event in client.events]
    expected = ["STOP", "VA paused", "RESUME", "VA ready"] * ROUNDS
    assert [word for word in seen if word in expected] == expected

    for round_ in others:
        assert round_["stopped"] == "paused", round_
        assert round_["status while stopped"] == "paused", round_
        assert round_["status after"] == "ready", round_
        assert round_["ping after"] == "success", round_
    assert len(others) == ROUNDS
    assert (await lab.ready())["state"] == "ready"


def _stop_and_continue(bridge: Path) -> list[dict[str, Any]]:
    """Do so with the library that most programs use for QMP; it runs on asyncio only."""

    async def session() -> list[dict[str, Any]]:
        client = QMPClient("test")
        await client.connect(str(bridge))
        rounds = []
        try:
            for _ in range(ROUNDS):
                await client.execute("stop")
                stopped: Any = await client.execute("query-status")
                while_stopped: Any = await client.execute("va_status")
                await client.execute("cont")
                after: Any = await client.execute("va_status")
                ping: Any = await client.execute("va_ping", {"timeout": DEADLINE})
                rounds.append(
                    {
                        "stopped": stopped["status"],
                        "status while stopped": while_stopped["state"],
                        "status after": after["state"],
                        "ping after": ping["status"],
                    }
                )
        finally:
            await client.disconnect()
        return rounds

    return asyncio.run(asyncio.wait_for(session(), DEADLINE))


def _short(event: dict[str, Any]) -> str:
    name = str(event["event"])
    return f"VA {event['data']['state']}" if name == "VA_STATE_CHANGE" else name


async def test_our_commands_stand_beside_those_of_qemu(attached: Attached) -> None:
    async with attached.lab.client() as client:
        names = [command["name"] for command in await client.execute("query-commands")]
        assert {"va_ping", "va_status", "va_shutdown", "query-status", "device_add"} <= set(names)
        assert len(names) == len(set(names))
        chardevs = {info["label"]: info for info in await client.execute("query-chardev")}
        assert chardevs["virtagent"]["frontend-open"] is True


async def test_the_human_monitor_prompt_speaks_to_agent_and_qemu(attached: Attached) -> None:
    typed = b"agent_ping\ninfo status\nva_viewfile /etc/hostname\n"
    result = await attached.lab.run("monitor", "demo", stdin=typed)
    assert (result.status, result.stderr) == (0, "")
    lines = result.stdout.decode().splitlines()
    assert "status: success" in lines
    assert "VM status: running" in lines
    assert lines[-1] == "virtagent-guest"
