"""QEMU's own guest agent as a process on a unix socket, and ours beside it: the same bytes for both."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

ROOT = Path(__file__).parents[2]
#: Seconds for anything here.
DEADLINE = 20.0
#: Seconds of silence after which a client has got all there is, where no last answer can be told.
QUIET = 0.3

#: Where `scripts/setup.sh` unpacks it; its Debian package would start a service.
UNPACKED = ROOT / "build" / "qemu-ga" / "usr" / "sbin" / "qemu-ga"


def qemu_ga() -> str:
    """Return the path of qemu-ga, or skip the test."""
    found = shutil.which("qemu-ga") or (str(UNPACKED) if UNPACKED.exists() else None)
    if found is None:
        pytest.skip("there is no qemu-ga to compare with: scripts/setup.sh gets it")
    return found


async def talk(path: Path, data: bytes, *, last: bytes | None = None) -> bytes:
    """Connect, send, and return what is answered until *last* is in it, or nothing has come for a while."""
    with trio.fail_after(DEADLINE):
        answer = bytearray()
        async with await connect(path) as stream:
            await stream.send_all(data)
            while last is None or last not in answer:
                with trio.move_on_after(QUIET if last is None else DEADLINE) as patience:
                    part = await stream.receive_some()
                if patience.cancelled_caught or not part:
                    break
                answer += part
        return bytes(answer)


async def connect(path: Path) -> trio.SocketStream:
    """Connect to an agent; one that starts has its socket before it listens."""
    while True:
        try:
            return await trio.open_unix_socket(str(path))
        except ConnectionRefusedError:
            await trio.sleep(0.01)


def lines(answer: bytes) -> list[Any]:
    """Return the answers: JSON as values, what is no JSON as it is; members in any order are equal."""
    return [_line(line) for line in answer.split(b"\n") if line]


def _line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        sentinel, _, rest = line.partition(b"\xff")
        return line if sentinel or not rest else ("0xFF", json.loads(rest))


@contextlib.asynccontextmanager
async def listening(command: list[str], path: Path, **variables: str) -> AsyncIterator[trio.Process]:
    """Run a program within the block, from when its socket is there."""
    with (path.parent / f"{path.name}.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stderr=log, stdout=log, env={**os.environ, **variables}
        )
    try:
        with trio.fail_after(DEADLINE):
            while not path.exists():
                assert process.poll() is None, f"{command[0]} has ended: {process.returncode}"
                await trio.sleep(0.01)
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def run_qemu_ga(directory: Path, *arguments: str, frozen: bool = False) -> AsyncIterator[Path]:
    """Run qemu-ga within the block; *frozen*: it finds that file systems were frozen when it last ran."""
    state = directory / "qemu-ga"
    state.mkdir(exist_ok=True)
    if frozen:
        (state / "qga.state.isfrozen").touch()
    path = directory / "qemu-ga.sock"
    path.unlink(missing_ok=True)
    command = [qemu_ga(), "-m", "unix-listen", "-p", str(path), "-t", str(state), "-f", str(state / "pid")]
    async with listening([*command, *arguments], path):
        yield path


@contextlib.asynccontextmanager
async def run_va_guest(directory: Path, *arguments: str) -> AsyncIterator[Path]:
    """Run va-guest for clients of QEMU's guest agent alone, within the block."""
    path = directory / "va-guest.sock"
    config = directory / "guest.toml"
    config.touch()
    command = [sys.executable, "-m", "virtagent_guest", "--config", str(config), "-c", "none"]
    command += ["--qga", f"unix-listen:{path}", *arguments]
    async with listening(command, path, PYTHONPATH=f"{ROOT}:{ROOT / 'protocol'}"):
        yield path
