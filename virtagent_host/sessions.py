"""`va_sessions`, and the argument ``session`` of all commands that call the guest.

A command with ``session`` runs with `InSession` in place of the VM: its calls go to the agent of a user's
session, by way of the guest's own (SPEC.md section 11). So handlers know nothing of sessions, and a command
that is new has them.

What a session's agent answers is a user's word, not the guest's: an error of its begins with the session's
name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from virtagent_protocol.errors import (
    LinkBroken,
    RemoteFault,
    RemoteProtocolError,
)
from virtagent_protocol.limits import BODY_MAX
from virtagent_protocol.values import Struct, Value, as_struct, member

from .command import Argument, Arguments, Client, Command, VirtualMachine

if TYPE_CHECKING:
    from virtagent_protocol.stream import LinkStream

    from .events.intake import GuestEvents
    from .forward.table import Forwards

#: Seconds to wait for the list.
TIMEOUT = 5.0
#: Seconds beyond our own deadline after which the guest gives a session up by itself.
_GRACE = 2.0
#: Seconds that the guest lets a session have at most.
_DEADLINE_MAX = 3600.0
#: What the stream of an answer begins with: who speaks.
_FROM_SESSION, _FROM_AGENT = b"\0", b"\1"
#: Claims that are shown.
_CLAIMS = ("agent", "type", "display", "desktop")

SESSION = Argument(
    "session",
    "string or integer",
    "a user's session that is asked in place of the guest's agent: its id, or the user's uid",
    optional=True,
)


def with_session(command: Command) -> Command:
    """Return a command with the argument ``session``, if it calls the guest's agent."""
    return replace(command, arguments=(*command.arguments, SESSION)) if command.session else command


class StreamNumber(int):
    """The number of a stream that is named in a call, among other numbers."""


class InSession:
    """A VM, as `command.VirtualMachine`, whose calls go to the agent of a user's session.

    Args:
        vm: the VM itself.
        session: an id or a uid.
    """

    def __init__(self, vm: VirtualMachine, session: str | int) -> None:
        self._vm = vm
        self._session = str(session)

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the session's agent.

        Raises:
            VirtagentError: the guest's, or (its text begins with the session) the session's.
        """
        answer = self._vm.open_stream()
        try:
            streams: list[Value] = [list(place) for place in _places(list(params))]
            request: Struct = {
                "session": self._session,
                "method": method,
                "params": list(params),
                "streams": streams,
                "answer": answer.id,
                **_deadline(),
            }
            told = as_struct(await self._vm.call("va.session", request), "the answer to va.session")
            who = f"session {member(told, 'session', str)}"
            document = await _read(answer)
        except BaseException:
            answer.reset("cancelled")
            raise
        await answer.aclose()
        return _outcome(document, who)

    def open_stream(self) -> LinkStream:
        """Return a new stream, which is passed on to the session by the call that names it."""
        stream = self._vm.open_stream()
        stream.id = StreamNumber(stream.id)
        return stream

    async def renegotiate(self) -> Value:
        """Call the session's `va.capabilities`."""
        return await self.call("va.capabilities")

    @property
    def forwards(self) -> Forwards:
        """Those of the VM."""
        return self._vm.forwards

    @property
    def events(self) -> GuestEvents:
        """Those of the VM."""
        return self._vm.events

    async def wait_for(self, state: str) -> None:
        """As the VM's."""
        await self._vm.wait_for(state)

    def status(self) -> dict[str, Any]:
        """As the VM's."""
        return self._vm.status()

    async def shut_down(self, deadline: float) -> dict[str, Any]:
        """As the VM's."""
        return await self._vm.shut_down(deadline)

    async def detach(self) -> None:
        """As the VM's."""
        await self._vm.detach()


def _places(value: Value, path: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """Yield where numbers of streams stand in a call's parameters."""
    if isinstance(value, StreamNumber):
        yield path
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _places(item, (*path, index))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _places(item, (*path, name))


def _deadline() -> Struct:
    """Return when whoever waits for the answer will have given up, with some time for that to be told."""
    import trio

    left = trio.current_effective_deadline() - trio.current_time()
    return {"deadline": max(left, 0.0) + _GRACE} if left + _GRACE < _DEADLINE_MAX else {}


async def _read(answer: LinkStream) -> bytes:
    import trio

    document = bytearray()
    try:
        async for part in answer:
            document += part
            if len(document) > BODY_MAX + 1:
                raise RemoteProtocolError(f"a session answered with more than {BODY_MAX} bytes")
    except trio.BrokenResourceError as error:
        raise LinkBroken(f"the answer of the session was lost: {error}") from error
    return bytes(document)


def _outcome(document: bytes, who: str) -> Value:
    from virtagent_protocol import xmlrpc

    speaker, document = document[:1], document[1:]
    if speaker not in (_FROM_SESSION, _FROM_AGENT):
        raise RemoteProtocolError("the answer of a session does not say who speaks")
    if speaker == _FROM_AGENT:
        who = ""
    try:
        result, fault = xmlrpc.decode_response(document)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(f"{who}: {error}" if who else str(error)) from None
    if fault is not None:
        raise RemoteFault(fault[0], f"{who}: {fault[1]}" if who else fault[1])
    return result


async def sessions(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_sessions`."""
    answer = await vm.call("va.sessions")
    if not isinstance(answer, list):
        raise RemoteProtocolError("the answer to va.sessions must be an array")
    return {"sessions": [_described(as_struct(one, "a session")) for one in answer]}


def _described(session: Struct) -> dict[str, Any]:
    claimed = member(session, "claimed", dict, {})
    return {
        **{name: member(session, name, str) for name in ("id", "user", "state")},
        **{name: member(session, name, int) for name in ("uid", "pid")},
        "since": member(session, "since", float),
        "claimed": {name: member(claimed, name, str) for name in _CLAIMS if name in claimed},
    }


COMMANDS = (
    Command(
        "va_sessions",
        "List the agents of users' sessions in the guest, any of which a command can be given as 'session'.",
        "{sessions: [{id, uid, user, pid, since, state, claimed: {agent, type, display, desktop}}…]}",
        "va_sessions",
        sessions,
        (Argument("timeout", "number", "seconds to wait", optional=True, default=TIMEOUT, minimum=0),),
        session=False,
    ),
)
