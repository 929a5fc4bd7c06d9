"""Clients of the local socket take turns: the agent is one thread, and none of them may keep it busy.

What one client sends is handled in bites of `BITE` bytes, and between two bites, whoever's they are,
everything else in the agent has its turn, the host's link first of all. So a hundred clients that flood cost
the host's calls what one costs: the handling of one bite. Among each other they are served first come, first
served.
"""

from __future__ import annotations

import trio

#: Bytes handled at a time: some twenty small requests, 2 ms of work; and still 50 MB/s of a stream.
BITE = 8192


class Turnstile:
    """What all clients of one socket pass, one at a time."""

    def __init__(self) -> None:
        self._passage = trio.Lock()

    async def pass_through(self) -> None:
        """Return when it is the caller's turn: the only one in this round of all tasks."""
        async with self._passage:
            await trio.lowlevel.checkpoint()


class TurnStream(trio.abc.Stream):
    """A client's stream, whose bytes come in bites and in turn.

    Args:
        stream: the connection.
        turnstile: of the socket.
    """

    def __init__(self, stream: trio.abc.Stream, turnstile: Turnstile) -> None:
        self._stream = stream
        self._turnstile = turnstile
        #: Read and not handed out: the reader went away while it stood at the turnstile.
        self._held = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._held:
            self._held = bytes(await self._stream.receive_some(min(max_bytes or BITE, BITE)))
        await self._turnstile.pass_through()
        data, self._held = self._held, b""
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
