"""Every error of virtagent, and what its user must know about it.

The rules:

1. One root, `VirtagentError`. Nothing else leaves a public function on purpose.
2. Every error has a `kind`, one of the six words a user acts on (`FailureKind`). Exit codes
   and the text of QMP errors are derived from it, never chosen at the place that raises.
3. What crosses the wire is a fault: a code of `FaultCode` and a message (SPEC.md section 9).
   The code decides the kind, so both ends agree on it.

The tree::

    VirtagentError
    ├── ProtocolError
    │   ├── LocalProtocolError     we tried to send what the protocol does not allow
    │   └── RemoteProtocolError    the peer sent it
    ├── Fault                      raised by a handler here: the peer gets it as a fault
    ├── RemoteFault                the peer answered, with a fault
    ├── NotThere                   no such VM, service, device or port
    ├── NotReady                   it is there, and does not answer yet
    ├── Forbidden                  a policy or a permission says no
    ├── CallTimeout                the caller's deadline passed first
    ├── SessionReset               the other end restarted while a call was in flight
    └── LinkBroken                 the transport failed, or an internal error ended the link
"""

from __future__ import annotations

from enum import Enum, IntEnum


class FailureKind(Enum):
    """What a failure means to the person or script that met it."""

    #: The other end is alive and answered with an error.
    REFUSED = "refused"
    #: No such VM, service, device or port.
    NOT_THERE = "not there"
    #: It exists but cannot answer now: booting, paused, frozen, overloaded.
    NOT_READY = "not ready"
    #: A policy or a permission forbids it.
    FORBIDDEN = "forbidden"
    #: No answer within the caller's deadline.
    TIMED_OUT = "timed out"
    #: Something that worked has failed: reset, crash, protocol error.
    BROKEN = "broken"


#: Kind → exit status of `va-host` and `va-guest`. 0 is success, 2 is a usage error, as everywhere.
EXIT_STATUS = {
    FailureKind.REFUSED: 1,
    FailureKind.NOT_THERE: 3,
    FailureKind.NOT_READY: 4,
    FailureKind.FORBIDDEN: 5,
    FailureKind.TIMED_OUT: 6,
    FailureKind.BROKEN: 6,
}


class FaultCode(IntEnum):
    """Fault codes on the wire (SPEC.md section 9).

    The negative ones are those of the XML-RPC "specification for fault code
    interoperability"; the positive ones are virtagent's own.
    """

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603

    #: All execute slots are taken and the queue behind them is full.
    QUEUE_FULL = 1
    #: The policy of the answering end refuses the method.
    FORBIDDEN = 2
    #: The answering end cannot do it now (it is shutting down, frozen, …).
    NOT_READY = 3
    #: No common major version of the protocol.
    VERSION_MISMATCH = 4
    #: The result does not fit a message of the peer's limits.
    TOO_LARGE = 5
    #: Opening a file failed.
    OPEN_FAILED = 6
    #: Reading a file failed.
    READ_FAILED = 7
    #: The operation started and failed.
    FAILED = 8
    #: There is no such thing (a user's session, …) where there might be one.
    NOT_THERE = 9
    #: What would have answered failed meanwhile; whether it acted on the call is not known.
    BROKEN = 10
    #: What would have answered has not done so in the time that the call gave it.
    TIMED_OUT = 11


_KIND_OF_FAULT = {
    FaultCode.QUEUE_FULL: FailureKind.NOT_READY,
    FaultCode.NOT_READY: FailureKind.NOT_READY,
    FaultCode.FORBIDDEN: FailureKind.FORBIDDEN,
    FaultCode.INTERNAL_ERROR: FailureKind.BROKEN,
    FaultCode.VERSION_MISMATCH: FailureKind.BROKEN,
    FaultCode.NOT_THERE: FailureKind.NOT_THERE,
    FaultCode.BROKEN: FailureKind.BROKEN,
    FaultCode.TIMED_OUT: FailureKind.TIMED_OUT,
}

#: The code with which an error of each kind is passed on.
FAULT_OF_KIND = {
    FailureKind.REFUSED: FaultCode.FAILED,
    FailureKind.NOT_THERE: FaultCode.NOT_THERE,
    FailureKind.NOT_READY: FaultCode.NOT_READY,
    FailureKind.FORBIDDEN: FaultCode.FORBIDDEN,
    FailureKind.TIMED_OUT: FaultCode.TIMED_OUT,
    FailureKind.BROKEN: FaultCode.BROKEN,
}


class VirtagentError(Exception):
    """Root of the tree. `str(error)` is one sentence: the thing and, where there is one, the remedy."""

    kind: FailureKind = FailureKind.BROKEN


class ProtocolError(VirtagentError):
    """The rules of SPEC.md were broken; see the two subclasses for who did it."""


class LocalProtocolError(ProtocolError):
    """This end was asked to send something the protocol cannot carry. Nothing was sent."""

    kind = FailureKind.REFUSED


class RemoteProtocolError(ProtocolError):
    """The peer sent something illegal. The message was dropped and counted."""


class Fault(VirtagentError):
    """What a method handler raises to answer with a fault of its choice.

    Args:
        code: one of `FaultCode`.
        message: one sentence for the caller; it must be text that XML can carry or it is made so.
    """

    def __init__(self, code: FaultCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.kind = fault_kind(code)


class RemoteFault(VirtagentError):
    """The peer answered the call with a fault (SPEC.md section 9).

    Args:
        code: the fault code; any 32-bit integer, known to `FaultCode` or not.
        message: the peer's words. They are untrusted: make control characters visible before printing.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        # The one error whose kind is per instance: it depends on the code.
        self.kind = fault_kind(code)

    def __str__(self) -> str:
        return f"{self.message} (fault {self.code})"


class NotThere(VirtagentError):
    """No such VM, service, device or port."""

    kind = FailureKind.NOT_THERE


class NotReady(VirtagentError):
    """It is there and cannot answer now. The message says in which state it is, and why."""

    kind = FailureKind.NOT_READY


class Forbidden(VirtagentError):
    """A policy or a permission says no. The message names the rule or the file."""

    kind = FailureKind.FORBIDDEN


class CallTimeout(VirtagentError):
    """The caller's deadline passed first. The call was cancelled on both ends."""

    kind = FailureKind.TIMED_OUT


class SessionReset(VirtagentError):
    """The other end restarted, or the link was lost, while the call was in flight.

    Whether the other end acted on the call is not known.
    """


class LinkBroken(VirtagentError):
    """The transport failed, or an internal error ended the link."""


def fault_kind(code: int) -> FailureKind:
    """Return what a fault code means to the user; `REFUSED` for codes not known here."""
    try:
        return _KIND_OF_FAULT.get(FaultCode(code), FailureKind.REFUSED)
    except ValueError:
        return FailureKind.REFUSED
