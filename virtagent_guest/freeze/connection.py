"""One freezer process, as the agent sees it: what it was asked, and what it says."""

from __future__ import annotations

import json
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

#: Bytes of one line from the freezer, with all its mount points.
_LINE_MAX = 1 << 20


@dataclass(frozen=True)
class Thawed:
    """The end of a freeze.

    Attributes:
        count: file systems that were thawed by it.
        why: ``asked``, or what else ended it.
        failures: of the hooks.
    """

    count: int
    why: str
    failures: tuple[str, ...] = ()


class Freezer:
    """One freezer process, as its client sees it.

    Attributes:
        ready: it has said that it is.
        recovered: file systems that it thawed at once, left by one that was killed.
        end_told: how the freeze has ended, once it has said so.
        failed: whether it said that it could not freeze.
        gone: it has ended, and all that follows from that is done.
    """

    def __init__(self, stream: trio.SocketStream, process: trio.Process | None) -> None:
        self.stream = stream
        self.process = process
        self.ready = trio.Event()
        self.gone = trio.Event()
        self.recovered = 0
        self.end_told: Thawed | None = None
        self.failed = False
        self.asked_to_freeze = False
        self._asked = trio.Lock()
        self._answers: deque[dict[str, Any]] = deque()
        self._answered = trio.Event()
        self._closed = False

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return what answers it: ``{}`` if the freezer ended instead."""
        self.asked_to_freeze |= request["do"] == "freeze"
        async with self._asked:
            self._answers.clear()
            try:
                await self.stream.send_all(json.dumps(request).encode() + b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return {}
            while not self._answers and not self._closed:
                await self._answered.wait()
            return self._answers.popleft() if self._answers else {}

    def end(self) -> None:
        """Let it end, after it has thawed what it has frozen."""
        with suppress(OSError):  # it has ended
            self.stream.socket.shutdown(socket.SHUT_WR)

    async def read(self) -> None:
        """Read until it ends."""
        buffer = b""
        try:
            async for data in self.stream:
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
                if len(buffer) > _LINE_MAX:
                    break
        except trio.BrokenResourceError:
            pass
        finally:
            self._closed = True
            self.ready.set()
            self._wake()

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.recovered = message["recovered"]
            self.ready.set()
            return
        if "thawed" in message:
            self.end_told = Thawed(message["thawed"], message["why"], tuple(message["failures"]))
        self.failed |= "error" in message
        self._answers.append(message)
        self._wake()

    def _wake(self) -> None:
        self._answered.set()
        self._answered = trio.Event()
