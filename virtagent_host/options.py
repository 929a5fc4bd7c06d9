"""What the command line tells the service: plain values, so that neither has to import the other's tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from virtagent_protocol.address import Address
from virtagent_protocol.limits import Settings

from .runtime import RuntimeDir


class Ports(Enum):
    """How the link lies on virtserialports."""

    #: ``org.qemu.virtagent`` carries both directions.
    ONE = "one"
    #: ``org.qemu.virtagent-client`` and ``org.qemu.virtagent-server``: each direction's RPCs on its own.
    TWO = "two"


class Agent(Enum):
    """What runs in the guest."""

    #: va-guest, on virtagent's own ports.
    VIRTAGENT = "virtagent"
    #: QEMU's guest agent, on ``org.qemu.guest_agent.0``; or whatever speaks its wire.
    QGA = "qga"


class SetClock(Enum):
    """Whether the guest's clock is set to the host's."""

    NEVER = "never"
    #: When it runs again after a pause, sleep, restore or migration and its clock is wrong then.
    AFTER_RESTORE = "after-restore"


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What `attach` and `launch` have in common.

    Attributes:
        name: the VM's name, already checked.
        runtime: the runtime directory; the service creates it.
        ports: one port for both directions, or one for each.
        settings: the adjustable limits of the link.
        services: what programs in the guest may connect to, by name.
        services_dir: where the services are that they may call, with the policy; None: the usual place.
        set_clock: whether the guest's clock is set.
        verbose: how often ``-v`` was given.
    """

    name: str
    runtime: RuntimeDir
    ports: Ports = Ports.ONE
    settings: Settings = field(default_factory=Settings)
    services: Mapping[str, Address] = field(default_factory=dict)
    services_dir: str | None = None
    set_clock: SetClock = SetClock.AFTER_RESTORE
    verbose: int = 0


@dataclass(frozen=True, kw_only=True)
class AttachOptions(ServiceOptions):
    """`va-host attach`. Exactly one of *qmp* and *channel* is set.

    Attributes:
        qmp: QEMU's QMP socket.
        channel: a unix socket on which a virtagent channel already is (``--channel unix:PATH``).
        retry: with *qmp*: wait for a QEMU that is not there, now or any more.
        agent: what runs in the guest.
        qga: where to serve clients of QEMU's guest agent, if at all.
    """

    qmp: Path | None = None
    channel: Path | None = None
    retry: bool = False
    agent: Agent = Agent.VIRTAGENT
    qga: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(ServiceOptions):
    """`va-host launch`.

    Attributes:
        argv: QEMU's command line as given after ``--``, program first, not empty.
    """

    argv: tuple[str, ...]
