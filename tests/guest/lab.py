"""`va-host` as its users run it: processes on a runtime directory, and clients of the bridge.

The rules:

1. What a test does to va-host it does through its command line, its bridge, or a signal.
2. A service (`attach`, `launch`) is ended with the block that started it, by its own pid. Its log is a
   file; what fails here shows the end of it.
3. All that waits has a deadline. A guest under TCG on a busy machine is slow, so these are generous.

::

    lab = Lab(tmp_path)
    async with lab.attached(vm):
        await lab.ready()
        assert (await lab.succeed("ping")).startswith("success")
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.guest.vm import Vm

VA_HOST = str(Path(sys.executable).with_name("va-host"))

#: Seconds for a va-host command. It takes a tenth of one.
COMMAND_TIMEOUT = 60.0
#: Seconds until an agent answers, from anything that starts it; a reboot included, which takes 15 s with TCG.
READY_TIMEOUT = 120.0
#: Seconds for a service to end.
END_TIMEOUT = 20.0
#: Seconds between two looks at what sends no event.
LOOK_EVERY = 0.05

_READ_SIZE = 1 << 16


#: Every byte value, and the sequences that mean something to a terminal, to HTTP or to our framing.
ALL_BYTES = bytes(range(256)) + b"\r\n\r\n\xff\xff\x03\x11\x13\x00\r\xffPOST /RPC2 HTTP/1.1\r\n\r\n\xff" * 8


async def make_all_bytes(vm: Vm) -> None:
    """Make the file /root/all-bytes in the guest."""
    encoded = base64.b64encode(ALL_BYTES).decode()
    made = await vm.console(f"base64 -d <<<{encoded} >/root/all-bytes && sha256sum </root/all-bytes")
    assert made.output.split()[0] == hashlib.sha256(ALL_BYTES).hexdigest(), made


class LabError(Exception):
    """Something did not happen in time, or otherwise than a test could work with."""


class BridgeError(Exception):
    """The bridge answered with an error; the text is its description."""


@dataclass(frozen=True)
class Completed:
    """What a va-host command did."""

    status: int
    stdout: bytes
    stderr: str


class Service:
    """A `va-host attach` or `va-host launch` that runs."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """The process id of va-host."""
        return self._process.pid

    @property
    def said(self) -> str:
        """What it, and all before it with the same log, wrote so far."""
        return self.log.read_text(errors="replace")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to va-host alone."""
        self._process.send_signal(number)

    async def ended(self, timeout: float = END_TIMEOUT) -> int:
        """Wait until it has ended by itself, and return its exit status."""
        try:
            return await trio.to_thread.run_sync(self._process.wait, timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"va-host still runs after {timeout} s; its log:\n{self.said}") from None

    def kill(self) -> None:
        """End it at once, as `kill -9` does; it has no chance to clean up."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it, gently at first. Does nothing if it has ended."""
        self._process.terminate()
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()


