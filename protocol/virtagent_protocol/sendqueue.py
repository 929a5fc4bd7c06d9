"""What goes out next: the order of everything that one writer has to send (SPEC.md section 8).

The rules:

1. Three lanes: replies and control, then requests, then stream data. Within a lane, first come
   first served. Replies first means that two ends that call each other at once never deadlock.
2. Nothing starves. When `TURNS` items in a row were taken while a lower lane waited, the lowest
   lane that was passed over so often has its turn. An item at the head of its lane therefore
   waits for at most `WAIT_MAX` others, whatever the lanes above it hold.
3. Whether there is room is the business of those who put things in; each of them is bounded.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Generic, TypeVar

T = TypeVar("T")

#: How often a waiting lane is passed over before it has its turn.
TURNS = 8


class Lane(IntEnum):
    """The lanes, most urgent first."""

    #: Replies, hello, cancellations, credit.
    REPLY = 0
    REQUEST = 1
    STREAM = 2


#: Items taken before one that has come to the head of its lane, at most: those that pass it over, and
#: one turn for each other lane that falls due at the same time.
WAIT_MAX = TURNS + len(Lane) - 1


_ALL_LANES = tuple(Lane)


class SendQueue(Generic[T]):
    """The items that wait to be sent, in the order of the rules above."""

    def __init__(self) -> None:
        self._lanes: tuple[deque[T], ...] = tuple(deque() for _ in Lane)
        self._passed_over = [0] * len(Lane)

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def __bool__(self) -> bool:
        return any(self._lanes)

    def put(self, item: T, lane: Lane) -> None:
        """Append an item to a lane."""
        self._lanes[lane].append(item)

    def pop(self) -> T | None:
        """Take the next item; None if nothing waits."""
        waiting = [lane for lane in _ALL_LANES if self._lanes[lane]]
        if not waiting:
            return None
        due = [lane for lane in waiting if self._passed_over[lane] >= TURNS]
        chosen = due[-1] if due else waiting[0]
        for lane in waiting:
            # A lane above the chosen one is not passed over but yields: only lower ones are counted.
            if lane > chosen:
                self._passed_over[lane] += 1
        self._passed_over[chosen] = 0
        return self._lanes[chosen].popleft()

    def discard(self, item: T) -> bool:
        """Take an item out that is no longer to be sent; return whether it was still there."""
        for lane in self._lanes:
            if item in lane:
                lane.remove(item)
                return True
        return False

    def clear(self) -> list[T]:
        """Take everything out and return it."""
        items = [item for lane in self._lanes for item in lane]
        for lane in self._lanes:
            lane.clear()
        self._passed_over = [0] * len(Lane)
        return items
