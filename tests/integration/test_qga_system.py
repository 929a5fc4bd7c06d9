"""Commands that tell of the system or switch parts of it; what is switched is made up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.qgacalls import call, error_of
from virtagent_guest.methods.qga import clock, memory, users, vcpus
from virtagent_protocol.values import Value

# --- time, users -------------------------------------------------------------------------------------


async def test_the_time_is_the_clocks() -> None:
    before = time.time_ns()
    assert before <= await call("guest-get-time") <= time.time_ns()


async def test_a_time_that_nobody_means_is_refused() -> None:
    for nanoseconds in (-1, 3155760000 * 10**9, 2**63 - 1):
        assert await error_of("guest-set-time", time=nanoseconds) == "Invalid time"


async def test_a_change_of_the_time_zone_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(clock, "LOCALTIME", str(tmp_path / "localtime"))
    assert await call("guest-get-timezone") == {"zone": "UTC", "offset": 0}
    # The TZif file of a zone without rules: RFC 9636, of one type, 5:45 east, called "+0545".
    block = b"TZif2" + bytes(15) + bytes([0, 0, 0, 0] * 3 + [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6])
    data = (20700).to_bytes(4, "big") + b"\0\0" + b"+0545\0"
    (tmp_path / "localtime").write_bytes(2 * (block + data) + b"\n<+0545>-5:45\n")
    assert await call("guest-get-timezone") == {"zone": "+0545", "offset": 20700}
    (tmp_path / "localtime").write_bytes(b"nonsense")
    assert "Couldn't retrieve local timezone" in await error_of("guest-get-timezone")


async def test_users_are_told_once_with_their_first_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "FILE", str(tmp_path / "utmp"))
    monkeypatch.setattr(users, "logins", lambda data, machine: [users.Login(*entry) for entry in LOGINS])
    assert await call("guest-get-users") == []
    (tmp_path / "utmp").write_bytes(b"")
    assert await call("guest-get-users") == [
        {"user": "alice", "login-time": 5.5},
        {"user": "bob", "login-time": 7.0},
    ]


LOGINS = [("alice", 9.0), ("bob", 7.0), ("alice", 5.5), ("alice", 6.0)]


# --- processors and memory ---------------------------------------------------------------------------


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four processors: the first is always online, the third is offline."""
    monkeypatch.setattr(vcpus, "DIRECTORY", tmp_path)
    for name in ("cpu0", "cpu1", "cpu2", "cpu10", "cpufreq", "cpuidle"):
        (tmp_path / name).mkdir()
    for name, online in (("cpu1", "1"), ("cpu2", "0"), ("cpu10", "1")):
        (tmp_path / name / "online").write_text(online + "\n")
    return tmp_path


def cpu(number: int, online: bool) -> dict[str, Value]:
    return {"logical-id": number, "online": online}


async def test_processors_are_told_with_what_can_be_changed(cpus: Path) -> None:
    assert await call("guest-get-vcpus") == [
        cpu(0, True) | {"can-offline": False},
        cpu(1, True) | {"can-offline": True},
        cpu(2, False) | {"can-offline": True},
        cpu(10, True) | {"can-offline": True},
    ]


async def test_processors_are_set_in_order_up_to_the_first_that_fails(cpus: Path) -> None:
    wanted: list[Value] = [cpu(0, True), cpu(1, False), cpu(2, True), cpu(10, True)]
    assert await call("guest-set-vcpus", vcpus=wanted) == 4
    assert [(cpus / name / "online").read_text() for name in ("cpu1", "cpu2", "cpu10")] == ["0", "1", "1\n"]
    assert await call("guest-set-vcpus", vcpus=[cpu(1, True), cpu(0, False), cpu(2, False)]) == 1
    assert (cpus / "cpu2" / "online").read_text() == "1"
    assert await call("guest-set-vcpus", vcpus=[]) == 0
    assert await error_of("guest-set-vcpus", vcpus=[cpu(0, False)]) == (
        "logical processor #0 can't be offlined"
    )
    assert "cpu7/': No such file" in await error_of("guest-set-vcpus", vcpus=[cpu(7, True)])


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three blocks: online, online and not removable, offline."""
    directory = tmp_path / "memory"
    monkeypatch.setattr(memory, "DIRECTORY", directory)
    for number, state, removable in ((0, "online", "1"), (1, "online", "0"), (32, "offline", "1")):
        block = directory / f"memory{number}"
        block.mkdir(parents=True)
        (block / "state").write_text(state + "\n")
        (block / "removable").write_text(removable + "\n")
    (directory / "block_size_bytes").write_text("8000000\n")
    return directory


async def test_memory_blocks_are_told_with_what_can_be_changed(blocks: Path) -> None:
    assert await call("guest-get-memory-blocks") == [
        {"phys-index": 0, "online": True, "can-offline": True},
        {"phys-index": 1, "online": True, "can-offline": False},
        {"phys-index": 32, "online": False, "can-offline": True},
    ]
    assert await call("guest-get-memory-block-info") == {"size": 128 * 2**20}


async def test_memory_blocks_are_set_one_by_one(blocks: Path) -> None:
    (blocks / "memory1" / "state").unlink()
    wanted: list[Value] = [
        {"phys-index": 0, "online": False},
        {"phys-index": 32, "online": False, "can-offline": True},
        {"phys-index": 7, "online": True},
        {"phys-index": 1, "online": True},
        {"phys-index": 1, "online": False},
    ]
    assert await call("guest-set-memory-blocks", mem_blks=wanted) == [
        {"phys-index": 0, "response": "success"},
        {"phys-index": 32, "response": "success"},
        {"phys-index": 7, "response": "not-found", "error-code": 2},
        {"phys-index": 1, "response": "success"},
        {"phys-index": 1, "response": "operation-not-supported", "error-code": 2},
    ]
    assert (blocks / "memory0" / "state").read_text() == "offline"


async def test_a_kernel_without_memory_hotplug_has_no_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "DIRECTORY", tmp_path / "missing")
    assert await call("guest-get-memory-blocks") == []
    assert await call("guest-set-memory-blocks", mem_blks=[{"phys-index": 0, "online": False}]) == [
        {"phys-index": 0, "response": "operation-not-supported", "error-code": 2}
    ]
    assert "block_size_bytes" in await error_of("guest-get-memory-block-info")
