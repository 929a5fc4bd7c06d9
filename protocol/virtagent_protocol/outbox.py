"""The send queue as tasks see it: anyone puts, one writer task takes.

Putting never waits: the reader must be able to answer at any time. What bounds the queue is that
everything in it belongs to a job slot, an inline reply or a stream window, each of which is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from .messages import Message, encode
from .sendqueue import Lane, SendQueue


def _nothing() -> None:
    pass


@dataclass(eq=False)
class Outgoing:
    """A message on its way out.

    Attributes:
        data: its bytes.
        on_taken: called when the writer takes it; from then on it will be on the wire whole.
        on_written: called when the transport has accepted all of it.
    """

    data: bytes
    on_taken: Callable[[], None] = _nothing
    on_written: Callable[[], None] = _nothing


class Outbox:
    """A `SendQueue` of `Outgoing` with a way to wait for the next one.

    Attributes:
        crc: whether messages get a checksum.
    """

    def __init__(self) -> None:
        self.crc = False
        self._queue: SendQueue[Outgoing] = SendQueue()
        self._filled = trio.Event()

    def __len__(self) -> int:
        return len(self._queue)

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
        outgoing = Outgoing(encode(message, crc=self.crc), on_taken, on_written)
        self._queue.put(outgoing, lane)
        self._filled.set()
        return outgoing

    async def take(self) -> Outgoing:
        """Wait for the next message in the queue's order and take it. For the writer task only."""
        while (outgoing := self._queue.pop()) is None:
            self._filled = trio.Event()
            await self._filled.wait()
        outgoing.on_taken()
        return outgoing

    def discard(self, outgoing: Outgoing) -> bool:
        """Take a message out again; False if the writer has it already."""
        return self._queue.discard(outgoing)

    def clear(self) -> None:
        """Forget everything that waits: its session has ended."""
        self._queue.clear()
