"""One job: a process and who gets its output.

The rules:

1. An *attached* job belongs to its streams. Its output waits for their credit: a reader that is stuck stalls
   the process, as it would on a pipe, and nothing else. When ``io`` breaks (it was reset, or the session
   ended), nobody is there any more: it gets SIGHUP, its input ends, what it still says is dropped, and
   `HANGUP_GRACE` later it gets SIGKILL.
2. The exception is ``io`` being reset as ``unread``, which says that nobody reads the output: then that is
   closed, and SIGPIPE does the rest, as on a pipe.
3. A *detached* job's output goes into rings, and never waits. Who follows it gets what there is from an
   offset on; one that is too slow misses what the ring could not keep, and is told how much that was.
4. How a job ended is told last, on its ``status`` stream: behind all of its output.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator

import trio

from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.outcome import send_status
from virtagent_protocol.stream import CANCELLED, LinkStream
from virtagent_protocol.values import Struct, Value

from .launch import set_size
from .process import PIECE, Output, Process
from .request import Request, TerminalSize
from .ring import Ring

log = logging.getLogger("virtagent.jobs")

#: Seconds between SIGHUP and SIGKILL for a job that nobody is attached to any more.
HANGUP_GRACE = 5.0
#: Seconds between SIGTERM and SIGKILL for one that has reached its deadline.
DEADLINE_GRACE = 2.0
#: Arguments, and characters of each, that a list of jobs shows.
SHOWN_WORDS, SHOWN_LENGTH = 32, 256

#: Reason of a reset: what takes the data is gone (SPEC.md section 12).
_UNREAD = "unread"


class Tail:
    """A ring, and the event of something new in it."""

    def __init__(self) -> None:
        self.ring = Ring()
        self.closed = False
        self._news = trio.Event()

    def append(self, data: bytes) -> None:
        self.ring.append(data)
        self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def send_from(self, offset: int, stream: LinkStream) -> int:
        """Send what is written from an offset on, then the end; return how many bytes were missed.

        Raises:
            trio.BrokenResourceError: the stream broke.
        """
        at = self.ring.first(offset)
        missed = 0
        while True:
            first = self.ring.first(at)
            missed += first - at
            if data := self.ring.read(first, PIECE):
                at = first + len(data)
                await stream.send_all(data)
            elif self.closed:
                await stream.send_eof()
                return missed
            else:
                await self._news.wait()


class Job:
    """One job.

    Args:
        number: its id.
        request: what was asked for.
        process: what was started for it.

    Attributes:
        ended: when the process did (`time.time`), or None.
        over: set when the process has ended and its output has been passed on.
        tails: of a detached job: of stdout, and of stderr if that is apart.
    """

    def __init__(self, number: int, request: Request, process: Process) -> None:
        self.number = number
        self.request = request
        self.process = process
        self.started = time.time()
        self.ended: float | None = None
        self.over = trio.Event()
        self.missed_deadline = False
        self.tails: list[Tail] = []
        if request.detached:
            self.tails = [Tail() for _ in self._outputs()]

    def _outputs(self) -> Iterator[Output]:
        yield self.process.out
        if self.process.err is not None:
            yield self.process.err

    @property
    def size(self) -> int:
        """Bytes of output that it holds."""
        return sum(len(tail.ring) for tail in self.tails)

    def end(self) -> Struct:
        """Return the status document: how it ended."""
        return {**self.process.end, **({"deadline": True} if self.missed_deadline else {})}

    def describe(self) -> Struct:
        """Return what `va.jobs` says of it."""
        words: list[Value] = [xmlrpc.text_or_bytes(w[:SHOWN_LENGTH]) for w in self.request.argv[:SHOWN_WORDS]]
        offsets: Struct = {}
        for name, tail in zip(("stdout", "stderr"), self.tails, strict=False):
            offsets[name] = {"begin": tail.ring.begin, "end": tail.ring.end}
        return {
            "id": self.number,
            "pid": self.process.pid,
            "argv": words,
            "detached": self.request.detached,
            "state": "running" if self.ended is None else "ended",
            "started": self.started,
            **({} if self.ended is None else {"ended": self.ended, **self.end()}),
            **({"output": offsets} if self.tails else {}),
        }

    # --- What may be asked of it ---------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send a signal to its process group. Raises Fault if it has ended."""
        if not self.process.signal(number):
            raise Fault(FaultCode.FAILED, f"job {self.number} has ended, or is not ours to signal")

    def resize(self, size: TerminalSize) -> None:
        """Tell its terminal its size. Raises Fault if it has none."""
        if self.process.terminal is None:
            raise Fault(FaultCode.FAILED, f"job {self.number} has no terminal")
        set_size(self.process.terminal, size)

    # --- Its life ------------------------------------------------------------------------------------

    async def run(self, io: LinkStream | None, stderr: LinkStream | None, status: LinkStream | None) -> None:
        """Pass on input and output until the process has ended, and tell how. Cancelled: end it first."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._await_end)
                if self.request.deadline is not None:
                    nursery.start_soon(self._keep_deadline, self.request.deadline)
                if io is None:
                    await self._keep_output()
                else:
                    assert status is not None
                    nursery.start_soon(self._watch, io, nursery)
                    nursery.start_soon(self._feed, io)
                    await self._send_output(io, stderr)
                await self.process.ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.process.close()
            if not self.process.end:
                # The agent ends, and its jobs with it; but not with one that even SIGKILL does not end.
                with trio.move_on_after(2 * DEADLINE_GRACE) as scope:
                    scope.shield = True
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._await_end)
                        await self.process.kill(signal.SIGHUP, DEADLINE_GRACE)
            self.over.set()
        for stream in filter(None, (io, stderr)):
            await stream.aclose()
        if status is not None:
            await send_status(status, self.end())

    async def _await_end(self) -> None:
        await self.process.wait()
        self.ended = time.time()

    async def _keep_output(self) -> None:
        async with trio.open_nursery() as nursery:
            for output, tail in zip(self._outputs(), self.tails, strict=True):
                nursery.start_soon(_keep, output, tail)

    async def _send_output(self, io: LinkStream, stderr: LinkStream | None) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send, self.process.out, io)
            if self.process.err is not None:
                assert stderr is not None
                nursery.start_soon(_send, self.process.err, stderr)

    async def _feed(self, io: LinkStream) -> None:
        into = self.process.into
        assert into is not None
        try:
            async for data in io:
                if not await into.write(bytes(data)):
                    break
            else:
                await into.end()
                return
        except trio.BrokenResourceError:
            pass
        into.close()

    async def _watch(self, io: LinkStream, nursery: trio.Nursery) -> None:
        await io.broken.wait()
        if io.reset_by_peer == _UNREAD:
            self.process.out.close()
            return
        log.info("job %d: hung up, SIGHUP", self.number)
        self.process.hang_up()
        await self.process.kill(signal.SIGHUP, HANGUP_GRACE)

    async def _keep_deadline(self, seconds: float) -> None:
        await trio.sleep(seconds)
        if not self.process.end:
            self.missed_deadline = True
            await self.process.kill(signal.SIGTERM, DEADLINE_GRACE)

    async def follow(self, offsets: list[int], streams: list[LinkStream | None], status: LinkStream) -> None:
        """Send a detached job's output from these offsets on, and then how it ended."""
        missed: list[int] = []

        async def send(tail: Tail, offset: int, stream: LinkStream) -> None:
            try:
                missed.append(await tail.send_from(offset, stream))
                await stream.aclose()
            except trio.BrokenResourceError:
                return  # nobody is interested in it any more

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_broken, status, scope)
                async with trio.open_nursery() as sending:
                    for tail, offset, stream in zip(self.tails, offsets, streams, strict=False):
                        if stream is not None:
                            sending.start_soon(send, tail, offset, stream)
                await self.over.wait()
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            for stream in filter(None, streams):
                stream.reset(CANCELLED)
        else:
            await send_status(status, {**self.end(), "missed": sum(missed)})


async def _keep(output: Output, tail: Tail) -> None:
    while data := await output.read():
        tail.append(data)
    tail.close()


async def _send(output: Output, stream: LinkStream) -> None:
    try:
        while data := await output.read():
            await stream.send_all(data)
    except trio.BrokenResourceError:
        if stream.reset_by_peer == _UNREAD:
            # As on a pipe that nobody reads: who writes gets SIGPIPE.
            output.close()
        while await output.read():
            pass


async def _cancel_when_broken(stream: LinkStream, scope: trio.CancelScope) -> None:
    await stream.broken.wait()
    scope.cancel()
