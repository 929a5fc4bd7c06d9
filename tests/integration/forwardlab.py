"""A va-guest and a va-host as processes, `va-host forward`, and programs that talk through it."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.integration.hostilelab import PYTHON_PATH, Process, va_guest, wait_until
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir

#: Seconds for a whole test.
DEADLINE = 40.0
NAME = "demo"
#: More than all windows and buffers on the way together.
BIG = bytes(range(256)) * 4096 * 24

Serve = Callable[[trio.SocketStream], Awaitable[None]]


@dataclass
class Lab:
    """Processes of one VM."""

    directory: Path
    guest: Process
    host: Process
    numbers: list[int] = field(default_factory=lambda: [0])

    @property
    def runtime(self) -> RuntimeDir:
        return RuntimeDir(self.directory / "run")

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "virtagent_host.cli",
            "--runtime-dir",
            str(self.runtime.path),
            *arguments,
        ]

    async def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a va-host command to its end."""
        return await trio.run_process(
            self.command(*arguments),
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "PYTHONPATH": PYTHON_PATH},
        )

    def path(self) -> str:
        """Return a path for another socket."""
        self.numbers[0] += 1
        return str(self.directory / f"{self.numbers[0]}.sock")

    @asynccontextmanager
    async def forwarding(self, *arguments: str) -> AsyncIterator[Forwarding]:
        """Run `va-host forward` until the end of the block."""
        process = await trio.lowlevel.open_process(
            self.command("forward", NAME, "--json", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": PYTHON_PATH},
        )
        try:
            yield Forwarding(process)
        finally:
            with trio.CancelScope(shield=True), suppress(ProcessLookupError):
                if process.returncode is None:
                    process.kill()
                await process.wait()
                assert process.stdout is not None
                await process.stdout.aclose()


class Forwarding:
    """A running `va-host forward`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._buffer = b""

    async def event(self, name: str) -> dict[str, Any]:
        """Return the next event of that name; pass over others."""
        assert self.process.stdout is not None
        while True:
            while b"\n" not in self._buffer:
                data = await self.process.stdout.receive_some()
                assert data, f"va-host forward has ended before '{name}'"
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\n")
            event = json.loads(line)
            if event["event"] == name:
                assert isinstance(event, dict)
                return event

    async def address(self) -> str:
        """Return where the next of its forwards listens."""
        listen = (await self.event("forwarding"))["listen"]
        assert isinstance(listen, str)
        return listen


@contextmanager
def lab(*service_arguments: str, config: str = "") -> Iterator[Lab]:
    """Run both ends, in session."""
    with tempfile.TemporaryDirectory(prefix="forward-") as name:
        directory = Path(name)
        runtime = RuntimeDir(directory / "run")
        runtime.create()
        (directory / "guest.toml").write_text(config)
        channel = directory / "channel.sock"
        with va_guest(directory, channel) as guest, va_host(runtime, channel, *service_arguments) as host:
            until_ready(runtime)
            yield Lab(directory, guest, host)


@contextmanager
def va_host(runtime: RuntimeDir, channel: Path, *arguments: str) -> Iterator[Process]:
    attach = ["attach", "--name", NAME, "--channel", f"unix:{channel}", *arguments]
    process = Process(
        runtime.path / "host.log", "virtagent_host.cli", "--runtime-dir", str(runtime.path), *attach
    )
    try:
        wait_until(lambda: NAME in runtime.attached(), process)
        yield process
    finally:
        process.kill()


def until_ready(runtime: RuntimeDir, name: str = NAME) -> None:
    with VmClient.connect(runtime, name) as client:
        client.execute("va_wait", {"until": "ready", "timeout": DEADLINE}, timeout=DEADLINE)


async def serve(nursery: trio.Nursery, handler: Serve, path: str | None = None) -> str:
    """Listen, and run a handler for each connection; return the address as a forward names it."""
    if path is None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=128)
        address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    else:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(path)
        sock.listen(128)
        listener, address = trio.SocketListener(sock), path
    nursery.start_soon(partial(trio.serve_listeners, handler, [listener], handler_nursery=nursery))
    return address


async def dial(address: str) -> trio.SocketStream:
    """Connect to where `Forwarding.address` says."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return await trio.open_unix_socket(rest)
    host, _, port = rest.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)
            await stream.send_eof()


async def swap(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send *data* and the end; return all that comes meanwhile and after."""
    received = bytearray()

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        async for part in stream:
            received += part
    return bytes(received)


def kill_connection(stream: trio.SocketStream) -> None:
    """End a TCP connection with a reset, as the kernel does for a program that was killed."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def until_broken(stream: trio.SocketStream) -> None:
    """Return when the connection is reset; fail if it ends otherwise."""
    try:
        while data := await stream.receive_some():
            assert data
    except trio.BrokenResourceError:
        return
    raise AssertionError("the connection has ended as if all had come")


def interrupt(process: trio.Process) -> None:
    process.send_signal(signal.SIGINT)
