"""Turns: whoever wants the one thing that is there gets it after all others had it once.

The rules:

1. One holds the turn at a time. It is given up before it is asked for again.
2. Those who wait are served by key, round robin: a key with a hundred that wait gets no more than one with
   one. Within a key it is first come, first served.
3. So whoever is the first of its key waits for at most one turn of each other key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class Turns:
    """The turns of one thing."""

    def __init__(self) -> None:
        self._taken = False
        #: By key, the one whose turn is next in front.
        self._waiting: dict[Hashable, deque[trio.Event]] = {}

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the turn in the block, as one of those with this key."""
        await self._take(key)
        try:
            yield
        finally:
            self._give_up()

    async def _take(self, key: Hashable) -> None:
        await trio.lowlevel.checkpoint()
        if not self._taken:
            self._taken = True
            return
        called = trio.Event()
        self._waiting.setdefault(key, deque()).append(called)
        try:
            await called.wait()
        except trio.Cancelled:
            if called.is_set():
                self._give_up()
            else:
                self._leave(key, called)
            raise

    def _leave(self, key: Hashable, called: trio.Event) -> None:
        self._waiting[key].remove(called)
        if not self._waiting[key]:
            del self._waiting[key]

    def _give_up(self) -> None:
        if not self._waiting:
            self._taken = False
            return
        key = next(iter(self._waiting))
        queue = self._waiting.pop(key)
        queue.popleft().set()
        if queue:
            # Behind all others.
            self._waiting[key] = queue
