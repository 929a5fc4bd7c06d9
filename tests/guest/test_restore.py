"""A guest that runs again: after a pause, in another past, out of sleep. Its clock, its entropy, one event.

A VM of its own: whoever loads a snapshot takes everybody else's guest back with it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import trio

from tests.guest.lab import BridgeClient, Lab
from tests.guest.vm import Vm, running_vm

#: Seconds that the VM is stopped.
STOPPED = 5.0
#: Seconds that the clock may be off afterwards.
RIGHT = 1.0


async def monitor(vm: Vm, command: str) -> None:
    """Give a command to QEMU's human monitor, which answers nothing if all is well."""
    answer = await vm.qmp("human-monitor-command", **{"command-line": command})
    assert not answer.strip(), answer


async def resumed(client: BridgeClient) -> dict[str, Any]:
    """Return the one event, and see that the clock is right then."""
    event = await client.event("VA_GUEST_RESUMED")
    before = time.time_ns()
    found = await client.execute("guest-get-time")
    assert before - RIGHT * 1e9 < found < time.time_ns() + RIGHT * 1e9, (event, (found - before) / 1e9)
    # Another one would have come by now, with the answer.
    assert [other for other in client.events if other["event"] == "VA_GUEST_RESUMED"] == []
    assert event["reseeded"] is True, event
    return event


async def test_its_clock_is_right_and_its_kernel_reseeded_when_a_guest_runs_again(tmp_path: Path) -> None:
    async with running_vm(tmp_path) as vm:
        await vm.booted()
        lab = Lab(tmp_path)
        async with lab.attached(vm), lab.client() as client:
            await lab.ready()
            # QEMU stops the VM while it saves.
            await monitor(vm, "savevm before")
            saved_at = time.time()
            assert (await resumed(client))["cause"] == "pause"

            await vm.qmp("stop")
            await trio.sleep(STOPPED)
            await vm.qmp("cont")
            event = await resumed(client)
            assert (event["cause"], event["clock"]) == ("pause", "set")
            assert STOPPED - 0.5 < event["downtime"] < STOPPED + 2
            assert STOPPED - RIGHT < event["clock-step"] < STOPPED + 2

            lost = time.time() - saved_at
            await monitor(vm, "loadvm before")
            event = await resumed(client)
            assert (event["cause"], event["clock"]) == ("restore", "set")
            # Time goes on while it is asked, which may take a busy guest a while.
            assert lost - RIGHT < event["clock-step"] < lost + 15

            # The guest's own clock driver has seen to the time when it wakes up.
            await vm.console("(sleep 0.5; echo mem >/sys/power/state) >/dev/null 2>&1 &")
            await lab.wait("paused")
            await vm.qmp("system_wakeup")
            assert (await resumed(client))["cause"] == "wakeup"
