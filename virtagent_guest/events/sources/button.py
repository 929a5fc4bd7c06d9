"""The power button: what it looks like in the guest when QEMU is asked for an ACPI shutdown.

logind acts on it and tells nobody why. So this agent reads the same device (the kernel's
Documentation/input), and leaves a note. Devices with other keys are not opened: what people type is none of
its business.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import trio

from .asked import POWER_BUTTON, Asked
from .source import log

DEVICES = Path("/proc/bus/input/devices")
DEVICE_DIRECTORY = "/dev/input"

#: linux/input-event-codes.h: keys have values 0 (up), 1 (down) and 2 (held).
_EV_KEY, _KEY_POWER, _DOWN = 1, 116, 1
#: KEY_POWER, KEY_SLEEP, KEY_WAKEUP: what a button may have that is no keyboard.
_BUTTON_KEYS = 1 << _KEY_POWER | 1 << 142 | 1 << 143
#: struct input_event: seconds, microseconds, type, code, value.
_EVENT = struct.Struct("@llHHi")
_EVENTS_AT_ONCE = 64

_HANDLER = re.compile(r"^H: Handlers=.*\b(event[0-9]+)", re.MULTILINE)
_KEYS = re.compile(r"^B: KEY=([0-9a-f ]+)$", re.MULTILINE)


def power_buttons(table: str, word: int = 8 * struct.calcsize("@l")) -> list[str]:
    """Return the names of the devices that are power buttons and nothing else.

    Args:
        table: /proc/bus/input/devices.
        word: bits of a word in its bitmaps, which are the kernel's longs, most significant first.
    """
    found = []
    for device in table.split("\n\n"):
        handler, keys = _HANDLER.search(device), _KEYS.search(device)
        if handler is None or keys is None:
            continue
        bits = 0
        for part in keys[1].split():
            bits = bits << word | int(part, 16)
        if bits >> _KEY_POWER & 1 and not bits & ~_BUTTON_KEYS:
            found.append(handler[1])
    return found


def is_pressed(events: bytes) -> bool:
    """Whether the power key goes down in what was read from its device."""
    whole = len(events) - len(events) % _EVENT.size
    return any(event[2:] == (_EV_KEY, _KEY_POWER, _DOWN) for event in _EVENT.iter_unpack(events[:whole]))


async def watch_buttons(asked: Asked) -> None:
    """Take note of whoever presses a power button, until cancelled."""
    try:
        names = power_buttons(DEVICES.read_text(errors="replace"))
    except OSError as error:
        log.debug("%s: %s", DEVICES, error.strerror)
        return
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(_watch, f"{DEVICE_DIRECTORY}/{name}", asked)


async def _watch(path: str, asked: Asked) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        log.info("%s: %s: who presses this power button will not be told", path, error.strerror)
        return
    try:
        while True:
            await trio.lowlevel.wait_readable(fd)
            if is_pressed(os.read(fd, _EVENTS_AT_ONCE * _EVENT.size)):
                asked.note(POWER_BUTTON)
    except OSError as error:
        if error.errno != errno.ENODEV:  # it was unplugged
            log.warning("%s: %s", path, error.strerror)
    finally:
        os.close(fd)
