"""Things that pass between a task and a thread, in order, a bounded number at a time.

To call a function in a thread costs the event loop several turns, which is a millisecond where the guest is
emulated. So a thread that has much to do is called once, and what it works on comes and goes on a belt: the
loop is woken only when it waits for that.

What one side writes, the other only reads. Each says that it waits before it looks whether it has to: so no
wake-up is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class _Belt:
    """What both have: the wait of the task."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._waits = False
        self._woken = trio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._woken = trio.Event()
            self._waits = True
            if not condition():
                await self._woken.wait()
            self._waits = False

    def _wake_task(self) -> None:
        if self._waits:
            # If all is over, nobody has to be woken.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._woken.set, idempotent=True)


class FromThread(_Belt, Generic[T]):
    """Things that a thread makes and a task takes.

    Args:
        most: how many may wait; then the thread does.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        #: One for each that there is room for. It is a semaphore; Python's own is not written in C.
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(most):
            self._room.put(None)
        self._items: deque[T] = deque()
        self._ended = False

    def put(self, item: T) -> bool:
        """In the thread: hand it on, when there is room. False: nobody takes any more."""
        self._room.get()
        if self._ended:
            return False
        self._items.append(item)
        self._wake_task()
        return True

    async def take(self) -> T:
        """Return the next."""
        await self._until(self._has_some)
        self._room.put(None)
        return self._items.popleft()

    def _has_some(self) -> bool:
        return bool(self._items)

    def end(self) -> None:
        """Take no more: the thread, if it waits for room, is told."""
        self._ended = True
        self._room.put(None)


class ToThread(_Belt, Generic[T]):
    """Things that a task gives and a thread works on.

    Args:
        most: how many may wait, or be worked on; then the task waits until half of them are done with, since
            to wake it costs as much as to give it the next.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._given = self._done = 0

    async def give(self, item: T) -> None:
        """Hand it on, when there is room."""
        if self._is_full():
            await self._until(self._is_emptier)
        self._given += 1
        self._queue.put(item)

    def _is_full(self) -> bool:
        return self._given - self._done >= self._most

    def _is_emptier(self) -> bool:
        return 2 * (self._given - self._done) <= self._most

    def end(self) -> None:
        """Give no more: the thread comes to its end when it has worked on all."""
        self._queue.put(None)

    def items(self) -> Iterator[T]:
        """In the thread: yield each; when the next is asked for, the last is done with."""
        while (item := self._queue.get()) is not None:
            yield item
            del item  # or it would be referred to until the next one comes
            self._done += 1
            if self._is_emptier():
                self._wake_task()
