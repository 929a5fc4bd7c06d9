"""Records of a tree stream (SPEC.md section 13): bytes ↔ records, without I/O.

The rules:

1. A record is a byte for its kind, its length as 4 bytes (big-endian), and so many bytes of payload, one at
   least. A payload is raw (`DATA`, `OFFSET`) or one JSON object in UTF-8.
2. The sender waits for GO. It sends START, then for each entry ENTRY and what belongs to it, then END; the
   receiver then answers with RESULT, or earlier if it cannot go on.
3. The other end is hostile: a payload over its limit is refused before a byte of it is kept, JSON is taken
   apart by the accessors below only, and whatever is wrong is a `RemoteProtocolError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from ..errors import RemoteProtocolError

#: Bytes of one data record: small enough to be held, large enough that its 5 bytes cost nothing.
DATA_MAX = 1024 * 1024
#: Bytes of the payload of any other record: a name and a link's target (4095 bytes) fit several times.
JSON_MAX = 64 * 1024
#: Values of integers: what any JSON library keeps exact is less, but times in ns need more.
INT_MAX = 2**63 - 1

_HEADER = 5


class Kind(Enum):
    """Kinds of records, each with the byte that stands for it."""

    #: Receiver: it has this already, whole or in part.
    KEPT = b"K"
    #: Receiver: begin.
    GO = b"G"
    #: Receiver: how it ended. Nothing follows.
    RESULT = b"R"

    #: Sender: what holds for all that follows.
    START = b"S"
    #: Sender: a file, a directory (which is entered), or a symbolic link.
    ENTRY = b"E"
    #: Sender: bytes of the file, at the present offset.
    DATA = b"D"
    #: Sender: the present offset is this from now on; what is left out is a hole.
    OFFSET = b"O"
    #: Sender: the file ends; its size and digest.
    CLOSE = b"C"
    #: Sender: the directory ends.
    LEAVE = b"L"
    #: Sender: an entry was left out, or the present file cannot be read to its end.
    SKIP = b"X"
    #: Sender: all was sent.
    END = b"Z"


_RAW = {Kind.DATA, Kind.OFFSET}
_LIMITS = {Kind.DATA: DATA_MAX, Kind.OFFSET: 8}
_KINDS = {kind.value[0]: kind for kind in Kind}


@dataclass(frozen=True)
class Record:
    """One record. *fields* is the object of a JSON payload, *data* a raw payload."""

    kind: Kind
    fields: dict[str, Any]
    data: bytes | memoryview = b""

    def get(self, name: str, expected: type[_T], default: _T | None = None) -> _T:
        """Return a member of exactly that type.

        Raises:
            RemoteProtocolError: it is missing and has no default, has another type, or is out of bounds.
        """
        return take(self.fields, name, expected, default)

    @property
    def offset(self) -> int:
        """What an OFFSET record says. Raises RemoteProtocolError if it is none."""
        value = int.from_bytes(self.data, "big")
        if len(self.data) != 8 or value > INT_MAX:
            raise RemoteProtocolError("an offset must have 8 bytes and be below 2^63")
        return value


_T = TypeVar("_T", bool, int, str, list[Any], dict[str, Any])


def take(fields: dict[str, Any], name: str, expected: type[_T], default: _T | None = None) -> _T:
    """As `Record.get`, of any JSON object."""
    if name not in fields and default is not None:
        return default
    value = fields.get(name)
    if type(value) is not expected:
        raise RemoteProtocolError(
            f"'{name}' must be {expected.__name__} in a record, not {type(value).__name__}"
        )
    if isinstance(value, int) and abs(value) > INT_MAX:
        raise RemoteProtocolError(f"'{name}' is out of bounds in a record")
    return value


def head(kind: Kind, length: int) -> bytes:
    """Return the first bytes of a record whose payload of that length follows."""
    return kind.value + length.to_bytes(4, "big")


def encode(kind: Kind, **fields: object) -> bytes:
    """Return the bytes of a record with a JSON payload."""
    payload = json.dumps(fields, separators=(",", ":")).encode()
    return head(kind, len(payload)) + payload


def encode_offset(offset: int) -> bytes:
    """Return the bytes of an OFFSET record."""
    return head(Kind.OFFSET, 8) + offset.to_bytes(8, "big")


class RecordReader:
    """Bytes in, records out. It holds at most one record that is not whole.

    The payload of a DATA record is handed on as it comes, in as many records as it takes: it need neither be
    held nor put together.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._kind: Kind | None = None
        self._needed = _HEADER

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Record]:
        """Yield the records that *data* completes.

        Raises:
            RemoteProtocolError: no record begins like that; nothing more can be read.
        """
        view, at = memoryview(data), 0
        while at < len(view):
            piece = view[at : at + self._needed - self._held]
            at += len(piece)
            self._held += len(piece)
            if self._kind is Kind.DATA:
                if self._held == self._needed:
                    self._kind, self._needed, self._held = None, _HEADER, 0
                yield Record(Kind.DATA, {}, piece)
                continue
            self._parts.append(bytes(piece))
            if self._held < self._needed:
                return
            whole, self._parts, self._held = b"".join(self._parts), [], 0
            if self._kind is None:
                self._begin(whole)
                continue
            kind, self._kind, self._needed = self._kind, None, _HEADER
            yield _decode(kind, whole)

    def _begin(self, header: bytes) -> None:
        kind = _KINDS.get(header[0])
        if kind is None:
            raise RemoteProtocolError(f"no record begins with byte {header[0]:#04x}")
        length = int.from_bytes(header[1:], "big")
        limit = _LIMITS.get(kind, JSON_MAX)
        if length > limit or not length:
            raise RemoteProtocolError(f"a record of kind {kind.name} has {length} bytes, not 1 to {limit}")
        self._kind, self._needed = kind, length


def _decode(kind: Kind, payload: bytes) -> Record:
    if kind in _RAW:
        return Record(kind, {}, payload)
    try:
        fields = json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"a record of kind {kind.name} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RemoteProtocolError(f"a record of kind {kind.name} must hold a JSON object")
    return Record(kind, fields)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")
