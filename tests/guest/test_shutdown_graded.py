"""`va-host shutdown --deadline` on a real guest: the gentlest means that works, in time, and said which."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.guest.lab import COMMAND_TIMEOUT, Lab
from tests.guest.vm import BOOT_TIMEOUT, Vm, running_vm

#: Seconds for a guest that does shut down. It takes 10 with TCG, several times that on a busy machine.
ENOUGH = 150
#: Seconds for a guest that does not: until QEMU is told to quit.
SHORT = 18


async def shut_down(lab: Lab, deadline: int) -> dict[str, Any]:
    """Shut down with a deadline, and return what was said."""
    arguments = ("--deadline", str(deadline), "--json")
    outcome = json.loads(await lab.succeed("shutdown", *arguments, timeout=deadline + COMMAND_TIMEOUT))
    assert isinstance(outcome, dict)
    return outcome


def tried(outcome: dict[str, Any]) -> list[str]:
    return [step["means"] for step in outcome["steps"]]


async def stop_agent(vm: Vm, lab: Lab) -> None:
    await vm.console("systemctl stop va-guest")
    await lab.wait("port-closed")


async def test_the_agent_does_it_where_there_is_one(tmp_path: Path) -> None:
    async with running_vm(tmp_path) as vm:
        await vm.booted()
        lab = Lab(tmp_path)
        async with lab.attached(vm) as service:
            await lab.ready()
            outcome = await shut_down(lab, ENOUGH)
            assert (outcome["by"], tried(outcome)) == ("agent", ["agent"])
            assert 0 < outcome["seconds"] <= ENOUGH / 2
            assert await service.ended() == 0
            assert await vm.wait_exit(5) == 0
        assert "demo: shut down by agent in " in service.said


async def test_acpi_does_it_at_once_where_the_agent_is_known_to_be_absent(tmp_path: Path) -> None:
    async with running_vm(tmp_path) as vm:
        # Before that, logind would miss it.
        await vm.wait_for_log("(Power Button)", timeout=BOOT_TIMEOUT)
        await vm.booted()
        lab = Lab(tmp_path)
        async with lab.attached(vm):
            await lab.ready()
            await stop_agent(vm, lab)
            outcome = await shut_down(lab, ENOUGH)
            assert (outcome["by"], tried(outcome)) == ("acpi", ["agent", "acpi"])
            absent = outcome["steps"][0]
            assert absent["result"].startswith("not ready: port-closed: ")
            assert absent["seconds"] < 1
            assert await vm.wait_exit(5) == 0


async def test_quit_does_it_in_time_where_the_guest_does_not_shut_down(tmp_path: Path) -> None:
    async with running_vm(tmp_path) as vm:
        await vm.booted()
        lab = Lab(tmp_path)
        async with lab.attached(vm):
            await lab.ready()
            # Agent and logind do as they are told, and nothing comes of it.
            masked = await vm.console("systemctl mask --runtime poweroff.target && systemctl daemon-reload")
            assert masked.status == 0, masked
            started = time.monotonic()
            outcome = await shut_down(lab, SHORT)
            assert time.monotonic() - started < SHORT + 3  # the CLI's own time
            assert (outcome["by"], tried(outcome)) == ("quit", ["agent", "acpi", "quit"])
            assert SHORT / 2 < outcome["seconds"] <= SHORT
            assert outcome["steps"][0]["result"] == f"did not end QEMU within {SHORT / 2:g} s"
            assert await vm.wait_exit(5) == 0


async def test_quit_does_it_where_there_is_neither_agent_nor_logind(tmp_path: Path) -> None:
    async with running_vm(tmp_path) as vm:
        await vm.booted()
        lab = Lab(tmp_path)
        async with lab.attached(vm):
            await lab.ready()
            await vm.console("systemctl mask --runtime --now systemd-logind")
            await stop_agent(vm, lab)
            outcome = await shut_down(lab, SHORT)
            assert (outcome["by"], tried(outcome)) == ("quit", ["agent", "acpi", "quit"])
            assert outcome["seconds"] <= SHORT
            assert await vm.wait_exit(5) == 0
