"""What is to be forwarded where, as ``ssh -L`` and ``-R`` write it.

``[BIND:]PORT:HOST:HOSTPORT``, with a unix socket's path in place of ``[BIND:]PORT``, of ``HOST:HOSTPORT`` or
of both; an IPv6 address stands in brackets. Without BIND, or with ``localhost``, only the machine's own
programs reach the port; ``*`` or an empty BIND is all interfaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from virtagent_protocol.address import (
    ANY_HOST,
    Address,
    AddressError,
    TcpAddress,
    UnixAddress,
    tcp_address,
    unix_address,
)

_FORM = "[BIND:]PORT:HOST:HOSTPORT, where /PATH may stand in place of either part"
#: Colons within brackets do not count.
_FIELD = re.compile(r"\[[^\]]*\]|[^:\[\]]*")

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Forward:
    """One forward.

    Attributes:
        listen: where connections come in.
        connect: where they lead.
        text: as it was written.
    """

    listen: Address
    connect: Address
    text: str


def parse_forward(text: str) -> Forward:
    """Return the forward that *text* means.

    Raises:
        AddressError: it means none; the text says what is wrong, and what it should look like.
    """
    try:
        fields = _fields(text)
        behind = 1 if fields[-1].startswith("/") else 2
        front, back = fields[:-behind], fields[-behind:]
        if not 1 <= len(front) <= 2:
            raise AddressError(f"it has {len(fields)} parts")
        return Forward(_listen(front), _connect(back), text)
    except AddressError as error:
        raise AddressError(f"{text!r}: {error}; the form is {_FORM}") from None


def _fields(text: str) -> list[str]:
    fields = []
    at = 0
    while True:
        match = _FIELD.match(text, at)
        assert match is not None
        fields.append(match[0])
        at = match.end()
        if at == len(text):
            return fields
        if text[at] != ":":
            raise AddressError("brackets belong around a whole IPv6 address")
        at += 1


def _listen(fields: list[str]) -> TcpAddress | UnixAddress:
    if len(fields) == 1:
        if fields[0].startswith("/"):
            return unix_address(fields[0])
        return tcp_address(LOOPBACK, fields[0], listening=True)
    bind, port = fields
    if bind == "localhost":
        bind = LOOPBACK
    return tcp_address(bind or ANY_HOST, port, listening=True)


def _connect(fields: list[str]) -> TcpAddress | UnixAddress:
    return unix_address(fields[0]) if len(fields) == 1 else tcp_address(fields[0], fields[1])
