"""The freezer as a process and its client, without a file system that would be frozen by it.

The two ioctls are replaced in the process under test, so what is frozen are files with such names; all
else is real: the socket, the signals, the hooks, the times. Real file systems are frozen in
tests/guest/test_freeze.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from virtagent_guest.freeze.client import FreezeClient, FreezeError
from virtagent_guest.freeze.hooks import HookSettings

ROOT = Path(__file__).parents[2]
#: Seconds. Everything here takes a tenth of it, or waits for this to fail.
SOON = 30.0

#: What the process runs before the freezer: two mounts, a state file in place of the kernel.
STAGE = """
import os, sys
from pathlib import Path
from virtagent_guest.freeze import freezing, ioctls, process
from virtagent_guest.freeze.mounts import Mount

work = Path(sys.argv.pop(1))
process.NOTE = work / "note"
table = [Mount(str(work / name), "ext4", name, (8, number), True) for number, name in enumerate("ab")]
process.mounts = lambda: table

def name(fd):
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

def freeze(fd):
    if (work / "fail").exists() and name(fd) == "a":
        raise OSError(5, "Input/output error")
    if (work / "hang").exists() and name(fd) == "a":
        # As the kernel would, on a file system whose journal lies on one that is frozen.
        while (work / "frozen-b").exists():
            pass
    (work / f"frozen-{name(fd)}").touch()
    return True

def thaw(fd):
    frozen = work / f"frozen-{name(fd)}"
    was = frozen.exists()
    frozen.unlink(missing_ok=True)
    return was

ioctls.freeze, ioctls.thaw = freeze, thaw
ioctls.lock_memory = lambda: None
sys.exit(process.main(sys.argv[1:]))
"""


class Stage:
    """A directory with two would-be file systems, and hooks that note their calls."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in "ab":
            (directory / name).mkdir()
        (directory / "hooks").mkdir()
        self.hook("10-note", "")

    def hook(self, name: str, commands: str) -> None:
        file = self.directory / "hooks" / name
        file.write_text(f"#!/bin/sh\necho {name} $1 >>{self.directory}/calls\n{commands}\n")
        file.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        file = self.directory / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def frozen(self) -> list[str]:
        return sorted(path.name[-1] for path in self.directory.glob("frozen-?"))

    @property
    def command(self) -> list[str]:
        hooks = ("--hook", "", "--hook-dir", str(self.directory / "hooks"), "--hook-timeout", "20")
        return [sys.executable, "-c", STAGE, str(self.directory), "serve", *hooks]

    async def until_thawed(self) -> None:
        with trio.fail_after(SOON):
            while self.frozen or (self.directory / "note").exists():
                await trio.sleep(0.02)


