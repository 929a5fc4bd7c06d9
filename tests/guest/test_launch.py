"""`va-host launch` on a real guest: QEMU's whole life in its hands, or not at all."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.lab import Lab, gone, is_running, kill_pid_of
from tests.guest.qemu import qemu_command
from tests.guest.vm import BOOT_TIMEOUT, Vm

#: Seconds for a graded shutdown, all its stages included.
SHUTDOWN_TIMEOUT = 100
#: Seconds for QEMU to end when it is told to.
QUIT_TIMEOUT = 20


@pytest.fixture
def pidfile(tmp_path: Path) -> Iterator[Path]:
    """Where QEMU is to write its pid, for a QEMU that the test's va-host may leave behind."""
    path = tmp_path / "qemu.pid"
    yield path
    kill_pid_of(path)


class LaunchedVm(Vm):
    """A VM whose QEMU va-host starts: it is not our child, so whether it runs is not known here."""

    @property
    def returncode(self) -> int | None:
        return None


async def test_sigterm_shuts_the_guest_down_by_its_agent(tmp_path: Path, pidfile: Path) -> None:
    lab = Lab(tmp_path)
    vm = LaunchedVm(tmp_path, extra=["-pidfile", str(pidfile)])
    async with lab.serving("launch", "--", *vm.command) as service:
        await lab.ready()
        await lab.succeed("ping")
        pid = int(pidfile.read_text())
        service.send_signal(signal.SIGTERM)
        assert await service.ended(SHUTDOWN_TIMEOUT) == 0
        assert "demo: shut down by agent in " in service.said
        assert not is_running(pid)
    assert not lab.bridge.exists()


async def test_sigterm_shuts_a_guest_without_an_agent_down_by_acpi(tmp_path: Path, pidfile: Path) -> None:
    lab = Lab(tmp_path)
    vm = LaunchedVm(tmp_path, extra=["-pidfile", str(pidfile)])
    async with lab.serving("launch", "--", *vm.command) as service:
        # Before that, logind would miss it.
        await vm.wait_for_log("(Power Button)", timeout=BOOT_TIMEOUT)
        # Before that, it might only just be starting.
        await lab.ready()
        await vm.console("systemctl stop va-guest")
        await lab.wait("port-closed")
        service.send_signal(signal.SIGTERM)
        assert await service.ended(SHUTDOWN_TIMEOUT) == 0
        assert "shutdown by agent: not ready: port-closed: " in service.said
        assert "demo: shut down by acpi in " in service.said


async def test_a_killed_launch_leaves_qemu_running_and_attach_takes_over(
    tmp_path: Path, pidfile: Path
) -> None:
    lab = Lab(tmp_path)
    vm = LaunchedVm(tmp_path, extra=["-pidfile", str(pidfile)])
    async with lab.serving("launch", "--", *vm.command) as service:
        async with lab.client() as client:
            await client.execute("query-status")
        pid = int(pidfile.read_text())
        service.kill()
    assert is_running(pid)
    async with lab.serving("attach", "--qmp", str(lab.runtime / "demo.monitor")) as service:
        await lab.ready()
        await lab.succeed("ping")
        # Its status does not count: QEMU may end before it has answered (qapi/control.json).
        await lab.run("qmp", "demo", "quit")
        assert await service.ended() == 0
        await gone(pid, QUIT_TIMEOUT)


async def test_a_qemu_that_refuses_its_options_is_reported_at_once(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    result = await lab.run("launch", "--name", "demo", "--", "qemu-system-x86_64", "-no-such-option")
    assert result.status == 6, result
    assert "-no-such-option: invalid option" in result.stderr
    assert "va-host: broken: qemu-system-x86_64 has ended with status 1" in result.stderr


async def test_a_qemu_that_refuses_a_device_is_reported_at_once(tmp_path: Path) -> None:
    # It refuses later than a bad option: when its monitor already listens.
    command = qemu_command(tmp_path, extra=["-device", "no-such-device"])
    result = await Lab(tmp_path).run("launch", "--name", "demo", "--", *command)
    assert result.status == 6, result
    assert "no-such-device" in result.stderr
    assert "va-host: broken: qemu-system-x86_64 has ended with status 1" in result.stderr


async def test_a_program_that_does_not_exist_is_named_with_the_remedy(tmp_path: Path) -> None:
    result = await Lab(tmp_path).run("launch", "--name", "demo", "--", "qemu-system-nothing")
    assert result.status == 3, result
    assert "not there: no program 'qemu-system-nothing': install QEMU" in result.stderr
