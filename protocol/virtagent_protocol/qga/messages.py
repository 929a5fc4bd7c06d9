"""Commands and answers of the QGA wire. Sans-IO.

Source: QEMU's qga/main.c and qapi/qmp-dispatch.c for what is said, docs/interop/qemu-ga-ref for the forms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Ends what is unfinished at the receiver, and begins the answer to guest-sync-delimited.
SENTINEL = b"\xff"

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"

#: The ``id`` member of a command and its answer: ``{"id": any value}``, or ``{}`` where there is none.
Id = Mapping[str, object]


class QgaError(Exception):
    """A command was answered with an error.

    Args:
        desc: for people.
        error_class: of QapiErrorClass; qemu-ga uses two of them.
    """

    def __init__(self, desc: str, error_class: str = GENERIC_ERROR) -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class


@dataclass(frozen=True)
class Command:
    """A command as it was sent."""

    name: str
    arguments: dict[str, Any]
    id: Id


@dataclass(frozen=True)
class Refusal:
    """What was sent is no command: the error to answer with."""

    error: QgaError
    id: Id


@dataclass(frozen=True)
class Answer:
    """An answer as it was received: *error* or, if that is None, *result*."""

    result: object
    error: QgaError | None = None


def parse_command(value: object) -> Command | Refusal:
    """Return the command in a JSON value, or the error that qemu-ga answers such a value with."""
    if not isinstance(value, dict):
        return Refusal(QgaError("QMP input must be a JSON object"), {})
    given_id = {"id": value["id"]} if "id" in value else {}
    for name, member in value.items():
        if name == "execute" and not isinstance(member, str):
            return Refusal(QgaError("QMP input member 'execute' must be a string"), given_id)
        if name == "arguments" and not isinstance(member, dict):
            return Refusal(QgaError("QMP input member 'arguments' must be an object"), given_id)
        if name not in ("execute", "arguments", "id"):
            return Refusal(QgaError(f"QMP input member '{name}' is unexpected"), given_id)
    if "execute" not in value:
        return Refusal(QgaError("QMP input lacks member 'execute'"), given_id)
    return Command(value["execute"], value.get("arguments", {}), given_id)


def parse_answer(value: object) -> Answer | None:
    """Return the answer in a JSON value, or None if it is none."""
    if not isinstance(value, dict):
        return None
    if "return" in value:
        return Answer(value["return"])
    match value.get("error"):
        case {"class": str(error_class), "desc": str(desc)}:
            return Answer(None, QgaError(desc, error_class))
    return None


def success(result: object, given_id: Id, *, delimited: bool = False) -> bytes:
    """Return the answer of a command that returned *result*; None stands for the empty object.

    Args:
        delimited: put the sentinel before it (guest-sync-delimited).

    Raises:
        TypeError, ValueError: *result* is nothing that JSON carries.
    """
    line = _line({"return": {} if result is None else result, **given_id})
    return SENTINEL + line if delimited else line


def failure(error: QgaError, given_id: Id) -> bytes:
    """Return the answer of a command that failed."""
    return _line({**given_id, "error": {"class": error.error_class, "desc": error.desc}})


def command(name: str, arguments: Mapping[str, object] | None = None) -> bytes:
    """Return a command as the bytes to send.

    Raises:
        TypeError, ValueError: the arguments are nothing that JSON carries.
    """
    return _line({"execute": name, **({"arguments": dict(arguments)} if arguments else {})})


def _line(message: Mapping[str, object]) -> bytes:
    # ASCII only, as QEMU writes it: no byte of it can be taken for the sentinel.
    return json.dumps(message, allow_nan=False).encode() + b"\n"
