"""A host, the guest's agent and agents of users' sessions, each with its link, over in-memory streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from tests.unit.linkpair import linked, make_link, ready, run_quietly
from virtagent_guest.local.caller import Caller
from virtagent_guest.methods import sessions
from virtagent_guest.sessions.table import SESSIONS, UserSession
from virtagent_host.events.intake import GuestEvents
from virtagent_host.forward.table import Forwards
from virtagent_host.sessions import InSession
from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.link import Link
from virtagent_protocol.registry import Call, Gate, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct, Value


class Machine:
    """A VM as handlers see it, without what nobody asks for here."""

    def __init__(self, link: Link) -> None:
        self.link = link

    async def call(self, method: str, *params: Value) -> Value:
        return await self.link.call(method, *params)

    def open_stream(self) -> LinkStream:
        return self.link.open_stream()

    @property
    def forwards(self) -> Forwards:
        raise AssertionError("nothing is forwarded here")

    @property
    def events(self) -> GuestEvents:
        raise AssertionError("nobody asks for them")

    async def renegotiate(self) -> Value:
        raise AssertionError("nobody asks for it")

    async def wait_for(self, state: str) -> None:
        raise AssertionError("nobody waits")

    def status(self) -> dict[str, Any]:
        raise AssertionError("nobody asks for it")

    async def shut_down(self, deadline: float) -> dict[str, Any]:
        raise AssertionError("nothing is shut down here")

    async def detach(self) -> None:
        raise AssertionError("nothing is detached here")


class Sessions:
    """The three. Made by `session_links`.

    Attributes:
        machine: the VM, whose calls go to the guest's agent.
        guest: that agent's link to the host.
    """

    def __init__(self, machine: Machine, guest: Link, nursery: trio.Nursery) -> None:
        self.machine = machine
        self.guest = guest
        self._nursery = nursery

    async def add(self, uid: int, methods: Registry, user: str = "") -> tuple[UserSession, trio.CancelScope]:
        """Let a session agent in; return it as the guest's agent knows it, and what ends its connection."""
        ours, theirs = make_link(Role.HOST), make_link(Role.GUEST, methods)
        ends = trio.testing.memory_stream_pair()
        scope = trio.CancelScope()
        session: list[UserSession] = []

        async def run() -> None:
            try:
                with scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(run_quietly, ours, ends[0])
                        nursery.start_soon(run_quietly, theirs, ends[1])
            finally:
                SESSIONS.close(session[0])

        self._nursery.start_soon(run)
        await ours.wait_for(ready)
        await theirs.wait_for(ready)
        caller = Caller(pid=0, uid=uid, gid=uid, user=user or f"user{uid}")
        session.append(SESSIONS.open(caller, ours, "test 1.0", {}))
        return session[0], scope

    def at(self, session: str | int) -> InSession:
        """Return the VM as a command with that session sees it."""
        return InSession(self.machine, session)


@asynccontextmanager
async def session_links(gate: Gate | None = None, methods: Registry | None = None) -> AsyncIterator[Sessions]:
    """Run a host and a guest's agent that knows of sessions."""
    offered = methods or Registry()
    offered.include(sessions.registry)
    if gate is not None:
        offered.gate = gate
    host, guest = make_link(Role.HOST), make_link(Role.GUEST, offered)
    async with linked(host, guest) as pair:
        yield Sessions(Machine(pair.host), pair.guest, pair.nursery)


class Played:
    """A session agent's methods, and what became of the calls."""

    def __init__(self) -> None:
        self.cancelled = trio.Event()
        self.begun = trio.Event()
        self.methods = Registry()
        for name in ("echo", "stuck", "fail", "upper"):
            self.methods.method(f"t.{name}")(getattr(self, name))

    async def echo(self, call: Call, value: Value) -> Value:
        """Return the parameter."""
        return value

    async def stuck(self, call: Call) -> None:
        """Never answer."""
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()

    async def fail(self, call: Call, stream: int) -> None:
        """Take up a stream, and fail."""
        call.accept(stream)
        raise Fault(FaultCode.INTERNAL_ERROR, "the guest's agent has lost its mind")

    async def upper(self, call: Call, about: Struct) -> str:
        """Send back in capitals what comes on a stream."""
        assert isinstance(about["stream"], int)
        stream = call.accept(about["stream"])

        async def work() -> None:
            async for data in stream:
                await stream.send_all(bytes(data).upper())
            await stream.aclose()

        call.spawn(work)
        return "begun"
