"""Running `va-host` as real processes on a real bridge with a real QEMU behind it.

Only the guest is played: `PlayedVm` answers what a guest's agent would.
"""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from virtagent_host.bridge.server import Bridge
from virtagent_host.commands import bind
from virtagent_host.events.intake import GuestEvents
from virtagent_host.forward.table import Forwards
from virtagent_host.qemu.qmp import QmpConnection, open_qmp
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol.errors import FaultCode, NotReady, RemoteFault, VirtagentError
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Value

ROOT = Path(__file__).parents[2]
#: Seconds for anything here; a CLI process takes a tenth of one.
DEADLINE = 20.0

TRICKY = b"plain\n\x1b]0;owned\x07\x1b[31mred\xff\tend\n"


class PlayedVm:
    """A VM and its guest: files in a dict, and what to answer instead when something is wrong."""

    def __init__(self) -> None:
        self.files = {"/etc/motd": b"hello\n", "/tricky": TRICKY, "/big": bytes(range(256)) * 4096 + b"!"}
        self.trouble: VirtagentError | None = None
        self.silent = False
        self.shutdowns: list[Value] = []
        self.detached = trio.Event()
        self.detached_again = trio.Event()
        self.ready = trio.Event()
        self.events = GuestEvents("demo", None, lambda name, data: None)

    async def call(self, method: str, *params: Value) -> Value:
        if self.silent:
            await trio.sleep_forever()
        if self.trouble is not None:
            raise self.trouble
        if method == "va.getfile":
            path, offset, *rest = params
            assert isinstance(offset, int)
            assert isinstance(path, str)
            if path not in self.files:
                raise RemoteFault(FaultCode.OPEN_FAILED, f"open failed: {path}: No such file or directory")
            data = self.files[path][offset:]
            return data[: rest[0]] if rest and isinstance(rest[0], int) else data
        if method == "va.shutdown":
            self.shutdowns.append(params[0])
        return TRICKY if method == "va.getdmesg" else None

    def open_stream(self) -> LinkStream:
        raise NotReady("there are no streams here")

    @property
    def forwards(self) -> Forwards:
        raise AssertionError("nothing is forwarded here")

    async def renegotiate(self) -> Value:
        methods: list[Value] = ["va.ping", "va.capabilities"]
        return {"version": "0.1.0", "protocol": "1.0", "agent": "va-guest", "methods": methods}

    async def wait_for(self, state: str) -> None:
        if state == "ready":
            await self.ready.wait()
        else:
            await trio.sleep_forever()

    def status(self) -> dict[str, Any]:
        if self.ready.is_set():
            return {"state": "ready", "reason": "hello was answered", "since": 1.5}
        return {"state": "greeting", "reason": "the port was opened", "since": 1.5}

    async def shut_down(self, deadline: float) -> dict[str, Any]:
        steps = [{"means": "agent", "result": "not ready: port-closed", "seconds": 0.0}]
        self.shutdowns.append(deadline)
        return {"by": "acpi", "seconds": 1.5, "steps": steps}

    async def detach(self) -> None:
        (self.detached_again if self.detached.is_set() else self.detached).set()


@dataclass
class Lab:
    """One attached VM named demo, and ways to run `va-host` on it."""

    runtime: RuntimeDir
    vm: PlayedVm
    end: Callable[[], None]
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = os.pathsep.join([str(ROOT / "protocol"), str(ROOT)])
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.environ = {
            **kept,
            "PYTHONPATH": paths,
            "VIRTAGENT_RUNTIME_DIR": str(self.runtime.path),
            "XDG_STATE_HOME": str(self.runtime.path / "state"),
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }

    async def run(self, *args: str, stdin: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
        """Run `va-host` with pipes and return what it printed."""
        with trio.fail_after(DEADLINE):
            return await trio.run_process(
                va_host(*args),
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={**self.environ, **environ},
            )

    async def on_terminal(self, *args: str, typed: str = "", **environ: str) -> tuple[str, int]:
        """Run `va-host` on a terminal; return all that appeared there and the exit status.

        Each of the lines typed is written when the monitor's prompt asks for it.
        """
        run = partial(run_on_terminal, va_host(*args), {**self.environ, **environ}, typed.splitlines())
        return await trio.to_thread.run_sync(run)


def va_host(*args: str) -> list[str]:
    return [sys.executable, "-m", "virtagent_host.cli", *args]


def run_on_terminal(command: list[str], environ: dict[str, str], lines: list[str]) -> tuple[str, int]:
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environ)
    os.close(slave)
    seen, asked, deadline = b"", 0, time.monotonic() + DEADLINE
    try:
        while select.select([master], [], [], max(deadline - time.monotonic(), 0))[0]:
            try:
                data = os.read(master, 4096)
            except OSError:  # EIO: the last one who had the terminal open is gone.
                break
            seen += data
            if lines and seen.count(b"(va-host) ") > asked:
                asked += 1
                os.write(master, lines.pop(0).encode() + b"\n")
        else:
            pytest.fail(f"no end within {DEADLINE} s; seen: {seen!r}")
        return seen.decode().replace("\r\n", "\n"), process.wait(DEADLINE)
    finally:
        process.kill()
        process.wait()
        os.close(master)


@asynccontextmanager
async def open_lab(directory: Path, qmp_path: Path) -> AsyncIterator[Lab]:
    """Serve a bridge for a played VM in *directory*, in front of the QEMU whose monitor is at *qmp_path*."""
    runtime = RuntimeDir(directory / "run")
    runtime.create()
    vm = PlayedVm()
    service = trio.CancelScope()

    async def serve(qmp: QmpConnection, task_status: trio.TaskStatus[None]) -> None:
        with service:
            await Bridge(bind(vm), qmp).serve(runtime.vm("demo").bridge, task_status=task_status)

    async with open_qmp(qmp_path, "demo") as qmp, trio.open_nursery() as nursery:
        await nursery.start(serve, qmp)
        yield Lab(runtime, vm, service.cancel)
        service.cancel()


def document(result: subprocess.CompletedProcess[bytes]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
