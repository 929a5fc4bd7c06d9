"""How the end that connects to an address tells the other whether it could (SPEC.md section 11).

The call that asks for a connection is answered at once: an address that does not answer must not hold one of
the few places for calls. What became of it is the first thing on the connection's stream: the byte 0, behind
which the connection's own bytes begin; or why there is none, as UTF-8 text that does not begin with it, and
the end. The end that asked sends nothing before.
"""

from __future__ import annotations

import trio

from .errors import FailureKind, LinkBroken, VirtagentError
from .limits import FAULT_STRING_MAX
from .stream import LinkStream

_CONNECTED = b"\0"
#: Bytes of the longest UTF-8 of one character.
_CHARACTER_MAX = 4


class ConnectFailed(VirtagentError):
    """The other end could not connect. Its words are untrusted."""

    kind = FailureKind.REFUSED


async def tell_connected(stream: LinkStream) -> None:
    """Say that the connection stands. Raises what `LinkStream.send_all` does."""
    await stream.send_all(_CONNECTED)


async def tell_failed(stream: LinkStream, why: str) -> None:
    """Say why there is no connection, and close the stream. Raises what `LinkStream.send_all` does."""
    await stream.send_all(why[:FAULT_STRING_MAX].encode(errors="replace") or b"?")
    await stream.aclose()


async def until_connected(stream: LinkStream) -> None:
    """Return when the other end says that the connection stands.

    Raises:
        ConnectFailed: it says that there is none, and why.
        LinkBroken: the stream was reset, or its session has ended.
    """
    words = bytearray()
    try:
        while data := await stream.receive_some(1 if not words else None):
            if not words and data == _CONNECTED:
                return
            words += data
            if len(words) > _CHARACTER_MAX * FAULT_STRING_MAX:
                break
    except trio.BrokenResourceError as error:
        raise LinkBroken(str(error)) from None
    stream.reset("refused")
    text = words.decode(errors="replace")[:FAULT_STRING_MAX]
    raise ConnectFailed(text or "the other end does not say why it has not connected")


async def until_given_up(stream: LinkStream) -> None:
    """Return when whoever asked for a connection wants it no longer; before it stands, they send nothing."""
    try:
        await stream.receive_some(1)
    except trio.BrokenResourceError:
        return
