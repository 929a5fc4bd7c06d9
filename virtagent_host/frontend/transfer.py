"""Files and trees to and from a guest: the command line's end of a tree stream (SPEC.md section 13).

One end of a socket pair is handed to va-host, which joins it with a stream to the guest's agent; the other is
read and written here, with blocking I/O, and this process alone opens the user's files.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from virtagent_protocol.errors import LinkBroken, RemoteProtocolError, VirtagentError
from virtagent_protocol.trees.listen import Listener, Result
from virtagent_protocol.trees.pack import Packer, Sent
from virtagent_protocol.trees.unpack import Received, Unpacker
from virtagent_protocol.unixsocket import widen

from ..files import BROKEN_EVENT
from .client import BridgeError, ConnectionEnded, VmClient
from .fetch import call

#: The name under which the socket is handed over.
FD_NAME = "va_transfer"
#: Seconds for va-host to say why a transfer was cut, and for the guest to hear how it ended.
_LAST_WORDS = 3.0
_READ_SIZE = 512 * 1024


@dataclass
class Outcome:
    """How a transfer ended.

    Attributes:
        entries, size: how many were transferred; bytes of contents.
        kept: how many were there already.
        failed: how many could not be; `errors` says which of them, not all if there are many.
        notes: what is never transferred, as pairs like those of errors: path in the tree, reason.
        mismatched: whether any arrived otherwise than it was sent.
        digest: of a single file; "" of a tree.
        digest_name: sha256 or crc32.
        fatal: why it could not go on.
    """

    entries: int
    size: int
    kept: int
    failed: int
    errors: list[tuple[bytes, str]]
    notes: list[tuple[bytes, str]] = field(default_factory=list)
    mismatched: bool = False
    digest: str = ""
    digest_name: str = ""
    fatal: str = ""


class Channel:
    """A socket that is joined with a transfer in the guest.

    Raises:
        VirtagentError: it did not begin.
    """

    def __init__(self, client: VmClient, command: str, arguments: dict[str, object], timeout: float) -> None:
        self._client = client
        self._socket, theirs = socket.socketpair()
        widen(self._socket)
        widen(theirs)
        self._buffer = memoryview(bytearray(_READ_SIZE))
        try:
            with theirs:
                client.send_fd(FD_NAME, theirs.fileno())
            self.answer: dict[str, Any] = call(client, command, {**arguments, "fd": FD_NAME}, timeout)
        except BaseException:
            self._socket.close()
            raise

    def send(self, data: bytes | memoryview) -> bool:
        """Send all of it, or return False: the other end takes nothing any more."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> memoryview:
        """Return what comes next; it is overwritten when this is called again.

        Raises:
            LinkBroken: the transfer was cut, and why.
        """
        with contextlib.suppress(ConnectionResetError):
            if count := self._socket.recv_into(self._buffer):
                return self._buffer[:count]
        raise self._why()

    def end(self) -> None:
        """Send no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def wait_for_end(self) -> None:
        """Wait until the other end has heard all, but not for long."""
        self._socket.settimeout(_LAST_WORDS)
        with contextlib.suppress(OSError):
            while self._socket.recv(_READ_SIZE):
                pass

    def close(self) -> None:
        """Close the socket: what is under way is cut."""
        self._socket.close()

    def _why(self) -> VirtagentError:
        deadline = time.monotonic() + _LAST_WORDS
        with contextlib.suppress(VirtagentError):
            for event in self._client.events(timeout=_LAST_WORDS):
                data = event.get("data", {})
                if event.get("event") == BROKEN_EVENT and data.get("fd") == FD_NAME:
                    # The words of the QMP error that it would have been.
                    return BridgeError(
                        "GenericError", f"{data.get('kind')}: the transfer was cut: {data.get('reason')}"
                    )
            if time.monotonic() < deadline:
                return ConnectionEnded("the transfer was cut: va-host has ended, or was detached")
        return LinkBroken("the transfer was cut: the guest's agent ended it without a reason")


@contextlib.contextmanager
def _opened(
    client: VmClient, command: str, arguments: dict[str, object], timeout: float
) -> Iterator[Channel]:
    channel = Channel(client, command, arguments, timeout)
    try:
        yield channel
    finally:
        channel.close()


def upload(client: VmClient, packer: Packer, arguments: dict[str, object], timeout: float) -> Outcome:
    """Send what the packer packs; *arguments* are those of `va_write_tree`.

    Raises:
        VirtagentError: it did not begin, or was cut.
    """
    heard = Listener()
    with _opened(client, "va_write_tree", arguments, timeout) as channel:
        while heard.digests is None and heard.result is None:
            heard.feed(channel.receive())
        if heard.result is None:
            with contextlib.closing(packer.chunks(heard)) as chunks:
                # One that takes nothing any more has said why.
                all(channel.send(chunk) for chunk in chunks)
        while heard.result is None:
            heard.feed(channel.receive())
    return _sent(packer.sent, heard.result, packer.digest_name)


def download(client: VmClient, unpacker: Unpacker, arguments: dict[str, object], timeout: float) -> Outcome:
    """Receive what the unpacker unpacks; *arguments* are those of `va_read_tree`. The unpacker is closed.

    Raises:
        VirtagentError: it did not begin, or was cut.
    """
    received = unpacker.received
    try:
        with _opened(client, "va_read_tree", arguments, timeout) as channel:
            for said in unpacker.begin():
                channel.send(said)
            while not received.done and not received.fatal:
                unpacker.feed(channel.receive())
            unpacker.close()
            channel.send(unpacker.result())
            channel.end()
            if not received.fatal:
                channel.wait_for_end()
    finally:
        unpacker.close()
    return _received(received, unpacker.digest_name)


def _sent(sent: Sent, result: Result, digest_name: str) -> Outcome:
    if not result.fatal and not result.failed and result.entries != sent.entries:
        raise RemoteProtocolError(
            f"the guest says it received {result.entries} entries, and {sent.entries} were sent"
        )
    return Outcome(
        result.entries,
        sent.size,
        sent.kept,
        result.failed + sent.failed,
        [*sent.errors, *result.errors],
        sent.notes,
        result.mismatches > 0,
        sent.digest if sent.single else "",
        digest_name,
        result.fatal,
    )


def _received(received: Received, digest_name: str) -> Outcome:
    return Outcome(
        received.entries,
        received.size,
        received.kept,
        received.failed + received.left_out,
        [*received.skipped, *received.errors],
        received.notes,
        received.mismatches > 0,
        received.digest if received.single else "",
        digest_name,
        received.fatal,
    )
