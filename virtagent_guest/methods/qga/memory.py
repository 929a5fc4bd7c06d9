"""guest-get-memory-blocks, guest-set-memory-blocks, guest-get-memory-block-info.

Blocks of the guest's memory can be online or offline: those of /sys/devices/system/memory (kernel:
Documentation/admin-guide/mm/memory-hotplug.rst).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from virtagent_protocol.values import Struct, Value

from .command import CommandRegistry, QgaError, in_thread, reason
from .schema import BOOL, UINT64, Argument, ListOf, StructOf

registry = CommandRegistry()

DIRECTORY = Path("/sys/devices/system/memory")
_NAME = re.compile(r"memory([0-9]+)")

Blocks = Annotated[
    list[Struct],
    ListOf(
        StructOf(
            "GuestMemoryBlock",
            (
                Argument("phys-index", UINT64, optional=False),
                Argument("online", BOOL, optional=False),
                Argument("can-offline", BOOL, optional=True),
            ),
        )
    ),
]


@registry.command("guest-get-memory-blocks")
async def get_memory_blocks() -> list[Value]:
    """Return the guest's memory blocks: whether each is online, and whether it can be taken offline.

    A kernel without memory hotplug has none.
    """
    return await in_thread(_get)


@registry.command("guest-set-memory-blocks")
async def set_memory_blocks(mem_blks: Blocks) -> list[Value]:
    """Take memory blocks online and offline, and return what became of each."""
    return await in_thread(lambda: [_set(block) for block in mem_blks])


@registry.command("guest-get-memory-block-info")
async def get_memory_block_info() -> Struct:
    """Return the size of a memory block, in bytes."""
    return await in_thread(_info)


def _get() -> list[Value]:
    try:
        names = [entry.name for entry in DIRECTORY.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise QgaError(f"Can't open directory {DIRECTORY}: {reason(error)}") from error
    numbers = sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)
    blocks: list[Value] = []
    for number in numbers:
        block = DIRECTORY / f"memory{number}"
        state, removable = _read(block / "state"), _read(block / "removable")
        entry: Struct = {
            "phys-index": number,
            # Kernels that cannot change it do not tell it.
            "online": state in (None, "online"),
            "can-offline": state is not None and removable not in (None, "0"),
        }
        blocks.append(entry)
    if not blocks:
        raise QgaError("guest reported zero memory blocks!")
    return blocks


def _set(block: Struct) -> Struct:
    number, online = block["phys-index"], block["online"]
    assert isinstance(number, int)
    response: Struct = {"phys-index": number, "response": "success"}
    state = DIRECTORY / f"memory{number}" / "state"
    wanted = "online" if online else "offline"
    try:
        if state.read_text(encoding="ascii").strip() != wanted:
            state.write_text(wanted, encoding="ascii")
    except OSError as error:
        response["response"] = _response(error, state)
        response["error-code"] = error.errno or 0
        if response["response"] == "operation-not-supported" and online and state.parent.is_dir():
            return {"phys-index": number, "response": "success"}  # it is online and stays so
    return response


def _response(error: OSError, state: Path) -> str:
    if not isinstance(error, FileNotFoundError):
        return "operation-failed"
    if DIRECTORY.is_dir() and not state.parent.is_dir():
        return "not-found"
    return "operation-not-supported"


def _info() -> Struct:
    path = DIRECTORY / "block_size_bytes"
    try:
        return {"size": int(path.read_text(encoding="ascii"), 16)}
    except OSError as error:
        raise QgaError(f'open("{path}"): {reason(error)}') from error


def _read(path: Path) -> str | None:
    """Return the word in a file; None: there is no such file."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise QgaError(f'open sysfs file "{path}": {reason(error)}') from error
