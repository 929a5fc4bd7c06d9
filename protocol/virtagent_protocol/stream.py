"""One stream of a link: a byte pipe with credit windows (SPEC.md section 12).

The rules:

1. What comes is buffered within the stream's window, or the stream is reset: the link's reader never
   waits. Credit is granted as the *consumer* takes bytes out, so a stuck consumer stalls its own stream.
2. At most `QUEUED_MAX` chunks of a stream are in the send queue.
3. A stream ends in four ways: each end ends its half (``eof``), or one closes both (``closed``), which
   the other learns behind the data; or one resets it, at once; or its session ends.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import Protocol

import trio

from .errors import RemoteProtocolError
from .exclusive import Exclusive
from .limits import STREAM_WINDOW
from .outbox import Outgoing
from .windows import ReceiveWindow, SendWindow

#: Chunks of one stream in the send queue: one being written, and one that is ready when it has been.
QUEUED_MAX = 2

#: Reasons of a stream's end. Any that is not among them is a reset, as are all but the first two.
EOF = "eof"
CLOSED = "closed"
OVERRUN = "overrun"
REFUSED = "refused"
CANCELLED = "cancelled"


class _Carrier(Protocol):
    """What a stream needs of its link."""

    def forget(self, stream: LinkStream) -> None: ...
    def gathering(self) -> AbstractContextManager[None]: ...
    def send(self, stream: LinkStream, data: bytes | memoryview) -> Outgoing: ...
    def end(self, stream: LinkStream, reason: str, *, at_once: bool) -> None: ...
    def credit(self, stream: LinkStream, count: int) -> None: ...
    def discard(self, outgoing: Outgoing, count: int) -> None: ...
    async def reserve(self, stream: LinkStream, wanted: int) -> int: ...


class LinkStream(trio.abc.HalfCloseableStream):
    """One stream. Made by `Streams.open` and `Streams.accept`.

    Sending fails with `trio.BrokenResourceError` when the other end reads no more, has reset the stream, or
    the session has ended; so does receiving, but for the first. The error's text says which.

    Attributes:
        id: its number in the session.
        window: what the other end lets us send.
        in_window: what we let the other end send.
        broken: set when the stream breaks; for those who neither send nor receive.
        reset_by_peer: the reason with which the other end has reset it, or None.
    """

    def __init__(self, number: int, carrier: _Carrier, send_credit: int) -> None:
        self.id = number
        self._carrier = carrier
        # Sending
        self.window = SendWindow(send_credit)
        #: Chunks that the writer has not taken, and their lengths.
        self._queued: deque[tuple[Outgoing, int]] = deque()
        self._may_send = trio.Event()
        self._sending = Exclusive("another task is sending on this stream")
        self._sent_end = False
        #: Why nothing can be sent any more, though the stream may still be read.
        self._unread: str | None = None
        # Receiving
        self._arrived: deque[bytes | bytearray] = deque()
        self.in_window = ReceiveWindow(STREAM_WINDOW)
        self._may_receive = trio.Event()
        self._receiving = Exclusive("another task is receiving from this stream")
        self._received_end = False
        # Both
        self._closed = False
        self._failure: str | None = None
        self._unwanted = trio.Event()
        self.broken = trio.Event()
        self.reset_by_peer: str | None = None

    # --- Sending -------------------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*; wait while the receiver gives no credit, or other streams have their turn."""
        await self._send(data, copied=not isinstance(data, bytes))

    async def send_kept(self, data: bytes | bytearray | memoryview) -> None:
        """As `send_all`, without a copy of *data*.

        It must not be changed while anybody refers to it, which may be long after this has returned
        (`buffers.BufferPool`).
        """
        await self._send(data, copied=False)

    async def _send(self, data: bytes | bytearray | memoryview, *, copied: bool) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self.check_sendable()
            with memoryview(data) as view, view.cast("B") as rest:
                at = 0
                while at < len(rest):
                    if at:
                        # A chunk may take milliseconds to write: whoever has something to say is not to wait
                        # for a window of them.
                        await trio.lowlevel.checkpoint()
                    await self._room()
                    count = await self._carrier.reserve(self, len(rest) - at)
                    piece = rest[at : at + count]
                    with self._carrier.gathering():
                        outgoing = self._carrier.send(self, bytes(piece) if copied else piece)
                        self._queued.append((outgoing, count))
                    at += count

    async def wait_send_all_might_not_block(self) -> None:
        """Return when `send_all` of a byte might go through at once."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self.check_sendable()
            await self._room()
            while not self.window.credit:
                await self.sendable()

    async def wait_taken(self) -> None:
        """Return when nothing of what was sent waits for the writer any more. Raises as `send_all` does."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            while self._queued:
                await self.sendable()

    async def send_eof(self) -> None:
        """End our half; the other end can still send."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError(f"stream {self.id} was closed")
            if self._sent_end:
                return
            self.check_sendable()
            self._end(EOF)

    async def sendable(self) -> None:
        """Wait for something that concerns sending; for `Streams.reserve`, too."""
        self._may_send = trio.Event()
        await self._may_send.wait()
        self.check_sendable()

    @property
    def unwanted(self) -> bool:
        """Whether `wait_unwanted` would return."""
        return self._unwanted.is_set()

    async def wait_unwanted(self) -> None:
        """Return when the other end takes no more: it has closed or reset the stream, or the session has
        ended. For whoever waits for something to send."""
        await self._unwanted.wait()

    def check_sendable(self) -> None:
        """Raise if nothing can be sent any more."""
        if self._closed or (self._sent_end and self._failure is None):
            raise trio.ClosedResourceError(f"stream {self.id} was closed")
        broken = self._failure or self._unread
        if broken is not None:
            raise trio.BrokenResourceError(broken)

    async def _room(self) -> None:
        while len(self._queued) >= QUEUED_MAX:
            await self.sendable()

    def _end(self, reason: str) -> None:
        """Tell the other end, behind all that was sent."""
        self._sent_end = True
        self._carrier.end(self, reason, at_once=False)
        if self._received_end or reason != EOF:
            self._carrier.forget(self)

    # --- Receiving -----------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what has come, at most *max_bytes*; wait while there is nothing; ``b""`` at the end."""
        if max_bytes is not None and not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an integer")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            if self._is_receivable():
                await trio.lowlevel.checkpoint()
            while not self._is_receivable():
                self._may_receive = trio.Event()
                await self._may_receive.wait()
            if self._closed:
                raise trio.ClosedResourceError(f"stream {self.id} was closed")
            if self._failure is not None:
                raise trio.BrokenResourceError(self._failure)
            return self._take(max_bytes) if self._arrived else b""

    def _is_receivable(self) -> bool:
        return bool(self._arrived) or self._received_end or self._closed or self._failure is not None

    def _take(self, max_bytes: int | None) -> bytes | bytearray:
        data = self._arrived.popleft()
        if max_bytes is not None and len(data) > max_bytes:
            self._arrived.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        credit = self.in_window.consume(len(data))
        if credit and not self._received_end:
            self._carrier.credit(self, credit)
        return data

    # --- Ending --------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close both halves: the other end receives what was sent, then the end, and can send no more."""
        if not self._closed:
            self._closed = True
            if self._failure is None and not (self._sent_end and self._received_end):
                self._end(CLOSED if not self._received_end else EOF)
                self._carrier.forget(self)
            self._arrived.clear()
            self._wake()
        await trio.lowlevel.checkpoint()

    def reset(self, reason: str, words: str | None = None) -> None:
        """Break the stream at both ends, at once; what is under way is lost.

        Args:
            reason: a token for the other end, such as ``cancelled``.
            words: what our own tasks are told.
        """
        if self._failure is None and not self._closed:
            if not (self._sent_end and self._received_end):
                self._carrier.end(self, reason, at_once=True)
            self.fail(words or f"stream {self.id} was reset: {reason}")

    # --- What the link tells: none of these waits ----------------------------------------------------

    def fail(self, words: str) -> None:
        """The stream is broken; tasks that use it get an error with these words."""
        if self._failure is None:
            self._failure = words
            self.broken.set()
            self._arrived.clear()
            for outgoing, count in self._queued:
                self._carrier.discard(outgoing, count)
            self._queued.clear()
            self._carrier.forget(self)
            self._wake()

    def on_data(self, data: bytes | bytearray) -> None:
        """Data came."""
        if self._received_end or not self.in_window.receive(len(data)):
            self.reset(OVERRUN, f"the other end sent more on stream {self.id} than it was granted")
        elif data:
            self._arrived.append(data)
            self._may_receive.set()

    def on_credit(self, count: int) -> None:
        """The receiver grants more."""
        try:
            self.window.grant(count)
        except RemoteProtocolError as error:
            self.reset(OVERRUN, str(error))
        else:
            self._may_send.set()

    def on_end(self, reason: str) -> None:
        """The other end sends no more, reads no more, or has reset the stream."""
        if reason not in (EOF, CLOSED):
            self.reset_by_peer = reason
            self.fail(f"the other end reset stream {self.id}: {reason}")
            return
        self._received_end = True
        if reason == CLOSED:
            self._unread = f"the other end has closed stream {self.id}"
            self._unwanted.set()
        if self._sent_end or reason == CLOSED:
            self._carrier.forget(self)
        self._wake()

    def on_taken(self) -> None:
        """The writer has taken the chunk that waited longest."""
        if self._queued:
            self._queued.popleft()
        self._may_send.set()

    def _wake(self) -> None:
        self._may_send.set()
        self._may_receive.set()
