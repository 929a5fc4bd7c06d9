"""QMP's messages as a server reads and writes them. Sans-IO.

Source: QEMU's docs/interop/qmp-spec.txt; the wording of errors is that of qapi/qmp-dispatch.c, because
scripts exist that look at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..qemu.errors import ErrorClass, QemuError

#: The ``id`` member of a command or a reply: ``{"id": any value}``, or ``{}`` for a command without one.
Id = Mapping[str, object]


@dataclass(frozen=True)
class Request:
    """A command as a client sent it.

    Attributes:
        command: its name.
        arguments: None when there was no such member.
        id: to be repeated in the reply.
        oob: it was sent with ``exec-oob``.
        fd: the file descriptor that came with it (``getfd``, ``add-fd``); the client's session closes it.
    """

    command: str
    arguments: dict[str, Any] | None
    id: Id
    oob: bool = False
    fd: int | None = None


@dataclass(frozen=True)
class Refusal:
    """What a client sent was no command: the error to answer with."""

    error: QemuError
    id: Id


def parse_request(value: object) -> Request | Refusal:
    """Return the command in a JSON value, or the error that QEMU answers such a value with."""
    if not isinstance(value, dict):
        return _refusal({}, "QMP input must be a JSON object")
    request_id = {"id": value["id"]} if "id" in value else {}
    execute = "exec-oob" if "exec-oob" in value and "execute" not in value else "execute"
    for name, member in value.items():
        if name == execute and not isinstance(member, str):
            return _refusal(request_id, f"QMP input member '{name}' must be a string")
        if name == "arguments" and not isinstance(member, dict):
            return _refusal(request_id, "QMP input member 'arguments' must be an object")
        if name not in (execute, "arguments", "id"):
            return _refusal(request_id, f"QMP input member '{name}' is unexpected")
    if execute not in value:
        return _refusal(request_id, "QMP input lacks member 'execute'")
    return Request(value[execute], value.get("arguments"), request_id, execute == "exec-oob")


def _refusal(request_id: Id, desc: str) -> Refusal:
    return Refusal(QemuError(ErrorClass.GENERIC_ERROR.value, desc), request_id)


def success(result: object, request_id: Id) -> bytes:
    """Return the reply of a command that returned *result*; None stands for the empty object.

    Raises:
        TypeError, ValueError: *result* is nothing that JSON carries.
    """
    return encode({"return": {} if result is None else result, **request_id})


def failure(error: QemuError, request_id: Id) -> bytes:
    """Return the reply of a command that failed."""
    return encode({**request_id, "error": {"class": error.error_class, "desc": error.desc}})


def event(name: str, data: Mapping[str, object], time_ns: int) -> dict[str, Any]:
    """Return an event of our own as QEMU would emit it.

    Args:
        time_ns: when it happened, in nanoseconds since the epoch.
    """
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return {
        "timestamp": {"seconds": seconds, "microseconds": rest // 1000},
        "event": name,
        "data": dict(data),
    }


def encode(message: Mapping[str, object]) -> bytes:
    """Return a message as the bytes to send.

    ASCII only and with CRLF behind it, as QEMU writes: most clients read by line.
    """
    return json.dumps(message, allow_nan=False).encode() + b"\r\n"
