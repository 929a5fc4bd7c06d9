"""The guest itself: without it no other test here says anything."""

from __future__ import annotations

import base64
import contextlib
import time
from pathlib import Path

import pytest

from tests.guest.qemu import VmError
from tests.guest.vm import Vm, running_vm

HOST_UNIT = Path(__file__).resolve().parents[2] / "contrib" / "systemd" / "va-host@.service"


async def test_the_guest_boots_and_its_shell_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    async with running_vm(tmp_path) as vm:
        await vm.booted()
        with capsys.disabled():
            print(f" [booted in {time.monotonic() - started:.1f} s] ", end="")
        result = await vm.console("hostname; systemctl is-system-running --wait")
        assert (result.output, result.status) == ("virtagent-guest\nrunning\n", 0)


async def test_a_q35_guest_boots_and_reboots(tmp_path: Path) -> None:
    async with running_vm(tmp_path, machine="q35") as vm:
        end_of_boot = await vm.booted()
        await vm.console("systemctl --no-block reboot")
        await vm.booted(after=end_of_boot)
        assert (await vm.console("echo again")).output == "again\n"


async def test_the_guest_powers_down_and_qemu_ends(tmp_path: Path) -> None:
    async with running_vm(tmp_path) as vm:
        await vm.booted()
        await _press_power_button(vm)
        assert await vm.wait_exit(60) == 0


async def _press_power_button(vm: Vm) -> None:
    """Press until the guest notices: logind opens it late, and once more when udev is done with it."""
    for _ in range(10):
        await vm.qmp("system_powerdown")
        with contextlib.suppress(VmError):
            await vm.wait_for_log("Power key pressed", timeout=5)
            return
    pytest.fail("the guest does not notice its power button")


async def test_a_command_gives_its_status_and_its_output_as_it_is(guest: Vm) -> None:
    result = await guest.console("printf 'a\\r\\n\\001'; echo $((6 * 7)) >&2\nexit 3")
    assert (result.output, result.status) == ("a\r\n\x0142\n", 3)


async def test_the_guest_has_the_agent_and_no_port_for_it(guest: Vm) -> None:
    assert (await guest.console("va-guest --version")).status == 0
    assert (await guest.console("ls /dev/virtio-ports")).status == 2
    assert (await guest.console("systemctl is-active va-guest")).output == "inactive\n"


async def test_the_guests_units_are_sound(guest: Vm) -> None:
    result = await guest.console("systemd-analyze verify va-guest.service")
    assert (result.output, result.status) == ("", 0)


async def test_the_hosts_unit_is_sound(guest: Vm) -> None:
    unit = base64.b64encode(HOST_UNIT.read_bytes()).decode()
    script = f"""
    dir=$(mktemp -d)
    trap 'rm -rf $dir' EXIT
    base64 -d <<<{unit} >$dir/va-host@.service
    # What it starts is not on this machine; the agent stands in for it.
    sed -i 's/^ExecStart=va-host /ExecStart=va-guest /' $dir/va-host@.service
    systemd-analyze verify $dir/va-host@demo.service
    """
    result = await guest.console(script)
    assert (result.output, result.status) == ("", 0)


async def test_the_monitor_answers(guest: Vm) -> None:
    assert (await guest.qmp("query-status"))["status"] == "running"
    with pytest.raises(VmError, match="has not been found"):
        await guest.qmp("no-such-command")


async def test_a_qemu_that_ends_is_reported_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="no-such-device"):
        async with running_vm(tmp_path, extra=["-device", "no-such-device"]):
            pytest.fail("QEMU was taken to be running")
