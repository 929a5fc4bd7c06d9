"""Samples on a stream, as often as was asked for, to a reader who keeps up.

The rules:

1. Times are multiples of the interval since the beginning. If the reader has not taken a record when the next
   is due, that one is skipped, and so on; the record that goes out then says how many were (``skipped``), and
   is a fresh one. Nothing is buffered.
2. The first record comes after `FIRST` seconds, or the interval if that is less: a screen shall not stay
   empty for a minute.
3. It ends when the reader leaves, or its link is lost.
"""

from __future__ import annotations

import math

import trio

from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.paced import PacedWriter
from virtagent_protocol.stream import CANCELLED, LinkStream
from virtagent_protocol.values import Struct

from .sampler import Sampler

#: Seconds until the first record.
FIRST = 0.5
#: Subscriptions at a time: each may look at a thousand processes several times a second.
SUBSCRIPTIONS_MAX = 16


class Subscriptions:
    """All that there are in this agent."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether there can be no more."""
        return self.count >= SUBSCRIPTIONS_MAX

    async def run(self, sampler: Sampler, interval: float, stream: LinkStream) -> None:
        """Send records until the reader has left; then the stream is closed."""
        self.count += 1
        try:
            await _send(sampler, interval, PacedWriter(stream))
        except VirtagentError as error:
            stream.reset(CANCELLED, str(error))
        finally:
            self.count -= 1
            with trio.CancelScope(shield=True):
                await stream.aclose()


async def _send(sampler: Sampler, interval: float, writer: PacedWriter) -> None:
    began = trio.current_time()
    await sampler.begin()
    due, skipped = began + min(FIRST, interval), 0
    # The first record is out of turn if it comes before the first multiple of the interval.
    turn = 0 if due < began + interval else 1
    while True:
        with trio.move_on_at(due):
            await writer.until_left()
            return
        record: Struct = {**await sampler.sample(), "skipped": skipped}
        if not await writer.put(record):
            return
        # The next time that is still to come.
        next_turn = max(math.floor((trio.current_time() - began) / interval), turn) + 1
        skipped = next_turn - turn - 1
        due, turn = began + next_turn * interval, next_turn


#: Those of this agent.
SUBSCRIPTIONS = Subscriptions()
