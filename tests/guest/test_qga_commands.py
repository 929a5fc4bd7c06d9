"""The commands of the QEMU guest agent in a real guest, called over a link."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.guest.agentline import Agent, connected, port_arguments, start_agent, stop_agent
from tests.guest.lab import Attached
from tests.guest.vm import running_vm

#: Seconds of difference between the host's clock and the guest's that a busy machine explains.
TOLERANCE = 20.0
#: Seconds for a suspended guest to be told from a running one, and for one to end.
STATE_TIMEOUT = 90.0
#: Seconds between two looks at what sends no event.
LOOK_EVERY = 0.2

DAY = 24 * 3600

#: /etc/localtime (RFC 9636) of a zone of one offset, 5:45 h east; the guest has no others.
_ZONE = bytes(15) + bytes(12) + bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6])
_ZONE = b"TZif2" + _ZONE + (20700).to_bytes(4, "big") + b"\0\0+0545\0"
KATHMANDU = 2 * _ZONE + b"\n<+0545>-5:45\n"

#: Writes two logins of root into utmp, as login(1) would: type 7, and times of 32 bits.
WRITE_UTMP = """python3 - <<'END'
import struct
def login(seconds):
    return struct.pack("=h2xi32s4s32s256s4xiii16x20x", 7, 1, b"tty", b"1", b"root", b"", 0, seconds, 0)
open("/run/utmp", "wb").write(login(1700000009) + login(1700000001))
END"""

#: Starts a process from one that is protected from the OOM killer, and prints its score once that is 0.
OOM_SCORE = """PYTHONPATH=$(command -v va-guest) python3 - <<'END'
import os, pathlib, time
from virtagent_guest.methods.qga.processes import Processes, Program
pathlib.Path("/proc/self/oom_score_adj").write_text("-500")
pid = Processes().start(Program(["sleep", "60"], None, None, "none"))
score = pathlib.Path(f"/proc/{pid}/oom_score_adj")
deadline = time.monotonic() + 20
while score.read_text() != "0\\n" and time.monotonic() < deadline:
    time.sleep(0.05)
print(score.read_text(), end="")
os.kill(pid, 9)
END"""


@pytest.fixture(scope="module")
def line(attached_once: Attached) -> Iterator[Path]:
    """The socket of a line with an agent at its other end."""
    trio.run(start_agent, attached_once.vm)
    try:
        yield attached_once.vm.directory / "isa-serial.sock"
    finally:
        trio.run(stop_agent, attached_once.vm)


@pytest.fixture
async def agent(line: Path) -> AsyncIterator[Agent]:
    """The agent, in a session of its own."""
    async with connected(line) as agent:
        yield agent


async def ended(agent: Agent, pid: int) -> dict[str, Any]:
    """Ask for a process's status until it has ended."""
    while True:
        status = await agent.call("guest-exec-status", pid=pid)
        assert isinstance(status, dict)
        if status["exited"]:
            return status
        await trio.sleep(LOOK_EVERY)


async def run(agent: Agent, script: str) -> tuple[int, str]:
    """Run a shell script by guest-exec; return its status and what it said."""
    started = await agent.call("guest-exec", path="/bin/sh", arg=["-c", script], capture_output="merged")
    status = await ended(agent, started["pid"])
    return status["exitcode"], base64.b64decode(status.get("out-data", "")).decode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_what_the_guest_is(agent: Agent, attached: Attached) -> None:
    osinfo = await agent.call("guest-get-osinfo")
    assert (osinfo["id"], osinfo["version-id"]) == ("debian", "12")
    assert osinfo["kernel-release"] == (await attached.in_guest("uname -r")).strip()
    assert osinfo["kernel-version"] == (await attached.in_guest("uname -v")).strip()
    assert osinfo["machine"] == (await attached.in_guest("uname -m")).strip()
    assert await agent.call("guest-get-host-name") == {"host-name": "virtagent-guest"}
    assert await agent.call("guest-get-users") == []
    info = await agent.call("guest-info")
    enabled = {command["name"]: command["enabled"] for command in info["supported_commands"]}
    assert (enabled["guest-exec"], enabled["guest-get-devices"]) == (True, False)


async def test_who_is_logged_in(agent: Agent, attached: Attached) -> None:
    await attached.in_guest(WRITE_UTMP)
    try:
        assert await agent.call("guest-get-users") == [{"user": "root", "login-time": 1700000001.0}]
    finally:
        await attached.in_guest("rm /run/utmp")


