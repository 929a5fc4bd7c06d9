"""Freezing that cannot stick, on a real guest with nested, looped and bind-mounted file systems.

Whoever is killed, and whenever: a write that was blocked by the freeze goes on within the lease.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.guest.lab import READY_TIMEOUT, BridgeError, Lab, LabError
from tests.guest.vm import Vm

#: Seconds of a lease in these tests, and what a slow machine may take beyond it.
LEASE = 3.0
SLACK = 60.0
#: Seconds in which a write that nobody blocks is done, many times over.
BLOCKED = 0.5

#: /srv/outer is a disk, /srv/outer/inner another, /srv/loop a file of the first; /srv/bind shows the second
#: once more, and /srv/late the first, mounted after all that lies on it.
MOUNTS = """
set -e
mkdir -p /srv/outer /srv/loop /srv/bind /srv/late
mount /dev/vdb /srv/outer
mkdir -p /srv/outer/inner
mount /dev/vdc /srv/outer/inner
truncate -s 16M /srv/outer/file
mke2fs -q -F -t ext4 /srv/outer/file
if modprobe loop; then mount -o loop /srv/outer/file /srv/loop; fi
mount --bind /srv/outer/inner /srv/bind
mount --bind /srv/outer /srv/late
"""
HOOKS = "/etc/virtagent/fsfreeze-hook.d"


class Freezer:
    """The VM of these tests with its va-host, and what they ask of both."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.lab = Lab(vm.directory)
        self._probes = 0

    async def guest(self, command: str) -> str:
        result = await self.vm.console(command)
        assert result.status == 0, result
        return result.output

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[Any]:
        async with self.lab.attached(self.vm) as service:
            await self.lab.ready()
            yield service

    async def freeze(self, *arguments: str) -> dict[str, Any]:
        """Run va-host freeze; a test that says no duration has one that it cannot exceed."""
        arguments = ("--duration", "600", *arguments)
        result = json.loads(await self.lab.succeed("freeze", *arguments, "--json"))
        assert isinstance(result, dict)
        return result

    async def write(self, directory: str) -> str:
        """Begin to write a file there, and return the name of the file in /run that tells when it was
        done."""
        self._probes += 1
        done = f"/run/written-{self._probes}"
        await self.guest(f"(echo x >{directory}/probe && touch {done}) >/dev/null 2>&1 &")
        return done

    async def hook(self, name: str, *commands: str) -> None:
        """Make a hook that notes its calls in /run/hooks, and then does what *commands* say."""
        lines = ["#!/bin/sh", "echo $(basename $0) $1 >>/run/hooks", *commands]
        content = "\\n".join(lines)
        path = f"{HOOKS}/{name}"
        await self.guest(f"mkdir -p {HOOKS}; printf '{content}\\n' >{path}; chmod +x {path}")

    async def is_blocked(self, done: str) -> bool:
        answer = await self.guest(f"sleep {BLOCKED}; test -e {done} && echo done || echo blocked")
        return answer == "blocked\n"

    async def until_written(self, done: str, timeout: float) -> None:
        """Return when a write was done."""
        answer = await self.vm.console(
            f"for i in $(seq {int(10 * timeout)}); do test -e {done} && exit 0; sleep 0.1; done; exit 1",
            timeout=2 * timeout,
        )
        assert answer.status == 0, f"not writable within {timeout} s"


@pytest.fixture(scope="module")
def freezer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Freezer]:
    directory = tmp_path_factory.mktemp("freeze")
    vm = Vm(directory, extra=[*_disk(directory / "outer.img"), *_disk(directory / "inner.img")])
    try:
        vm.start()
        trio.run(vm.booted)
        made = trio.run(vm.console, MOUNTS)
        assert made.status == 0, made
        yield Freezer(vm)
    finally:
        vm.stop()


def _disk(image: Path) -> list[str]:
    with image.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", image], check=True)
    return ["-drive", f"file={image},format=raw,if=virtio"]


