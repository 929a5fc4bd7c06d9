"""Pumps: from a descriptor into a stream, and back.

The end of one half is passed on as the end of that half. What breaks one side is told to the other: a reader
that is gone resets the stream; a stream that was reset raises `StreamBroken` here.
"""

from __future__ import annotations

import logging
import os

import trio

from virtagent_protocol.errors import LinkBroken
from virtagent_protocol.nursery import plain_nursery
from virtagent_protocol.relay import while_wanted
from virtagent_protocol.stream import CANCELLED, LinkStream

from .fd import HandedFd

log = logging.getLogger("virtagent.streams")


class StreamBroken(LinkBroken):
    """The stream ended otherwise than at its end; the text says why."""


async def pump_in(source: HandedFd, stream: LinkStream) -> int:
    """Send what can be read, then the end; return how many bytes that was.

    It returns early when the other end reads no more.

    Raises:
        StreamBroken: the source cannot be read; the stream was reset, so that the guest does not take what it
            got for the whole.
    """
    count = 0
    try:
        while data := await source.read():
            await stream.send_kept(data)
            count += len(data)
        await stream.send_eof()
    except trio.BrokenResourceError as error:
        log.debug("stream %d takes no more: %s", stream.id, error)
    except OSError as error:
        stream.reset("unreadable")
        raise StreamBroken(f"the input cannot be read: {error.strerror}") from error
    return count


async def pump_out(stream: LinkStream, sink: HandedFd) -> int:
    """Write what comes, until its end; return how many bytes that was.

    It returns early when nobody reads the sink any more; the stream is reset then.

    Raises:
        StreamBroken: the stream was reset, or the sink cannot be written.
    """
    count = 0
    try:
        async for data in stream:
            await sink.write(data)
            count += len(data)
        sink.end_writing()
    except trio.BrokenResourceError as error:
        raise StreamBroken(str(error)) from error
    except (BrokenPipeError, ConnectionResetError):
        stream.reset("unread")
    except OSError as error:
        stream.reset("unwritable")
        raise StreamBroken(f"the output cannot be written: {error.strerror}") from error
    return count


async def splice(stream: LinkStream, fd: int, out_fd: int | None = None) -> tuple[int, int]:
    """Join a stream and a descriptor that is both read and written, until both halves have ended.

    What breaks breaks both ways: the peer of a TCP socket sees a reset then.

    Args:
        stream: closed in the end.
        fd: such as a connected socket; closed in the end.
        out_fd: what is written to, if that is another one; closed when nothing more comes.

    Returns:
        How many bytes went in, and came out.

    Raises:
        StreamBroken: see `pump_in` and `pump_out`.
    """
    source = HandedFd(fd)
    sink = source if out_fd is None else HandedFd(out_fd)
    counts = [0, 0]

    async def pumping() -> None:
        counts[0] = await pump_in(source, stream)

    async def into() -> None:
        # The guest may take no more while nothing comes from here that would tell.
        if not await while_wanted(stream, pumping):
            source.abort()

    async def out_of() -> None:
        counts[1] = await pump_out(stream, sink)
        if sink is not source:
            sink.close()

    try:
        async with plain_nursery() as nursery:
            nursery.start_soon(into)
            await out_of()
    except BaseException:
        # Cancelled, too: neither side shall take what it got for the whole.
        stream.reset(CANCELLED)
        source.abort()
        raise
    finally:
        source.close()
        sink.close()
    await stream.aclose()
    return counts[0], counts[1]


def close_all(*fds: int | None) -> None:
    """Close descriptors that were taken and not used."""
    for fd in fds:
        if fd is not None:
            os.close(fd)
