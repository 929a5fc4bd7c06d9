"""The addresses of the network interfaces, from the C library's getifaddrs(3), as qemu-ga takes them.

The kernel tells them by netlink; the C library knows how to ask, on every machine that Python runs on.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, AF_PACKET, inet_ntop

#: Where the addresses stand in sockaddr_in and sockaddr_in6, and their bytes.
_IP = {AF_INET: (4, 4), AF_INET6: (8, 16)}
#: sockaddr_ll: family, protocol, index, type, packet type, length of the address, the address.
_LINK = struct.Struct("=HHiHBB8s")
#: Bytes of an Ethernet address. Of longer ones the first are told.
_MAC = 6


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
    ("destination", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]


@dataclass(frozen=True)
class Address:
    """One address of an interface, or an interface without any.

    Attributes:
        interface: its name, or the label of the address.
        ip: the address, or None.
        prefix: its length in bits.
        version: of IP.
        hardware: the hardware address, such as ``52:54:00:12:34:56``, or None.
    """

    interface: str
    ip: str | None = None
    prefix: int = 0
    version: int = 4
    hardware: str | None = None


def addresses() -> list[Address]:
    """Return all addresses, those of the hardware first.

    Raises:
        OSError: the C library could not ask the kernel.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(head)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        result = []
        entry = head
        while entry:
            result.append(_address(entry.contents))
            entry = entry.contents.next
        return result
    finally:
        libc.freeifaddrs(head)


def _address(entry: _IfAddrs) -> Address:
    name = os.fsdecode(entry.name)
    if not entry.address:
        return Address(name)
    family = struct.unpack("=H", ctypes.string_at(entry.address, 2))[0]
    if family in _IP:
        offset, length = _IP[family]
        ip = ctypes.string_at(entry.address + offset, length)
        mask = ctypes.string_at(entry.netmask + offset, length) if entry.netmask else b""
        prefix = int.from_bytes(mask, "big").bit_count()
        return Address(name, inet_ntop(family, ip), prefix, 4 if family == AF_INET else 6)
    if family == AF_PACKET:
        *_, length, raw = _LINK.unpack(ctypes.string_at(entry.address, _LINK.size))
        mac = raw[: min(length, _MAC)].ljust(_MAC, b"\0")
        return Address(name, hardware=":".join(f"{byte:02x}" for byte in mac))
    return Address(name)
