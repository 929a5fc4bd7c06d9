"""`va-host doctor` on real QEMUs without a guest, and on unix channels: each trouble is planted, and found.

Where the remedy is a command that ends, it is run, and the doctor goes on to the next thing.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.guest.lab import VA_HOST, Lab, Service
from tests.integration.clilab import DEADLINE, run_on_terminal
from tests.integration.conftest import StartQemu
from virtagent_protocol import xmlrpc
from virtagent_protocol.limits import PeerLimits
from virtagent_protocol.messages import Request, Response, encode
from virtagent_protocol.reader import MessageReader
from virtagent_protocol.session import Hello, Role

#: The other end of a channel.
Peer = Callable[[trio.SocketStream], Awaitable[None]]

OURS = "org.qemu.virtagent"
QEMU_GA = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class Diagnosis:
    """What `va-host doctor --json` printed, and its exit status."""

    status: int
    findings: dict[str, dict[str, Any]]

    @property
    def failed(self) -> str:
        """The check that does not hold, "" if none."""
        wrong = [check for check, finding in self.findings.items() if finding["holds"] is False]
        assert len(wrong) <= 1, self
        return wrong[0] if wrong else ""

    @property
    def finding(self) -> str:
        """What is said of that check."""
        return str(self.findings[self.failed]["finding"])

    @property
    def remedy(self) -> list[str]:
        """The lines of its remedy."""
        return str(self.findings[self.failed]["remedy"]).splitlines()

    def seen(self) -> dict[str, bool | None]:
        """Each check, and whether it holds."""
        return {check: finding["holds"] for check, finding in self.findings.items()}


class Clinic(Lab):
    """A runtime directory, and the doctor for the VMs in it."""

    async def diagnose(self, *arguments: str, run_by: Sequence[str] = ()) -> Diagnosis:
        """Run `va-host doctor`, by way of another command if there is one."""
        with trio.fail_after(DEADLINE):
            command = [*run_by, *self.command_line("doctor", "--json", *arguments)]
            result = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        assert not result.stderr, result
        rows = json.loads(result.stdout)
        assert all(set(row) == {"check", "holds", "finding", "remedy"} for row in rows)
        return Diagnosis(result.returncode, {row["check"]: row for row in rows})

    async def follow(self, line: str) -> None:
        """Run a line of a remedy in a shell."""
        path = f"{Path(VA_HOST).parent}:{os.environ['PATH']}"
        with trio.fail_after(DEADLINE):
            await trio.run_process(["sh", "-c", line], env={**os.environ, "PATH": path}, capture_stdout=True)

    @asynccontextmanager
    async def wait_attached(self, *arguments: str) -> AsyncIterator[Service]:
        """Run `va-host attach` until the end of the block; its bridge is there."""
        async with self.serving("attach", *arguments) as service:
            async with self.client():
                pass
            yield service


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def chardev(path: Path, label: str = "virtagent") -> list[str]:
    return ["-chardev", f"socket,id={label},path={path},server=on,wait=off"]


def port(name: str = OURS, label: str = "virtagent") -> list[str]:
    return ["-device", f"virtserialport,id=port-{label},chardev={label},name={name}"]


def unprivileged() -> list[str]:
    """Return what runs a command so that the modes of files count: root without its capabilities."""
    return [] if os.geteuid() else ["setpriv", "--bounding-set=-all"]


# --- The host's side ---------------------------------------------------------------------------------


async def test_a_machine_without_controller_is_told_that_attach_plugs_one_in(
    clinic: Clinic, start_qemu: StartQemu
) -> None:
    qemu = start_qemu("-M", "pc")
    found = await clinic.diagnose("--qmp", str(qemu.path))
    assert (found.status, found.failed) == (3, "controller")
    assert "va-host attach plugs one in" in found.finding
    assert found.remedy == [f"va-host --runtime-dir {clinic.runtime} attach --qmp {qemu.path}"]
    assert found.seen() == {
        "monitor": True,
        "controller": False,
        **dict.fromkeys(("chardev", "port", "running", "driver", "opened", "agent", "session", "policy")),
    }


async def test_a_q35_without_a_free_root_port_is_told_the_option_to_add(
    clinic: Clinic, start_qemu: StartQemu
) -> None:
    taken = ["-device", "pcie-root-port,id=taken,chassis=1", "-device", "virtio-rng-pci,bus=taken"]
    found = await clinic.diagnose("--qmp", str(start_qemu("-M", "q35", *taken).path))
    assert (found.status, found.failed) == (3, "controller")
    assert "takes none while it runs" in found.finding
    assert "-device virtio-serial" in found.remedy[0]

    free = ["-device", "pcie-root-port,id=free,chassis=2"]
    found = await clinic.diagnose("--qmp", str(start_qemu("-M", "q35", *taken, *free).path))
    assert (found.status, found.failed) == (3, "controller")
    assert "va-host attach plugs one in" in found.finding


async def test_what_attach_makes_is_found_in_place(clinic: Clinic, start_qemu: StartQemu) -> None:
    qemu = start_qemu("-M", "pc", "-device", "virtio-serial")
    found = await clinic.diagnose("--qmp", str(qemu.path))
    assert (found.status, found.failed) == (3, "chardev")
    assert "there is no chardev 'virtagent'" in found.finding

    async with clinic.wait_attached("--qmp", str(qemu.path)):
        found = await clinic.diagnose("demo")
        # SeaBIOS looks at no virtio-serial device.
        assert (found.status, found.failed) == (4, "driver")
        assert "has not booted so far" in found.finding
        assert found.findings["port"]["finding"] == f"{OURS} (id 'virtagent-port')"


async def test_a_wrong_port_name_is_found_and_the_remedy_unplugs_it(
    clinic: Clinic, start_qemu: StartQemu, tmp_path: Path
) -> None:
    wrong = [*chardev(tmp_path / "c"), "-device", "virtio-serial", *port("org.example.virtagent")]
    qemu = start_qemu("-M", "pc", *wrong)
    found = await clinic.diagnose("--qmp", str(qemu.path))
    assert (found.status, found.failed) == (3, "port")
    assert "'org.example.virtagent', not org.qemu.virtagent" in found.finding

    unplug, attach = found.remedy
    await clinic.follow(unplug)
    after = await clinic.diagnose("--qmp", str(qemu.path))
    assert (after.finding, after.remedy) == (f"there is no port {OURS}", [attach])


async def test_qemu_gas_port_is_not_mistaken_for_ours(
    clinic: Clinic, start_qemu: StartQemu, tmp_path: Path
) -> None:
    theirs = [*chardev(tmp_path / "qga", "qga0"), "-device", "virtio-serial", *port(QEMU_GA, "qga0")]
    found = await clinic.diagnose("--qmp", str(start_qemu("-M", "pc", *theirs).path))
    assert (found.status, found.failed) == (3, "chardev")
    assert f"{QEMU_GA} is qemu-ga's, not ours" in found.finding
    assert " attach --qmp " in found.remedy[-1]

    mixed_up = [*chardev(tmp_path / "ours"), "-device", "virtio-serial", *port(QEMU_GA)]
    found = await clinic.diagnose("--qmp", str(start_qemu("-M", "pc", *mixed_up).path))
    assert (found.status, found.failed) == (3, "port")
    assert "that one is qemu-ga's" in found.finding
    assert "device_del id=port-virtagent" in found.remedy[0]


async def test_a_chardev_that_is_no_socket_is_told_what_to_be(clinic: Clinic, start_qemu: StartQemu) -> None:
    pty = ["-chardev", "pty,id=virtagent", "-device", "virtio-serial", *port()]
    found = await clinic.diagnose("--qmp", str(start_qemu("-M", "pc", *pty).path))
    assert (found.status, found.failed) == (3, "chardev")
    assert "not a listening unix socket" in found.finding


async def test_a_stopped_guest_is_found_and_the_remedy_continues_it(
    clinic: Clinic, start_qemu: StartQemu, tmp_path: Path
) -> None:
    qemu = start_qemu("-M", "pc", "-S", *chardev(tmp_path / "c"), "-device", "virtio-serial", *port())
    found = await clinic.diagnose("--qmp", str(qemu.path))
    assert (found.status, found.failed) == (4, "running")
    assert "state 'prelaunch'" in found.finding
    await clinic.follow(found.remedy[0])
    assert (await clinic.diagnose("--qmp", str(qemu.path))).failed == "driver"

    async with clinic.wait_attached("--qmp", str(qemu.path)):
        async with clinic.client() as client:
            await client.execute("stop")
        found = await clinic.diagnose("demo")
        assert (found.status, found.failed) == (4, "running")
        assert "state 'paused'" in found.finding
        await clinic.follow(found.remedy[0])
        assert (await clinic.diagnose("demo")).failed == "driver"


# --- Who may, and who does ---------------------------------------------------------------------------


async def test_a_monitor_without_permission_is_found(
    clinic: Clinic, start_qemu: StartQemu, tmp_path: Path
) -> None:
    monitor = tmp_path / "monitor"
    start_qemu("-M", "pc", "-qmp", f"unix:{monitor},server=on,wait=off")
    monitor.chmod(0)
    found = await clinic.diagnose("--qmp", str(monitor), run_by=unprivileged())
    assert (found.status, found.failed) == (5, "monitor")
    assert "Permission denied" in found.finding
    assert found.remedy[0] == f"ls -l {monitor}"


async def test_a_chardev_without_permission_is_found(
    clinic: Clinic, start_qemu: StartQemu, tmp_path: Path
) -> None:
    monitor, channel = tmp_path / "monitor", tmp_path / "channel"
    devices = [*chardev(channel), "-device", "virtio-serial", *port()]
    start_qemu("-M", "pc", "-qmp", f"unix:{monitor},server=on,wait=off", *devices)
    channel.chmod(0)
    found = await clinic.diagnose("--qmp", str(monitor), run_by=unprivileged())
    assert (found.status, found.failed) == (5, "chardev")
    assert f"cannot connect to chardev 'virtagent' ({channel}): Permission denied" in found.finding

    channel.unlink()
    found = await clinic.diagnose("--qmp", str(monitor), run_by=unprivileged())
    assert (found.status, found.failed) == (3, "chardev")
    assert "No such file" in found.finding


async def test_a_second_va_host_that_holds_the_chardev_is_named(
    clinic: Clinic, start_qemu: StartQemu, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    qemu = start_qemu("-M", "pc", "-device", "virtio-serial", "-qmp", f"unix:{second},server=on,wait=off")
    stranger = Clinic(tmp_path / "elsewhere", "stranger")
    stranger.runtime.parent.mkdir()
    async with stranger.wait_attached("--qmp", str(qemu.path)) as holder:
        found = await clinic.diagnose("--qmp", str(second))
        assert (found.status, found.failed) == (4, "chardev")
        assert f"pid {holder.pid} (" in found.finding
        assert "attach --name stranger" in found.finding
        assert found.remedy == [f"kill {holder.pid}"]

        # Where it can be asked, it is: as one of ours.
        known = await stranger.diagnose("--qmp", str(second))
        assert known.findings["chardev"]["holds"], known
        assert f"va-host 'stranger' (pid {holder.pid})" in known.findings["chardev"]["finding"]

        await clinic.follow(found.remedy[0])
        assert await holder.ended() == 0
    found = await clinic.diagnose("--qmp", str(second))
    assert found.findings["chardev"]["finding"].endswith(" is free")


async def test_a_monitor_that_a_va_host_has_is_told_whom_to_ask(
    clinic: Clinic, start_qemu: StartQemu
) -> None:
    qemu = start_qemu("-M", "pc", "-device", "virtio-serial")
    async with clinic.wait_attached("--qmp", str(qemu.path)):
        found = await clinic.diagnose("--qmp", str(qemu.path))
        assert (found.status, found.failed) == (4, "monitor")
        assert "va-host 'demo'" in found.finding
        assert found.remedy == [f"va-host --runtime-dir {clinic.runtime} doctor demo"]


async def test_a_va_host_that_waits_behind_another_is_told_who_that_is(tmp_path: Path) -> None:
    first, second = Clinic(tmp_path, "first"), Clinic(tmp_path, "second")
    channel = f"unix:{tmp_path / 'channel'}"
    async with (
        serve_channel(tmp_path / "channel", silent),
        first.wait_attached("--channel", channel) as holder,
    ):
        await first.wait("greeting")
        async with second.wait_attached("--channel", channel):
            await second.wait("greeting")
            found = await second.diagnose("second")
            assert (found.status, found.failed) == (4, "chardev")
            assert f"va-host 'first' (pid {holder.pid})" in found.finding
            await second.follow(found.remedy[0])
            assert await holder.ended() == 0


# --- The service -------------------------------------------------------------------------------------


async def test_a_vm_without_a_service_is_told_how_to_start_one_and_how_to_look(clinic: Clinic) -> None:
    found = await clinic.diagnose("demo")
    assert (found.status, found.failed) == (3, "monitor")
    assert "no VM named 'demo' is attached" in found.finding
    va_host = f"va-host --runtime-dir {clinic.runtime}"
    assert found.remedy[0] == f"{va_host} attach --qmp SOCKET --name demo"
    assert found.remedy[1].startswith(f"{va_host} doctor --qmp SOCKET")


async def test_a_monitor_that_is_not_there_is_told_how_to_make_one(clinic: Clinic, tmp_path: Path) -> None:
    found = await clinic.diagnose("--qmp", str(tmp_path / "none"))
    assert (found.status, found.failed) == (3, "monitor")
    assert "-qmp unix:" in found.remedy[0]


async def test_a_service_that_waits_for_qemu_is_not_taken_for_one_without(
    clinic: Clinic, start_qemu: StartQemu, tmp_path: Path
) -> None:
    async with clinic.wait_attached("--retry", "--qmp", str(tmp_path / "qemu0.sock")):
        found = await until_failed(clinic, "monitor", "waiting for QEMU")
        assert found.status == 4
        assert "start QEMU" in found.remedy[0]

        qemu = start_qemu("-M", "pc")
        await until_failed(clinic, "driver")
        qemu.process.kill()
        found = await until_failed(clinic, "monitor", "waiting for QEMU")
        assert found.status == 4


async def test_name_and_monitor_together_are_a_usage_error(clinic: Clinic) -> None:
    result = await clinic.run("doctor", "demo", "--qmp", "x")
    assert (result.status, result.stdout) == (2, b"")


# --- The other end of a channel ----------------------------------------------------------------------


async def test_an_agent_of_another_major_version_is_found(clinic: Clinic, tmp_path: Path) -> None:
    async with served_by(clinic, from_the_future):
        found = await until_failed(clinic, "session")
        assert found.status == 6
        assert found.findings["agent"]["holds"]
        assert "no common protocol version" in found.finding
        assert "speaks 2.0" in found.finding
        assert "in the guest: va-guest --version" in found.remedy


async def test_qemu_ga_on_our_channel_is_not_taken_for_a_silent_agent(clinic: Clinic, tmp_path: Path) -> None:
    async with served_by(clinic, like_qemu_ga):
        found = await until_failed(clinic, "agent", "is it qemu-ga's port?")
        assert found.status == 6


async def test_an_agent_that_says_nothing_is_found(clinic: Clinic, tmp_path: Path) -> None:
    async with served_by(clinic, silent):
        found = await until_failed(clinic, "agent")
        assert found.status == 4
        assert "no agent answers" in found.finding
        # Attached without QMP.
        assert found.findings["driver"]["holds"] is None


async def test_a_channel_that_is_not_there_is_found(clinic: Clinic, tmp_path: Path) -> None:
    async with clinic.wait_attached("--channel", f"unix:{tmp_path / 'none'}"):
        found = await until_failed(clinic, "chardev", "No such file")
        assert found.status == 3


# --- Words -------------------------------------------------------------------------------------------


async def test_people_get_marks_and_only_a_terminal_gets_colour(
    clinic: Clinic, start_qemu: StartQemu
) -> None:
    qemu = start_qemu("-M", "pc")
    result = await clinic.run("doctor", "--qmp", str(qemu.path))
    monitor, controller, remedy, chardev_, *_ = result.stdout.decode().splitlines()
    assert monitor.startswith(f"✓ monitor     {qemu.path}: QEMU ")
    assert controller.startswith("✗ controller  there is no virtio-serial controller yet")
    assert remedy.startswith("    va-host ")
    assert chardev_ == "– chardev     not looked at"  # noqa: RUF001
    assert b"\x1b" not in result.stdout

    command = clinic.command_line("doctor", "--qmp", str(qemu.path))
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    shown, status = await trio.to_thread.run_sync(run_on_terminal, command, environ, [])
    assert status == 3
    assert "\x1b[32m✓\x1b[0m monitor" in shown
    assert "\x1b[31m✗\x1b[0m controller" in shown


@asynccontextmanager
async def served_by(clinic: Clinic, peer: Peer) -> AsyncIterator[Service]:
    """Attach to a channel with this peer at its other end, until the end of the block."""
    channel = clinic.runtime.with_name("channel")
    async with (
        serve_channel(channel, peer),
        clinic.wait_attached("--channel", f"unix:{channel}") as service,
    ):
        yield service


# --- Peers -------------------------------------------------------------------------------------------


@asynccontextmanager
async def serve_channel(path: Path, peer: Peer) -> AsyncIterator[None]:
    """Listen as QEMU does: one client at a time, the next only when that one has gone."""
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen(1)

        async def serve() -> None:
            while True:
                sock, _ = await listener.accept()
                with sock:
                    await peer(trio.SocketStream(sock))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield
            nursery.cancel_scope.cancel()


async def silent(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass


async def like_qemu_ga(stream: trio.SocketStream) -> None:
    async for _ in stream:
        await stream.send_all(b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n' * 2)


async def from_the_future(stream: trio.SocketStream) -> None:
    """Answer hello as an agent that speaks 2.0 only and asks nothing back."""
    own = Hello(Role.GUEST, "0" * 16, "va-guest 2.0.0", "", ("2.0",), PeerLimits())
    reader = MessageReader()
    async for data in stream:
        for message in reader.feed(data):
            if isinstance(message, Request):
                await stream.send_all(encode(Response(message.tag, xmlrpc.encode_result(own.to_value()))))


async def until_failed(clinic: Clinic, check: str, text: str = "") -> Diagnosis:
    """Ask until a check fails with this text: the link needs a moment to find out."""
    with trio.move_on_after(DEADLINE):
        while True:
            found = await clinic.diagnose("demo")
            if found.failed == check and text in found.finding:
                return found
    pytest.fail(f"'{check}' did not fail so within {DEADLINE} s, but: {found}")
