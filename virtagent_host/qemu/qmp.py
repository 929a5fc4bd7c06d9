"""A connection to QEMU's monitor, for trio. The only file with asyncio in it.

qemu.qmp speaks QMP but runs on asyncio only. So each connection has one worker thread with an event loop:

1. What trio asks for goes to the loop with `call_soon_threadsafe`; what the loop has to say comes back with
   `TrioToken.run_sync_soon`. Nothing else is shared between the two threads.
2. A command that was sent is never taken back: QEMU has it. A caller that is cancelled stops waiting, at
   once; the answer is dropped when it comes, and only then is the command's slot free again.
3. At most `IN_FLIGHT_MAX` commands are with QEMU at a time; further callers wait here.
4. The connection ends in one way only, with the end of its stream, be it by QEMU or by us shutting the
   socket down. The last thing the loop does is to say so: every call still waiting fails with `LinkBroken`.
5. Events are never waited for and never queued without a bound.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import outcome
import trio
from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, Runstate, StateError
from qemu.qmp.message import Message
from qemu.qmp.qmp_client import GreetingError
from qemu.qmp.util import flush

from virtagent_protocol.errors import (
    Forbidden,
    LinkBroken,
    LocalProtocolError,
    NotReady,
    NotThere,
    VirtagentError,
)

from .errors import QemuError

Event = dict[str, Any]
EventCallback = Callable[[Event], None]

#: How long QEMU may take to greet. It greets within milliseconds, unless another client has the monitor:
#: then the connection stays in the listen queue and no greeting ever comes.
GREETING_TIMEOUT = 5.0

#: QEMU 7.2, while it is starting, now and then drops a client without a word if another has just come and
#: left; the next attempt works.
OPEN_ATTEMPTS = 3

#: Commands with QEMU at a time. QEMU queues 8 (QMP_REQ_QUEUE_LEN_MAX) and then stops reading its monitor,
#: out-of-band commands included; one less keeps that lane open.
IN_FLIGHT_MAX = 7

#: Events on their way from the loop's thread to trio's. They wait only while trio's thread is busy
#: with something else, so more than a few means that it hangs.
EVENTS_MAX = 1024

# What QEMU's is_valid_codepoint() refuses: surrogates, and the noncharacters of each plane.
_NOT_CHARACTERS = re.compile(
    "[\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)

log = logging.getLogger(__name__)


class _Client(QMPClient):
    """QMPClient, less what does not suit a service."""

    def __init__(self, name: str, on_event: Callable[[Message], bool]) -> None:
        super().__init__(name)
        # Every failure reaches our caller as an exception: the library's own lines would say it twice.
        self.logger.setLevel(logging.CRITICAL)
        # The library's default listener keeps every event for ever; on_event is its filter and refuses all.
        self.events.event_filter = on_event
        self._fd_lock = asyncio.Lock()

    # The library pretty-prints every message for a debug log, even when nobody reads it.
    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def execute_with_fd(self, fd: int, command: str, arguments: Mapping[str, object] | None) -> object:
        """Send *fd*, then the command that takes it."""
        # QEMU keeps only the last fd it was sent, so no other may be sent until this one is taken.
        async with self._fd_lock:
            # An fd rides on a blank of its own, which must not land within a half-written command.
            while self._writer is not None and self._writer.transport.get_write_buffer_size():
                await flush(self._writer)
            self.send_fd_scm(fd)
            return await self.execute(command, arguments)


@dataclass(eq=False)
class _Call:
    """One command on its way: started in the loop's thread, finished, exactly once, in trio's."""

    function: Callable[[], Awaitable[object]]
    #: Who waits for it; None when it was cancelled.
    caller: trio.lowlevel.Task | None = field(default_factory=trio.lowlevel.current_task)
    #: What to give back when it is finished.
    cleanup: ExitStack = field(default_factory=ExitStack)


class QmpConnection:
    """One QMP session with QEMU; made by `open_qmp`. Its public methods are for trio's thread.

    Attributes:
        name: what errors and the log call it.
        greeting: QEMU's: ``{"QMP": {"version": …, "capabilities": […]}}``.
    """

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self.greeting: dict[str, Any] = {}
        self._socket = sock
        self._trio = trio.lowlevel.current_trio_token()
        self._loop: asyncio.AbstractEventLoop
        self._client = _Client(name, self._hand_over)
        self._settled = trio.Event()
        self._closed = trio.Event()
        self._failure: Exception | None = None
        self._slots = trio.Semaphore(IN_FLIGHT_MAX)
        self._calls: set[_Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscribers: list[EventCallback] = []
        # Each counter is written by one thread: the first two by the loop's, the others by trio's.
        self._events_seen = self._events_dropped = 0
        self._events_delivered = self._drops_told = 0

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, oob: bool = False
    ) -> Any:
        """Execute a QMP command and return what QEMU returned.

        Args:
            command: its name in QEMU's QAPI schema.
            arguments: what `json.dumps` takes; None sends none.
            oob: do it out of band: it then waits for no other command (qmp-spec, "Out-of-band execution").

        Raises:
            QemuError: QEMU answered with an error.
            LocalProtocolError: the arguments hold what QEMU cannot parse. Nothing was sent.
            LinkBroken: the monitor was closed, before or while QEMU executed the command.
        """
        _check(command, arguments)
        call = _Call(lambda: self._client.execute(command, arguments, oob))
        return await self._perform(call, None if oob else self._slots)

    async def execute_with_fd(
        self, fd: int, command: str, arguments: Mapping[str, object] | None = None
    ) -> Any:
        """Execute ``getfd`` or ``add-fd`` together with the file descriptor that it takes.

        *fd* remains the caller's, who may close it at any time. Otherwise like `execute`; also:

        Raises:
            NotReady: QEMU does not read its monitor.
        """
        _check(command, arguments)
        # The loop may still need it when a caller that was cancelled has closed the original.
        duplicate = os.dup(fd)
        call = _Call(lambda: self._client.execute_with_fd(duplicate, command, arguments))
        call.cleanup.callback(os.close, duplicate)
        return await self._perform(call, self._slots)

    def subscribe(self, callback: EventCallback) -> Callable[[], None]:
        """Have *callback* called in trio's thread with every event of QEMU from now on, in their order.

        It gets the event as it came (``{"event": …, "data": …, "timestamp": …}``), must not wait, and must
        leave the event as it is: others get the same one.

        Returns:
            a function that ends the subscription.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def wait_closed(self) -> None:
        """Return when the session has ended: QEMU has closed its monitor, or `open_qmp`'s block was left."""
        await self._closed.wait()

    # In trio's thread -------------------------------------------------------------------------------

    async def _perform(self, call: _Call, slots: trio.Semaphore | None) -> object:
        with call.cleanup.pop_all() as unsent:
            if slots is not None:
                await slots.acquire()
                unsent.callback(slots.release)
            if self._closed.is_set():
                raise self._broken()
            call.cleanup = unsent.pop_all()
        self._calls.add(call)
        # A loop that has just ended refuses; `_end` is then on its way and finishes this call too.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._start, call)

        def abandon(_: object) -> trio.lowlevel.Abort:
            call.caller = None
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abandon)

    def _finish(self, call: _Call, result: outcome.Outcome[object]) -> None:
        self._calls.remove(call)
        call.cleanup.close()
        if call.caller is not None:
            trio.lowlevel.reschedule(call.caller, result)

    def _greet(self, greeting: dict[str, Any]) -> None:
        self.greeting = greeting
        self._settled.set()

    def _end(self) -> None:
        self._closed.set()
        self._settled.set()
        for call in list(self._calls):
            self._finish(call, outcome.Error(self._broken()))

    def _broken(self) -> LinkBroken:
        if self._failure is None or isinstance(self._failure, (EOFError, ConnectionError)):
            return LinkBroken(f"{self.name}: QEMU has closed its monitor")
        return LinkBroken(f"{self.name}: the connection to QEMU's monitor broke: {self._failure}")

    def _check_greeted(self) -> None:
        """Raise what kept QEMU from greeting, if it did not."""
        if self.greeting:
            return
        if not self._closed.is_set():
            raise NotReady(
                f"{self.name}: QEMU does not greet. One monitor serves one client at a time: end the other "
                "client, or give QEMU a second monitor (-qmp unix:PATH,server=on,wait=off)"
            )
        cause = self._failure.exc if isinstance(self._failure, ConnectError) else self._failure
        if isinstance(cause, (GreetingError, ValueError)):
            raise NotThere(f"{self.name}: this is not a QMP monitor: {cause}")
        raise LinkBroken(f"{self.name}: QEMU closed its monitor before the session began")

    def _deliver(self, event: Event) -> None:
        self._events_delivered += 1
        if self._events_dropped > self._drops_told:
            log.warning(
                "%s: %d events of QEMU were dropped", self.name, self._events_dropped - self._drops_told
            )
            self._drops_told = self._events_dropped
        for callback in list(self._subscribers):
            try:
                callback(event)
            except Exception:  # let out of here, it would end all of trio
                log.exception("%s: a subscriber failed on %s", self.name, event.get("event"))

    # In the loop's thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._session())
        except Exception as error:  # noqa: BLE001 - told to every caller by _end
            self._failure = error
        self._trio.run_sync_soon(self._end)

    async def _session(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._client.connect(self._socket)
        greeting = self._client.greeting
        assert greeting is not None
        qmp = {"version": greeting.QMP.version, "capabilities": greeting.QMP.capabilities}
        self._trio.run_sync_soon(self._greet, {"QMP": qmp})
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        await self._client.disconnect()  # raises what has ended the session

    def _start(self, call: _Call) -> None:
        task = self._loop.create_task(self._execute(call))
        # The loop itself holds tasks by weak references only.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _execute(self, call: _Call) -> None:
        result: outcome.Outcome[object]
        try:
            result = outcome.Value(await call.function())
        except ExecuteError as error:
            result = outcome.Error(QemuError(error.error_class, str(error)))
        except (ExecInterruptedError, StateError, ConnectionError):
            return  # the session is ending: _end finishes the call, and knows why
        except BlockingIOError:
            result = outcome.Error(NotReady(f"{self.name}: QEMU does not read its monitor"))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            result = outcome.Error(LinkBroken(f"{self.name}: {error}"))
        self._trio.run_sync_soon(self._finish, call, result)

    def _hand_over(self, event: Message) -> bool:
        if self._events_seen - self._events_delivered < EVENTS_MAX:
            self._events_seen += 1
            self._trio.run_sync_soon(self._deliver, dict(event))
        else:
            self._events_dropped += 1
        return False


@asynccontextmanager
async def open_qmp(
    path: Path, name: str | None = None, *, patience: float = GREETING_TIMEOUT
) -> AsyncIterator[QmpConnection]:
    """Connect to the QMP monitor at a unix socket and negotiate; the session ends with the block.

    Args:
        path: QEMU's monitor socket.
        name: what errors and the log call the connection; the path, if not given.
        patience: seconds to wait for the greeting.

    Raises:
        NotThere: no such socket, nobody listens, or what listens speaks no QMP.
        Forbidden: the socket's permissions.
        NotReady: another client holds the monitor.
        LinkBroken: what listens there closes the connection before it has greeted.
    """
    deadline = trio.current_time() + patience
    for attempt in range(1, OPEN_ATTEMPTS + 1):
        async with _session(path, name or str(path)) as connection:
            with trio.move_on_at(deadline):
                await connection._settled.wait()
            try:
                connection._check_greeted()
            except LinkBroken:
                if attempt < OPEN_ATTEMPTS:
                    continue
                raise
            yield connection
            return


@asynccontextmanager
async def _session(path: Path, name: str) -> AsyncIterator[QmpConnection]:
    """Connect and begin to talk; at the end of the block, the connection and its thread are gone."""
    with _connect(path) as sock, sock.dup() as handle:
        connection = QmpConnection(name, sock)
        thread = threading.Thread(target=connection._run, name=f"qmp {name}", daemon=True)
        thread.start()
        try:
            yield connection
        finally:
            # The loop sees the end of its stream and cleans up after itself, in bounded time.
            with suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)
            with trio.CancelScope(shield=True):
                await connection._closed.wait()
            thread.join()


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Connecting to a unix socket is done at once or refused. Blocking, it would wait while the listen queue
    # is full; and asyncio, like trio, takes the EAGAIN of that case for a connection on its way.
    sock.setblocking(False)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise _connect_error(path, error) from error
    return sock


def _connect_error(path: Path, error: OSError) -> VirtagentError:
    if isinstance(error, PermissionError):
        return Forbidden(f"{path}: {error.strerror}; run as the user that QEMU runs as, or as root")
    if isinstance(error, BlockingIOError):
        return NotReady(
            f"{path}: others hold this monitor or wait for it: one monitor serves one client at a time"
        )
    if isinstance(error, ConnectionRefusedError):
        return NotThere(f"{path}: nobody listens there; has QEMU ended?")
    return NotThere(f"{path}: {error.strerror or error}; is it the path of QEMU's -qmp unix:PATH,server=on?")


def _check(command: str, arguments: Mapping[str, object] | None) -> None:
    """Refuse what QEMU's parser would.

    QEMU answers such a command without its id, which qemu.qmp takes for the end of the session: one
    user's bad file name would cost everybody's connection.
    """
    try:
        text = json.dumps([command, arguments], ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"{command}: {error}") from error
    if bad := _NOT_CHARACTERS.search(text):
        raise LocalProtocolError(f"{command}: \\u{ord(bad[0]):04x} is not a valid Unicode character")
