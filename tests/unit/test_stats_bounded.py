"""What the guest's readers do with many processes, many mounts, and servers that are gone."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from virtagent_guest.freeze.mounts import entries
from virtagent_guest.stats import filesystems as fs
from virtagent_guest.stats import processes
from virtagent_guest.stats.filesystems import FileSystems


def plain(function: Any) -> Any:
    """What readers return is taken apart here without a word to mypy at each step."""
    return function


# --- Processes ---------------------------------------------------------------------------------------


def _stat(name: str = "cat", ticks: int = 0, started: int = 100, rss: int = 1) -> str:
    fields = ["S", "1", "1", "1", "0", "-1", "4194304", "100", "0", "0", "0", str(ticks), "0"]
    return f"7 ({name}) {' '.join(fields)} 0 0 20 0 1 0 {started} 3133440 {rss} 18446744073709551615 1 1\n"


def test_a_process_may_be_called_anything() -> None:
    stat = processes.parse_stat(_stat("a) R 1 (b) ", ticks=5, rss=412))
    assert stat == processes.Stat("a) R 1 (b) ", "S", 5, 100, 412)
    assert processes.parse_stat("") is None
    assert processes.parse_stat("7 (cut off) S 1") is None


def test_the_share_of_a_process_is_since_it_was_looked_at_or_of_its_whole_life() -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    before, now = processes.Stat("x", "S", 0, 0, 0), processes.Stat("x", "S", 3 * hertz, 0, 0)
    assert processes.cpu_share(processes.Seen(before, at=98.0), now, 100.0) == 1.5
    assert processes.cpu_share(None, now, 100.0) == 0.03
    another = processes.Stat("x", "S", 3 * hertz, 94 * hertz, 0)
    assert processes.cpu_share(processes.Seen(before, at=98.0), another, 100.0) == 0.5, "the pid came again"
    assert processes.cpu_share(processes.Seen(before, at=100.0), now, 100.0) == 0.0, "the clock stands still"


class Proc:
    """A /proc of processes that do nothing, but for those in `ticks`."""

    def __init__(self, directory: Path, count: int) -> None:
        self._directory = directory
        for pid in range(1, count + 1):
            (directory / str(pid)).mkdir()
            self.set(pid, 0)
            (directory / str(pid) / "status").write_text("Name:\tx\nUid:\t0\t0\t0\t0\n")
        (directory / "self").mkdir()

    def set(self, pid: int, ticks: int, name: str = "x") -> None:
        (self._directory / str(pid) / "stat").write_text(_stat(name, ticks, started=1))


def _top(found: processes.Processes, count: int = 1) -> Any:
    return plain(found.describe)(count)["top"]


def test_of_many_processes_a_sample_looks_at_some_and_a_busy_one_is_found_in_its_turn_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PROC", str(tmp_path))
    monkeypatch.setattr(processes, "LOOK_MAX", 10)
    proc = Proc(tmp_path, 40)
    clock = iter(range(1000, 2000))
    found = processes.Processes(lambda: float(next(clock)))
    for _ in range(4):
        found.look()
    hertz = os.sysconf("SC_CLK_TCK")
    shares = []
    for second in range(1, 9):
        proc.set(33, second * hertz, "busy")
        found.look()
        section = plain(found.describe)(1)
        assert (section["count"], section["looked_at"]) == (40, 10)
        shares.append(section["top"][0]["cpu"] if section["top"][0]["name"] == "busy" else None)
    turn = shares.index(1.0)
    # In its turn at the latest, and from then on each time.
    assert turn < 4 + 1
    assert shares[turn:] == [1.0] * (8 - turn)
    found.look()
    assert _top(found)[0]["cpu"] == 0.0


def test_a_process_that_has_ended_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROC", str(tmp_path))
    Proc(tmp_path, 3)
    found = processes.Processes()
    found.look()
    for file in (tmp_path / "2").iterdir():
        file.unlink()
    (tmp_path / "2").rmdir()
    assert [one["pid"] for one in _top(found, 5)] == [1, 3]
    found.look()
    assert found.describe(5)["count"] == 2


def test_a_process_with_control_characters_in_its_name_is_told_visibly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PROC", str(tmp_path))
    Proc(tmp_path, 1).set(1, 5, "\x1b[2J\n\ufffe")
    found = processes.Processes()
    found.look()
    assert _top(found)[0]["name"] == "\\x1b[2J\\n\\ufffe"
    assert _top(found)[0]["user"] == "root"


# --- File systems ------------------------------------------------------------------------------------

MOUNTS = rb"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /run rw - tmpfs tmpfs rw
25 22 254:1 /var /mnt/bound rw,relatime shared:1 - ext4 /dev/vda1 rw
26 22 0:44 / /mnt/with\040blank rw - nfs4 server:/export rw
27 22 0:45 /a /mnt/a rw - btrfs /dev/vdb rw
28 22 0:46 /b /mnt/b rw - btrfs /dev/vdb rw
29 22 0:47 / /mnt/portal rw - fuse.portal portal rw
30 22 0:48 / /mnt/\377 rw - virtiofs share rw
nonsense
"""


