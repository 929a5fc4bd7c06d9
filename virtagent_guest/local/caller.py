"""Who has connected to the local socket: what the kernel says of it, which nobody can forge.

The user is the one who *connected*: SO_PEERCRED holds what was true at connect(2). A connection that is
handed to another process still speaks for the first, as an open file does. The pid may be another process's
by now.
"""

from __future__ import annotations

import pwd
import socket
import struct
from dataclasses import dataclass

import trio

from virtagent_protocol.values import Struct

#: struct ucred of unix(7): pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")
#: Seconds for the name of a user. It may be looked up in the network, which may be what is broken.
LOOKUP_TIME = 1.0
#: Names looked up at a time, each in a thread.
_LOOKUPS = 4


@dataclass(frozen=True)
class Caller:
    """A process of the guest, as the kernel knows it.

    Attributes:
        pid: of the process that connected; 0 if it is not to be seen from here.
        uid: its effective user id.
        gid: its effective group id.
        user: the name of the user; the uid in digits if it has none.
    """

    pid: int
    uid: int
    gid: int
    user: str

    def to_value(self) -> Struct:
        """Return the struct that travels with what the caller does."""
        return {"pid": self.pid, "uid": self.uid, "gid": self.gid, "user": self.user}

    def __str__(self) -> str:
        return f"{self.user} (uid {self.uid}, pid {self.pid})"


_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("user lookups")


async def caller_of(stream: trio.SocketStream) -> Caller:
    """Return who is at the other end of a unix socket that was accepted."""
    # Not getsockopt's integers: they are unsigned on no platform, and a uid may have its highest bit set.
    packed = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    uid, gid = uid & 0xFFFFFFFF, gid & 0xFFFFFFFF
    return Caller(pid, uid, gid, await _name_of(uid))


async def _name_of(uid: int) -> str:
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_LOOKUPS)
        _limiter.set(limiter)
    name = ""
    with trio.move_on_after(LOOKUP_TIME):
        name = await trio.to_thread.run_sync(_look_up, uid, abandon_on_cancel=True, limiter=limiter)
    return name or str(uid)


def _look_up(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
