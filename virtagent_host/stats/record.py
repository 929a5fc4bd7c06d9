"""A record of statistics: what a guest may say, and nothing else (docs/statistics.md has every member).

The rules:

1. Every member that is passed on was checked: its type, and bounds that a machine can have. What is not known
   here is left out: a newer agent may tell more.
2. A list or a text that is longer than any agent sends is an error, not cut: nobody sends it in good faith.
3. A section is missing if it was not asked for, or if the guest does not have it; then ``unavailable`` says
   why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.values import Value, type_name

from .sections import SECTIONS

#: As the agent's own bounds, or a little above them.
_CPUS_MAX = 256
_DEVICES_MAX = 128
_FILESYSTEMS_MAX = 256
_PROCESSES_MAX = 100
_NAME_MAX = 64
_PATH_MAX = 512
_WORDS_MAX = 1000
#: A year has 3e7 seconds; a bus carries 1e12 bytes a second.
_SECONDS_MAX, _RATE_MAX = 1e12, 1e15
#: Processors that one process can use.
_USED_MAX = 65536.0
_INT_MAX = 2**63 - 1


class Shape(Protocol):
    """What a value must be."""

    def check(self, value: Value, where: str) -> Any:
        """Return the value as JSON has it, or raise RemoteProtocolError, with *where* it stands."""


@dataclass(frozen=True)
class _Double:
    most: float

    def check(self, value: Value, where: str) -> float:
        if type(value) is not float or not 0.0 <= value <= self.most:
            raise _wrong(where, f"a double from 0 to {self.most:g}", value)
        return value


@dataclass(frozen=True)
class _Int:
    most: int = _INT_MAX

    def check(self, value: Value, where: str) -> int:
        if type(value) is not int or not 0 <= value <= self.most:
            raise _wrong(where, f"an int from 0 to {self.most}", value)
        return value


@dataclass(frozen=True)
class _Bool:
    def check(self, value: Value, where: str) -> bool:
        if not isinstance(value, bool):
            raise _wrong(where, "a boolean", value)
        return value


@dataclass(frozen=True)
class _Text:
    most: int

    def check(self, value: Value, where: str) -> str:
        if not isinstance(value, str) or len(value) > self.most:
            raise _wrong(where, f"a string of up to {self.most} characters", value)
        return value


@dataclass(frozen=True)
class _List:
    element: Shape
    most: int

    def check(self, value: Value, where: str) -> list[Any]:
        if not isinstance(value, list) or len(value) > self.most:
            raise _wrong(where, f"an array of up to {self.most} elements", value)
        return [self.element.check(element, f"{where}[{i}]") for i, element in enumerate(value)]


@dataclass(frozen=True)
class _Struct:
    members: Mapping[str, Shape]
    optional: Mapping[str, Shape] = field(default_factory=dict)

    def check(self, value: Value, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(where, "a struct", value)
        checked = {}
        for name, shape in (*self.members.items(), *self.optional.items()):
            if name in value:
                checked[name] = shape.check(value[name], f"{where}.{name}" if where else name)
            elif name in self.members:
                raise RemoteProtocolError(f"member '{where}.{name}' of the guest's statistics is missing")
        return checked


@dataclass(frozen=True)
class _FileSystem:
    """One with its sizes, or with what is wrong with it."""

    def check(self, value: Value, where: str) -> dict[str, Any]:
        failed = isinstance(value, dict) and "error" in value
        members = {**_FILESYSTEM, **({"error": _Text(_WORDS_MAX)} if failed else _SIZES)}
        return _Struct(members).check(value, where)


def _wrong(where: str, expected: str, value: Value) -> RemoteProtocolError:
    found = type_name(value)
    return RemoteProtocolError(
        f"member '{where}' of the guest's statistics must be {expected}, it is {found}"
    )


def _all(shape: Shape, *names: str) -> dict[str, Shape]:
    return dict.fromkeys(names, shape)


_SHARE, _RATE, _SECONDS = _Double(1.0), _Double(_RATE_MAX), _Double(_SECONDS_MAX)
_COUNT = _BYTES = _Int()

_SHARES = _all(
    _SHARE,
    *("busy", "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"),
)
_STALLED = _Struct({**_all(_SHARE, "avg10", "avg60", "avg300"), "total": _SECONDS})
#: Kernels before 5.13 do not tell "full" of the processors.
_RESOURCE = _Struct({"some": _STALLED}, {"full": _STALLED})
_DEVICE: dict[str, Shape] = {"name": _Text(_PATH_MAX), "virtual": _Bool()}
_FILESYSTEM = _all(_Text(_PATH_MAX), "path", "source", "type")
_SIZES = _all(_BYTES, "size", "used", "available", "inodes", "inodes_used")

_SECTION_SHAPES: dict[str, Shape] = {
    "uptime": _SECONDS,
    "load": _Struct(
        {**_all(_Double(_RATE_MAX), "avg1", "avg5", "avg15"), "running": _COUNT, "threads": _COUNT}
    ),
    "cpu": _Struct(
        {"count": _COUNT, **_SHARES, "cpus": _List(_Struct({"cpu": _COUNT, **_SHARES}), _CPUS_MAX)}
    ),
    "memory": _Struct(
        _all(
            _BYTES,
            *("total", "free", "available", "used", "buffers", "cached", "shared", "slab", "dirty"),
        )
    ),
    "swap": _Struct({**_all(_BYTES, "total", "free", "used"), **_all(_RATE, "in", "out")}),
    "pressure": _Struct(_all(_RESOURCE, "cpu", "memory", "io")),
    "disks": _List(
        _Struct(
            {
                **_DEVICE,
                **_all(_RATE, "read_bytes", "write_bytes", "reads", "writes"),
                "busy": _SHARE,
                "in_flight": _COUNT,
            }
        ),
        _DEVICES_MAX,
    ),
    "filesystems": _List(_FileSystem(), _FILESYSTEMS_MAX),
    "network": _List(
        _Struct(
            {
                **_DEVICE,
                **_all(_RATE, "rx_bytes", "rx_packets", "rx_errors", "rx_dropped"),
                **_all(_RATE, "tx_bytes", "tx_packets", "tx_errors", "tx_dropped"),
            }
        ),
        _DEVICES_MAX,
    ),
    "processes": _Struct(
        {
            "count": _COUNT,
            "looked_at": _COUNT,
            "top": _List(
                _Struct(
                    {
                        "pid": _COUNT,
                        "name": _Text(_NAME_MAX),
                        "state": _Text(1),
                        "uid": _Int(2**32 - 1),
                        "user": _Text(_NAME_MAX),
                        "cpu": _Double(_USED_MAX),
                        "rss": _BYTES,
                    }
                ),
                _PROCESSES_MAX,
            ),
        }
    ),
}

_RECORD = _Struct(
    {
        "time": _SECONDS,
        "window": _SECONDS,
        "unavailable": _Struct({}, _all(_Text(_WORDS_MAX), *SECTIONS)),
        "omitted": _Struct({}, _all(_COUNT, *SECTIONS)),
    },
    {"skipped": _COUNT, **_SECTION_SHAPES},
)

_ORDER = ("time", "window", *SECTIONS, "unavailable", "omitted", "skipped")


def checked(value: Value) -> dict[str, Any]:
    """Return a guest's record as JSON has it.

    Raises:
        RemoteProtocolError: a member is missing, of another type, or out of bounds; it says which.
    """
    record = _RECORD.check(value, "")
    return {name: record[name] for name in _ORDER if name in record}
