"""Two streams of two links, joined as one: what a program says to the agent beside it goes on to the far end.

The rules:

1. Each end of a half is passed on as what it was: ``eof`` as ``eof``, ``closed`` as ``closed``. What breaks
   one stream breaks the other, with the same reason; where a whole session ended, that is `LOST`. So nobody
   takes what it got for the whole.
2. Neither is read faster than the other takes it: no more than one chunk is held in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .stream import CANCELLED, LinkStream

#: Reason of a reset: the session that the data came by has ended.
LOST = "lost"

#: Sends what it is given, as `LinkStream.send_all` does.
Send = Callable[[bytes], Awaitable[None]]


async def relay_streams(a: LinkStream, b: LinkStream, into_a: Send | None = None) -> None:
    """Join two streams until both halves have ended, or one broke. It raises nothing of its own.

    Args:
        a: nobody else may use it any more; it has ended when this returns.
        b: the same.
        into_a: sends into *a*, where that is to be done in another way than by itself.
    """
    try:
        async with trio.open_nursery() as watching:
            watching.start_soon(_break_with, a, b)
            watching.start_soon(_break_with, b, a)
            async with trio.open_nursery() as passing:
                passing.start_soon(_pass, a, b, b.send_all)
                passing.start_soon(_pass, b, a, into_a or a.send_all)
            watching.cancel_scope.cancel()
    except BaseException:
        a.reset(CANCELLED)
        b.reset(CANCELLED)
        raise
    for stream, other in ((a, b), (b, a)):
        # One that broke at the very end may not have been heard of by the watchers.
        if stream.broken.is_set():
            _reset(other, stream)
    # Not a reset: what was sent last may still wait for the writer.
    await a.aclose()
    await b.aclose()


async def _pass(source: LinkStream, sink: LinkStream, send: Send) -> None:
    try:
        async for data in source:
            await send(bytes(data))
        if source.unwanted:
            # Nobody reads there any more, either: that ends the other direction.
            await sink.aclose()
        else:
            await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        # One broke, which the watchers see; or was closed, which is for the other direction to pass on.
        return


async def _break_with(stream: LinkStream, other: LinkStream) -> None:
    await stream.broken.wait()
    _reset(other, stream)


def _reset(other: LinkStream, broken: LinkStream) -> None:
    other.reset(broken.reset_by_peer or LOST)
