"""guest-exec and guest-exec-status: programs of this machine."""

from __future__ import annotations

import base64
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.qgacalls import LOOK_EVERY, SOON, b64, call, error_of
from virtagent_guest.methods.qga import Caller, QgaError, processes
from virtagent_guest.methods.qga.capture import Budget


async def ended(pid: int, caller: Caller | None = None) -> dict[str, Any]:
    """Ask for a process's status until it has ended."""
    with trio.fail_after(SOON):
        while True:
            status = await call("guest-exec-status", caller, pid=pid)
            assert isinstance(status, dict)
            if status["exited"]:
                return status
            assert status == {"exited": False}
            await trio.sleep(LOOK_EVERY)


async def run(script: str, **arguments: Any) -> dict[str, Any]:
    started = await call("guest-exec", path="/bin/sh", arg=["-c", script], **arguments)
    return await ended(started["pid"])


async def test_a_program_that_ended_tells_how() -> None:
    assert await run("exit 3") == {"exited": True, "exitcode": 3}
    assert await run("kill -9 $$") == {"exited": True, "signal": signal.SIGKILL}
    assert await run("echo lost; echo lost >&2") == {"exited": True, "exitcode": 0}


@pytest.mark.parametrize(
    ("capture", "out", "err"),
    [
        (False, None, None),
        ("none", None, None),
        (True, b"out\n", b"err\n"),
        ("separated", b"out\n", b"err\n"),
        ("stdout", b"out\n", None),
        ("stderr", None, b"err\n"),
        ("merged", b"out\nerr\n", None),
    ],
)
async def test_what_is_captured_is_what_was_asked_for(
    capture: bool | str, out: bytes | None, err: bytes | None
) -> None:
    status = await run("echo out; echo err >&2", capture_output=capture)
    expected: dict[str, Any] = {"exited": True, "exitcode": 0}
    for name, data in (("out", out), ("err", err)):
        if data is not None:
            expected |= {f"{name}-data": b64(data), f"{name}-truncated": False}
    assert status == expected


async def test_input_and_output_larger_than_any_pipe_pass_through() -> None:
    data = os.urandom(1_000_000)
    status = await run("tee /dev/stderr", input_data=b64(data), capture_output=True)
    assert base64.b64decode(status["out-data"]) == base64.b64decode(status["err-data"]) == data


async def test_a_program_that_reads_nothing_of_its_input_ends_all_the_same() -> None:
    assert await run("exit 0", input_data=b64(bytes(1_000_000))) == {"exited": True, "exitcode": 0}
    assert await run("cat", capture_output=True) == {"exited": True, "exitcode": 0}  # it has no input


async def test_output_beyond_its_limit_is_marked_as_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    status = await run("head -c 17000000 /dev/zero", capture_output=True)
    assert (len(base64.b64decode(status["out-data"])), status["out-truncated"]) == (16 * 2**20, True)


async def test_what_does_not_fit_the_reply_is_marked_as_truncated() -> None:
    started = await call("guest-exec", path="sh", arg=["-c", "head -c 99 /dev/zero"], capture_output=True)
    status = await ended(started["pid"], Caller(reply_max=40))
    assert (len(base64.b64decode(status["out-data"])), status["out-truncated"]) == (30, True)


async def test_the_environment_is_what_is_given_or_else_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VA_TEST", "agent")
    script = 'echo "$VA_TEST $VA_OTHER"'
    status = await run(script, capture_output=True)
    assert base64.b64decode(status["out-data"]) == b"agent \n"
    status = await run(script, capture_output=True, env=["VA_OTHER=x=y", "VA_OTHER=z"])
    assert base64.b64decode(status["out-data"]) == b" x=y\n"


async def test_the_agents_umask_is_not_inherited() -> None:
    before = os.umask(0o077)
    try:
        status = await run("umask", capture_output=True)
    finally:
        os.umask(before)
    assert base64.b64decode(status["out-data"]) == b"0022\n"


async def test_a_program_is_looked_for_in_the_path_that_it_is_given(tmp_path: Path) -> None:
    tool = tmp_path / "va-test-tool"
    tool.write_text("#!/bin/sh\nexit 7\n")
    tool.chmod(0o755)
    assert await error_of("guest-exec", path="va-test-tool") == (
        "Failed to execute child process “va-test-tool” (No such file or directory)"
    )
    started = await call("guest-exec", path="va-test-tool", env=[f"PATH={tmp_path}"])
    assert (await ended(started["pid"]))["exitcode"] == 7


async def test_a_status_is_told_once_and_an_unknown_process_is_an_error() -> None:
    started = await call("guest-exec", path="true")
    await ended(started["pid"])
    assert await error_of("guest-exec-status", pid=started["pid"]) == f"PID {started['pid']} does not exist"


async def test_a_process_outlives_the_caller_that_started_it(tmp_path: Path) -> None:
    async with trio.open_nursery() as link:
        started = await call(
            "guest-exec", path="sh", arg=["-c", "read x; echo got"], capture_output=True, input_data=""
        )
        link.cancel_scope.cancel()
    assert base64.b64decode((await ended(started["pid"]))["out-data"]) == b"got\n"


def test_running_and_remembered_processes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "RUNNING_MAX", 2)
    monkeypatch.setattr(processes, "FINISHED_MAX", 2)
    table = processes.Processes()
    wait = processes.Program(["sh", "-c", "kill -STOP $$"], None, None, "none")
    sleepers = [table.start(wait) for _ in range(2)]
    with pytest.raises(QgaError, match="wait for some to end"):
        table.start(wait)
    for pid in sleepers:
        os.kill(pid, signal.SIGKILL)
        until_ended(table, pid)
    last = table.start(processes.Program(["true"], None, None, "none"))
    until_ended(table, last)
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        try:
            table.find(sleepers[0])
        except QgaError:
            break  # forgotten, as the first that ended
    else:
        pytest.fail("the first of three ended processes is still remembered")
    assert [table.find(pid).status for pid in (sleepers[1], last)] == [-signal.SIGKILL, 0]


def test_a_new_process_has_room_for_its_output_whatever_was_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("virtagent_guest.methods.qga.capture.STREAM_MAX", 1000)
    monkeypatch.setattr(processes, "STREAM_MAX", 1000)
    table = processes.Processes()
    monkeypatch.setattr(table, "_budget", Budget(2000))
    chatty = processes.Program(["head", "-c", "1000", "/dev/zero"], None, None, "stdout")
    pids = []
    for _ in range(4):
        pids.append(table.start(chatty))
        until_ended(table, pids[-1])
    assert len(table.reap(table.find(pids[-1]))[0]) == 1000
    with pytest.raises(QgaError, match="does not exist"):
        table.find(pids[0])


def until_ended(table: processes.Processes, pid: int) -> None:
    process = table.find(pid)
    deadline = time.monotonic() + SOON
    while process.status is None:
        assert time.monotonic() < deadline
        time.sleep(LOOK_EVERY)


async def test_a_script_that_names_no_shell_is_given_to_one(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0" "$@"; exit 4\n')
    script.chmod(0o755)
    started = await call("guest-exec", path=str(script), arg=["a b", "c"], capture_output=True)
    status = await ended(started["pid"])
    assert (status["exitcode"], base64.b64decode(status["out-data"])) == (4, f"{script} a b c\n".encode())
    assert "No such file or directory" in await error_of("guest-exec", path="")
