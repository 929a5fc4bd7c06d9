"""The forwarder job: the host's calls of session agents, passed on, and what comes back.

The rules:

1. `va.session` is answered as soon as the request is checked. What the session agent answers comes on a
   stream of its own, so that one which does not answer holds none of the few places for calls, at neither end
   of the port.
2. The first byte on that stream says who speaks: `FROM_SESSION`, and the document that follows is the session
   agent's, passed on unread; or `FROM_AGENT`, and it is a fault of ours. So nobody's words can be taken for
   another's.
3. All that sessions send towards the host, answers and streams, goes in turns: one chunk at a time, round
   robin by session. Together they weigh on the port as one stream of the agent's own.
4. How much is under way is bounded (`load`), and each call has a deadline. The host gives one up by resetting
   the stream of its answer; the session agent is told.
5. Streams are passed on from when the session agent has been sent the request that names them, until they
   end.
"""

from __future__ import annotations

import logging
from functools import partial

import trio

from virtagent_protocol import xmlrpc
from virtagent_protocol.crossing import relay_streams
from virtagent_protocol.errors import (
    Fault,
    FaultCode,
    LocalProtocolError,
    NotReady,
    SessionReset,
)
from virtagent_protocol.registry import Call
from virtagent_protocol.stream import CANCELLED, REFUSED, LinkStream
from virtagent_protocol.values import Struct

from .load import Load
from .request import ForwardRequest
from .table import SESSIONS, UserSession
from .turns import Turns

log = logging.getLogger("virtagent.sessions")

#: What the stream of an answer begins with.
FROM_SESSION, FROM_AGENT = b"\0", b"\1"
#: Bytes of one turn: one chunk of a stream.
CHUNK = 64 * 1024

#: A stream of the port, and the one of the session's link that it is joined with.
Joint = tuple[LinkStream, LinkStream]


class Forwarder:
    """Passes calls on.

    Attributes:
        load: what is under way.
    """

    def __init__(self) -> None:
        self.load = Load()
        self._turns = Turns()

    def begin(self, call: Call, request: ForwardRequest) -> Struct:
        """Pass a request on, and return which session gets it: id, uid and user.

        Raises:
            Fault: there is no such session, too much is under way, or a stream is not one.
        """
        session = SESSIONS.find(request.session)
        size = len(xmlrpc.encode_call(request.method, request.params))
        self.load.begin(session, size, len(request.streams))
        joints: list[Joint] = []
        try:
            answer = call.accept(request.answer)
            for number in request.numbers():
                joints.append((call.accept(number), session.link.open_stream()))
        except BaseException as error:
            missing = len(request.streams) - len(joints)
            self._drop(session, joints, REFUSED)
            self.load.end_streams(session, missing)
            self.load.end_call(session, size)
            if isinstance(error, NotReady):
                raise _not_ready(session, error) from None
            raise
        call.spawn(self._serve, session, request, answer, joints, size, call.tag)
        return {"session": session.id, "uid": session.caller.uid, "user": session.caller.user}

    async def _serve(
        self,
        session: UserSession,
        request: ForwardRequest,
        answer: LinkStream,
        joints: list[Joint],
        size: int,
        tag: str,
    ) -> None:
        async with trio.open_nursery() as nursery:
            try:
                said = await self._answer(session, request, answer, joints, nursery)
                log.info("va.session %s: %s: %s: %s", tag, session, request.method[:80], _how(said))
                if said is None:
                    self._drop(session, joints, CANCELLED)
                    answer.reset(CANCELLED)
                else:
                    with self.load.result(session, len(said)) as fits:
                        await self._send(session, answer, said if fits else _too_much(session))
                        await answer.aclose()
            except trio.BrokenResourceError:
                pass  # the host does not want it any more
            except BaseException:
                self._drop(session, joints, CANCELLED)
                answer.reset(CANCELLED)
                raise
            finally:
                self.load.end_call(session, size)

    async def _answer(
        self,
        session: UserSession,
        request: ForwardRequest,
        answer: LinkStream,
        joints: list[Joint],
        nursery: trio.Nursery,
    ) -> bytes | None:
        """Return what the host is to read; None if it has given up."""
        said: bytes | None = None

        def join() -> None:
            while joints:
                nursery.start_soon(self._relay, session, *joints.pop())

        async with trio.open_nursery() as watching:
            watching.start_soon(_cancel_when_unwanted, answer, watching.cancel_scope)
            params = request.with_streams([ours.id for _, ours in joints])
            try:
                with trio.fail_after(request.deadline):
                    said = FROM_SESSION + await session.link.exchange(request.method, params, join)
            except (trio.TooSlowError, SessionReset, NotReady, LocalProtocolError) as error:
                fault = _fault(session, request, error)
                said = FROM_AGENT + xmlrpc.encode_fault(fault.code, fault.message)
                self._drop(session, joints, REFUSED)
            watching.cancel_scope.cancel()
        return said

    async def _relay(self, session: UserSession, theirs: LinkStream, ours: LinkStream) -> None:
        try:
            await relay_streams(theirs, ours, partial(self._send, session, theirs))
        finally:
            self.load.end_streams(session, 1)

    async def _send(self, session: UserSession, stream: LinkStream, data: bytes) -> None:
        """Send to the host, in turns. Raises what `LinkStream.send_all` does."""
        rest = memoryview(data)
        while rest:
            # Outside the turn: a stream that the host does not read must not keep it.
            await stream.wait_send_all_might_not_block()
            async with self._turns.turn(session):
                count = max(1, min(len(rest), CHUNK, stream.window.credit))
                await stream.send_all(rest[:count])
                # Else each would have as much waiting for the writer as a stream of the agent's own.
                await stream.wait_taken()
            rest = rest[count:]

    def _drop(self, session: UserSession, joints: list[Joint], reason: str) -> None:
        """Reset the streams that are not passed on yet."""
        while joints:
            for stream in joints.pop():
                stream.reset(reason)
            self.load.end_streams(session, 1)


async def _cancel_when_unwanted(answer: LinkStream, scope: trio.CancelScope) -> None:
    async def closed() -> None:
        await answer.wait_unwanted()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed)
        await answer.broken.wait()
        scope.cancel()


def _not_ready(session: UserSession, error: NotReady) -> Fault:
    return Fault(FaultCode.NOT_READY, f"the agent of {session} does not answer: {error}")


def _too_much(session: UserSession) -> bytes:
    words = f"the answer of {session} has no room: the host has not read what came before"
    return FROM_AGENT + xmlrpc.encode_fault(FaultCode.QUEUE_FULL, words)


def _fault(session: UserSession, request: ForwardRequest, error: Exception) -> Fault:
    method = request.method[:80]
    if isinstance(error, trio.TooSlowError):
        words = f"the agent of {session} has not answered {method} within {request.deadline:g} s"
        return Fault(FaultCode.TIMED_OUT, words)
    if isinstance(error, SessionReset):
        return Fault(
            FaultCode.BROKEN,
            f"{session} has ended while {method} was in flight; whether it acted on that is not known",
        )
    if isinstance(error, NotReady):
        return _not_ready(session, error)
    return Fault(FaultCode.INVALID_PARAMS, f"{session}: {error}")


def _how(said: bytes | None) -> str:
    if said is None:
        return "given up by the host"
    return "answered" if said.startswith(FROM_SESSION) else "not answered"
