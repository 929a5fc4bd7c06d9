"""Addresses of stream sockets, as users and the wire write them (SPEC.md section 11).

=====================  ============================
``tcp:HOST:PORT``      TCP; HOST is a name, an IPv4 address, or an IPv6 address in brackets
``HOST:PORT``          the same
``unix:/PATH``         a unix socket; the path is absolute
``/PATH``              the same
=====================  ============================

An address to listen on may have the port 0 (any that is free), and ``*`` as its host: all interfaces.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

#: Bytes of a unix socket's path: sun_path of Linux with its final NUL.
PATH_MAX = 107
#: Characters of a host's name (RFC 1035).
HOST_MAX = 253
PORT_MAX = 65535

ANY_HOST = "*"

#: Also what a resolver may be asked for without surprises; an underscore is no letter of host names, and
#: used.
_NAME = re.compile(r"[0-9A-Za-z_](?:[0-9A-Za-z_.-]*[0-9A-Za-z_.])?")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")


class AddressError(ValueError):
    """It is not an address; the text says why, and what one looks like."""


@dataclass(frozen=True)
class TcpAddress:
    """A TCP address.

    Attributes:
        host: a name or a literal address, an IPv6 one without brackets; `ANY_HOST`: all interfaces.
        port: 0 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """A unix socket.

    Attributes:
        path: absolute.
    """

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str, *, listening: bool = False) -> Address:
    """Return the address that *text* means.

    Args:
        text: in one of the forms above.
        listening: whether it is one to listen on.

    Raises:
        AddressError: it means none.
    """
    if text.startswith("/"):
        return unix_address(text)
    kind, colon, rest = text.partition(":")
    if colon and kind == "unix":
        return unix_address(rest)
    if colon and kind == "tcp" and ":" in rest:
        text = rest
    host, colon, port = text.rpartition(":")
    if not colon:
        raise AddressError(f"{text!r} is not an address: write tcp:HOST:PORT or unix:/PATH")
    return tcp_address(host, port, listening=listening)


def tcp_address(host: str, port: str, *, listening: bool = False) -> TcpAddress:
    """Return a TCP address, whose host stands in brackets if it has colons; see `parse_address`."""
    if not _PORT.fullmatch(port) or int(port) > PORT_MAX:
        raise AddressError(f"{port!r} is not a port: a number from 1 to {PORT_MAX}")
    if port == "0" and not listening:
        raise AddressError("nobody can be reached at port 0")
    return TcpAddress(_host(host, listening), int(port))


def unix_address(path: str) -> UnixAddress:
    """Return a unix socket's address; errors as for `parse_address`."""
    if not path.startswith("/"):
        raise AddressError(f"{path!r} is not an absolute path")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise AddressError(f"{path!r} is not text") from None
    if size > PATH_MAX or "\0" in path:
        raise AddressError(
            f"{path[:40]!r}… cannot be the path of a socket: it has at most {PATH_MAX} bytes, no NUL"
        )
    return UnixAddress(path)


def _host(text: str, listening: bool) -> str:
    if text == ANY_HOST and listening:
        return text
    if text.startswith("[") and text.endswith("]"):
        address, _, zone = text[1:-1].partition("%")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            raise AddressError(f"{text!r}: that is no IPv6 address") from None
        if zone and not _NAME.fullmatch(zone):
            raise AddressError(f"{text!r}: {zone!r} is no interface")
        return text[1:-1]
    if ":" in text:
        raise AddressError(f"{text!r} is not a host: write an IPv6 address in brackets")
    if len(text) > HOST_MAX or not _NAME.fullmatch(text):
        raise AddressError(f"{text[:40]!r} is not a host: a name or an address is")
    return text
