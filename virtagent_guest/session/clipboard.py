"""va.clipboard_*: the clipboard of the session's display, for the host.

The rules:

1. Nothing unless guest.toml says so (``clipboard`` in [session]), and only in the directions that it names.
2. The display is connected to when it is first asked for, and again after it was lost. Until then this costs
   nothing, not even an import.
3. A call is answered when its work has begun. Contents, and what goes wrong with them, come on the stream
   that the call names (SPEC.md section 11), so that a program which does not give its clipboard away holds no
   place for calls.
4. What the host has set stays when the connection to the host ends: it is this session's clipboard now.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from virtagent_protocol.errors import FAULT_OF_KIND, Fault, FaultCode, LinkBroken, NotReady, VirtagentError
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.stream import CANCELLED, LinkStream
from virtagent_protocol.values import Struct, Value

from ..methods.paths import option
from .clipboard_settings import ClipboardSettings
from .display import display_environ

if TYPE_CHECKING:
    from virtagent_protocol.clipboard.backend import Backend
    from virtagent_protocol.clipboard.contents import Contents

log = logging.getLogger("virtagent.clipboard")

#: Transfers at a time, and those who watch. Each transfer may hold contents of the full size.
TRANSFERS_MAX, WATCHERS_MAX = 2, 4
#: Seconds between two notices to one watcher: what comes in between is one change.
NOTICE_INTERVAL = 0.05
#: Patterns in one request.
PATTERNS_MAX = 32

registry = Registry()


class ClipboardService:
    """The one connection to the display.

    Attributes:
        settings: what the configuration says; set before `run`.
    """

    def __init__(self) -> None:
        self.settings = ClipboardSettings()
        self._nursery: trio.Nursery | None = None
        self._opening = trio.Lock()
        self._backend: Backend | None = None
        self._transfers = trio.CapacityLimiter(TRANSFERS_MAX)
        self._watchers = trio.CapacityLimiter(WATCHERS_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection, once there is one, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def backend(self) -> Backend:
        """Return the clipboard, connected. Raises VirtagentError, as `open_clipboard`."""
        async with self._opening:
            if self._backend is None or self._backend.lost is not None:
                if self._nursery is None:
                    raise NotReady("the session agent is ending")
                self._backend = await self._nursery.start(self._keep)
            return self._backend

    async def _keep(self, *, task_status: trio.TaskStatus[Backend]) -> None:
        from virtagent_protocol.clipboard.backend import open_clipboard

        async with open_clipboard(await display_environ()) as backend:
            task_status.started(backend)
            log.warning("%s", await backend.wait_lost())

    def check(self, direction: str) -> None:
        """Check that contents may go this way. Raises Fault."""
        if not self.settings.lets(direction):
            raise Fault(
                FaultCode.FORBIDDEN,
                f'the guest does not share its clipboard this way: set clipboard = "{direction}" or "both" '
                "in [session] of its guest.toml, and restart the session agent",
            )

    @asynccontextmanager
    async def serving(self, stream: LinkStream, places: trio.CapacityLimiter) -> AsyncIterator[None]:
        """Serve a stream in the block: what fails in it is told on the stream, which is closed in the end."""
        from virtagent_protocol.clipboard.carry import send_failure

        try:
            try:
                places.acquire_on_behalf_of_nowait(stream)
            except trio.WouldBlock:
                raise NotReady(
                    "too many others use this session's clipboard: try again when they have ended"
                ) from None
            try:
                yield
            finally:
                places.release_on_behalf_of(stream)
        except trio.Cancelled:
            stream.reset(CANCELLED)
            raise
        except VirtagentError as error:
            log.info("the clipboard: %s", error)
            try:
                await send_failure(stream, error)
            except LinkBroken:
                return  # whoever asked is gone, which may be what failed
        await stream.aclose()

    async def send(self, stream: LinkStream, patterns: Sequence[str] | None, limit: int) -> None:
        """Send what the clipboard holds."""
        from virtagent_protocol.clipboard.carry import send_contents

        async with self.serving(stream, self._transfers):
            contents = await self._read(patterns, limit)
            await send_contents(stream, contents)

    async def receive(self, stream: LinkStream) -> None:
        """Put on the clipboard what comes, and say so."""
        from virtagent_protocol.clipboard.carry import receive_contents, send_done

        async with self.serving(stream, self._transfers):
            contents = await receive_contents(stream, self.settings.size_max)
            if not contents:
                raise Fault(FaultCode.INVALID_PARAMS, "contents of no type cannot be set")
            await (await self.backend()).write(contents)
            log.info("the clipboard was set by the host: %s", _described(contents))
            await send_done(stream)

    async def watch(self, stream: LinkStream) -> None:
        """Tell of each change, beginning with how it is."""
        from virtagent_protocol.clipboard.carry import send_notice

        async with self.serving(stream, self._watchers), trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_unwanted, stream, nursery.cancel_scope)
            backend = await self.backend()
            changes = backend.changes
            while True:
                await send_notice(stream, changes)
                await trio.sleep(NOTICE_INTERVAL)
                changes = await backend.wait_change(changes)

    async def _read(self, patterns: Sequence[str] | None, limit: int) -> Contents:
        from virtagent_protocol.clipboard.mime import PATTERNS, wanted

        patterns = patterns or PATTERNS
        contents = await (await self.backend()).read(patterns, min(limit, self.settings.size_max))
        # What we have set ourselves comes back whole.
        contents = contents.only(wanted(contents, patterns))
        log.info("the clipboard is sent to the host: %s", _described(contents))
        return contents


#: The clipboard of this process.
CLIPBOARD = ClipboardService()


@registry.method("va.clipboard_types")
async def clipboard_types(call: Call) -> Struct:
    """Return which types the clipboard of the session's display holds, as its owner names them."""
    CLIPBOARD.check("from-guest")
    try:
        names: list[Value] = [*await (await CLIPBOARD.backend()).offered()]
    except Fault:
        raise
    except VirtagentError as error:
        raise Fault(FAULT_OF_KIND[error.kind], str(error)) from None
    return {"types": names}


