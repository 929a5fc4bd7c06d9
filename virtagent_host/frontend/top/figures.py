"""What one VM's row tells: the state of its link, its figures now, and their past."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: Sections of a record that the rows are made of: all are cheap for the guest.
SECTIONS = ("cpu", "memory", "pressure", "disks", "network")
#: Samples that are kept: more than the widest curve has characters.
PAST_MAX = 200

#: What rows can be sorted by, in the order of the columns.
ORDERS = ("name", "cpu", "memory", "pressure", "disk", "network")
_LOOPBACK = "lo"


@dataclass
class Row:
    """One VM.

    Attributes:
        name: the VM's.
        interval: seconds between two samples.
        state: of its link; empty: not known yet.
        reason: why it is in that state, or what is wrong; a guest's words may be in it.
        note: why there are no figures although the link is ready.
        now: figure → its latest value. CPU, memory and pressure are shares, disk and network bytes/s.
        past: figure → its values, the latest last.
        sampled: when the latest came, on the monotonic clock; 0: never.
    """

    name: str
    interval: float = 1.0
    state: str = ""
    reason: str = ""
    note: str = ""
    now: dict[str, float] = field(default_factory=dict)
    past: dict[str, deque[float]] = field(default_factory=dict)
    sampled: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether it has said all that it can say without waiting for something to change."""
        return bool(self.now or self.note or (self.state and self.state != "ready"))

    def take(self, record: dict[str, Any], at: float) -> None:
        """Take the figures of a record."""
        self.now = figures_of(record)
        self.sampled, self.note = at, ""
        for name, value in self.now.items():
            self.past.setdefault(name, deque(maxlen=PAST_MAX)).append(value)


def figures_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the figures that a record has sections for."""
    figures: dict[str, float] = {}
    if "cpu" in record:
        figures["cpu"] = record["cpu"]["busy"]
    if "memory" in record:
        total = record["memory"]["total"]
        figures["memory"] = min(record["memory"]["used"] / total, 1.0) if total else 0.0
    if "pressure" in record:
        figures["pressure"] = max(kinds["some"]["avg10"] for kinds in record["pressure"].values())
    if "disks" in record:
        figures["disk"] = _sum(record["disks"], ("read_bytes", "write_bytes"))
    if "network" in record:
        interfaces = [one for one in record["network"] if one["name"] != _LOOPBACK]
        figures["network"] = _sum(interfaces, ("rx_bytes", "tx_bytes"))
    return figures


def _sum(devices: list[dict[str, Any]], names: tuple[str, ...]) -> float:
    # Through virtual ones goes what goes through others, too; unless there are no others.
    counted = [one for one in devices if not one["virtual"]] or devices
    return float(sum(one[name] for one in counted for name in names))


def in_order(rows: Iterable[Row], order: str, *, turned: bool = False) -> list[Row]:
    """Return rows by name, or by a figure: the greatest first, those without it last, in either direction."""
    by_name = sorted(rows, key=lambda row: row.name)
    if order == "name":
        return by_name[::-1] if turned else by_name
    with_figure = [row for row in by_name if order in row.now]
    without = [row for row in by_name if order not in row.now]
    return sorted(with_figure, key=lambda row: row.now[order], reverse=not turned) + without