class StagedClient(FreezeClient):
    """The client as it is, but for the program that it starts."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(HookSettings(), str(stage.directory / "nobody.sock"))
        self.stage = stage
        self.processes: list[trio.Process] = []

    async def _connect(self) -> tuple[trio.SocketStream, trio.Process | None]:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join([str(ROOT / "protocol"), str(ROOT)])
        with theirs:
            process = await trio.lowlevel.open_process(
                self.stage.command, stdin=theirs.fileno(), env={**os.environ, "PYTHONPATH": path}
            )
        self.processes.append(process)
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), process


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@asynccontextmanager
async def client(stage: Stage) -> AsyncIterator[StagedClient]:
    freezer = StagedClient(stage)
    with trio.fail_after(2 * SOON):
        async with trio.open_nursery() as nursery:
            await nursery.start(freezer.run)
            yield freezer
            nursery.cancel_scope.cancel()
        for process in freezer.processes:
            await process.wait()


async def test_what_is_frozen_is_thawed_when_asked_and_hooks_lie_around_it(stage: Stage) -> None:
    async with client(stage) as freezer:
        frozen = await freezer.freeze()
        assert [Path(path).name for path in frozen.mounts] == ["b", "a"]
        assert (stage.frozen, stage.calls) == (["a", "b"], ["10-note freeze"])
        assert freezer.frozen == frozen
        with pytest.raises(FreezeError, match="frozen already"):
            await freezer.freeze()
        thawed = await freezer.thaw()
        assert (thawed.count, thawed.why, thawed.failures) == (2, "asked", ())
        assert (stage.frozen, stage.calls) == ([], ["10-note freeze", "10-note thaw"])
        assert not freezer.holding
        await freezer.freeze([str(stage.directory / "a"), "/nowhere"])
        assert stage.frozen == ["a"]
        assert (await freezer.thaw()).count == 1


async def test_a_lease_that_is_not_renewed_ends_the_freeze(stage: Stage) -> None:
    async with client(stage) as freezer:
        await freezer.freeze(lease=3.0, duration=SOON)
        begin = time.monotonic()
        while time.monotonic() < begin + 4:
            assert 0 < await freezer.renew() <= 3.0
            await trio.sleep(0.1)
        assert stage.frozen == ["a", "b"]
        await stage.until_thawed()
        while freezer.holding:
            await trio.sleep(0.02)
        assert freezer.last is not None
        assert freezer.last.why == "the lease was not renewed for 3 s"
        with pytest.raises(FreezeError, match="nothing is frozen: the last freeze has ended"):
            await freezer.renew()


async def test_no_renewal_prolongs_the_duration(stage: Stage) -> None:
    async with client(stage) as freezer:
        await freezer.freeze(lease=SOON, duration=1.0)
        while freezer.holding:
            with suppress(FreezeError):
                assert await freezer.renew() <= 1.0
            await trio.sleep(0.1)
        assert freezer.last is not None
        assert freezer.last.why == "its time is over (1 s)"
        await stage.until_thawed()


async def test_the_end_of_the_agent_thaws_at_once(stage: Stage) -> None:
    async with client(stage) as freezer:
        await freezer.freeze(lease=math.inf)
        assert stage.frozen == ["a", "b"]
    await stage.until_thawed()
    assert stage.calls == ["10-note freeze", "10-note thaw"]


async def test_sigterm_thaws(stage: Stage) -> None:
    async with client(stage) as freezer:
        await freezer.freeze()
        freezer.processes[0].send_signal(signal.SIGTERM)
        await stage.until_thawed()
        while freezer.holding:
            await trio.sleep(0.02)
        assert freezer.last is not None
        assert freezer.last.why == "the freezer was told to end"


async def test_another_freezer_mends_what_a_killed_one_has_left(stage: Stage) -> None:
    async with client(stage) as freezer:
        await freezer.freeze()
        freezer.processes[0].kill()
        await stage.until_thawed()
        while freezer.holding:
            await trio.sleep(0.02)
        assert freezer.last is not None
        assert (freezer.last.count, "was killed" in freezer.last.why) == (2, True)
        assert stage.calls == ["10-note freeze", "10-note thaw"]
        await freezer.freeze()
        assert (await freezer.thaw()).count == 2


async def test_a_file_system_that_fails_undoes_the_others(stage: Stage) -> None:
    (stage.directory / "fail").touch()
    async with client(stage) as freezer:
        with pytest.raises(FreezeError, match=r"failed to freeze .*/a: Input/output error"):
            await freezer.freeze()
        assert (stage.frozen, freezer.holding) == ([], False)
        assert stage.calls == ["10-note freeze", "10-note thaw"]


async def test_the_lease_frees_a_freeze_that_hangs_in_the_kernel(stage: Stage) -> None:
    (stage.directory / "hang").touch()
    async with client(stage) as freezer:
        with pytest.raises(FreezeError, match="the lease was not renewed for 1 s"):
            await freezer.freeze(lease=1.0)
        await stage.until_thawed()
        assert not freezer.holding


async def test_a_caller_that_gives_up_undoes_the_freeze(stage: Stage) -> None:
    (stage.directory / "hang").touch()
    async with client(stage) as freezer:
        with trio.move_on_after(3) as scope:
            await freezer.freeze()
        assert scope.cancelled_caught
        assert (stage.frozen, freezer.holding) == ([], False)


async def test_a_caller_that_gives_up_before_the_freezer_is_there_leaves_none(stage: Stage) -> None:
    async with client(stage) as freezer:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(freezer.freeze)
                while not freezer.processes:
                    await trio.sleep(0.01)
                scope.cancel()
        assert (stage.frozen, freezer.holding) == ([], False)
        await freezer.processes[0].wait()
        await freezer.freeze()
        assert (await freezer.thaw()).count == 2


async def test_a_hook_that_fails_undoes_those_before_it(stage: Stage) -> None:
    stage.hook("20-bad", '[ "$1" = thaw ]')
    stage.hook("30-never", "")
    stage.hook("40-old.bak", "")
    async with client(stage) as freezer:
        with pytest.raises(FreezeError, match=r"'.*/20-bad freeze' has failed with status 1"):
            await freezer.freeze()
        assert stage.calls == ["10-note freeze", "20-bad freeze", "20-bad thaw", "10-note thaw"]
        assert stage.frozen == []


async def test_a_hook_that_fails_to_thaw_is_told_and_keeps_nothing_frozen(stage: Stage) -> None:
    stage.hook("20-bad", '[ "$1" = freeze ] || kill -9 $$')
    async with client(stage) as freezer:
        await freezer.freeze()
        thawed = await freezer.thaw()
        assert thawed.count == 2
        (failure,) = thawed.failures
        assert failure.endswith("20-bad thaw' has terminated abnormally (signal 9)")
        assert stage.calls[-1] == "10-note thaw"


def test_a_hook_that_was_asked_for_must_be_there(stage: Stage) -> None:
    ours, theirs = socket.socketpair()
    command = [*stage.command]
    command[command.index("--hook") + 1] = "/no/such/hook"
    path = os.pathsep.join([str(ROOT / "protocol"), str(ROOT)])
    with theirs:
        process = subprocess.Popen(command, stdin=theirs.fileno(), env={**os.environ, "PYTHONPATH": path})
    with ours, ours.makefile("rw") as lines:
        lines.write('{"do": "freeze"}\n')
        lines.flush()
        messages: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert process.wait(SOON) == 0
    assert messages[0] == {"ready": True, "recovered": 0}
    assert "can't access fsfreeze hook '/no/such/hook'" in messages[1]["error"]
    assert stage.frozen == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_units_are_correct(tmp_path: Path) -> None:
    units = []
    for name in ("va-guest-freezer.service", "va-guest-freezer.socket"):
        text = (ROOT / "contrib" / "systemd" / name).read_text()
        # The program need not be installed here; that there is one is what tests/guest sees.
        unit = tmp_path / name
        unit.write_text(text.replace("ExecStart=va-guest ", "ExecStart=true "))
        units.append(str(unit))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
