"""`va-host doctor` on a real guest: what only a guest's driver, udev and agent can do wrong."""

from __future__ import annotations

import json
from typing import Any

from tests.guest.lab import Attached

IN_THE_GUEST = "in the guest: "


async def diagnose(attached: Attached, *target: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the doctor on the VM, or on *target*; return its exit status and what it found, by check."""
    result = await attached.lab.run("doctor", *(target or [attached.lab.name]), "--json")
    assert not result.stderr, result
    return result.status, {row["check"]: row for row in json.loads(result.stdout)}


async def failure(attached: Attached, check: str, status: int) -> dict[str, Any]:
    """Run the doctor, who must find that *check* is the first that does not hold, and return its finding."""
    ended, findings = await diagnose(attached)
    names = list(findings)
    assert ended == status, findings
    assert findings[check]["holds"] is False, findings
    after = names[names.index(check) + 1 :]
    assert all(findings[name]["holds"] for name in names[: names.index(check)]), findings
    assert all(findings[name]["finding"] == "not looked at" for name in after), findings
    return findings[check]


async def follow(attached: Attached, finding: dict[str, Any]) -> None:
    """Do in the guest what the first line of a remedy says."""
    line = str(finding["remedy"]).splitlines()[0]
    assert line.startswith(IN_THE_GUEST), line
    await attached.in_guest(line.removeprefix(IN_THE_GUEST))


async def test_of_a_link_that_works_everything_holds(attached: Attached) -> None:
    status, findings = await diagnose(attached)
    assert status == 0
    assert all(finding["holds"] is True for finding in findings.values()), findings
    assert findings["agent"]["finding"].startswith("va-guest ")
    text = await attached.lab.succeed("doctor")
    assert [line.split()[:2] for line in text.splitlines()] == [["✓", check] for check in findings]


async def test_from_another_monitor_all_is_seen_but_agent_and_session(attached: Attached) -> None:
    status, findings = await diagnose(attached, "--qmp", str(attached.vm.qmp_path2))
    assert status == 0
    assert f"va-host 'demo' (pid {attached.service.pid})" in findings["chardev"]["finding"]
    unseen = [check for check, finding in findings.items() if finding["holds"] is None]
    assert unseen == ["agent", "session", "policy"]
    assert findings["agent"]["remedy"].endswith(" doctor demo")


async def test_a_port_that_no_agent_has_opened_is_found(attached: Attached) -> None:
    await attached.in_guest("systemctl stop va-guest")
    await attached.lab.wait("port-closed")
    finding = await failure(attached, "opened", 4)
    assert "nobody in the guest has opened the port" in finding["finding"]
    await follow(attached, finding)
    await attached.lab.ready()
    assert (await diagnose(attached))[0] == 0


async def test_a_guest_without_virtio_console_is_told_from_one_without_agent(attached: Attached) -> None:
    await attached.in_guest("systemctl stop va-guest && modprobe -r virtio_console")
    await attached.lab.wait("port-closed")
    finding = await failure(attached, "driver", 4)
    assert "no virtio_console driver drives it" in finding["finding"]
    # With its port the agent comes back by itself, through udev.
    await follow(attached, finding)
    await attached.lab.ready()


async def test_a_program_that_is_no_agent_on_the_port_is_found(attached: Attached) -> None:
    sleeper = "exec sleep 1000 <>/dev/virtio-ports/org.qemu.virtagent"
    await attached.in_guest(f"systemctl stop va-guest; systemd-run --unit=sleeper sh -c '{sleeper}'")
    await attached.lab.wait("greeting")
    finding = await failure(attached, "agent", 4)
    assert "no agent answers" in finding["finding"]
    await attached.in_guest("systemctl stop sleeper; systemctl start va-guest")
    await attached.lab.ready()


async def test_a_guest_that_is_stopped_is_found_and_the_remedy_continues_it(attached: Attached) -> None:
    await attached.vm.qmp("stop")
    finding = await failure(attached, "running", 4)
    assert "state 'paused'" in finding["finding"]
    assert finding["remedy"].endswith(" qmp demo cont")
    assert (await attached.lab.run("qmp", "demo", "cont")).status == 0
    await attached.lab.ready()
