"""The bridge: a QMP server on a unix socket, for any number of clients, in front of one QEMU.

1. A client meets QEMU's own monitor plus the commands given here (``va_*``). Arguments, results, errors and
   events of QEMU pass unchanged; only ``qmp_capabilities`` and ``query-commands`` are answered here.
2. Clients run side by side; each one's commands run in order (`bridge_client`).
3. No client can hold up QEMU, another client, or an event (`outbox`). One too many is told so and sent away.
4. The bridge outlives QEMU's monitor: when that is gone, or was never there, commands fail and say why.

QEMU's named file descriptors (``getfd``) belong to its monitor, so the bridge's clients share their names.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import trio

from virtagent_protocol import __version__
from virtagent_protocol.errors import NotReady, NotThere

from ..commands import Client
from ..events import GUEST_EVENT, GUEST_EVENTS_LOST
from ..qemu.errors import ErrorClass, QemuError, to_qmp
from ..qemu.qmp import Event, QmpConnection
from . import messages
from .listener import private_listener
from .messages import Request
from .session import BridgeClient

#: A command of ours: gets the members of "arguments" as they came, and the client; returns what JSON can
#: carry (None: the empty object), or raises VirtagentError. It is cancelled when its client is gone.
CommandHandler = Callable[[dict[str, Any], Client], Awaitable[object]]

#: Clients at a time. A client may hold a dozen file descriptors, and a process has 1024 by default: past
#: them, not even the link to the guest could be opened again.
CLIENTS_MAX = 64

log = logging.getLogger(__name__)

#: Events that are kept: a client which does not read them is not dropped, it may ask for them (`va_events`).
SPARING = (GUEST_EVENT, GUEST_EVENTS_LOST)

#: What the commands of the guest's agent begin with, and those that its extensions are.
GUEST_PREFIX, EXTENSION_PREFIX = "guest-", "va_x_"


class GuestCommands(Protocol):
    """The ``guest-*`` commands: which there are is the guest's business."""

    async def execute(self, name: str, arguments: Mapping[str, Any]) -> object:
        """Run one and return its result. Raises `VirtagentError`."""

    async def names(self) -> list[str]:
        """Return the names of those that there are now."""


class ExtensionCommands(Protocol):
    """The ``va_x_*`` commands: which there are is the guest's business, too."""

    async def execute(self, name: str, arguments: Mapping[str, Any], client: Client) -> object:
        """Run one and return its result. Raises `VirtagentError`."""

    def names(self) -> list[str]:
        """Return the names of those that the guest had when it was last asked."""


