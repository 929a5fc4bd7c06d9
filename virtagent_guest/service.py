"""The agent's service: opens the channel, runs the link on it, opens it again when it is lost.

The rules:

1. One `Link` for each port lives as long as the agent; transports come and go under it.
2. The service is ready, for systemd, as soon as a host could reach it.
3. A device that cannot be opened at start is an error to exit with: a person or systemd decides.
   One that was lost gets `REOPEN_TIME` to come back. A socket's other end is waited for without limit; and
   so is any channel if there is another way to the agent, for clients of QEMU's own (`qga`).
4. SIGTERM and SIGINT end everything at once, and that is success. SIGHUP loads the policy again.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import trio

from virtagent_protocol import __version__
from virtagent_protocol.errors import Forbidden, LinkBroken, VirtagentError
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.machine import boot_id
from virtagent_protocol.notify import notify
from virtagent_protocol.nursery import plain_nursery
from virtagent_protocol.session import Role

from .calls import topic as calls_topic
from .config import Config
from .ending import end_on_signal
from .events import notify as events_notify
from .events.deliver import Delivery
from .events.log import EVENTS
from .events.sources.watch import watch
from .extensions.table import EXTENSIONS
from .forward.host import HOST
from .forward.services import serve_forward
from .freeze.client import FREEZER
from .freeze.gate import FreezeGate
from .jobs.table import JOBS
from .local.server import Topic, serve_local
from .methods import all_methods
from .policy.guard import Guard
from .qga.channel import make_qga_transport
from .qga.server import serve_qga
from .sessions.gate import SessionGate
from .sessions.opening import session_topic
from .transports import Report, Transport, make_transport

log = logging.getLogger("virtagent.guest")

#: Seconds before the first and between the last attempts to open a channel again.
BACKOFF_MIN, BACKOFF_MAX = 0.1, 5.0
#: Seconds after which a lost device that has not come back will not. Then the agent exits, and systemd
#: starts it again if the device does: a process that waits for a removed port helps nobody.
REOPEN_TIME = 15.0

#: The file beside the local socket with the events that the host does not have yet.
UNSENT = "guest.unsent"
#: What programs of the guest are offered on the local socket.
LOCAL_TOPICS: tuple[Topic, ...] = (events_notify.topic, session_topic, calls_topic.topic)


async def serve(config: Config, guard: Guard) -> None:
    """Run the agent until a signal ends it.

    Args:
        config: its settings.
        guard: the policy, which SIGHUP loads again.

    Raises:
        NotThere, NotReady, Forbidden, LinkBroken: the channel cannot be opened (rule 3).
    """
    transports = [make_transport(channel) for channel in config.channel.each()]
    for_qga = [make_qga_transport(channel) for channel in config.qga.each()]
    patience = math.inf if for_qga else 0.0
    try:
        async with plain_nursery() as nursery:
            await nursery.start(_reload_on_signal, guard)
            await nursery.start(end_on_signal, nursery.cancel_scope)
            FREEZER.hooks = config.hooks
            EXTENSIONS.open(config.extensions)
            await nursery.start(FREEZER.run)
            await nursery.start(JOBS.run)
            if config.socket and await nursery.start(serve_local, config.socket, LOCAL_TOPICS):
                # Whoever has the socket has the events of the agent that had it before.
                EVENTS.keep(Path(config.socket).with_name(UNSENT))
            delivery = Delivery(EVENTS, HOST)
            nursery.start_soon(delivery.run)
            for transport in transports:
                # With two ports, the last one is for our own calls.
                ours = delivery if transport is transports[-1] else None
                nursery.start_soon(_serve_forever, transport, guard, patience, ours)
            nursery.start_soon(watch, config.events)
            for forward in config.forwards:
                nursery.start_soon(serve_forward, forward)
            for transport in for_qga:
                nursery.start_soon(serve_qga, transport, guard.gate("qga"))
    finally:
        for transport in [*transports, *for_qga]:
            transport.close()


async def _serve_forever(
    transport: Transport, guard: Guard, patience: float, for_our_calls: Delivery | None
) -> None:
    methods = all_methods()
    methods.gate = SessionGate(FreezeGate(guard.gate("host"), FREEZER))
    link = Link(
        Role.GUEST,
        f"va-guest {__version__}",
        methods,
        boot_id=boot_id(),
        crc=transport.lossy,
        on_status=lambda status: notify("", status=f"{status.state.value}: {status.reason}"),
        on_session=for_our_calls.session_began if for_our_calls else lambda session, previous: None,
    )
    if for_our_calls:
        HOST.link = link
    FREEZER.listeners.append(lambda: link.set_frozen(str(FREEZER.frozen or "")))

    def report(peer: bool, state: str) -> None:
        log.info("%s", state)
        notify("READY=1")
        link.hint(LinkEvent.PORT_OPENED if peer else LinkEvent.PORT_CLOSED, state)

    pauses = _backoff()
    patience = math.inf if transport.patient else patience
    while True:
        async with await _open(transport, report, pauses, patience) as stream:
            sessions = link.counters.sessions
            try:
                await link.run(stream)
            except LinkBroken as error:
                log.warning("%s: %s", transport.path, error)
                link.hint(LinkEvent.PORT_REMOVED, str(error))
        if link.counters.sessions > sessions:
            # It worked, so its loss is a new incident.
            pauses = _backoff()
        patience = max(patience, REOPEN_TIME)
        await trio.sleep(next(pauses))


async def _open(
    transport: Transport, report: Report, pauses: Iterator[float], patience: float
) -> trio.abc.Stream:
    """Open the transport, trying for *patience* seconds."""
    deadline = trio.current_time() + patience
    told = ""
    while True:
        try:
            return await transport.open(report)
        except Forbidden:
            raise
        except VirtagentError as error:
            pause = next(pauses)
            if trio.current_time() + pause > deadline:
                raise
            # Once, not at each attempt.
            if str(error) != told:
                told = str(error)
                log.warning("%s; trying again", told)
                notify("", status=told)
        await trio.sleep(pause)


def _backoff() -> Iterator[float]:
    pause = BACKOFF_MIN
    while True:
        yield pause
        pause = min(2 * pause, BACKOFF_MAX)


async def _reload_on_signal(
    guard: Guard, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            log.info("SIGHUP: loading the policy and the extensions again")
            guard.reload()
            EXTENSIONS.reload()
