"""Two clipboards kept alike: the host's and the guest's.

The rules:

1. One task decides, here, so there is one order of things. It holds what both had last (`_agreed`), and
   carries what is something else. What it has set itself comes back as the same, and is not carried: no
   echo.
2. Changes are numbers, not a queue: what was overtaken by the next change is never carried.
3. If both have changed, the host's counts: that is where the user who wants this sits. The same at the start.
4. An empty clipboard is not carried: it tells that a program has ended, not that anybody wants nothing.
5. Each direction can be off. What is carried from the guest has a rate: a guest that changes its clipboard
   all the time must not keep the host's from being used.
6. What cannot be carried (too large, its owner does not answer) is told, and the next change is carried
   again. If the guest was not there to take it, it is carried as soon as the guest is heard of again. Only
   when a display is lost does the end come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import trio

from ..bucket import TokenBucket
from ..errors import FailureKind, LinkBroken, VirtagentError
from .contents import SIZE_MAX, Contents
from .mime import PATTERNS

#: Contents carried in one direction: so many at once, then so many a second.
BURST, RATE = 5, 2.0


#: Failures that may be over when the guest is heard of again.
_PASSING = frozenset(
    {FailureKind.NOT_THERE, FailureKind.NOT_READY, FailureKind.TIMED_OUT, FailureKind.BROKEN}
)


class Direction(Enum):
    """Which way contents go."""

    TO_GUEST = "to-guest"
    FROM_GUEST = "from-guest"


class Side(Protocol):
    """One of the two: a `Backend`, or what stands for one that is elsewhere."""

    @property
    def changes(self) -> int:
        """As of `Backend`."""

    async def wait_change(self, seen: int) -> int:
        """As of `Backend`."""

    async def fetch(self, patterns: Sequence[str], limit: int, known: Contents) -> Contents:
        """As `Backend.read`; *known* itself if that is what the clipboard holds."""

    async def write(self, contents: Contents) -> None:
        """As of `Backend`."""


@dataclass(frozen=True)
class Carried:
    """What was carried, or (with an error) was not."""

    direction: Direction
    contents: Contents
    error: VirtagentError | None = None


class Synchroniser:
    """Keeps the two alike.

    Args:
        host, guest: the two.
        directions: which ways are on.
        report: called with each thing that was, or could not be, carried; must return at once.
        patterns, limit: what is let through.
    """

    def __init__(
        self,
        host: Side,
        guest: Side,
        directions: frozenset[Direction],
        report: Callable[[Carried], None],
        *,
        patterns: Sequence[str] = PATTERNS,
        limit: int = SIZE_MAX,
    ) -> None:
        self._sides = {Direction.TO_GUEST: (host, guest), Direction.FROM_GUEST: (guest, host)}
        self._host, self._guest = host, guest
        self._directions = directions
        self._patterns, self._limit, self._report = patterns, limit, report
        self._agreed = Contents()
        #: Numbers of changes that were dealt with; none at first, so that what is there is carried.
        self._seen = {Direction.TO_GUEST: -1, Direction.FROM_GUEST: -1}
        #: Whether the guest did not get what it should have.
        self._owed = False
        self._buckets = {direction: TokenBucket(BURST, RATE) for direction in Direction}

    async def run(self) -> None:
        """Keep them alike until cancelled.

        Raises:
            LinkBroken: a display, or the way to it, is lost.
        """
        while True:
            if self._owed and self._due(Direction.FROM_GUEST):
                self._owed = False
                self._seen[Direction.TO_GUEST] = -1
            if self._due(Direction.TO_GUEST):
                await self._carry(Direction.TO_GUEST)
            elif self._due(Direction.FROM_GUEST):
                await self._carry(Direction.FROM_GUEST)
            else:
                await self._until_due()

    def _due(self, direction: Direction) -> bool:
        source, _ = self._sides[direction]
        return direction in self._directions and source.changes != self._seen[direction]

    async def _until_due(self) -> None:
        lost: list[LinkBroken] = []
        async with trio.open_nursery() as nursery:

            async def wait(direction: Direction) -> None:
                source, _ = self._sides[direction]
                try:
                    await source.wait_change(self._seen[direction])
                except LinkBroken as error:
                    lost.append(error)
                nursery.cancel_scope.cancel()

            for direction in self._directions:
                nursery.start_soon(wait, direction)
        if lost:
            raise lost[0]

    async def _carry(self, direction: Direction) -> None:
        source, target = self._sides[direction]
        while not self._buckets[direction].take(trio.current_time()):
            await trio.sleep(1 / RATE)
        changes, contents = source.changes, Contents()
        try:
            contents = await source.fetch(self._patterns, self._limit, self._agreed)
            if direction is Direction.FROM_GUEST and self._due(Direction.TO_GUEST):
                return  # rule 3; ours comes up again if there was nothing to it
            self._seen[direction] = changes
            if contents and not contents.alike(self._agreed):
                # Before it is there: the change that this makes must be known for what it is.
                previous, self._agreed = self._agreed, contents
                try:
                    await target.write(contents)
                except BaseException:
                    self._agreed = previous
                    raise
                self._report(Carried(direction, contents))
        except LinkBroken:
            raise
        except VirtagentError as error:
            self._seen[direction] = changes
            self._owed = direction is Direction.TO_GUEST and error.kind in _PASSING
            self._report(Carried(direction, contents, error))
