"""The built-in events: each of them done for real in the guest, and seen on the bridge.

The order of events is that in which they happened, so "nothing else was told" is seen by what is told next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from tests.guest.lab import READY_TIMEOUT, Attached, BridgeClient, Lab, LabError
from tests.guest.vm import running_vm

#: Seconds from one look at the file systems to the next, and as much for a slow guest.
LOOK_TIMEOUT = 60.0


async def told(client: BridgeClient, event: str, timeout: float = READY_TIMEOUT) -> dict[str, Any]:
    """Return the data of the next built-in event of that name; pass over others."""
    passed = []
    with trio.move_on_after(timeout):
        while True:
            entry = await client.event("VA_GUEST_EVENT")
            if entry["event"] == event:
                assert "caller" not in entry
                assert isinstance(entry["data"], dict)
                return entry["data"]
            passed.append((entry["event"], entry["data"]))
    raise LabError(f"no {event} within {timeout} s, but {passed}")


async def test_a_unit_that_fails_is_told(attached: Attached) -> None:
    async with attached.lab.client() as client:
        try:
            await attached.in_guest("systemd-run --quiet --unit=ev-fail sh -c 'exit 3'")
            data = await told(client, "unit-failed")
            assert data == {"unit": "ev-fail.service", "result": "exit-code", "status": 3}
            # Again, with another end: it is another failure.
            await attached.in_guest("systemctl reset-failed ev-fail")
            await attached.in_guest("systemd-run --quiet --unit=ev-fail sleep 1000")
            await attached.in_guest("systemctl kill -s KILL ev-fail")
            data = await told(client, "unit-failed")
            assert data == {"unit": "ev-fail.service", "result": "signal", "status": 9}
        finally:
            await attached.vm.console("systemctl reset-failed ev-fail")


async def test_a_process_that_the_kernel_kills_for_memory_is_told(attached: Attached) -> None:
    limits = "-p MemoryMax=16M -p MemorySwapMax=0 -p User=nobody"
    async with attached.lab.client() as client:
        try:
            await attached.in_guest(f"systemd-run --quiet --unit=ev-oom {limits} tail /dev/zero")
            data = await told(client, "oom-kill")
            pid = data.pop("pid")
            assert data == {
                "process": "tail",
                "uid": int(await attached.in_guest("id -u nobody")),
                "scope": "cgroup",
                "cgroup": "/system.slice/ev-oom.service",
            }
            assert pid > 1
        finally:
            await attached.vm.console("systemctl reset-failed ev-oom")


async def test_addresses_that_come_and_go_are_told(attached: Attached) -> None:
    entry = {"interface": "lo", "address": "10.9.8.7", "prefix": 24}
    async with attached.lab.client() as client:
        await attached.in_guest("busybox ip address add 10.9.8.7/24 dev lo")
        assert await told(client, "addresses-changed") == {"added": [entry], "removed": [], "more": 0}
        await attached.in_guest("busybox ip address del 10.9.8.7/24 dev lo")
        assert await told(client, "addresses-changed") == {"added": [], "removed": [entry], "more": 0}


async def test_users_who_log_in_and_out_are_told(attached: Attached) -> None:
    async with attached.lab.client() as client:
        # Without a terminal it would not be a person's. In the background, for it lasts.
        login = """script --quiet --command "su --login root --command 'sleep 1000'" /dev/null"""
        await attached.in_guest(f"setsid {login} </dev/null >/dev/null 2>&1 &")
        came = await told(client, "user-logged-in")
        assert (came["user"], came["uid"], came["type"], came["tty"]) == ("root", 0, "tty", "pts/0")
        assert (came["service"], came["remote-host"]) == ("su-l", "")
        await attached.in_guest(f"loginctl terminate-session {came['session']}")
        assert await told(client, "user-logged-out") == came


async def test_a_file_system_that_fills_and_empties_is_told(attached: Attached) -> None:
    async with attached.lab.client() as client:
        try:
            await attached.in_guest("mkdir -p /root/ev-full && mount -t tmpfs -o size=4M tmpfs /root/ev-full")
            await attached.in_guest("head -c 4000K /dev/zero >/root/ev-full/file")
            data = await told(client, "filesystem-filling", LOOK_TIMEOUT)
            assert (data["path"], data["type"], data["size"]) == ("/root/ev-full", "tmpfs", 4 << 20)
            assert (data["space-percent"], data["available"]) == (98, 96 << 10)
            await attached.in_guest("rm /root/ev-full/file")
            data = await told(client, "filesystem-ok", LOOK_TIMEOUT)
            assert (data["path"], data["space-percent"]) == ("/root/ev-full", 0)
        finally:
            await attached.vm.console("umount /root/ev-full")


async def test_what_is_turned_off_is_not_told(attached: Attached) -> None:
    config = "/etc/virtagent/guest.toml"
    try:
        await attached.in_guest(f"cp -p {config} /root/guest.toml")
        await attached.in_guest(f"""sed -i 's/^off = .*/off = ["unit-failed"]/' {config}""")
        await attached.in_guest("systemctl restart va-guest")
        await attached.lab.ready()
        async with attached.lab.client() as client:
            await attached.in_guest("systemd-run --quiet --wait --unit=ev-off false || true")
            # A change of addresses is told later than it happens, a failed unit at once.
            await attached.in_guest("busybox ip address add 10.9.8.7/24 dev lo")
            assert (await next_event(client))[0] == "addresses-changed"
            await attached.in_guest("busybox ip address del 10.9.8.7/24 dev lo")
            assert (await next_event(client))[0] == "addresses-changed"
    finally:
        await attached.vm.console(f"systemctl reset-failed ev-off; mv /root/guest.toml {config}")
        await attached.in_guest("systemctl restart va-guest")
        await attached.lab.ready()


async def test_boots_and_shutdowns_are_told_and_by_whom(tmp_path: Path) -> None:
    async with running_vm(tmp_path) as vm:
        lab = Lab(tmp_path)
        async with lab.attached(vm), lab.client() as client:
            log_size = await vm.booted()
            await boot_finished(client)
            # An agent that is started again does not tell again.
            await vm.console("systemctl restart va-guest")
            await lab.ready()
            await vm.console("systemd-run --quiet --wait --unit=ev-fail false")
            assert (await next_event(client))[0] == "unit-failed"

            await client.execute("va_shutdown", shutdown_mode="reboot")
            assert await next_event(client) == ("shutdown-begun", {"mode": "reboot", "by": "host"})
            log_size = await vm.booted(after=log_size)
            await boot_finished(client)

            rebooted = await vm.console("systemctl reboot")
            assert rebooted.status == 0, rebooted
            assert await next_event(client) == ("shutdown-begun", {"mode": "reboot", "by": "guest"})
            await vm.booted(after=log_size)
            await boot_finished(client)

            await vm.qmp("system_powerdown")
            assert await next_event(client) == ("shutdown-begun", {"mode": "powerdown", "by": "power-button"})
            assert await vm.wait_exit(READY_TIMEOUT) == 0


async def next_event(client: BridgeClient, *but: str) -> tuple[str, dict[str, Any]]:
    """Return name and data of the next event that is none of those."""
    while True:
        entry = await client.event("VA_GUEST_EVENT")
        if entry["event"] not in but:
            return entry["event"], entry["data"]


async def boot_finished(client: BridgeClient) -> None:
    # Addresses come as they do during a boot.
    name, data = await next_event(client, "addresses-changed")
    assert (name, data["state"], data["failed-units"]) == ("boot-finished", "running", 0)
    assert 0 < data["userspace-seconds"] < data["seconds"]
