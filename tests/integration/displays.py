"""Real displays without a screen, each with a clipboard: an X server (Xvfb), a Wayland compositor (sway)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Seconds to start.
DEADLINE = 30.0
#: Where they look for programs' settings, or may not.
_KEPT = ("PATH", "LANG")

Environ = dict[str, str]


@contextmanager
def xvfb() -> Iterator[Environ]:
    """Run an X server; gives the variable that leads there."""
    with xvfb_process() as (environ, _):
        yield environ


@contextmanager
def xvfb_process() -> Iterator[tuple[Environ, int]]:
    """Run an X server; gives the variable that leads there, and its process id."""
    _need("Xvfb", "xvfb")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "64x64x8", "-nolisten", "tcp", "-noreset"]
    process = subprocess.Popen(
        command,
        pass_fds=[writer],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        os.close(writer)
        with open(reader, "rb") as told:
            number = told.readline().strip().decode()
        assert number, f"Xvfb ended with status {process.wait()}"
        yield {"DISPLAY": f":{number}"}, process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def sway() -> Iterator[Environ]:
    """Run a Wayland compositor; gives the variables that lead there."""
    _need("sway", "sway")
    _need("wl-copy", "wl-clipboard")
    with tempfile.TemporaryDirectory(prefix="sway-") as name:
        runtime = Path(name)
        environ = {
            **{kept: os.environ[kept] for kept in _KEPT if kept in os.environ},
            "XDG_RUNTIME_DIR": name,
            "HOME": name,
            "WLR_BACKENDS": "headless",
            "WLR_LIBINPUT_NO_DEVICES": "1",
            "WLR_RENDERER": "pixman",
        }
        (runtime / "config").write_text("xwayland disable\n")
        command = ["sway", "--config", str(runtime / "config")]
        if os.getuid() == 0:
            # It refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            os.chown(runtime, nobody.pw_uid, nobody.pw_gid)
            ids = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
            command = ["setpriv", *ids, *command]
        with (runtime / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield {"WAYLAND_DISPLAY": str(_socket(runtime, process))}
        finally:
            process.terminate()
            process.wait()


def _socket(runtime: Path, process: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        for path in runtime.glob("wayland-*"):
            if path.is_socket():
                return path
        time.sleep(0.02)
    pytest.fail(f"sway did not listen: {(runtime / 'log').read_text()}")


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.fail(f"{program} is needed by this test: apt install {package}, or scripts/setup_tests.sh")
