"""Who speaks with whom: hello, epochs, versions (SPEC.md section 4).

The rules:

1. Each end draws a new epoch whenever it opens its transport. Host epoch and guest epoch are the
   session; its id stands in every message but hello and its answer.
2. A message of another session is never acted on. Bytes left over from before a restart, or
   hidden in a file that was being sent, therefore cannot be taken for a reply.
3. A hello with a new epoch ends the old session on the spot; with the known epoch it changes
   nothing, so it may be repeated at any time and serves as the heartbeat too.
4. The highest major version that both ends speak is used; the minor is informative.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum

from .errors import Fault, FaultCode, RemoteProtocolError
from .limits import PROTOCOLS_MAX, PeerLimits
from .values import Struct, Value, as_struct, member

#: What this implementation speaks, best first.
PROTOCOLS = ("1.0",)

_EPOCH = re.compile(r"[0-9a-f]{16}")
_VERSION = re.compile(r"([1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")
#: Bytes of each string in a hello: names and versions, not data.
_STRING_MAX = 256


class Role(Enum):
    """Which end of the link this is."""

    HOST = "host"
    GUEST = "guest"

    @property
    def other(self) -> Role:
        """The role of the peer."""
        return Role.GUEST if self is Role.HOST else Role.HOST


@dataclass(frozen=True)
class Hello:
    """What an end says of itself (the parameter and the answer of `va.hello`).

    Attributes:
        role: host or guest.
        epoch: 16 hex digits, drawn at random when the transport was opened.
        protocols: versions spoken, ``"major.minor"``.
        agent: name and version of the program, for people.
        boot_id: /proc/sys/kernel/random/boot_id of its machine, or "" where unknown. A new epoch with the
            same boot id is a restarted agent; with another, a rebooted machine.
        limits: what it accepts.
        crc: whether its channel may change bytes, so that every message of the session needs a checksum.
        frozen: what is frozen, in words; "": no file system is.
    """

    role: Role
    epoch: str
    agent: str
    boot_id: str = ""
    protocols: tuple[str, ...] = PROTOCOLS
    limits: PeerLimits = field(default_factory=PeerLimits)
    crc: bool = False
    frozen: str = ""

    def to_value(self) -> Struct:
        """Return the struct that goes over the wire."""
        return {
            "role": self.role.value,
            "epoch": self.epoch,
            "agent": self.agent,
            "boot_id": self.boot_id,
            "protocols": list(self.protocols),
            "limits": self.limits.to_value(),
            "crc": self.crc,
            **({"frozen": self.frozen} if self.frozen else {}),
        }

    def at(self, epoch: str) -> Hello:
        """Return the same with a new epoch: the transport was opened again."""
        return replace(self, epoch=epoch)

    @classmethod
    def from_value(cls, value: Value) -> Hello:
        """Read a received hello. Members not known here are ignored.

        Raises:
            RemoteProtocolError: a member is missing or not what SPEC.md section 4 says.
        """
        struct = as_struct(value, "hello")
        role = member(struct, "role", str)
        if role not in (Role.HOST.value, Role.GUEST.value):
            raise RemoteProtocolError(f"the role in hello must be host or guest, not {role[:40]!r}")
        epoch = member(struct, "epoch", str)
        if not _EPOCH.fullmatch(epoch):
            raise RemoteProtocolError("the epoch in hello must be 16 hex digits")
        protocols = member(struct, "protocols", list)
        versions = tuple(v for v in protocols if isinstance(v, str) and _VERSION.fullmatch(v))
        if not versions or len(versions) != len(protocols) or len(versions) > PROTOCOLS_MAX:
            raise RemoteProtocolError(
                f"protocols in hello must be a list of 1 to {PROTOCOLS_MAX} 'major.minor'"
            )
        return cls(
            role=Role(role),
            epoch=epoch,
            agent=member(struct, "agent", str)[:_STRING_MAX],
            boot_id=member(struct, "boot_id", str, "")[:_STRING_MAX],
            protocols=versions,
            limits=PeerLimits.from_value(member(struct, "limits", dict)),
            crc=member(struct, "crc", bool, False),
            frozen=member(struct, "frozen", str, "")[:_STRING_MAX],
        )


@dataclass(frozen=True)
class Session:
    """Two epochs that know each other.

    Attributes:
        id: what stands in X-Virtagent-Session: the host's epoch, then the guest's.
        peer: the other end's hello.
        protocol: the version in use.
        crc: whether its messages carry checksums: one of the ends asked for it.
    """

    id: str
    peer: Hello
    protocol: str
    crc: bool


def establish(own: Hello, peer: Hello) -> Session:
    """Return the session of two hellos.

    Raises:
        Fault: INVALID_REQUEST if both have the same role, VERSION_MISMATCH if they share no major version;
            the words fit the user of either end.
    """
    if peer.role is own.role:
        raise Fault(
            FaultCode.INVALID_REQUEST,
            f"both ends of this link are a virtagent {own.role.value} ({own.agent}; {peer.agent})",
        )
    host, guest = (own, peer) if own.role is Role.HOST else (peer, own)
    return Session(f"{host.epoch}-{guest.epoch}", peer, _common_version(own, peer), crc=own.crc or peer.crc)


def arrival(peer: Hello, before: Hello | None) -> str:
    """Return how a peer came to say hello, in words."""
    if before is None:
        return f"{peer.agent} said hello"
    if peer.boot_id != before.boot_id:
        return f"the {peer.role.value} was rebooted, {peer.agent} said hello"
    return f"the {peer.role.value}'s agent was restarted or reconnected, {peer.agent} said hello"


def _common_version(own: Hello, peer: Hello) -> str:
    ours = {_major(v): v for v in own.protocols}
    theirs = {_major(v): v for v in peer.protocols}
    common = ours.keys() & theirs.keys()
    if not common:
        raise Fault(
            FaultCode.VERSION_MISMATCH,
            f"no common protocol version: {own.agent} ({own.role.value}) speaks {', '.join(own.protocols)}; "
            f"{peer.agent} ({peer.role.value}) speaks {', '.join(peer.protocols)}; update the older one",
        )
    best = max(common)
    return min(ours[best], theirs[best], key=_minor)


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _minor(version: str) -> int:
    return int(version.partition(".")[2])
