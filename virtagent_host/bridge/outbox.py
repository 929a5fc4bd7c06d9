"""What waits to be sent to one client of the bridge: bounded, whatever the client does.

Replies and events are bounded in different ways, because they can be. A client that does not read its
replies gets no further command executed: it only waits for itself. But events come without being asked
for, and nobody may wait for a client to take them: past the limit, the client is lost.

While nothing waits, what is put in is written at once: to wake the sender would take two turns of the event
loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from virtagent_protocol.channel import WriteNow

#: Replies that wait before the next command of this client is executed. A few let the sender and the
#: executor overlap; each may be a few MiB.
REPLIES_MAX = 4

#: Events that wait before the client is given up. QEMU's are rare and some 150 bytes long; a thousand of
#: them, on top of some 200 KiB in the kernel's buffers, means that nobody is reading.
EVENTS_MAX = 1024
EVENT_BYTES_MAX = 1024 * 1024
#: What events of a guest may take of that: a guest that floods must not be able to have a client given up.
SPARING = 4


class Outbox:
    """Messages to one client, in order. `put_reply` and `put_event` never wait.

    Args:
        write_now: writes what the client takes without waiting.
    """

    def __init__(self, write_now: WriteNow | None = None) -> None:
        self._write_now = write_now
        self._messages: deque[tuple[bytes, bool]] = deque()
        self._replies = 0
        self._events = 0
        self._event_bytes = 0
        #: The last event of those that were left out.
        self._left_out: bytes | None = None
        self._closed = False
        self._changed = trio.lowlevel.ParkingLot()

    def put_reply(self, message: bytes) -> None:
        """Add a reply; wait for `room_for_replies` before causing it."""
        self._put(message, is_event=False)

    def put_event(self, message: bytes) -> bool:
        """Add an event; False, and nothing was added, if too many wait already."""
        if self._events >= EVENTS_MAX or self._event_bytes + len(message) > EVENT_BYTES_MAX:
            return False
        self._put(message, is_event=True)
        return True

    def put_sparing(self, message: bytes) -> None:
        """Add an event that a client can also ask for later, unless many wait.

        Of those that are left out, the last one is sent when the others have been: it tells what is missing.
        """
        events, size = SPARING * self._events, SPARING * (self._event_bytes + len(message))
        if self._left_out is not None or events >= EVENTS_MAX or size > EVENT_BYTES_MAX:
            self._left_out = message
        else:
            self.put_event(message)

    async def room_for_replies(self) -> None:
        """Wait until fewer than `REPLIES_MAX` replies wait."""
        while self._replies >= REPLIES_MAX:
            await self._changed.park()

    async def events_sent(self) -> None:
        """Wait until no event waits: for those who could send the next one later, and a fresher one."""
        while self._events:
            await self._changed.park()

    def close(self) -> None:
        """Let `send_all` return once everything has been sent."""
        self._closed = True
        self._changed.unpark_all()

    async def send_all(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send what is put in, in order, until closed and empty."""
        while True:
            while not self._messages:
                if self._left_out is not None:
                    last, self._left_out = self._left_out, None
                    self.put_event(last)
                    break
                if self._closed:
                    return
                await self._changed.park()
            message, is_event = self._messages[0]
            await send(message)
            # Counted until it has left, so that what is being sent is within the limits, too.
            self._messages.popleft()
            if is_event:
                self._events -= 1
                self._event_bytes -= len(message)
            else:
                self._replies -= 1
            self._changed.unpark_all()

    def _put(self, message: bytes, *, is_event: bool) -> None:
        if self._write_now is not None and not self._messages:
            message = message[self._write_now([message]) :]
            if not message:
                return
        if is_event:
            self._events += 1
            self._event_bytes += len(message)
        else:
            self._replies += 1
        self._messages.append((message, is_event))
        self._changed.unpark_all()
