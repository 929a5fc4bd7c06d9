"""All built-in events: the sources that are wanted, each on its own.

A source that cannot work here says so once in the log; that, or a bug in it, is nobody else's concern. While
nothing happens, nothing runs but the look at the file systems.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from virtagent_protocol.errors import LocalProtocolError
from virtagent_protocol.values import Struct

from ..log import EVENTS
from .settings import EventSettings
from .source import Emit, log


async def watch(settings: EventSettings, emit: Emit = EVENTS.emit) -> None:
    """Tell of what happens in the guest until cancelled.

    Args:
        settings: what is told.
        emit: puts an event.
    """

    def put(name: str, data: Struct) -> None:
        if settings.on(name):
            try:
                emit(name, data)
            except LocalProtocolError as error:
                # Somebody gave things very long names.
                log.warning("%s is not told: %s", name, error)

    async with trio.open_nursery() as nursery:
        if settings.on("oom-kill"):
            from .oom import watch_oom

            nursery.start_soon(_run, "oom-kill", watch_oom, put)
        if settings.on("addresses-changed"):
            from .addresses import watch_addresses

            nursery.start_soon(_run, "addresses-changed", watch_addresses, put)
        if settings.on("filesystem-filling", "filesystem-ok"):
            from .filesystems import FilesystemSource

            source = FilesystemSource(put, settings.threshold)
            nursery.start_soon(_run, "filesystem-filling, filesystem-ok", source.watch)
        nursery.start_soon(_run, "events of systemd and logind", _listen, settings, put)


async def _run(what: str, source: Callable[..., Awaitable[None]], *arguments: object) -> None:
    try:
        await source(*arguments)
    except OSError as error:
        log.warning("no %s: %s: %s", what, error.filename or "the kernel", error.strerror or error)
    except Exception:  # noqa: BLE001 - the agent is of use without this source
        log.exception("no %s", what)


async def _listen(settings: EventSettings, emit: Emit) -> None:
    # Nobody who has turned them off needs jeepney.
    from .boot import BootListener
    from .bus import Listener, listen
    from .shutdown import ShutdownListener
    from .units import UnitListener
    from .users import UserListener

    listeners: list[Listener] = []
    if settings.on("shutdown-begun"):
        # First: it is in a hurry.
        listeners.append(ShutdownListener(emit))
    if settings.on("boot-finished"):
        listeners.append(BootListener(emit))
    if settings.on("user-logged-in", "user-logged-out"):
        listeners.append(UserListener(emit))
    if settings.on("unit-failed"):
        listeners.append(UnitListener(emit))
    if listeners:
        await listen(listeners)
