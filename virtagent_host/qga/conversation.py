"""qemu-ga as a peer: one command at a time, and every answer taken for what it is.

The rules:

1. qemu-ga answers in order and marks nothing: an answer belongs to the oldest command without one. So
   whoever gives up waiting has put both out of step, and so has a restart of either end.
2. Out of step, a sync comes first: 0xFF, which ends what is unfinished there, and guest-sync-delimited with
   a number of our choice. Whatever comes before that number comes back is stale, and dropped.
3. A sync that stays unanswered is sent again after a while, with another number. From then on only that one
   counts.
4. What the guest sends is bounded and checked. What is no answer is dropped.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping

import trio

from virtagent_protocol.counters import Counters
from virtagent_protocol.errors import SessionReset
from virtagent_protocol.qga.messages import SENTINEL, Answer, command, parse_answer
from virtagent_protocol.qga.stream import JsonProblem, JsonStream

#: Bytes of the longest answer. We ask for files in pieces; a process's captured output may be 16 MiB, but its
#: users wait for what they can look at.
ANSWER_MAX = 8 * 1024 * 1024
#: Bytes read at a time.
RECEIVE_SIZE = 16 * 1024
#: Seconds after which an unanswered sync is sent again.
SYNC_AGAIN = 5.0
#: Seconds in which an error comes, if one does, for a command that has no answer if it succeeds.
ERROR_WITHIN = 1.0
#: Bits of a sync's number: what every JSON reader keeps exactly.
_SYNC_BITS = 48


class Conversation:
    """What is said on one open channel.

    Args:
        stream: the channel; not closed.
        counters: what is counted.
        on_heard: called whenever an answer came.
    """

    def __init__(self, stream: trio.abc.Stream, counters: Counters, on_heard: Callable[[], None]) -> None:
        self._stream = stream
        self._counters = counters
        self._on_heard = on_heard
        self._lock = trio.Lock()
        self._in_step = False
        #: The number of the last sync that was sent and not answered, and when it was.
        self._sync_number: int | None = None
        self._sync_sent = -math.inf
        #: Whether the next answer is that of a command of ours.
        self._wanted = False
        self._answer: Answer | None = None
        self._arrived = trio.Event()
        #: Why the answer that is awaited will not come.
        self._loss: str | None = None
        self._ended: str | None = None

    @property
    def busy(self) -> bool:
        """Whether a command is under way."""
        return self._lock.locked()

    async def read(self) -> None:
        """Read answers until the channel ends.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the channel failed.
        """
        wire = JsonStream(ANSWER_MAX)
        while data := await self._stream.receive_some(RECEIVE_SIZE):
            self._counters.bytes_in += len(data)
            for event in wire.feed(bytes(data)):
                answer = None if isinstance(event, JsonProblem) else parse_answer(event.value)
                if answer is None:
                    self._counters.drops["garbage"] += 1
                    if self._wanted and isinstance(event, JsonProblem) and "limit exceeded" in event.desc:
                        # It was the answer, and nobody else will send one.
                        self.lose(f"the answer of the guest's agent was too long: {event.desc}")
                else:
                    self._take(answer)
            await trio.lowlevel.checkpoint()

    def end(self, reason: str) -> None:
        """Fail what is under way, and all that follows, with `SessionReset`."""
        self._ended = self._ended or reason
        self._arrived.set()

    def lose(self, reason: str) -> None:
        """Fail what is under way with `SessionReset`: whoever was to answer is gone. Another may come."""
        self._loss = reason
        self._in_step = False
        self._sync_number = None
        self._arrived.set()

    async def execute(self, name: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a command and return its result. It may be cancelled at any time.

        Raises:
            QgaError: the agent answered with an error.
            SessionReset: the channel or its other end was lost meanwhile.
        """
        async with self._lock:
            await self._get_in_step()
            answer = await self._say(command(name, arguments))
        return _result(answer)

    async def execute_unanswered(self, name: str, arguments: Mapping[str, object]) -> None:
        """Run a command that is answered only if it fails.

        Raises:
            QgaError: it did.
            SessionReset: the channel was lost before the command was sent.
        """
        async with self._lock:
            await self._get_in_step()
            answer = None
            with trio.move_on_after(ERROR_WITHIN):
                try:
                    answer = await self._say(command(name, arguments))
                except SessionReset:
                    return  # as was asked for
        if answer is not None:
            _result(answer)

    async def _get_in_step(self) -> None:
        while not self._in_step:
            if self._sync_number is None or trio.current_time() - self._sync_sent >= SYNC_AGAIN:
                self._sync_number, self._sync_sent = secrets.randbits(_SYNC_BITS), trio.current_time()
                self._expect()
                await self._send(SENTINEL + command("guest-sync-delimited", {"id": self._sync_number}))
            else:
                # That of a caller who has given up.
                self._expect()
            with trio.move_on_at(self._sync_sent + SYNC_AGAIN):
                await self._arrived.wait()
            self._check_ended()

    async def _say(self, line: bytes) -> Answer:
        # Until the answer is here: whatever ends this early leaves an answer behind.
        self._in_step = False
        # Before it is sent: the answer may come before send_all() has returned.
        self._expect()
        self._wanted = True
        try:
            await self._send(line)
            await self._arrived.wait()
        finally:
            self._wanted = False
        if self._answer is None:
            self._check_ended()
        assert self._answer is not None
        self._in_step = True
        return self._answer

    async def _send(self, data: bytes) -> None:
        self._check_ended()
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise SessionReset(f"the channel failed: {error or type(error).__name__}") from error
        self._counters.bytes_out += len(data)
        self._counters.messages_out += 1

    def _expect(self) -> None:
        self._answer, self._loss, self._arrived = None, None, trio.Event()
        if self._ended is not None:
            self._arrived.set()

    def _check_ended(self) -> None:
        reason = self._ended or self._loss
        if reason is not None:
            raise SessionReset(reason)

    def _take(self, answer: Answer) -> None:
        self._counters.messages_in += 1
        self._on_heard()
        if type(answer.result) is int and answer.result == self._sync_number:
            self._sync_number = None
            self._in_step = True
        elif self._wanted:
            self._wanted, self._answer = False, answer
        else:
            self._counters.drops["late-reply"] += 1
            return
        self._arrived.set()


def _result(answer: Answer) -> object:
    if answer.error is not None:
        raise answer.error
    return answer.result
