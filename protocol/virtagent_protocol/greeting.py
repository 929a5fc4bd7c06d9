"""Hello, said and answered: who is at the other end, and is it still there (SPEC.md section 4)?

The rules:

1. Hello is repeated, ever more slowly, until it is answered. Each has a tag of its own; the answer to any
   of the last few counts, for the channel keeps their order.
2. It is the heartbeat as well. While the peer is heard, nothing is said; when it is silent, or its
   messages make no sense (*doubt*), hello asks. Doubt is not answered faster than DOUBT_INTERVAL.
3. One hello and one answer at a time wait to be sent. A peer that floods hellos and reads nothing costs
   one message. What it floods beyond HELLO_RATE is dropped before anybody looks into it: each hello may be
   a new session, a line in the log, and two events for every client of the host's bridge.
4. What an end says of itself may change while a session stands; then it says hello at once (`tell`).
5. What follows from a hello is the link's business: `meet`, `refused` and `unanswered` tell it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from . import xmlrpc
from .bucket import TokenBucket
from .counters import Counters
from .errors import Fault, FaultCode, ProtocolError
from .messages import Request, Response
from .outbox import Outbox, Outgoing
from .sendqueue import Lane
from .session import Hello

METHOD = "va.hello"

#: Seconds before an unanswered hello is repeated; doubled each time. More than the stall of a reader: a
#: message that swallowed a hello must have been given up before the next one comes.
RETRY_MIN = 2.0
RETRY_MAX = 16.0
#: Seconds of silence after which a hello asks whether the peer is still there, at most; at least half of it.
HEARTBEAT = 15.0
#: Seconds that a heartbeat may stay unanswered. A guest under TCG that boots other things may well take some.
PATIENCE = 10.0
#: Seconds between hellos that the peer's own messages provoke, at least.
DOUBT_INTERVAL = 1.0
#: Hellos and answers to hello that are heard: so many at once, then so many a second. A peer that keeps to
#: SPEC.md says one each second at most, and repeats what was not heard.
HELLO_BURST, HELLO_RATE = 32, 8.0
#: Hellos whose answers still count: those of a guest that was asked while it booted come all at once.
REMEMBERED = 8


class Greeted(Protocol):
    """What a greeter needs of its link."""

    def meet(self, hello: Hello) -> None:
        """The peer has said who it is. Raises Fault if there can be no session with it."""

    def refused(self, reason: str) -> None:
        """There can be no session, for this reason."""

    async def unanswered(self, ready: bool) -> None:
        """A hello was not answered in time; *ready*: it was a heartbeat."""

    async def until_speaking(self) -> None:
        """Return when somebody may hear us: the port is open and the VM is not stopped."""

    @property
    def ready(self) -> bool:
        """Whether a session stands."""


class Greeter:
    """Says hello and answers it, for one link.

    Args:
        link: who is told what follows.
        outbox: where messages go.
        next_tag: makes tags.
        counters: what is counted.
    """

    def __init__(
        self, link: Greeted, outbox: Outbox, next_tag: Callable[[], str], counters: Counters
    ) -> None:
        self._link = link
        self._outbox = outbox
        self._next_tag = next_tag
        self._counters = counters
        self._own: Hello | None = None
        #: Whether the peer was heard since this was last looked at. A clock read for each message would cost
        #: more than the rest of what is done here.
        self._heard = False
        self._doubt = trio.Event()
        self._answered = trio.Event()
        self._tags: deque[str] = deque(maxlen=REMEMBERED)
        self._bucket = TokenBucket(HELLO_BURST, HELLO_RATE)
        self._question: Outgoing | None = None
        self._news: Outgoing | None = None
        self._answer: Outgoing | None = None

    def heard(self) -> None:
        """The peer gave a sign of life, or could not have: the VM was stopped until now."""
        self._heard = True

    def doubt(self) -> None:
        """Something came that makes no sense in this session: ask who is there."""
        self._doubt.set()

    def tell(self, own: Hello) -> None:
        """This end has something new to say of itself; its epoch is the same."""
        self._own = own
        if self._link.ready:
            if self._news is not None:
                self._outbox.discard(self._news)
            self._news = self._say()

    def open(self, own: Hello) -> None:
        """A transport was opened.

        Args:
            own: what this end says of itself, with the transport's epoch.
        """
        self._own = own
        self._tags.clear()

    async def run(self) -> None:
        """Greet on an open transport, until cancelled."""
        retry = RETRY_MIN
        while True:
            await self._link.until_speaking()
            heartbeat = self._link.ready
            self._heard = False
            self._ask()
            with trio.move_on_after(PATIENCE if heartbeat else retry):
                await self._answered.wait()
            if self._answered.is_set() or (self._link.ready and self._heard):
                retry = RETRY_MIN
                await self._until_in_doubt()
            else:
                retry = min(2 * retry, RETRY_MAX)
                await self._link.unanswered(heartbeat)

    def on_request(self, request: Request) -> bool:
        """Take a request that belongs to no session: answer or drop it; False if it is no hello."""
        assert self._own is not None
        if self._flooded():
            return True
        try:
            name, params = xmlrpc.decode_call(request.body)
            if name != METHOD:
                return False
            if len(params) != 1:
                raise Fault(FaultCode.INVALID_PARAMS, f"{METHOD} takes one struct")
            self._meet(Hello.from_value(params[0]))
            body = xmlrpc.encode_result(self._own.to_value())
        except ProtocolError as error:
            body = xmlrpc.encode_fault(FaultCode.INVALID_REQUEST, str(error))
        except Fault as fault:
            self._link.refused(fault.message)
            body = xmlrpc.encode_fault(fault.code, fault.message)
        if self._answer is not None and self._outbox.discard(self._answer):
            self._counters.drops["overload"] += 1
        self._answer = self._outbox.put(Response(request.tag, body), Lane.REPLY)
        return True

    def on_response(self, response: Response) -> None:
        """Take a response that belongs to no session: the answer to a hello of ours, or nobody's."""
        if response.tag not in self._tags:
            self._counters.drops["late-reply"] += 1
            return
        if self._flooded():
            return
        try:
            value, fault = xmlrpc.decode_response(response.body)
            if fault is not None:
                self._link.refused(f"the other end refused our hello: {fault[1]}")
            else:
                self._meet(Hello.from_value(value))
        except ProtocolError as error:
            self._link.refused(f"the other end's hello makes no sense: {error}")
        except Fault as own_fault:
            self._link.refused(own_fault.message)

    def _flooded(self) -> bool:
        """Whether the peer says hello too often; if so, this one is counted as dropped."""
        if self._bucket.take(trio.current_time()):
            return False
        self._counters.drops["overload"] += 1
        return True

    def _meet(self, hello: Hello) -> None:
        self._link.meet(hello)
        self.heard()
        self._answered.set()

    def _ask(self) -> None:
        # The one before may still wait for a writer that is blocked: this one replaces it.
        if self._question is not None:
            self._outbox.discard(self._question)
        self._answered = trio.Event()
        self._doubt = trio.Event()
        self._question = self._say()

    def _say(self) -> Outgoing:
        assert self._own is not None
        tag = self._next_tag()
        self._tags.append(tag)
        request = Request(tag, xmlrpc.encode_call(METHOD, [self._own.to_value()]))
        return self._outbox.put(request, Lane.REPLY)

    async def _until_in_doubt(self) -> None:
        met_at = trio.current_time()
        heard = True
        while heard:
            with trio.move_on_after(HEARTBEAT / 2):
                await self._doubt.wait()
                await trio.sleep_until(met_at + DOUBT_INTERVAL)
                return
            heard, self._heard = self._heard, False
