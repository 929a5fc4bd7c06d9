"""A real Debian guest in a real QEMU, for the tests, the demo and the benchmarks.

The rules:

1. A VM owns a directory: its sockets, its log and QEMU's stderr are there, so any number run at once.
2. The disk is used with snapshot=on: every VM starts from what `make guest-image` built.
3. By default there is no virtagent device. What a test needs on the command line it adds by `extra`.
4. Starting and stopping are synchronous, so that a session fixture can do them; all that waits is async,
   has a deadline, and fails at once, with QEMU's own words, when QEMU has ended.
5. The log (ttyS0: kernel and journal) is only read. Commands go through a root shell of its own
   (scripts/build_rootfs.sh), so nothing is ever mixed into their output.

::

    async with running_vm(tmp_path, machine="q35", extra=["-device", "pcie-root-port,id=port"]) as vm:
        await vm.booted()
        result = await vm.console("systemctl is-active va-guest")
        assert result.status == 0, result.output
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.guest.qemu import VmError, qemu_command

#: Seconds. QEMU answers in 0.3 s; all below is for a machine that is busy with something else.
START_TIMEOUT = 20
#: Seconds. 7 s were measured with TCG.
BOOT_TIMEOUT = 120
#: Seconds after which a guest that has not said a word since it was reset never will, and how often it is
#: reset then. Its kernel speaks after 3 s. QEMU 7.2's TCG was seen, once, to leave a guest hanging before its
#: kernel's first line.
SILENT, RESETS_MAX = 30, 4
#: Seconds from SIGTERM to SIGKILL.
STOP_TIMEOUT = 5
#: Seconds between two looks at a file or a process, inside a deadline.
LOOK_EVERY = 0.05
#: Seconds between two attempts to get an answer from the guest's shell.
ASK_EVERY = 1.0

BOOTED = "Reached target multi-user.target"


@dataclass(frozen=True)
class Completed:
    """What a command in the guest did: its exit status, and its stdout and stderr as they came."""

    status: int
    output: str


class Vm:
    """One QEMU and its guest. `running_vm` is the way to have one.

    Attributes:
        qmp_path: monitor for va-host.
        qmp_path2: monitor for the test, to look from outside; see `qmp`.
        console_log: the kernel's and the journal's messages.
        command: the command line.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        """Prepare a VM; *options* are those of `qemu_command`."""
        self.directory = directory
        self.qmp_path = directory / "qmp.sock"
        self.qmp_path2 = directory / "qmp2.sock"
        self.console_log = directory / "console.log"
        self.command = qemu_command(directory, **options)
        self._shell_path = directory / "shell.sock"
        self._stderr = directory / "qemu.stderr"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """QEMU's exit status, None while it runs."""
        return self._running().poll()

    def start(self) -> None:
        """Start QEMU and return when its monitors answer.

        Raises:
            VmError: QEMU ended, or did not get there in time.
        """
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True
            )
        print(f"started QEMU {self._process.pid}, guest's log: {self.console_log}")
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(self.qmp_path2):
            self._check_alive()
            if time.monotonic() > deadline:
                self.stop()
                raise VmError(f"QEMU did not answer on its monitor within {START_TIMEOUT} s")
            time.sleep(LOOK_EVERY)

    def stop(self) -> None:
        """End QEMU, by its own pid and in bounded time. Does nothing if it has ended."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def spoken(self, *, after: int) -> None:
        """Wait until the log of a guest that was reset goes on behind *after*; see `SILENT`."""
        for _ in range(RESETS_MAX):
            with trio.move_on_after(SILENT):
                await self._wait(lambda: self.log_size() > after, BOOT_TIMEOUT, "the guest's first word")
                return
            print(f"the guest is silent since it was reset {SILENT} s ago: resetting it again")
            await self.qmp("system_reset")

    async def booted(self, *, after: int = 0) -> int:
        """Wait for multi-user.target; arguments and result as for `wait_for_log`."""
        await self.spoken(after=after)
        return await self.wait_for_log(BOOTED, timeout=BOOT_TIMEOUT, after=after)

    def log_size(self) -> int:
        """Return the present size of the log, for the *after* of `wait_for_log`."""
        return self.console_log.stat().st_size if self.console_log.exists() else 0

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the log, for a failure's report."""
        if not self.console_log.exists():
            return ""
        return "\n".join(self.console_log.read_text(errors="replace").splitlines()[-lines:])

    async def wait_for_log(self, text: str, *, timeout: float, after: int = 0) -> int:
        """Wait until *text* stands in the log.

        Args:
            text: to be found, plain.
            timeout: seconds.
            after: what comes before this offset does not count (see `log_size`).

        Returns:
            The offset behind the text, to be given as *after* to the next wait.

        Raises:
            VmError: not within *timeout*, or QEMU ended.
        """
        wanted = text.encode()
        found = -1

        def look() -> bool:
            nonlocal found
            found = self.console_log.read_bytes().find(wanted, after) if self.console_log.exists() else -1
            return found >= 0

        await self._wait(look, timeout, f"{text!r} in {self.console_log}")
        return found + len(wanted)

    async def wait_exit(self, timeout: float) -> int:
        """Wait until QEMU has ended by itself, and return its exit status.

        Raises:
            VmError: it still runs after *timeout* seconds.
        """
        process = self._running()
        try:
            return await trio.to_thread.run_sync(process.wait, timeout)
        except subprocess.TimeoutExpired:
            raise VmError(f"QEMU still runs after {timeout} s\n{self.log_tail()}") from None

    async def console(self, command: str, *, timeout: float = 60) -> Completed:
        """Run a shell command in the guest, as root, once its shell is up.

        Args:
            command: for bash, any number of lines; its stdin is empty.
            timeout: seconds, for waiting and command together.

        Raises:
            VmError: no shell or no end of the command in time, or QEMU ended.
        """
        token = secrets.token_hex(8)
        script = f"printf '<{token}>'; (\n{command}\n) </dev/null 2>&1; printf '<{token} %d>' $?"
        line = f'eval "$(base64 -d <<<{base64.b64encode(script.encode()).decode()})"\n'
        answer = re.compile(rf"<{token}>(.*)<{token} (\d+)>".encode(), re.DOTALL)
        with trio.move_on_after(timeout):
            async with await trio.open_unix_socket(os.fspath(self._shell_path)) as stream:
                await self._wake_shell(stream)
                await stream.send_all(line.encode())
                received = b""
                while not (match := answer.search(received)):
                    chunk = await stream.receive_some()
                    if not chunk:
                        self._check_alive()
                        raise VmError(f"QEMU closed {self._shell_path}")
                    received += chunk
                return Completed(int(match[2]), match[1].decode(errors="replace"))
        self._check_alive()
        raise VmError(f"no answer to {command!r} within {timeout} s\n{self.log_tail()}")

    async def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute one QMP command on the test's own monitor and return its result.

        Raises:
            VmError: QEMU answered with an error.
        """
        with trio.fail_after(START_TIMEOUT):
            async with await trio.open_unix_socket(os.fspath(self.qmp_path2)) as stream:
                for request in (
                    {"execute": "qmp_capabilities"},
                    {"execute": command, "arguments": arguments, "id": "asked"},
                ):
                    await stream.send_all(json.dumps(request).encode() + b"\n")
                received = b""
                async for chunk in stream:
                    received += chunk
                    *lines, received = received.split(b"\n")
                    for reply in map(json.loads, lines):
                        if reply.get("id") != "asked":
                            continue
                        if "error" in reply:
                            raise VmError(f"{command}: {reply['error']['desc']}")
                        return reply["return"]
        raise VmError(f"QEMU closed the monitor instead of answering {command}")

    async def _wake_shell(self, stream: trio.SocketStream) -> None:
        """Return when the guest's shell answers. What is sent before it runs is lost, so ask repeatedly."""
        received = b""
        while True:
            token = secrets.token_hex(8)
            # In two parts: a terminal that still echoes must not be taken for an answer.
            await stream.send_all(f"\nprintf '<awake %s>' {token}\n".encode())
            with trio.move_on_after(ASK_EVERY):
                while f"<awake {token}>".encode() not in received:
                    chunk = await stream.receive_some()
                    if not chunk:
                        self._check_alive()
                        raise VmError(f"QEMU closed {self._shell_path}")
                    received += chunk
                return

    async def _wait(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        with trio.move_on_after(timeout):
            while not done():
                self._check_alive()
                await trio.sleep(LOOK_EVERY)
            return
        raise VmError(f"waited {timeout} s for {what}, which ends with:\n{self.log_tail()}")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise VmError("the VM was not started")
        return self._process

    def _check_alive(self) -> None:
        if self.returncode is not None:
            said = self._stderr.read_text(errors="replace").strip() or "it said nothing"
            raise VmError(f"QEMU ended with status {self.returncode}: {said}\n{self.log_tail()}")


@asynccontextmanager
async def running_vm(directory: Path, **options: Any) -> AsyncIterator[Vm]:
    """Start a VM, and end it on the way out. It boots meanwhile: see `Vm.booted`.

    Args:
        directory: its own, existing directory, such as pytest's tmp_path.
        options: those of `qemu_command`.

    Raises:
        VmError: there is no guest image, or QEMU did not start.
    """
    vm = await trio.to_thread.run_sync(lambda: Vm(directory, **options))
    try:
        await trio.to_thread.run_sync(vm.start)
        yield vm
    except BaseException:
        # pytest shows it with the failure.
        print(f"end of {vm.console_log}:\n{vm.log_tail()}")
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(vm.stop)


def _answers(monitor: Path) -> bool:
    """Whether QEMU executes commands. It listens, and even greets, before it has looked at -device."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(START_TIMEOUT)
        try:
            client.connect(os.fspath(monitor))
            client.sendall(b'{"execute": "qmp_capabilities"}')
            received = b""
            while b'"return"' not in received:
                chunk = client.recv(4096)
                if not chunk:
                    return False
                received += chunk
        except OSError:
            return False
    return True