def _size(blocks: int = 100) -> os.statvfs_result:
    return os.statvfs_result((4096, 1024, blocks, 60, 50, 1000, 900, 900, 0, 255))


def test_what_can_be_full_is_told_once_wherever_it_is_mounted() -> None:
    assert [entry.path for entry in fs.wanted(entries(MOUNTS))] == [
        *("/", "/mnt/with blank", "/mnt/a", "/mnt/portal", os.fsdecode(b"/mnt/\xff"))
    ]


async def test_file_systems_have_sizes_in_bytes_and_inodes() -> None:
    found = FileSystems(lambda: MOUNTS, lambda path: _size(0 if path == "/mnt/portal" else 100))
    told, omitted = await plain(found.read)()
    assert omitted == 0
    root, *_, share_ = told
    assert root == {
        "path": "/",
        "source": "/dev/vda1",
        "type": "ext4",
        "size": 102400,
        "used": 40960,
        "available": 51200,
        "inodes": 1000,
        "inodes_used": 100,
    }
    assert share_["path"] == "/mnt/\ufffd"
    assert len(told) == 4, "what has no size cannot be full"


class Server:
    """A statvfs whose server at one path is gone until it is let go."""

    def __init__(self, *paths: str) -> None:
        self.paths = paths
        self.back = threading.Event()
        self.asked: list[str] = []

    def __call__(self, path: str) -> os.statvfs_result:
        self.asked.append(path)
        if path in self.paths:
            assert self.back.wait(20)
        return _size()


async def test_a_server_that_is_gone_holds_up_no_other_and_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fs, "PATIENCE", 0.1)
    server = Server("/mnt/with blank")
    found = FileSystems(lambda: MOUNTS, server)
    try:
        for _ in range(3):
            with trio.fail_after(5):
                told, _ = await plain(found.read)()
            by_path = {one["path"]: one for one in told}
            assert by_path["/mnt/with blank"]["error"] == fs.HANGS
            assert by_path["/"]["size"] == by_path["/mnt/a"]["size"] == 102400
        assert server.asked.count("/mnt/with blank") == 1
    finally:
        server.back.set()
    with trio.fail_after(5):
        while any("error" in one for one in (await plain(found.read)())[0]):
            await trio.sleep(0.01)


async def test_when_all_servers_are_gone_a_sample_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs, "PATIENCE", 0.05)
    monkeypatch.setattr(fs, "TIME_MAX", 0.3)
    paths = [f"/mnt/{number}" for number in range(50)]
    table = "".join(
        f"26 22 0:{100 + number} / {path} rw - nfs server:/{number} rw\n" for number, path in enumerate(paths)
    )
    server = Server(*paths)
    found = FileSystems(table.encode, server)
    try:
        begun = time.monotonic()
        told, _ = await plain(found.read)()
        assert time.monotonic() - begun < 5
        assert {one["error"] for one in told} == {fs.HANGS, fs.NOT_ASKED}
        for _ in range(5):
            await plain(found.read)()
        assert len(server.asked) <= fs.THREADS_MAX
    finally:
        server.back.set()


async def test_ten_thousand_mounts_are_cut_and_counted() -> None:
    table = "".join(
        f"26 22 8:{number} / /mnt/{number} rw - ext4 /dev/sd{number} rw\n" for number in range(10_000)
    )
    told, omitted = await FileSystems(table.encode, lambda path: _size()).read()
    assert (len(told), omitted) == (fs.FILESYSTEMS_MAX, 10_000 - fs.FILESYSTEMS_MAX)
