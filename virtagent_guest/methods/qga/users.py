"""guest-get-users: who is logged in, as utmp(5) tells.

A record of glibc's utmp has 384 bytes, with times of 32 bits, where programs of 32 bits may run beside those
of 64; elsewhere it has 400. Systems that have given up utmp have no users to tell of here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from virtagent_protocol.values import Struct, Value

from .command import CommandRegistry, in_thread

registry = CommandRegistry()

FILE = "/run/utmp"
#: Bytes of it that are read: ten thousand logins.
_SIZE_MAX = 4 * 1024 * 1024

_USER_PROCESS = 7
#: type, pid, line, id, user, host, exit status, session, seconds, microseconds, address, unused.
_COMPATIBLE = struct.Struct("h2xi32s4s32s256s4xiii16x20x")
_WIDE = struct.Struct("h2xi32s4s32s256s4xqqq16x20x4x")
#: 64-bit machines that never ran programs of 32 bits with the same structure.
_WIDE_MACHINES = ("aarch64", "s390x", "loongarch64")


@dataclass(frozen=True)
class Login:
    """One login: the user's name, and when, in seconds since 1970."""

    user: str
    time: float


@registry.command("guest-get-users")
async def get_users() -> list[Value]:
    """Return the users that are logged in, each once, with the time of the earliest login."""
    return await in_thread(_users)


def _users() -> list[Value]:
    try:
        with open(FILE, "rb") as file:
            data = file.read(_SIZE_MAX)
    except FileNotFoundError:
        return []
    earliest: dict[str, float] = {}
    for login in logins(data, os.uname().machine):
        earliest[login.user] = min(login.time, earliest.get(login.user, login.time))
    users: list[Value] = []
    for user, time in earliest.items():
        entry: Struct = {"user": user, "login-time": time}
        users.append(entry)
    return users


def logins(data: bytes, machine: str) -> Iterator[Login]:
    """Yield the logins that a utmp file holds, in its order.

    Args:
        data: of the file; a record that is cut off at the end is left out.
        machine: as uname(2) calls it; it decides the format.
    """
    record = _WIDE if machine in _WIDE_MACHINES else _COMPATIBLE
    for start in range(0, len(data) - record.size + 1, record.size):
        kind, _, _, _, user, _, _, seconds, microseconds = record.unpack_from(data, start)
        if kind == _USER_PROCESS:
            name = user.partition(b"\0")[0].decode(errors="replace")
            yield Login(name, seconds + microseconds / 1e6)
