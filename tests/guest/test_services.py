"""Services of the host, called from a real guest over its virtio-serial port."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.guest.lab import LOOK_EVERY, Attached, Service, gone

#: Seconds for commands that move a backup, or start the agent again, under TCG.
LONG = 240.0

POLICY = """\
[[rule]]
name = "backups"
action = "allow"
vms = ["demo"]
users = ["root"]
services = ["backup.put", "wait"]
arguments = ["*"]

[[rule]]
name = "who"
action = "allow"
users = ["*"]
services = ["who"]
"""

SERVICES = {
    # What it takes for the whole, it says by the file's own name.
    "backup.put": 'cat >"$0.$1.part" && mv "$0.$1.part" "$0.$1" && echo stored',
    "wait": 'echo $$ >"$0.$1.pid"; cat >/dev/null; touch "$0.$1.whole"',
    "who": 'echo "$VA_VM $VA_CALLER_USER $VA_CALLER_UID"',
}


@dataclass
class Host:
    """A va-host with services, and its guest."""

    attached: Attached
    service: Service
    programs: Path

    async def in_guest(self, command: str) -> tuple[int, str]:
        result = await self.attached.vm.console(f"exec bash -c '{command}'", timeout=LONG)
        return result.status, result.output

    async def appeared(self, name: str) -> str:
        """Wait for a file that a service makes, and return what is in it."""
        with trio.fail_after(LONG):
            while not (path := self.programs / name).exists() or not path.read_text():
                await trio.sleep(LOOK_EVERY)
        return path.read_text()


@pytest.fixture
async def host(attached: Attached, tmp_path: Path) -> AsyncIterator[Host]:
    directory = tmp_path / "services"
    (directory / "bin").mkdir(parents=True)
    (directory / "policy.toml").write_text(POLICY)
    for name, script in SERVICES.items():
        (directory / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / "bin" / name).chmod(0o755)
    attached.stop()
    try:
        arguments = ("--qmp", str(attached.vm.qmp_path), "--services-dir", str(directory))
        async with attached.lab.serving("attach", *arguments) as service:
            await attached.lab.ready()
            yield Host(attached, service, directory / "bin")
    finally:
        attached.attach()


async def test_a_backup_is_piped_to_the_host(host: Host) -> None:
    status, output = await host.in_guest(
        "set -o pipefail; tar c /usr/lib/python3* 2>/dev/null | tee >(sha256sum >/tmp/sum) "
        "| va-guest call --stdin backup.put lib.tar"
    )
    assert (status, output) == (0, "stored\n")
    backup = (host.programs / "backup.put.lib.tar").read_bytes()
    assert len(backup) > 5_000_000
    _, expected = await host.in_guest("until [ -s /tmp/sum ]; do sleep 0.1; done; cat /tmp/sum; rm /tmp/sum")
    assert hashlib.sha256(backup).hexdigest() == expected.split()[0]


async def test_a_python_program_of_the_guest_calls_a_service(host: Host) -> None:
    program = (
        "from virtagent_guest.calls.client import call_service; "
        'ended = call_service(\\"backup.put\\", \\"small\\", stdin=bytes(1000)); '
        "print(ended.status, ended.output)"
    )
    status, output = await host.in_guest(f'PYTHONPATH=$(command -v va-guest) python3 -c "{program}"')
    assert (status, output) == (0, "0 b'stored\\n'\n")
    assert (host.programs / "backup.put.small").read_bytes() == bytes(1000)


async def test_the_host_decides_by_the_user_that_the_guests_kernel_names(host: Host) -> None:
    assert await host.in_guest("va-guest call who") == (0, "demo root 0\n")
    status, output = await host.in_guest("runuser -u nobody -- va-guest call who")
    assert (status, output) == (0, "demo nobody 65534\n")
    status, output = await host.in_guest("runuser -u nobody -- va-guest call backup.put x")
    assert status == 5
    assert "forbidden: this host does not let nobody call service" in output
    assert "for nobody (uid 65534), pid" in host.service.said


async def test_an_agent_that_is_started_again_within_a_call_is_a_clear_error(host: Host) -> None:
    async def restart() -> None:
        await host.appeared("wait.x.pid")
        await host.attached.in_guest("systemctl restart va-guest")

    # The console is one: the call runs beside it, with its input open.
    await host.attached.in_guest(
        "mkfifo /tmp/open; (va-guest call --stdin wait x <>/tmp/open; echo ended $?) >/tmp/call 2>&1 &"
    )
    await restart()
    await host.attached.in_guest("until grep -q ended /tmp/call; do sleep 0.2; done")
    _, said = await host.in_guest("cat /tmp/call; rm /tmp/call /tmp/open")
    assert "va-guest call: broken: service" in said
    assert "was lost, and the host has ended it" in said
    assert said.endswith("ended 6\n")
    await gone(int(await host.appeared("wait.x.pid")), LONG)
    assert not (host.programs / "wait.x.whole").exists()
    await host.attached.lab.ready()
    assert await host.in_guest("va-guest call who") == (0, "demo root 0\n")
