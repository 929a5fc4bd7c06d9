"""All streams of a link: opened, given their turns and credit, ended (SPEC.md section 12).

The rules:

1. A stream is named by the end that makes the call which opens it: the caller draws the id, holds the
   stream, and passes the id as a parameter (`open`); the handler takes it up (`accept`). So nothing
   that belongs to a stream can come before the stream is there.
2. The credit of the whole link bounds what is on its way, not what is buffered. It is granted back as
   the *reader* takes bytes in, so no consumer can hold it up. It keeps calls from waiting behind
   megabytes that the port has swallowed.
3. Streams take turns: their chunks wait in one lane, first come first served, a few of each. Those that
   wait for the link's credit get it in the order in which they came.
4. Chunks are large where nobody calls, since each costs turns of both event loops.
5. With its session, every stream is broken; the error says what ended the session.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import trio

from .counters import Counters
from .errors import Fault, FaultCode, NotReady, RemoteProtocolError
from .limits import (
    KIB,
    LINK_WINDOW,
    STREAM_BODY_MAX,
    STREAM_BODY_MAX_LOSSY,
    STREAM_WINDOW,
    STREAMS_MAX,
    PeerLimits,
)
from .messages import LINK_CREDIT, STREAM_ID_MAX, StreamCredit, StreamData, StreamEnd
from .outbox import Outbox, Outgoing
from .sendqueue import Lane
from .session import Role
from .stream import OVERRUN, LinkStream
from .values import Value
from .windows import ReceiveWindow, SendWindow

#: Bytes of the link's credit below which a stream waits for more rather than send crumbs.
CRUMB = 4096
#: Bytes of a chunk where calls are made, and how many such chunks follow a call: the next call, which is
#: likely, shall not wait behind a large one.
SHORT, SHORT_CHUNKS = 128 * KIB, 16
#: Streams whose windows are doubled once half was consumed: who moves much is woken half as often.
WIDE_MAX = 32
#: Part of the link's window that is granted back by itself. Mostly it goes with the credit of a stream,
#: before so much is due, and the peer is woken once for both.
LINK_PART = 0.75


class Streams:
    """All streams of a link.

    Args:
        role: of this end; the host's ids are odd, the guest's even.
        outbox: where messages go.
        counters: what is counted.
    """

    def __init__(self, role: Role, outbox: Outbox, counters: Counters) -> None:
        self._role = role
        self._outbox = outbox
        self._counters = counters
        self._session: str | None = None
        self._peer = PeerLimits()
        self._chunk = STREAM_BODY_MAX
        #: Chunks that are still to be short.
        self._short = 0
        self._streams: dict[int, LinkStream] = {}
        self._next_id = 0
        self._out = SendWindow(0)
        self._in = ReceiveWindow(LINK_WINDOW, LINK_PART)
        self._waiting = trio.lowlevel.ParkingLot()
        #: Those whose windows were doubled.
        self._wide: set[LinkStream] = set()

    def begin(self, session: str, peer: PeerLimits, *, lossy: bool = False) -> None:
        """A session was established; *lossy*: on a channel that may change bytes."""
        self._session = session
        self._peer = peer
        self._chunk = min(peer.stream_body, STREAM_BODY_MAX_LOSSY if lossy else STREAM_BODY_MAX)
        self._next_id = 1 if self._role is Role.HOST else 2
        self._out = SendWindow(peer.link_window)
        self._in = ReceiveWindow(LINK_WINDOW, LINK_PART)

    def end_session(self, reason: str) -> None:
        """The session has ended: every stream is broken."""
        self._session = None
        for stream in list(self._streams.values()):
            stream.fail(reason)
        self._waiting.unpark_all()

    def figures(self) -> dict[str, Value]:
        """Return how many streams are open, and how many may be."""
        return {"open": len(self._streams), "slots": min(STREAMS_MAX, self._peer.streams)}

    # --- Opening -------------------------------------------------------------------------------------

    def open(self) -> LinkStream:
        """Return a new stream, to be named in a call to the peer; close it if that call fails.

        Raises:
            NotReady: there is no session, or there are too many streams.
        """
        if self._session is None:
            raise NotReady("there is no session that could carry a stream")
        if len(self._streams) >= min(STREAMS_MAX, self._peer.streams) or self._next_id > STREAM_ID_MAX:
            raise NotReady(f"{len(self._streams)} streams are open, which is all there can be: end some")
        number, self._next_id = self._next_id, self._next_id + 2
        return self._add(number)

    def accept(self, number: int) -> LinkStream:
        """Take up the stream that the peer names in a call.

        Raises:
            Fault: INVALID_PARAMS: it is not one of the peer's ids, or is open already; QUEUE_FULL: there are
                too many streams; NOT_READY: the call's session has ended.
        """
        if self._session is None:
            raise Fault(FaultCode.NOT_READY, "the session has ended")
        if not 1 <= number <= STREAM_ID_MAX or (number % 2 == 1) is (self._role is Role.HOST):
            raise Fault(FaultCode.INVALID_PARAMS, f"{number} is not the id of a stream of yours")
        if number in self._streams:
            raise Fault(FaultCode.INVALID_PARAMS, f"stream {number} is open already")
        if len(self._streams) >= STREAMS_MAX:
            raise Fault(FaultCode.QUEUE_FULL, f"{STREAMS_MAX} streams are open: end some, then try again")
        return self._add(number)

    def _add(self, number: int) -> LinkStream:
        stream = LinkStream(number, self, self._peer.stream_window)
        self._streams[number] = stream
        return stream

    # --- What streams ask for ------------------------------------------------------------------------

    async def reserve(self, stream: LinkStream, wanted: int) -> int:
        """Wait for credit, the stream's and the link's, and spend it; return how many bytes may be sent.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: nothing can be sent any more.
        """
        my_turn = False
        try:
            while True:
                count = min(wanted, stream.window.credit, self._chunk)
                if self._short:
                    count = min(count, SHORT)
                if not count:
                    await stream.sendable()
                elif self._out.credit < min(count, CRUMB) or (self._waiting and not my_turn):
                    await self._waiting.park()
                    my_turn = True
                    stream.check_sendable()
                else:
                    count = min(count, self._out.credit)
                    stream.window.spend(count)
                    self._out.spend(count)
                    self._short = max(0, self._short - 1)
                    return count
        finally:
            # Whoever leaves with credit left, or without having used its turn, lets the next one in.
            if self._out.credit:
                self._waiting.unpark()

    def gathering(self) -> AbstractContextManager[None]:
        """Return the block at whose end what was sent in it goes out."""
        return self._outbox

    def send(self, stream: LinkStream, data: bytes | memoryview) -> Outgoing:
        """Queue a chunk that `reserve` has granted."""
        return self._outbox.put(
            StreamData(stream.id, data, self._session), Lane.STREAM, on_taken=stream.on_taken
        )

    def credit(self, stream: LinkStream, count: int) -> None:
        """Grant the peer credit for a stream."""
        if stream not in self._wide and len(self._wide) < WIDE_MAX:
            self._wide.add(stream)
            count += stream.in_window.widen(STREAM_WINDOW)
        with self._outbox:
            self._grant(stream.id, count)
            self._grant(LINK_CREDIT, self._in.owed())

    def end(self, stream: LinkStream, reason: str, *, at_once: bool) -> None:
        """Tell the peer that a stream ends: behind its data, or (a reset) before what else waits."""
        lane = Lane.REPLY if at_once else Lane.STREAM
        self._outbox.put(StreamEnd(stream.id, reason, self._session), lane)

    def discard(self, outgoing: Outgoing, count: int) -> None:
        """Take back a chunk of *count* bytes that need not be sent any more."""
        if self._outbox.discard(outgoing):
            self._out.grant(count)

    def forget(self, stream: LinkStream) -> None:
        """A stream is of no further concern to the peer."""
        self._streams.pop(stream.id, None)
        self._wide.discard(stream)
        # It may wait for the link's credit, and shall learn that it waits in vain.
        self._waiting.unpark_all()

    # --- Messages of this session: none of these waits -----------------------------------------------

    def on_call(self) -> None:
        """A request or response came."""
        self._short = SHORT_CHUNKS

    def on_data(self, message: StreamData) -> None:
        """Data came."""
        count = len(message.data)
        stream = self._streams.get(message.stream)
        covered = self._in.receive(count)
        if covered:
            self._grant(LINK_CREDIT, self._in.consume(count))
        if stream is None:
            # It was closed or reset here, and the peer does not know yet.
            self._counters.drops["stream"] += 1
        elif not covered:
            stream.reset(OVERRUN, "the other end sent more on all streams than it was granted")
        else:
            # A view is only ever sent.
            assert not isinstance(message.data, memoryview)
            stream.on_data(message.data)

    def on_credit(self, message: StreamCredit) -> None:
        """Credit came, for a stream or for the link."""
        if message.stream == LINK_CREDIT:
            self._grant_link(message.credit)
        elif message.stream in self._streams:
            self._streams[message.stream].on_credit(message.credit)

    def on_end(self, message: StreamEnd) -> None:
        """The peer ends or resets a stream."""
        stream = self._streams.get(message.stream)
        if stream is not None:
            stream.on_end(message.reason)

    def _grant(self, number: int, count: int) -> None:
        if count:
            self._outbox.put(StreamCredit(number, count, self._session), Lane.REPLY)

    def _grant_link(self, count: int) -> None:
        try:
            self._out.grant(count)
        except RemoteProtocolError:
            # Nothing that it can gain by it: what it grants is what it must be able to read.
            self._counters.drops["stream"] += 1
        self._waiting.unpark()