async def test_a_frozen_guest_answers_and_writes_wait_until_it_is_thawed(freezer: Freezer) -> None:
    lab = freezer.lab
    async with freezer.attached():
        frozen = await freezer.freeze()
        # Each file system once, and none before what was mounted on it.
        assert frozen["frozen"] == len(frozen["mounts"])
        assert frozen["mounts"][-1] == "/"
        order = [path for path in frozen["mounts"] if path != "/"]
        assert order in (
            ["/srv/loop", "/srv/outer/inner", "/srv/outer"],
            ["/srv/outer/inner", "/srv/outer"],
        ), frozen
        status = json.loads(await lab.succeed("status", "--json"))
        assert (status["state"], status["reason"]) == (
            "frozen",
            f"{frozen['frozen']} file systems are frozen, with a lease of 10 s",
        )
        writes = [await freezer.write(directory) for directory in ("/root", "/srv/outer", "/srv/bind")]
        assert [await freezer.is_blocked(done) for done in writes] == [True] * 3

        assert (await lab.succeed("ping")).startswith("success")
        assert await lab.succeed("viewfile", "/proc/version")
        assert "not ready" in await lab.fail(4, "shutdown", "powerdown")
        assert "frozen already" in await lab.fail(4, "freeze")

        thawed = json.loads(await lab.succeed("thaw", "--json"))
        assert thawed == {"thawed": frozen["frozen"], "held": True, "why": "asked", "failures": []}
        for done in writes:
            await freezer.until_written(done, SLACK)
        assert (await lab.ready())["reason"] == "the guest's file systems are thawed"


async def test_a_lease_is_renewed_until_the_duration_is_over(freezer: Freezer) -> None:
    lab = freezer.lab
    async with freezer.attached(), lab.client() as watcher:
        await freezer.freeze("--lease", "3", "--duration", "10", "--mountpoint", "/srv/outer")
        await trio.sleep(4)
        done = await freezer.write("/srv/outer")
        assert await freezer.is_blocked(done)
        await watcher.event("VA_STATE_CHANGE", state="frozen", timeout=SLACK)
        await watcher.event("VA_STATE_CHANGE", state="ready", timeout=SLACK)
        await freezer.until_written(done, SLACK)
        result = await lab.run("thaw", lab.name)
        assert (result.status, "its time is over (10 s)" in result.stderr) == (1, True), result


async def test_it_thaws_within_the_lease_of_a_host_that_was_killed(freezer: Freezer) -> None:
    async with freezer.attached() as service:
        await freezer.freeze("--lease", str(LEASE))
        done = await freezer.write("/root")
        service.kill()
        assert await freezer.is_blocked(done)
        await freezer.until_written(done, LEASE + SLACK)


async def test_it_thaws_within_the_lease_of_a_host_that_hangs(freezer: Freezer) -> None:
    async with freezer.attached() as service:
        await freezer.freeze("--lease", str(LEASE))
        done = await freezer.write("/root")
        service.send_signal(signal.SIGSTOP)
        try:
            await freezer.until_written(done, LEASE + SLACK)
        finally:
            service.send_signal(signal.SIGCONT)
        await freezer.lab.ready()


async def test_a_new_host_finds_the_guest_frozen_and_keeps_it_so(freezer: Freezer) -> None:
    async with freezer.attached() as service:
        await freezer.freeze("--lease", "300")
        service.kill()
    async with freezer.lab.attached(freezer.vm):
        assert "file systems are frozen" in (await freezer.lab.wait("frozen"))["reason"]
        assert json.loads(await freezer.lab.succeed("thaw", "--json"))["held"] is True


async def test_it_thaws_at_once_when_the_agents_whole_service_is_killed(freezer: Freezer) -> None:
    lab = freezer.lab
    async with freezer.attached(), lab.client() as watcher:
        await freezer.freeze("--lease", "60")
        done = await freezer.write("/root")
        assert await freezer.is_blocked(done)
        await freezer.guest("systemctl kill -s KILL va-guest")
        await freezer.until_written(done, SLACK)
        await watcher.event("VA_GUEST_HELLO", timeout=READY_TIMEOUT)
        assert (await lab.ready())["state"] == "ready"
        result = await lab.run("thaw", lab.name)
        assert (result.status, "nothing was frozen" in result.stderr) == (1, True), result


