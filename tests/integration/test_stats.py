"""`va-host stats` with a real va-guest and va-host behind them."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.forwardlab import NAME, Lab, lab, until_ready
from tests.integration.forwardlab import va_host as attached
from tests.integration.hostilelab import DEADLINE, PYTHON_PATH, wait_until
from tests.integration.qgalab import run_qemu_ga
from tests.integration.statslab import run
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir
from virtagent_host.stats.sections import SECTIONS


@pytest.fixture(scope="module")
def vm() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Lab]:
    """A VM of which a test ends a part."""
    with lab() as made:
        yield made


def _records(result: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- stats -------------------------------------------------------------------------------------------


def test_one_record_has_every_section_that_this_machine_has(vm: Lab) -> None:
    (record,) = _records(run(vm, "stats", "--json"))
    assert set(SECTIONS) == set(record) & set(SECTIONS) | set(record["unavailable"])
    assert record["window"] >= 0.5
    assert record["memory"]["total"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert record["cpu"]["count"] == len(os.sched_getaffinity(0)) or record["cpu"]["count"] >= 1
    assert any(one["path"] == "/" and one["used"] <= one["size"] for one in record["filesystems"])
    assert any(one["name"] == "lo" and one["virtual"] for one in record["network"])
    assert len(record["processes"]["top"]) == 10


def test_sections_are_chosen_and_those_without_rates_have_no_window(vm: Lab) -> None:
    (record,) = _records(run(vm, "stats", NAME, "--json", "--section", "memory", "--section", "load"))
    assert set(record) == {"time", "window", "memory", "load", "unavailable", "omitted"}
    assert record["window"] == 0.0
    text = run(vm, "stats", "--section", "memory").stdout.decode()
    assert text.startswith("memory       ")
    assert "available" in text


def test_records_come_again_and_again_as_often_as_was_asked_for(vm: Lab) -> None:
    records = _records(run(vm, "stats", "--json", "--interval", "0.2", "--count", "3", "--section", "cpu"))
    assert len(records) == 3
    assert all(first["time"] < then["time"] for first, then in itertools.pairwise(records))
    assert all(record["window"] > 0.1 for record in records)


def test_what_the_guest_refuses_is_said(vm: Lab) -> None:
    result = run(vm, "stats", "--top", "1000")
    assert result.returncode == 1
    assert b"refused: top must be 1 to 100" in result.stderr


def test_a_subscriber_that_does_not_read_gets_fresh_records_later_and_is_not_dropped(vm: Lab) -> None:
    with VmClient.connect(vm.runtime, NAME) as client:
        subscription = client.execute("va_stats", {"interval": 0.2, "top": 100}, timeout=DEADLINE)
        sock = socket.socket(fileno=os.dup(client.fileno()))
        with sock:
            _until_full(sock)
        with VmClient.connect(vm.runtime, NAME) as other:
            assert other.execute("va_ping", timeout=DEADLINE)["status"] == "success"
        began, skipped = time.time(), 0
        for event in client.events(timeout=DEADLINE):
            if event["event"] == "VA_GUEST_STATS":
                assert event["data"]["id"] == subscription["id"]
                skipped = max(skipped, event["data"]["skipped"])
                if event["data"]["time"] > began:
                    break
        # Nothing moved for two seconds.
        assert skipped >= 5
        assert client.execute("va_stats_stop", {"id": subscription["id"]}, timeout=DEADLINE) == {}


def _until_full(sock: socket.socket) -> None:
    """Wait until nothing more comes in: the buffers between are full, or nobody sends."""
    deadline, waiting, since = time.monotonic() + DEADLINE, -1, time.monotonic()
    while time.monotonic() < since + 2.0:
        assert time.monotonic() < deadline, "there is no end to it"
        now = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
        if now != waiting:
            waiting, since = now, time.monotonic()
        time.sleep(0.05)
    assert waiting > 50_000


def test_a_client_that_leaves_ends_its_subscription(vm: Lab) -> None:
    with VmClient.connect(vm.runtime, NAME) as observer:
        before = observer.execute("va_status", timeout=DEADLINE)["figures"]["streams"]["open"]
        with VmClient.connect(vm.runtime, NAME) as client:
            client.execute("va_stats", {"interval": 0.2}, timeout=DEADLINE)
            next(client.events(timeout=DEADLINE))
            assert observer.execute("va_status", timeout=DEADLINE)["figures"]["streams"]["open"] == before + 1
        wait_until(
            lambda: observer.execute("va_status", timeout=DEADLINE)["figures"]["streams"]["open"] == before,
            vm.host,
        )


def test_a_guest_whose_agent_ends_ends_the_subscription_with_the_reason(own: Lab) -> None:
    process = subprocess.Popen(
        own.command("stats", "--json", "--interval", "0.2", "--section", "load"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PYTHON_PATH},
    )
    try:
        assert process.stdout is not None
        assert b'"load"' in process.stdout.readline()
        own.guest.kill()
        _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 6, errors
        error = json.loads(errors)["error"]
        assert error["kind"] == "broken"
        assert "session has ended" in error["message"]
    finally:
        process.kill()
        process.wait()


def test_the_example_of_the_documentation_works(vm: Lab) -> None:
    page = (Path(__file__).parents[2] / "docs/statistics.md").read_text()
    script = page.partition("```python\n")[2].partition("```")[0]
    assert "va_stats" in script
    result = subprocess.run(
        ["python3", "-c", script, str(vm.runtime.vm(NAME).bridge), "3"],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.decode().splitlines()
    assert len(lines) == 3
    assert all("% busy" in line for line in lines)


def test_every_member_stands_in_the_documentation(vm: Lab) -> None:
    page = (Path(__file__).parents[2] / "docs/statistics.md").read_text()
    (record,) = _records(run(vm, "stats", "--json"))
    missing = [name for name in _names(record) if f"`{name}`" not in page]
    assert missing == []


def _names(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_names, value))
    if isinstance(value, dict):
        return set(value).union(*map(_names, value.values()))
    return set()


async def test_a_guest_with_qemus_agent_has_none_and_that_is_said(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path / "run")
    runtime.create()
    with trio.fail_after(5 * DEADLINE):
        async with run_qemu_ga(tmp_path) as channel:
            with attached(runtime, channel, "--agent", "qga") as host:
                until_ready(runtime)
                vm = Lab(tmp_path, host, host)
                result = run(vm, "stats", NAME)
                assert result.returncode == 1
                assert b"runs qemu-ga" in result.stderr
                assert b"has no 'va.stats'" in result.stderr
                assert b"install va-guest there" in result.stderr
                assert run(vm, "stats", NAME, "--interval", "1").returncode == 1
                screen = run(vm, "top", "--once").stdout.decode()
                assert f"{NAME}: refused: this guest runs qemu-ga" in screen


def test_only_top_imports_what_it_draws_with() -> None:
    script = "import sys, virtagent_host.cli.stats; print([n for n in ('rich', 'trio') if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": PYTHON_PATH},
    )
    assert result.stdout.strip() == b"[]"
