"""`va-host top` without a terminal: curves, rows, their order, keys, and what is drawn."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from virtagent_host.frontend.top.figures import ORDERS, PAST_MAX, Row, figures_of, in_order
from virtagent_host.frontend.top.live import View, press
from virtagent_host.frontend.top.screen import frame
from virtagent_host.frontend.top.spark import PLAIN, sparkline


def _record(**sections: Any) -> dict[str, Any]:
    stalled = {"avg10": 0.1, "avg60": 0.0, "avg300": 0.0, "total": 0.0}
    disk = {"name": "vda", "virtual": False, "read_bytes": 1000.0, "write_bytes": 24.0}
    net = {"name": "eth0", "virtual": False, "rx_bytes": 2048.0, "tx_bytes": 0.0}
    return {
        "cpu": {"busy": 0.5},
        "memory": {"total": 1000, "used": 250},
        "pressure": {"cpu": {"some": stalled}, "io": {"some": {**stalled, "avg10": 0.75}}},
        "disks": [disk, {**disk, "name": "dm-0", "virtual": True}],
        "network": [net, {**net, "name": "lo", "virtual": True}, {**net, "name": "br0", "virtual": True}],
        **sections,
    }


def _row(name: str, **figures: float) -> Row:
    row = Row(name, state="ready", reason="hello", now=figures, sampled=time.monotonic())
    for figure, value in figures.items():
        row.past.setdefault(figure, row.past.get(figure) or _deque()).append(value)
    return row


def _deque() -> Any:
    from collections import deque

    return deque(maxlen=PAST_MAX)


def _drawn(rows: list[Row], width: int = 120, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(frame(rows, width=width, order="name", **{"height": None, **options}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


# --- Curves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "width", "top", "curve"),
    [
        ([], 4, 1.0, "    "),
        ([0.0, 1.0], 2, 1.0, " █"),
        ([0.0, 0.125, 0.5, 0.99, 1.0], 5, 1.0, " ▁▄██"),
        ([0.001], 1, 1.0, "▁"),
        ([7.0], 1, 1.0, "█"),
        ([1.0, 2.0, 3.0], 2, 4.0, "▄▆"),
        ([1.0], 3, 1.0, "  █"),
        ([1.0, 2.0], 0, 1.0, ""),
        ([1.0], -5, 1.0, ""),
        ([5.0], 1, 0.0, " "),
    ],
)
def test_a_curve_has_its_width_and_the_newest_last(
    values: list[float], width: int, top: float, curve: str
) -> None:
    assert sparkline(values, width, top) == curve


def test_a_curve_can_do_without_special_characters() -> None:
    assert sparkline([0.0, 0.5, 1.0], 3, 1.0, PLAIN).isascii()


# --- Rows --------------------------------------------------------------------------------------------


def test_what_goes_through_two_devices_is_counted_once() -> None:
    assert figures_of(_record()) == {
        "cpu": 0.5,
        "memory": 0.25,
        "pressure": 0.75,
        "disk": 1024.0,
        "network": 2048.0,
    }


def test_a_guest_that_has_virtual_devices_only_has_those_counted() -> None:
    record = _record()
    for one in (*record["disks"], *record["network"]):
        one["virtual"] = True
    assert figures_of(record)["disk"] == 2048.0
    assert figures_of(record)["network"] == 4096.0, "but not the loopback"


def test_a_guest_without_pressure_has_no_figure_for_it() -> None:
    record = _record()
    del record["pressure"]
    assert "pressure" not in figures_of(record)


def test_the_past_is_bounded() -> None:
    row = Row("a")
    for _ in range(2 * PAST_MAX):
        row.take(_record(), 1.0)
    assert {len(past) for past in row.past.values()} == {PAST_MAX}


def test_rows_stand_by_name_or_by_figure_and_those_without_it_last() -> None:
    rows = [_row("c", cpu=0.9), _row("a"), _row("b", cpu=0.1)]
    names = {
        (order, turned): "".join(row.name for row in in_order(rows, order, turned=turned))
        for order in ("name", "cpu")
        for turned in (False, True)
    }
    assert names == {
        ("name", False): "abc",
        ("name", True): "cba",
        ("cpu", False): "cba",
        ("cpu", True): "bca",
    }


# --- Keys --------------------------------------------------------------------------------------------


def test_keys_sort_turn_scroll_and_quit() -> None:
    view = View("name", first=3)
    assert press(view, b"q", 9) is None
    assert press(view, b"c", 9) == View("cpu")
    assert press(view, b"s", 9) == View(ORDERS[1])
    assert press(View(ORDERS[-1]), b"s", 9) == View(ORDERS[0])
    assert press(view, b"r", 9) == View("name", turned=True)
    assert press(view, b"\x1b[A", 9) == View("name", first=2)
    assert press(View("name"), b"k", 9) == View("name")
    assert press(View("name", first=8), b"j", 9) == View("name", first=8)
    assert press(view, b"?", 9) == view
    assert press(view, b"?", 0) == View("name"), "all VMs have gone"


# --- What is drawn -----------------------------------------------------------------------------------


def test_a_frame_has_a_line_for_each_vm_and_the_reason_of_those_that_are_not_ready() -> None:
    off = Row("off", state="port-closed", reason="no agent has ever opened the port")
    refused = Row("old", state="ready", note="refused: it has no method 'va.stats'")
    text = _drawn([_row("web", cpu=0.42, memory=0.1, pressure=0.0, disk=2048.0, network=0.0), off, refused])
    lines = text.splitlines()
    assert "3 VMs, by name" in lines[0]
    assert lines[1].split() == ["NAME", "STATE", "CPU", "MEMORY", "PRESSURE", "DISK", "NETWORK"]
    assert "42%" in next(line for line in lines if line.startswith("web"))
    assert "2.0K/s" in text
    assert "off: port-closed: no agent has ever opened the port" in text
    assert "old: refused: it has no method 'va.stats'" in text


def test_a_guests_words_are_drawn_as_they_are_with_control_characters_visible() -> None:
    reason = "[bold red]owned[/] \x1b[2J\x1b]0;title\x07\n[/nothing"
    text = _drawn([Row("a", state="paused", reason=reason)], width=200)
    assert r"[bold red]owned[/] \x1b[2J\x1b]0;title\x07\n[/nothing" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [20, 60, 80, 100, 250])
def test_a_frame_fits_its_width_and_height(width: int) -> None:
    rows = [_row(f"machine-{n:03}-with-a-long-name", cpu=0.5, disk=1e9) for n in range(40)]
    rows += [Row(f"x{n}", state="greeting", reason="w" * 300) for n in range(40)]
    lines = _drawn(rows, width=width, height=24).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("x") for line in lines) > 3, "some reasons are there"


def test_scrolling_leaves_out_the_first_rows() -> None:
    rows = [_row(f"m{n}", cpu=0.5) for n in range(40)]
    text = _drawn(rows, height=10, first=35)
    assert "m34" not in text.replace("m4 ", "")
    assert len([line for line in text.splitlines() if line.startswith("m")]) == 5


def test_figures_that_have_grown_old_are_said_to_be() -> None:
    row = _row("a", cpu=0.5)
    row.sampled = time.monotonic() - 60
    assert "a: no sample for 60 s" in _drawn([row])


def test_without_vms_a_frame_says_so_and_plain_ones_are_ascii() -> None:
    assert "no VM is attached in /run" in _drawn([], empty="no VM is attached in /run")
    assert _drawn([_row("a", cpu=0.5, disk=1e6)], plain=True).isascii()
