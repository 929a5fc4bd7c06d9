"""Statistics of the real guest: load that is made there is seen, where it is made and how much of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import trio

from tests.guest.lab import Attached
from virtagent_host.stats.sections import SECTIONS

#: Seconds for load to be seen: under TCG, on a busy machine.
DEADLINE = 90.0


async def _stats(attached: Attached, *sections: str) -> Any:
    arguments = [argument for section in sections for argument in ("--section", section)]
    return json.loads(await attached.lab.succeed("stats", "--json", *arguments))


async def _until(attached: Attached, section: str, seen: Callable[[Any], bool]) -> Any:
    """Ask until a section tells what is awaited, and return it then."""
    found = None
    with trio.move_on_after(DEADLINE):
        while True:
            found = (await _stats(attached, section))[section]
            if seen(found):
                return found
    raise AssertionError(f"not seen within {DEADLINE} s: {found}")


async def test_every_section_is_there_and_pressure_is_measured(attached: Attached) -> None:
    record = await _stats(attached)
    assert record["unavailable"] == {}
    assert set(SECTIONS) <= set(record)
    assert set(record["pressure"]) == {"cpu", "memory", "io"}
    total = int(await attached.in_guest("awk '/^MemTotal/ {print $2}' /proc/meminfo"))
    assert record["memory"]["total"] == total * 1024
    assert record["cpu"]["count"] == int(await attached.in_guest("nproc"))
    (root,) = [one for one in record["filesystems"] if one["path"] == "/"]
    assert (root["type"], root["source"][:5]) == ("ext4", "/dev/")
    assert root["used"] < root["size"]
    boot = float((await attached.in_guest("cut -d' ' -f1 /proc/uptime")).strip())
    assert 0 < record["uptime"] <= boot


async def test_a_busy_loop_is_seen_as_processor_time_and_on_top(attached: Attached) -> None:
    await attached.in_guest(
        "printf '#!/bin/sh\\nwhile :; do :; done\\n' >/tmp/spinner && chmod +x /tmp/spinner"
    )
    await attached.in_guest("systemd-run --quiet --unit=spinner /tmp/spinner")
    try:
        count = (await _stats(attached, "cpu"))["cpu"]["count"]
        busy = await _until(attached, "cpu", lambda cpu: cpu["busy"] > 0.5 / count)
        assert busy["user"] > 0
        found = await _until(
            attached, "processes", lambda processes: processes["top"][0]["name"] == "spinner"
        )
        assert found["top"][0]["cpu"] > 0.3
        assert found["top"][0]["user"] == "root"
        # More than there are processors: they wait for each other.
        await attached.in_guest(
            f"for n in $(seq {2 * count}); do systemd-run --quiet --unit=spinner-$n /tmp/spinner; done"
        )
        await _until(attached, "pressure", lambda pressure: pressure["cpu"]["some"]["avg10"] > 0.2)
        screen = (await attached.lab.run("top", "--once")).stdout.decode()
        (row,) = [line for line in screen.splitlines() if line.startswith(attached.lab.name)]
        cpu, _, pressure = (int(share) for share in re.findall(r"(\d+)%", row)[:3])
        assert cpu > 30
        assert pressure > 10
    finally:
        await attached.in_guest("systemctl stop 'spinner*' || true; rm -f /tmp/spinner")
    await _until(attached, "cpu", lambda cpu: cpu["idle"] > 0.3)


async def test_what_dd_writes_is_seen_on_the_disk_and_what_a_file_takes_in_its_file_system(
    attached: Attached,
) -> None:
    before = (await _stats(attached, "filesystems"))["filesystems"][0]["used"]
    script = "while :; do dd if=/dev/zero of=/root/filler bs=1M count=64 oflag=direct,sync 2>/dev/null; done"
    await attached.in_guest(f"systemd-run --quiet --unit=filler sh -c '{script}'")
    try:
        disks = await _until(
            attached, "disks", lambda disks: any(disk["write_bytes"] > 1e6 for disk in disks)
        )
        (disk,) = [disk for disk in disks if disk["write_bytes"] > 1e6 and not disk["virtual"]]
        assert disk["name"].startswith("vd")
        assert disk["busy"] > 0
        assert disk["writes"] > 0
        await _until(attached, "filesystems", lambda found: found[0]["used"] > before + 30e6)
    finally:
        await attached.in_guest("systemctl stop filler; rm -f /root/filler")


async def test_a_subscription_ends_with_the_agent_and_begins_again_with_the_next(attached: Attached) -> None:
    async with attached.lab.client() as client:
        begun = await client.execute("va_stats", sections=["cpu", "memory"], interval=0.5)
        for _ in range(3):
            event = await client.event("VA_GUEST_STATS", id=begun["id"])
            assert {"cpu", "memory"} <= set(event)
        await attached.in_guest("systemctl restart va-guest")
        ended = await client.event("VA_GUEST_STATS_ENDED", id=begun["id"])
        assert ended["kind"] == "broken"
        await attached.lab.ready()
        again = await client.execute("va_stats", sections=["cpu"], interval=0.5)
        assert again["id"] != begun["id"]
        await client.event("VA_GUEST_STATS", id=again["id"])
        await client.execute("va_stats_stop", id=again["id"])


async def test_a_sample_costs_the_agent_no_more_than_some_pings(attached: Attached) -> None:
    """An emulated processor on a busy machine is slow by any factor: so what it costs is compared."""
    ticks = "awk '{print $14 + $15}' /proc/$(systemctl show -P MainPID va-guest)/stat"
    samples, pings = 20, 200
    async with attached.lab.client() as client:
        sections = ["cpu", "memory", "pressure", "disks", "network"]
        begun = await client.execute("va_stats", sections=sections, interval=0.5)
        await client.event("VA_GUEST_STATS", id=begun["id"])
        before = int(await attached.in_guest(ticks))
        for _ in range(samples):
            await client.event("VA_GUEST_STATS", id=begun["id"])
        between = int(await attached.in_guest(ticks))
        await client.execute("va_stats_stop", id=begun["id"])
        for _ in range(pings):
            await client.execute("va_ping", timeout=DEADLINE)
        after = int(await attached.in_guest(ticks))
    # Ticks of 10 ms.
    sample, ping = 10 * (between - before) / samples, 10 * max(after - between, 1) / pings
    print(f"a sample: {sample:.1f} ms of a processor, a ping: {ping:.2f} ms")
    # Natively it costs ten.
    assert sample < 60 * ping
