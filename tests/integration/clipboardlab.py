"""A guest's agent, a session's agent with a display, and a va-host, as processes; and those who copy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.integration.displays import Environ
from tests.integration.forwardlab import NAME, until_ready, va_host
from tests.integration.hostilelab import PYTHON_PATH, va_guest, wait_until
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol.clipboard.backend import Backend, open_clipboard
from virtagent_protocol.clipboard.contents import Blob, Contents

#: Seconds for a whole test.
DEADLINE = 60.0
HTML = b"<b>bold</b> &amp; more"
#: The head of a PNG, and what is no text at all.
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
BIG = os.urandom(1024 * 1024) * 20


@dataclass
class Lab:
    """Processes of one VM."""

    directory: Path
    session: subprocess.Popen[bytes]

    @property
    def runtime(self) -> RuntimeDir:
        return RuntimeDir(self.directory / "run")

    def command(self, *arguments: str) -> list[str]:
        module = [sys.executable, "-m", "virtagent_host.cli", "--runtime-dir", str(self.runtime.path)]
        return [*module, "clipboard", NAME, *arguments]

    def kill_session(self) -> None:
        """End the session's agent as a crash does."""
        self.session.kill()
        self.session.wait()

    async def run(
        self, *arguments: str, stdin: bytes = b"", display: Environ | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `va-host clipboard NAME …` to its end, without a display unless one is given."""
        return await trio.run_process(
            self.command(*arguments),
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(display or {}),
        )

    @asynccontextmanager
    async def syncing(self, display: Environ, *arguments: str) -> AsyncIterator[Syncing]:
        """Run `va-host clipboard NAME sync --json` on a display, until the end of the block."""
        async with syncing(self.command("sync", "--json", *arguments), environment(display)) as sync:
            yield sync


@asynccontextmanager
async def syncing(command: list[str], environ: Environ) -> AsyncIterator[Syncing]:
    """Run `va-host clipboard NAME sync --json`, until the end of the block."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environ
    )
    try:
        yield Syncing(process)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 128 + signal.SIGINT
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


class Syncing:
    """A running `va-host clipboard sync`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._buffer = b""

    async def carried(self) -> dict[str, Any]:
        """Return the next thing that it says it has carried, or could not."""
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            data = await self.process.stdout.receive_some()
            assert data, "va-host clipboard sync has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        document = json.loads(line)
        assert isinstance(document, dict)
        return document


def environment(display: Environ) -> Environ:
    """Return the environment for a process on that display, and no other."""
    others = ("DISPLAY", "WAYLAND_DISPLAY")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return {**kept, "PYTHONPATH": PYTHON_PATH, **display}


@contextmanager
def lab(display: Environ, sharing: str = "both", **settings: int) -> Iterator[Lab]:
    """Run both ends, and an agent of a session on that display."""
    with tempfile.TemporaryDirectory(prefix="clipboard-") as name, ExitStack() as stack:
        directory = Path(name)
        runtime = RuntimeDir(directory / "run")
        runtime.create()
        local = directory / "guest.sock"
        config = directory / "guest.toml"
        lines = [f"{key} = {value}" for key, value in settings.items()]
        config.write_text(
            "\n".join([f'[local]\nsocket = "{local}"', f'[session]\nclipboard = "{sharing}"', *lines])
        )
        channel = directory / "channel.sock"
        guest = stack.enter_context(va_guest(directory, channel))
        stack.enter_context(va_host(runtime, channel))
        agent = stack.enter_context(session(directory, display))
        until_ready(runtime)
        with VmClient.connect(runtime, NAME) as client:

            def is_there() -> bool:
                return len(client.execute("va_sessions", timeout=DEADLINE)["sessions"]) == 1

            wait_until(is_there, guest)
        yield Lab(directory, agent)


@contextmanager
def session(directory: Path, display: Environ) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent of a session on that display."""
    command = [sys.executable, "-m", "virtagent_guest", "session", "--config", str(directory / "guest.toml")]
    command += ["--socket", str(directory / "guest.sock"), "-v"]
    with (directory / "session.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment(display), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def copy(clipboard: Backend, **types: bytes) -> None:
    """Copy, as a program does: ``text_plain=b"…"``."""
    await clipboard.write(contents(**types))


def contents(**types: bytes) -> Contents:
    return Contents({name.replace("_", "/"): Blob.of(data) for name, data in types.items()})


def held(contents: Contents) -> dict[str, bytes]:
    return {name: blob.bytes() for name, blob in contents.items()}


@asynccontextmanager
async def program(display: Environ) -> AsyncIterator[Backend]:
    """Be another program on a display."""
    async with open_clipboard(display) as clipboard:
        yield clipboard
