"""Contents, notices and answers on a stream of trio: a link's at one end, a socket at the other.

Each has one direction in which the bulk goes, and at most one line the other way. What a stream raises when
it breaks comes out as `LinkBroken`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ..errors import LinkBroken, RemoteProtocolError, VirtagentError
from .bundle import BundleReader, LineReader, failure, line, parse_line, pieces
from .contents import Contents

#: Seconds without a byte after which whoever sends contents is given up: a program that holds a clipboard
#: has a minute to give it away, before a byte of it is sent on.
PATIENCE = 90.0

_DONE = {"done": True}


async def send_contents(stream: trio.abc.SendStream, contents: Contents) -> None:
    """Send contents; the end of the stream is the caller's to send. Raises LinkBroken."""
    with _broken():
        for piece in pieces(contents):
            await stream.send_all(piece)


async def receive_contents(
    stream: trio.abc.ReceiveStream, limit: int, known: Contents | None = None
) -> Contents:
    """Receive contents.

    Args:
        stream: read to its end, unless it turns out that *known* is what it has.
        limit: bytes that they may have.
        known: contents that are here already.

    Raises:
        LinkBroken: the stream broke, or nothing comes.
        VirtagentError: as `BundleReader.feed`.
    """
    reader = BundleReader(limit, known)
    with _broken():
        while data := await _receive(stream):
            reader.feed(data)
            if reader.done and known:
                break
    return reader.finish()


async def send_failure(stream: trio.abc.SendStream, error: VirtagentError) -> None:
    """Send a line that tells an error. Raises LinkBroken."""
    with _broken():
        await stream.send_all(failure(error))


async def send_done(stream: trio.abc.SendStream) -> None:
    """Say that what was sent is on the clipboard. Raises LinkBroken."""
    with _broken():
        await stream.send_all(line(_DONE))


async def until_done(stream: trio.abc.ReceiveStream) -> None:
    """Return when the other end says that it is done.

    Raises:
        Elsewhere: it tells an error.
        LinkBroken: it says nothing.
        RemoteProtocolError: it says something else.
    """
    lines = LineReader()
    with _broken():
        while (text := lines.next()) is None:
            data = await _receive(stream)
            if not data:
                raise LinkBroken(
                    "the clipboard's contents were sent, and the other end does not say what became of them"
                )
            lines.push(data)
    if parse_line(text) != _DONE:
        raise RemoteProtocolError("the other end's clipboard answered with something that is no answer")


async def send_notice(stream: trio.abc.SendStream, changes: int) -> None:
    """Tell the number of changes. Raises LinkBroken."""
    with _broken():
        await stream.send_all(line({"changes": changes}))


class Notices:
    """Reads the numbers of changes as they are told.

    Args:
        stream: that they come by.
    """

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._lines = LineReader()

    async def next(self) -> int | None:
        """Return the next number; None: there will be no more.

        Raises:
            Elsewhere: the other end tells an error.
            LinkBroken: the stream broke.
            RemoteProtocolError: what comes is no notice.
        """
        while (text := self._lines.next()) is None:
            with _broken():
                data = await self._stream.receive_some()
            if not data:
                return None
            self._lines.push(data)
        changes = parse_line(text).get("changes")
        if type(changes) is not int:
            raise RemoteProtocolError("the other end's clipboard sent a notice that is not ours")
        return changes


async def _receive(stream: trio.abc.ReceiveStream) -> bytes | bytearray:
    with trio.move_on_after(PATIENCE):
        return await stream.receive_some()
    raise LinkBroken(f"nothing of the clipboard's contents came for {PATIENCE:g} s")


@contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise LinkBroken(f"the clipboard's stream was cut: {error}") from error
