"""One client of the bridge: a QMP session as QEMU's own monitor would run it.

1. Three tasks: one reads and parses, one executes, one sends. Commands are executed one at a time and
   answered in order, as QMP has it, except those sent with ``exec-oob``, which overtake.
2. A client that sends more than it lets us answer is not read any further; one that does not read its events
   is dropped. So it costs bounded memory and nobody else's time.
3. File descriptors are kept by `fds`; a name that begins with ``va_`` never reaches QEMU.
4. When a client has closed its sending half, as socat does at its end of input, what it asked for is still
   executed and answered. When it is gone altogether, what is being executed for it is cancelled.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import trio

from virtagent_protocol.channel import write_now
from virtagent_protocol.errors import VirtagentError

from ..qemu.errors import ErrorClass, QemuError, to_qmp
from .fds import ANCILLARY_SIZE, PREFIX, FdStore
from .jsonstream import JsonSplitter, ParseError
from .messages import Refusal, Request, encode, event, failure, parse_request, success
from .outbox import Outbox

#: Executes one command of a client and returns what goes into "return"; raises VirtagentError.
Execute = Callable[[Request, "BridgeClient"], Awaitable[object]]
Item = Request | Refusal

#: Bytes read at a time. Each may be a bracket that takes 2 µs to look at, while nobody else is served.
RECEIVE_SIZE = 16 * 1024

#: Commands read ahead of the one that is executed; QEMU's own queue holds as many.
REQUESTS_MAX = 8

#: Out-of-band commands of one client at a time. They are short by definition; the next one waits.
OOB_MAX = 4

#: The commands that take one.
FD_COMMANDS = frozenset({"getfd", "add-fd"})

GENERIC_ERROR = ErrorClass.GENERIC_ERROR.value
COMMAND_NOT_FOUND = ErrorClass.COMMAND_NOT_FOUND.value


class BridgeClient:
    """The session with one client.

    Args:
        name: what the log calls it.
        stream: the connection; closed at the end of `serve`.
        greeting: the QMP greeting to send; its capabilities are those the client may enable.
        execute: runs a command, after negotiation.
    """

    def __init__(
        self,
        name: str,
        stream: trio.SocketStream,
        greeting: dict[str, Any],
        execute: Execute,
        log: logging.Logger,
    ) -> None:
        self.name = name
        self.negotiated = False
        self._stream = stream
        self._greeting = greeting
        self._run_command = execute
        self._log = log
        self._oob = False
        self._oob_slots = trio.Semaphore(OOB_MAX)
        self._outbox = Outbox(write_now(stream))
        self._scope = trio.CancelScope()
        self._fds = FdStore()
        #: Where commands are executed, and what they leave behind runs on.
        self._working: trio.Nursery | None = None

    def put_event(self, message: bytes, *, sparing: bool = False) -> None:
        """Send an event, if the client has negotiated; drop the client if it does not read. Never waits.

        Args:
            message: the event's bytes.
            sparing: leave it out rather than drop the client (`Outbox.put_sparing`).
        """
        if not self.negotiated or self._scope.cancel_called:
            return
        if sparing:
            self._outbox.put_sparing(message)
        elif not self._outbox.put_event(message):
            self._log.warning("%s is dropped: it does not read its events", self.name)
            self._scope.cancel()

    async def serve(self) -> None:
        """Run the session until the client leaves or is dropped, and close the connection."""
        try:
            with self._scope:
                await self._serve()
        finally:
            self._fds.close()
            await trio.aclose_forcefully(self._stream)

    async def _serve(self) -> None:
        self._outbox.put_reply(encode(self._greeting))
        async with trio.open_nursery() as sending:
            sending.start_soon(self._send)
            to_executor, requests = trio.open_memory_channel[Item](REQUESTS_MAX)
            async with trio.open_nursery() as working:
                self._working = working
                working.start_soon(self._execute_in_turn, requests)
                async with to_executor:
                    await self._read(to_executor, working)
            self._outbox.close()

    async def _send(self) -> None:
        try:
            await self._outbox.send_all(self._stream.send_all)
        except trio.BrokenResourceError:
            # Nobody is left to be answered, so what is still being executed for this client ends, too.
            self._scope.cancel()

    async def _read(self, to_executor: trio.MemorySendChannel[Item], working: trio.Nursery) -> None:
        splitter = JsonSplitter()
        while data := await self._receive():
            for found in splitter.feed(data):
                if isinstance(found, ParseError):
                    await to_executor.send(Refusal(QemuError(GENERIC_ERROR, found.desc), {}))
                    continue
                item = parse_request(found.value)
                if isinstance(item, Request):
                    if item.oob and self._oob:
                        await self._oob_slots.acquire()
                        working.start_soon(self._execute_oob, item)
                        continue
                    if item.command in FD_COMMANDS:
                        item = replace(item, fd=self._fds.claim())
                await to_executor.send(item)
        if self._is_gone():
            self._scope.cancel()

    def _is_gone(self) -> bool:
        """Whether the client has closed both halves; the end of what it sends does not tell."""
        poll = select.poll()
        poll.register(self._stream.socket, 0)  # hanging up is reported even to those who ask for nothing
        return any(happened & select.POLLHUP for _, happened in poll.poll(0))

    async def _execute_in_turn(self, requests: trio.MemoryReceiveChannel[Item]) -> None:
        async for item in requests:
            await self._answer(item)

    async def _execute_oob(self, request: Request) -> None:
        try:
            await self._answer(request)
        finally:
            self._oob_slots.release()

    async def _answer(self, item: Item) -> None:
        await self._outbox.room_for_replies()
        self._outbox.put_reply(await self._reply(item))

    async def _reply(self, item: Item) -> bytes:
        if isinstance(item, Refusal):
            return failure(item.error, item.id)
        try:
            return success(await self._execute(item), item.id)
        except VirtagentError as error:
            return failure(to_qmp(error), item.id)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not cost the client its session
            self._log.exception("%s: internal error in %s", self.name, item.command)
            broken = f"broken: internal error in {item.command}: {type(error).__name__}: {error}"
            return failure(QemuError(GENERIC_ERROR, broken), item.id)

    async def _execute(self, request: Request) -> object:
        if request.oob and not self._oob:
            raise QemuError(GENERIC_ERROR, "QMP input member 'exec-oob' is unexpected")
        if request.command == "qmp_capabilities":
            return self._negotiate(request.arguments or {})
        if not self.negotiated:
            raise QemuError(COMMAND_NOT_FOUND, "Expecting capabilities negotiation with 'qmp_capabilities'")
        try:
            fdname = (request.arguments or {}).get("fdname")
            if isinstance(fdname, str) and fdname.startswith(PREFIX):
                if request.command == "getfd":
                    self._fds.name(fdname, request.fd)
                    return None
                if request.command == "closefd":
                    os.close(self._fds.take(fdname))
                    return None
            return await self._run_command(request, self)
        finally:
            if request.fd is not None:
                self._fds.release(request.fd)

    def _negotiate(self, arguments: dict[str, Any]) -> object:
        if self.negotiated:
            raise QemuError(
                COMMAND_NOT_FOUND, "Capabilities negotiation is already complete, command ignored"
            )
        enable = arguments.get("enable", [])
        for name in arguments:
            if name != "enable":
                raise QemuError(GENERIC_ERROR, f"Parameter '{name}' is unexpected")
        if not isinstance(enable, list):
            raise QemuError(GENERIC_ERROR, "Invalid parameter type for 'enable', expected: array")
        for capability in enable:
            if capability not in self._greeting["QMP"]["capabilities"]:
                raise QemuError(GENERIC_ERROR, f"Parameter 'enable' does not accept value '{capability}'")
        self._oob = "oob" in enable
        self.negotiated = True
        return None

    # What a command may ask for (commands.Client) ----------------------------------------------------

    def take_fd(self, name: str) -> int:
        """As `FdStore.take`."""
        return self._fds.take(name)

    def emit(self, name: str, data: dict[str, object]) -> None:
        """Send an event to this client alone."""
        self.put_event(encode(event(name, data, time.time_ns())))

    async def events_sent(self) -> None:
        """As `Outbox.events_sent`."""
        await self._outbox.events_sent()

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task that ends with the session; what it raises is logged."""
        assert self._working is not None
        self._working.start_soon(self._run_task, function, args)

    async def _run_task(self, function: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
        try:
            await function(*args)
        except Exception:  # noqa: BLE001 - a bug of ours must not cost the client its session
            self._log.exception("%s: internal error in a task", self.name)

    async def _receive(self) -> bytes:
        """Return the next bytes, none at the end; keep the file descriptors that came with them."""
        try:
            data, ancillary, _, _ = await self._stream.socket.recvmsg(
                RECEIVE_SIZE, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            self._scope.cancel()
            return b""
        self._fds.receive(ancillary)
        return data