async def test_it_thaws_at_once_when_the_freezer_is_killed(freezer: Freezer) -> None:
    lab = freezer.lab
    async with freezer.attached():
        await freezer.freeze("--lease", "60")
        done = await freezer.write("/root")
        await freezer.guest("systemctl kill -s KILL va-guest-freezer")
        await freezer.until_written(done, SLACK)
        await lab.ready()
        result = await lab.run("thaw", lab.name)
        assert (result.status, "the freezer was killed" in result.stderr) == (1, True), result


async def test_hooks_run_in_order_and_one_that_fails_undoes_all(freezer: Freezer) -> None:
    lab = freezer.lab
    for name in ("10-a", "20-b"):
        await freezer.hook(name)
    async with freezer.attached():
        await freezer.freeze("--mountpoint", "/srv/outer")
        assert await freezer.guest("cat /run/hooks; rm /run/hooks") == "10-a freeze\n20-b freeze\n"
        await lab.succeed("thaw")
        assert await freezer.guest("cat /run/hooks; rm /run/hooks") == "20-b thaw\n10-a thaw\n"

        await freezer.hook("20-b", "[ $1 = thaw ]")
        error = await lab.fail(1, "freeze")
        assert f"fsfreeze hook '{HOOKS}/20-b freeze' has failed with status 1" in error
        assert await freezer.guest("cat /run/hooks; rm /run/hooks") == (
            "10-a freeze\n20-b freeze\n20-b thaw\n10-a thaw\n"
        )
        await freezer.until_written(await freezer.write("/root"), SLACK)
        assert (await lab.ready())["state"] == "ready"

        # An agent that is killed in the middle of it leaves nothing frozen, and the hooks undone.
        await freezer.hook("20-b", "sleep 2")
        async with lab.client() as client, trio.open_nursery() as nursery:

            async def freeze() -> None:
                with pytest.raises(BridgeError):
                    await client.execute("va_freeze")

            nursery.start_soon(freeze)
            await freezer.guest("until grep -q 20-b /run/hooks; do sleep 0.1; done")
            await freezer.guest("systemctl kill -s KILL va-guest")
        await freezer.guest("until grep -q '10-a thaw' /run/hooks; do sleep 0.1; done")
        await freezer.until_written(await freezer.write("/root"), SLACK)
        await lab.ready()
    await freezer.guest(f"rm -r {HOOKS}")


async def test_a_freeze_whose_caller_gives_up_is_undone(freezer: Freezer) -> None:
    await freezer.hook("slow", "sleep 2")
    async with freezer.attached():
        assert "timed out" in await freezer.lab.fail(6, "freeze", "--timeout", "0.5")
        await freezer.guest(f"rm -r {HOOKS}")
        await freezer.until_written(await freezer.write("/root"), SLACK)
        await freezer.lab.ready()


async def test_a_freeze_of_the_qemu_guest_agents_kind_has_no_lease(freezer: Freezer) -> None:
    lab = freezer.lab
    async with freezer.attached() as service, lab.client() as client:
        number = await client.execute("guest-fsfreeze-freeze")
        assert number >= 3
        assert await client.execute("guest-fsfreeze-status") == "frozen"
        assert "without a lease" in (await lab.wait("frozen"))["reason"]
        with pytest.raises(BridgeError, match="frozen"):
            await client.execute("guest-get-osinfo")
        service.kill()
    async with lab.attached(freezer.vm):
        await lab.wait("frozen")
        async with lab.client() as client:
            assert await client.execute("guest-fsfreeze-thaw") == number
            assert await client.execute("guest-fsfreeze-status") == "thawed"
            assert await client.execute("guest-fsfreeze-freeze-list", mountpoints=["/nowhere"]) == 0
            assert await client.execute("guest-fsfreeze-freeze-list", mountpoints=["/srv/bind"]) == 1
            assert await client.execute("guest-fsfreeze-thaw") == 1


async def test_it_thaws_within_the_lease_when_the_port_is_unplugged(freezer: Freezer) -> None:
    lab = freezer.lab
    async with freezer.attached():
        port = json.loads(await lab.succeed("status", "--json"))["port"]
        await freezer.freeze("--lease", str(LEASE))
        done = await freezer.write("/root")
        await freezer.vm.qmp("device_del", id=port)
        try:
            await freezer.until_written(done, LEASE + SLACK)
        except AssertionError as error:
            raise LabError(freezer.vm.log_tail()) from error