class Lab:
    """One runtime directory, and in it one VM's va-host.

    Args:
        directory: where the runtime directory and the logs are.
        name: the VM's name.
    """

    def __init__(self, directory: Path, name: str = "demo") -> None:
        self.name = name
        self.runtime = directory / "run"
        self.bridge = self.runtime / f"{name}.qmp"
        self._log = directory / f"va-host-{name}.log"

    def command_line(self, *arguments: str) -> list[str]:
        """Return the command line of a va-host that uses this runtime directory."""
        return [VA_HOST, "--runtime-dir", str(self.runtime), *arguments]

    def start(self, command: str, *arguments: str) -> Service:
        """Start a service in the background, with its name and runtime directory given."""
        return Service(self.command_line(command, "--name", self.name, *arguments), self._log)

    @asynccontextmanager
    async def attached(self, vm: Vm) -> AsyncIterator[Service]:
        """Attach to a VM until the end of the block."""
        async with self.serving("attach", "--qmp", str(vm.qmp_path)) as service:
            yield service

    @asynccontextmanager
    async def serving(self, command: str, *arguments: str) -> AsyncIterator[Service]:
        """Run a service until the end of the block."""
        service = self.start(command, *arguments)
        try:
            yield service
        except BaseException:
            # pytest shows it with the failure.
            print(f"{service.log}:\n{service.said}")
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(service.stop)

    async def run(self, *arguments: str, stdin: bytes = b"", timeout: float = COMMAND_TIMEOUT) -> Completed:
        """Run a va-host command to its end."""
        with trio.move_on_after(timeout):
            result = await trio.run_process(
                self.command_line(*arguments),
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            return Completed(result.returncode, result.stdout, result.stderr.decode())
        raise LabError(f"va-host {' '.join(arguments)} still ran after {timeout} s; {self._service_log()}")

    async def succeed(self, command: str, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command on the VM that must end with status 0, and return what it printed."""
        result = await self.run(command, self.name, *arguments, timeout=timeout)
        assert result.status == 0, f"{result}; {self._service_log()}"
        return result.stdout.decode()

    async def fail(self, status: int, command: str, *arguments: str) -> str:
        """Run a command on the VM that must end with *status*, and return its error message."""
        result = await self.run(command, self.name, *arguments)
        assert (result.status, result.stdout) == (status, b""), f"{result}; {self._service_log()}"
        return result.stderr

    async def wait(self, state: str) -> dict[str, Any]:
        """Wait until the link is in a state, and return the status then."""
        arguments = ("--until", state, "--timeout", str(READY_TIMEOUT), "--json")
        status = json.loads(await self.succeed("wait", *arguments, timeout=READY_TIMEOUT + COMMAND_TIMEOUT))
        assert isinstance(status, dict)
        return status

    async def ready(self) -> dict[str, Any]:
        """Wait until the agent answers, and return the status then."""
        return await self.wait("ready")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[BridgeClient]:
        """Connect to the bridge, as soon as there is one, and negotiate."""
        with trio.fail_after(COMMAND_TIMEOUT):
            while True:
                try:
                    stream = await trio.open_unix_socket(self.bridge)
                    break
                except OSError:
                    await trio.sleep(LOOK_EVERY)
        async with stream:
            client = BridgeClient(stream)
            await client.execute("qmp_capabilities")
            yield client

    def _service_log(self) -> str:
        return f"its service's log:\n{self._log.read_text() if self._log.exists() else 'none'}"


class BridgeClient:
    """A plain socket that speaks QMP; made by `Lab.client`. One task at a time may use it.

    Attributes:
        events: those that were read and not yet asked for.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.events: deque[dict[str, Any]] = deque()
        self._stream = stream
        self._buffer = b""
        self._last_id = 0

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result; it must be answered with our id, and nothing else may be.

        Raises:
            BridgeError: it was answered with an error.
        """
        self._last_id += 1
        request = {"execute": command, "arguments": arguments, "id": [self._last_id, command]}
        await self._stream.send_all(json.dumps(request).encode())
        while True:
            message = await self._receive()
            if "event" in message:
                self.events.append(message)
            elif "QMP" not in message:
                assert message["id"] == request["id"], message
                if "error" in message:
                    raise BridgeError(message["error"]["desc"])
                return message["return"]

    async def event(self, name: str, /, *, timeout: float = READY_TIMEOUT, **data: object) -> dict[str, Any]:
        """Return the data of the next event of that name that has *data* among its own; pass over others."""
        passed = []
        with trio.move_on_after(timeout):
            while True:
                event = self.events.popleft() if self.events else await self._receive()
                if event["event"] == name and data.items() <= event["data"].items():
                    assert isinstance(event["data"], dict)
                    return event["data"]
                passed.append(event)
        raise LabError(f"no {name} with {data} within {timeout} s, but {passed}")

    async def in_flight(self, calls: int) -> None:
        """Wait until so many calls to the guest are in flight."""
        with trio.move_on_after(COMMAND_TIMEOUT):
            while (await self.execute("va_status"))["figures"]["client-jobs"]["in-flight"] != calls:
                await trio.sleep(LOOK_EVERY)
            return
        raise LabError(f"there were never {calls} calls in flight within {COMMAND_TIMEOUT} s")

    async def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some(_READ_SIZE)
            if not data:
                raise LabError("the bridge closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message


class Attached:
    """A VM with its va-host attached, for tests that leave it ready.

    Attributes:
        vm: the VM, booted.
        lab: its va-host.
        first_hello: the data of the first VA_GUEST_HELLO, as a client saw it who was there before.
        given_up: whether a test left it in a state in which others cannot use it.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.lab = Lab(vm.directory)
        self.first_hello: dict[str, Any] = {}
        self.given_up = False
        self._service: Service | None = None

    @property
    def service(self) -> Service:
        """The `va-host attach` that runs now."""
        assert self._service is not None
        return self._service

    def attach(self) -> None:
        """Start `va-host attach`; the one before must have ended."""
        self._service = self.lab.start("attach", "--qmp", str(self.vm.qmp_path))

    async def attach_and_meet(self) -> None:
        """Attach, and be there when the guest says hello for the first time."""
        self.attach()
        async with self.lab.client() as watcher:
            self.first_hello = await watcher.event("VA_GUEST_HELLO")

    def stop(self) -> None:
        """End the `va-host attach`, if there is one."""
        if self._service is not None:
            self._service.stop()

    async def in_guest(self, command: str) -> str:
        """Run a shell command in the guest that must succeed, and return its output."""
        result = await self.vm.console(command)
        assert result.status == 0, result
        return result.output

    async def fail_in_flight(self, act: Callable[[], Awaitable[object]]) -> tuple[str, float]:
        """Stop the agent, make a call to it, *act* while the call is in flight, and await its failure.

        Returns:
            The description of the error, and how many seconds after *act* began it came.
        """
        await self.in_guest("systemctl kill -s STOP va-guest")
        failure = ""
        failed_at = 0.0

        async def call(client: BridgeClient) -> None:
            nonlocal failure, failed_at
            try:
                await client.execute("va_ping", timeout=READY_TIMEOUT)
            except BridgeError as error:
                failure, failed_at = str(error), time.monotonic()

        async with self.lab.client() as caller, self.lab.client() as observer, trio.open_nursery() as nursery:
            nursery.start_soon(call, caller)
            await observer.in_flight(1)
            acted_at = time.monotonic()
            await act()
        assert failure, "a call was answered by an agent that was stopped"
        return failure, failed_at - acted_at


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that nobody has reaped has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def gone(pid: int, timeout: float) -> None:
    """Wait until a process that is not our child has ended."""
    with trio.move_on_after(timeout):
        while is_running(pid):
            await trio.sleep(LOOK_EVERY)
        return
    raise LabError(f"process {pid} still runs after {timeout} s")


def kill_pid_of(pidfile: Path) -> None:
    """Kill the QEMU that wrote this pidfile, if it still runs. It removes the file at its end."""
    if pidfile.exists():
        pid = int(pidfile.read_text())
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
