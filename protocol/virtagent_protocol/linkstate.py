"""The states of a link, as its user sees them (SPEC.md section 7).

::

    no-port → port-closed → greeting → ready ⇄ frozen
                                ▲        │
                  any loss ─────┴────────┘        paused lies over all of them

One table holds every transition that means something. What arrives in another state is a hint
that came late or twice (QEMU's events and the data travel on different sockets) and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class LinkState(Enum):
    """Where a link is in its life."""

    #: There is no port: no such device, or it was unplugged.
    NO_PORT = "no-port"
    #: The port is there; no agent has it open.
    PORT_CLOSED = "port-closed"
    #: The transport is open; no session yet, or a heartbeat went unanswered.
    GREETING = "greeting"
    #: A session stands.
    READY = "ready"
    #: A session stands; the guest's file systems are frozen, so only safe methods answer.
    FROZEN = "frozen"
    #: The VM itself is stopped. Nothing is declared dead meanwhile.
    PAUSED = "paused"


class LinkEvent(Enum):
    """What moves a link from one state to another."""

    #: The port is gone.
    PORT_REMOVED = "port-removed"
    #: The port exists, and nobody has opened the other end of it.
    PORT_CLOSED = "port-closed"
    #: The other end of the port was opened.
    PORT_OPENED = "port-opened"
    #: Hello was answered, or a valid one came in.
    HELLO = "hello"
    #: Transport failed, hello was refused, or a heartbeat went unanswered.
    LOST = "lost"
    FROZEN = "frozen"
    THAWED = "thawed"


_S, _E = LinkState, LinkEvent

TRANSITIONS: dict[LinkState, dict[LinkEvent, LinkState]] = {
    _S.NO_PORT: {
        _E.PORT_REMOVED: _S.NO_PORT,  # for another reason
        _E.PORT_CLOSED: _S.PORT_CLOSED,
        _E.PORT_OPENED: _S.GREETING,
        _E.HELLO: _S.READY,
    },
    _S.PORT_CLOSED: {
        _E.PORT_REMOVED: _S.NO_PORT,
        _E.PORT_OPENED: _S.GREETING,
        _E.HELLO: _S.READY,
    },
    _S.GREETING: {
        _E.PORT_REMOVED: _S.NO_PORT,
        _E.PORT_CLOSED: _S.PORT_CLOSED,
        _E.HELLO: _S.READY,
        _E.LOST: _S.GREETING,
    },
    _S.READY: {
        _E.HELLO: _S.READY,  # a new session took the place of the old one
        _E.PORT_REMOVED: _S.NO_PORT,
        _E.PORT_CLOSED: _S.PORT_CLOSED,
        _E.LOST: _S.GREETING,
        _E.FROZEN: _S.FROZEN,
    },
    _S.FROZEN: {
        _E.HELLO: _S.READY,
        _E.PORT_REMOVED: _S.NO_PORT,
        _E.PORT_CLOSED: _S.PORT_CLOSED,
        _E.LOST: _S.GREETING,
        _E.FROZEN: _S.FROZEN,  # anew, and nobody heard of the thaw between
        _E.THAWED: _S.READY,
    },
}


@dataclass(frozen=True)
class Status:
    """A state with its history in one line.

    Attributes:
        state: where the link is.
        reason: one sentence: how it came there and, where something is missing, what.
        since: `time.time()`-like seconds when it came there, as the caller of `apply` gave it.
    """

    state: LinkState
    reason: str
    since: float


class LinkStateMachine:
    """The state of one link: a position in the table, and the pause that lies over it.

    Attributes:
        below: the status without the pause.
    """

    def __init__(
        self, now: float, state: LinkState = LinkState.NO_PORT, reason: str = "not attached yet"
    ) -> None:
        self.below = Status(state, reason, now)
        self._pause: Status | None = None

    @property
    def status(self) -> Status:
        """What the user is told."""
        return self._pause or self.below

    def apply(self, event: LinkEvent, reason: str, now: float) -> bool:
        """Follow the table; return whether `status` changed in any way."""
        state = TRANSITIONS[self.below.state].get(event)
        if state is None or (state, reason) == (self.below.state, self.below.reason):
            return False
        since = self.below.since if state is self.below.state else now
        self.below = Status(state, reason, since)
        return self._pause is None

    def pause(self, reason: str, now: float) -> bool:
        """The VM was stopped, or it is known better why; return whether `status` changed."""
        before = self._pause
        if before is not None and before.reason == reason:
            return False
        self._pause = Status(LinkState.PAUSED, reason, before.since if before else now)
        return True

    def resume(self) -> bool:
        """The VM runs again; return whether `status` changed."""
        before, self._pause = self._pause, None
        return before is not None