async def test_a_file_goes_there_and_back(agent: Agent, attached: Attached) -> None:
    content = bytes(range(256)) * 20
    handle = await agent.call("guest-file-open", path="/root/qga", mode="w+")
    assert await agent.call("guest-file-write", handle=handle, buf_b64=b64(content)) == {
        "count": len(content),
        "eof": False,
    }
    await agent.call("guest-file-flush", handle=handle)
    assert await attached.in_guest("stat -c '%s %a' /root/qga") == f"{len(content)} 644\n"
    await agent.call("guest-file-seek", handle=handle, offset=-10, whence="end")
    assert await agent.call("guest-file-read", handle=handle) == {
        "count": 10,
        "buf-b64": b64(content[-10:]),
        "eof": True,
    }
    await agent.call("guest-file-close", handle=handle)
    assert "has not been found" in await agent.error_of("guest-file-read", handle=handle)


async def test_files_and_processes_outlive_the_session(line: Path, attached: Attached) -> None:
    async with connected(line) as agent:
        handle = await agent.call("guest-file-open", path="/etc/hostname")
        await agent.call("guest-file-read", handle=handle, count=4)
        started = await agent.call(
            "guest-exec", path="sh", arg=["-c", "echo kept; exit 5"], capture_output=True
        )
    async with connected(line) as agent:
        rest = await agent.call("guest-file-read", handle=handle)
        assert base64.b64decode(rest["buf-b64"]) == b"agent-guest\n"
        await agent.call("guest-file-close", handle=handle)
        assert await ended(agent, started["pid"]) == {
            "exited": True,
            "exitcode": 5,
            "out-data": b64(b"kept\n"),
            "out-truncated": False,
        }


async def test_a_program_runs_as_roots_own_do(agent: Agent) -> None:
    assert await run(agent, "id -u; umask; touch /root/made && rm /root/made") == (0, "0\n0022\n")


async def test_a_program_is_not_protected_from_the_oom_killer_as_the_agent_is(attached: Attached) -> None:
    assert await attached.in_guest(OOM_SCORE) == "0\n"


async def test_slow_commands_do_not_hold_up_others(agent: Agent, attached: Attached) -> None:
    await attached.in_guest("rm -f /root/fifo; mkfifo /root/fifo")
    handle = await agent.call("guest-file-open", path="/root/fifo", mode="r+")
    assert "Resource temporarily unavailable" in await agent.error_of("guest-file-read", handle=handle)
    started = await agent.call("guest-exec", path="cat", arg=["/root/fifo"], capture_output=True)
    assert await agent.call("guest-exec-status", pid=started["pid"]) == {"exited": False}
    await agent.call("guest-ping")
    await agent.call("guest-file-write", handle=handle, buf_b64=b64(b"through"))
    await agent.call("guest-file-close", handle=handle)
    assert base64.b64decode((await ended(agent, started["pid"]))["out-data"]) == b"through"


async def test_the_time_is_set_and_with_it_the_hardware_clock(agent: Agent, attached: Attached) -> None:
    assert abs(await agent.call("guest-get-time") / 1e9 - time.time()) < TOLERANCE
    try:
        tomorrow = time.time_ns() + DAY * 10**9
        await agent.call("guest-set-time", time=tomorrow)
        clocks = "date +%s; cat /sys/class/rtc/rtc0/since_epoch"
        for clock in (await attached.in_guest(clocks)).split():
            assert abs(int(clock) - tomorrow / 1e9) < TOLERANCE
        # Only the system's clock goes wrong, and is set from the other.
        await attached.in_guest("date -s @1000000000")
        await agent.call("guest-set-time")
        assert abs(await agent.call("guest-get-time") / 1e9 - tomorrow / 1e9) < TOLERANCE
        assert await agent.error_of("guest-set-time", time=-1) == "Invalid time"
    finally:
        await agent.call("guest-set-time", time=time.time_ns())
    assert abs(await agent.call("guest-get-time") / 1e9 - time.time()) < TOLERANCE


async def test_the_time_zone_is_the_present_one(agent: Agent, attached: Attached) -> None:
    await attached.in_guest("cp -P /etc/localtime /root/localtime; rm /etc/localtime")
    try:
        assert await agent.call("guest-get-timezone") == {"zone": "UTC", "offset": 0}
        await attached.in_guest(f"base64 -d <<<{b64(KATHMANDU)} >/etc/localtime")
        assert await agent.call("guest-get-timezone") == {"zone": "+0545", "offset": 20700}
    finally:
        await attached.in_guest("mv /root/localtime /etc/localtime")


async def test_a_processor_goes_offline_and_comes_back(agent: Agent, attached: Attached) -> None:
    both = await agent.call("guest-get-vcpus")
    assert [(cpu["logical-id"], cpu["online"]) for cpu in both] == [(0, True), (1, True)]
    assert await agent.call("guest-set-vcpus", vcpus=[{"logical-id": 1, "online": False}]) == 1
    try:
        assert await attached.in_guest("nproc") == "1\n"
        assert (await agent.call("guest-get-vcpus"))[1]["online"] is False
    finally:
        assert await agent.call("guest-set-vcpus", vcpus=[{"logical-id": 1, "online": True}]) == 1
    assert await attached.in_guest("nproc") == "2\n"
    assert "cpu9/': No such file" in await agent.error_of(
        "guest-set-vcpus", vcpus=[{"logical-id": 9, "online": True}]
    )


