"""Calls out: the client jobs of a link and their slots (SPEC.md section 8).

The rules:

1. A call waits for one of `send_max` slots, first come first served, then for its response.
2. However it ends (result, fault, cancel, deadline, reset), its slot is free at that moment, and
   the next call that waits has it.
3. A call that is cancelled before the writer took its request was never made. Later, the peer is
   told with a DELETE; a response that comes all the same is dropped and counted.
4. What the reader calls here (`on_response`) returns at once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import trio

from . import xmlrpc
from .counters import Counters
from .errors import FailureKind, LocalProtocolError, RemoteFault, SessionReset
from .jobs import ClientState, Job
from .limits import PeerLimits, Settings
from .messages import Cancel, Request, Response
from .outbox import Outbox, Outgoing
from .sendqueue import Lane
from .values import Value

_log = logging.getLogger("virtagent.calls")


class ClientJob(Job[ClientState]):
    """A call that we make."""

    def __init__(self, tag: str, body: bytes, on_taken: Callable[[], None]) -> None:
        super().__init__(tag, ClientState.NEW)
        self.body = body
        #: Called when it is sure to go out.
        self.on_taken = on_taken
        self.outgoing: Outgoing | None = None
        #: Set when there is a response or an error.
        self.done = trio.Event()
        self.response: Response | None = None
        self.error: SessionReset | None = None

    def taken(self) -> None:
        """The writer has it."""
        self.advance(ClientState.SENT)
        self.on_taken()


def _nothing() -> None:
    pass


class ClientJobs:
    """The calls that this end makes.

    Args:
        settings: the limits of this end.
        outbox: where messages go.
        counters: what is counted.
    """

    def __init__(self, settings: Settings, outbox: Outbox, counters: Counters) -> None:
        self._settings = settings
        self._outbox = outbox
        self._counters = counters
        self._peer = PeerLimits()
        self._session = ""
        self._jobs: dict[str, ClientJob] = {}
        self._waiting: deque[ClientJob] = deque()
        self._in_flight = 0
        self._tag_prefix = ""
        self._tag_count = 0

    def open(self, epoch: str) -> None:
        """A transport was opened: tags begin with its epoch."""
        self._tag_prefix = epoch
        self._tag_count = 0

    def begin(self, session: str, peer: PeerLimits) -> None:
        """A session was established."""
        self._session = session
        self._peer = peer

    def reset(self, reason: str) -> None:
        """The session has ended: every outstanding call fails with `SessionReset`."""
        self._waiting.clear()
        for job in self._jobs.values():
            if not job.done.is_set():
                job.error = SessionReset(reason)
                job.done.set()

    def figures(self) -> dict[str, Value]:
        """Return how many calls are in flight, wait for a slot, and may be in flight."""
        return {"in-flight": self._in_flight, "waiting": len(self._waiting), "slots": self._slots}

    @property
    def _slots(self) -> int:
        return min(self._settings.send_max, self._peer.requests)

    def next_tag(self) -> str:
        """Return a tag that was not used on this transport before nor, the epoch being random, ever."""
        self._tag_count += 1
        # All of one length: a tag that lost or gained a character on the way is nobody's, not another call's.
        return f"{self._tag_prefix}-{self._tag_count:08x}"

    async def call(self, method: str, params: list[Value]) -> Value:
        """Call a method of the peer and return its result. A session must stand.

        Raises:
            RemoteFault: the peer answered with a fault.
            RemoteProtocolError: the peer answered with something else.
            LocalProtocolError: a parameter cannot be carried, or the call does not fit the peer's limits.
            SessionReset: the session ended first.
        """
        response = await self.exchange(method, params)
        try:
            return _outcome(response)
        except RemoteFault as fault:
            if fault.kind is FailureKind.FORBIDDEN:
                # The other end logs it by the same tag.
                _log.warning("%s %s: forbidden by the other end: %s", method, response.tag, fault)
            raise

    async def exchange(
        self, method: str, params: list[Value], on_taken: Callable[[], None] = _nothing
    ) -> Response:
        """Call a method of the peer and return its response as it came. A session must stand.

        Args:
            method, params: as for `call`.
            on_taken: called when the request is sure to go out, before all that is sent from then on.

        Raises:
            LocalProtocolError, SessionReset: as `call`.
        """
        body = xmlrpc.encode_call(method, params)
        if len(body) > self._peer.body:
            raise LocalProtocolError(
                f"the call of {method} has {len(body)} bytes, the other end takes {self._peer.body}"
            )
        job = ClientJob(self.next_tag(), body, on_taken)
        self._jobs[job.tag] = job
        self._waiting.append(job)
        try:
            with self._outbox:
                self._grant()
            await job.done.wait()
            if job.error is not None:
                raise job.error
            assert job.response is not None
            return job.response
        finally:
            self._retire(job)

    def on_response(self, response: Response) -> None:
        """A response of this session was read."""
        job = self._jobs.get(response.tag)
        # A job that the writer has not taken was never sent: nobody can honestly answer it.
        if job is None or job.state is not ClientState.SENT:
            late = job is None and response.tag.startswith(self._tag_prefix)
            self._counters.drops["late-reply" if late else "unknown-reply"] += 1
            return
        job.advance(ClientState.READ)
        job.response = response
        job.done.set()

    def _grant(self) -> None:
        while self._waiting and self._in_flight < self._slots:
            job = self._waiting.popleft()
            self._in_flight += 1
            job.advance(ClientState.BUSY)
            job.outgoing = self._outbox.put(
                Request(job.tag, job.body, self._session),
                Lane.REQUEST,
                on_taken=job.taken,
            )

    def _retire(self, job: ClientJob) -> None:
        """Give back what a job holds, in whatever state it is left."""
        del self._jobs[job.tag]
        if job.state is ClientState.NEW:
            if job in self._waiting:
                self._waiting.remove(job)
        else:
            self._in_flight -= 1
        if job.state is ClientState.BUSY and job.outgoing is not None:
            self._outbox.discard(job.outgoing)
        if not job.done.is_set() and job.state is ClientState.SENT:
            self._outbox.put(Cancel(job.tag, self._session), Lane.REPLY)
        self._counters.calls[_outcome_name(job)] += 1
        job.advance(ClientState.DONE)
        self._grant()


def _outcome_name(job: ClientJob) -> str:
    if job.error is not None:
        return "reset"
    return "cancelled" if job.response is None else "answered"


def _outcome(response: Response) -> Value:
    result, fault = xmlrpc.decode_response(response.body)
    if fault is not None:
        raise RemoteFault(*fault)
    return result
