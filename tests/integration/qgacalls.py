"""Calling the guest agent's commands on this machine, as both of its wires do."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import trio

from virtagent_guest.methods.qga import COMMANDS, Caller, QgaError
from virtagent_protocol.values import Value

#: Seconds for what takes a moment.
SOON = 10.0
#: Seconds between two looks at what sends no event.
LOOK_EVERY = 0.01


async def call(command: str, /, caller: Caller | None = None, **arguments: Any) -> Any:
    """Run a command; dashes in arguments are written as underscores."""
    named: dict[str, Value] = {name.replace("_", "-"): value for name, value in arguments.items()}
    with trio.fail_after(SOON):
        return await COMMANDS[command].run(named, caller)


async def error_of(command: str, /, **arguments: Any) -> str:
    """Run a command that must fail, and return what it says."""
    with pytest.raises(QgaError) as caught:
        await call(command, **arguments)
    return caught.value.desc


def b64(data: bytes) -> str:
    """Return bytes as arguments have them."""
    return base64.b64encode(data).decode()
