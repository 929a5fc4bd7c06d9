"""A va-guest and a va-host as processes, services of the host, and programs of the guest that call them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.integration.forwardlab import until_ready
from tests.integration.hostilelab import PYTHON_PATH, Process, wait_until
from virtagent_host.runtime import RuntimeDir

#: Seconds for a whole test.
DEADLINE = 60.0

ALLOW_ALL = """\
[[rule]]
name = "everything"
action = "allow"
services = ["*"]
users = ["*"]
arguments = ["**"]
"""


@dataclass
class Lab:
    """Processes of one VM, and the directory of the host's services."""

    directory: Path
    name: str
    guest: Process
    host: Process

    @property
    def runtime(self) -> RuntimeDir:
        return RuntimeDir(self.directory / "run")

    @property
    def services(self) -> Path:
        return self.directory / "services"

    @property
    def socket(self) -> str:
        return str(self.directory / "guest.sock")

    def service(self, name: str, script: str, interpreter: str = "/bin/sh") -> Path:
        """Add a service."""
        path = self.services / "bin" / name
        path.write_text(f"#!{interpreter}\n{script}\n")
        path.chmod(0o755)
        return path

    def policy(self, text: str) -> None:
        """Write the policy for all VMs, and have it loaded."""
        seen = self.host.log.count("SIGHUP")
        (self.services / "policy.toml").write_text(text)
        os.kill(self.host._process.pid, signal.SIGHUP)
        wait_until(lambda: self.host.log.count("SIGHUP") > seen, self.host)
        # The line above is followed by that of what became of it.
        wait_until(lambda: " services" in self.host.log.split("SIGHUP")[-1].split("\n", 1)[1], self.host)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "virtagent_guest", "call", "--socket", self.socket, *arguments]

    async def call(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run `va-guest call` to its end."""
        return await trio.run_process(
            self.command(*arguments),
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environ(),
        )

    async def open(self, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> trio.Process:
        """Begin `va-guest call`, with its output in pipes."""
        return await trio.lowlevel.open_process(
            self.command(*arguments),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ(),
        )


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PYTHON_PATH, "SECRET": "of va-host"}


@contextmanager
def lab(name: str = "demo", *, policy: str | None = ALLOW_ALL) -> Iterator[Lab]:
    """Run both ends, in session."""
    with tempfile.TemporaryDirectory(prefix="services-") as temporary:
        directory = Path(temporary)
        (directory / "services/bin").mkdir(parents=True)
        if policy is not None:
            (directory / "services/policy.toml").write_text(policy)
        with va_guest(directory) as guest, va_host(directory, name) as host:
            until_ready(RuntimeDir(directory / "run"), name)
            yield Lab(directory, name, guest, host)


@contextmanager
def va_guest(directory: Path) -> Iterator[Process]:
    config = directory / "guest.toml"
    config.write_text(f'[local]\nsocket = "{directory}/guest.sock"\n')
    channel = ("-c", "unix-listen", "-p", str(directory / "channel.sock"))
    process = Process(directory / "guest.log", "virtagent_guest", "--config", str(config), *channel)
    try:
        wait_until((directory / "guest.sock").exists, process)
        yield process
    finally:
        process.kill()


@contextmanager
def va_host(directory: Path, name: str) -> Iterator[Process]:
    runtime = RuntimeDir(directory / "run")
    runtime.create()
    process = Process(
        directory / "host.log",
        "virtagent_host.cli",
        *("--runtime-dir", str(runtime.path), "attach", "--name", name),
        *("--channel", f"unix:{directory}/channel.sock", "--services-dir", str(directory / "services")),
    )
    try:
        wait_until(lambda: name in runtime.attached(), process)
        yield process
    finally:
        process.kill()
