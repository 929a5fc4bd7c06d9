"""The same calls over every channel that leads into a guest."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.guest.lab import ALL_BYTES, Attached, Lab, make_all_bytes
from tests.guest.vm import running_vm

#: Calls at a time.
SIDE_BY_SIDE = 6


async def suite(lab: Lab) -> None:
    """Make the calls that must work whatever they travel over."""
    assert (await lab.succeed("ping")).startswith("success")
    assert "va.getfile" in await lab.succeed("capabilities")
    assert "] " in await lab.succeed("viewdmesg")
    assert "open failed" in await lab.fail(1, "viewfile", "/root/missing")

    async def read() -> None:
        result = await lab.run("viewfile", lab.name, "/root/all-bytes")
        assert (result.status, result.stdout) == (0, ALL_BYTES)

    async with trio.open_nursery() as nursery:
        for _ in range(SIDE_BY_SIDE):
            nursery.start_soon(read)


@pytest.mark.parametrize(
    ("line", "device"),
    [("isa-serial", "/dev/ttyS1"), ("pci-serial", "/dev/$(basename /sys/bus/pci/devices/*:1d.0/tty/ttyS*)")],
)
async def test_a_serial_line_carries_every_byte(attached: Attached, line: str, device: str) -> None:
    await make_all_bytes(attached.vm)
    await attached.in_guest(
        f"systemd-run --quiet --collect --unit va-serial va-guest -c isa-serial -p {device}"
    )
    try:
        lab = Lab(attached.vm.directory, line)
        socket = attached.vm.directory / f"{line}.sock"
        async with lab.serving("attach", "--channel", f"unix:{socket}"):
            status = await lab.ready()
            assert status["channel"] == str(socket)
            await suite(lab)
            # Both ends kept to the checksums that the agent asked for, and none was wrong.
            figures = (await lab.wait("ready"))["figures"]
            assert "crc" not in figures["drops"], figures
            assert "--qmp" in await lab.fail(3, "qmp", "query-status")
            # The other link, on its virtio-serial port, is not in the way.
            await attached.lab.succeed("ping")
    finally:
        await attached.in_guest("systemctl stop va-serial")


async def test_each_directions_calls_have_a_port_of_their_own(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with running_vm(tmp_path) as vm:
        await vm.booted()
        await make_all_bytes(vm)
        async with lab.serving("attach", "--qmp", str(vm.qmp_path), "--ports", "two"):
            await lab.wait("port-closed")
            await vm.console("systemd-run --quiet --collect --unit va-two va-guest --ports two")
            status = await lab.ready()
            assert status["port"] == "virtagent-server-port"
            assert (await vm.console("ls /dev/virtio-ports")).output.split() == [
                "org.qemu.virtagent-client",
                "org.qemu.virtagent-server",
            ]
            await suite(lab)
            async with lab.client() as client:
                with trio.fail_after(30):
                    while (await client.execute("va_status"))["guest-link"]["state"] != "ready":
                        await trio.sleep(0.1)
                # An agent that is gone is gone on both.
                await vm.console("systemctl stop va-two")
                await lab.wait("port-closed")
                assert "guest-link" in await client.execute("va_status")
        # Found again, as any port is.
        async with lab.serving("attach", "--qmp", str(vm.qmp_path), "--ports", "two"):
            await vm.console("systemd-run --quiet --collect --unit va-two va-guest --ports two")
            await lab.ready()
            await suite(lab)


async def test_launch_makes_two_ports_as_well(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    qemu = ("qemu-system-x86_64", "-machine", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S")
    async with lab.serving("launch", "--ports", "two", "--", *qemu) as service:
        async with lab.client() as client:
            listed = await client.execute("query-chardev")
            labels = {chardev["label"] for chardev in listed}
            assert {"virtagent-server", "virtagent-client"} <= labels
            await client.execute("quit")
        assert await service.ended() == 0
