"""guest-get-vcpus and guest-set-vcpus: which processors are online, and changing that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from virtagent_protocol.values import Struct, Value

from .command import CommandRegistry, QgaError, in_thread, reason
from .schema import BOOL, INT, Argument, ListOf, StructOf

registry = CommandRegistry()

DIRECTORY = Path("/sys/devices/system/cpu")
_NAME = re.compile(r"cpu([0-9]+)")

Processors = Annotated[
    list[Struct],
    ListOf(
        StructOf(
            "GuestLogicalProcessor",
            (
                Argument("logical-id", INT, optional=False),
                Argument("online", BOOL, optional=False),
                Argument("can-offline", BOOL, optional=True),
            ),
        )
    ),
]


@registry.command("guest-get-vcpus")
async def get_vcpus() -> list[Value]:
    """Return the guest's processors: whether each is online, and whether it can be taken offline."""
    return await in_thread(_get)


@registry.command("guest-set-vcpus")
async def set_vcpus(vcpus: Processors) -> int:
    """Take processors online and offline, in this order; return how many were done before one failed.

    If the first one fails, that is an error.
    """
    return await in_thread(_set, vcpus)


def _get() -> list[Value]:
    try:
        names = [entry.name for entry in DIRECTORY.iterdir()]
    except OSError as error:
        raise QgaError(f"failed to list entries: {DIRECTORY}: {reason(error)}") from error
    numbers = sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)
    processors: list[Value] = []
    for number in numbers:
        online = _read(number)
        processor: Struct = {
            "logical-id": number,
            "online": online is not False,
            "can-offline": online is not None,
        }
        processors.append(processor)
    return processors


def _set(vcpus: list[Struct]) -> int:
    for done, vcpu in enumerate(vcpus):
        number, online = vcpu["logical-id"], vcpu["online"]
        assert isinstance(number, int)
        assert isinstance(online, bool)
        try:
            _switch(number, online)
        except QgaError:
            if done == 0:
                raise
            return done
    return len(vcpus)


def _switch(number: int, online: bool) -> None:
    if not (DIRECTORY / f"cpu{number}").is_dir():
        raise QgaError(f"Could not open '{DIRECTORY}/cpu{number}/': No such file or directory")
    before = _read(number)
    if before is None and not online:
        raise QgaError(f"logical processor #{number} can't be offlined")
    if before is None or before == online:
        return
    path = _file(number)
    try:
        path.write_bytes(b"1" if online else b"0")
    except OSError as error:
        raise QgaError(f'pwrite("{path}"): {reason(error)}') from error


def _read(number: int) -> bool | None:
    """Return whether a processor is online; None: it is, and always will be."""
    path = _file(number)
    try:
        return path.read_bytes()[:1] != b"0"
    except FileNotFoundError:
        return None
    except OSError as error:
        raise QgaError(f"could not open {path}: {reason(error)}") from error


def _file(number: int) -> Path:
    return DIRECTORY / f"cpu{number}" / "online"
