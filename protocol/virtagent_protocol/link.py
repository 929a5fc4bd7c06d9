"""One end of a link: a transport, a session on it, and the jobs of both directions (SPEC.md sections 6 to 8).

The rules:

1. A `Link` outlives its transports. `run` serves one of them; whoever owns the link opens the next.
2. One task reads and one task writes. The reader waits for nothing but bytes. A third one greets.
3. No timer alone throws anything away. While *ready*, only an unanswered hello makes the reader
   give up an unfinished message, and then the session still stands: the jobs live on until their
   own deadlines, and the link is ready again when the peer is heard.
4. While the VM is stopped, silence means nothing.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

import trio

from .builtin import add_builtin
from .calls import ClientJobs
from .channel import ReadInto, Write, reading, write_now, writing
from .counters import Counters
from .errors import LinkBroken, NotReady
from .greeting import PATIENCE, Greeter
from .limits import PeerLimits, Settings
from .linkstate import LinkEvent, LinkState, Status
from .messages import Cancel, Message, Request, Response, StreamCredit, StreamData
from .observed import Observed
from .outbox import Outbox, Outgoing
from .reader import Drop, MessageReader
from .registry import Registry
from .serving import ServerJobs
from .session import Hello, Role, Session, arrival, establish
from .stream import LinkStream
from .streams import Streams
from .values import Struct, Value

_log = logging.getLogger("virtagent.link")

#: Seconds for which what was read is handled before other tasks have their turn. 2 MiB may hold a million
#: fragments, or checksums that take a millisecond each.
TURN = 0.005
#: Seconds without a byte after which an unfinished message is given up (greeting) or doubted (ready); it may
#: take twice as long.
STALL = 1.0

_TALKING = (LinkState.READY, LinkState.FROZEN)


class Link(Observed):
    """One end of a link.

    Args:
        role: host or guest.
        agent: name and version of this program, such as ``"va-host 0.1.0"``.
        registry: the methods offered to the peer; the built-in ones are added to it.
        boot_id: of this machine, for hello.
        settings: the limits of this end.
        crc: whether the channel may change bytes (a serial line), so that every message needs a checksum.
        on_status: called with each new status; must return at once.
        on_session: called with each new session and the one before it, if any; must return at once.

    Attributes:
        counters: what happened so far.
    """

    def __init__(
        self,
        role: Role,
        agent: str,
        registry: Registry,
        *,
        boot_id: str = "",
        settings: Settings | None = None,
        crc: bool = False,
        on_status: Callable[[Status], None] = lambda status: None,
        on_session: Callable[[Session, Session | None], None] = lambda session, previous: None,
    ) -> None:
        super().__init__(on_status)
        settings = settings or Settings()
        add_builtin(registry, agent)
        self.counters = Counters()
        limits = PeerLimits(requests=settings.execute_max + settings.queue_max)
        self._own = Hello(role, "0" * 16, agent, boot_id, limits=limits, crc=crc)
        self._on_session = on_session

        self._outbox = Outbox()
        self._calls = ClientJobs(settings, self._outbox, self.counters)
        self._streams = Streams(role, self._outbox, self.counters)
        self._serving = ServerJobs(registry, settings, self._outbox, self.counters, self._streams)
        self._greeter = Greeter(self, self._outbox, self._calls.next_tag, self.counters)
        self._reader = MessageReader()
        self._session: Session | None = None
        #: What is frozen in the guest, as its last hello said.
        self._peer_frozen = ""
        #: The last peer heard of, kept over the loss of a session: it tells a restart from a reboot.
        self._last_session: Session | None = None
        #: What ended the transport.
        self._loss: str | None = None
        #: Whether nothing has come since the timer for an unfinished message was set.
        self._quiet = False
        #: Why there can be no session with who spoke last on this transport.
        self._refusal: str | None = None

    # --- What the owner sees -------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The session that stands, if one does."""
        return self._session

    def figures(self) -> Struct:
        """Return counters and fill levels, for `va_status`."""
        return {
            **self._error_figures(),
            "refusal": self._refusal,
            **self.counters.to_value(),
            "client-jobs": self._calls.figures(),
            "server-jobs": self._serving.figures(),
            "streams": self._streams.figures(),
            "send-queue": len(self._outbox),
        }

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the peer.

        It has no deadline of its own: use `deadline.call_deadline`. Cancelling it is safe at any time.

        Raises:
            NotReady: there is no session; the message says in which state the link is, and why.
            SessionReset: the session ended while the call was in flight.
            RemoteFault: the peer answered with a fault.
            LocalProtocolError: a parameter cannot be carried.
            RemoteProtocolError: the answer makes no sense.
        """
        self._check_talking()
        return await self._calls.call(method, list(params))

    async def exchange(self, method: str, params: list[Value], on_taken: Callable[[], None]) -> bytes:
        """Call a method of the peer and return its answer's document, unread (`ClientJobs.exchange`).

        Raises:
            NotReady, SessionReset, LocalProtocolError: as `call`.
        """
        self._check_talking()
        return (await self._calls.exchange(method, params, on_taken)).body

    def _check_talking(self) -> None:
        if self._session is None or self._below not in _TALKING:
            raise NotReady(f"{self.status.state.value}: {self.status.reason}")

    def open_stream(self) -> LinkStream:
        """Return a new stream, to be named in a call that opens it at the other end.

        Raises:
            NotReady: there is no session, or there are too many streams.
        """
        return self._streams.open()

    def hint(self, event: LinkEvent, reason: str) -> None:
        """Tell what is known of the port from elsewhere: QEMU's events, a hang-up."""
        changed = self._change(event, reason)
        if changed and event in (LinkEvent.PORT_CLOSED, LinkEvent.PORT_REMOVED):
            self._end_session(reason)
        self._notify(changed)

    def set_frozen(self, reason: str) -> None:
        """Tell the peer, and this end's users, that file systems here are frozen, or ("") are not any
        more."""
        if reason == self._own.frozen:
            return
        self._own = replace(self._own, frozen=reason)
        self._greeter.tell(self._own)
        self._apply_frozen()

    def resume(self) -> None:
        """The VM runs again."""
        self._greeter.heard()
        super().resume()

    # --- The life of a transport ---------------------------------------------------------------------

    async def run(self, stream: trio.abc.Stream) -> None:
        """Serve one open transport until it fails or the caller cancels.

        The stream is not closed: it belongs to the caller.

        Raises:
            LinkBroken: the transport failed; the message says how. The link may be run on another.
        """
        self._own = self._own.at(secrets.token_hex(8))
        self._reader = MessageReader()
        self._outbox.crc = self._own.crc
        self._loss = self._refusal = None
        self._quiet = False
        try:
            async with trio.open_nursery() as nursery:
                self._calls.open(self._own.epoch)
                self._serving.open(nursery)
                self._outbox.open(write_now(stream), self._sent)
                self._greeter.open(self._own)
                nursery.start_soon(self._read, reading(stream), nursery.cancel_scope)
                nursery.start_soon(self._write, writing(stream), nursery.cancel_scope)
                nursery.start_soon(self._greeter.run)
        finally:
            reason = self._loss or "the link was closed"
            self._end_session(reason)
            self._serving.close()
            self._outbox.close()
            self._apply(LinkEvent.LOST, reason)
        raise LinkBroken(reason)

    async def _read(self, read_into: ReadInto, link_scope: trio.CancelScope) -> None:
        try:
            while True:
                with trio.CancelScope() as timer:
                    await self._receive(read_into, timer)
                    self._lost("the other end closed the channel", link_scope)
                    return
                await self._on_stall()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._lost(_how(error), link_scope)

    async def _receive(self, read_into: ReadInto, timer: trio.CancelScope) -> None:
        """Handle what comes until the other end closes, or *timer* finds nothing to have come.

        A timer for each read would be a quarter of what it costs to receive a chunk. So it is set when a
        message is unfinished, and left alone until it goes off.
        """
        while True:
            while not self._handle_some():
                await trio.lowlevel.checkpoint()
            if self._reader.incomplete and not self._quiet and timer.deadline == math.inf:
                self._quiet = True
                timer.deadline = trio.current_time() + STALL
            # A view that lived on, be it in a cancellation's traceback, would keep what it is of from being
            # cut to its length.
            with self._reader.space() as space:
                if not (count := await read_into(space)):
                    return
                self._reader.filled(space, count)
            self._quiet = False
            self.counters.bytes_in += count

    async def _on_stall(self) -> None:
        if not (self._quiet and self._reader.incomplete):
            return
        if self._below is LinkState.GREETING:
            self._quiet = False
            await self._abandon()
        else:
            # The timer is set again when something has come.
            self._greeter.doubt()

    async def _write(self, write: Write, link_scope: trio.CancelScope) -> None:
        while True:
            outgoing = await self._outbox.take()
            try:
                await write(outgoing.rest())
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._lost(_how(error), link_scope)
                return
            self._sent(outgoing)

    def _sent(self, outgoing: Outgoing) -> None:
        self.counters.bytes_out += outgoing.size
        self.counters.messages_out += 1
        outgoing.on_written()

    def _lost(self, reason: str, link_scope: trio.CancelScope) -> None:
        self._loss = self._loss or reason
        self.note_error(reason)
        link_scope.cancel()

    # --- Messages in ---------------------------------------------------------------------------------

    def _handle_some(self) -> bool:
        """Handle events for a turn; return whether that was all.

        The greeter may be at it as well as the reader (`_abandon`). Each event is handled as it is taken, so
        their order stays.
        """
        next_event = self._reader.next_event
        handled = 0
        turn_ends = 0.0
        with self._outbox:
            while (event := next_event()) is not None:
                if isinstance(event, Drop):
                    self._on_drop(event)
                else:
                    self._on_message(event)
                # The first ones are not timed: mostly there are no others, and an emulated clock is slow.
                handled += 1
                if handled == 2:
                    turn_ends = time.perf_counter() + TURN
                elif handled > 2 and time.perf_counter() > turn_ends:
                    return False
        return True

    async def _abandon(self) -> None:
        self._reader.give_up()
        while not self._handle_some():
            await trio.lowlevel.checkpoint()

    def _on_drop(self, drop: Drop) -> None:
        self.counters.drops[drop.cause.value] += 1
        self._greeter.doubt()

    def _on_message(self, message: Message) -> None:
        self.counters.messages_in += 1
        if message.session is None and isinstance(message, Response):
            self._greeter.on_response(message)
        elif message.session is None and isinstance(message, Request):
            if not self._greeter.on_request(message):
                self._stranger()
        elif self._session is None or message.session != self._session.id:
            self._stranger()
        else:
            self._heard_again()
            if isinstance(message, Request):
                self._streams.on_call()
                self._serving.on_request(message)
            elif isinstance(message, Response):
                self._streams.on_call()
                self._calls.on_response(message)
            elif isinstance(message, Cancel):
                self._serving.on_cancel(message)
            elif isinstance(message, StreamData):
                self._streams.on_data(message)
            elif isinstance(message, StreamCredit):
                self._streams.on_credit(message)
            else:
                self._streams.on_end(message)

    def _apply_frozen(self) -> None:
        if reason := self._own.frozen or self._peer_frozen:
            self._apply(LinkEvent.FROZEN, reason)
        else:
            self._apply(LinkEvent.THAWED, "the guest's file systems are thawed")

    def _stranger(self) -> None:
        """Something came from another session, or none: find out who is there."""
        self.counters.drops["session"] += 1
        self._greeter.doubt()

    def _heard_again(self) -> None:
        self._greeter.heard()
        if self._below is LinkState.GREETING:
            self._apply(LinkEvent.HELLO, "the other end is heard again, in the same session")
            self._apply_frozen()

    # --- Sessions: what the greeter tells (greeting.Greeted) -----------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a session stands."""
        return self._session is not None

    async def until_speaking(self) -> None:
        """Return when the port is open and the VM is not stopped."""
        await self.wait_for(lambda status: status.state is LinkState.GREETING or status.state in _TALKING)

    def meet(self, hello: Hello) -> None:
        """Enter the session with the peer of this hello.

        Raises:
            Fault: there can be none.
        """
        session = establish(self._own, hello)
        self._refusal = None
        self._peer_frozen = hello.frozen
        if self._session is not None and session.id == self._session.id:
            self._heard_again()
            self._apply_frozen()
            return
        previous = self._last_session
        reason = arrival(hello, previous.peer if previous else None)
        self._end_session(reason)
        self._session = self._last_session = session
        self.counters.sessions += 1
        self._outbox.crc = self._reader.crc_required = session.crc
        self._calls.begin(session.id, hello.limits)
        self._serving.begin(hello.limits)
        self._streams.begin(session.id, hello.limits, lossy=session.crc)
        _log.info("session %s: %s", session.id, reason)
        self._apply(LinkEvent.HELLO, reason)
        self._apply_frozen()
        self._on_session(session, previous)

    def refused(self, reason: str) -> None:
        """There can be no session with whoever is there."""
        self.note_error(reason)
        self._refusal = reason
        self._end_session(reason)
        self._apply(LinkEvent.LOST, reason)

    async def unanswered(self, ready: bool) -> None:
        """A hello was not answered: what is unfinished will never be finished."""
        if self.status.state is LinkState.PAUSED:
            return
        if ready:
            reason = f"no answer to a heartbeat within {PATIENCE:g} s"
            self.note_error(reason)
            self._apply(LinkEvent.LOST, reason)
        await self._abandon()

    def _end_session(self, reason: str) -> None:
        if self._session is not None:
            self._session = None
            self.counters.resets += 1
            self._outbox.clear()
        self._streams.end_session(f"the stream's session has ended: {reason}")
        self._calls.reset(f"the call's session has ended: {reason}")
        self._serving.reset()


def _how(error: Exception) -> str:
    return f"the channel failed: {error or type(error).__name__}"
