"""The send queue as tasks see it: anyone puts, one writer task takes.

Putting never waits: the reader must be able to answer at any time. What bounds the queue is that
everything in it belongs to a job slot, an inline reply or a stream window, each of which is bounded.

A turn of the event loop only to wake the writer costs as much as a ping. So what is put while *gathering* is
written at the end of that, by whoever put it, as far as the transport takes it without waiting; the writer
goes on in the middle of a message that was not taken whole. While the writer is at work, it alone writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from .channel import Buffer, WriteNow, behind
from .messages import Message, Request, encode_answer, encode_parts
from .sendqueue import Lane, SendQueue


def _nothing() -> None:
    pass


class Outgoing:
    """A message on its way out.

    Args:
        parts: its bytes.
        on_taken: called when the writer takes it; from then on it will be on the wire whole.
        on_written: called when the transport has accepted all of it.

    Attributes:
        size: how many bytes it has.
        written: how many of them the transport has.
    """

    def __init__(
        self,
        parts: Sequence[Buffer],
        on_taken: Callable[[], None] = _nothing,
        on_written: Callable[[], None] = _nothing,
    ) -> None:
        self.parts = parts
        self.on_taken = on_taken
        self.on_written = on_written
        self.size = sum(map(len, parts))
        self.written = 0

    def rest(self) -> Sequence[Buffer]:
        """Return what the transport does not have yet."""
        return behind(self.parts, self.written) if self.written else self.parts

    def write(self, write_now: WriteNow) -> bool:
        """Give the transport what it takes without waiting; return whether that was all."""
        while self.written < self.size and (count := write_now(self.rest())):
            self.written += count
        return self.written == self.size


class Outbox:
    """A `SendQueue` of `Outgoing` with a way to wait for the next one.

    Attributes:
        crc: whether messages get a checksum.
    """

    def __init__(self) -> None:
        self.crc = False
        self._queue: SendQueue[Outgoing] = SendQueue()
        self._filled = trio.Event()
        self._gathering = 0
        #: Whether the writer waits for something to do.
        self._idle = False
        #: A message of which the transport has taken a part.
        self._begun: Outgoing | None = None
        self._write_now: WriteNow | None = None
        self._on_sent: Callable[[Outgoing], None] = lambda outgoing: outgoing.on_written()

    def __len__(self) -> int:
        return len(self._queue)

    def open(self, write_now: WriteNow | None, on_sent: Callable[[Outgoing], None]) -> None:
        """A transport was opened.

        Args:
            write_now: writes what can be written without waiting, and returns how many bytes that was; None
                if the transport cannot.
            on_sent: called with each message that was written so, whole; it calls `on_written`.
        """
        self._write_now = write_now
        self._on_sent = on_sent

    def close(self) -> None:
        """The transport is gone."""
        self.clear()
        self._begun = self._write_now = None

    def __enter__(self) -> None:
        """Begin to gather."""
        self._gathering += 1

    def __exit__(self, *_: object) -> None:
        self._gathering -= 1
        if not self._gathering and (self._begun is not None or self._queue):
            self._flush()

    def _flush(self) -> None:
        if self._idle and self._begun is None and self._write_now is not None:
            while (outgoing := self._queue.pop()) is not None:
                outgoing.on_taken()
                if not outgoing.write(self._write_now):
                    self._begun = outgoing
                    break
                self._on_sent(outgoing)
        if self._begun is not None or self._queue:
            self._filled.set()

    def put(
        self,
        message: Message,
        lane: Lane,
        *,
        on_taken: Callable[[], None] = _nothing,
        on_written: Callable[[], None] = _nothing,
    ) -> Outgoing:
        """Queue a message; the result is what `discard` takes.

        Raises:
            LocalProtocolError: the message is not one that the protocol allows; nothing was queued.
        """
        outgoing = Outgoing(encode_parts(message, crc=self.crc), on_taken, on_written)
        self._put(outgoing, lane)
        return outgoing

    def _put(self, outgoing: Outgoing, lane: Lane) -> None:
        self._queue.put(outgoing, lane)
        if not self._gathering:
            self._filled.set()

    def reply(self, request: Request, body: bytes) -> Outgoing | None:
        """Answer a request that was read, by what nobody will discard; at once if nothing stands before it.

        Returns:
            None if it is written; else what waits, for its `on_written` to be set.

        Raises:
            LocalProtocolError: see `put`.
        """
        outgoing = Outgoing((encode_answer(request, body, crc=self.crc),))
        if not (self._gathering and self._idle) or self._begun is not None or self._queue:
            self._put(outgoing, Lane.REPLY)
            return outgoing
        if self._write_now is None or not outgoing.write(self._write_now):
            self._begun = outgoing
            return outgoing
        self._on_sent(outgoing)
        return None

    async def take(self) -> Outgoing:
        """Wait for the next message in the queue's order and take it. For the writer task only."""
        while True:
            if (begun := self._begun) is not None:
                self._begun = None
                return begun
            if (outgoing := self._queue.pop()) is not None:
                outgoing.on_taken()
                return outgoing
            self._filled = trio.Event()
            self._idle = True
            try:
                await self._filled.wait()
            finally:
                self._idle = False

    def discard(self, outgoing: Outgoing) -> bool:
        """Take a message out again; False if the writer has it already."""
        return self._queue.discard(outgoing)

    def clear(self) -> None:
        """Forget everything that waits: its session has ended."""
        self._queue.clear()
