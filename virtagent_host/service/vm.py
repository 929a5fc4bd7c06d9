"""One attached VM: the link to its guest's agent, and what the `va_*` commands need of it.

It knows nothing of sockets, QEMU or clients: the service feeds it, the bridge calls it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from virtagent_protocol import __version__
from virtagent_protocol.address import Address
from virtagent_protocol.errors import FaultCode, NotThere, RemoteFault
from virtagent_protocol.limits import Settings
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent, Status
from virtagent_protocol.machine import boot_id
from virtagent_protocol.registry import Registry
from virtagent_protocol.session import Role, Session
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Value, as_struct, member

from ..events.intake import GuestEvents
from ..forward.services import Services
from ..forward.table import Forwards
from ..options import Agent, SetClock
from ..qemu.devices import ONE_PORT, QGA_PORT, TWO_PORTS, PortSpec
from ..qga.link import QgaLink
from ..services.calls import ServiceCalls
from ..services.guard import ServicesGuard
from .guestlink import GuestLink

#: Emits an event to the bridge's clients: its name and its data.
Emit = Callable[[str, dict[str, object]], None]


def _nobody(name: str, data: dict[str, object]) -> None:
    pass


class Vm:
    """A VM by its name; implements `commands.VirtualMachine`.

    Args:
        name: as the user calls it.
        settings: the adjustable limits of each link.
        two_links: whether the guest's calls have a link of their own.
        agent: what runs in the guest.
        services: what programs in the guest may connect to, by name.
        guard: which services they may call; None: none.
        set_clock: whether the guest's clock is set when it runs again (`restore`).
        loaded: whether QEMU was started from a saved state.
        journal: the file in which the guest's events are kept; None: they go with this process.

    Attributes:
        forwards: the forwarded connections.
        events: what the guest told.
        link: the link to the guest's agent, over which our calls go; kept by the service.
        guest_link: a second one, for the guest's calls alone (`--ports two`), or None.
        emit: where VA_* events go; set by the service.
        detached: set when the service is to end.
        end: shuts the VM down by all means, as `shut_down` says; set by the service if it has a QEMU.
        last_boot: the boot id of the guest that has last said hello.
        facts: returns what the service wants `va_status` to tell besides: socket paths, ids.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        two_links: bool = False,
        agent: Agent = Agent.VIRTAGENT,
        services: Mapping[str, Address] = MappingProxyType({}),
        guard: ServicesGuard | None = None,
        set_clock: SetClock = SetClock.AFTER_RESTORE,
        loaded: bool = False,
        journal: Path | None = None,
    ) -> None:
        self.name = name
        self.set_clock, self.loaded = set_clock, loaded
        self.last_boot = ""
        self.forwards = Forwards(self)
        self.events = GuestEvents(name, journal, lambda event, data: self.emit(event, data))
        self.emit: Emit = _nobody
        self.detached = trio.Event()
        self.end: Callable[[float], Awaitable[dict[str, Any]]] | None = None
        self.facts: Callable[[], dict[str, object]] = dict
        make_link = partial(Link, Role.HOST, f"va-host {__version__}", boot_id=boot_id(), settings=settings)
        self._agent = agent
        for_guest = Registry()
        for_guest.include(self.forwards.methods())
        for_guest.include(self.events.methods())
        for_guest.include(Services(services).methods())
        for_guest.include(ServiceCalls(name, guard).methods())
        self.link: GuestLink = (
            QgaLink(on_status=self._on_status, on_session=self._on_session)
            if agent is Agent.QGA
            else make_link(
                Registry() if two_links else for_guest, on_status=self._on_status, on_session=self._on_session
            )
        )
        self.guest_link = make_link(for_guest) if two_links else None
        #: What the guest offers, of the last va.capabilities; None if not asked in this session.
        self._methods: frozenset[str] | None = None

    @property
    def ports(self) -> tuple[PortSpec, ...]:
        """The ports that the links run over, in the same order."""
        if self._agent is Agent.QGA:
            return QGA_PORT
        return ONE_PORT if self.guest_link is None else TWO_PORTS

    @property
    def links(self) -> list[GuestLink]:
        """All links, that for our calls first."""
        return [self.link] if self.guest_link is None else [self.link, self.guest_link]

    def hint(self, event: LinkEvent, reason: str) -> None:
        """Tell all links what is known of their ports (`Link.hint`)."""
        for link in self.links:
            link.hint(event, reason)

    def pause(self, reason: str) -> None:
        """The VM was stopped (`Link.pause`)."""
        for link in self.links:
            link.pause(reason)

    def resume(self) -> None:
        """The VM runs again (`Link.resume`)."""
        for link in self.links:
            link.resume()

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the guest that its capabilities list.

        Raises:
            VirtagentError: see `Link.call`. A method that is not listed is a METHOD_NOT_FOUND without a call.
        """
        if self._methods is None:
            await self.renegotiate()
        assert self._methods is not None
        # QEMU's agent is asked all the same: that link knows what it lacks, and says so.
        if method not in self._methods and self._agent is Agent.VIRTAGENT:
            session = self.link.session
            agent = session.peer.agent if session else "the guest's agent"
            raise RemoteFault(
                FaultCode.METHOD_NOT_FOUND,
                f"{agent} has no method '{method}'; va_capabilities lists what it has",
            )
        return await self.link.call(method, *params)

    @property
    def methods(self) -> frozenset[str]:
        """What the guest offers, as far as it was asked in this session."""
        return self._methods or frozenset()

    def open_stream(self) -> LinkStream:
        """Return a new stream of the link over which our calls go.

        Raises:
            VirtagentError: see `Link.open_stream`.
        """
        return self.link.open_stream()

    async def renegotiate(self) -> Value:
        """Call the guest's `va.capabilities`, keep its list of methods for this session, and return it."""
        answer = as_struct(await self.link.call("va.capabilities"), "the answer to va.capabilities")
        self._methods = frozenset(name for name in member(answer, "methods", list) if isinstance(name, str))
        return answer

    async def wait_for(self, state: str) -> None:
        """Return once the link is in this state."""
        await self.link.wait_for(lambda status: status.state.value == state)

    def status(self) -> dict[str, Any]:
        """Return name, state, reason, since (RFC 3339), the peer, the service's facts, and all figures."""
        session = self.link.session
        peer: dict[str, object] = {}
        if session is not None:
            peer = {"agent": session.peer.agent, "protocol": session.protocol, "session": session.id}
        return {
            "name": self.name,
            **_status(self.link.status),
            **peer,
            **self.facts(),
            **({} if self.guest_link is None else {"guest-link": _status(self.guest_link.status)}),
            "figures": self.link.figures(),
        }

    async def shut_down(self, deadline: float) -> dict[str, Any]:
        """Shut the VM down by the gentlest means that works, and return which did, and when.

        Raises:
            NotThere: the service has no QEMU, so it could do no more than ask the agent.
            CallTimeout: QEMU still runs after *deadline* seconds.
        """
        if self.end is None:
            raise NotThere(
                "va-host is attached without QMP: it can neither press the power button (ACPI) nor end QEMU. "
                "Attach with --qmp, or leave the deadline out and shut down by the agent alone"
            )
        return await self.end(deadline)

    async def detach(self) -> None:
        """Let the service end."""
        self.detached.set()

    def _on_status(self, status: Status) -> None:
        self.emit("VA_STATE_CHANGE", {"name": self.name, **_status(status)})

    def _on_session(self, session: Session, previous: Session | None) -> None:
        self._methods = None
        peer = session.peer
        self.last_boot = peer.boot_id
        self.emit(
            "VA_GUEST_HELLO",
            {
                "name": self.name,
                "agent": peer.agent,
                "protocol": session.protocol,
                "boot-id": peer.boot_id,
                "rebooted": previous is not None and previous.peer.boot_id != peer.boot_id,
            },
        )


def _status(status: Status) -> dict[str, object]:
    since = datetime.fromtimestamp(status.since, timezone.utc)
    return {
        "state": status.state.value,
        "reason": status.reason,
        "since": since.isoformat(timespec="milliseconds"),
    }
