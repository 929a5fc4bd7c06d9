"""QEMU's guest agent from the host's side: its commands on the bridge, its wire on a socket, as a peer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from .qgalab import DEADLINE, ROOT, connect, lines, listening, run_qemu_ga, talk

PING = b'{"execute":"guest-ping"}'
PYTHON_PATH = f"{ROOT}:{ROOT / 'protocol'}"


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(5 * DEADLINE):
        yield


@dataclass
class Attached:
    """A va-host that serves a VM named demo."""

    runtime: Path
    qga: Path

    async def va_host(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command of va-host."""
        return await trio.run_process(
            [sys.executable, "-m", "virtagent_host.cli", *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "PYTHONPATH": PYTHON_PATH, "VIRTAGENT_RUNTIME_DIR": str(self.runtime)},
        )

    async def json(self, command: str, *arguments: str) -> Any:
        done = await self.va_host(command, "demo", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def qmp(self, *commands: bytes) -> list[Any]:
        """Give commands to the bridge and return the answers."""
        last = b'{"id":"last","execute":"va_status"}'
        data = b"".join([b'{"execute":"qmp_capabilities"}', *commands, last])
        answers = lines(await talk(self.runtime / "demo.qmp", data, last=b'"id": "last"'))
        return [answer for answer in answers[2:-1] if "event" not in answer]


@contextlib.asynccontextmanager
async def attached(directory: Path, channel: Path, *arguments: str) -> AsyncIterator[Attached]:
    """Run va-host on a channel within the block, from when it is ready."""
    vm = Attached(directory / "run", directory / "host-qga.sock")
    command = [sys.executable, "-m", "virtagent_host.cli", "--runtime-dir", str(vm.runtime), "attach"]
    command += ["--channel", f"unix:{channel}", "--name", "demo", "--qga", str(vm.qga), *arguments]
    async with listening(command, vm.qga, PYTHONPATH=PYTHON_PATH):
        done = await vm.va_host("wait", "demo", "--until", "ready", "--timeout", str(DEADLINE))
        assert done.returncode == 0, done.stderr
        yield vm


@pytest.fixture
async def with_qemu_ga(tmp_path: Path) -> AsyncIterator[Attached]:
    async with run_qemu_ga(tmp_path) as path, attached(tmp_path, path, "--agent", "qga") as vm:
        yield vm


@pytest.fixture(params=["va-guest", "qemu-ga"])
async def vm(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Attached]:
    """One of each, for what is the same with both."""
    if request.param == "qemu-ga":
        async with run_qemu_ga(tmp_path) as path, attached(tmp_path, path, "--agent", "qga") as attached_vm:
            yield attached_vm
        return
    path, config = tmp_path / "channel.sock", tmp_path / "guest.toml"
    config.touch()
    agent = [sys.executable, "-m", "virtagent_guest", "--config", str(config), "-c", f"unix-listen:{path}"]
    async with listening(agent, path, PYTHONPATH=PYTHON_PATH), attached(tmp_path, path) as attached_vm:
        yield attached_vm


async def test_the_bridge_has_the_agents_commands_with_its_errors(vm: Attached) -> None:
    ping, sync, nope, wrong, listed = await vm.qmp(
        PING,
        b'{"execute":"guest-sync","arguments":{"id":1099511627776}}',
        b'{"execute":"guest-nope","id":1}',
        b'{"execute":"guest-sync","arguments":{"id":"1"}}',
        b'{"execute":"query-commands"}',
    )
    assert ping == {"return": {}}
    assert sync == {"return": 2**40}
    assert nope == {
        "id": 1,
        "error": {"class": "CommandNotFound", "desc": "The command guest-nope has not been found"},
    }
    assert wrong["error"] == {
        "class": "GenericError",
        "desc": "Invalid parameter type for 'id', expected: integer",
    }
    names = {command["name"] for command in listed["return"]}
    assert {"va_ping", "guest-ping", "guest-sync-delimited", "guest-info"} <= names


async def test_the_hosts_socket_speaks_the_agents_wire(vm: Attached) -> None:
    assert vm.qga.stat().st_mode & 0o777 == 0o600
    data = b'\xff{"execute":"guest-sync-delimited","arguments":{"id":7}}' + PING
    data += (
        b'{"execute":"va_ping"}{"execute":"guest-nope"}garbage\n{"execute":"guest-sync","arguments":{"id":8}}'
    )
    assert lines(await talk(vm.qga, data, last=b'{"return": 8}\n')) == [
        {"error": {"class": "GenericError", "desc": "JSON parse error, stray '\ufffd'"}},
        ("0xFF", {"return": 7}),
        {"return": {}},
        {"error": {"class": "CommandNotFound", "desc": "The command va_ping has not been found"}},
        {"error": {"class": "CommandNotFound", "desc": "The command guest-nope has not been found"}},
        {"error": {"class": "GenericError", "desc": "JSON parse error, invalid keyword 'garbage'"}},
        {"return": 8},
    ]
    async with await connect(vm.qga) as first, await connect(vm.qga) as second:
        for client in (second, first):
            await client.send_all(PING)
            assert await client.receive_some() == b'{"return": {}}\n'


async def test_a_guest_that_does_not_answer_is_told_on_the_hosts_socket(tmp_path: Path) -> None:
    vm = Attached(tmp_path / "run", tmp_path / "host-qga.sock")
    command = [sys.executable, "-m", "virtagent_host.cli", "--runtime-dir", str(vm.runtime), "attach"]
    command += ["--channel", f"unix:{tmp_path / 'none'}", "--name", "demo", "--qga", str(vm.qga)]
    async with listening(command, vm.qga, PYTHONPATH=PYTHON_PATH):
        (answer,) = lines(await talk(vm.qga, PING, last=b"\n"))
    assert answer["error"]["class"] == "DeviceNotActive"
    assert answer["error"]["desc"].startswith("not ready: ")


async def test_with_qemu_ga_in_the_guest_what_it_can_do_works(with_qemu_ga: Attached, tmp_path: Path) -> None:
    vm = with_qemu_ga
    assert (await vm.va_host("ping", "demo")).returncode == 0
    status = await vm.json("status")
    assert status["agent"].startswith("qemu-ga ")
    assert status["protocol"] == "qga"
    capabilities = await vm.json("capabilities")
    assert {"va.ping", "va.shutdown", "va.getfile", "guest.file_open"} <= set(capabilities["methods"])

    content = bytes(range(256)) * 4096
    file = tmp_path / "file"
    file.write_bytes(content)
    assert (await vm.va_host("viewfile", "demo", str(file))).stdout == content
    missing = await vm.va_host("viewfile", "demo", str(tmp_path / "none"))
    assert (missing.returncode, b"No such file" in missing.stderr) == (1, True)
    # More than one answer carries.
    file.write_bytes(content * 2)
    assert (await vm.va_host("viewfile", "demo", str(file))).stdout == content * 2


async def test_a_qemu_ga_that_is_started_again_is_found_again(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        path = await first.enter_async_context(run_qemu_ga(tmp_path))
        vm = await stack.enter_async_context(attached(tmp_path, path, "--agent", "qga"))
        await first.aclose()
        done = await vm.va_host("wait", "demo", "--until", "no-port", "--timeout", "10")
        assert done.returncode == 0, done.stderr
        assert (await vm.va_host("ping", "demo")).returncode == 4
        await stack.enter_async_context(run_qemu_ga(tmp_path))
        done = await vm.va_host("wait", "demo", "--until", "ready", "--timeout", "15")
        assert done.returncode == 0, done.stderr
        assert (await vm.va_host("ping", "demo")).returncode == 0


async def test_a_frozen_qemu_ga_is_frozen_in_the_status_and_still_answers(tmp_path: Path) -> None:
    async with run_qemu_ga(tmp_path, frozen=True) as path, contextlib.AsyncExitStack() as stack:
        vm = Attached(tmp_path / "run", tmp_path / "host-qga.sock")
        command = [sys.executable, "-m", "virtagent_host.cli", "--runtime-dir", str(vm.runtime), "attach"]
        command += ["--channel", f"unix:{path}", "--agent", "qga", "--name", "demo", "--qga", str(vm.qga)]
        await stack.enter_async_context(listening(command, vm.qga, PYTHONPATH=PYTHON_PATH))
        done = await vm.va_host("wait", "demo", "--until", "frozen", "--timeout", str(DEADLINE))
        assert done.returncode == 0, done.stderr
        assert (await vm.va_host("ping", "demo")).returncode == 0
        (answer,) = await vm.qmp(b'{"execute":"guest-get-time"}')
        assert answer["error"]["class"] == "CommandNotFound"
        assert "frozen" in answer["error"]["desc"]
