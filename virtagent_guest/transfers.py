"""Sending and receiving trees on streams, with all that touches a disk in threads.

The rules:

1. What a thread works on is its own until it returns, however long a disk takes. A transfer that is cut
   meanwhile ends at once; the thread cleans up when it comes back.
2. The disk and the link work at the same time, with a few pieces between them.
3. Transfers have threads of their own, so many: stuck disks use up theirs, not those of other methods.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import trio

from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError, VirtagentError
from virtagent_protocol.nursery import plain_nursery
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.trees.listen import Listener
from virtagent_protocol.trees.pack import Packer, Source
from virtagent_protocol.trees.place import open_place
from virtagent_protocol.trees.unpack import Unpacker

from .belt import FromThread, ToThread

log = logging.getLogger("virtagent.trees")

T = TypeVar("T")

#: Transfers at a time; each has one thread.
TRANSFERS_MAX = 16
#: Pieces of a file (1 MiB) between disk and link; messages (512 KiB) between link and disk.
READ_AHEAD, WRITE_AHEAD = 1, 4

_threads = trio.CapacityLimiter(TRANSFERS_MAX)


class _Work:
    """Does things in threads, one after another, and closes what they left when all is over."""

    running = 0

    def __init__(self) -> None:
        if _Work.running >= TRANSFERS_MAX:
            raise Fault(FaultCode.NOT_READY, f"{TRANSFERS_MAX} transfers are under way: wait for one to end")
        _Work.running += 1
        self._lock = threading.Lock()
        self._ended = False

    async def do(self, function: Callable[[], T]) -> T:
        """Return what *function* returns, called in a thread; it is left behind if we are cancelled."""

        def work() -> T:
            with self._lock:
                if self._ended:
                    raise trio.BrokenResourceError("the transfer has ended")
                return function()

        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_threads)

    def end(self) -> None:
        """Close everything, as soon as no thread works on it. Does not wait."""
        threading.Thread(target=self._end, name="end of a transfer", daemon=True).start()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            try:
                self.close()
            except OSError as error:
                log.warning("a transfer could not be cleaned up after: %s", error)
            finally:
                _Work.running -= 1

    def close(self) -> None:
        """Close what was opened."""


class Sending(_Work):
    """A path that is being sent."""

    def __init__(self) -> None:
        super().__init__()
        self._source: Source | None = None
        self._packer: Packer | None = None
        self._chunks: Iterator[bytes | memoryview] = iter(())

    async def open(self, path: bytes, *, recursive: bool) -> Source:
        """Open what is to be sent. Raises TreeError."""

        def opened() -> Source:
            self._source = Source(path, recursive=recursive)
            return self._source

        return await self.do(opened)

    async def run(self, stream: LinkStream, digests: Sequence[str] | None) -> None:
        """Send it, and hear how it went."""
        assert self._source is not None
        heard = Listener()
        try:
            async with stream:
                packer = Packer(self._source, digests)
                await _hear(stream, heard, lambda: heard.digests is not None)
                if heard.result is None:
                    self._chunks = packer.chunks(heard)
                    await self._send(stream)
                    await _hear(stream, heard, lambda: heard.result is not None)
            failed = packer.sent.failed + (heard.result.failed if heard.result else 0)
            log.info("sent %d entries, %d bytes, %d failed", packer.sent.entries, packer.sent.size, failed)
        except trio.BrokenResourceError as error:
            log.warning("sending ended early: %s", error)
        except (VirtagentError, OSError) as error:
            stream.reset("protocol")
            log.warning("sending failed: %s", error)
        except trio.Cancelled:
            stream.reset("cancelled")
            raise
        finally:
            self.end()

    async def _send(self, stream: LinkStream) -> None:
        belt = FromThread[bytes | memoryview | None](READ_AHEAD)

        def read() -> None:
            for chunk in self._chunks:
                if not belt.put(chunk):
                    return
            belt.put(None)

        try:
            async with plain_nursery() as nursery:
                nursery.start_soon(self.do, read)
                try:
                    while (chunk := await belt.take()) is not None:
                        await stream.send_kept(chunk)
                except trio.BrokenResourceError as error:
                    # The receiver has said why, if it is still there.
                    log.debug("stream %d takes no more: %s", stream.id, error)
                    nursery.cancel_scope.cancel()
        finally:
            belt.end()

    def close(self) -> None:
        if hasattr(self._chunks, "close"):
            self._chunks.close()
        if self._source is not None:
            self._source.close()


class Receiving(_Work):
    """A path that is being received."""

    def __init__(self) -> None:
        super().__init__()
        self._unpacker: Unpacker | None = None

    async def open(
        self, path: bytes, into: bytes, *, resume: bool, preserve: bool, digests: Sequence[str] | None
    ) -> bytes:
        """Open where it goes, and return the path that this is. Raises TreeError."""

        def opened() -> bytes:
            place = open_place(path, into)
            self._unpacker = Unpacker(place, resume=resume, preserve=preserve, digests=digests)
            return place.path

        return await self.do(opened)

    async def run(self, stream: LinkStream) -> None:
        """Receive it, and tell how it went."""
        unpacker = self._unpacker
        assert unpacker is not None
        received = unpacker.received
        try:
            begin = unpacker.begin()
            while (said := await self.do(lambda: next(begin, None))) is not None:
                await stream.send_all(said)
            try:
                await self._receive(stream, unpacker)
            except RemoteProtocolError as error:
                received.fatal = str(error)
            if not received.done and not received.fatal:
                received.fatal = "the stream ended before its end record"
            # Closing removes what is not whole, so it comes before the word that all is over.
            await self.do(unpacker.close)
            await stream.send_all(unpacker.result())
            await stream.aclose()
            log.info(
                "received %d entries, %d bytes, %d failed", received.entries, received.size, received.failed
            )
        except trio.BrokenResourceError as error:
            log.warning("receiving ended early: %s", error)
        except (VirtagentError, OSError) as error:
            stream.reset("failed")
            log.warning("receiving failed: %s", error)
        except trio.Cancelled:
            stream.reset("cancelled")
            raise
        finally:
            self.end()

    async def _receive(self, stream: LinkStream, unpacker: Unpacker) -> None:
        belt = ToThread[bytes | bytearray](WRITE_AHEAD)
        broken: trio.BrokenResourceError | None = None

        def write() -> None:
            for data in belt.items():
                unpacker.feed(data)
                if unpacker.received.fatal or unpacker.received.done:
                    return

        try:
            async with plain_nursery() as nursery:

                async def writing() -> None:
                    await self.do(write)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(writing)
                try:
                    async for data in stream:
                        await belt.give(data)
                except trio.BrokenResourceError as error:
                    broken = error
                belt.end()
        finally:
            belt.end()
        if broken is not None:
            raise broken

    def close(self) -> None:
        if self._unpacker is not None:
            self._unpacker.close()


async def _hear(stream: LinkStream, heard: Listener, enough: Callable[[], bool]) -> None:
    while not enough() and heard.result is None:
        data = await stream.receive_some()
        if not data:
            raise RemoteProtocolError("the receiver ended without a result")
        heard.feed(data)
