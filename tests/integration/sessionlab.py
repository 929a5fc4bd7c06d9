"""A va-host, a va-guest and agents of users' sessions, as real processes on this machine.

Only root can have processes of other users. Those are run by a Python that other users can use, too: perhaps
not the one that runs the tests.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hostilelab import DEADLINE, PYTHON_PATH, Process, va_host, wait_until
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir

NAME = "demo"
#: Seconds between two looks.
INTERVAL = 0.1
#: Somebody whom no machine has among its users.
UID = 54321
PLAYER = Path(__file__).with_name("sessionplayer.py")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have processes of other users")


@functools.lru_cache(maxsize=1)
def everybodys_python() -> tuple[str, dict[str, str]]:
    """Return a Python that other users can run with our modules, and the environment for that."""
    packages = sysconfig.get_path("purelib")
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([PYTHON_PATH, packages])}
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run(
                [python, "-c", "import trio, defusedxml, virtagent_guest.session.agent"],
                check=True,
                capture_output=True,
                env=environ,
                cwd="/",
                **_as_user(UID),
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return python, environ
    pytest.skip("there is no Python here that other users can run with these modules")


def _as_user(uid: int) -> dict[str, Any]:
    return {} if uid == os.geteuid() else {"user": uid, "group": uid, "extra_groups": []}


@dataclass
class Lab:
    """A VM whose guest is this machine.

    Attributes:
        directory: with logs and configuration.
        socket: the guest's local one.
        host, guest: the services.
        children: what users run.
    """

    directory: Path
    socket: Path
    runtime: RuntimeDir
    host: Process
    guest: Process
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def channel(self) -> Path:
        """Where the two meet."""
        return self.directory / "channel"

    def client(self) -> VmClient:
        """Connect to the bridge."""
        return VmClient.connect(self.runtime, NAME)

    def session_agent(self, uid: int, **variables: str) -> subprocess.Popen[bytes]:
        """Start a user's ``va-guest session``."""
        return self.start(uid, "-m", "virtagent_guest", "session", "--socket", str(self.socket), **variables)

    def play(self, uid: int, word: str) -> subprocess.Popen[bytes]:
        """Start a user's hostile program."""
        return self.start(uid, str(PLAYER), str(self.socket), word)

    def start(self, uid: int, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a Python of some user."""
        python, environ = everybodys_python()
        with (self.directory / f"user-{uid}-{len(self.children)}.log").open("wb") as log:
            child = subprocess.Popen(
                [python, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env={**environ, **variables},
                **_as_user(uid),
            )
        self.children.append(child)
        return child

    def let_go(self) -> None:
        """Have those begin that wait for it."""
        for child in self.children:
            if child.stdin is not None:
                child.stdin.close()
                child.stdin = None

    def sessions(self) -> list[dict[str, Any]]:
        """Return what `va_sessions` does."""
        with self.client() as client:
            found: list[dict[str, Any]] = client.execute("va_sessions", timeout=DEADLINE)["sessions"]
            return found

    def wait_for_sessions(self, count: int) -> list[dict[str, Any]]:
        """Wait until there are so many, and return them."""
        deadline = time.monotonic() + DEADLINE
        while len(found := self.sessions()) != count:
            assert self.guest.alive, self.guest.log[-2000:]
            assert time.monotonic() < deadline, f"{len(found)} sessions: {self.guest.log[-2000:]}"
            time.sleep(INTERVAL)
        return found

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a va-host command to its end."""
        runtime = ["--runtime-dir", str(self.runtime.path)]
        return subprocess.run(
            [sys.executable, "-m", "virtagent_host.cli", *runtime, *arguments],
            input=stdin,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
            env={**os.environ, "PYTHONPATH": PYTHON_PATH},
        )

    def restart_guest(self) -> None:
        """Kill the va-guest, and start it again."""
        self.guest.kill()
        self.channel.unlink(missing_ok=True)
        self.guest = _start_guest(self.directory, self.channel)

    def end(self) -> None:
        """End all that was started."""
        for child in self.children:
            child.kill()
            child.communicate()


@contextmanager
def session_lab(directory: Path, policy: str = "") -> Iterator[Lab]:
    """Run a VM's va-host and va-guest, with a local socket that everybody may reach.

    Args:
        directory: of the test.
        policy: what guest.toml has besides.
    """
    # Not below pytest's own directory, which is for nobody else.
    with tempfile.TemporaryDirectory(prefix="va-sessions-") as public:
        os.chmod(public, 0o755)
        yield from _serve(directory, Path(public) / "guest.sock", policy)


def _serve(directory: Path, local_socket: Path, policy: str) -> Iterator[Lab]:
    runtime = RuntimeDir(directory / "run")
    runtime.create()
    (directory / "guest.toml").write_text(f'[local]\nsocket = "{local_socket}"\n{policy}')
    channel = directory / "channel"
    guest = _start_guest(directory, channel)
    lab: Lab | None = None
    try:
        with va_host(runtime, NAME, channel) as host:
            lab = Lab(directory, local_socket, runtime, host, guest)
            with lab.client() as client:
                client.execute("va_wait", {"until": "ready", "timeout": DEADLINE}, timeout=DEADLINE)
            try:
                yield lab
            finally:
                lab.end()
    finally:
        (guest if lab is None else lab.guest).kill()


def _start_guest(directory: Path, channel: Path) -> Process:
    command = ["--config", str(directory / "guest.toml"), "-c", "unix-listen", "-p", str(channel)]
    guest = Process(directory / "guest.log", "virtagent_guest", *command)
    try:
        wait_until(channel.exists, guest)
    except BaseException:
        guest.kill()
        raise
    return guest
