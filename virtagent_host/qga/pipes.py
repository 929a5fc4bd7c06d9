"""Streams with both ends in this process, for methods that have one at an agent that has none.

The rules:

1. Who called holds one end, as it would hold that of a real stream (`LinkStream`, the same code); what plays
   the guest takes up the other by its number, once.
2. What is sent is delivered at once, within the receiver's window: no more than that is held of each.
3. They end with the session, and the words of that are told to both ends.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import trio

from virtagent_protocol.errors import NotReady, RemoteProtocolError
from virtagent_protocol.limits import STREAM_WINDOW, STREAMS_MAX
from virtagent_protocol.outbox import Outgoing
from virtagent_protocol.stream import LinkStream

#: Bytes delivered at a time, before others have their turn.
PIECE = 64 * 1024


class Pipes:
    """All pipes of one link."""

    def __init__(self) -> None:
        self._open: dict[int, _Pipe] = {}
        self._number = 1

    def open(self) -> LinkStream:
        """Return the caller's end of a new pipe.

        Raises:
            NotReady: there are too many.
        """
        if len(self._open) >= STREAMS_MAX:
            raise NotReady(f"{len(self._open)} streams are open, which is all there can be: end some")
        number, self._number = self._number, self._number + 2
        pipe = self._open[number] = _Pipe(number, self._open)
        return pipe.ends[0]

    def accept(self, number: int) -> LinkStream:
        """Return the other end of a pipe.

        Raises:
            RemoteProtocolError: there is none of that number, or it was taken up.
        """
        pipe = self._open.get(number)
        if pipe is None or pipe.accepted:
            raise RemoteProtocolError(f"there is no stream {number} to be taken up")
        pipe.accepted = True
        return pipe.ends[1]

    def end(self, reason: str) -> None:
        """Break them all."""
        for pipe in list(self._open.values()):
            for stream in pipe.ends:
                stream.fail(reason)


class _Pipe:
    """Two streams, each of which is what the other sends to."""

    def __init__(self, number: int, open_pipes: dict[int, _Pipe]) -> None:
        self.accepted = False
        self._open = open_pipes
        self._carriers = (_Carrier(self), _Carrier(self))
        self.ends = tuple(LinkStream(number, carrier, STREAM_WINDOW) for carrier in self._carriers)
        for carrier, other in zip(self._carriers, reversed(self.ends), strict=True):
            carrier.other = other
        self._number = number

    def other_is_gone(self, carrier: _Carrier) -> bool:
        """Whether what is sent there is of no concern any more."""
        return self._carriers[1 - self._carriers.index(carrier)].forgotten

    def forgotten(self) -> None:
        """One end is of no further concern; with both, the pipe is gone."""
        if all(carrier.forgotten for carrier in self._carriers):
            self._open.pop(self._number, None)


class _Carrier:
    """What a stream needs of its link; here, the other stream."""

    other: LinkStream

    def __init__(self, pipe: _Pipe) -> None:
        self.forgotten = False
        self._pipe = pipe
        self._taken = 0

    def forget(self, stream: LinkStream) -> None:
        self.forgotten = True
        self._pipe.forgotten()

    async def reserve(self, stream: LinkStream, wanted: int) -> int:
        # What was sent is queued nowhere; that is told here, since the stream notes it behind `send`.
        while self._taken:
            self._taken -= 1
            stream.on_taken()
        while not (count := min(wanted, stream.window.credit, PIECE)):
            await stream.sendable()
        await trio.lowlevel.checkpoint()
        stream.check_sendable()
        stream.window.spend(count)
        return count

    def gathering(self) -> AbstractContextManager[None]:
        return nullcontext()  # each chunk goes by itself

    def send(self, stream: LinkStream, data: bytes | memoryview) -> Outgoing:
        self._taken += 1
        if not self._pipe.other_is_gone(self):
            self.other.on_data(bytes(data))
        return Outgoing(())

    def end(self, stream: LinkStream, reason: str, *, at_once: bool) -> None:
        if not self._pipe.other_is_gone(self):
            self.other.on_end(reason)

    def credit(self, stream: LinkStream, count: int) -> None:
        if not self._pipe.other_is_gone(self):
            self.other.on_credit(count)

    def discard(self, outgoing: Outgoing, count: int) -> None:
        """Nothing waits here."""
