"""`va-host launch` with a real QEMU that has no guest: what happens around its start and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

VA_HOST = [str(Path(sys.executable).with_name("va-host"))]
QEMU = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S"]
#: Seconds; all of it takes a fraction of one.
PATIENCE = 30.0


def launch(directory: Path, *qemu: str) -> subprocess.Popen[bytes]:
    pidfile = directory / "qemu.pid"
    command = [*VA_HOST, "--runtime-dir", str(directory / "run"), "launch", "--name", "vm", "--"]
    # Not a pipe: QEMU has it open, too, and may outlive us.
    with (directory / "errors").open("wb") as errors:
        return subprocess.Popen([*command, *QEMU, "-pidfile", str(pidfile), *qemu], stderr=errors)


async def end_of(process: subprocess.Popen[bytes], directory: Path) -> tuple[int, str]:
    """Wait for va-host to end and return its exit status and what it said."""
    status = await trio.to_thread.run_sync(process.wait, PATIENCE)
    return status, (directory / "errors").read_text()


async def until_there(path: Path) -> None:
    with trio.fail_after(PATIENCE):
        while not path.exists():
            await trio.sleep(0.01)


async def qemu_pid(directory: Path) -> int:
    """Wait until QEMU has written its pid, and return it."""
    with trio.fail_after(PATIENCE):
        while not (text := _text(directory / "qemu.pid")).endswith("\n"):
            await trio.sleep(0.01)
    return int(text)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_a_vm_that_cannot_be_served_is_not_left_running(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "vm.qmp").mkdir()
    process = launch(tmp_path)
    try:
        pid = await qemu_pid(tmp_path)
        status, errors = await end_of(process, tmp_path)
        assert status != 0
        assert "vm.qmp" in errors
        assert not runs(pid)
    finally:
        process.kill()
        process.wait()


async def test_a_signal_during_the_start_shuts_down_rather_than_leaving_qemu_behind(tmp_path: Path) -> None:
    process = launch(tmp_path)
    try:
        await qemu_pid(tmp_path)
        process.send_signal(signal.SIGTERM)
        await until_there(tmp_path / "run" / "vm.qmp")
        # There is no agent, and nobody at the power button: so the graded shutdown is still at it.
        quit_it = [*VA_HOST, "--runtime-dir", str(tmp_path / "run"), "qmp", "vm", "quit"]
        done = await trio.run_process(quit_it, capture_stdout=True)
        assert done.returncode == 0
        status, errors = await end_of(process, tmp_path)
        assert status == 0, errors
        assert "SIGTERM, shutting the guest down" in errors
        assert "shutdown by agent: not ready" in errors
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("argument", ["-no-such-option"])
async def test_a_qemu_that_ends_at_once_is_broken_and_says_so(tmp_path: Path, argument: str) -> None:
    process = launch(tmp_path, argument)
    status, errors = await end_of(process, tmp_path)
    assert status == 6
    assert "has ended with status 1" in errors


async def test_a_launched_vm_can_be_detached_from_and_runs_on(tmp_path: Path) -> None:
    process = launch(tmp_path)
    pid = 0
    try:
        await until_there(tmp_path / "run" / "vm.qmp")
        pid = await qemu_pid(tmp_path)
        runtime = ["--runtime-dir", str(tmp_path / "run")]
        shown = await trio.run_process([*VA_HOST, *runtime, "status", "vm", "--json"], capture_stdout=True)
        assert json.loads(shown.stdout)["state"] == "paused"
        await trio.run_process([*VA_HOST, *runtime, "detach", "vm"])
        assert (await end_of(process, tmp_path))[0] == 0
        assert runs(pid)
    finally:
        process.kill()
        process.wait()
        if pid and runs(pid):
            os.kill(pid, signal.SIGKILL)
