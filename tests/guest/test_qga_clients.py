"""A client that talks as Proxmox's `qm` does, to the guest's port and to ``va-host attach --qga``'s socket.

For each command it connects, sends 0xFF, guest-sync-delimited and the command in one piece, and takes the two
answers behind the next 0xFF; a first answer with another id is an error.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.guest.lab import Lab
from tests.guest.test_qga_port import FILES, ROOT, in_guest, port
from tests.guest.vm import Vm, running_vm

#: Seconds for one command.
PATIENCE = 60.0
#: Seconds between two questions whether a process has ended.
LOOK_EVERY = 0.2


class Qm:
    """The client."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._id = 0

    async def answer(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Give a command on a connection of its own, and return the answer."""
        self._id += 1
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": self._id}}
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        asked: dict[str, Any] = {"execute": command, **({"arguments": named} if named else {})}
        with trio.fail_after(PATIENCE):
            async with await trio.open_unix_socket(str(self.path)) as stream:
                await stream.send_all(b"\xff" + json.dumps(sync).encode() + json.dumps(asked).encode())
                received = b""
                while received.rpartition(b"\xff")[2].count(b"\n") < 2:
                    part = bytes(await stream.receive_some())
                    assert part, received
                    received += part
        first, second = map(json.loads, received.rpartition(b"\xff")[2].splitlines())
        assert first == {"return": self._id}
        assert isinstance(second, dict)
        return second

    async def cmd(self, command: str, **arguments: Any) -> Any:
        """Give a command that must succeed, and return its result."""
        return (await self.answer(command, **arguments))["return"]

    async def leave_half_a_command(self) -> None:
        """Connect, and leave in the middle of a command."""
        async with await trio.open_unix_socket(str(self.path)) as stream:
            await stream.send_all(b'{"execute": "guest-')


@pytest.fixture
async def vm(tmp_path: Path) -> AsyncIterator[Vm]:
    """A guest whose va-guest has the port of QEMU's guest agent."""
    async with running_vm(tmp_path, extra=port(tmp_path)) as vm:
        await vm.booted()
        for source, target in FILES.items():
            encoded = base64.b64encode((ROOT / source).read_bytes()).decode()
            await in_guest(vm, f"mkdir -p $(dirname {target}) && base64 -d <<<{encoded} >{target}")
        await in_guest(
            vm, "udevadm control --reload && systemctl daemon-reload && systemctl start va-guest.service"
        )
        yield vm


async def test_a_client_like_proxmoxs_is_served_in_the_guest_and_on_the_host(vm: Vm, tmp_path: Path) -> None:
    await serves(Qm(tmp_path / "qga.sock"), vm)
    lab = Lab(tmp_path)
    path = tmp_path / "host.sock"
    async with lab.serving("attach", "--qmp", str(vm.qmp_path), "--qga", str(path)):
        await lab.ready()
        await serves(Qm(path), vm)


async def serves(qm: Qm, vm: Vm) -> None:
    """Do what `qm guest` and `vzdump` do."""
    assert await qm.cmd("guest-ping") == {}
    info = await qm.cmd("guest-info")
    assert {"guest-fsfreeze-freeze", "guest-exec"} <= {
        c["name"] for c in info["supported_commands"] if c["enabled"]
    }
    assert (await qm.cmd("guest-get-host-name")) == {"host-name": "virtagent-guest"}

    await qm.leave_half_a_command()
    error = (await qm.answer("guest-file-read", handle=1))["error"]
    assert error == {"class": "GenericError", "desc": "handle '1' has not been found"}

    # qm guest exec
    given = base64.b64encode(b"given").decode()
    pid = (await qm.cmd("guest-exec", path="cat", arg=["-"], input_data=given, capture_output=True))["pid"]
    with trio.fail_after(PATIENCE):
        while not (status := await qm.cmd("guest-exec-status", pid=pid))["exited"]:
            await trio.sleep(LOOK_EVERY)
    assert (status["exitcode"], base64.b64decode(status["out-data"])) == (0, b"given")

    # file-write, file-read
    handle = await qm.cmd("guest-file-open", path="/root/by-qm", mode="wb")
    written = await qm.cmd("guest-file-write", handle=handle, buf_b64=given)
    assert written == {"count": 5, "eof": False}
    await qm.cmd("guest-file-close", handle=handle)
    assert await in_guest(vm, "cat /root/by-qm") == "given"
    handle = await qm.cmd("guest-file-open", path="/root/by-qm", mode="rb")
    read = await qm.cmd("guest-file-read", handle=handle, count=2**20)
    assert read == {"count": 5, "buf-b64": given, "eof": True}
    await qm.cmd("guest-file-close", handle=handle)

    # vzdump
    assert await qm.cmd("guest-fsfreeze-freeze") == 1
    assert await qm.cmd("guest-fsfreeze-status") == "frozen"
    assert (await qm.answer("guest-get-time"))["error"]["class"] == "CommandNotFound"
    assert await qm.cmd("guest-fsfreeze-thaw") == 1
    assert await qm.cmd("guest-fsfreeze-status") == "thawed"