class Bridge:
    """A QMP server that adds commands to QEMU's.

    Args:
        commands: name → handler; they take precedence over QEMU's.
        qmp: the connection to QEMU, or None for a VM that is attached without one.
        log: where to say which clients came, left or were dropped.
        guest: the ``guest-*`` commands, if it has any.
        extensions: the ``va_x_*`` commands, if it has any.
    """

    def __init__(
        self,
        commands: Mapping[str, CommandHandler],
        qmp: QmpConnection | None,
        *,
        log: logging.Logger = log,
        guest: GuestCommands | None = None,
        extensions: ExtensionCommands | None = None,
    ) -> None:
        self._commands = commands
        self._qmp = qmp
        self._guest = guest
        self._extensions = extensions
        self._log = log
        self._clients: set[BridgeClient] = set()
        self._numbers = itertools.count(1)

    async def serve(
        self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve clients at *path* until cancelled; `started` is told when they can connect.

        Raises:
            CannotServe, NotThere, Forbidden: see `private_listener`.
        """
        unsubscribe = self._qmp.subscribe(self._emit) if self._qmp else lambda: None
        try:
            async with private_listener(path) as listener:
                task_status.started()
                await trio.serve_listeners(self._serve_client, [listener])
        finally:
            unsubscribe()

    @contextmanager
    def in_front_of(self, qmp: QmpConnection) -> Iterator[None]:
        """Be the bridge to this QEMU during the block, for one that was made without."""
        unsubscribe = qmp.subscribe(self._emit)
        self._qmp = qmp
        try:
            yield
        finally:
            self._qmp = None
            unsubscribe()

    def broadcast(self, name: str, data: Mapping[str, object]) -> None:
        """Emit an event of our own to every client that has negotiated. Never waits.

        Args:
            name: such as ``VA_STATE_CHANGE``.
            data: what JSON can carry.
        """
        self._emit(messages.event(name, data, time.time_ns()), sparing=name in SPARING)

    def _emit(self, event: Event, *, sparing: bool = False) -> None:
        message = messages.encode(event)
        for client in self._clients:
            client.put_event(message, sparing=sparing)

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        name = f"bridge client {next(self._numbers)}"
        if len(self._clients) >= CLIENTS_MAX:
            self._log.warning("%s is sent away: %d are connected", name, CLIENTS_MAX)
            await _send_away(stream)
            return
        client = BridgeClient(name, stream, self._greeting(), self._execute, self._log)
        self._clients.add(client)
        self._log.debug("%s has connected", name)
        try:
            await client.serve()
        except Exception:  # noqa: BLE001 - a bug in one client's session must not end the others'
            self._log.exception("%s: internal error", name)
        finally:
            self._clients.remove(client)
            self._log.debug("%s is gone", name)

    async def _execute(self, request: Request, client: Client) -> object:
        handler = self._commands.get(request.command)
        if handler is not None:
            if request.oob:
                raise QemuError(
                    ErrorClass.GENERIC_ERROR.value, f"The command {request.command} does not support OOB"
                )
            return await handler(request.arguments or {}, client)
        if request.command == "query-commands" and not request.arguments and not request.oob:
            guest = [] if self._guest is None else await self._guest.names()
            if self._extensions is not None:
                guest += self._extensions.names()
            ours = [{"name": name} for name in (*self._commands, *guest)]
            return ours + (await self._qmp.execute("query-commands") if self._qmp else [])
        if self._guest is not None and request.command.startswith(GUEST_PREFIX) and not request.oob:
            return await self._guest.execute(request.command, request.arguments or {})
        if self._extensions is not None and request.command.startswith(EXTENSION_PREFIX) and not request.oob:
            return await self._extensions.execute(request.command, request.arguments or {}, client)
        return await self._execute_in_qemu(request)

    async def _execute_in_qemu(self, request: Request) -> object:
        if self._qmp is None:
            if request.command.startswith("va_"):
                raise QemuError(
                    ErrorClass.COMMAND_NOT_FOUND.value, f"The command {request.command} has not been found"
                )
            raise NotThere(
                f"{request.command} is a command for QEMU, and there is none: it has ended, or this VM is "
                "attached without QMP; to use it, attach with --qmp SOCKET"
            )
        if request.fd is not None:
            return await self._qmp.execute_with_fd(request.fd, request.command, request.arguments)
        return await self._qmp.execute(request.command, request.arguments, oob=request.oob)

    def _greeting(self) -> dict[str, Any]:
        if self._qmp is not None:
            return self._qmp.greeting
        numbers = [int(n) for n in re.findall(r"\d+", __version__)[:3]] + [0, 0, 0]
        version = dict(zip(("major", "minor", "micro"), numbers, strict=False))
        package = f"virtagent {__version__}, without QEMU's monitor"
        return {"QMP": {"version": {"qemu": version, "package": package}, "capabilities": []}}


async def _send_away(stream: trio.SocketStream) -> None:
    crowded = NotReady(f"{CLIENTS_MAX} clients are connected already: end one of them, then try again")
    async with stream:
        # The buffer of a new connection takes this at once; a client that has left does not matter.
        with suppress(trio.BrokenResourceError):
            await stream.send_all(messages.failure(to_qmp(crowded), {}))
