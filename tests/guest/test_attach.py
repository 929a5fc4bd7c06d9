"""`va-host attach` on real QEMUs and guests: where the port comes from, and who may have it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.guest.lab import Attached, BridgeError, Lab
from tests.guest.vm import running_vm

#: Seconds for a guest with systemd to end.
POWERDOWN_TIMEOUT = 90


async def test_a_port_is_hot_plugged_and_udev_starts_the_agent(attached: Attached) -> None:
    hello = attached.first_hello
    assert hello["name"] == "demo"
    assert hello["agent"].startswith("va-guest ")
    assert hello["rebooted"] is False
    status = await attached.lab.ready()
    assert (status["chardev"], status["port"]) == ("virtagent", "virtagent-port")
    assert await attached.in_guest("systemctl is-active va-guest") == "active\n"
    controller = {"path": "/machine/peripheral/virtagent-serial", "property": "ioeventfd"}
    kvm = await attached.vm.qmp("query-kvm")
    assert await attached.vm.qmp("qom-get", **controller) is kvm["enabled"]


async def test_an_agents_start_and_end_are_seen_on_the_bridge(attached: Attached) -> None:
    async with attached.lab.client() as watcher:
        await attached.in_guest("systemctl stop va-guest")
        await watcher.event("VA_STATE_CHANGE", state="port-closed")
        await attached.in_guest("systemctl start va-guest")
        # "greeting" may be left out: QEMU limits the rate of VSERPORT_CHANGE, so hello may overtake it.
        change = await watcher.event("VA_STATE_CHANGE", state="ready")
        assert "said hello" in change["reason"]
        await watcher.event("VA_GUEST_HELLO", rebooted=False)


async def test_the_agent_is_called_through_the_command_line(attached: Attached) -> None:
    lab = attached.lab
    assert "state: ready" in await lab.succeed("status")
    assert (await lab.succeed("ping")).startswith("success (")
    capabilities = json.loads(await lab.succeed("capabilities", "--json"))
    assert capabilities["agent"].startswith("va-guest ")
    wanted = {"va.ping", "va.capabilities", "va.shutdown", "va.getfile", "va.getdmesg", "system.listMethods"}
    assert wanted <= set(capabilities["methods"])
    assert await lab.succeed("viewfile", "/etc/hostname") == "virtagent-guest\n"
    assert "MemTotal:" in await lab.succeed("viewfile", "/proc/meminfo")
    assert "] " in await lab.succeed("viewdmesg")
    listed = await lab.run("list")
    assert listed.stdout.split()[:2] == [b"demo", b"ready"]


async def test_a_killed_va_host_finds_its_port_again(attached: Attached) -> None:
    before = await attached.lab.ready()
    attached.service.kill()
    assert "no VM named 'demo' is attached" in await attached.lab.fail(3, "ping")

    attached.attach()
    after = await attached.lab.ready()
    assert (after["channel"], after["port"]) == (before["channel"], before["port"])
    assert after["session"] != before["session"]
    await attached.lab.succeed("ping")


async def test_a_va_host_that_is_ended_leaves_the_guest_as_it_is(attached: Attached) -> None:
    service = attached.service
    service.send_signal(signal.SIGTERM)
    assert await service.ended() == 0
    assert not attached.lab.bridge.exists()
    assert (await attached.vm.qmp("query-status"))["status"] == "running"

    attached.attach()
    await attached.lab.ready()
    await attached.lab.succeed("detach")
    assert await attached.service.ended() == 0

    attached.attach()
    await attached.lab.ready()
    await attached.lab.succeed("ping")


async def test_a_second_va_host_for_the_same_port_is_refused(attached: Attached, tmp_path: Path) -> None:
    other = Lab(tmp_path, "other")
    # By a monitor of its own it gets as far as the chardev.
    result = await other.run("attach", "--qmp", str(attached.vm.qmp_path2), "--name", "other")
    assert result.status == 4, result
    assert "not ready: another program is connected to chardev 'virtagent'" in result.stderr
    assert "--runtime-dir" in result.stderr

    result = await other.run("attach", "--qmp", str(attached.vm.qmp_path), "--name", "other")
    assert result.status == 4, result
    assert str(attached.vm.qmp_path) in result.stderr

    result = await attached.lab.run("attach", "--qmp", str(attached.vm.qmp_path2), "--name", "demo")
    assert result.status == 1, result
    assert "VM 'demo' is served by another va-host" in result.stderr

    await attached.lab.succeed("ping")


async def test_a_q35_without_a_free_root_port_is_told_what_to_add(tmp_path: Path) -> None:
    async with running_vm(tmp_path, machine="q35") as vm:
        result = await Lab(tmp_path).run("attach", "--qmp", str(vm.qmp_path), "--name", "demo")
        assert (result.status, result.stdout) == (3, b""), result
        assert "does not support hotplugging" in result.stderr
        assert "-device virtio-serial" in result.stderr
        assert "-device pcie-root-port" in result.stderr
        labels = {chardev["label"] for chardev in await vm.qmp("query-chardev")}
        assert "virtagent" not in labels
        assert (await vm.qmp("query-status"))["running"]


async def test_a_q35_with_a_free_root_port_is_attached_to_and_powered_down(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with running_vm(
        tmp_path, machine="q35", extra=["-device", "pcie-root-port,id=free,chassis=1"]
    ) as vm:
        await vm.booted()
        async with lab.attached(vm) as service:
            await lab.ready()
            await lab.succeed("ping")
            await lab.succeed("shutdown", "powerdown")
            assert await vm.wait_exit(POWERDOWN_TIMEOUT) == 0
            assert await service.ended() == 0
            assert "QEMU has ended (guest-shutdown)" in service.said


async def test_a_port_of_the_command_line_is_used_from_before_the_boot_to_a_halt(tmp_path: Path) -> None:
    # No id for port and controller: QEMU then sends no events about the port.
    path = tmp_path / "theirs.sock"
    extra = [
        *("-chardev", f"socket,id=theirs,path={path},server=on,wait=off"),
        *("-device", "virtio-serial", "-device", "virtserialport,chardev=theirs,name=org.qemu.virtagent"),
    ]
    lab = Lab(tmp_path)
    async with running_vm(tmp_path, extra=extra) as vm, lab.attached(vm):
        async with lab.client() as watcher:
            # Nobody is there to answer yet, and the answer to that comes at once.
            assert "not ready: greeting: " in await lab.fail(4, "ping")
            await watcher.event("VA_GUEST_HELLO")
        status = await lab.ready()
        assert (status["chardev"], status["channel"]) == ("theirs", str(path))
        await lab.succeed("ping")
        await vm.booted()

        await lab.succeed("shutdown", "halt")
        await vm.wait_for_log("reboot: System halted", timeout=POWERDOWN_TIMEOUT)
        # Halted, not powered off: for QEMU the VM goes on.
        assert (await vm.qmp("query-status"))["status"] == "running"


@pytest.mark.parametrize("mode", ["sleep", "", "HALT"])
async def test_an_unknown_mode_of_shutdown_is_refused(attached: Attached, mode: str) -> None:
    async with attached.lab.client() as client:
        with pytest.raises(BridgeError, match=r"does not accept value .*, only: halt, powerdown, reboot"):
            await client.execute("va_shutdown", shutdown_mode=mode)
        assert (await client.execute("va_status"))["state"] == "ready"
