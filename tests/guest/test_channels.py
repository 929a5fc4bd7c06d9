"""The same calls over every channel that leads into a guest."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import trio

from tests.guest.lab import ALL_BYTES, Attached, Lab, make_all_bytes
from tests.guest.vm import running_vm

#: Calls at a time.
SIDE_BY_SIDE = 6


#: Joins a unix socket in the guest to its second serial line: the other end of the agent's channel.
_RELAY = """
import os, select, socket, sys, time, tty
kind, path = sys.argv[1:]
line = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
tty.setraw(line)
end = socket.socket(socket.AF_UNIX)
if kind == "unix-connect":
    end.bind(path)
    end.listen()
    end = end.accept()[0]
else:
    while end.connect_ex(path):
        time.sleep(0.1)
while True:
    for source in select.select([line, end], [], [])[0]:
        data = os.read(source if source is line else end.fileno(), 4096)
        if not data:
            sys.exit()
        end.sendall(data) if source is line else os.writev(line, [data])
"""


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


@pytest.mark.parametrize("kind", ["unix-connect", "unix-listen"])
async def test_a_unix_socket_in_the_guest_is_a_channel_as_well(attached: Attached, kind: str) -> None:
    await make_all_bytes(attached.vm)
    script = base64.b64encode(_RELAY.encode()).decode()
    await attached.in_guest(f"base64 -d <<<{script} >/root/relay.py")
    relay = f"systemd-run --quiet --collect --unit va-relay python3 /root/relay.py {kind} /run/va-test.sock"
    agent = f"systemd-run --quiet --collect --unit va-unix va-guest -c {kind} -p /run/va-test.sock"
    await attached.in_guest(f"rm -f /run/va-test.sock; {relay} && {agent}")
    try:
        lab = Lab(attached.vm.directory, kind)
        socket = attached.vm.directory / "isa-serial.sock"
        async with lab.serving("attach", "--channel", f"unix:{socket}"):
            await lab.ready()
            await suite(lab)
    finally:
        await attached.in_guest("systemctl stop va-unix va-relay")


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
