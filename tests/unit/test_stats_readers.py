"""What the guest's readers make of the kernel's files, and of two readings of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from virtagent_guest.stats import cpu, disks, load, memory, network, pressure, procfs
from virtagent_guest.stats.rates import grown, per_second, share
from virtagent_guest.stats.sampler import SECTIONS, Sampler

STAT = """\
cpu  210 0 60 4000 10 0 0 5 50 0
cpu0 110 0 30 2000 5 0 0 5 50 0
cpu1 100 0 30 2000 5 0 0 0 0 0
intr 30777173 0 0 0
ctxt 1
"""
LATER = """\
cpu  260 20 70 4100 20 0 0 25 60 0
cpu0 150 0 40 2000 10 0 0 15 60 0
cpu1 110 20 30 2100 4 0 0 0 0 0
cpu2 7 0 0 0 0 0 0 0 0 0
intr 30777173 0 0 0
"""
#: From QEMU with Linux 6.1.
DISKSTATS = """\
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 254       0 vda 6000 1500 400000 9000 2000 800 160000 7000 1 8000 16000 0 0 0 0 100 50
 254       1 vda1 5900 1500 390000 9000 2000 800 160000 7000 0 8000 16000 0 0 0 0 0 0
 253       0 dm-0 100 0 800 10 0 0 0 0 0 10 10
"""
NET = """\
Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier
    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0
  eth0: 5000 50 1 2 0 0 0 0 7000 70 3 4 0 0 0 0
eth0:1: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0
"""


def plain(function: Any) -> Any:
    """What readers return is taken apart here without a word to mypy at each step."""
    return function


# --- Rates -------------------------------------------------------------------------------------------


def test_a_counter_that_wraps_at_32_bits_has_grown_by_what_is_left_and_what_came() -> None:
    assert grown(2**32 - 10, 20) == 30
    assert per_second(2**32 - 10, 20, 2.0) == 15.0


def test_a_counter_that_began_anew_tells_no_growth() -> None:
    assert grown(1000, 10) == 0
    assert grown(2**40, 5) == 0, "a counter of 64 bits does not wrap"
    assert grown(2**32 - 2**31, 5) == 0, "too far from its end to have wrapped"


@pytest.mark.parametrize("seconds", [0.0, -3.0])
def test_a_clock_that_stands_still_or_goes_back_gives_no_rate(seconds: float) -> None:
    assert per_second(0, 1000, seconds) == 0.0
    assert share(5, seconds) == 0.0


def test_a_share_is_never_below_nothing_nor_above_all() -> None:
    assert (share(-1, 10), share(5, 10), share(11, 10)) == (0.0, 0.5, 1.0)


# --- Processors --------------------------------------------------------------------------------------


def test_shares_of_the_processors_sum_up_to_one_and_a_guests_time_is_counted_once() -> None:
    section, omitted = plain(cpu.describe)(cpu.cpu_times(STAT), cpu.cpu_times(LATER))
    assert omitted == 0
    assert section["count"] == 3
    first, second = section["cpus"]
    # 40 of user are 30 of its own and 10 of a guest's, 10 system, 5 iowait, 10 steal: 65.
    assert first["user"] == pytest.approx(30 / 65)
    assert first["guest"] == pytest.approx(10 / 65)
    assert first["busy"] == pytest.approx(60 / 65)
    # Waiting for I/O went back by 1, which is nothing; 130 of 130 are the others.
    assert second["iowait"] == 0.0
    assert second["busy"] == pytest.approx(30 / 130)
    for shares in (section, first, second):
        assert sum(shares[name] for name in cpu.TIMES) == pytest.approx(1.0)


def test_a_processor_that_came_meanwhile_has_no_share_yet() -> None:
    section, _ = plain(cpu.describe)(cpu.cpu_times(STAT), cpu.cpu_times(LATER))
    assert [one["cpu"] for one in section["cpus"]] == [0, 1]


def test_processors_between_two_readings_at_once_do_nothing() -> None:
    section, _ = plain(cpu.describe)(cpu.cpu_times(STAT), cpu.cpu_times(STAT))
    assert section["busy"] == section["idle"] == 0.0


def test_a_thousand_processors_are_summed_up_and_not_all_listed() -> None:
    before = {number: dict.fromkeys(cpu.TIMES, 0) for number in range(1000)}
    after = {number: dict.fromkeys(cpu.TIMES, 1) for number in range(1000)}
    section, omitted = plain(cpu.describe)(before, after)
    assert (section["count"], omitted) == (1000, 1000 - cpu.CPUS_MAX)


# --- Memory, load, pressure --------------------------------------------------------------------------


def test_memory_is_told_in_bytes_and_what_the_kernel_could_give_away_is_not_used() -> None:
    text = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\nDirty: 7 kB\nHugePages_Total: 0\n"
    section = plain(memory.describe_memory)(memory.numbers(text))
    assert section["total"] == 1024000
    assert section["available"] == 600 * 1024
    assert section["used"] == 400 * 1024
    assert section["dirty"] == 7 * 1024
    assert section["slab"] == 0, "not told by this kernel"


def test_an_old_kernel_that_tells_no_available_memory_has_some() -> None:
    text = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 50 kB\nCached: 250 kB\n"
    assert plain(memory.describe_memory)(memory.numbers(text))["available"] == 400 * 1024


def test_swap_has_sizes_and_rates() -> None:
    before = {"SwapTotal": 100, "SwapFree": 100, "pswpin": 0, "pswpout": 10}
    after = {"SwapTotal": 100, "SwapFree": 60, "pswpin": 4, "pswpout": 30}
    page = os.sysconf("SC_PAGE_SIZE")
    assert plain(memory.describe_swap)(before, after, 2.0) == {
        "total": 102400,
        "free": 61440,
        "used": 40960,
        "in": 2.0 * page,
        "out": 10.0 * page,
    }


def test_load_and_uptime_are_read() -> None:
    assert plain(load.describe_load)("0.50 1.25 2.00 3/456 7890\n") == {
        "avg1": 0.5,
        "avg5": 1.25,
        "avg15": 2.0,
        "running": 3,
        "threads": 456,
    }
    assert load.describe_uptime("25492.17 12345.00\n") == 25492.17


def test_pressure_is_told_as_shares_and_seconds_and_the_processors_may_lack_full() -> None:
    some = "some avg10=64.40 avg60=23.48 avg300=100.00 total=1500000\n"
    section = plain(pressure.describe)({"cpu": some, "io": some + some.replace("some", "full")})
    assert set(section["cpu"]) == {"some"}
    assert section["io"]["full"] == pytest.approx(
        {"avg10": 0.644, "avg60": 0.2348, "avg300": 1.0, "total": 1.5}
    )


def test_a_kernel_without_pressure_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pressure, "DIRECTORY", str(tmp_path))
    with pytest.raises(procfs.Unavailable, match="CONFIG_PSI, and psi=1"):
        pressure.take()


async def test_a_section_that_is_not_there_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pressure, "DIRECTORY", str(tmp_path))
    (tmp_path / "loadavg").write_text("nonsense\n")
    monkeypatch.setattr(load, "LOADAVG", str(tmp_path / "loadavg"))
    record = await plain(Sampler(frozenset({"pressure", "load", "memory"}), 1).sample)()
    assert set(record["unavailable"]) == {"pressure", "load"}
    assert record["memory"]["total"] > 0
    assert record["window"] == 0.0


# --- Disks and network -------------------------------------------------------------------------------


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /sys/block with vda and dm-0, and a /sys/class/net with eth0 and lo."""
    for directory, entries_ in (
        ("block", {"vda": "pci0/virtio1", "dm-0": "virtual/block"}),
        ("net", {"eth0": "pci0/virtio2", "lo": "virtual/net"}),
    ):
        (tmp_path / directory).mkdir()
        for name, where in entries_.items():
            (tmp_path / directory / name).symlink_to(f"../devices/{where}/{name}")
    monkeypatch.setattr(disks, "SYS_BLOCK", str(tmp_path / "block"))
    monkeypatch.setattr(network, "SYS_NET", str(tmp_path / "net"))
    return tmp_path


