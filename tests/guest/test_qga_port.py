"""The port of QEMU's guest agent in a real guest: of qemu-ga, taken over by va-guest, used from the host."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.guest.lab import Lab
from tests.guest.vm import Vm, running_vm

ROOT = Path(__file__).parents[2]
#: Seconds until an agent answers that is just being started.
PATIENCE = 60.0

FILES = {
    "contrib/systemd/va-guest-qga.conf": "/etc/systemd/system/va-guest.service.d/qga.conf",
    "contrib/systemd/99-zz-virtagent-qga.rules": "/etc/udev/rules.d/99-zz-virtagent-qga.rules",
}


def port(directory: Path) -> list[str]:
    """Return the QEMU options that make the port, as libvirt would."""
    return [
        *("-device", "virtio-serial"),
        *("-chardev", f"socket,id=qga,path={directory / 'qga.sock'},server=on,wait=off"),
        *("-device", "virtserialport,id=qga0,chardev=qga,name=org.qemu.guest_agent.0"),
    ]


async def in_guest(vm: Vm, command: str) -> str:
    done = await vm.console(command)
    assert done.status == 0, done
    return done.output


async def ask(directory: Path, command: str, number: int) -> Any:
    """Connect to the port, get in step, give a command, and return the answer."""
    with trio.fail_after(PATIENCE):
        async with await trio.open_unix_socket(str(directory / "qga.sock")) as stream:
            sync = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
            await stream.send_all(b"\xff" + json.dumps(sync).encode() + b"\n")
            await stream.send_all(json.dumps({"execute": command}).encode() + b"\n")
            seen = b""
            while seen.partition(b'\xff{"return": %d}\n' % number)[2].count(b"\n") < 1:
                part = await stream.receive_some()
                assert part, seen
                seen += part
            return json.loads(seen.partition(b'\xff{"return": %d}\n' % number)[2])


async def start_qemu_ga(vm: Vm) -> None:
    # Masked in the image, since the other tests have no use for it.
    await in_guest(vm, "systemctl unmask --quiet qemu-guest-agent && systemctl start qemu-guest-agent")


async def test_a_guest_with_qemu_ga_alone_is_pinged_read_and_shut_down(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with running_vm(tmp_path, extra=port(tmp_path)) as vm:
        await vm.booted()
        async with lab.serving("attach", "--qmp", str(vm.qmp_path), "--agent", "qga"):
            await lab.wait("port-closed")
            await start_qemu_ga(vm)
            status = await lab.ready()
            assert status["agent"].startswith("qemu-ga ")
            assert status["port"] == "qga0"
            assert (await lab.succeed("ping")).startswith("success")
            assert (await lab.succeed("viewfile", "/etc/hostname")) == "virtagent-guest\n"
            assert "] " in await lab.succeed("viewdmesg")
            await in_guest(vm, "systemctl stop qemu-guest-agent")
            await lab.wait("port-closed")
            await in_guest(vm, "systemctl start qemu-guest-agent")
            await lab.ready()
            await lab.succeed("shutdown", "powerdown")
            assert await vm.wait_exit(PATIENCE) == 0


async def test_va_guest_takes_over_the_port_of_qemu_ga(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with running_vm(tmp_path, extra=port(tmp_path)) as vm:
        await vm.booted()
        await start_qemu_ga(vm)
        theirs = await ask(tmp_path, "guest-info", 1)
        assert "agent" not in theirs["return"]

        # As docs/migration-from-qemu-ga.md has it; but not masked yet: starting one stops the other.
        for source, target in FILES.items():
            encoded = base64.b64encode((ROOT / source).read_bytes()).decode()
            await in_guest(vm, f"mkdir -p $(dirname {target}) && base64 -d <<<{encoded} >{target}")
        await in_guest(vm, "udevadm control --reload && systemctl daemon-reload")
        await in_guest(vm, "systemctl start va-guest.service")
        ours = await ask(tmp_path, "guest-info", 2)
        assert ours["return"]["agent"].startswith("va-guest ")
        assert (await vm.console("systemctl is-active qemu-guest-agent")).status != 0

        # Clients come and go.
        for number in range(3, 13):
            assert await ask(tmp_path, "guest-ping", number) == {"return": {}}

        # A boot with both installed: udev asks for ours alone.
        await in_guest(vm, "systemctl is-active va-guest.service && sync")
        size = vm.log_size()
        await vm.qmp("system_reset")
        await vm.booted(after=size)
        again = await ask(tmp_path, "guest-info", 20)
        assert again["return"]["agent"].startswith("va-guest ")
        assert (await vm.console("systemctl is-active qemu-guest-agent")).status != 0

        # The other wire works beside it, once there is its port.
        async with lab.serving("attach", "--qmp", str(vm.qmp_path)):
            await lab.ready()
            assert (await lab.succeed("ping")).startswith("success")
            assert await ask(tmp_path, "guest-ping", 21) == {"return": {}}
            names = {"guest-ping", "guest-info"}
            async with lab.client() as client:
                listed = {command["name"] for command in await client.execute("query-commands")}
                assert names <= listed
                assert (await client.execute("guest-info"))["agent"].startswith("va-guest ")


@pytest.mark.parametrize("wire", ["--qga"])
async def test_the_unit_with_its_drop_in_is_valid(guest: Vm, wire: str) -> None:
    encoded = base64.b64encode((ROOT / "contrib/systemd/va-guest-qga.conf").read_bytes()).decode()
    target = "/run/systemd/system/va-guest.service.d/test.conf"
    try:
        await in_guest(guest, f"mkdir -p $(dirname {target}) && base64 -d <<<{encoded} >{target}")
        said = await guest.console("systemd-analyze verify va-guest.service 2>&1 | grep va-guest || true")
        assert said.output.strip() == ""
        shown = await in_guest(guest, "systemctl daemon-reload; systemctl cat va-guest.service")
        assert wire in shown
    finally:
        await guest.console(f"rm {target}; systemctl daemon-reload")
