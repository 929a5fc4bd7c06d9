"""Calls in: the server jobs of a link and their slots (SPEC.md section 8).

The rules:

1. A received call gets one of `execute_max` slots, or waits in a queue of `queue_max`, or is
   answered with QUEUE_FULL at once. Its slot is free when its reply is written: a peer that reads
   no replies gets no more work done.
2. Methods marked inline (ping, introspection) are answered outside the slots: four slow handlers
   must not make a live peer look dead. They and refusals share a bound of their own.
3. A handler that raises becomes a fault. It never takes the link down.
4. What the reader calls here (`on_request`, `on_cancel`) returns at once: handlers are tasks.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from . import logs, xmlrpc
from .counters import Counters
from .errors import Fault, FaultCode, LocalProtocolError, RemoteProtocolError
from .jobs import Job, ServerState
from .limits import INLINE_MAX, QUEUE_BYTES_MAX, PeerLimits, Settings
from .messages import Cancel, Request, Response
from .outbox import Outbox, Outgoing
from .registry import Call, Method, Registry
from .sendqueue import Lane
from .stream import CANCELLED, REFUSED, LinkStream
from .streams import Streams
from .values import Value

#: A ping as our own peers write it, and its answer (`builtin`).
_PING, _PONG = xmlrpc.encode_call("va.ping", []), xmlrpc.encode_result(None)

#: One line per received call: method, tag, outcome, time. Never its contents.
rpc_log = logging.getLogger("virtagent.rpc")
_log = logging.getLogger("virtagent.serving")


class ServerJob(Job[ServerState]):
    """A call that the peer makes."""

    def __init__(self, request: Request, method: Method, params: list[Value], call: Call, now: float) -> None:
        super().__init__(request.tag, ServerState.NEW)
        self.call = call
        self.session = request.session
        self.method = method
        self.params = params
        self.size = len(request.body)
        self.scope = trio.CancelScope()
        self.outgoing: Outgoing | None = None
        self.started = now


class ServerJobs:
    """The calls that the peer makes.

    Args:
        registry: the methods offered to the peer.
        settings: the limits of this end.
        outbox: where replies go.
        counters: what is counted.
        streams: the link's.
    """

    def __init__(
        self, registry: Registry, settings: Settings, outbox: Outbox, counters: Counters, streams: Streams
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._outbox = outbox
        self._counters = counters
        self._streams = streams
        self._peer = PeerLimits()
        self._nursery: trio.Nursery | None = None
        self._jobs: dict[str, ServerJob] = {}
        self._waiting: deque[ServerJob] = deque()
        self._waiting_bytes = 0
        self._executing = 0
        self._inline = 0
        #: Replies without a job that are not written yet.
        self._small: set[Outgoing] = set()

    def open(self, nursery: trio.Nursery) -> None:
        """A transport was opened: handlers run in *nursery*."""
        self._nursery = nursery

    def begin(self, peer: PeerLimits) -> None:
        """A session was established."""
        self._peer = peer

    def reset(self) -> None:
        """The session has ended: every job is cancelled, and no reply will be sent."""
        self._small.clear()
        # Those that wait go first, or the slots that become free would start them.
        for job in [*self._waiting, *self._jobs.values()]:
            self._cancel(job, "reset")

    def close(self) -> None:
        """The transport is gone, and with it the replies that were half written."""
        self.reset()
        for job in list(self._jobs.values()):
            self._end(job, "reset")

    def figures(self) -> dict[str, Value]:
        """Return how many calls execute (or owe a reply), wait for a slot, and may execute."""
        return {
            "executing": self._executing,
            "waiting": len(self._waiting),
            "slots": self._settings.execute_max,
        }

    def on_request(self, request: Request) -> None:
        """A request of this session was read."""
        if request.tag in self._jobs:
            # Whatever we answered would be taken for the answer to the first.
            self._counters.drops["duplicate-tag"] += 1
            return
        if request.body == _PING and not self._overloaded and self._registry.gate.passes("va.ping"):
            # All that makes a call out of a request takes several times as long as this.
            self._reply(request, _PONG)
            self._counters.served["ok"] += 1
            if logs.room():
                rpc_log.info("va.ping %s: ok", request.tag)
            return
        name = "?"
        try:
            name, params = xmlrpc.decode_call(request.body)
            method = self._registry.get(name)
            method.check(params)
        except RemoteProtocolError as error:
            self._refuse(request, name, Fault(FaultCode.PARSE_ERROR, str(error)))
            return
        except Fault as fault:
            self._refuse(request, name, fault)
            return
        call = Call(name, request.tag, link=self)
        self._admit(ServerJob(request, method, params, call, trio.current_time()), request)

    @property
    def _overloaded(self) -> bool:
        return self._inline + len(self._small) >= INLINE_MAX

    def _admit(self, job: ServerJob, request: Request) -> None:
        if job.method.inline or job.method.urgent:
            if self._overloaded:
                self._counters.drops["overload"] += 1
                return
            self._inline += 1
            self._start(job)
        elif self._executing < self._settings.execute_max:
            self._executing += 1
            self._start(job)
        elif (
            len(self._waiting) < self._settings.queue_max
            and self._waiting_bytes + job.size <= QUEUE_BYTES_MAX
        ):
            self._jobs[job.tag] = job
            self._waiting.append(job)
            self._waiting_bytes += job.size
        else:
            fault = Fault(
                FaultCode.QUEUE_FULL,
                f"queue full: {self._executing} calls execute and {len(self._waiting)} wait; try again later",
            )
            self._refuse(request, job.method.name, fault)

    def _start(self, job: ServerJob) -> None:
        assert self._nursery is not None
        self._jobs[job.tag] = job
        job.advance(ServerState.EXECUTING)
        if job.method.inline:
            self._answer(job)
        else:
            self._nursery.start_soon(self._execute, job, name=f"{job.method.name} {job.tag}")

    def _answer(self, job: ServerJob) -> None:
        """Run an inline handler here and now: it waits for nothing, and a task costs more than a ping."""
        handling = self._run_handler(job)
        with suppress(StopIteration):
            handling.send(None)
            # Still there, so it waits for something. It is told so, and becomes a fault.
            handling.throw(LocalProtocolError(f"{job.method.name} is inline, so its handler must not wait"))

    async def _execute(self, job: ServerJob) -> None:
        try:
            with job.scope:
                await self._run_handler(job)
        finally:
            # Cancelled, by the peer or with the whole link: no reply is owed any more.
            if job.state is ServerState.EXECUTING:
                job.call.drop_streams(CANCELLED)
                self._end(job, "cancelled")

    async def _run_handler(self, job: ServerJob) -> None:
        # The job lives until its reply is written, and its parameters may be megabytes.
        params, job.params = job.params, []
        try:
            result = await self._registry.invoke(job.call, job.method, params)
            body, outcome = self._encode_result(result), "ok"
        except Fault as fault:
            body, outcome = xmlrpc.encode_fault(fault.code, fault.message), f"fault {fault.code}"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the handler's, not the link's
            _log.exception("%s %s: internal error", job.method.name, job.tag)
            message = f"internal error in {job.method.name}: {type(error).__name__}: {error}"
            body, outcome = xmlrpc.encode_fault(FaultCode.INTERNAL_ERROR, message), "internal error"
        if outcome != "ok":
            job.call.drop_streams(REFUSED)
        if job.scope.cancel_called:
            return  # it came to its end all the same, but the reply is no longer wanted
        job.advance(ServerState.EXECUTED)
        job.advance(ServerState.REPLYING)
        job.outgoing = self._outbox.put(
            Response(job.tag, body, job.session),
            Lane.REPLY,
            on_taken=lambda: job.advance(ServerState.SENT),
            on_written=lambda: self._written(job, outcome),
        )

    def _encode_result(self, result: Value) -> bytes:
        body = xmlrpc.encode_result(result)
        if len(body) > self._peer.body:
            raise Fault(
                FaultCode.TOO_LARGE, f"the result has {len(body)} bytes, a message carries {self._peer.body}"
            )
        return body

    def _written(self, job: ServerJob, outcome: str) -> None:
        self._end(job, outcome)
        for follow_up in job.call.after_reply:
            self.spawn(f"{job.method.name} {job.tag}", follow_up)

    # --- What a call may ask for (registry.CallLink) -------------------------------------------------

    def accept(self, number: int) -> LinkStream:
        """As `Streams.accept`."""
        return self._streams.accept(number)

    def spawn(self, name: str, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task that may outlive its call; what it raises is logged."""
        assert self._nursery is not None
        self._nursery.start_soon(self._run_task, name, function, args, name=name)

    async def _run_task(
        self, name: str, function: Callable[..., Awaitable[object]], args: tuple[object, ...]
    ) -> None:
        try:
            await function(*args)
        except Exception:  # noqa: BLE001 - as above
            _log.exception("%s: failed after its reply", name)

    def _refuse(self, request: Request, name: str, fault: Fault) -> None:
        """Answer with a fault at once, outside the slots."""
        if self._overloaded:
            self._counters.drops["overload"] += 1
            return
        self._reply(request, xmlrpc.encode_fault(fault.code, fault.message))
        self._counters.served["fault"] += 1
        rpc_log.info("%s %s: fault %d (%s)", ascii(name[:80]), request.tag, fault.code, fault.code.name)

    def _reply(self, request: Request, body: bytes) -> None:
        """Answer without a job."""
        waiting = self._outbox.reply(request, body)
        if waiting is not None:
            self._small.add(waiting)
            waiting.on_written = partial(self._small.discard, waiting)

    def on_cancel(self, cancel: Cancel) -> None:
        """A cancellation of this session was read; one for an unknown tag came too late and means nothing."""
        job = self._jobs.get(cancel.tag)
        if job is not None:
            self._cancel(job, "cancelled")

    def _cancel(self, job: ServerJob, outcome: str) -> None:
        if job.state is ServerState.NEW:
            if job in self._waiting:
                self._waiting.remove(job)
                self._waiting_bytes -= job.size
            self._end(job, outcome)
        elif job.state is ServerState.EXECUTING:
            job.scope.cancel()
        elif job.state is ServerState.REPLYING and job.outgoing is not None:
            self._outbox.discard(job.outgoing)
            self._end(job, outcome)

    def _end(self, job: ServerJob, outcome: str) -> None:
        """Give back what a server job holds and start the next that waits."""
        if job.state is ServerState.DONE:
            return
        had_slot = job.state is not ServerState.NEW
        job.advance(ServerState.DONE)
        self._jobs.pop(job.tag, None)
        self._counters.served[outcome.split()[0]] += 1
        if logs.room():
            elapsed = 1000 * (trio.current_time() - job.started)
            rpc_log.info("%s %s: %s, %.1f ms", job.method.name, job.tag, outcome, elapsed)
        if job.method.inline or job.method.urgent:
            self._inline -= 1
        elif had_slot:
            self._executing -= 1
            self._start_waiting()

    def _start_waiting(self) -> None:
        if trio.current_effective_deadline() == -math.inf:
            return  # the link is going down: what waits is not to be begun
        if self._waiting and self._executing < self._settings.execute_max:
            following = self._waiting.popleft()
            self._waiting_bytes -= following.size
            self._executing += 1
            self._start(following)
