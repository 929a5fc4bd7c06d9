"""`va-host top` on a terminal, with a real va-guest and va-host behind it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.forwardlab import NAME, Lab, lab, until_ready
from tests.integration.hostilelab import DEADLINE, PYTHON_PATH, va_guest, va_host, wait_until
from tests.integration.statslab import run
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir

#: What a terminal gets to show another screen, to go back to its own, and to show the cursor again.
OTHER_SCREEN, OWN_SCREEN, CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


@pytest.fixture(scope="module")
def vm() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Lab]:
    """A VM of which a test ends a part."""
    with lab() as made:
        yield made


class Terminal:
    """`va-host top` on a terminal of its own, which a test reads and types on."""

    def __init__(self, vm: Lab, *arguments: str, rows: int = 24, columns: int = 120) -> None:
        self.master, self._slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self._slave)
        self.seen = b""
        environ = {**os.environ, "PYTHONPATH": PYTHON_PATH, "TERM": "xterm", "NO_COLOR": "1"}
        environ.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            vm.command("top", "--interval", "0.2", *arguments),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**environ, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def until(self, *texts: str) -> str:
        """Read until all of the texts have appeared since the last call, and return what did."""
        begin, deadline = len(self.seen), time.monotonic() + DEADLINE
        while True:
            fresh = self.seen[begin:].decode(errors="replace")
            if all(text in fresh for text in texts):
                return fresh
            left = deadline - time.monotonic()
            assert left > 0, f"no {texts} in {fresh[-3000:]!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += self._read()

    def _read(self) -> bytes:
        with suppress(OSError):  # EIO: nobody has the terminal open
            return os.read(self.master, 65536)
        return b""

    def ended(self) -> int:
        """Wait for its end, and return its exit status; the terminal must be as it was."""
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += self._read()
        while select.select([self.master], [], [], 0)[0] and (data := self._read()):
            self.seen += data
        assert termios.tcgetattr(self._slave) == self.before
        assert self.seen.count(OTHER_SCREEN) == self.seen.count(OWN_SCREEN) >= 1
        assert self.seen.rindex(OWN_SCREEN) > self.seen.rindex(OTHER_SCREEN)
        assert CURSOR in self.seen
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self.master)


@contextmanager
def top(vm: Lab, *arguments: str, **size: int) -> Iterator[Terminal]:
    terminal = Terminal(vm, *arguments, **size)
    try:
        yield terminal
    finally:
        terminal.close()


def test_top_shows_the_vm_with_figures_and_curves_and_ends_by_q(vm: Lab) -> None:
    with top(vm) as terminal:
        terminal.until("1 VM, by name", NAME, "ready", "%", "/s", "▁")
        terminal.type(b"c")
        terminal.until("by cpu")
        terminal.type(b"sr")
        terminal.until("by memory (turned)")
        terminal.type(b"q")
        assert terminal.ended() == 0


def test_top_fits_the_terminal_when_it_is_resized(vm: Lab) -> None:
    with top(vm, columns=200) as terminal:
        wide = terminal.until("NETWORK", "NETWORK")
        assert " " * 20 + "PRESSURE" in wide
        terminal.resize(10, 80)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.until("CPU")
        narrow = terminal.until("by name", "NETWORK").rpartition("NAME")[2]
        assert " " * 20 + "PRESSURE" not in narrow
        terminal.type(b"q")
        assert terminal.ended() == 0


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP), (signal.SIGINT, 130)],
)
def test_top_leaves_the_terminal_as_it_was_when_a_signal_ends_it(
    vm: Lab, number: signal.Signals, status: int
) -> None:
    with top(vm) as terminal:
        terminal.until("by name")
        if number is signal.SIGINT:
            terminal.type(b"\x03")
        else:
            os.kill(terminal.process.pid, number)
        assert terminal.ended() == status


def test_top_gives_the_terminal_back_while_it_is_stopped(vm: Lab) -> None:
    with top(vm) as terminal:
        terminal.until("by name")
        # As Ctrl-Z; a session without a shell ignores that from the terminal (it is orphaned).
        os.kill(terminal.process.pid, signal.SIGTSTP)
        terminal.until(OWN_SCREEN.decode())
        wait_until(lambda: _state(terminal.process.pid) == "T", vm.host)
        assert termios.tcgetattr(terminal._slave) == terminal.before
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.until(OTHER_SCREEN.decode(), "by name")
        terminal.type(b"q")
        assert terminal.ended() == 0


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_top_ends_when_its_terminal_does(vm: Lab) -> None:
    terminal = Terminal(vm)
    try:
        terminal.until("by name")
        os.close(terminal.master)
        os.close(terminal._slave)
        assert terminal.process.wait(DEADLINE) is not None
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_top_shows_vms_that_come_and_go_and_why_one_is_not_ready(own: Lab) -> None:
    with top(own) as terminal, tempfile.TemporaryDirectory() as name:
        terminal.until("1 VM, by name", "ready")
        directory = Path(name)
        runtime: RuntimeDir = own.runtime
        with (
            va_guest(directory, directory / "channel.sock"),
            va_host(runtime, "second", directory / "channel.sock"),
        ):
            with VmClient.connect(runtime, "second") as client:
                client.execute("va_wait", {"until": "ready", "timeout": DEADLINE}, timeout=DEADLINE)
            terminal.until("2 VMs, by name", "second")
        terminal.until("1 VM, by name")
        own.guest.kill()
        terminal.until(f"{NAME}: ")
        with va_guest(own.directory, own.directory / "channel.sock"):
            until_ready(own.runtime)
            terminal.until("ready", "%")
            terminal.type(b"q")
            assert terminal.ended() == 0


def test_top_once_is_plain_text_in_a_pipe(vm: Lab) -> None:
    result = run(vm, "top", "--once")
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode()
    assert "\x1b" not in text
    header, titles, row = text.splitlines()
    assert header.endswith("1 VM, by name")
    assert titles.split() == ["NAME", "STATE", "CPU", "MEMORY", "PRESSURE", "DISK", "NETWORK"]
    assert row.startswith(f"{NAME}  ready")
    assert row.count("%") >= 2


def test_top_once_says_of_a_vm_that_is_not_there_that_it_is_not(vm: Lab) -> None:
    text = run(vm, "top", "--once", NAME, "nobody").stdout.decode()
    assert "nobody: not there: no VM named 'nobody' is attached" in text


def test_a_va_host_that_hangs_holds_up_no_other_row(own: Lab) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (
            va_guest(directory, directory / "channel.sock"),
            va_host(own.runtime, "second", directory / "channel.sock"),
        ):
            with VmClient.connect(own.runtime, "second") as client:
                client.execute("va_wait", {"until": "ready", "timeout": DEADLINE}, timeout=DEADLINE)
            own.host._process.send_signal(signal.SIGSTOP)
            try:
                with top(own) as terminal:
                    terminal.until("2 VMs, by name", "second", "%")
                    terminal.until(f"{NAME}: timed out")
                    terminal.type(b"q")
                    assert terminal.ended() == 0
            finally:
                own.host._process.send_signal(signal.SIGCONT)


def test_top_without_vms_says_how_to_attach_one(vm: Lab, tmp_path: Path) -> None:
    result = subprocess.run(
        [*vm.command()[:3], "--runtime-dir", str(tmp_path), "top", "--once"],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "PYTHONPATH": PYTHON_PATH},
    )
    assert b"va-host attach --qmp" in b" ".join(result.stdout.split())


def test_top_without_a_terminal_points_to_what_works_there(vm: Lab) -> None:
    result = run(vm, "top")
    assert result.returncode == 2
    assert b"--once" in result.stderr
    assert b"va-host stats --json" in result.stderr
