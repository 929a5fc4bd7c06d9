"""Every limit of the wire and of the job manager, each with its reason.

The limits of the wire are fixed by SPEC.md section 3. Those of `Settings` are each end's own
choice; an end tells them in its hello and the other end keeps to them (SPEC.md section 4).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .errors import RemoteProtocolError
from .values import Struct, member

KIB = 1024
MIB = 1024 * KIB

#: Bytes of one line of a header block, CRLF not counted (virtagent v7).
LINE_MAX = 1024
#: Bytes of a whole header block, with start-line and final CRLF CRLF (virtagent v7).
HEADER_MAX = 4096
#: Bytes of an RPC body (virtagent v7). It bounds what one message can make a reader hold.
BODY_MAX = 2 * MIB
#: Bytes of one chunk of stream data. An RPC never waits behind more than one of these, so it must not be
#: large; each costs a few turns of an event loop at both ends, so it must not be small
#: (docs/performance.md).
STREAM_BODY_MAX = 512 * KIB
#: The same on a channel that may change bytes. What is damaged is lost whole, and such channels are slow.
STREAM_BODY_MAX_LOSSY = 16 * KIB
#: Characters of a client tag: 64 in virtagent v7, which counted CR and LF.
TAG_MAX = 62
#: Values nested in values. Deep enough for any real answer, shallow enough for any recursive reader.
VALUE_DEPTH_MAX = 64
#: Elements of one XML-RPC document. Each costs its reader some 2 µs and 100 bytes, whatever its size on the
#: wire: 2 MiB of `<nil/>` would hold up everything else in the process for a second.
ELEMENTS_MAX = 64 * KIB
#: Bytes of one tag, comment or processing instruction: the parser holds it whole before it can be refused.
MARKUP_MAX = 4 * KIB
#: Characters of a fault's message: it ends in a status, an event, a log line or on a terminal.
FAULT_STRING_MAX = 2000
#: Versions in a hello. They are shown to users when none fits.
PROTOCOLS_MAX = 16

#: Client jobs in flight at a time. virtagent v7 had 1, so one slow call blocked all others.
SEND_MAX = 16
#: Server jobs executing at a time (virtagent v7 named this 4 and never enforced it).
EXECUTE_MAX = 4
#: Server jobs waiting behind those that execute; one more is answered with QUEUE_FULL.
QUEUE_MAX = 16
#: Bytes of request bodies in that queue: 16 bodies of 2 MiB would be more than a guest may cost its host.
QUEUE_BYTES_MAX = 8 * MIB
#: Small replies owed outside the execute slots (ping, introspection, QUEUE_FULL). A peer that sends
#: requests and reads no replies has what exceeds this dropped and counted.
INLINE_MAX = 64

#: Streams open at a time on a link. With their windows they bound what unread streams can hold: 256 MiB.
STREAMS_MAX = 256
#: Bytes of one stream that may be on their way or unread. A credit message for each half of it costs nearly
#: what a chunk does.
STREAM_WINDOW = 1024 * KIB
#: Bytes of the smallest window. It is granted back in halves, and nobody shall have to send crumbs.
WINDOW_MIN = 8 * KIB
#: One credit message grants at most this many bytes: far more than any window.
CREDIT_MAX = 2**31 - 1
#: Bytes of all streams that may be on their way: what a call can have to wait behind. A port swallows 4 MiB.
LINK_WINDOW = 1536 * KIB


@dataclass(frozen=True)
class Settings:
    """The adjustable limits of one end; any value of at least 1 works.

    Attributes:
        send_max: client jobs in flight at a time. Further callers wait.
        execute_max: server jobs executing at a time. A job's slot is free when its reply has been
            written, so a peer that reads no replies cannot make us do more work than this.
        queue_max: server jobs waiting for a slot.
    """

    send_max: int = SEND_MAX
    execute_max: int = EXECUTE_MAX
    queue_max: int = QUEUE_MAX

    def __post_init__(self) -> None:
        for name in ("send_max", "execute_max", "queue_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, it is {getattr(self, name)}")


@dataclass(frozen=True)
class PeerLimits:
    """What an end accepts, as its hello tells it (SPEC.md section 4).

    Attributes:
        requests: requests it holds at a time, executing and queued.
        body: bytes of the largest RPC body it reads.
        stream_body: bytes of the largest stream chunk it reads.
        streams: streams open at a time; 0: it knows none.
        stream_window: bytes of credit that a stream towards it begins with.
        link_window: bytes of credit that all streams towards it together begin with.
    """

    requests: int = EXECUTE_MAX + QUEUE_MAX
    body: int = BODY_MAX
    stream_body: int = STREAM_BODY_MAX
    streams: int = STREAMS_MAX
    stream_window: int = STREAM_WINDOW
    link_window: int = LINK_WINDOW

    def to_value(self) -> Struct:
        """Return the struct that stands in hello."""
        return {**asdict(self)}

    @classmethod
    def from_value(cls, value: Struct) -> PeerLimits:
        """Read the struct of a hello; values above our own limits are cut to them.

        Raises:
            RemoteProtocolError: a member is missing, of another type, or below 1.
        """
        limits = cls(
            requests=member(value, "requests", int),
            body=min(member(value, "body", int), BODY_MAX),
            stream_body=min(member(value, "stream_body", int), STREAM_BODY_MAX),
            # An end without these has no streams.
            streams=member(value, "streams", int, 0),
            stream_window=min(member(value, "stream_window", int, WINDOW_MIN), CREDIT_MAX),
            link_window=min(member(value, "link_window", int, WINDOW_MIN), CREDIT_MAX),
        )
        if min(limits.requests, limits.body, limits.stream_body) < 1 or limits.streams < 0:
            raise RemoteProtocolError("every limit in hello must be at least 1")
        if min(limits.stream_window, limits.link_window) < WINDOW_MIN:
            raise RemoteProtocolError(f"the windows in hello must be at least {WINDOW_MIN}")
        return limits
