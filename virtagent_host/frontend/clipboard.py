"""A guest's clipboard by way of the bridge: read and set once, and as one side of `sync`.

Reading and setting once is done with blocking I/O, since a command must start at once; a sync runs on trio,
which has the clipboard of this machine as well.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from virtagent_protocol.clipboard.bundle import BundleReader, LineReader, parse_line, pieces
from virtagent_protocol.clipboard.contents import Contents
from virtagent_protocol.errors import LinkBroken, RemoteProtocolError, VirtagentError

from ..clipboard import BROKEN_EVENT
from .client import BridgeError, VmClient
from .fetch import call

#: The name under which the socket is handed over.
FD_NAME = "va_clipboard"
#: Seconds without a byte: a program of the guest has 5 s to begin, and a minute for everything.
SILENCE = 90.0
#: Seconds for va-host to say why a stream was cut.
_LAST_WORDS = 3.0
_READ_SIZE = 256 * 1024


@contextlib.contextmanager
def opened(
    client: VmClient, command: str, arguments: dict[str, object], timeout: float
) -> Iterator[socket.socket]:
    """Run a command that takes a socket, and give its other end.

    Raises:
        VirtagentError: it was refused.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            client.send_fd(FD_NAME, theirs.fileno())
        call(client, command, {**arguments, "fd": FD_NAME}, timeout)
        ours.settimeout(SILENCE)
        yield ours


def get(client: VmClient, arguments: dict[str, object], limit: int, timeout: float) -> Contents:
    """Return what the guest's clipboard holds; *arguments* are those of `va_clipboard_get`.

    Raises:
        VirtagentError: it cannot be had.
    """
    reader = BundleReader(limit)
    with opened(client, "va_clipboard_get", {**arguments, "max-size": limit}, timeout) as sock:
        while data := _receive(sock):
            reader.feed(data)
        if not reader.done:
            raise why_cut(client)
    return reader.finish()


def put(client: VmClient, contents: Contents, arguments: dict[str, object], timeout: float) -> None:
    """Set the guest's clipboard; *arguments* are those of `va_clipboard_set`.

    Raises:
        VirtagentError: it was not set.
    """
    lines = LineReader()
    with opened(client, "va_clipboard_set", arguments, timeout) as sock:
        # One that takes no more has said why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces(contents):
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
        while (text := lines.next()) is None:
            if not (data := _receive(sock)):
                raise why_cut(client)
            lines.push(data)
    if parse_line(text).get("done") is not True:
        raise RemoteProtocolError("the guest's clipboard answered with something that is no answer")


def why_cut(client: VmClient) -> VirtagentError:
    """Return the error for a stream that ended before its end."""
    with contextlib.suppress(VirtagentError):
        for event in client.events(timeout=_LAST_WORDS):
            if event.get("event") == BROKEN_EVENT:
                data: dict[str, Any] = event.get("data", {})
                # The words of the QMP error that it would have been.
                return BridgeError(
                    "GenericError", f"{data.get('kind')}: the clipboard was cut: {data.get('reason')}"
                )
    return LinkBroken("the clipboard was cut: the session's agent ended it without a reason")


def types(client: VmClient, arguments: dict[str, object], timeout: float) -> Sequence[str]:
    """Return the names of the types that the guest's clipboard holds."""
    answer = call(client, "va_clipboard_types", arguments, timeout)
    return [str(name) for name in answer["types"]]


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(_READ_SIZE)
    except ConnectionResetError:
        return b""
    except TimeoutError:
        raise LinkBroken(f"nothing came of the guest's clipboard for {SILENCE:g} s") from None
