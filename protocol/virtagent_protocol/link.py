"""One end of a link: a transport, a session on it, and the jobs of both directions (SPEC.md sections 6 to 8).

The rules:

1. A `Link` outlives its transports. `run` serves one of them; whoever owns the link opens the next.
2. One task reads and one task writes. The reader waits for nothing but bytes.
3. A third task greets. Its hello is the heartbeat as well: while the peer is heard, it is idle;
   when the peer is silent, or its messages make no sense, it says hello, and an answer with
   the known epochs proves that nothing is wrong.
4. No timer alone throws anything away. While *ready*, only an unanswered hello makes the reader
   give up an unfinished message, and then the session still stands: the jobs live on until their
   own deadlines, and the link is ready again when the peer answers.
5. While the VM is stopped, silence means nothing.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable

import trio

from . import xmlrpc
from .builtin import add_builtin
from .calls import ClientJobs
from .counters import Counters
from .errors import Fault, FaultCode, LinkBroken, NotReady, ProtocolError
from .limits import PeerLimits, Settings
from .linkstate import LinkEvent, LinkState, LinkStateMachine, Status
from .messages import Cancel, Message, Request, Response
from .outbox import Outbox, Outgoing
from .reader import Drop, Event, MessageReader
from .registry import Registry
from .sendqueue import Lane
from .serving import ServerJobs
from .session import Hello, Role, Session, establish
from .values import Struct, Value

_log = logging.getLogger("virtagent.link")

#: Bytes read at a time: one full stream chunk with its head.
READ_SIZE = 65536 + 4096
#: Seconds without a byte after which an unfinished message is given up (greeting) or doubted (ready).
STALL = 1.0
#: Seconds before an unanswered hello is repeated; doubled each time. More than STALL: a message that
#: swallowed a hello must have been given up before the next one comes.
HELLO_RETRY_MIN = 2.0
HELLO_RETRY_MAX = 16.0
#: Seconds of silence after which a hello asks whether the peer is still there.
HEARTBEAT = 15.0
#: Seconds that a heartbeat may stay unanswered. A guest under TCG that boots other things may well take some.
HEARTBEAT_PATIENCE = 10.0
#: Seconds between hellos that the peer's own messages provoke, at least.
DOUBT_INTERVAL = 1.0


class Link:
    """One end of a link.

    Args:
        role: host or guest.
        agent: name and version of this program, such as ``"va-host 0.1.0"``.
        registry: the methods offered to the peer; the built-in ones are added to it.
        boot_id: of this machine, for hello.
        settings: the limits of this end.
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
        on_status: Callable[[Status], None] = lambda status: None,
        on_session: Callable[[Session, Session | None], None] = lambda session, previous: None,
    ) -> None:
        settings = settings or Settings()
        add_builtin(registry, agent)
        self.counters = Counters()
        self._own = Hello(
            role,
            "0" * 16,
            agent,
            boot_id,
            limits=PeerLimits(requests=settings.execute_max + settings.queue_max),
        )
        self._on_status = on_status
        self._on_session = on_session
        self._machine = LinkStateMachine(time.time())
        self._status_changed = trio.Event()

        self._outbox = Outbox()
        self._calls = ClientJobs(settings, self._outbox, self.counters)
        self._serving = ServerJobs(registry, settings, self._outbox, self.counters)
        self._reader = MessageReader()
        self._session: Session | None = None
        #: The last peer heard of, kept over the loss of a session: it tells a restart from a reboot.
        self._last_session: Session | None = None
        self._loss: str | None = None

        self._heard_at = -math.inf
        self._doubt = trio.Event()
        self._hello_tags: deque[str] = deque(maxlen=8)
        self._hello_out: Outgoing | None = None
        self._hello_answer_out: Outgoing | None = None
        self._hello_done = trio.Event()

    # --- What the owner sees -------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """State, reason and since when."""
        return self._machine.status

    @property
    def session(self) -> Session | None:
        """The session that stands, if one does."""
        return self._session

    def figures(self) -> Struct:
        """Return counters and fill levels, for `va_status`."""
        return {
            **self.counters.to_value(),
            "client-jobs": self._calls.figures(),
            "server-jobs": self._serving.figures(),
            "send-queue": len(self._outbox),
        }

    async def wait_for(self, wanted: Callable[[Status], bool]) -> Status:
        """Wait until a status is wanted, and return it."""
        while not wanted(self.status):
            await self._status_changed.wait()
        return self.status

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
        below = self._machine.below
        if self._session is None or below.state not in (LinkState.READY, LinkState.FROZEN):
            raise NotReady(f"{self.status.state.value}: {self.status.reason}")
        return await self._calls.call(method, list(params))

    def hint(self, event: LinkEvent, reason: str) -> None:
        """Tell what is known of the port from elsewhere: QEMU's events, a hang-up."""
        changed = self._machine.apply(event, reason, time.time())
        if changed and event in (LinkEvent.PORT_CLOSED, LinkEvent.PORT_REMOVED):
            self._end_session(reason)
        self._notify(changed)

    def pause(self, reason: str) -> None:
        """The VM was stopped: nothing is declared dead until `resume`."""
        self._notify(self._machine.pause(reason, time.time()))

    def resume(self) -> None:
        """The VM runs again."""
        self._heard_at = trio.current_time()
        self._notify(self._machine.resume())

    def _notify(self, changed: bool) -> None:
        if changed:
            self._status_changed.set()
            self._status_changed = trio.Event()
            self._on_status(self.status)

    # --- The life of a transport ---------------------------------------------------------------------

    async def run(self, stream: trio.abc.Stream) -> None:
        """Serve one open transport until it fails or the caller cancels.

        The stream is not closed: it belongs to the caller.

        Raises:
            LinkBroken: the transport failed; the message says how. The link may be run on another.
        """
        self._own = self._own.at(secrets.token_hex(8))
        self._reader = MessageReader()
        self._loss = None
        self._hello_tags.clear()
        try:
            async with trio.open_nursery() as nursery:
                self._calls.open(self._own.epoch)
                self._serving.open(nursery)
                nursery.start_soon(self._read, stream, nursery.cancel_scope)
                nursery.start_soon(self._write, stream, nursery.cancel_scope)
                nursery.start_soon(self._greet)
        finally:
            reason = self._loss or "the link was closed"
            self._end_session(reason)
            self._serving.close()
            self._outbox.clear()
            self._notify(self._machine.apply(LinkEvent.LOST, reason, time.time()))
        raise LinkBroken(reason)

    async def _read(self, stream: trio.abc.Stream, link_scope: trio.CancelScope) -> None:
        while True:
            stall = STALL if self._reader.incomplete else math.inf
            try:
                with trio.move_on_after(stall) as patience:
                    data = await stream.receive_some(READ_SIZE)
                if patience.cancelled_caught:
                    if self._machine.below.state is LinkState.GREETING:
                        self._handle(self._reader.abandon())
                        continue
                    self._doubt.set()
                    data = await stream.receive_some(READ_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                data, self._loss = b"", f"the channel failed: {error or type(error).__name__}"
            if not data:
                self._loss = self._loss or "the other end closed the channel"
                link_scope.cancel()
                return
            self.counters.bytes_in += len(data)
            self._handle(self._reader.feed(data))

    async def _write(self, stream: trio.abc.Stream, link_scope: trio.CancelScope) -> None:
        while True:
            outgoing = await self._outbox.take()
            try:
                await stream.send_all(outgoing.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._loss = self._loss or f"the channel failed: {error or type(error).__name__}"
                link_scope.cancel()
                return
            self.counters.bytes_out += len(outgoing.data)
            self.counters.messages_out += 1
            outgoing.on_written()

    # --- Messages in ---------------------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Drop):
                self.counters.drops[event.cause.value] += 1
                self._doubt.set()
            else:
                self.counters.messages_in += 1
                self._dispatch(event)

    def _dispatch(self, message: Message) -> None:
        if message.session is None and isinstance(message, Request):
            self._on_hello(message)
        elif message.session is None and isinstance(message, Response):
            self._on_hello_answer(message)
        elif self._session is None or message.session != self._session.id:
            self._stranger()
        else:
            self._heard_at = trio.current_time()
            if self._machine.below.state is LinkState.GREETING:
                self._notify(
                    self._machine.apply(LinkEvent.HELLO, "the other end is heard again", time.time())
                )
            if isinstance(message, Request):
                self._serving.on_request(message)
            elif isinstance(message, Response):
                self._calls.on_response(message)
            elif isinstance(message, Cancel):
                self._serving.on_cancel(message)
            else:
                # This version opens no streams; data for one that is not open is a benign race.
                self.counters.drops["stream"] += 1

    def _stranger(self) -> None:
        """Something came from another session, or none: find out who is there."""
        self.counters.drops["session"] += 1
        self._doubt.set()

    # --- Hello ---------------------------------------------------------------------------------------

    def _on_hello(self, request: Request) -> None:
        try:
            name, params = xmlrpc.decode_call(request.body)
            if name != "va.hello":
                self._stranger()
                return
            if len(params) != 1:
                raise Fault(FaultCode.INVALID_PARAMS, "va.hello takes one struct")
            self._meet(Hello.from_value(params[0]))
            body = xmlrpc.encode_result(self._own.to_value())
        except ProtocolError as error:
            body = xmlrpc.encode_fault(FaultCode.INVALID_REQUEST, str(error))
        except Fault as fault:
            self._refused(fault.message)
            body = xmlrpc.encode_fault(fault.code, fault.message)
        # One answer at a time waits: a peer that floods hellos and reads nothing costs one message.
        if self._hello_answer_out is not None and self._outbox.discard(self._hello_answer_out):
            self.counters.drops["overload"] += 1
        self._hello_answer_out = self._outbox.put(Response(request.tag, body), Lane.REPLY)

    def _on_hello_answer(self, response: Response) -> None:
        if response.tag not in self._hello_tags:
            self.counters.drops["late-reply"] += 1
            return
        try:
            value, fault = xmlrpc.decode_response(response.body)
            if fault is not None:
                self._refused(f"the other end refused our hello: {fault[1]}")
                return
            self._meet(Hello.from_value(value))
        except ProtocolError as error:
            self._refused(f"the other end's hello makes no sense: {error}")
        except Fault as own_fault:
            self._refused(own_fault.message)

    def _refused(self, reason: str) -> None:
        self._end_session(reason)
        self._notify(self._machine.apply(LinkEvent.LOST, reason, time.time()))

    def _meet(self, hello: Hello) -> None:
        """Enter the session with the peer of this hello. Raises Fault if there can be none."""
        session = establish(self._own, hello)
        previous = self._last_session
        self._heard_at = trio.current_time()
        self._hello_done.set()
        if self._session is None or session.id != self._session.id:
            if previous is None:
                reason = f"{hello.agent} said hello"
            elif hello.boot_id != previous.peer.boot_id:
                reason = f"the {hello.role.value} was rebooted, {hello.agent} said hello"
            else:
                reason = (
                    f"the {hello.role.value}'s agent was restarted or reconnected, {hello.agent} said hello"
                )
            self._end_session(reason)
            self._session = self._last_session = session
            self.counters.sessions += 1
            self._calls.begin(session.id, hello.limits)
            self._serving.begin(hello.limits)
            _log.info("session %s: %s", session.id, reason)
            self._notify(self._machine.apply(LinkEvent.HELLO, reason, time.time()))
            self._on_session(session, previous)
        elif self._machine.below.state is LinkState.GREETING:
            reason = f"{hello.agent} answers again, in the same session"
            self._notify(self._machine.apply(LinkEvent.HELLO, reason, time.time()))

    def _end_session(self, reason: str) -> None:
        if self._session is not None:
            self._session = None
            self.counters.resets += 1
            self._outbox.clear()
        self._calls.reset(f"the call's session has ended: {reason}")
        self._serving.reset()

    async def _greet(self) -> None:
        retry = HELLO_RETRY_MIN
        while True:
            await self.wait_for(_speaking)
            asked_at = trio.current_time()
            ready = self._session is not None
            self._say_hello()
            with trio.move_on_after(HEARTBEAT_PATIENCE if ready else retry):
                await self._hello_done.wait()
            if self._hello_done.is_set() or (self._session is not None and self._heard_at >= asked_at):
                retry = HELLO_RETRY_MIN
                await self._until_in_doubt()
            elif self._machine.status.state is not LinkState.PAUSED:
                retry = min(2 * retry, HELLO_RETRY_MAX)
                self._unanswered()

    def _say_hello(self) -> None:
        # The one before may still wait for a writer that is blocked: this one replaces it.
        if self._hello_out is not None:
            self._outbox.discard(self._hello_out)
        tag = self._calls.next_tag()
        self._hello_tags.append(tag)
        self._hello_done = trio.Event()
        self._doubt = trio.Event()
        body = xmlrpc.encode_call("va.hello", [self._own.to_value()])
        self._hello_out = self._outbox.put(Request(tag, body), Lane.REPLY)

    def _unanswered(self) -> None:
        if self._machine.below.state in (LinkState.READY, LinkState.FROZEN):
            reason = f"no answer to a heartbeat within {HEARTBEAT_PATIENCE:g} s"
            self._notify(self._machine.apply(LinkEvent.LOST, reason, time.time()))
        self._handle(self._reader.abandon())

    async def _until_in_doubt(self) -> None:
        """Return when the peer has been silent for HEARTBEAT seconds, or makes no sense."""
        met_at = trio.current_time()
        while trio.current_time() < self._heard_at + HEARTBEAT:
            with trio.move_on_at(self._heard_at + HEARTBEAT):
                await self._doubt.wait()
                # However much nonsense comes, hellos are not provoked faster than this.
                await trio.sleep_until(met_at + DOUBT_INTERVAL)
                return


def _speaking(status: Status) -> bool:
    return status.state in (LinkState.GREETING, LinkState.READY, LinkState.FROZEN)