@registry.method("va.clipboard_read")
async def clipboard_read(call: Call, options: Struct) -> Struct:
    """Send what the clipboard holds on a stream: stream, patterns of types, max_size in bytes."""
    CLIPBOARD.check("from-guest")
    patterns, limit = _patterns(options), option(options, "max_size", int, CLIPBOARD.settings.size_max)
    assert isinstance(limit, int)
    call.spawn(CLIPBOARD.send, call.accept(_stream(options)), patterns, limit)
    return {}


@registry.method("va.clipboard_write")
async def clipboard_write(call: Call, options: Struct) -> Struct:
    """Put on the clipboard what comes on a stream: stream."""
    CLIPBOARD.check("to-guest")
    call.spawn(CLIPBOARD.receive, call.accept(_stream(options)))
    return {}


@registry.method("va.clipboard_watch")
async def clipboard_watch(call: Call, options: Struct) -> Struct:
    """Tell of each change of the clipboard on a stream: stream. That something changed, not what."""
    CLIPBOARD.check("from-guest")
    call.spawn(CLIPBOARD.watch, call.accept(_stream(options)))
    return {}


def _stream(options: Struct) -> int:
    number = option(options, "stream", int, None)
    if not isinstance(number, int):
        raise Fault(FaultCode.INVALID_PARAMS, "member 'stream' is missing: the id of a stream of yours")
    return number


def _patterns(options: Struct) -> list[str] | None:
    from virtagent_protocol.clipboard.mime import is_pattern

    patterns = option(options, "patterns", list, None)
    if patterns is None:
        return None
    assert isinstance(patterns, list)
    found = [pattern for pattern in patterns if isinstance(pattern, str) and is_pattern(pattern)]
    if len(found) != len(patterns) or not 0 < len(patterns) <= PATTERNS_MAX:
        raise Fault(
            FaultCode.INVALID_PARAMS,
            f"'patterns' must be 1 to {PATTERNS_MAX} types, or patterns such as image/*",
        )
    return found


def _described(contents: Contents) -> str:
    return ", ".join(f"{name} ({blob.size} bytes)" for name, blob in contents.items()) or "nothing"


async def _cancel_when_unwanted(stream: LinkStream, scope: trio.CancelScope) -> None:
    async def closed() -> None:
        await stream.wait_unwanted()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed)
        await stream.broken.wait()
        scope.cancel()
