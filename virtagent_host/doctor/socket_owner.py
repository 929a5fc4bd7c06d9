"""Who is connected to a listening unix socket, asked of the kernel; nobody else is asked or disturbed.

A listener on which one program is served at a time (QEMU's chardevs and monitors) lets others connect, too:
they wait in its queue and do not know it. The kernel does: a connection that was accepted has an inode, one
that waits has none. So: sock_diag(7) for the inode at its other end, /proc for the process that holds it.

It sees sockets of its own network namespace only, and other users' processes only as root. What it cannot
see it does not guess at.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_ALL_STATES = 0xFFFFFFFF
_SHOW_NAME, _SHOW_PEER = 0x1, 0x4
_ATTRIBUTE_NAME, _ATTRIBUTE_PEER = 0, 2
_NLMSG_ERROR, _NLMSG_DONE = 2, 3

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIIIII")  # unix_diag_req: family, protocol, pad, states, inode, show, cookie
_ANSWER = struct.Struct("=BBBBIII")  # unix_diag_msg: family, type, state, pad, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type

#: Seconds for the kernel's answer; it answers at once.
_TIMEOUT = 2.0
_READ_SIZE = 1 << 16

_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Program:
    """A process and its command line, as it made it: not to be trusted on a terminal."""

    pid: int
    command: str


def connected_program(path: str) -> Program | None:
    """Return the program whose connection to the listener at *path* was accepted.

    Args:
        path: as the listener was bound to it.

    Returns:
        None if there is none, or it cannot be seen.
    """
    try:
        wanted = {peer for name, inode, peer in _sockets() if name == path and inode and peer}
    except OSError:  # no such interface in this kernel, or a sandbox that keeps it from us
        return None
    return _owner(wanted) if wanted else None


def _sockets() -> Iterator[tuple[str, int, int]]:
    """Yield name, inode and peer's inode of every unix socket; "" or 0 for what one has not."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_TIMEOUT)
        request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME | _SHOW_PEER, 0, 0)
        length = _HEADER.size + len(request)
        netlink.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        while True:
            data = netlink.recv(_READ_SIZE)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel does not list unix sockets")
                yield _parse(data[_HEADER.size : length])
                data = data[_aligned(length) :]


def _parse(message: bytes) -> tuple[str, int, int]:
    name, peer = "", 0
    inode = _ANSWER.unpack_from(message)[4]
    rest = message[_ANSWER.size :]
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        value = rest[_ATTRIBUTE.size : length]
        if kind == _ATTRIBUTE_NAME:
            name = os.fsdecode(value.rstrip(b"\0"))
        elif kind == _ATTRIBUTE_PEER:
            (peer,) = struct.unpack("=I", value)
        rest = rest[_aligned(length) :]
    return name, inode, peer


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _owner(inodes: set[int]) -> Program | None:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and inodes & set(_socket_inodes(process)):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            return Program(int(process.name), os.fsdecode(command).replace("\0", " ").strip())
    return None


def _socket_inodes(process: Path) -> Iterator[int]:
    try:
        for file in (process / "fd").iterdir():
            if match := _SOCKET_LINK.fullmatch(os.readlink(file)):
                yield int(match[1])
    except OSError:  # it has just ended, or is another user's
        return
