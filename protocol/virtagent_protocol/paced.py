"""Records on a stream, one at a time: the next goes out when the last was taken (SPEC.md section 11).

The rules:

1. A record is its length in 4 bytes, big-endian, and so many bytes: one value, as a methodResponse document.
2. For each record that the reader has taken it sends one byte (`TAKEN`). Until that has come there is no next
   one, so no more than one record is ever under way, however slow the reader is.
3. Either end may be hostile: a length over the limit is refused before a byte of the record is kept, and so
   is a reader that says more than it was sent.
"""

from __future__ import annotations

import trio

from . import xmlrpc
from .errors import LinkBroken, LocalProtocolError, RemoteProtocolError
from .limits import BODY_MAX
from .values import Value

#: Bytes of one record: as of a message, for the same reason.
RECORD_MAX = BODY_MAX
#: What the reader sends for each record.
TAKEN = b"+"

_LENGTH = 4


class PacedWriter:
    """The sending end.

    Args:
        stream: which nobody else uses.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def put(self, value: Value) -> bool:
        """Send a record and wait until it was taken; False: the reader has left.

        Raises:
            LocalProtocolError: it cannot be carried.
            RemoteProtocolError: the reader says what it must not.
        """
        record = xmlrpc.encode_result(value)
        if len(record) > RECORD_MAX:
            raise LocalProtocolError(f"a record of {len(record)} bytes is too large (at most {RECORD_MAX})")
        try:
            await self._stream.send_all(len(record).to_bytes(_LENGTH, "big") + record)
            answer = await self._stream.receive_some(1)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        if answer not in (b"", TAKEN):
            raise RemoteProtocolError("the reader of a record answered something else than that it was taken")
        return answer == TAKEN

    async def until_left(self) -> None:
        """Return when the reader has left.

        Raises:
            RemoteProtocolError: it says something before there is a record.
        """
        try:
            said = await self._stream.receive_some(1)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        if said:
            raise RemoteProtocolError("the reader says that it took a record that was not sent")


class PacedReader:
    """The receiving end.

    Args:
        stream: which nobody else uses.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def get(self) -> Value:
        """Return the next record; it is taken only when `taken` says so.

        Raises:
            LinkBroken: the stream was broken, or has ended.
            RemoteProtocolError: what came is no record.
        """
        length = int.from_bytes(await self._exactly(_LENGTH), "big")
        if not 0 < length <= RECORD_MAX:
            raise RemoteProtocolError(f"a record of {length} bytes: there are 1 to {RECORD_MAX}")
        value, fault = xmlrpc.decode_response(await self._exactly(length))
        if fault is not None:
            raise RemoteProtocolError("a record is a value, not a fault")
        return value

    async def taken(self) -> None:
        """Let the next record come.

        Raises:
            LinkBroken: the stream is broken.
        """
        try:
            await self._stream.send_all(TAKEN)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkBroken(str(error)) from None

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            try:
                data = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise LinkBroken(str(error)) from None
            if not data:
                raise LinkBroken("the other end sends no more records")
            self._buffer += data
            if len(self._buffer) > RECORD_MAX + _LENGTH:
                raise RemoteProtocolError("the other end sends a record before the last one was taken")
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data
