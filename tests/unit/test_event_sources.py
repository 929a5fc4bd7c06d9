"""The built-in events' parsers and rules: what they make of what the system says."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest
import trio
import trio.testing
from jeepney.low_level import Endianness, Message, MessageType  # type: ignore[import-untyped]
from jeepney.wrappers import DBusAddress, new_method_call, new_signal  # type: ignore[import-untyped]

from virtagent_guest.config import ConfigError, dump, load
from virtagent_guest.events.sources import filesystems
from virtagent_guest.events.sources.addresses import LISTED_MAX, Entry, difference
from virtagent_guest.events.sources.asked import GUEST, HOST, LASTS, Asked
from virtagent_guest.events.sources.button import is_pressed, power_buttons
from virtagent_guest.events.sources.dbuswire import MESSAGE_MAX, MessageReader, NotDBus
from virtagent_guest.events.sources.filesystems import FilesystemSource, Levels, distinct, usage
from virtagent_guest.events.sources.oom import OomParser
from virtagent_guest.events.sources.settings import NAMES, EventSettings
from virtagent_guest.events.sources.source import TEXT_MAX, plain
from virtagent_guest.events.sources.units import unit_name
from virtagent_guest.events.sources.users import session_data
from virtagent_guest.events.sources.watch import watch
from virtagent_protocol.values import Struct

DEADLINE = 30.0

# --- oom-kill ----------------------------------------------------------------------------------------

CHOSEN = (
    b"6,812,92833312,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    b"oom_memcg=/system.slice/run-u3.service,"
    b"task_memcg=/system.slice/run-u3.service,task=tail,pid=411,uid=0\n"
)
KILLED_IN_CGROUP = (
    b"3,813,92833500,-;Memory cgroup out of memory: Killed process 411 (tail) total-vm:66104kB, "
    b"anon-rss:60912kB, file-rss:1632kB, shmem-rss:0kB, UID:0 pgtables:164kB oom_score_adj:0\n"
)
KILLED = (
    b"3,900,120000000,-;Out of memory: Killed process 77 (java) total-vm:1kB, anon-rss:1kB, file-rss:0kB, "
    b"shmem-rss:0kB, UID:1000 pgtables:8kB oom_score_adj:0\n SUBSYSTEM=x\n"
)


def test_a_kill_in_a_control_group_names_process_user_and_group() -> None:
    parser = OomParser()
    assert parser.parse(CHOSEN) is None
    assert parser.parse(KILLED_IN_CGROUP) == {
        "process": "tail",
        "pid": 411,
        "uid": 0,
        "scope": "cgroup",
        "cgroup": "/system.slice/run-u3.service",
    }


def test_a_kill_without_the_line_before_has_no_control_group() -> None:
    parser = OomParser()
    parser.parse(CHOSEN)  # of another process
    assert parser.parse(KILLED) == {
        "process": "java",
        "pid": 77,
        "uid": 1000,
        "scope": "guest",
        "cgroup": None,
    }


@pytest.mark.parametrize(
    ("text", "process", "uid"),
    [
        # Linux 4.19, and 5.4 with its UID in another place.
        (b"Out of memory: Killed process 5 (a b) total-vm:1kB, anon-rss:0kB", "a b", None),
        (b"Out of memory: Killed process 5 (x), UID 33, total-vm:1kB", "x", 33),
        (b"Out of memory (oom_kill_allocating_task): Killed process 5 (x) total-vm:1kB, UID:2 p", "x", 2),
        # Names that mean something to us, to a terminal, or to nobody.
        (b"Out of memory: Killed process 5 () 9 (init) tot) total-vm:1kB, UID:2 p", ") 9 (init) tot", 2),
        (b"Out of memory: Killed process 5 (a\\x1b[31m\\x0ab) total-vm:1kB, UID:2 p", "a\\x1b[31m\\nb", 2),
        (b"Out of memory: Killed process 5 (\\xff) total-vm:1kB, UID:2 p", "\\udcff", 2),
    ],
)
def test_kernels_and_names_differ(text: bytes, process: str, uid: int | None) -> None:
    data = OomParser().parse(b"3,1,2,-;" + text + b"\n")
    assert data is not None
    assert (data["process"], data["pid"], data["uid"]) == (process, 5, uid)


@pytest.mark.parametrize(
    "record",
    [
        # By a program: the facility is not the kernel's.
        b"12" + KILLED[1:],
        b"11" + KILLED[1:],
        b"x" + KILLED[1:],
        b"",
        b"3,1,2,-",
        b"6,1,2,-;usb 1-1: new device\n",
        b"3,1,2,-;oom-kill:\n",
        b"3,1,2,-;Killed process\n",
        b"3,1,2,-;Out of memory: Killed process x (y) total-vm:1kB\n",
    ],
)
def test_what_the_kernel_did_not_say_is_no_kill(record: bytes) -> None:
    assert OomParser().parse(record) is None


# --- addresses-changed -------------------------------------------------------------------------------


def test_addresses_are_told_by_their_difference() -> None:
    before: frozenset[Entry] = frozenset({("eth0", "10.0.0.2", 24), ("eth0", "fe80::1", 64)})
    now: frozenset[Entry] = frozenset({("eth0", "10.0.0.3", 24), ("eth0", "fe80::1", 64)})
    assert difference(before, now) == {
        "added": [{"interface": "eth0", "address": "10.0.0.3", "prefix": 24}],
        "removed": [{"interface": "eth0", "address": "10.0.0.2", "prefix": 24}],
        "more": 0,
    }
    assert difference(now, now) is None


def test_very_many_addresses_are_counted() -> None:
    many = frozenset((f"eth{n}", f"10.0.0.{n}", 32) for n in range(100))
    data = difference(frozenset(), many)
    assert data is not None
    assert isinstance(data["added"], list)
    assert (len(data["added"]), data["removed"], data["more"]) == (LISTED_MAX, [], 100 - LISTED_MAX)


# --- filesystem-filling, filesystem-ok ---------------------------------------------------------------


def statvfs(**members: int) -> os.statvfs_result:
    names = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "flag", "namemax")
    given = {"bsize": 4096, "frsize": 1024, "namemax": 255, **members}
    return os.statvfs_result([given.get(name, 0) for name in names])


def test_use_is_what_df_shows() -> None:
    # 1000 blocks, 200 free, of which 50 are root's: 800 of 950 in use.
    found = usage(statvfs(blocks=1000, bfree=200, bavail=150, files=10, ffree=9, favail=9))
    assert found is not None
    assert (found.space, found.inodes, found.percent) == (85, 10, 85)
    assert (found.size, found.available) == (1000 * 1024, 150 * 1024)


def test_inodes_count_where_they_are_limited() -> None:
    found = usage(statvfs(blocks=1000, bfree=1000, bavail=1000, files=100, ffree=1, favail=1))
    assert found is not None
    assert (found.space, found.inodes, found.percent) == (0, 99, 99)


def test_what_nobody_can_fill_is_not_looked_at() -> None:
    assert usage(statvfs(blocks=1000, flag=os.ST_RDONLY)) is None
    assert usage(statvfs(blocks=0)) is None
    full = usage(statvfs(blocks=1000, bfree=10, bavail=-10))
    assert full is not None
    assert full.percent > 100


def test_a_file_system_about_its_threshold_is_told_of_once() -> None:
    levels = Levels(90)
    seen = [levels.look("/", percent) for percent in (89, 90, 91, 89, 90, 86, 85, 86, 89, 90)]
    filling, ok = "filesystem-filling", "filesystem-ok"
    assert seen == [None, filling, None, None, None, None, ok, None, None, filling]
    levels.keep(set())  # it was unmounted
    assert levels.look("/", 95) == filling


TABLE = rb"""1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 0:20 / /proc rw - proc proc rw
3 1 0:21 / /run rw - tmpfs tmpfs rw
4 1 254:0 /srv /srv rw - ext4 /dev/vda rw
5 1 254:16 / /mnt/two\040words rw - xfs /dev/vdb rw
6 1 0:40 / /nfs rw - nfs4 server:/ rw
7 1 0:41 /a /a rw - btrfs /dev/vdc rw
8 1 0:42 /b /b rw - btrfs /dev/vdc rw
9 1 254:32 / /mnt rw - ext4 /dev/vdd rw
10 1 0:43 / /mnt rw - nfs4 server:/ rw
"""


def test_local_file_systems_are_looked_at_once_each() -> None:
    assert [mount.path for mount in distinct(TABLE)] == ["/", "/run", "/mnt/two words", "/a"]


async def test_a_file_system_that_hangs_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(TABLE)
    hanging = threading.Event()
    asked: list[str] = []
    percent = 95

    def look(path: str) -> os.statvfs_result:
        asked.append(path)
        if path == "/run":
            hanging.wait(DEADLINE)
        free = 100 - percent
        return statvfs(blocks=100, bfree=free, bavail=free)

    monkeypatch.setattr(filesystems, "MOUNTINFO", table)
    monkeypatch.setattr(filesystems, "LOOK_TIMEOUT", 0.2)
    monkeypatch.setattr(os, "statvfs", look)
    told: list[tuple[str, object]] = []
    source = FilesystemSource(lambda name, data: told.append((name, data["path"])), 90)
    with trio.fail_after(DEADLINE):
        try:
            await source.look()
            await source.look()
            others = ["/", "/mnt/two words", "/a"]
            assert told == [("filesystem-filling", path) for path in others]
            assert asked.count("/run") == 1
        finally:
            hanging.set()
        percent = 10
        while asked.count("/run") == 1:
            await source.look()
    assert told[3:6] == [("filesystem-ok", path) for path in others]


# --- D-Bus -------------------------------------------------------------------------------------------

SIGNAL = new_signal(DBusAddress("/a", interface="a.b"), "Sig", "sa{sv}", ("x", {"k": ("u", 7)})).serialise(1)


def bodies(messages: list[Message]) -> list[object]:
    return [message.body for message in messages]


@pytest.mark.parametrize("size", [1, 7, 16, len(SIGNAL), len(SIGNAL) + 3])
def test_messages_may_come_in_any_pieces(size: int) -> None:
    reader = MessageReader()
    data = SIGNAL * 3
    got = [m for at in range(0, len(data), size) for m in reader.feed(data[at : at + size])]
    assert bodies(got) == [("x", {"k": ("u", 7)})] * 3


def test_a_message_that_is_too_large_is_passed_over_and_not_kept() -> None:
    reader = MessageReader()
    signal = new_signal(DBusAddress("/a", interface="a.b"), "Sig", "s", ("x" * (MESSAGE_MAX + 1),))
    large = signal.serialise(1)
    got = [m for at in range(0, len(large), 65536) for m in reader.feed(large[at : at + 65536])]
    assert got == []
    assert len(reader._buffer) < 65536
    assert bodies(reader.feed(SIGNAL)) == [("x", {"k": ("u", 7)})]


def test_a_message_that_cannot_be_parsed_is_dropped_alone() -> None:
    # A string that is longer than its message, and a type of message that there is not.
    torn = SIGNAL.replace(b"\x01\x00\x00\x00x", b"\xff\x00\x00\x00x")
    assert torn != SIGNAL
    unknown = SIGNAL[:1] + b"\x09" + SIGNAL[2:]
    assert bodies(MessageReader().feed(torn + unknown + SIGNAL)) == [("x", {"k": ("u", 7)})]


def test_what_is_no_dbus_is_told() -> None:
    with pytest.raises(NotDBus):
        MessageReader().feed(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_call_is_read_as_it_was_written() -> None:
    call = new_method_call(DBusAddress("/a", "b.c", "d.e"), "M", "u", (5,)).serialise(9)
    (message,) = MessageReader().feed(call)
    assert message.header.message_type is MessageType.method_call
    assert (message.header.endianness, message.header.serial) == (Endianness.little, 9)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/org/freedesktop/systemd1/unit/dbus_2eservice", "dbus.service"),
        ("/org/freedesktop/systemd1/unit/run_2du3_2eservice", "run-u3.service"),
        ("/org/freedesktop/systemd1/unit/a_5cx2db_40c_2emount", "a\\x2db@c.mount"),
    ],
)
def test_units_are_called_by_their_names(path: str, name: str) -> None:
    assert unit_name(path) == name


def test_only_sessions_of_users_are_logins() -> None:
    properties = {
        "Class": "user",
        "Id": "c1",
        "Name": "joe",
        "User": (1000, "/org/freedesktop/login1/user/_1000"),
        "Type": "tty",
        "TTY": "pts/0",
        "Service": "sshd",
        "RemoteHost": "10.0.2.2\x1b[2J",
    }
    assert session_data(properties) == {
        "session": "c1",
        "user": "joe",
        "uid": 1000,
        "type": "tty",
        "tty": "pts/0",
        "service": "sshd",
        "remote-host": "10.0.2.2\\x1b[2J",
    }
    for kind in ("manager", "greeter", "background", "lock-screen"):
        assert session_data({**properties, "Class": kind}) is None


# --- Who asked, what is told -------------------------------------------------------------------------


def test_a_note_of_who_asked_lasts_for_a_while() -> None:
    now = 1000.0
    asked = Asked(lambda: now)
    assert asked.last() == (GUEST, None)
    asked.note(HOST, "reboot")
    assert asked.last() == (HOST, "reboot")
    asked.take_back()
    assert asked.last() == (GUEST, None)
    asked.note(HOST, "reboot")
    now += LASTS
    assert asked.last() == (GUEST, None)


DEVICES = """I: Bus=0019 Vendor=0000 Product=0001 Version=0000
N: Name="Power Button"
P: Phys=LNXPWRBN/button/input0
H: Handlers=kbd event0
B: PROP=0
B: EV=3
B: KEY=8000 10000000000000 0