def _counters(table: str) -> dict[str, dict[str, int]]:
    return {disk.name: disk.counters for disk in disks.disk_counters(table)}


def test_whole_disks_have_rates_and_partitions_are_not_counted_again(sysfs: Path) -> None:
    later = DISKSTATS.replace(
        "6000 1500 400000 9000 2000 800 160000 7000 1 8000",
        "6010 1500 400016 9000 2000 800 160032 7000 3 9000",
    )
    told, omitted = plain(disks.describe)(_counters(DISKSTATS), _counters(later), 2.0)
    assert omitted == 0
    vda, dm = told
    assert vda == {
        "name": "vda",
        "virtual": False,
        "busy": 0.5,
        "in_flight": 3,
        "read_bytes": 4096.0,
        "write_bytes": 8192.0,
        "reads": 5.0,
        "writes": 0.0,
    }
    assert dm["virtual"] is True


def test_a_disk_whose_time_of_io_wraps_is_as_busy_as_it_is(sysfs: Path) -> None:
    counters = _counters(DISKSTATS)["vda"]
    before = {"vda": {**counters, "total_ticks": 2**32 - 300}}
    after = {"vda": {**counters, "total_ticks": 200}}
    ((vda,), _) = plain(disks.describe)(before, after, 1.0)
    assert vda["busy"] == 0.5


def test_a_disk_that_came_meanwhile_has_done_nothing_yet(sysfs: Path) -> None:
    told, _ = plain(disks.describe)({}, _counters(DISKSTATS), 1.0)
    assert {one["read_bytes"] for one in told} == {0.0}


def test_interfaces_have_rates_and_names_may_have_colons(sysfs: Path) -> None:
    before = network.interface_counters(NET)
    assert set(before) == {"lo", "eth0", "eth0:1"}
    after = network.interface_counters(NET.replace("5000 50 1 2", "9000 54 1 4"))
    told, _ = plain(network.describe)(before, after, 2.0)
    lo, eth0, label = told
    assert eth0["rx_bytes"] == 2000.0
    assert eth0["rx_packets"] == 2.0
    assert eth0["rx_dropped"] == 1.0
    assert [one["virtual"] for one in (lo, eth0, label)] == [True, False, True]


def test_a_thousand_interfaces_are_cut_and_counted(sysfs: Path) -> None:
    counters = network.interface_counters(NET)["eth0"]
    many = {f"veth{number}": counters for number in range(1000)}
    told, omitted = plain(network.describe)(many, many, 1.0)
    assert (len(told), omitted) == (network.INTERFACES_MAX, 1000 - network.INTERFACES_MAX)


def test_a_file_is_read_within_its_limit_and_in_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("one line\n" * 1000)
    assert procfs.read(str(tmp_path / "long"), 100) == "one line\n" * 11


# --- All together ------------------------------------------------------------------------------------


async def test_this_machine_has_every_section_but_what_it_says_is_unavailable() -> None:
    sampler = Sampler(frozenset(SECTIONS), 3)
    await sampler.begin()
    record = await plain(sampler.sample)()
    assert set(SECTIONS) - set(record) == set(record["unavailable"])
    assert set(record["unavailable"]) <= {"pressure"}
    assert record["processes"]["looked_at"] > 0
