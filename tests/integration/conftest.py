"""Fixtures: real QEMU processes without a guest. They start in well under a second."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

QEMU = "qemu-system-x86_64"
START_TIMEOUT = 20.0


@dataclass
class Qemu:
    """A running QEMU with one QMP monitor at `path`."""

    path: Path
    process: subprocess.Popen[bytes]


StartQemu = Callable[..., Qemu]


@pytest.fixture
def start_qemu(tmp_path: Path) -> Iterator[StartQemu]:
    """A function that starts QEMU without a machine, plus the given arguments, and waits for its monitor."""
    if shutil.which(QEMU) is None:
        pytest.fail(f"{QEMU} is needed by this test: apt install qemu-system-x86")
    started: list[Qemu] = []

    def start(*arguments: str) -> Qemu:
        path = tmp_path / f"qemu{len(started)}.sock"
        command = [QEMU, "-M", "none", "-nodefaults", "-display", "none"]
        command += ["-qmp", f"unix:{path},server=on,wait=off", *arguments]
        qemu = Qemu(path, subprocess.Popen(command, stdin=subprocess.DEVNULL))
        started.append(qemu)
        wait_until_listening(qemu)
        return qemu

    yield start
    for qemu in started:
        qemu.process.kill()
        qemu.process.wait()


@pytest.fixture
def qemu(start_qemu: StartQemu) -> Qemu:
    """One QEMU without a machine."""
    return start_qemu()


def wait_until_listening(qemu: Qemu) -> None:
    """Wait until the monitor has greeted once.

    A client that comes and leaves before the greeting, while QEMU 7.2 is starting, now and then upsets its
    monitor: the clients after it are dropped or refused.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        assert qemu.process.poll() is None, f"QEMU ended with status {qemu.process.returncode}"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(START_TIMEOUT)
            try:
                probe.connect(str(qemu.path))
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.01)
                continue
            if probe.recv(1):
                return
    pytest.fail(f"QEMU did not listen on {qemu.path} within {START_TIMEOUT} s")