I: Bus=0011 Vendor=0001 Product=0001 Version=ab41
N: Name="AT Translated Set 2 keyboard"
H: Handlers=sysrq kbd event1 leds
B: EV=120013
B: KEY=402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe

I: Bus=0019 Vendor=0000 Product=0003 Version=0000
N: Name="Sleep Button"
H: Handlers=kbd event2
B: KEY=4000 0 0

N: Name="PC Speaker"
H: Handlers=kbd event3
B: EV=40001
"""


def test_a_power_button_is_told_from_a_keyboard() -> None:
    assert power_buttons(DEVICES, 64) == ["event0"]
    assert power_buttons(DEVICES.replace("10000000000000 0", "100000 0 0 0"), 32) == ["event0"]
    assert power_buttons("") == []


def test_only_pressing_the_power_key_counts() -> None:
    def event(kind: int, code: int, value: int) -> bytes:
        return struct.pack("@llHHi", 1, 2, kind, code, value)

    assert is_pressed(event(0, 0, 0) + event(1, 116, 1) + event(0, 0, 0))
    assert not is_pressed(event(1, 116, 0) + event(1, 116, 2) + event(1, 142, 1) + event(4, 116, 1))
    assert not is_pressed(event(1, 116, 1)[:-1])


def test_text_in_an_event_is_visible_and_bounded() -> None:
    assert plain("/a\nb\udcff\x1b[0m") == "/a\\nb\\udcff\\x1b[0m"
    assert plain("x" * 5000) == "x" * TEXT_MAX


async def test_nothing_runs_if_all_is_off() -> None:
    def emit(name: str, data: Struct) -> None:
        raise AssertionError(name)

    with trio.fail_after(DEADLINE):
        await watch(EventSettings(off=NAMES), emit)


async def test_a_source_that_cannot_work_is_told_once_and_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO", "virtagent.events")
    monkeypatch.setattr("virtagent_guest.events.sources.oom.KMSG", str(tmp_path / "kmsg"))
    monkeypatch.setattr(filesystems, "MOUNTINFO", tmp_path / "mountinfo")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    monkeypatch.setattr("virtagent_guest.events.sources.bus.AGAIN_MIN", 0.01)
    monkeypatch.setattr("virtagent_guest.events.sources.bus.AGAIN_MAX", 0.01)
    with trio.move_on_after(0.5):
        await watch(EventSettings(), lambda name, data: None)
    lines = [record.getMessage() for record in caplog.records]
    assert sorted(line.partition(":")[0] for line in lines) == [
        "no filesystem-filling, filesystem-ok",
        "no oom-kill",
        f"there is no system bus at {tmp_path}/bus",
    ]


# --- [events] ----------------------------------------------------------------------------------------


def test_the_configuration_says_which_events_are_off(tmp_path: Path) -> None:
    file = tmp_path / "guest.toml"
    file.write_text('[events]\noff = ["oom-kill", "filesystem-ok"]\nfilesystem-threshold = 80\n')
    config = load(str(file))
    assert config.events == EventSettings(("oom-kill", "filesystem-ok"), 80)
    assert not config.events.on("oom-kill")
    assert config.events.on("filesystem-ok", "filesystem-filling")
    file.write_text(dump(config))
    assert load(str(file)) == config


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('off = ["oom"]', r"'off' in \[events\]: no such event: 'oom'; the events are shutdown-begun, boot-"),
        ("off = [1]", r"no such event: 1"),
        ('off = "oom-kill"', r"'off' in \[events\] must be an array"),
        ("filesystem-threshold = 100", r"'filesystem-threshold' in \[events\] must be 1 to 99 \(percent\)"),
        ("filesystem-threshold = 0", r"must be 1 to 99"),
        ('filesystem-threshold = "90%"', r"must be a number"),
        ("threshold = 90", r"no such key in \[events\]: 'threshold'; the keys are off, filesystem-threshold"),
    ],
)
def test_a_mistake_in_events_names_the_key(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "guest.toml"
    file.write_text(f"[events]\n{text}\n")
    with pytest.raises(ConfigError, match=complaint):
        load(str(file))
