"""A QMP client made of a socket and nothing else, so that tests decide every byte."""

from __future__ import annotations

import array
import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

DEADLINE = 20.0


class RawQmp:
    """`async with RawQmp(path) as client`: connects and reads the greeting; nothing else by itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffer = b""
        self.greeting: dict[str, Any] = {}
        self.stream: trio.SocketStream

    async def __aenter__(self) -> RawQmp:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await sock.connect(str(self._path))
        self.stream = trio.SocketStream(sock)
        self.greeting = await self.receive()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_fd(self, fd: int, data: bytes) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        assert await self.stream.socket.sendmsg([data], [rights]) == len(data)

    async def receive(self) -> dict[str, Any]:
        """Return the next message, which must end with CRLF."""
        with trio.fail_after(DEADLINE):
            while b"\n" not in self._buffer:
                data = await self.stream.receive_some()
                assert data, f"the bridge closed the connection; unread: {self._buffer!r}"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        assert line.endswith(b"\r")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    async def receive_event(self, name: str) -> dict[str, Any]:
        """Return the next event of that name; other messages are passed over."""
        while (message := await self.receive()).get("event") != name:
            pass
        return message

    async def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a command, without a newline, and return its reply; events are passed over."""
        await self.send(json.dumps(message).encode())
        while "event" in (reply := await self.receive()):
            pass
        return reply

    async def negotiate(self, *capabilities: str) -> None:
        reply = await self.call({"execute": "qmp_capabilities", "arguments": {"enable": list(capabilities)}})
        assert reply == {"return": {}}

    async def at_end(self) -> bool:
        """Read on to the end of the stream, and say whether it came."""
        with trio.fail_after(DEADLINE):
            try:
                while await self.stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass  # reset by peer: closed with input unread
        return True
