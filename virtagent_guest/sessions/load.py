"""How much is under way for sessions: bounded for each, and for all together.

A session that has nothing under way always gets its first call, whatever the others hold. So those that are
stuck, or are asked for too much, cost the others nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.limits import MIB

from .table import UserSession

#: Calls under way: of one session; and of all, beyond the first of each.
CALLS_OF_ONE, CALLS_SHARED = 8, 64
#: Bytes of their parameters: of one session, room for two of the largest messages; and of all, the same way.
BYTES_OF_ONE, BYTES_SHARED = 4 * MIB, 16 * MIB
#: Streams that are passed on. Each may hold two windows of half a MiB, and is one of the 256 of the port.
STREAMS_OF_ONE, STREAMS_SHARED = 16, 64
#: Bytes of answers that the host has not read yet. It is the host that is slow then, so nobody comes first.
RESULTS_OF_ONE, RESULTS_OF_ALL = 8 * MIB, 32 * MIB


@dataclass
class _Kind:
    """One thing that is counted."""

    words: str
    of_one: int
    shared: int
    first_is_free: bool = True

    def __post_init__(self) -> None:
        self.held: Counter[UserSession] = Counter()

    def take(self, session: UserSession, count: int) -> None:
        """Raises Fault: QUEUE_FULL."""
        own = self.held[session]
        if own + count > self.of_one or (
            (own or not self.first_is_free) and self.held.total() + count > self.shared
        ):
            whose = session if own + count > self.of_one else "all sessions together"
            limit = self.of_one if own + count > self.of_one else self.shared
            raise Fault(
                FaultCode.QUEUE_FULL,
                f"{whose} may have {limit} {self.words} under way: try again when some have ended",
            )
        self.held[session] += count

    def give_back(self, session: UserSession, count: int) -> None:
        self.held[session] -= count
        if not self.held[session]:
            del self.held[session]


class Load:
    """What is under way."""

    def __init__(self) -> None:
        self._calls = _Kind("calls", CALLS_OF_ONE, CALLS_SHARED)
        self._bytes = _Kind("bytes of parameters", BYTES_OF_ONE, BYTES_SHARED)
        self._streams = _Kind("streams", STREAMS_OF_ONE, STREAMS_SHARED)
        self._results = _Kind("bytes of answers", RESULTS_OF_ONE, RESULTS_OF_ALL, first_is_free=False)

    def begin(self, session: UserSession, size: int, streams: int) -> None:
        """A call begins, with parameters of that many bytes and so many streams.

        Raises:
            Fault: QUEUE_FULL, and nothing was counted.
        """
        taken: list[tuple[_Kind, int]] = []
        try:
            for kind, count in ((self._calls, 1), (self._bytes, size), (self._streams, streams)):
                kind.take(session, count)
                taken.append((kind, count))
        except Fault:
            for kind, count in taken:
                kind.give_back(session, count)
            raise

    def end_call(self, session: UserSession, size: int) -> None:
        """The call has been answered; its streams may go on."""
        self._calls.give_back(session, 1)
        self._bytes.give_back(session, size)

    def end_streams(self, session: UserSession, count: int) -> None:
        """Some of its streams have ended."""
        self._streams.give_back(session, count)

    @contextmanager
    def result(self, session: UserSession, size: int) -> Iterator[bool]:
        """Hold a result in the block, until the host has taken it; gives whether there is room for it."""
        try:
            self._results.take(session, size)
        except Fault:
            yield False
            return
        try:
            yield True
        finally:
            self._results.give_back(session, size)

    def __len__(self) -> int:
        return self._calls.held.total()