async def test_a_block_of_memory_goes_offline_and_comes_back(agent: Agent, attached: Attached) -> None:
    size = (await agent.call("guest-get-memory-block-info"))["size"]
    assert size == int(await attached.in_guest("cat /sys/devices/system/memory/block_size_bytes"), 16)
    blocks = await agent.call("guest-get-memory-blocks")
    assert len(blocks) * size >= 512 * 2**20
    number = [block["phys-index"] for block in blocks if block["can-offline"]][-1]
    state = f"cat /sys/devices/system/memory/memory{number}/state"
    (answer,) = await agent.call(
        "guest-set-memory-blocks", mem_blks=[{"phys-index": number, "online": False}]
    )
    # Whether it can go is the kernel's to say: what lies in it may not be movable.
    gone = answer["response"] == "success"
    assert answer == {"phys-index": number, "response": "success"} if gone else "error-code" in answer
    assert (await attached.in_guest(state)).strip() == ("offline" if gone else "online")
    assert await agent.call(
        "guest-set-memory-blocks",
        mem_blks=[{"phys-index": number, "online": True}, {"phys-index": 99999, "online": True}],
    ) == [
        {"phys-index": number, "response": "success"},
        {"phys-index": 99999, "response": "not-found", "error-code": 2},
    ]
    assert (await attached.in_guest(state)).strip() == "online"


async def test_a_user_gets_a_password_and_keys(agent: Agent, attached: Attached) -> None:
    await attached.in_guest("useradd --create-home alice")
    shadow = "grep ^alice: /etc/shadow | cut -d: -f2"
    try:
        password = b64("pass: wörd'".encode())
        await agent.call("guest-set-user-password", username="alice", password=password, crypted=False)
        hashed = (await attached.in_guest(shadow)).strip()
        assert hashed.startswith("$y$")
        check = "import crypt, sys; print(crypt.crypt(sys.argv[1], sys.argv[2]))"
        assert (
            await attached.in_guest(f"python3 -W ignore -c '{check}' \"pass: wörd'\" '{hashed}'")
        ).strip() == hashed
        await agent.call("guest-set-user-password", username="alice", password=b64(b"$6$a$b"), crypted=True)
        assert (await attached.in_guest(shadow)).strip() == "$6$a$b"
        assert "child process has failed to set user password" in await agent.error_of(
            "guest-set-user-password", username="nobody-here", password=password, crypted=False
        )

        keys = ["ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"]
        await agent.call("guest-ssh-add-authorized-keys", username="alice", keys=keys)
        assert await agent.call("guest-ssh-get-authorized-keys", username="alice") == {"keys": keys}
        listed = "stat -c '%U %G %a' /home/alice/.ssh /home/alice/.ssh/authorized_keys"
        assert await attached.in_guest(listed) == "alice alice 700\nalice alice 600\n"
        await agent.call("guest-ssh-remove-authorized-keys", username="alice", keys=keys[:1])
        assert await attached.in_guest("cat /home/alice/.ssh/authorized_keys") == "ssh-ed25519 BBBB two\n"
        # The user puts root's file in the place of its own.
        await attached.in_guest("ln -sf /etc/shadow /home/alice/.ssh/authorized_keys")
        assert "symbolic links" in await agent.error_of("guest-ssh-get-authorized-keys", username="alice")
    finally:
        await attached.in_guest("userdel --remove alice 2>/dev/null")


async def test_a_guest_without_swap_cannot_be_suspended_to_its_disk(agent: Agent) -> None:
    for command in ("guest-suspend-disk", "guest-suspend-hybrid"):
        assert await agent.error_of(command)
    assert "mode is invalid" in await agent.error_of("guest-shutdown", mode="sleep")
    await agent.call("guest-ping")


async def test_a_guest_sleeps_wakes_and_shuts_down(tmp_path: Path) -> None:
    # By the agent as it is installed, on its own port: a serial line does not wake up with its guest.
    path = tmp_path / "port.sock"
    async with running_vm(tmp_path, extra=port_arguments(path)) as vm:
        await vm.booted()

        async def until(status: str) -> None:
            with trio.fail_after(STATE_TIMEOUT):
                while (await vm.qmp("query-status"))["status"] != status:
                    await trio.sleep(LOOK_EVERY)

        async with connected(path) as agent:
            async with trio.open_nursery() as nursery:
                # Its answer may come before the sleep, or after it.
                nursery.start_soon(agent.order, "guest-suspend-ram")
                await until("suspended")
                await vm.qmp("system_wakeup")
                await until("running")
            await agent.call("guest-ping")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.order, "guest-shutdown")
                assert await vm.wait_exit(STATE_TIMEOUT) == 0
