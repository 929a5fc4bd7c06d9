"""A guest's clipboard as one side of a sync, on trio.

Each transfer has a connection to the bridge of its own: what it has taken up is gone with it. The watch has
one, too, and is taken up again when it was lost: a guest that is rebooted meanwhile is heard of again when
its session is back.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from virtagent_protocol.clipboard.carry import Notices, receive_contents, send_contents, until_done
from virtagent_protocol.clipboard.contents import Contents
from virtagent_protocol.clipboard.mime import wanted
from virtagent_protocol.errors import CallTimeout, FailureKind, LinkBroken, NotReady, VirtagentError

from .client import VmClient
from .clipboard import FD_NAME, why_cut
from .fetch import call

#: Seconds before the first and between the last attempts to watch again.
BACKOFF_MIN, BACKOFF_MAX = 0.5, 10.0
#: Seconds between two notices: a guest that floods is heard no more often.
NOTICE_INTERVAL = 0.05


class GuestClipboard:
    """Implements `virtagent_protocol.clipboard.sync.Side`.

    Args:
        connect: returns a new connection to the bridge.
        timeout: seconds for the guest to begin something.
        lost: called when the guest is not heard of any more, and why; must return at once.
    """

    def __init__(
        self, connect: Callable[[], VmClient], timeout: float, lost: Callable[[VirtagentError], None]
    ) -> None:
        self._connect, self._timeout, self._lost = connect, timeout, lost
        self._changes = 0
        self._changed = trio.Event()

    @property
    def changes(self) -> int:
        """How often the guest has said that its clipboard has changed."""
        return self._changes

    async def wait_change(self, seen: int) -> int:
        """Return the number of changes once it is another than *seen*."""
        while self._changes == seen:
            await self._changed.wait()
        return self._changes

    async def fetch(self, patterns: Sequence[str], limit: int, known: Contents) -> Contents:
        """Return what the guest's clipboard holds; *known* if it is that. Raises VirtagentError."""
        arguments: dict[str, object] = {"types": list(patterns), "max-size": limit}
        async with self._opened("va_clipboard_get", arguments) as stream:
            contents = await receive_contents(stream, limit, known)
        # Whatever the guest sends: this is what the user lets through.
        return contents.only(wanted(contents, patterns))

    async def write(self, contents: Contents) -> None:
        """Set the guest's clipboard. Raises VirtagentError."""
        async with self._opened("va_clipboard_set", {}) as stream:
            try:
                await send_contents(stream, contents)
                await stream.send_eof()
            except (LinkBroken, trio.BrokenResourceError):
                pass  # one that takes no more has said why
            await until_done(stream)

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Count the guest's changes until cancelled.

        Raises:
            VirtagentError: the guest does not let us, or va-host has ended.
        """
        pause, begun = BACKOFF_MIN, False
        while True:
            try:
                with trio.CancelScope(deadline=trio.current_time() + self._timeout) as first:
                    async with self._opened("va_clipboard_watch", {}) as stream:
                        notices = Notices(stream)
                        while await notices.next() is not None:
                            first.deadline = math.inf
                            if not begun:
                                task_status.started()
                            begun, pause = True, BACKOFF_MIN
                            self._note()
                            await trio.sleep(NOTICE_INTERVAL)
                error: VirtagentError = NotReady("the session's agent has ended its watch")
                if first.cancelled_caught:
                    error = CallTimeout(f"the guest has not told of its clipboard within {self._timeout:g} s")
            except _BridgeGone as gone:
                raise gone.error from None
            except VirtagentError as failed:
                error = failed
            if not begun or error.kind is FailureKind.FORBIDDEN:
                raise error
            if pause == BACKOFF_MIN:
                self._lost(error)
            await trio.sleep(pause)
            pause = min(2 * pause, BACKOFF_MAX)

    def _note(self) -> None:
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()

    @asynccontextmanager
    async def _opened(self, command: str, arguments: dict[str, object]) -> AsyncIterator[trio.SocketStream]:
        """Run a command that takes a socket, and give its other end. If that is cut, the error says why."""
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))

        def begin() -> VmClient:
            with theirs:
                try:
                    client = self._connect()
                except VirtagentError as error:
                    raise _BridgeGone(error) from None
                try:
                    client.send_fd(FD_NAME, theirs.fileno())
                    call(client, command, {**arguments, "fd": FD_NAME}, self._timeout)
                except BaseException:
                    client.close()
                    raise
                return client

        async with stream:
            client = await trio.to_thread.run_sync(begin, abandon_on_cancel=True)
            with client:
                try:
                    yield stream
                except LinkBroken as error:
                    # It is the guest that is lost, not a display: that is nothing to give up for.
                    why = await trio.to_thread.run_sync(why_cut, client, abandon_on_cancel=True)
                    raise NotReady(f"{why} ({error})") from None


class _BridgeGone(VirtagentError):
    """va-host cannot be connected to.

    Args:
        error: why.
    """

    def __init__(self, error: VirtagentError) -> None:
        super().__init__(str(error))
        self.kind, self.error = error.kind, error
