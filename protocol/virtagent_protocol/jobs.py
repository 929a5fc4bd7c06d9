"""The states of a job (SPEC.md section 8), and the one table of their transitions.

A *client job* is a request we send and the response we await; a *server job* is a request we
received and the response we owe. A transition that is not in the table is a bug in this program,
never the doing of a peer, so it raises.
"""

from __future__ import annotations

from enum import Enum
from typing import Generic, TypeVar

from .errors import LocalProtocolError


class _State(Enum):
    # A call looks its states up ten times; Enum's own hash is Python code, and costs as much as the look-up.
    __hash__ = object.__hash__


class ClientState(_State):
    """The life of a call that we make."""

    #: Waits for one of the send_max slots.
    NEW = "new"
    #: Has a slot; the request waits in the send queue.
    BUSY = "busy"
    #: The writer has taken the request: it will be on the wire whole, whatever happens to the job.
    SENT = "sent"
    #: The response is here.
    READ = "read"
    #: The caller has result, fault or error; the slot is free.
    DONE = "done"


class ServerState(_State):
    """The life of a call that the peer makes. The original called EXECUTING and REPLYING both BUSY."""

    #: Waits for one of the execute_max slots.
    NEW = "new"
    #: Has a slot; the handler runs.
    EXECUTING = "executing"
    #: The handler is done; its result is being made a message.
    EXECUTED = "executed"
    #: The reply waits in the send queue.
    REPLYING = "replying"
    #: The writer has taken the reply.
    SENT = "sent"
    #: The reply is written or will never be; the slot is free.
    DONE = "done"


_C, _S = ClientState, ServerState

#: DONE is reachable from everywhere: cancel, deadline and the end of a session work in every state.
TRANSITIONS: dict[Enum, frozenset[Enum]] = {
    _C.NEW: frozenset({_C.BUSY, _C.DONE}),
    _C.BUSY: frozenset({_C.SENT, _C.DONE}),
    _C.SENT: frozenset({_C.READ, _C.DONE}),
    _C.READ: frozenset({_C.DONE}),
    _C.DONE: frozenset(),
    _S.NEW: frozenset({_S.EXECUTING, _S.DONE}),
    _S.EXECUTING: frozenset({_S.EXECUTED, _S.DONE}),
    _S.EXECUTED: frozenset({_S.REPLYING, _S.DONE}),
    _S.REPLYING: frozenset({_S.SENT, _S.DONE}),
    _S.SENT: frozenset({_S.DONE}),
    _S.DONE: frozenset(),
}

AnyState = TypeVar("AnyState", ClientState, ServerState)


class Job(Generic[AnyState]):
    """What client and server jobs share: a tag and a state that only moves along the table."""

    def __init__(self, tag: str, state: AnyState) -> None:
        self.tag = tag
        self.state: AnyState = state

    def advance(self, state: AnyState) -> None:
        """Enter *state*.

        Raises:
            LocalProtocolError: the table has no such transition.
        """
        if state not in TRANSITIONS[self.state]:
            raise LocalProtocolError(f"job {self.tag}: no transition {self.state.name} → {state.name}")
        self.state = state
