"""Statistics as lines for people, and the events that bring them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from virtagent_protocol.errors import FailureKind, LinkBroken, VirtagentError

from .client import GRACE, VmClient
from .units import duration, percent, size

Record = dict[str, Any]

#: As the bridge names them (`virtagent_host.stats.subscription`, which needs trio).
EVENT, ENDED_EVENT = "VA_GUEST_STATS", "VA_GUEST_STATS_ENDED"

_NAME_WIDTH = 12


class StatisticsEnded(VirtagentError):
    """The guest sends no more; the words are the service's."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(str(data.get("error", "")))
        known = {kind.value: kind for kind in FailureKind}
        self.kind = known.get(str(data.get("kind")), FailureKind.BROKEN)


def once(client: VmClient, arguments: dict[str, object], timeout: float) -> Record:
    """Return one record.

    Raises:
        VirtagentError: as `VmClient.execute`.
    """
    record = client.execute("va_stats", {**arguments, "timeout": timeout}, timeout=timeout + GRACE)
    assert isinstance(record, dict)
    return record


def again_and_again(
    client: VmClient, arguments: dict[str, object], interval: float, timeout: float
) -> Iterator[Record]:
    """Yield a record each interval, for as long as the guest sends them.

    Raises:
        VirtagentError: as `VmClient.execute`; `StatisticsEnded`; LinkBroken: va-host has ended.
    """
    begun = once(client, {**arguments, "interval": interval}, timeout)
    for event in client.events():
        data = event.get("data", {})
        if data.get("id") == begun["id"]:
            if event["event"] == EVENT:
                yield {name: value for name, value in data.items() if name != "id"}
            elif event["event"] == ENDED_EVENT:
                raise StatisticsEnded(data)
    raise LinkBroken("va-host closed the connection: the VM was detached, or QEMU ended")


def lines(record: Record) -> Iterator[str]:
    """Yield what a record tells, a line a thing."""
    for section, describe in _SECTIONS.items():
        if section in record:
            for number, line in enumerate(describe(record[section])):
                yield f"{'' if number else section:{_NAME_WIDTH}} {line}"
        if section in record["omitted"]:
            yield f"{section:{_NAME_WIDTH}} {record['omitted'][section]} more are not told"
        if section in record["unavailable"]:
            yield f"{section:{_NAME_WIDTH}} unavailable: {record['unavailable'][section]}"
    if record.get("skipped"):
        yield f"{'skipped':{_NAME_WIDTH}} {record['skipped']} samples before this one"


def _uptime(seconds: float) -> Iterator[str]:
    yield duration(seconds)


def _load(load: Record) -> Iterator[str]:
    averages = " ".join(f"{load[name]:.2f}" for name in ("avg1", "avg5", "avg15"))
    yield f"{averages}  ({load['running']} of {load['threads']} threads run)"


def _cpu(cpu: Record) -> Iterator[str]:
    yield f"{percent(cpu['busy'])} of {cpu['count']}: {_modes(cpu)}"
    for one in cpu["cpus"] if len(cpu["cpus"]) > 1 else []:
        yield f"  {one['cpu']}: {percent(one['busy'])}: {_modes(one)}"


def _modes(shares: Record) -> str:
    told = [
        f"{name} {percent(share)}"
        for name, share in shares.items()
        if isinstance(share, float) and name != "busy" and share >= 0.005
    ]
    return ", ".join(told) or "-"


def _memory(memory: Record) -> Iterator[str]:
    rest = ", ".join(f"{name} {size(memory[name])}" for name in ("available", "cached", "dirty"))
    yield f"{_used(memory['used'], memory['total'])}, {rest}"


def _swap(swap: Record) -> Iterator[str]:
    if not swap["total"]:
        yield "none"
        return
    yield f"{_used(swap['used'], swap['total'])}, in {size(swap['in'])}/s, out {size(swap['out'])}/s"


def _used(used: float, total: float) -> str:
    return f"{size(used)} of {size(total)} used" + (f" ({percent(used / total)})" if total else "")


def _pressure(pressure: Record) -> Iterator[str]:
    for resource, kinds in pressure.items():
        told = [
            f"{kind} " + " ".join(percent(stalled[name]) for name in ("avg10", "avg60", "avg300"))
            for kind, stalled in kinds.items()
        ]
        yield f"{resource}: {', '.join(told)}  (of 10, 60, 300 s)"


def _disks(disks: list[Record]) -> Iterator[str]:
    for disk in disks:
        yield (
            f"{disk['name']}: {size(disk['read_bytes'])}/s read, {size(disk['write_bytes'])}/s written, "
            f"{percent(disk['busy'])} busy"
        )


def _filesystems(filesystems: list[Record]) -> Iterator[str]:
    for one in filesystems:
        yield f"{one['path']}: " + (one["error"] if "error" in one else _used(one["used"], one["size"]))


def _network(interfaces: list[Record]) -> Iterator[str]:
    for one in interfaces:
        wrong = sum(one[f"{way}_{what}"] for way in ("rx", "tx") for what in ("errors", "dropped"))
        lost = f", {wrong:.1f} lost/s" if wrong else ""
        yield f"{one['name']}: {size(one['rx_bytes'])}/s in, {size(one['tx_bytes'])}/s out{lost}"


def _processes(processes: Record) -> Iterator[str]:
    yield f"{processes['count']}; those that use the processors most:"
    for one in processes["top"]:
        yield (
            f"  {one['pid']:>7} {one['user']:12} {percent(one['cpu']):>5} {size(one['rss']):>6} {one['name']}"
        )


_SECTIONS: dict[str, Callable[[Any], Iterator[str]]] = {
    "uptime": _uptime,
    "load": _load,
    "cpu": _cpu,
    "memory": _memory,
    "swap": _swap,
    "pressure": _pressure,
    "disks": _disks,
    "filesystems": _filesystems,
    "network": _network,
    "processes": _processes,
}
