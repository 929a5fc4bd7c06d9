"""Plain clients: JSON on a unix socket, blocking. The same code for both, so it costs both the same."""

from __future__ import annotations

import base64
import json
import os
import socket
from pathlib import Path
from typing import Any

#: Seconds for any answer: writing 48 MB through qemu-ga takes 15 s under TCG.
PATIENCE = 300.0


class ClientError(Exception):
    """The answer was an error."""


class LineClient:
    """One connection on which each message is a line.

    Args:
        path: the socket.
    """

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(PATIENCE)
        self._sock.connect(os.fspath(path))
        self._lines = self._sock.makefile("rb", buffering=1 << 20)

    def send(self, data: bytes) -> None:
        """Send requests."""
        self._sock.sendall(data)

    def answer(self) -> bytes:
        """Return the next answer; events are passed over."""
        while True:
            line = self._lines.readline()
            if not line:
                raise ClientError("the other end closed the connection")
            if b'"event"' not in line[:200]:
                return line

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command and return its result.

        Raises:
            ClientError: it was answered with an error.
        """
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self.send(json.dumps(request).encode() + b"\n")
        answer = json.loads(self.answer())
        if "error" in answer:
            raise ClientError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._sock.close()


class BridgeClient(LineClient):
    """A client of va-host's bridge."""

    #: A whole request.
    PING = b'{"execute":"va_ping"}\n'

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.answer()
        self.execute("qmp_capabilities")

    def read_file(self, path: str) -> bytes:
        """Return a small file."""
        return base64.b64decode(self.execute("va_viewfile", filepath=path, format="base64")["content"])


class QgaClient(LineClient):
    """A client of qemu-ga, on its channel."""

    PING = b'{"execute":"guest-ping"}\n'

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # As its documentation asks: what is left over from whoever was here before ends with 0xFF.
        self.send(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":4711}}\n')
        while b"4711" not in self.answer():
            pass

    def read_file(self, path: str) -> bytes:
        """Return a small file: what a caller does who wants its content, not the quickest loop of reads."""
        handle = self.execute("guest-file-open", path=path, mode="r")
        try:
            return base64.b64decode(self.execute("guest-file-read", handle=handle, count=65536)["buf-b64"])
        finally:
            self.execute("guest-file-close", handle=handle)

    def get(self, path: str, sink: Path, size: int, chunk: int) -> None:
        """Copy the first *size* bytes of a file from the guest, *chunk* bytes at a time."""
        handle = self.execute("guest-file-open", path=path, mode="r")
        with sink.open("wb") as out:
            while out.tell() < size:
                part = self.execute("guest-file-read", handle=handle, count=chunk)
                out.write(base64.b64decode(part["buf-b64"]))
        self.execute("guest-file-close", handle=handle)

    def put(self, source: Path, path: str, size: int, chunk: int) -> None:
        """Copy the first *size* bytes of a file to the guest, *chunk* bytes at a time."""
        handle = self.execute("guest-file-open", path=path, mode="w")
        with source.open("rb") as file:
            for _ in range(size // chunk):
                data = file.read(chunk)
                encoded = base64.b64encode(data).decode()
                self.execute("guest-file-write", **{"handle": handle, "buf-b64": encoded})
        self.execute("guest-file-flush", handle=handle)
        self.execute("guest-file-close", handle=handle)

    def run(self, *command: str) -> int:
        """Run a command and return its exit status, asking for it until it is there, without a pause."""
        pid = self.execute("guest-exec", path=command[0], arg=command[1:])["pid"]
        while not (status := self.execute("guest-exec-status", pid=pid))["exited"]:
            pass
        return int(status["exitcode"])
