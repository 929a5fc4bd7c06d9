"""Forwarding on a real guest that has no network device: ssh and scp to its own sshd."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.guest.lab import COMMAND_TIMEOUT, Attached, Lab

SIZE = 3_000_000


@dataclass
class Ssh:
    """How to reach the guest's sshd, through its va-host alone."""

    options: list[str]

    async def run(self, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(2 * COMMAND_TIMEOUT):
            return await trio.run_process(
                [command[0], *self.options, *command[1:]],
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )


@pytest.fixture
async def ssh(attached: Attached, tmp_path: Path) -> AsyncIterator[Ssh]:
    """A running sshd in the guest, and a key for root."""
    key = tmp_path / "key"
    await trio.run_process(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    public = key.with_suffix(".pub").read_text().strip()
    made = await attached.vm.console(
        f"install -d -m 700 .ssh && echo {shlex.quote(public)} >.ssh/authorized_keys && systemctl start ssh",
        timeout=2 * COMMAND_TIMEOUT,
    )
    assert made.status == 0, made.output
    proxy = shlex.join(attached.lab.command_line("connect", attached.lab.name, "tcp:127.0.0.1:22"))
    settings = {
        "ProxyCommand": proxy,
        "IdentityFile": str(key),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": os.devnull,
        "StrictHostKeyChecking": "no",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
    }
    yield Ssh(["-F", os.devnull, *(f"-o{name}={value}" for name, value in settings.items())])
    await attached.vm.console("systemctl stop ssh; rm -r .ssh", timeout=COMMAND_TIMEOUT)


async def test_the_guest_has_no_network_device_but_lo(attached: Attached) -> None:
    assert (await attached.vm.console("ls /sys/class/net")).output.split() == ["lo"]


async def test_ssh_runs_a_command_and_passes_on_its_status(attached: Attached, ssh: Ssh) -> None:
    result = await ssh.run("ssh", "root@demo", "cat /etc/hostname; cat; exit 7", stdin=b"from here\n")
    assert (result.returncode, result.stdout, result.stderr) == (7, b"virtagent-guest\nfrom here\n", b"")


async def test_scp_copies_both_ways(attached: Attached, ssh: Ssh, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(SIZE))
    for arguments in ((str(source), "root@demo:/root/copied"), ("root@demo:/root/copied", str(back))):
        result = await ssh.run("scp", *arguments)
        assert result.returncode == 0, result.stderr
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert (await attached.vm.console("sha256sum <copied; rm copied")).output.split()[0] == digest
    assert back.read_bytes() == source.read_bytes()


async def test_ports_of_both_machines_are_forwarded(attached: Attached) -> None:
    """The guest reaches a server here by a listener in the guest, and is reached by one here."""
    lab = attached.lab

    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"hello from the host\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, greet, [listener])
        target = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        async with forwarding(lab, "-R", f"4000:{target}", "-L", "0:127.0.0.1:4000") as addresses:
            here = next(address for address in addresses if not address.endswith(":4000"))
            there = await attached.vm.console("exec 3<>/dev/tcp/127.0.0.1/4000; cat <&3")
            assert there.output == "hello from the host\n"
            # From here into the guest, and from there out again.
            async with await trio.open_tcp_stream("127.0.0.1", int(here.rpartition(":")[2])) as stream:
                with trio.fail_after(COMMAND_TIMEOUT):
                    assert b"".join([data async for data in stream]) == b"hello from the host\n"
        nursery.cancel_scope.cancel()


class forwarding:
    """`va-host forward` for the time of the block, which is given the addresses that it listens on."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self._command = lab.command_line("forward", lab.name, "--json", *arguments)
        self._count = sum(argument in ("-L", "-R") for argument in arguments)

    async def __aenter__(self) -> list[str]:
        self._process = await trio.lowlevel.open_process(self._command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        seen = b""
        with trio.fail_after(COMMAND_TIMEOUT):
            while seen.count(b"\n") < self._count:
                data = await self._process.stdout.receive_some()
                assert data, seen
                seen += data
        return [json.loads(line)["listen"] for line in seen.splitlines()]

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            self._process.terminate()
            await self._process.wait()
            assert self._process.stdout is not None
            await self._process.stdout.aclose()
